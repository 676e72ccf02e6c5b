"""The real-scale RL configs fit together: networks that can be built, sizes that divide, groups that can be shared."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from reward_model.train import TrainConfig
from rl_finetune.loop.config import TrainRlConfig
from rl_finetune.loop.lora_layers import matching_layers
from rl_finetune.loop.trainable import make_trainable
from rl_finetune.rewards.registry import find_map, find_reward
from rl_finetune.supervised.config import PretrainConfig
from rl_finetune.train import require_divisible
from shared.app.config import load_config
from shared.policies.pixel_unet import PixelUNet

GPU = Path(__file__).parents[1] / "configs" / "gpu"


def configs(task: str) -> tuple[PretrainConfig, TrainRlConfig]:
    base = load_config(PretrainConfig, [str(GPU / f"base_{task}.yaml")])
    return base, load_config(TrainRlConfig, [str(GPU / f"train_rl_{task}.yaml")])


@pytest.mark.parametrize("task", ["sr", "face"])
def test_rl_fits_the_base_policy_it_starts_from(task):
    base, rl = configs(task)
    with torch.device("meta"):  # shapes without memory
        policy = PixelUNet(base.policy)
    assert 80e6 < sum(p.numel() for p in policy.parameters()) < 100e6
    cell_px = policy.multiple * policy.scale
    assert rl.pairs.crop_px % cell_px == 0
    assert rl.eval_crop_px % policy.scale == 0
    assert (rl.base, rl.task, rl.pairs) == (base.out, base.task, base.pairs)
    assert rl.source == base.source
    names = matching_layers(policy, rl.lora.targets)
    assert {name.rpartition(".")[2] for name in names} >= {"conv1", "conv2", "to_q", "to_k", "to_v", "time_emb_proj"}
    for processes in (1, 2, 4, 8):
        require_divisible(rl, processes)


@pytest.mark.parametrize("task", ["sr", "face"])
def test_rewards_and_stages_exist(task):
    _, rl = configs(task)
    reward_model = load_config(TrainConfig, [str(GPU / "train_rm.yaml")])
    assert max(rl.curriculum.stages) < len(reward_model.stage_iterations)
    assert all(find_reward(part.name) for part in rl.reward.parts)
    assert all(find_map(part.name) for part in rl.reward.maps)


def test_adapters_are_a_small_part_of_the_policy():
    base, rl = configs("face")
    policy = PixelUNet(base.policy)
    trained = sum(p.numel() for p in make_trainable(policy, rl.trainable, rl.lora, seed=rl.seed))
    assert trained < 0.2 * sum(p.numel() for p in policy.parameters())
