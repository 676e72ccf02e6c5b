"""Reads a yaml file and dotted overrides into one frozen dataclass; a misspelt key or a wrong type is refused by name."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from shared.app.errors import UserError
from shared.app.shipped import find_config, is_setting, nearest_config, shipped_names
from shared.files import personal_path, storable

Schema = TypeVar("Schema")
_MOST_BYTES = 200_000  # of a config file


def load_config(schema: type[Schema], argv: Sequence[str]) -> Schema:
    """Returns `schema` filled from `config.yaml key=value …`; later values win over earlier ones.

    A config that is not there is looked up among the shipped ones. Raises UserError for a missing file, an unknown key
    (with the nearest known one), a wrong type, a bad choice, a missing value, or a broken invariant (a ValueError raised
    in a `__post_init__`).
    """
    paths = [word for word in argv if not is_setting(word)]
    overrides = [word for word in argv if is_setting(word)]
    if len(paths) != 1:
        raise UserError(f"expected one config file and key=value overrides, got {' '.join(argv) or 'nothing'}")
    (path,) = paths
    file = find_config(path)
    if file is None:
        nearest, shipped = nearest_config(path), ", ".join(shipped_names())
        raise UserError(f"no config file {path}; " + (f"did you mean {nearest}?" if nearest else f"shipped: {shipped}"))
    try:
        written = _parsed(partial(_load_yaml, schema), file, name=path)
        overriding = [_override(schema, word) for word in overrides]
        config = OmegaConf.to_object(OmegaConf.merge(_writable(OmegaConf.structured(schema)), written, *overriding))
        to_yaml(config)  # a list takes null among its numbers until it is written down
        return at_home(config)
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {_one_line(error)}") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    except (TypeError, IndexError):  # OmegaConf raises these for words that are not dotted keys of this config
        raise UserError(
            f"{path}: expected keys and values, and overrides key=value with dotted keys; a list is given whole: "
            "key='[{name: psnr, weight: 1}]'"
        ) from None


def read_yaml(file: Path) -> DictConfig:
    """Returns a yaml file's keys and values; OmegaConf bounds what its aliases expand to.

    Raises UserError for a file that holds anything else, is none, or is larger than any config, and a YAMLError where it is
    damaged.
    """
    if file.exists() and (not file.is_file() or file.stat().st_size > _MOST_BYTES):
        raise UserError(f"{file} is no config: expected a file of at most {_MOST_BYTES // 1000} kB")
    try:
        written = OmegaConf.load(file)
    except RecursionError:
        raise UserError(f"{file} is nested too deeply for a config") from None
    except (OSError, AssertionError) as error:
        if getattr(error, "errno", None) is not None:
            raise
        written = None  # OmegaConf's own refusals of a lone number, and of one in quotes
    if not isinstance(written, DictConfig):
        raise UserError(f"{file}: expected keys and values")
    return written


def from_dict(schema: type[Schema], values: dict[str, Any]) -> Schema:
    """Returns `schema` filled from a nested dict, such as one read back from json; the inverse of dataclasses.asdict.

    Text is taken as it stands: ${oc.env:…} in a file that somebody else wrote must not read this machine's environment.
    """
    merged = OmegaConf.merge(_writable(OmegaConf.structured(schema)), _each_text(values, _literal))
    return cast(Schema, OmegaConf.to_object(merged))


def to_yaml(config: Any) -> str:
    """Returns the resolved config as yaml text."""
    values = OmegaConf.to_container(OmegaConf.structured(config))
    return OmegaConf.to_yaml(OmegaConf.create(_each_text(values, lambda text: storable(_literal(text)))))


def flatten(config: Any) -> dict[str, Any]:
    """Returns {dotted key: leaf value} of a config dataclass, or of a plain nested dict read back from yaml."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
        elif isinstance(value, list | tuple) and value:
            for index, inner in enumerate(value):
                walk(f"{prefix}.{index}", inner)
        else:
            flat[prefix] = list(value) if isinstance(value, tuple) else value

    walk("", config)
    return flat


def require_range(**bounds: tuple[float, float, float]) -> None:
    """Raises ValueError unless low <= value <= high for every name=(value, low, high)."""
    for name, (value, low, high) in bounds.items():
        if not low <= value <= high:
            raise ValueError(f"{name} must lie between {low:g} and {high:g}, got {value:g}")


def _override(schema: type, word: str) -> DictConfig:
    """Returns `key=value` as a config. The value of a text field is taken as it stands, whatever yaml would make of it."""
    key, _, value = word.partition("=")
    kind = _kind_of(schema, key.split("."))
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    text: Any = None
    if _is_text(kind) and not quoted and not (kind == str | None and value == "null"):
        text = value
    elif _is_text(_member(kind)) and value.startswith("["):
        text = _parsed(partial(yaml.load, Loader=yaml.BaseLoader), value, name=word)
    if text is None:
        return _parsed(OmegaConf.from_dotlist, [word], name=word)
    written = OmegaConf.create()
    OmegaConf.update(written, key, _each_text(text, _literal))
    return written


def _kind_of(schema: Any, keys: list[str]) -> Any:
    """Returns the type of the field that a dotted key leads to, or None where it leads to none."""
    for key in keys:
        if dataclasses.is_dataclass(schema):
            schema = get_type_hints(schema).get(key)
        elif get_origin(schema) is dict:
            schema = get_args(schema)[1]
        else:
            return None
    return schema


def _is_text(kind: Any) -> bool:
    return kind is str or kind == str | None


def _member(kind: Any) -> Any:
    """Returns the type of a list's or tuple's members, or None for any other type."""
    return get_args(kind)[0] if get_origin(kind) in (list, tuple) else None


def _load_yaml(schema: type, file: Path) -> DictConfig:
    """Returns a yaml file as a config, its texts as they are written: 2024_01 is a name, where a text is due."""
    read = read_yaml(file)
    with file.open(encoding="utf-8") as stream:
        written = yaml.load(stream, yaml.BaseLoader)  # every scalar as it stands
    return OmegaConf.create(_with_texts(schema, OmegaConf.to_container(read), written))


def _with_texts(kind: Any, value: Any, written: Any) -> Any:
    """Returns a value that yaml made, with the scalars that were written where `kind` has texts."""
    if isinstance(value, dict) and isinstance(written, dict) and len(value) == len(written):  # not with a << in it
        pairs = zip(value.values(), written.items(), strict=True)
        return {key: _with_texts(_kind_of(kind, [key]), inner, as_is) for inner, (key, as_is) in pairs}
    if isinstance(value, list) and isinstance(written, list):
        return [_with_texts(_member(kind), inner, as_is) for inner, as_is in zip(value, written, strict=True)]
    return written if _is_text(kind) and value is not None and not isinstance(value, str) else value


def _literal(text: str) -> str:
    """Returns a text for OmegaConf in which ${…} is no reference to another field."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    """Returns plain values with every text in them changed."""
    if isinstance(value, dict):
        return {key: _each_text(inner, change) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_each_text(inner, change) for inner in value)
    return change(value) if isinstance(value, str) else value


def at_home(value: Any) -> Any:
    """Returns a config with every text that begins with ~ as the path in a person's home that it is."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        changed = {name: new for name, old in found.items() if (new := at_home(old)) != old}
        return dataclasses.replace(value, **changed) if changed else value
    if isinstance(value, dict):
        return {key: at_home(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(at_home(inner) for inner in value)
    return str(personal_path(value)) if isinstance(value, str) and value.startswith("~") else value


def _parsed(parse: Callable[[Any], Any], what: Any, *, name: str) -> Any:
    try:
        return parse(what)
    except RecursionError:
        raise UserError(f"{name} is nested too deeply for a config") from None
    except Exception as error:
        if type(error).__module__.startswith("yaml"):
            raise UserError(f"{name} is not valid yaml: {_one_line(error)}") from None
        raise


def _writable(node: DictConfig) -> DictConfig:
    # OmegaConf makes a frozen dataclass read-only at every depth, and the overrides must still be merged into it.
    OmegaConf.set_readonly(node, False)
    for key in node:
        inner = node._get_node(key)
        if isinstance(inner, DictConfig) and not inner._is_none() and not inner._is_missing():
            _writable(inner)
    return node


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "; ".join(line for line in lines if not line.startswith("object_type="))
