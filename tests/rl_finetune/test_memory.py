"""The memory estimate against the bytes that a run's own tensors hold, tracked on the CPU."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rl_finetune import memory
from rl_finetune.footprint.estimate import Costs, Rewards, rewards_of
from rl_finetune.footprint.passes import passes_of
from rl_finetune.footprint.tracked_bytes import TrackedBytes
from rl_finetune.loop.groups import draw
from rl_finetune.loop.iteration import iterate
from rl_finetune.loop.lora_layers import LoraConfig
from rl_finetune.loop.trainable import make_trainable
from rl_finetune.rewards.composite import Composite
from rl_finetune.rewards.learned import PublishedFeatures
from rl_finetune.rewards.registry import Toolbox
from shared.app.config import to_yaml
from shared.app.errors import UserError
from shared.policies.interface import Origin
from shared.policies.latent_controlnet import LatentControlNet
from shared.policies.load import load_policy
from shared.policies.pixel_unet import PixelUNet, PixelUNetConfig
from tests.helpers.tiny import tiny_policy
from tests.helpers.tiny_latent import save_tiny_latent
from tests.helpers.tiny_rl import open_session, tiny_rl_config


def test_bytes_that_live_at_once_are_counted_and_older_ones_are_not():
    older = torch.ones(1000)
    with TrackedBytes() as tracked:
        first = older + 1  # 4000 bytes
        second = first * 2
        del first
        third = second.view(10, 100) + older.view(10, 100)
        del second
    assert (tracked.peak, tracked.live, tracked.largest) == (8000, 4000, 4000)
    assert third.sum() == 5000


@pytest.mark.parametrize("samples", [3, 6])
def test_a_pass_without_memory_counts_what_a_real_one_holds(samples):
    policy = tiny_policy()
    passes = passes_of(policy, (32, 32), device="cpu")
    condition = policy.condition(torch.rand(samples, 3, 32, 32))
    x_t, t = torch.randn(samples, *passes.latent), torch.zeros(samples, dtype=torch.long)
    kept: list[int] = []
    with (
        TrackedBytes() as tracked,
        torch.autograd.graph.saved_tensors_hooks(lambda saved: kept.append(saved.nbytes) or saved, lambda saved: saved),
    ):
        policy.predict(x_t, t, condition).float().square().mean().backward()
    assert passes.update.at(samples) == pytest.approx(tracked.peak, rel=0.15)
    assert sum(kept) > 0.3 * passes.update.at(samples)
    with torch.no_grad(), TrackedBytes() as drawing:
        policy.predict(x_t, t, condition).float()
    assert passes.draw.at(samples) == pytest.approx(drawing.peak, rel=0.15)


def test_a_latent_policys_passes_are_counted_as_well(tmp_path):
    folder = save_tiny_latent(tmp_path / "model")
    policy = LatentControlNet.load(Origin({}, str(folder)), None, open_stage=lambda *_: None)
    make_trainable(policy, "full", LoraConfig(), seed=0)
    passes, condition = passes_of(policy, (64, 64), device="cpu"), policy.condition(torch.rand(3, 3, 64, 64))
    x_t, t = torch.randn(3, *passes.latent), torch.zeros(3, dtype=torch.long)
    with TrackedBytes() as tracked:
        policy.predict(x_t, t, condition).float().square().mean().backward()
    assert passes.update.at(3) == pytest.approx(tracked.peak, rel=0.15)
    with torch.no_grad(), TrackedBytes() as decoding:
        policy.decode(x_t, condition)
    assert passes.decode.at(3) == pytest.approx(decoding.peak, rel=0.15)


def test_on_a_gpu_attention_is_counted_as_its_kernels_hold_it():
    with torch.device("meta"):
        policy = PixelUNet(PixelUNetConfig(channels=(8, 16), norm_groups=4, attention_levels=(0,), head_channels=8))
    small, large = (passes_of(policy, (side, side), device="cuda").update.each for side in (64, 128))
    assert large == pytest.approx(4 * small, rel=0.1)  # 16 times, were the matrix of all pairs written out


@pytest.mark.parametrize("trainable", ["full", "lora"])
def test_the_estimate_is_within_15_percent_of_an_iterations_tracked_bytes(tmp_path, trainable):
    config = dataclasses.replace(tiny_rl_config(tmp_path), trainable=trainable, lora=LoraConfig(rank=2))
    session = open_session(config, tmp_path / "out")
    iterate(session, 0)  # makes the optimizer's state
    session.learner.optimizer.zero_grad(set_to_none=True)
    draw(session, 1)  # pictures are read and kept
    rewards = rewards_of(list(session.judge.composites.values()), crop_px=32, scale=1)
    costs = Costs.of(config, load_policy(config.base)[0], rewards, device="cpu")
    found = costs.footprint()
    with TrackedBytes() as tracked:
        iterate(session, 1)
    trained = sum(p.nbytes for p in session.learner.policy.parameters() if p.requires_grad)
    assert (found.gradients, found.optimizer) == (trained, 2 * trained)
    states = session.learner.optimizer.state.values()
    held = sum(t.nbytes for s in states for t in s.values() if isinstance(t, torch.Tensor) and t.ndim)
    assert held == found.optimizer
    assert found.weights == pytest.approx(sum(p.nbytes for p in session.learner.policy.parameters()), rel=0.01)
    beside = found.peak - found.always + found.gradients  # gradients are made again by each update
    assert beside == pytest.approx(tracked.peak, rel=0.15)


def costs_of(tmp_path, **changes) -> Costs:
    config = dataclasses.replace(tiny_rl_config(tmp_path), updates_per_rollout=1, **changes)
    return Costs.of(config, load_policy(config.base)[0], Rewards(weights=1e6), device="cpu")


def test_the_largest_pass_is_the_largest_that_fits_and_too_little_is_said_with_the_figure(tmp_path):
    costs = costs_of(tmp_path)
    peaks = [costs.footprint(in_pass=n).peak for n in range(1, 13)]
    assert peaks == sorted(peaks)
    assert costs.largest_pass(peaks[6] / 0.92 + 1) == 7
    assert costs.largest_pass(peaks[0] / 0.92 - 10) == 0
    memory.require_memory(costs, 1e12, processes=1)
    with pytest.raises(
        UserError, match=r"needs about 0\.0 GB .*: set microbatch_groups=2 \(6 samples a pass\), the most"
    ):
        memory.require_memory(costs, peaks[6] / 0.92 + 1, processes=1)
    with pytest.raises(UserError, match=r"too little: one sample a pass needs 0\.0 GB, and there are 0\.0"):
        memory.require_memory(costs, peaks[0] / 0.92 - 10, processes=1)


def test_adapters_and_processes_need_less(tmp_path):
    full, lora = costs_of(tmp_path), costs_of(tmp_path, trainable="lora", lora=LoraConfig(rank=2))
    assert lora.footprint().optimizer < full.footprint().optimizer
    assert full.footprint(processes=2).drawn == pytest.approx(full.footprint().drawn / 2)
    assert full.footprint(processes=2).exchange == full.footprint().gradients


def test_the_command_prints_parts_and_cards(tmp_path, capsys):
    config = tiny_rl_config(tmp_path)
    (tmp_path / "rl.yaml").write_text(to_yaml(config), encoding="utf-8")
    memory.main([str(tmp_path / "rl.yaml"), "mixed_precision=bf16"])
    printed = capsys.readouterr().out
    assert "RL face, 4 groups of 3 on 1 processes, GB on each:" in printed
    assert "optimizer" in printed
    assert " 24 GB: microbatch_groups=2 (6 samples a pass)" in printed


def test_a_method_that_is_not_estimated_is_refused():
    with pytest.raises(UserError, match="expected method policy_gradient or nft, got draft"):
        memory.main(["configs/train_rl_sr_shipped.yaml"])


def test_networks_of_loaded_rewards_are_counted():
    encoder = torch.nn.Conv2d(3, 8, 3)
    toolbox = Toolbox(given={"reward_model": torch.nn.Linear(2, 2)})
    toolbox._loaded["feature_encoder"] = PublishedFeatures(encoder, (0.5,) * 3, (0.5,) * 3)
    composite = Composite.build({"psnr": 1.0}, toolbox)
    held = sum(p.nbytes for network in (encoder, toolbox.given["reward_model"]) for p in network.parameters())
    assert rewards_of([composite], crop_px=32, scale=4).weights == held
