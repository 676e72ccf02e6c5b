"""Lists the fields of a config: dotted key, type, range, default and meaning, read from the dataclass's source.

The meaning is the comment beside a field or above it, the range is what `__post_init__` requires.
"""

from __future__ import annotations

import ast
import dataclasses
import io
import tokenize
import types
import typing
from collections.abc import Iterator
from typing import Any

from shared.app.outline import Absent, Outline, definition_of

_REQUIRED = dataclasses.MISSING


@dataclasses.dataclass(frozen=True)
class Field:
    """One line of a command's help."""

    key: str  # dotted; <name> stands for a name that a person chooses, [] for the members of a list
    kind: str  # int | float | true | false | a, b, c …
    default: str
    meaning: str
    is_group: bool = False  # a nested config: its fields follow


def fields_of(schema: type, defaults: Any = None) -> list[Field]:
    """Returns every field of a config class, nested ones dotted; defaults are those of the instance, where one is given."""
    return list(_walk(schema, defaults, ""))


def _walk(schema: type, defaults: Any, prefix: str) -> Iterator[Field]:
    meanings: dict[str, str] = {}
    bounds: dict[str, str] = {}
    for definition in map(definition_of, filter(dataclasses.is_dataclass, reversed(schema.__mro__))):
        meanings |= _comments(*definition)
        bounds |= _bounds(*definition)
    kinds = typing.get_type_hints(schema)
    # A config's own fields come before those of the configs in it.
    for field in sorted(dataclasses.fields(schema), key=lambda field: _nested(kinds[field.name])[0] is not None):
        key = prefix + ("in" if field.name == "inputs" else field.name)
        kind, meaning = kinds[field.name], meanings.get(field.name, "")
        value = _default(field) if defaults is None else getattr(defaults, field.name)
        inner, suffix = _nested(kind)
        if inner is None:
            words = ", ".join(part for part in (_kind_text(kind), bounds.get(field.name, "")) if part)
            yield Field(key, words, _text(value), meaning)
        elif suffix:
            yield Field(key, _kind_text(kind), _names(value), meaning, is_group=True)
            yield from _walk(inner, None, f"{key}{suffix}.")
        else:
            meaning = "; ".join(part for part in (_summary(inner), meaning) if part)
            yield Field(key, "", "", meaning, is_group=True)
            yield from _walk(inner, None if value is _REQUIRED else value, f"{key}.")


def _comments(outline: Outline, node: ast.ClassDef) -> dict[str, str]:
    """Returns {field: its comment}: the lines of comment above it, then those beside its own lines."""
    tokens = tokenize.generate_tokens(io.StringIO(outline.source).readline)
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    lines, found = outline.source.splitlines(), {}
    for field in node.body:
        if not isinstance(field, ast.AnnAssign):
            continue
        first = field.lineno
        while lines[first - 2].strip().startswith("#"):
            first -= 1
        said = [comments[line] for line in range(first, (field.end_lineno or field.lineno) + 1) if line in comments]
        found[ast.unparse(field.target)] = " ".join(said)
    return found


def _bounds(outline: Outline, node: ast.ClassDef) -> dict[str, str]:
    """Returns {field: its range} from the calls require_range(name=(self.name, low, high)) in a class."""
    found = {}
    for call in ast.walk(node):
        if not (isinstance(call, ast.Call) and getattr(call.func, "id", "") == "require_range"):
            continue
        for keyword in call.keywords:
            if not isinstance(keyword.value, ast.Tuple):
                continue
            named, *bounds = keyword.value.elts
            try:
                low, high = (outline.evaluate(bound) for bound in bounds)
            except Absent:
                continue  # depends on other values
            if isinstance(named, ast.Attribute):
                found[named.attr] = f"from {low:g}" + (f" to {high:g}" if high < 1e5 else "")
    return found


def _summary(schema: type) -> str:
    _, node = definition_of(schema)
    return (ast.get_docstring(node) or "").partition("\n")[0].rstrip(".")


def _nested(kind: Any) -> tuple[Any, str]:
    """Returns the config class in a type, if there is one, and what stands in its key for a name or a place in a list."""
    if dataclasses.is_dataclass(kind):
        return kind, ""
    origin, members = typing.get_origin(kind), typing.get_args(kind)
    if origin is dict and dataclasses.is_dataclass(members[1]):
        return members[1], ".<name>"
    if origin in (list, tuple) and dataclasses.is_dataclass(members[0]):
        return members[0], "[]"
    return None, ""


def _kind_text(kind: Any) -> str:
    origin, members = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return " | ".join(map(str, members))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_kind_text(member) for member in members)
    if origin in (list, tuple):
        return f"list of {_kind_text(members[0])}"
    if origin is dict:
        return f"{{name: {_kind_text(members[1])}}}"
    if dataclasses.is_dataclass(kind):
        return "{…}"
    return {bool: "true | false", type(None): "null", str: "text"}.get(kind) or kind.__name__


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _names(value: Any) -> str:
    """Returns the members of a list or dict of records in brief."""
    if isinstance(value, dict):
        return "{" + ", ".join(value) + "}"
    return f"{len(value)} of them" if isinstance(value, list | tuple) else ""


def _text(value: Any) -> str:
    """Returns a value as it is written on the command line; nothing for a field that must be given."""
    if value is _REQUIRED:
        return ""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_text, value)) + "]"
    if isinstance(value, dict):
        return _names(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
