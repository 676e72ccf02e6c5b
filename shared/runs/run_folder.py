"""A run folder: one stage's config, checkpoints, metrics and the marker that says it is finished."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from shared.app.config import flatten, to_yaml
from shared.app.errors import UserError
from shared.files import write_bytes
from shared.runs.finished import SUMMARY_FILE, command_hash, finished_line

CONFIG_FILE, STATE_FOLDER = "config.yaml", "state"


@dataclass(frozen=True)
class RunFolder:
    """One stage's folder. `config.yaml` is written first and `summary.json` last: with both, the stage is finished."""

    path: Path
    command: tuple[str, ...] = ()  # the words that asked for the stage

    @classmethod
    def begin(
        cls, path: str | Path, config: Any, argv: Sequence[str], *, free_keys: tuple[str, ...], needed_mb: int = 0
    ) -> RunFolder | None:
        """Returns the folder of a stage that has work to do; prints a line and returns None when it is finished.

        Raises UserError as `check` does, and when its disk has less than `needed_mb` free. Writes nothing.
        """
        folder = cls.check(path, config, free_keys=free_keys)
        if folder.is_finished():
            print(finished_line(folder.summary()))
            return None
        require_free_space(folder.path, needed_mb * 1_000_000)
        return dataclasses.replace(folder, command=tuple(argv))

    @classmethod
    def open(cls, path: str | Path, config: Any, *, free_keys: tuple[str, ...] = ()) -> RunFolder:
        """Returns the folder, made if missing, with its config inside. Raises UserError as `check` does."""
        folder = cls.check(path, config, free_keys=free_keys)
        folder.make(config)
        return folder

    @classmethod
    def check(cls, path: str | Path, config: Any, *, free_keys: tuple[str, ...] = ()) -> RunFolder:
        """Returns the folder without writing anything. Raises UserError when another config made it, naming the keys.

        `free_keys` name settings that cannot change the result (workers, logging); they may differ.
        """
        folder = cls(Path(path))
        if folder.path.exists() and not folder.path.is_dir():
            raise UserError(f"expected a run folder, but {path} is a file; choose another with out= or RUN=")
        if folder.config_path.exists():
            _refuse_difference(folder, config, free_keys)
        elif folder.path.is_dir() and any(folder.path.iterdir()):
            raise UserError(
                f"{path} holds files but no {CONFIG_FILE}; it is no run folder: choose an empty one with out= or RUN="
            )
        return folder

    @property
    def config_path(self) -> Path:
        return self.path / CONFIG_FILE

    def is_finished(self) -> bool:
        """Whether the stage ran to its end."""
        return (self.path / SUMMARY_FILE).exists()

    def make(self, config: Any) -> None:
        """Writes the folder with its config, if it is not there.

        Call it after everything that can be wrong with a config has been checked and its sources are open: otherwise
        the folder left by a mistake would refuse the corrected command.
        """
        if not self.config_path.exists():
            write_bytes(self.config_path, to_yaml(config).encode())

    def finish(self, summary: dict[str, Any], *, says: str) -> None:
        """Marks the stage as finished, with its figures; `says` is printed now and when it is asked for again."""
        self.write_json(SUMMARY_FILE, {"says": says, "command": command_hash(self.command), **summary})
        # The resumable state is several times as large as the result.
        for name in (STATE_FOLDER, f"{STATE_FOLDER}.old", f"{STATE_FOLDER}.part"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        print(says)

    def summary(self) -> dict[str, Any]:
        """Returns the figures of a finished stage."""
        return json.loads((self.path / SUMMARY_FILE).read_text())

    def write_json(self, name: str, content: Any) -> None:
        """Writes a json file whole or not at all."""
        write_bytes(self.path / name, (json.dumps(content, indent=2, default=_plain) + "\n").encode())


def require_free_space(path: str | Path, needed_bytes: int) -> None:
    """Raises UserError unless the disk that will hold `path` has `needed_bytes` free."""
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed_bytes:
        raise UserError(
            f"about {needed_bytes / 1e6:.0f} MB are needed in {path}, but its disk has {free / 1e6:.0f} MB free; "
            "free some space, or choose another disk with out= or RUN="
        )


def _refuse_difference(folder: RunFolder, config: Any, free_keys: tuple[str, ...]) -> None:
    written = flatten(OmegaConf.to_container(OmegaConf.load(folder.config_path)))
    asked = flatten(OmegaConf.to_container(OmegaConf.create(to_yaml(config))))
    absent = "(absent)"
    differing = [
        f"{key} is {written.get(key, absent)!r} there and {asked.get(key, absent)!r} here"
        for key in sorted(written.keys() | asked.keys())
        if written.get(key, absent) != asked.get(key, absent) and not key.startswith(free_keys or ("\0",))
    ]
    if differing:
        shown = "; ".join(differing[:3]) + (f" (and {len(differing) - 3} more)" if len(differing) > 3 else "")
        raise UserError(
            f"{folder.path} was made by another config: {shown}. Choose another folder with out= or RUN=, or remove that one"
        )


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)
