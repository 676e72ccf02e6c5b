"""The RL loop on every noise schedule and prediction: the first ratio is 1 (the loop asserts it), and the policy moves."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from rl_finetune import train as rl
from rl_finetune.loop.config import TrainRlConfig
from rl_finetune.methods.likelihood import LikelihoodConfig
from shared.diffusion.sampler import SamplerSpec
from shared.diffusion.schedule import ScheduleConfig
from shared.restorers.load import save_policy
from shared.restorers.pixel_unet import PixelUNet
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
