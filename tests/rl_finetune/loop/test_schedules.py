"""The RL loop on every noise schedule and prediction: the first ratio is 1 (the loop asserts it), and the policy moves."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from rl_finetune import train as rl
from rl_finetune.loop.config import TrainRlConfig
from rl_finetune.loop.groups import groups_of
from rl_finetune.methods.likelihood import LikelihoodConfig
from shared.diffusion.sampler import SamplerSpec
from shared.diffusion.schedule import ScheduleConfig
from shared.policies.pixel_unet import PixelUNet
from shared.policies.policy_folder import save_policy
from shared.seeds import derive_seed
from tests.helpers.tiny import tiny_policy
from tests.helpers.tiny_rl import flat, open_session, tiny_rl_config


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory) -> TrainRlConfig:
    return tiny_rl_config(tmp_path_factory.mktemp("schedules"))


@pytest.mark.parametrize(
    "schedule",
    [
        ScheduleConfig(prediction="epsilon"),
        ScheduleConfig(prediction="v"),
        ScheduleConfig(betas="scaled_linear", prediction="x0"),
        ScheduleConfig(betas="rectified_flow", prediction="flow"),
    ],
    ids=lambda schedule: f"{schedule.betas}-{schedule.prediction}",
)
@pytest.mark.parametrize("form", ["marginal", "posterior"])
def test_every_schedule_and_prediction_trains(tiny_run, tmp_path, schedule, form):
    config = dataclasses.replace(tiny_policy().config, schedule=schedule)
    torch.manual_seed(0)
    policy = PixelUNet(config)
    torch.nn.init.normal_(policy.unet.conv_out.weight, std=0.05)
    save_policy(tmp_path / "base", policy, SamplerSpec(steps=4, eta=0.5), provenance={})
    run = dataclasses.replace(tiny_run, base=str(tmp_path / "base"), likelihood=LikelihoodConfig(form=form, weight=0.1))
    session = open_session(run, tmp_path / "out")
    before = flat(session).clone()
    figures = rl.iterate(session, 0)  # asserts that the first ratio is 1
    assert all(math.isfinite(value) for value in figures.values())
    assert not torch.equal(before, flat(session))


def test_a_picture_that_comes_twice_in_an_iteration_is_restored_with_other_noise(tiny_run, tmp_path):
    few = dataclasses.replace(tiny_run, pairs=dataclasses.replace(tiny_run.pairs, pairs=3))
    batch, seeds = groups_of(open_session(few, tmp_path / "few"), 0)
    assert len(set(batch.indices)) < len(batch.indices) == 4
    assert len(set(seeds)) == len(seeds) == 4 * few.group_size
    # Elsewhere a seed is a matter of the picture, whichever place it has in the iteration.
    batch, seeds = groups_of(open_session(tiny_run, tmp_path / "many"), 1)
    members = range(tiny_run.group_size)
    assert seeds == [derive_seed(tiny_run.seed, "rollout", 1, index, g) for index in batch.indices for g in members]
