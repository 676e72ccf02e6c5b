"""The house: which way imports point, what lies where, how much fits in, and that a name means one thing.

Read from the files' text alone, function-level imports included.
"""

from __future__ import annotations

import ast
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("shared", "data", "reward_model", "rl_finetune")
# The cupboards of each room, from the one that stands on no other; {} are a room's own files: in shared what the rest
# stands on, elsewhere the commands.
CUPBOARDS = {
    "shared": ("{} app", "publishing", "runs", "pictures", "vision", "diffusion", "restorers", "latent", "policies"),
    "data": ("procedural", "sources", "degradation", "pool", "regions", "store", "{}"),
    "reward_model": ("network", "measuring", "learning", "{}"),
    "rl_finetune": (
        "supervised",
        "rewards",
        "credit",
        "methods",
        "evidence",
        "loop",
        "footprint",
        "shipping",
        "converting",
        "restoring",
        "reporting",
        "{}",
    ),
}
MOST_FILES, MOST_LINES = 12, 250


@lru_cache
def files() -> tuple[Path, ...]:
    found = tuple(path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")) if path.name != "__init__.py")
    assert len(found) > 100
    return found


@lru_cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def place_of(module: str) -> tuple[int, int]:
    """Returns the order of a module's room and of its cupboard in it."""
    room, *inner = module.split(".")
    cupboard = inner[0] if len(inner) > 1 else "{}"
    (place,) = [place for place, names in enumerate(CUPBOARDS[room]) if cupboard in names.split()]
    return ROOMS.index(room), place


@lru_cache
def imports() -> dict[str, frozenset[str]]:
    """Returns {module: the modules of this repository that it imports, wherever in its text}."""
    known = {module_of(path) for path in files()}
    found = {}
    for path in files():
        named: set[str] = set()
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path} imports relatively"
                # `from package import module` names a module, `from module import name` its inside.
                named |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        found[module_of(path)] = frozenset(named & known)
    return found


def test_imports_point_one_way_between_rooms_and_cupboards():
    strays = [
        f"{module} imports {other}"
        for module, others in imports().items()
        for other in sorted(others)
        if place_of(other) > place_of(module)
    ]
    assert strays == []


def test_every_cupboard_has_its_place():
    found = {room: {path.parent.name for path in (ROOT / room).glob("*/__init__.py")} for room in ROOMS}
    assert found == {room: set(" ".join(cupboards).split()) - {"{}"} for room, cupboards in CUPBOARDS.items()}
    deeper = [str(path) for path in files() if len(path.relative_to(ROOT).parts) > 3]
    assert deeper == []


def test_no_import_goes_round_in_a_circle():
    assert list(circles(imports())) == []


def circles(graph: dict[str, frozenset[str]]) -> Iterator[list[str]]:
    """Yields a circle of imports for every module from which one can be reached."""
    done: set[str] = set()

    def walk(module: str, way: list[str]) -> Iterator[list[str]]:
        if module in way:
            yield [*way[way.index(module) :], module]
        elif module not in done:
            for other in sorted(graph[module]):
                yield from walk(other, [*way, module])
            done.add(module)

    for module in graph:
        yield from walk(module, [])


def test_a_circle_is_seen():
    graph = {"a": frozenset("b"), "b": frozenset("c"), "c": frozenset("b"), "d": frozenset()}
    assert list(circles(graph)) == [["b", "c", "b"]]


@pytest.mark.parametrize("room", ROOMS[1:])
def test_a_file_at_the_top_of_a_room_is_a_command(room):
    for path in (ROOT / room).glob("*.py"):
        if path.name != "__init__.py":
            assert "main" in public_names(path), path
            assert 'if __name__ == "__main__":' in path.read_text(), path


def test_what_is_run_by_name_elsewhere_is_known():
    runnable = {module_of(path) for path in files() if "__main__" in path.read_text()}
    inside = {module for module in runnable if module.count(".") > 1}
    assert inside == {"shared.app.launch", "shared.runs.finished"}


def test_no_cupboard_holds_more_than_a_dozen_files():
    held = defaultdict(int)
    for path in files():
        held[path.parent.relative_to(ROOT).as_posix()] += 1
    crowded = {name: count for name, count in held.items() if count > MOST_FILES and "/" in name}
    assert crowded == {}


def test_no_file_is_longer_than_a_person_reads_at_once():
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files()}
    assert {path: count for path, count in lines.items() if count > MOST_LINES} == {}


def test_package_markers_stay_empty_and_every_package_is_installed():
    markers = [path for room in ROOMS for path in (ROOT / room).rglob("__init__.py")]
    assert all(path.read_text() == "" for path in markers)
    packages = {".".join(path.parent.relative_to(ROOT).parts) for path in markers}
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert set(declared) == packages | {"shared.checkpoints", "shared.configs"}
    assert declared.count("shared") == 1


# What may have a name twice, because it is the same thing in both places.
ONE_ROLE = {
    "config": "the settings of the cupboard it lies in; shared/app/config.py reads them",
    "bench": "the command that measures what a room's work costs",
    "download": "the command that fetches from the Hub what a room trains",
    "train": "the command, and in every command the function, that makes all steps of a training",
    "evaluate": "the command that measures what a room has trained",
    "main": "a command's table of contents",
    "psnr": "a metric, and the reward that is that metric",
    "ssim": "a metric, and the reward that is that metric",
    "gradient_distance": "a metric, and the reward that is that metric",
}


def test_a_name_means_one_thing():
    """Of files, and of public classes, functions and type aliases; also no function is named as another file is."""
    places = defaultdict(set)
    for path in files():
        for name in {path.stem, *public_names(path)}:
            places[name].add(str(path.relative_to(ROOT)))
    twice = {name: sorted(paths) for name, paths in places.items() if len(paths) > 1 and name not in ONE_ROLE}
    assert twice == {}
    assert {name for name in ONE_ROLE if len(places[name]) < 2} == set(), "no longer twice: take it off the list"


def public_names(path: Path) -> set[str]:
    names = set()
    for node in tree_of(path).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id  # a type alias or a type variable, unless it is a CONSTANT or a value
            names |= {name} if name[0].isupper() and not name.isupper() else set()
    return {name for name in names if not name.startswith("_")}
