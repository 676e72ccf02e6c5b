"""What training maximises: rewards in units of their spread within a group, in the gauge and in the tables."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from data.degradation.records import PairBatch
from rl_finetune import train
from rl_finetune.credit.pictures import combined_advantages
from rl_finetune.rewards.composite import Composite
from rl_finetune.rewards.config import RewardConfig, RewardPart
from rl_finetune.rewards.objective import RewardScale, measure_scales, objective
from rl_finetune.rewards.registry import Toolbox
from shared.runs.training_loop import TrainingLoop
from shared.seeds import derive_seed
from tests.helpers.tiny_rl import open_session, tiny_rl_config


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    return tiny_rl_config(tmp_path_factory.mktemp("objective"))


def test_the_spread_is_that_within_groups():
    # Deviations ±1 and ±3 from means that lie far apart: √((1 + 1 + 9 + 9) / 4).
    scale = RewardScale.of(torch.tensor([[4.0, 6.0], [97.0, 103.0]]))
    assert (scale.mean, scale.spread) == pytest.approx((52.5, 5**0.5))


def test_it_is_the_weighted_sum_of_distances_from_the_mean_in_spreads():
    scales = {"psnr": RewardScale(20.0, 2.0), "dwt": RewardScale(0.5, 0.1)}
    found = objective({"psnr": 23.0, "dwt": 0.4, "silent": 7.0}, {"psnr": 0.6, "dwt": 0.4, "silent": 1.0}, scales)
    assert found == pytest.approx(0.6 * 1.5 - 0.4)


def test_its_differences_within_a_group_are_proportional_to_the_advantages():
    generator = torch.Generator().manual_seed(0)
    rewards = {
        "wide": 50 * torch.randn(3, 4, generator=generator),
        "narrow": 0.01 * torch.randn(3, 4, generator=generator),
    }
    weights = {"wide": 0.3, "narrow": 0.7}
    scales = {name: RewardScale.of(values) for name, values in rewards.items()}
    whole = objective({n: v.double() for n, v in rewards.items()}, weights, scales)
    centred = whole - whole.mean(1, keepdim=True)
    advantages = combined_advantages(rewards, weights, clip=100.0).values
    torch.testing.assert_close((centred / centred.std()).float(), (advantages / advantages.std()).float())


class Dimmed:
    """A restorer whose members differ by a brightness of their own seed."""

    def restore(self, lq: torch.Tensor, *, sample_seeds) -> torch.Tensor:
        dim = torch.tensor([0.5 + (seed % 97) / 200 for seed in sample_seeds])
        return lq * dim[:, None, None, None]


def test_members_are_drawn_apart_and_a_silent_reward_has_no_say():
    gt = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pairs = PairBatch(gt=gt, lq=gt, image_ids=("a", "b"), indices=(0, 1))
    composite = Composite.build({"psnr": 1.0, "dwt": 1.0}, Toolbox())
    scales = measure_scales(Dimmed(), pairs, {3: composite}, members=5, seed=0)[3]
    assert set(scales.parts) == {"psnr", "dwt"}
    assert scales == measure_scales(Dimmed(), pairs, {3: composite}, members=5, seed=0)[3]

    class Same(Dimmed):
        def restore(self, lq, *, sample_seeds):
            return lq * 0.5

    assert measure_scales(Same(), pairs, {3: composite}, members=5, seed=0)[3].parts == {}


@pytest.mark.parametrize("order", ["normalise_first", "sum_first"])
def test_the_gauge_follows_what_training_maximises(tiny_run, tmp_path, order):
    reward = RewardConfig(parts=[RewardPart("fgr_score", 0.5), RewardPart("dwt", 0.5)], order=order)
    config = dataclasses.replace(tiny_run, reward=reward, check_every=1, check_images=2)
    session = open_session(config, tmp_path / "out")
    loop = TrainingLoop(session.learner.accelerator, session.run.path, {}, title="x", steps=1, save_every=1)
    train.check(session, loop)
    assert session.panel.proxy == ("objective" if order == "normalise_first" else "reward")
    pairs = config.held_out().draw("val", 2)
    seeds = [derive_seed(config.seed, "evaluate", index) for index in pairs.indices]
    sr = session.restorer().restore(pairs.lq, sample_seeds=seeds)
    found = session.panel.measures[0](sr, pairs.gt, pairs.lq)
    assert ("objective" in found) == (order == "normalise_first")
    assert session.gauge.baseline["proxy"] == pytest.approx(found[session.panel.proxy].tolist(), rel=1e-5)
