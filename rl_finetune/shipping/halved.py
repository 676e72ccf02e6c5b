"""Copies a finished run's network into a checkpoint folder: float16, and only what inference reads."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from reward_model.network.checkpoint import METRICS_FILE, read_config, write_stage
from reward_model.network.model import RewardModel
from shared.app.shipped import shipped_checkpoints
from shared.policies.interface import Origin
from shared.policies.load import load_policy
from shared.policies.policy_folder import WEIGHTS_FILE, copy_saved_policy, read_provenance, refer_to, save_policy
from shared.policies.policy_hub import require_travelling
from shared.publishing.portable_settings import portable
from shared.restorers.pre_restorer import STAGES

BASES = ("base_sr", "base_face")  # the shipped policies whose networks others may share


def copy_policy(run: Path, folder: Path, *, provenance: dict[str, Any]) -> Origin:
    """Writes a run's policy into `folder` and returns what it is.

    Raises UserError where it stands on a restorer or a repository that would not be there on another machine.
    """
    policy, spec = load_policy(run)
    require_travelling(policy.origin(), run)
    said = {key: portable(value) for key, value in read_provenance(run).items()}
    if policy.origin().repository:  # only what was trained is there, and ships as it is
        copy_saved_policy(run, folder, provenance=said | provenance)
        return policy.origin()
    save_policy(folder, policy, spec, provenance=said | provenance, half=True)
    # A tuned policy sees what its base sees: those bytes ship once.
    found = {stage: _same_beside(folder, stage) for stage in STAGES} if "base" in said else {}
    refer_to(folder, {stage: where for stage, where in found.items() if where is not None})
    return load_policy(folder)[0].origin()  # what ships was read once


def _same_beside(folder: Path, stage: str) -> str | None:
    """Returns how a checkpoint that ships beside `folder` is named, where it holds the very same network for `stage`."""
    own = folder / stage / WEIGHTS_FILE
    for other in sorted(shipped_checkpoints().items()) if own.is_file() else ():
        name, there = other
        weights = there / stage / WEIGHTS_FILE
        if there.name in BASES and weights.is_file() and weights.read_bytes() == own.read_bytes():
            return f"{name}/{stage}"
    return None


def copy_reward_model(checkpoint: Path, folder: Path, *, stages: list[int]) -> list[int]:
    """Writes stages of a reward model, all for an empty list, and what its scores are read against; returns the stages."""
    held = sorted(map(int, read_config(checkpoint)["stages"]))
    for stage in stages or held:
        model = RewardModel.from_pretrained(checkpoint, stage=stage)
        # Vectors are few and hold running variances, some too small for float16.
        weights = {n: t.half() if t.is_floating_point() and t.ndim > 1 else t for n, t in model.state_dict().items()}
        write_stage(folder, dataclasses.asdict(model.config), stage, weights)
        RewardModel.from_pretrained(folder, stage=stage)
    if (checkpoint / METRICS_FILE).is_file():
        shutil.copyfile(checkpoint / METRICS_FILE, folder / METRICS_FILE)
    return stages or held
