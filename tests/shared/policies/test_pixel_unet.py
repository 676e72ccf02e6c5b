"""The pixel-diffusion policy, its folder, its supervised training and the restore command."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from data.degradation.pairs import PairConfig
from data.sources.open_source import SourceConfig
from rl_finetune import pretrain, restore
from rl_finetune.supervised.config import PretrainConfig
from shared.app.errors import UserError
from shared.diffusion.sampler import SamplerSpec
from shared.policies.load import load_policy, load_restorer
from shared.policies.pixel_unet import PixelUNet, PixelUNetConfig
from shared.policies.policy_folder import save_policy
from shared.policies.policy_restorer import PolicyRestorer
from shared.restorers.protocol import RestorerSettings
from shared.runs.tracking import read_metrics
from shared.vision.detail import below_detail, high_band
from shared.vision.images import read_image, save_image, to_tensor
from tests.helpers.pretraining import run_pretraining
from tests.helpers.tiny import save_pictures, save_tiny_policy, tiny_policy


def pictures(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("task", "scale"), [("sr", 4), ("face", 1)])
def test_decoding_inverts_encoding(task, scale):
    policy = tiny_policy(task)
    lq, gt = pictures(2, 3, 32 // scale, 32 // scale), pictures(2, 3, 32, 32, seed=1)
    condition = policy.condition(lq)
    x0 = policy.encode(gt, condition)
    assert tuple(x0.shape[1:]) == policy.latent_shape(lq) == (48, 8, 8)
    torch.testing.assert_close(policy.decode(x0, condition), gt, atol=1e-5, rtol=1e-5)


def test_the_low_band_of_a_latent_is_that_of_its_picture():
    policy, lq = tiny_policy(), pictures(2, 3, 32, 32)
    condition = policy.condition(lq)
    latent = policy.encode(pictures(2, 3, 32, 32, seed=1), condition)
    left = policy.decode(policy.low_band(latent), condition) - lq
    torch.testing.assert_close(left, below_detail(policy.decode(latent, condition) - lq), atol=1e-5, rtol=0)
    assert high_band(left).square().mean() < 0.3 * high_band(pictures(2, 3, 32, 32, seed=1) - lq).square().mean()
    constant = torch.full_like(latent, 0.7)
    torch.testing.assert_close(policy.low_band(constant), constant)


def test_a_saved_policy_comes_back_with_its_sampler(tmp_path):
    save_tiny_policy(tmp_path, "sr")
    _policy, spec = load_policy(tmp_path)
    assert spec == SamplerSpec(steps=4, eta=0.5)
    lq = pictures(1, 3, 8, 8)
    expected = PolicyRestorer(tiny_policy("sr"), spec).restore(lq, sample_seeds=[3])
    assert torch.equal(load_restorer(str(tmp_path)).restore(lq, sample_seeds=[3]), expected)
    assert load_restorer(str(tmp_path), RestorerSettings(steps=2)).spec == SamplerSpec(steps=2, eta=0.5)


@pytest.mark.parametrize(("task", "scale"), [("sr", 4), ("face", 1)])
def test_any_size_is_restored_and_a_picture_does_not_depend_on_its_batch(task, scale):
    restorer = PolicyRestorer(tiny_policy(task), SamplerSpec(steps=2))
    lq = pictures(2, 3, 13, 22)
    sr = restorer.restore(lq, sample_seeds=[1, 2])
    assert sr.shape == (2, 3, 13 * scale, 22 * scale)
    assert float(sr.min()) >= 0
    assert float(sr.max()) <= 1
    torch.testing.assert_close(sr[1:], restorer.restore(lq[1:], sample_seeds=[2]), atol=1e-5, rtol=1e-5)


def test_attention_sits_at_its_levels_and_in_the_middle_and_any_size_is_restored(tmp_path):
    config = PixelUNetConfig(channels=(8, 16, 24), norm_groups=4, attention_levels=(2,), head_channels=8)
    policy = PixelUNet(config)
    torch.nn.init.normal_(policy.unet.conv_out.weight, std=0.05)
    attending = [name for name, _ in policy.unet.named_modules() if name.endswith(".to_q")]
    # One layer a block on the way down and two on the way up, at the coarsest level alone.
    assert attending == [
        "down_blocks.2.attentions.0.to_q",
        "up_blocks.0.attentions.0.to_q",
        "up_blocks.0.attentions.1.to_q",
        "mid_block.attentions.0.to_q",
    ]
    save_policy(tmp_path, policy, SamplerSpec(steps=2), provenance={})
    lq = pictures(2, 3, 21, 34)
    sr = load_restorer(str(tmp_path)).restore(lq, sample_seeds=[1, 2])
    assert sr.shape == lq.shape
    assert torch.equal(sr, PolicyRestorer(policy, SamplerSpec(steps=2)).restore(lq, sample_seeds=[1, 2]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"attention_levels": (3,)}, r"attention_levels must lie in 0 … 2, got \[3\]"),
        ({"channels": (64, 100, 128)}, r"multiples of norm_groups \(8\).*got \[64, 100, 128\]"),
        ({"attention_levels": (0,), "head_channels": 48}, r"of head_channels \(48\)"),
    ],
)
def test_impossible_architectures_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        PixelUNetConfig(**values)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no finished restorer"),
        (lambda folder: (folder / "config.json").write_text("{"), "is damaged"),
        (lambda folder: (folder / "config.json").write_text('{"kind": "other"}'), "holds a 'other'"),
    ],
)
def test_a_broken_policy_folder_is_one_line(tmp_path, damage, message):
    save_tiny_policy(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        load_policy(tmp_path)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> PretrainConfig:
    folder = tmp_path_factory.mktemp("pretrain")
    return PretrainConfig(
        task="face",
        source=SourceConfig(faces=str(save_pictures(folder / "faces", 8)), cache_folder=str(folder / "cache")),
        pairs=PairConfig(crop_px=32, pairs=8),
        policy=dataclasses.replace(tiny_policy("face").config),
        iterations=8,
        batch_size=4,
        checkpoint_every=3,
        early_iteration=2,
        log_every=1,
    )


def test_supervised_training_lowers_the_loss_and_keeps_an_early_policy(config, tmp_path):
    run_pretraining(dataclasses.replace(config, iterations=120), tmp_path / "run")
    losses = [record["loss"] for record in read_metrics(tmp_path / "run")]
    # One batch of four is noisy: the mean of thirty is not.
    assert sum(losses[-30:]) < 0.9 * sum(losses[:30])
    early, final = load_policy(tmp_path / "run" / "early")[0], load_policy(tmp_path / "run")[0]
    assert not torch.equal(early.unet.conv_in.weight, final.unet.conv_in.weight)


def test_resuming_ends_in_the_same_weights_as_never_stopping(config, tmp_path, monkeypatch):
    run_pretraining(config, tmp_path / "whole")
    step, calls = pretrain.train_step, []

    def dying_step(*args, **options):
        calls.append(args[3])
        if args[3] == 5 and len(calls) == 6:
            raise KeyboardInterrupt
        return step(*args, **options)

    monkeypatch.setattr(pretrain, "train_step", dying_step)
    with pytest.raises(KeyboardInterrupt):
        run_pretraining(config, tmp_path / "stopped")
    run_pretraining(config, tmp_path / "stopped")
    assert calls == [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7]
    whole, stopped = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(whole[key], stopped[key]) for key in whole)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"task": "sr"}, "task sr needs policy.scale 4, got 1"),
        ({"pairs": PairConfig(crop_px=36)}, "crop_px must be a multiple of 8, got 36"),
        ({"iterations": 0}, "iterations must lie between"),
    ],
)
def test_impossible_settings_are_refused(config, values, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **values)


def test_a_built_in_name_is_a_policy_like_any_other(tmp_path):
    save_image(tmp_path / "picture.png", pictures(3, 20, 12))
    restore.main([f"in={tmp_path / 'picture.png'}", f"out={tmp_path}/out", "policy=bicubic"])
    lq = to_tensor(read_image(tmp_path / "picture.png"))[None]
    expected = torch.nn.functional.interpolate(lq, scale_factor=4, mode="bicubic").clamp(0, 1)
    sr = to_tensor(read_image(tmp_path / "out" / "picture.png"))
    torch.testing.assert_close(sr, expected[0], atol=0.5 / 255 + 1e-6, rtol=0)
    assert torch.equal(load_restorer("bicubic", RestorerSettings(scale=1)).restore(lq, sample_seeds=[0]), lq)
    assert load_restorer("lanczos+unsharp", RestorerSettings(scale=2)).scale == 2
    with pytest.raises(
        UserError, match=r"expected bicubic or lanczos.unsharp, a restorer's folder .* bicubik is missing"
    ):
        load_restorer("bicubik")
