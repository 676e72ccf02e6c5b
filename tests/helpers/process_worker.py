"""What one of several processes does in tests/test_rl_processes.py: the gradients of some kinds of update, saved.

torchrun --nproc_per_node 2 -m tests.helpers.process_worker <config> <out>
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from rl_finetune.credit.config import AdvantageConfig
from rl_finetune.loop.config import TrainRlConfig
from rl_finetune.loop.iteration import iterate
from rl_finetune.loop.session import Session
from rl_finetune.loop.trainable import LoraConfig
from rl_finetune.methods.policy_loss import LossConfig
from rl_finetune.methods.reward_gradient_loss import RewardGradientConfig
from shared.app.config import load_config
from shared.app.entry import leave_together
from shared.runs.run_folder import RunFolder
from tests.helpers.tiny_rl import flat_gradient

KINDS = {
    "full": {},
    "spacetime": {"advantage": AdvantageConfig(credit="spacetime")},
    "lora": {"trainable": "lora", "lora": LoraConfig(rank=2), "loss": LossConfig(reference_kl=0.5)},
    "refl": {"method": "refl"},
    "draft": {
        "method": "draft",
        "trainable": "lora",
        "reward_gradient": RewardGradientConfig(last_steps=3, recompute=True),
    },
}


def gradients(config: TrainRlConfig, folder: Path) -> dict[str, torch.Tensor]:
    """Returns the gradient of each kind's second update, before clipping: the first has moved the policy."""
    found = {}
    for name, changes in KINDS.items():
        out = folder / name
        config_of_kind = dataclasses.replace(config, updates_per_rollout=1, gradient_clip=1e9, out=str(out), **changes)
        session = Session.open(config_of_kind, RunFolder(out), Accelerator(cpu=True))
        iterate(session, 0)
        iterate(session, 1)
        found[name] = flat_gradient(session)
    return found


def main(config_path: str, out: str) -> None:
    torch.set_num_threads(1)
    assert Accelerator(cpu=True).num_processes == 2
    found = gradients(load_config(TrainRlConfig, [config_path]), Path(out).parent / "runs")
    accelerator = Accelerator(cpu=True)
    if accelerator.is_main_process:
        save_file({**found, "processes": torch.tensor(accelerator.num_processes)}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave_together()
