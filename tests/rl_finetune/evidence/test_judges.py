"""No metric judges a reward that it shares a network or a formula with."""

from __future__ import annotations

import pytest

from rl_finetune.evidence.judges import reward_parts
from rl_finetune.rewards.registry import ToolSettings
from shared.vision.metrics import METRICS, judging


def refused(*rewards: str, identity_weights: str = "", **settings: str) -> set[str]:
    parts = reward_parts(rewards, ToolSettings(**settings), identity_weights=identity_weights)
    return set(judging(list(METRICS), parts)[1]) - {"niqe", "musiq"}


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        ("fgr_worst_spot", set()),
        ("dwt", set()),
        ("psnr", {"psnr"}),
        ("absolute_error", {"psnr"}),
        ("ssim", {"ssim", "ms_ssim"}),
        ("gradient_similarity", {"gradient_distance"}),
        ("gradient_distance", {"gradient_distance"}),
        ("detail", {"detail_energy", "detail_correlation", "true_detail"}),
        ("detail_error", {"detail_energy", "detail_correlation", "true_detail"}),
        ("lpips", {"lpips_vgg", "dists"}),
        ("pyiqa:dists", {"lpips_vgg", "dists"}),
        ("pyiqa:lpips", {"lpips_alex"}),
        ("pyiqa:ms_ssim", {"ssim", "ms_ssim"}),
        ("pyiqa:topiq_nr", set()),
    ],
)
def test_what_a_reward_is_made_of_does_not_judge_it(reward, expected):
    assert refused(reward) == expected


def test_the_network_that_a_reward_is_told_to_use_counts():
    assert refused("lpips", lpips_net="alex") == {"lpips_alex"}
    assert refused("lpips", lpips_net="squeeze") == set()
    assert refused("identity", identity_model="a.ckpt", identity_weights="b.ckpt") == set()
    assert refused("identity", identity_model="a.ckpt", identity_weights="a.ckpt") == {"identity_check"}


def test_a_no_reference_metric_is_shared_with_its_own_reward():
    parts = reward_parts(["pyiqa:musiq-koniq"], ToolSettings())
    assert judging(["musiq"], parts)[1]["musiq"] == "the reward pyiqa:musiq-koniq is made of musiq too"
