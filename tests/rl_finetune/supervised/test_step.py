"""What a base policy is trained towards, where its own sampler takes it, and all stages of its training together."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from data.degradation.pairs import PairConfig, pairs_for_task
from data.sources.open_source import SourceConfig
from rl_finetune import pretrain
from rl_finetune.supervised.config import PretrainConfig
from rl_finetune.supervised.first_stage import StageConfig
from rl_finetune.supervised.stage_pictures import draw_pictures
from rl_finetune.supervised.step import OwnStepsConfig, visited
from shared.app.errors import UserError
from shared.diffusion.sampler import SamplerSpec
from shared.policies.load import load_policy, load_restorer
from shared.policies.pixel_unet import PixelUNetConfig
from shared.restorers.feed_forward import FeedForwardConfig, FeedForwardNet, FeedForwardRestorer
from shared.runs.tracking import read_metrics
from shared.seeds import numpy_rng
from tests.helpers.pretraining import run_pretraining
from tests.helpers.tiny import save_pictures, tiny_policy


def test_what_is_visited_has_the_noise_of_its_timestep():
    policy, spec = tiny_policy("face"), SamplerSpec(steps=4, eta=0.5)
    torch.nn.init.zeros_(policy.unet.conv_out.weight)  # x_0 is 0 then: what is left of x_t is noise
    torch.nn.init.zeros_(policy.unet.conv_out.bias)
    policy = dataclasses.replace(policy.config, schedule=dataclasses.replace(policy.config.schedule, prediction="x0"))
    policy = pretrain.PixelUNet(policy)
    condition = policy.condition(torch.rand(9, 3, 32, 32))
    x_t, timesteps = visited(policy, condition, spec, list(range(9)), numpy_rng(0, "t"))
    plan = [step.t for step in spec.plan(policy.schedule)]
    assert set(timesteps.tolist()) <= set(plan[1:])
    assert (timesteps == plan[-1]).sum() >= 6
    _, sigmas = policy.schedule.alpha_sigma(timesteps)
    torch.testing.assert_close(x_t.std(dim=(1, 2, 3)), sigmas.view(-1), rtol=0.06, atol=0)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> PretrainConfig:
    folder = tmp_path_factory.mktemp("stages")
    torch.manual_seed(0)
    network = FeedForwardConfig(scale=4, channels=8, blocks=1, noise_channels=0)
    FeedForwardRestorer(FeedForwardNet(network)).save(folder / "sharp")
    stage = StageConfig(network=network, iterations=4, batch_size=2)
    return PretrainConfig(
        task="sr",
        source=SourceConfig(images=str(save_pictures(folder / "photos", 8)), cache_folder=str(folder / "cache")),
        pairs=PairConfig(crop_px=32, pairs=12),
        pre_restorer=stage,
        policy=PixelUNetConfig(
            scale=4,
            pre_restorer="own",
            guide=str(folder / "sharp"),
            blend=0.2,
            pixel_channels=4,
            channels=(8, 16),
            norm_groups=4,
        ),
        stage_pairs=6,
        own_steps=OwnStepsConfig(share=0.5),
        sampler=SamplerSpec(steps=4),
        window_px=16,
        iterations=6,
        batch_size=4,
        checkpoint_every=2,
        log_every=1,
    )


def test_every_stage_is_trained_logged_in_order_and_saved_with_the_policy(config, tmp_path):
    run_pretraining(config, tmp_path)
    policy, _ = load_policy(tmp_path)
    assert policy.pre_restorer.net.config.blocks == 1
    assert len(list((tmp_path / "stage_pictures" / "guide").glob("*.png"))) == 6
    records = read_metrics(tmp_path)
    assert [record["step"] for record in records] == list(range(1, 11))
    assert [next(name for name in record if name != "step") for record in records[::4]] == [
        "pre_restorer/loss",
        "loss",
        "loss",
    ]
    assert "own_steps/pixel" in records[-1]
    assert set(json.loads((tmp_path / "config.json").read_text())["sha256"]) == {
        "model.safetensors",
        "pre_restorer/model.safetensors",
    }


@pytest.mark.parametrize("where", ["pre_restorer", "policy"])
def test_resuming_in_any_stage_ends_in_the_same_weights(config, tmp_path, monkeypatch, where):
    run_pretraining(config, tmp_path / "whole")
    make, left = pretrain.windows, {"pre_restorer": 3, "policy": 7}[where]

    def dying_windows(*args, **options):
        nonlocal left
        left -= 1
        if left == -1:
            raise KeyboardInterrupt
        return make(*args, **options)

    monkeypatch.setattr(pretrain, "windows", dying_windows)
    with pytest.raises(KeyboardInterrupt):
        run_pretraining(config, tmp_path / "stopped")
    run_pretraining(config, tmp_path / "stopped")
    for name in ("model.safetensors", "pre_restorer/model.safetensors"):
        whole, stopped = (load_file(tmp_path / run / name) for run in ("whole", "stopped"))
        assert all(torch.equal(whole[key], stopped[key]) for key in whole)


class Forbidden:
    scale = 4

    def restore(self, lq, *, sample_seeds):
        raise AssertionError("drawn again")


def test_what_a_stage_draws_is_kept_on_disk_and_never_drawn_again(config, tmp_path):
    pairs = pairs_for_task(config.source, config.pairs, task="sr", split="train", seed=0)
    guide = load_restorer(config.policy.guide)
    draw_pictures({"guide": guide}, pairs, tmp_path, Accelerator(cpu=True))
    kept = draw_pictures({"guide": Forbidden()}, pairs, tmp_path, Accelerator(cpu=True)).of([3, 0])["guide"]
    drawn = guide.restore(torch.stack([pairs[3].lq, pairs[0].lq]), sample_seeds=[0, 0])
    torch.testing.assert_close(kept, drawn, rtol=0, atol=0.51 / 255)  # 8 bits


def test_a_guide_of_another_scale_is_refused(config, tmp_path):
    torch.manual_seed(0)
    FeedForwardRestorer(FeedForwardNet(FeedForwardConfig(scale=1, channels=8, blocks=1))).save(tmp_path / "faces")
    policy = dataclasses.replace(config.policy, guide=str(tmp_path / "faces"))
    with pytest.raises(UserError, match=r"guide .* enlarges 1 times, but the policy 4 times"):
        run_pretraining(dataclasses.replace(config, policy=policy), tmp_path / "run")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"window_px": 12}, "window_px must be a multiple of 8, got 12"),
        ({"window_px": 64}, "window_px must not exceed pairs.crop_px 32, got 64"),
        ({"sampler": SamplerSpec(steps=1)}, "sampler.steps of 2 or more"),
        ({"policy": PixelUNetConfig(scale=4, guide="own")}, "no guide is trained here"),
        (
            {"pre_restorer": StageConfig(network=FeedForwardConfig(scale=1, noise_channels=0))},
            "pre_restorer.network.scale 4",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(config, values, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **values)


def test_a_stage_that_draws_is_refused():
    with pytest.raises(ValueError, match="noise_channels must be 0, got 4"):
        StageConfig(network=FeedForwardConfig())
