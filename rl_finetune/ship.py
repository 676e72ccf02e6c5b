"""Assembles a checkpoint that ships from a finished run: half-precision weights, checksums, model card, pictures' licences.

python -m rl_finetune.ship run=runs/shipped/rl_sr licence=apache-2.0 manifest=pictures/MANIFEST.tsv
python -m rl_finetune.ship run=runs/shipped/reward_model stages=3 licence=apache-2.0 manifest=pictures/MANIFEST.tsv
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from reward_model.measuring.model_card import card_text
from reward_model.network.checkpoint import TRAINING_FILE
from rl_finetune.shipping.halved import copy_policy, copy_reward_model
from rl_finetune.shipping.learnt_pictures import learnt_from
from rl_finetune.shipping.making import Making
from rl_finetune.shipping.manifest import Learnt, Manifest
from rl_finetune.shipping.policy_card import making_text, pictures_text, policy_text
from shared.app.config import require_range
from shared.app.entry import run_command
from shared.app.errors import UserError
from shared.app.words import read_words
from shared.files import replace_folder, write_bytes
from shared.policies.policy_folder import CONFIG_FILE
from shared.publishing.card_head import CARD_FILE
from shared.publishing.hub_card import PICTURES_FILE
from shared.publishing.portable_settings import portable
from shared.runs.run_folder import RunFolder


@dataclass(frozen=True)
class ShipConfig:
    """Which run becomes which checkpoint."""

    run: str  # a finished run: a base policy, an RL run, or a reward model
    out: str = ""  # the checkpoint's folder, replaced where it is there; empty: checkpoints/<the run's name>
    licence: str = ""  # the weights' licence as the Hub spells it, such as apache-2.0 or cc-by-4.0; needed
    manifest: str = (
        ""  # a file with path, source and licence of the run's pictures, tab-separated; needed where they are files
    )
    stages: str = ""  # which stages of a reward model ship, such as 2,3; empty: all of them
    commit: str = ""  # the commit of the code that made the run; empty: the checkout's now
    hardware: str = ""  # what the run was made on, for the card; empty: this machine
    limit_mb: float = 25.0  # the most that all checkpoints beside each other may take, in millions of bytes

    def __post_init__(self) -> None:
        require_range(limit_mb=(self.limit_mb, 0.001, 1e6))
        if not self.licence:
            raise ValueError("expected licence=<the licence of the weights>, such as licence=apache-2.0")
        if not all(stage.isdigit() for stage in self.stages.split(",") if self.stages):
            raise ValueError(f"stages are numbers with commas between, such as 2,3; got {self.stages}")


def main(argv: Sequence[str]) -> None:
    config = read_words(ShipConfig, argv, expected="run=<a finished run's folder>")
    run = RunFolder(Path(config.run))
    out = Path(config.out) if config.out else Path("checkpoints") / run.path.name
    if out.exists() and not (out / CONFIG_FILE).is_file():
        raise UserError(f"{out} is there and is no checkpoint; choose another folder with out=")
    making = Making.of(run, commit=config.commit, hardware=config.hardware)
    learnt = learnt_from(making.settings, Manifest.read(config.manifest) if config.manifest else None)
    temporary = out.with_name(f".{out.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        assemble(config, run, temporary, out.name, making, learnt)
        mb, beside = folder_mb(temporary), [path for path in out.parent.glob("*/") if path not in (out, temporary)]
        total = mb + sum(map(folder_mb, beside))
        if total > config.limit_mb:
            raise UserError(
                f"{out} would take {mb:.1f} MB, and all checkpoints in {out.parent} {total:.1f} MB, above limit_mb="
                f"{config.limit_mb:g}: ship a smaller network, or fewer stages="
            )
        replace_folder(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"{out}: {mb:.1f} MB; all checkpoints in {out.parent} together {total:.1f} of {config.limit_mb:g} MB")


def assemble(config: ShipConfig, run: RunFolder, folder: Path, name: str, making: Making, learnt: Learnt) -> None:
    """Writes weights, settings, pictures and card into an empty folder."""
    folder.mkdir(parents=True)
    checkpoint = run.path / "checkpoint"
    if checkpoint.is_dir():
        copy_reward_model(checkpoint, folder, stages=[int(stage) for stage in config.stages.split(",") if stage])
        write_settings(folder, making.settings)
        text = "\n\n".join(
            [card_text(folder, licence=config.licence).rstrip(), pictures_text(learnt), making_text(making)]
        )
        text += "\n"
    else:
        said = {"commit": making.commit, "hardware": making.hardware, "seconds": making.seconds}
        origin = copy_policy(run.path, folder, provenance=said)
        write_settings(folder, making.settings)
        text = policy_text(name, run.path, licence=config.licence, origin=origin, making=making, learnt=learnt)
    if learnt.attributions:
        write_bytes(folder / PICTURES_FILE, learnt.as_tsv().encode())
    write_bytes(folder / CARD_FILE, text.encode())


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Writes the run's settings beside the weights, without this machine's paths."""
    write_bytes(folder / TRAINING_FILE, OmegaConf.to_yaml(OmegaConf.create(portable(settings))).encode())


def folder_mb(folder: Path) -> float:
    """Returns the size of all files in a folder, in millions of bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


if __name__ == "__main__":
    run_command(main)
