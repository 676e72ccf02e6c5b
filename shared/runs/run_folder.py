"""A run folder: one stage's config, checkpoints, metrics and the marker that says it is finished."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.app.config import to_yaml
from shared.app.errors import UserError
from shared.files import flush, read_json, require_free_space, write_bytes
from shared.runs.finished import SUMMARY_FILE, command_hash, finished_line
from shared.runs.growth import Growth, remove_interrupted_saves
from shared.runs.lock import FolderLock, refuse_if_held
from shared.runs.picture_list import PICTURES_FILE, Lists, lists_to_json, looks_unchanged, picture_changes, read_lists
from shared.runs.provenance import PROVENANCE_FILE, changed_inputs, fingerprint, provenance_of, seeds_of, session_of
from shared.runs.same_settings import differing_settings, read_settings, where_it_is_now

CONFIG_FILE = "config.yaml"
_NO_INPUT = (None, "", "none", "own")  # what settings say that name no file and no folder
_TOLD = "source.if_changed=go_on, with make IF_CHANGED=go_on"


@dataclass(frozen=True)
class RunFolder:
    """One stage's folder. `config.yaml` is written first and `summary.json` last: with both, the stage is finished."""

    path: Path
    command: tuple[str, ...] = ()  # the words that asked for the stage
    free_keys: tuple[str, ...] = ()  # settings that cannot change the result (workers, logging): they may differ
    growth: Growth | None = None  # how the run may go on beyond what it was asked for
    goes_on: str = ""  # what there is to say where it does

    @classmethod
    def begin(
        cls,
        path: str | Path,
        config: Any,
        argv: Sequence[str],
        *,
        free_keys: tuple[str, ...],
        needed_mb: int = 0,
        growth: Growth | None = None,
        pictures: Callable[[], Lists] | None = None,
    ) -> RunFolder | None:
        """Returns the folder of a stage that has work to do; prints a line and returns None when it is finished.

        `pictures` lists those it would be made from now. Raises UserError as `check` and `require_same_pictures` do, while
        another process works in the folder, and when its disk has less than `needed_mb` free, and for trackers that
        are not installed. Writes no new folder.
        """
        if names := getattr(config, "tracking", ""):
            from shared.trackers import require_trackers  # imports Accelerate, and only trainings need it

            require_trackers(names)
        folder = cls.check(path, config, free_keys=free_keys, growth=growth)
        if folder.is_finished() and not folder.goes_on:
            if pictures is not None and not looks_unchanged(folder.path, [config.source.images, config.source.faces]):
                now = pictures()
                folder.require_same_pictures(now, config)
                folder.write_json(PICTURES_FILE, lists_to_json({**read_lists(folder.path), **now}))
            print(finished_line(folder.summary()))
            return None
        if is_main_process():
            refuse_if_held(folder.path)
        require_free_space(folder.path, needed_mb * 1_000_000)
        return dataclasses.replace(folder, command=tuple(argv))

    @classmethod
    def open(cls, path: str | Path, config: Any, *, free_keys: tuple[str, ...] = ()) -> RunFolder:
        """Returns the folder, made if missing, with its config inside. Raises UserError as `check` and `make` do."""
        folder = cls.check(path, config, free_keys=free_keys)
        folder.make(config)
        return folder

    @classmethod
    def check(
        cls, path: str | Path, config: Any, *, free_keys: tuple[str, ...] = (), growth: Growth | None = None
    ) -> RunFolder:
        """Returns the folder without writing anything. Raises UserError when another config made it, naming the keys."""
        folder = cls(Path(path), free_keys=free_keys, growth=growth)
        if folder.path.exists() and not folder.path.is_dir():
            raise UserError(f"expected a run folder, but {path} is a file; choose another with out= or RUN=")
        if folder.config_path.exists():
            return dataclasses.replace(folder, goes_on=_accept(folder, config))
        # A kill in the first moment leaves a lock, or a part of the config.
        if folder.path.is_dir() and any(not each.name.startswith(".") for each in folder.path.iterdir()):
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

    def make(
        self, config: Any, *, pictures: Lists | None = None, inputs: Mapping[str, str | None] | None = None
    ) -> None:
        """Takes the folder for this process and writes config, pictures and provenance into it.

        `inputs` names files and folders, besides the pictures, that the result depends on. Call it after everything that
        can be wrong with a config has been checked and its sources are open: otherwise the folder left by a mistake would
        refuse the corrected command. Raises UserError while another process has the folder, and for pictures and inputs
        that are others than when it was begun.
        """
        if is_main_process():
            FolderLock.take(self.path)
        # Another process may have been here since `begin`.
        goes_on = _accept(self, config) if self.config_path.exists() else ""
        if self.command and self.is_finished() and not goes_on:
            raise UserError(f"{self.path} has just been finished by another process")
        if not self.config_path.exists():
            write_bytes(self.config_path, to_yaml(config).encode())
        if not is_main_process():
            return
        self.require_same_pictures(pictures or {}, config)
        self._write_provenance(config, inputs or {}, pictures or {}, goes_on)
        if pictures:
            self.write_json(PICTURES_FILE, lists_to_json({**read_lists(self.path), **pictures}))
        if _moved(self, config) or goes_on:
            # First the mark: a run that is to go on is not finished, whatever happens next.
            if goes_on:
                (self.path / SUMMARY_FILE).unlink(missing_ok=True)
                flush(self.path)
                print(f"{self.path} {goes_on}")
            write_bytes(self.config_path, to_yaml(config).encode())

    def require_same_pictures(self, now: Lists, config: Any, *, told: str = _TOLD) -> None:
        """Raises UserError, saying which came, went or changed, unless the pictures are those that the run was begun with.

        With source.if_changed=go_on it only says so. `told` says how a person asks for that.
        """
        said = picture_changes(read_lists(self.path), now)
        if not said:
            return
        if config.source.if_changed == "go_on":
            print(f"{self.path} was begun with other pictures: {said}")
            return
        raise UserError(
            f"{self.path} was begun with other pictures: {said}. Bring back those that it had, choose another folder with "
            f"out= or RUN=, or go on with these: {told}"
        )

    def finish(self, summary: dict[str, Any], *, says: str) -> None:
        """Marks the stage as finished, with its figures; `says` is printed now and when it is asked for again."""
        from shared.app.timing import process_peak_mb  # imports torch, and a finished stage is asked without it

        noted = {"says": says, "command": command_hash(self.command), "peak_memory_mb": process_peak_mb()}
        self.write_json(SUMMARY_FILE, {**noted, **summary})
        remove_interrupted_saves(self.path)
        FolderLock.release_if_held(self.path)
        print(says)

    def settings(self) -> dict[str, Any]:
        """Returns the settings of the run that lies here, with the places in them where they are now."""
        written = read_settings(self.config_path)
        return where_it_is_now(written, self.path, str(written.get("out", self.path)))

    def starts(self) -> list[dict[str, Any]]:
        """Returns what is noted of every start of the stage: command, versions, machine, threads."""
        return provenance_of(self.path)["sessions"]

    def summary(self) -> dict[str, Any]:
        """Returns the figures of a finished stage. Raises UserError where they are damaged."""
        try:
            return read_json(self.path / SUMMARY_FILE)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.path / SUMMARY_FILE} is damaged ({error}); remove it to finish the run again"
            ) from None

    def write_json(self, name: str, content: Any) -> None:
        """Writes a json file whole or not at all."""
        write_bytes(self.path / name, (json.dumps(content, indent=2, default=_plain) + "\n").encode())

    def _write_provenance(self, config: Any, inputs: Mapping[str, str | None], pictures: Lists, goes_on: str) -> None:
        before = provenance_of(self.path)
        named = {name: where for name, where in inputs.items() if where not in _NO_INPUT}
        found = {name: fingerprint(where, before["inputs"].get(name)) for name, where in named.items()}
        if said := changed_inputs(before["inputs"], found):
            raise UserError(
                f"{self.path} was begun with other contents of {', '.join(said)}; finish it with those, choose another "
                "folder with out= or RUN=, or remove that one"
            )
        content = {
            "seeds": seeds_of(config),
            "pictures": {
                name: {"count": len(listed.files), "sha256": listed.sha256} for name, listed in pictures.items()
            },
            "inputs": {**before["inputs"], **found},
            "sessions": [*before["sessions"], session_of(self.command) | ({"goes_on": goes_on} if goes_on else {})],
        }
        self.write_json(PROVENANCE_FILE, content)


def is_main_process() -> bool:
    """Whether this is the process that writes, among those that torchrun started or as the only one."""
    return os.environ.get("RANK", "0") == "0"


def _moved(folder: RunFolder, config: Any) -> bool:
    """Whether the written config names places by other names than those they have now."""
    written = read_settings(folder.config_path)
    return "out" in written and os.path.realpath(written["out"]) != os.path.realpath(str(config.out))


def _accept(folder: RunFolder, config: Any) -> str:
    """Returns how the run goes on where it is asked for more, and else an empty text. Raises UserError for other settings."""
    differing, growth = differing_settings(folder.config_path, config, folder.free_keys), folder.growth
    if growth is not None and differing.keys() == {growth.key}:
        there, here = differing[growth.key]
        done = growth.made(folder.path)
        if here > there and not (folder.is_finished() and (done is None or folder.summary().get("rolled_back"))):
            return growth.says(growth.asked_for(config, there), config, done or 0)
        if here > there:
            why = (
                "stopped by its gauge"
                if done is not None
                else f"finished, and its folder `{growth.state}` is not there"
            )
            raise UserError(
                f"{folder.path} cannot go on to {growth.key}={here}: it was {why}; choose another folder with out="
            )
    if differing:
        said = [f"{key} is {there!r} there and {here!r} here" for key, (there, here) in differing.items()]
        shown = "; ".join(said[:3]) + (f" (and {len(said) - 3} more)" if len(said) > 3 else "")
        raise UserError(
            f"{folder.path} was made by another config: {shown}. Choose another folder with out= or RUN=, or remove that one"
        )
    return ""


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)
