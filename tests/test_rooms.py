"""Imports point one way: shared ← data ← reward_model ← rl_finetune."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOMS = ("shared", "data", "reward_model", "rl_finetune")
ROOT = Path(__file__).parent.parent


def imported_rooms(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names.add(node.module.split(".")[0])
    return names & set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_itself_and_what_lies_before_it(room):
    allowed = set(ROOMS[: ROOMS.index(room) + 1])
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    strays = {str(path.relative_to(ROOT)): imported_rooms(path) - allowed for path in files}
    assert not {path: rooms for path, rooms in strays.items() if rooms}


def test_package_markers_stay_empty():
    markers = [path for room in ROOMS for path in (ROOT / room).rglob("__init__.py")]
    assert len(markers) >= len(ROOMS)
    assert all(path.read_text() == "" for path in markers)
