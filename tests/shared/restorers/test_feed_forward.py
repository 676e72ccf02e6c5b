"""Small feed-forward restorers and the exemplar restorer: shapes, folders on disk, and pictures that are their seed's."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from shared.app.errors import UserError
from shared.policies.load import load_restorer
from shared.restorers.exemplar import ExemplarConfig, ExemplarRestorer, block_details, block_keys
from shared.restorers.feed_forward import FeedForwardConfig, FeedForwardNet, FeedForwardRestorer, load_spandrel
from shared.restorers.interpolation import BicubicRestorer, SharpenedLanczosRestorer


def small_net(scale: int) -> FeedForwardNet:
    torch.manual_seed(0)
    net = FeedForwardNet(FeedForwardConfig(scale=scale, channels=8, blocks=2, pixel_channels=4))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return net


def small_book(scale: int) -> ExemplarRestorer:
    torch.manual_seed(1)
    config = ExemplarConfig(scale=scale)
    gt = torch.rand(4, 3, 48, 48)
    lq = torch.nn.functional.avg_pool2d(gt, scale) if scale > 1 else gt * 0.9
    keys, contrast = block_keys(lq, config)
    details = block_details(gt, lq, config) / contrast[..., None, None, None]
    return ExemplarRestorer(config, keys.flatten(0, 1), details.flatten(0, 1))


def restorers(scale: int) -> list:
    return [
        FeedForwardRestorer(small_net(scale)),
        small_book(scale),
        BicubicRestorer(scale),
        SharpenedLanczosRestorer(scale),
    ]


@pytest.mark.parametrize("scale", [1, 4])
def test_every_restorer_takes_any_size_and_stays_in_range(scale):
    lq = torch.rand(2, 3, 17, 22)
    for restorer in restorers(scale):
        sr = restorer.restore(lq, sample_seeds=[1, 2])
        assert sr.shape == (2, 3, 17 * scale, 22 * scale)
        assert sr.dtype == torch.float32
        assert 0 <= sr.min() <= sr.max() <= 1


@pytest.mark.parametrize("scale", [1, 4])
def test_a_picture_depends_on_its_own_seed_not_on_its_batch(scale):
    lq = torch.rand(3, 3, 16, 16)
    for restorer in restorers(scale):
        together = restorer.restore(lq, sample_seeds=[5, 6, 7])
        for number in range(3):
            alone = restorer.restore(lq[number : number + 1], sample_seeds=[5 + number])
            torch.testing.assert_close(together[number], alone[0], rtol=0, atol=1e-5)


def test_texture_changes_with_the_seed_where_there_is_noise():
    lq = torch.rand(1, 3, 16, 16)
    for restorer in restorers(4)[:2]:
        first, second = (restorer.restore(lq, sample_seeds=[seed]) for seed in (0, 1))
        assert (first - second).abs().max() > 1e-3


def test_an_untrained_network_hands_back_the_upsampled_picture():
    torch.manual_seed(0)
    lq = torch.rand(1, 3, 16, 16)
    sr = FeedForwardNet(FeedForwardConfig(scale=4, channels=16, blocks=3))(lq, [0])
    expected = torch.nn.functional.interpolate(lq, scale_factor=4, mode="bicubic", align_corners=False)
    assert (sr - expected).abs().max() < 0.05


def test_gradients_reach_every_parameter():
    net = small_net(4)
    net(torch.rand(2, 3, 8, 8), [0, 1]).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in net.parameters())


@pytest.mark.parametrize("build", [lambda: FeedForwardRestorer(small_net(4)), lambda: small_book(1)])
def test_folders_give_back_the_restorer(build, tmp_path):
    restorer = build()
    restorer.save(tmp_path)
    again = load_restorer(str(tmp_path))
    assert type(again) is type(restorer)
    lq = torch.rand(1, 3, 16, 16)
    expected = restorer.restore(lq, sample_seeds=[3])
    # Exemplars are stored in half precision.
    tolerance = 0 if isinstance(restorer, FeedForwardRestorer) else 2e-3
    torch.testing.assert_close(again.restore(lq, sample_seeds=[3]), expected, rtol=0, atol=tolerance)


def test_exemplars_give_a_known_picture_back():
    torch.manual_seed(2)
    config = ExemplarConfig(scale=4, nearest=1)
    gt = torch.rand(1, 3, 48, 48)
    lq = torch.nn.functional.avg_pool2d(gt, 4)
    keys, contrast = block_keys(lq, config)
    details = block_details(gt, lq, config)[0] / contrast[0][:, None, None, None]
    restored = ExemplarRestorer(config, keys[0], details).restore(lq, sample_seeds=[0])
    torch.testing.assert_close(restored, gt, rtol=0, atol=1e-5)


def test_block_keys_see_neither_brightness_nor_much_of_contrast():
    config = ExemplarConfig(scale=4, contrast_floor=0.0)
    lq = torch.rand(1, 3, 12, 12)
    keys, contrast = block_keys(lq, config)
    dimmed, dimmed_contrast = block_keys(0.5 * lq + 0.2, config)
    torch.testing.assert_close(dimmed, keys, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(dimmed_contrast, 0.5 * contrast, rtol=1e-4, atol=1e-6)


def test_damaged_folders_are_one_clear_line(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json in .*: it is no finished restorer"):
        FeedForwardRestorer.from_folder(tmp_path)
    FeedForwardRestorer(small_net(4)).save(tmp_path)
    other = FeedForwardRestorer(FeedForwardNet(FeedForwardConfig(channels=16)))
    save_file(other.net.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="holds no feed-forward restorer"):
        FeedForwardRestorer.from_folder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(UserError, match="holds no feed-forward restorer"):
        FeedForwardRestorer.from_folder(tmp_path)


def test_spandrel_reads_a_published_architecture_and_refuses_others(tmp_path):
    from spandrel.architectures.Compact import Compact

    torch.manual_seed(0)
    net = Compact(num_in_ch=3, num_out_ch=3, num_feat=16, num_conv=2, upscale=4, act_type="prelu")
    net.body[-1].bias.data += torch.linspace(-1, 1, net.body[-1].bias.numel())  # so that some of it must be clamped
    save_file(net.state_dict(), tmp_path / "compact.safetensors")
    restorer = load_restorer(str(tmp_path / "compact.safetensors"))
    lq = torch.rand(1, 3, 8, 8)
    assert restorer.scale == 4
    torch.testing.assert_close(restorer.restore(lq, sample_seeds=[0]), net(lq).clamp(0, 1))
    save_file({"unknown": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="no architecture that spandrel knows"):
        load_spandrel(tmp_path / "other.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    with pytest.raises(UserError, match=r"cut\.safetensors does not load"):
        load_spandrel(tmp_path / "cut.safetensors")
