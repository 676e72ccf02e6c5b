"""Fetches a reward-model checkpoint from the Hub, verified, into a folder.

python -m reward_model.download repo=user/name revision=main out=runs/downloaded/reward_model
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reward_model.network.checkpoint import locate_checkpoint, read_config, verify_checkpoint
from shared.app.entry import run_command
from shared.app.errors import UserError
from shared.app.words import read_words
from shared.publishing.fetched_folder import put_in_place, require_replaceable


@dataclass(frozen=True)
class DownloadConfig:
    """Which checkpoint is fetched, and where to."""

    repo: str  # user/name on the Hub
    revision: str | None = None  # branch, tag or commit
    out: str = "runs/downloaded/reward_model"  # the folder that will hold the checkpoint


def main(argv: Sequence[str]) -> None:
    config = read_words(DownloadConfig, argv, expected="repo=user/name")
    out = Path(config.out)
    require_replaceable(out, config.repo, is_ours=is_checkpoint(out), what="checkpoint")
    snapshot = locate_checkpoint(config.repo, revision=config.revision)
    stages = verify_checkpoint(snapshot)
    put_in_place(snapshot, out, repo=config.repo, revision=config.revision)
    print(f"{out}: stages {', '.join(map(str, stages))} of {config.repo}@{config.revision or 'main'}")


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a reward model's checkpoint, whole or not."""
    try:
        read_config(folder)
    except UserError:
        return False
    return True


if __name__ == "__main__":
    run_command(main)
