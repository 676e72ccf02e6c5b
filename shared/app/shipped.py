"""Finds the configs and the checkpoints that ship with the code: in the checkout, or in the installed package.

A shipped checkpoint is named shipped:rl_sr, wherever a policy's, a restorer's or a reward model's path is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from shared.app.errors import UserError

PREFIX = "shipped:"
DEFAULT_RUN = "runs/default"

_PACKAGE = Path(__file__).parents[1]
# pyproject.toml installs the checkout's configs/ as shared/configs/, and its checkpoints/ as shared/checkpoints/.
_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")
_CHECKPOINTS = (_PACKAGE / "checkpoints", _PACKAGE.parent / "checkpoints")
_CONFIG_FILE = "config.json"  # in every checkpoint


def shipped_folder() -> Path:
    """Returns the folder of the shipped configs."""
    return next((folder for folder in _FOLDERS if folder.is_dir()), _FOLDERS[0])


def shipped_names() -> list[str]:
    """Returns every shipped config as a person names it: configs/train_rm.yaml, configs/gpu/train_rm.yaml.

    Those in gpu/accelerate are the launcher's, not a command's.
    """
    folder = shipped_folder()
    paths = [path for path in folder.rglob("*.yaml") if path.parent.name != "accelerate"]
    return sorted(f"configs/{path.relative_to(folder).as_posix()}" for path in paths)


def find_config(name: str) -> Path | None:
    """Returns the file called `name`, or else the shipped config of that name, with or without the prefix configs/."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_folder() / name.removeprefix("configs/")
    return shipped if not path.is_absolute() and ".." not in path.parts and shipped.is_file() else None


def is_setting(word: str) -> bool:
    """Whether a command's word is key=value, and no config whose own name holds a =."""
    return "=" in word and not Path(word).is_file()


def nearest_config(name: str) -> str | None:
    """Returns the shipped config with the name nearest to `name`, or None when none is near."""
    known = [shipped.removeprefix("configs/") for shipped in shipped_names()]
    nearest = get_close_matches(name.removeprefix("configs/"), known, n=1, cutoff=0.7)
    return f"configs/{nearest[0]}" if nearest else None


def shipped_checkpoints() -> dict[str, Path]:
    """Returns the folder of every shipped checkpoint, by the name a person gives: shipped:rl_sr."""
    folder = next((folder for folder in _CHECKPOINTS if folder.is_dir()), _CHECKPOINTS[0])
    return {f"{PREFIX}{path.parent.name}": path.parent for path in sorted(folder.glob(f"*/{_CONFIG_FILE}"))}


def find_checkpoint(where: str) -> str:
    """Returns the folder of the shipped checkpoint that `where` names, and any other text as it is.

    `where` may go on to a folder inside the checkpoint, shipped:base_sr/guide.
    Raises UserError, with those that are there, where no such checkpoint is shipped.
    """
    if not where.startswith(PREFIX):
        return where
    there = shipped_checkpoints()
    name, _, inside = where.partition("/")
    if name not in there or ".." in Path(inside).parts:
        raise UserError(f"{where} is not shipped with this version; shipped: {', '.join(there) or 'nothing yet'}")
    return str(there[name] / inside)


@dataclass(frozen=True)
class Choice:
    """A checkpoint that was chosen for a person who named none."""

    where: str
    says: str  # which one, and why


def choose_checkpoint(run: str, inside: str, *shipped: str, advice: str) -> Choice:
    """Returns the checkpoint `inside` a run's folder; where the default run has none, the first of those shipped.

    Raises UserError with `advice` where there is none at all. Another run than the default one is taken at its word.
    """
    trained = Path(run) / inside
    if (trained / _CONFIG_FILE).is_file() or Path(run) != Path(DEFAULT_RUN):
        return Choice(str(trained), str(trained))
    there = shipped_checkpoints()
    for name in (f"{PREFIX}{each}" for each in shipped):
        if name in there:
            first = f"{PREFIX}{shipped[0]}"
            instead = "" if name == first else f" in place of {first}, which is not shipped with this version"
            return Choice(name, f"{name}{instead} ({trained} is not trained)")
    raise UserError(f"{trained} is not trained, and {PREFIX}{shipped[0]} is not shipped with this version: {advice}")
