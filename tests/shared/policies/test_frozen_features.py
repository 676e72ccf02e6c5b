"""What no trained weight reaches is computed once: the same gradients, for less."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from shared.policies.interface import Origin
from shared.policies.latent_controlnet import LatentControlNet
from tests.helpers.tiny_latent import save_tiny_latent


@pytest.fixture
def policy(tmp_path) -> LatentControlNet:
    save_tiny_latent(tmp_path)
    return LatentControlNet.load(Origin({"pre_restorer": "none"}, str(tmp_path)), None, open_stage=no_stage)


def no_stage(role: str, where: str, scale: int) -> None:
    raise AssertionError(Path(where))


@pytest.fixture
def seen(policy) -> tuple:
    generator = torch.Generator().manual_seed(1)
    condition = policy.condition(torch.rand(2, 3, 16, 24, generator=generator))
    return torch.randn(2, 4, 4, 6, generator=generator), torch.tensor([700, 20]), condition


def gradients(policy, seen, kept) -> dict[str, torch.Tensor]:
    policy.zero_grad(set_to_none=True)
    x_t, timesteps, condition = seen
    policy(x_t, timesteps, {**condition, **kept}).square().mean().backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def test_what_was_kept_gives_the_same_gradients(policy, seen):
    policy.controlnet.requires_grad_(True)
    kept = policy.frozen(*seen)
    whole, reused = gradients(policy, seen, {}), gradients(policy, seen, kept)
    assert whole.keys() == reused.keys()
    assert {name.partition(".")[0] for name in whole} == {"controlnet"}
    assert max(gradient.abs().max() for gradient in whole.values()) > 1e-3
    for name, gradient in whole.items():
        torch.testing.assert_close(reused[name], gradient, atol=1e-5, rtol=1e-5)


def test_what_it_saves(policy, seen):
    """The U-Net's first half is not run in the update; all the rest is."""
    policy.controlnet.requires_grad_(True)
    kept = policy.frozen(*seen)
    runs = []
    policy.unet.mid_block.register_forward_hook(lambda *_: runs.append("middle"))
    policy.unet.up_blocks[0].register_forward_hook(lambda *_: runs.append("decoder"))
    counts = []
    for features in ({}, kept):
        with FlopCounterMode(display=False) as counter:
            gradients(policy, seen, features)
        counts.append(counter.get_total_flops())
    assert runs == ["middle", "decoder", "decoder"]
    with FlopCounterMode(display=False) as first_half:
        policy.frozen(*seen)
    assert counts[0] - counts[1] == first_half.get_total_flops()
    # Of a forward pass of U-Net and ControlNet with its backward pass; the U-Nets of both are of one size.
    assert 0.05 < first_half.get_total_flops() / counts[0] < 0.2


def test_nothing_is_kept_where_it_is_trained(policy, seen):
    policy.unet.up_blocks.requires_grad_(True)
    policy.unet.conv_out.requires_grad_(True)
    assert policy.frozen(*seen)  # the second half may be trained
    for part in (policy.unet.time_embedding, policy.unet.down_blocks[1], policy.unet.mid_block):
        part.requires_grad_(True)
        assert policy.frozen(*seen) == {}
        part.requires_grad_(False)
