"""What a shipped checkpoint says of its making: settings without this machine's paths, commit, versions, hardware, time."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from shared.app.errors import UserError
from shared.runs.provenance import LIBRARIES, head_commit, provenance_of, this_machine, words_for_machine
from shared.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Making:
    """How a checkpoint was made."""

    settings: dict[str, Any]  # the run's config.yaml
    seconds: float | None  # of training
    commit: str
    versions: str
    hardware: str
    contents: tuple[str, ...] = ()  # what it was made from, each with the start of its checksum

    @classmethod
    def of(cls, run: RunFolder, *, commit: str, hardware: str) -> Making:
        """Returns the making of a finished run, by what its `provenance.json` notes of its last start.

        What is not noted there, of a run by an earlier version, is read from the checkout and this machine. A commit or
        hardware that is given is taken as it is.
        """
        if not run.config_path.is_file() or not run.is_finished():
            raise UserError(f"{run.path} is no finished run; run its command to the end first")
        settings = run.settings()
        noted = provenance_of(run.path)
        start = noted["sessions"][-1] if noted["sessions"] else {}
        found = {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}
        found |= {name: each for name, each in start.get("versions", {}).items() if name in found}
        versions = ", ".join(f"{'Python' if name == 'python' else name} {each}" for name, each in found.items())
        return cls(
            settings,
            run.summary().get("seconds"),
            commit or _commits(noted["sessions"]) or head_commit(),
            versions,
            hardware or (words_for_machine(start["machine"]) if "machine" in start else this_machine()),
            tuple(_contents(noted)),
        )


def _commits(sessions: list[dict[str, Any]]) -> str:
    """Returns the commits of all starts in order, each once; empty where none is noted."""
    return ", then ".join(dict.fromkeys(str(each["commit"]) for each in sessions if each.get("commit")))


def _contents(noted: dict[str, Any]) -> Iterator[str]:
    for subject, listed in noted["pictures"].items():
        yield f"{listed.get('count')} {subject} {str(listed.get('sha256'))[:16]}"
    for name, each in noted["inputs"].items():
        if "sha256" in each:
            yield f"{name} {str(each['sha256'])[:16]}"
