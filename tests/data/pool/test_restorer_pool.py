"""The pool: published networks on both tasks, one copy of equal weights, and members that are not there."""

from __future__ import annotations

import pytest
import torch

from data.pool.restorer_pool import RestorerEntry, RestorerPool
from data.pool.shared_weights import networks
from shared.app.errors import UserError
from shared.restorers.feed_forward import FeedForwardConfig, FeedForwardNet, FeedForwardRestorer
from tests.helpers.ncnn_pairs import tiny_compact, write_pair


def test_a_published_upscaler_restores_faces_shrunk_by_its_scale(tmp_path):
    network = tiny_compact()
    pair = write_pair(network, tmp_path / "net.param", half=False)
    pool = RestorerPool({"compact": RestorerEntry(path=str(pair))})
    face = torch.rand(2, 3, 18, 24)
    sr = pool.restore("compact", "face", face, sample_seeds=[0, 1])
    # 18 rows are not four times a whole number: the last row is repeated to make 20.
    padded = torch.cat([face, face[..., -1:, :], face[..., -1:, :]], dim=2)
    with torch.no_grad():
        expected = network(torch.nn.functional.avg_pool2d(padded, 4)).clamp(0, 1)
    torch.testing.assert_close(sr, expected[..., :18, :], rtol=0, atol=1e-6)
    assert [file.path.name for file in pool.files() if ".face." in file.name] == ["net.param", "net.bin"]


def test_a_network_trained_here_for_another_scale_is_refused(tmp_path):
    FeedForwardRestorer(FeedForwardNet(FeedForwardConfig(scale=4, channels=8, blocks=1))).save(tmp_path)
    pool = RestorerPool({"net": RestorerEntry(path=str(tmp_path))})
    with pytest.raises(UserError, match=r"restorers\.net enlarges 4 times, but task face needs 1"):
        pool.load("net", "face")


def test_equal_weights_are_held_once(tmp_path):
    pair = write_pair(tiny_compact(), tmp_path / "net.param", half=False)
    other = write_pair(tiny_compact(), tmp_path / "other.param", half=True)
    content = bytearray(other.with_suffix(".bin").read_bytes())
    content[-4:] = b"\0\0\0\x40"  # the last bias is 2 now; everything else is as in the first pair
    other.with_suffix(".bin").write_bytes(content)
    entries = {
        "first": RestorerEntry(path=str(pair)),
        "second": RestorerEntry(path=str(pair), weight=0.5),
        "other": RestorerEntry(path=str(other)),
    }
    pool = RestorerPool(entries)
    lq = torch.rand(1, 3, 8, 8)
    alone = RestorerPool(entries).restore("other", "sr", lq, sample_seeds=[0])
    tensors = {}
    for name, task in (("first", "sr"), ("first", "face"), ("second", "sr"), ("other", "sr")):
        (network,) = networks(pool.load(name, task))
        tensors[name, task] = {key: tensor.data_ptr() for key, tensor in network.state_dict().items()}
    assert tensors["first", "sr"] == tensors["first", "face"] == tensors["second", "sr"]
    differing = [key for key, place in tensors["other", "sr"].items() if place != tensors["first", "sr"][key]]
    assert differing == ["body.6.bias"]
    assert torch.equal(pool.restore("other", "sr", lq, sample_seeds=[0]), alone)


def test_a_large_batch_goes_through_in_parts(monkeypatch, tmp_path):
    pool = RestorerPool(
        {"net": RestorerEntry(path=str(write_pair(tiny_compact(), tmp_path / "net.param", half=False)))}
    )
    lq = torch.rand(5, 3, 8, 8)
    whole = pool.restore("net", "sr", lq, sample_seeds=range(5))
    seen = []
    network = pool.load("net", "sr").descriptor.model
    network.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    monkeypatch.setattr("data.pool.restorer_pool.BATCH_PIXELS", 2 * 32 * 32)
    parts = pool.restore("net", "sr", lq, sample_seeds=range(5))
    assert seen == [2, 2, 1]
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6)


def test_a_network_of_a_missing_wheel_is_left_out(monkeypatch):
    monkeypatch.setattr("shared.restorers.published.WHEEL_PACKAGE", "no_such_wheel")
    pool = RestorerPool({"bicubic": RestorerEntry(path="bicubic"), "gan": RestorerEntry(path="realesrgan-x4plus")})
    assert pool.absent == {"gan": "realesrgan-x4plus"}
    assert pool.names("sr", held_out=False) == ["bicubic"]
