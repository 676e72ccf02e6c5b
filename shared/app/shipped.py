"""Finds the configs that ship with the code: in the checkout, or in the installed package."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
# pyproject.toml installs the checkout's configs/ as shared/configs/.
_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")


def shipped_folder() -> Path:
    """Returns the folder of the shipped configs."""
    return next((folder for folder in _FOLDERS if folder.is_dir()), _FOLDERS[0])


def shipped_names() -> list[str]:
    """Returns every shipped config as a person names it: configs/train_rm.yaml, configs/gpu/train_rm.yaml."""
    folder = shipped_folder()
    return sorted(f"configs/{path.relative_to(folder).as_posix()}" for path in folder.rglob("*.yaml"))


def find_config(name: str) -> Path | None:
    """Returns the file called `name`, or else the shipped config of that name, with or without the prefix configs/."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_folder() / name.removeprefix("configs/")
    return shipped if not path.is_absolute() and ".." not in path.parts and shipped.is_file() else None


def nearest_config(name: str) -> str | None:
    """Returns the shipped config with the name nearest to `name`, or None when none is near."""
    known = [shipped.removeprefix("configs/") for shipped in shipped_names()]
    nearest = get_close_matches(name.removeprefix("configs/"), known, n=1, cutoff=0.7)
    return f"configs/{nearest[0]}" if nearest else None
