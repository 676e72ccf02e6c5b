"""What the README says is there: its tree is the tree, and its commands, configs and files exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rl_finetune.cli import COMMANDS, LAUNCH
from shared.app.shipped import find_config
from tests.test_rooms import CUPBOARDS, ROOMS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DOCS = [README, *(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))]


def tree() -> dict[str, list[str]]:
    """Returns {room: the words of its line and of the lines under it} of the README's tree."""
    (block,) = [block for block in README.split("```") if block.startswith("\nshared/")]
    rooms: dict[str, list[str]] = {}
    for line in block.strip().splitlines():
        if not line.startswith(" "):
            room = line.split("/")[0]
            rooms[room] = []
        rooms[room] += line.split()
    return rooms


@pytest.mark.parametrize("room", ROOMS)
def test_the_tree_shows_every_cupboard_in_its_order_and_every_command(room):
    words = tree()[room]
    order = [name for names in CUPBOARDS[room] for name in names.split() if name != "{}"]
    assert [word.rstrip("/") for word in words if word.endswith("/") and word != f"{room}/"] == order
    files = {path.name for path in (ROOT / room).glob("*.py")} - {"__init__.py"}
    assert {word for word in words if word.endswith(".py")} >= files


def test_every_make_target_is_there():
    targets = set(re.findall(r"^([\w -]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    known = {name for names in targets for name in names.split()}
    for text in DOCS:
        assert set(re.findall(r"\bmake ([a-z][a-z-]+)", text)) - {"it"} <= known


def test_every_command_is_there():
    for text in DOCS:
        assert set(re.findall(r"restore-rl ([a-z][a-z-]+)", text)) <= {*COMMANDS, LAUNCH}
        modules = re.findall(r"-m ((?:shared|data|reward_model|rl_finetune)\.[\w.]+)", text)
        assert set(modules) <= {*COMMANDS.values(), "rl_finetune.cli"}


def test_every_config_and_every_file_is_there():
    for text in DOCS:
        for name in re.findall(r"configs/[\w/]+\.yaml", text):
            assert find_config(name), name
        for name in re.findall(r"`((?:shared|data|reward_model|rl_finetune|tests|docs)/[\w/.]*)`", text):
            assert (ROOT / name).exists(), name


def test_every_test_that_the_docs_name_is_there():
    written = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for text in DOCS:
        assert [name for name in re.findall(r"`(test_\w+)`", text) if f"def {name}(" not in written] == []


def test_every_link_and_every_function_in_the_docs_is_there():
    for path in (ROOT / "docs").glob("*.md"):
        text = path.read_text()
        for target in re.findall(r"\]\(([^)#]+?)\)", text):
            assert target.startswith("http") or (path.parent / target).exists(), target
        for name in re.findall(r"`((?:shared|data|reward_model|rl_finetune)(?:\.\w+){2,})`", text):
            parts = name.split(".")
            files = [ROOT.joinpath(*parts[:n]).with_suffix(".py") for n in range(len(parts), 1, -1)]
            source = next((file.read_text() for file in files if file.exists()), None)
            assert source is not None, name
            assert re.search(rf"^(def|class) {parts[-1]}\b", source, flags=re.M) or files[0].exists(), name
