"""Fetches a reward-model checkpoint from the Hub, verified, into a folder.

python -m reward_model.download repo=user/name revision=main out=runs/downloaded/reward_model
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reward_model.network.checkpoint import locate_checkpoint, verify_checkpoint
from shared.app.entry import run_command
from shared.app.errors import UserError
from shared.app.words import read_words
from shared.files import replace_folder


@dataclass(frozen=True)
class DownloadConfig:
    """Which checkpoint is fetched, and where to."""

    repo: str  # user/name on the Hub
    revision: str | None = None  # branch, tag or commit
    out: str = "runs/downloaded/reward_model"  # the folder that will hold the checkpoint


def main(argv: Sequence[str]) -> None:
    config = read_words(DownloadConfig, argv, expected="repo=user/name")
    out = Path(config.out)
    if out.exists() and not (out / "config.json").exists():
        raise UserError(f"{out} is there and is no checkpoint; choose another folder with out=")
    if Path(config.repo).is_dir():
        raise UserError(f"expected a Hub repository user/name, but {config.repo} is a folder; use it as it is")
    snapshot = locate_checkpoint(config.repo, revision=config.revision)
    stages = verify_checkpoint(snapshot)
    temporary = out.with_name(f"{out.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(snapshot, temporary)  # the cache holds links; a checkpoint folder is to be whole by itself
    replace_folder(temporary, out)
    print(f"{out}: stages {', '.join(map(str, stages))} of {config.repo}@{config.revision or 'main'}")


if __name__ == "__main__":
    run_command(main)
