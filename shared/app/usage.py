"""Writes the --help of a command: its module's docstring, then every field with type, range, default and meaning."""

from __future__ import annotations

import ast
import re
import shutil
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from shared.app.config import load_config
from shared.app.errors import UserError
from shared.app.fields import Field, fields_of
from shared.app.outline import Outline, outline_of
from shared.app.shipped import find_config, is_setting
from shared.app.words import read_words

_READERS: dict[str, Callable[..., Any]] = {"load_config": load_config, "read_words": read_words}


@dataclass(frozen=True)
class Command:
    """A command as its module's source declares it; the module is not imported."""

    outline: Outline
    reader: str  # how its words are read: load_config or read_words
    schema: type
    options: dict[str, Any]

    @classmethod
    def of(cls, module: str) -> Command:
        """Returns the command in a module: the function that reads its `argv`, and the config class it reads into."""
        outline = outline_of(module)
        for call in ast.walk(outline.tree):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") in _READERS and len(call.args) == 2:
                schema, words = call.args
                if isinstance(words, ast.Name) and words.id == "argv":
                    options = {str(keyword.arg): outline.evaluate(keyword.value) for keyword in call.keywords}
                    return cls(outline, ast.unparse(call.func), outline.evaluate(schema), options)
        raise ValueError(f"{module} reads its argv neither with load_config nor with read_words")

    @property
    def shipped_config(self) -> str | None:
        """The first config that the module's docstring names, for a command that reads one."""
        named = re.search(r"configs/[\w/]+\.yaml", self.outline.doc)
        return named[0] if named and self.reader == "load_config" else None

    def check(self, argv: Sequence[str]) -> Any:
        """Returns the settings in a command's words. Raises UserError where the command would refuse them."""
        if self.shipped_config and all(is_setting(word) for word in argv):
            got = " ".join(argv) or "nothing"
            raise UserError(f"expected a config and key=value words, such as {self.shipped_config} seed=1, got {got}")
        return _READERS[self.reader](self.schema, argv, **self.options)

    def help(self, argv: Sequence[str], *, called: str = "", width: int = 120) -> str:
        """Returns the command's help; defaults come from the config that its words name, or from the first in its docstring.

        `called` replaces `python -m <module>` in the text.
        """
        text, config = self.outline.doc, self.shipped_config
        if config:
            config = next((word for word in argv if not is_setting(word) and find_config(word)), config)
        defaults = load_config(self.schema, [config]) if config else None
        if called:
            text = re.sub(r"python -m [\w.]+", called, text)
        title = f"Fields, key=value{f', with the values of {config}' if config else ''}:"
        lines = [line for field in fields_of(self.schema, defaults) for line in _lines(field, width)]
        return "\n".join([text, "", title, *lines])


def summary_of(module: str) -> str:
    """Returns what a command does, in the first words of its module's docstring."""
    return outline_of(module).doc.partition("\n\n")[0].replace("\n", " ").partition(": ")[0].rstrip(".")


def print_help(module: str, argv: Sequence[str], *, called: str = "") -> None:
    """Prints a command's help as wide as the terminal is."""
    width = max(60, min(140, shutil.get_terminal_size((120, 24)).columns))
    print(Command.of(module).help(argv, called=called, width=width))


def _lines(field: Field, width: int) -> list[str]:
    gap = [""] if field.is_group else []
    if field.is_group and not field.kind:
        return [*gap, *textwrap.wrap(f"{field.key}: {field.meaning}", width, subsequent_indent="    ")]
    room = max(
        16, width - len(field.key) - 3
    )  # for the default alone: one of a single long word is left out, its key is not
    head = f"  {field.key}={textwrap.shorten(field.default, room, placeholder=' …')}"
    said = "; ".join(part for part in (field.kind, field.meaning) if part)
    indent = " " * 40
    if len(head) < len(indent) - 1:
        return gap + textwrap.wrap(said, width, initial_indent=f"{head:<40}", subsequent_indent=indent)
    return [*gap, head, *textwrap.wrap(said, width, initial_indent=indent, subsequent_indent=indent)]
