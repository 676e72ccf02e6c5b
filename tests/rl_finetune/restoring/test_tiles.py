"""Tiles: what they cover, the noise that they share, and how far they agree with one pass."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from rl_finetune.restoring import tiles
from rl_finetune.restoring.tiles import OVERLAP_PX, restore_levels, spans, tile_count
from shared.app.errors import UserError
from shared.diffusion.sampler import SamplerSpec
from shared.policies.policy_restorer import PolicyRestorer
from shared.restorers.feed_forward import FeedForwardConfig, FeedForwardNet, FeedForwardRestorer
from shared.seeds import gaussian, noise_by_position, numpy_rng
from tests.helpers.tiny import tiny_policy

CPU = torch.device("cpu")


def levels(height: int, width: int, dtype=np.uint16) -> np.ndarray:
    return (numpy_rng(3, "levels").random((height, width, 3)) * np.iinfo(dtype).max).astype(dtype)


class Double:
    scale = 2

    def restore(self, lq, *, sample_seeds):
        return lq.repeat_interleave(2, -1).repeat_interleave(2, -2)


class Noise:
    """Shows the noise that each tile draws, at twice lq's resolution."""

    scale = 2

    def restore(self, lq, *, sample_seeds):
        shape = (3, 2 * lq.shape[-2], 2 * lq.shape[-1])
        return gaussian(sample_seeds, shape).mul(0.1).add(0.5).clamp(0, 1)


@pytest.mark.parametrize(
    ("length", "tile_px", "grid"), [(10, 96, 16), (96, 96, 16), (97, 96, 16), (150, 96, 16), (999, 130, 32)]
)
def test_spans_cover_everything_overlap_and_begin_on_the_grid(length, tile_px, grid):
    found = list(spans(length, tile_px, grid))
    assert (found[0][0], found[-1][1]) == (0, length)
    assert all(start % grid == 0 for start, _ in found)
    assert all(end - start < tile_px + grid for start, end in found)
    assert all(after[0] + OVERLAP_PX <= before[1] for before, after in pairwise(found))
    assert tile_count((length, 10), tile_px, grid) == len(found)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiles_put_a_picture_together_to_the_level(tmp_path, dtype):
    lq = levels(150, 203, dtype)
    seen = []
    sr = restore_levels(Double(), lq, tile_px=96, seed=0, device=CPU, scratch=tmp_path, on_tile=lambda: seen.append(1))
    expected = lq.astype(np.uint16) * (257 if dtype == np.uint8 else 1)
    assert np.abs(sr.astype(int) - expected.repeat(2, 0).repeat(2, 1)).max() <= 1
    assert len(seen) == tile_count((203, 150), 96, 16)


def test_overlapping_tiles_draw_the_same_noise(tmp_path):
    lq = levels(150, 203)
    whole = restore_levels(Noise(), lq, tile_px=1000, seed=5, device=CPU, scratch=tmp_path)
    tiled = restore_levels(Noise(), lq, tile_px=96, seed=5, device=CPU, scratch=tmp_path)
    assert np.abs(whole.astype(int) - tiled).max() <= 1  # as sharp in the overlap as beside it
    other = restore_levels(Noise(), lq, tile_px=1000, seed=6, device=CPU, scratch=tmp_path)
    assert np.abs(whole.astype(int) - other).mean() > 1000


def test_noise_by_position_is_standard_normal_and_its_windows_agree():
    with noise_by_position((0, 0, 160, 320)):
        whole = gaussian([1, 2], (4, 40, 80))
    with noise_by_position((64, 96, 32, 64)):
        part = gaussian([1, 2], (4, 8, 16))
    assert torch.equal(part, whole[..., 16:24, 24:40])
    assert whole.mean().abs() < 4 / 25600**0.5
    assert abs(whole.std() - 1) < 0.02
    assert not torch.equal(whole[0], whole[1])
    beside = (whole[..., :-1] * whole[..., 1:]).mean()
    assert beside.abs() < 4 / 25600**0.5
    assert torch.equal(gaussian([1], (4, 8, 16)), gaussian([1], (4, 8, 16)))  # outside, as ever
    with noise_by_position((8, 0, 24, 24)), pytest.raises(ValueError, match="does not lie on the grid"):
        gaussian([1], (4, 7, 7))


def test_a_feed_forward_network_in_tiles_agrees_with_one_pass(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = FeedForwardNet(FeedForwardConfig(scale=4, channels=8, blocks=1, noise_channels=2))
        for parameter in net.tail.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    restorer, lq = FeedForwardRestorer(net), levels(110, 140)
    whole = restore_levels(restorer, lq, tile_px=1000, seed=0, device=CPU, scratch=tmp_path)
    tiled = restore_levels(restorer, lq, tile_px=80, seed=0, device=CPU, scratch=tmp_path)
    difference = np.abs(whole.astype(int) - tiled)
    # All it sees lies within the overlap: beside that, the same to the level.
    alone = [np.ones(side, int) for side in lq.shape[:2]]
    for side, covered in zip(lq.shape[:2], alone, strict=True):
        covered[:] = 0
        for start, end in spans(side, 80, 16):
            covered[start:end] += 1
    rows, columns = (np.repeat(covered == 1, 4) for covered in alone)
    assert difference[np.ix_(rows, columns)].max() <= 1
    assert difference.mean() < 0.02 * whole.std()  # in the overlap, a share of what a tile's edge shows


def test_a_policy_in_tiles_agrees_with_one_pass_away_from_borders(tmp_path):
    restorer, lq = PolicyRestorer(tiny_policy("sr"), SamplerSpec(steps=2, eta=0.5)), levels(96, 192)
    lq[:] = (lq // 8) + 30000
    whole = restore_levels(restorer, lq, tile_px=1000, seed=0, device=CPU, scratch=tmp_path).astype(int)
    tiled = restore_levels(restorer, lq, tile_px=112, seed=0, device=CPU, scratch=tmp_path).astype(int)
    # Not to the bit: its group normalisation averages over the tile instead of the picture.
    detail = whole.std()
    assert np.abs(whole - tiled).mean() < 0.1 * detail
    # The overlap is as sharp as the rest: each tile drew the same noise there.
    overlap = slice(4 * (80 + 12), 4 * (112 - 12))
    assert tiled[:, overlap].std() > 0.95 * whole[:, overlap].std()


def test_a_large_canvas_is_refused_ahead_with_the_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(tiles, "IN_MEMORY_BYTES", 100)
    tiles.require_fit((10, 10), 4, tmp_path, copies=2)
    with pytest.raises(UserError, match=r"4000000×4000000 needs 192000\.0 GB of disk"):
        tiles.require_fit((10**6, 10**6), 4, tmp_path, copies=2)
