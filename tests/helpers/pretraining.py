"""Supervised training of a policy without its command."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator

from data.degradation.pairs import pairs_for_task
from rl_finetune import pretrain
from rl_finetune.supervised.config import PretrainConfig
from shared.runs.run_folder import RunFolder


def run_pretraining(config: PretrainConfig, out: Path) -> dict[str, float]:
    """Trains the policy into `out`, going on from what is there; returns its figures."""
    pairs = pairs_for_task(config.source, config.pairs, task=config.task, split="train", seed=config.seed)
    torch.manual_seed(0)
    return pretrain.train(config, RunFolder.open(out, config), pairs, Accelerator(cpu=True))
