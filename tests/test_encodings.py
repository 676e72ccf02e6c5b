"""Text is UTF-8 whatever the machine's own encoding: every place that reads or writes some says so."""

from __future__ import annotations

import ast

import pytest

from tests.test_rooms import ROOT, files, tree_of

_TEXT = {"read_text": 0, "write_text": 1}  # method → the place of `encoding` among its positional words
_PROGRAMS = {"run", "Popen", "check_output", "check_call", "call"}


def silent(tree: ast.Module) -> list[int]:
    """Returns the lines whose call reads or writes text in whatever encoding the machine has."""
    return [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Call) and _is_silent(node)]


def _is_silent(call: ast.Call) -> bool:
    named = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in named:
        return False
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name in _TEXT:
        return len(call.args) <= _TEXT[name]
    if name in _PROGRAMS:
        return any(
            isinstance(named.get(word), ast.Constant) and named[word].value for word in ("text", "universal_newlines")
        )
    if name == "open" and isinstance(call.func, ast.Name):
        return _is_text(call.args[1] if len(call.args) > 1 else named.get("mode"))
    if name == "open":  # a method: of a path where its first word is a mode, or where there is none
        return bool(call.args[:1]) and _is_mode(call.args[0]) and _is_text(call.args[0])
    if name in ("fdopen", "NamedTemporaryFile", "TemporaryFile"):
        mode = named.get("mode") or next((word for word in call.args if _is_mode(word)), None)
        return mode is not None and _is_text(mode)
    return False


def _is_mode(word: ast.expr) -> bool:
    return isinstance(word, ast.Constant) and isinstance(word.value, str) and set(word.value) <= set("rwaxbt+")


def _is_text(mode: ast.expr | None) -> bool:
    return mode is None or (isinstance(mode, ast.Constant) and "b" not in mode.value)


@pytest.mark.parametrize("path", files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_text_is_read_and_written_as_utf_8(path):
    assert silent(tree_of(path)) == []


def test_a_silent_place_is_found():
    lines = """
Path("a").read_text()
path.write_text("x")
open("a")
path.open("w")
run(["git"], text=True)
os.fdopen(3, "w")
Path("a").read_text(encoding="utf-8")
path.write_text("x", encoding="utf-8")
open("a", "rb")
path.open("wb")
Image.open(file, formats=FORMATS)
Session.open(config, run, accelerator)
run(["git"], capture_output=True)
"""
    assert silent(ast.parse(lines)) == [2, 3, 4, 5, 6, 7]
