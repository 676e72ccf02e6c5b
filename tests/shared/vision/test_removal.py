"""What is taken away goes, and what is not stays."""

from __future__ import annotations

import pytest
import torch

from shared.vision.detail import high_band
from shared.vision.pattern import hatch
from shared.vision.removal import REMOVALS, jpeg_and_back, shifted_and_back, without_mean_tile
from shared.vision.similarity import psnr
from tests.helpers.cheats import photographs
from tests.helpers.scenes import scene

PICTURES = photographs(14)


def stripes(levels: float, period: int) -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    return torch.where((rows + columns) % period < period // 2, levels, -levels)[None, None] / 255


@pytest.mark.parametrize("name", REMOVALS)
def test_photographs_survive_every_removal(name):
    left = REMOVALS[name](PICTURES)
    assert left.shape == PICTURES.shape
    assert left.min().item() >= 0.0
    assert left.max().item() <= 1.0
    assert psnr(left, PICTURES).min().item() > 35.0
    torch.testing.assert_close(left, REMOVALS[name](PICTURES.clone()))  # a pure function


@pytest.mark.parametrize("period", [2, 4, 8])
def test_the_mean_tile_takes_what_all_pictures_share(period):
    cheated = PICTURES * 0.9 + 0.05 + stripes(3.0, period)
    before, after = hatch(cheated), hatch(without_mean_tile(cheated))
    assert before == pytest.approx(3.0, abs=0.6)
    assert after < 0.25 * before


def test_a_picture_with_sides_that_are_no_multiple_keeps_its_size():
    pictures = scene(4, 44)
    assert without_mean_tile(pictures).shape == pictures.shape


def test_half_a_pixel_and_back_takes_a_chequerboard_and_little_else():
    grey = torch.full((1, 3, 64, 64), 0.5)
    board = grey + stripes(4.0, 2)[..., :64, :64]
    inner = (..., slice(12, -12), slice(12, -12))
    assert (shifted_and_back(board) - grey)[inner].abs().max().item() < 0.02 / 255
    x = torch.arange(64, dtype=torch.float32)
    for cycles, kept in ((0.1, 1.0), (0.25, 1.0), (0.4, 1.0)):
        wave = (0.5 + 0.1 * torch.sin(6.2832 * cycles * x)).expand(1, 3, 64, 64)
        share = ((shifted_and_back(wave) - 0.5)[inner].std() / (wave - 0.5)[inner].std()).item()
        assert share == pytest.approx(kept, abs=0.015), cycles
    # Back where it was: no shift is left.
    torch.testing.assert_close(shifted_and_back(scene())[inner], scene()[inner], atol=0.03, rtol=0)


def test_re_encoding_takes_faint_grain_on_flat_ground():
    flat = torch.full((1, 3, 64, 64), 0.5)
    grainy = flat + 1.5 / 255 * torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert high_band(jpeg_and_back(grainy)).square().mean().item() < 0.3 * high_band(grainy).square().mean().item()
    levels = jpeg_and_back(PICTURES[:1]) * 255
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)
    assert (
        psnr(jpeg_and_back(PICTURES, quality=30), PICTURES).mean()
        < psnr(jpeg_and_back(PICTURES), PICTURES).mean() - 3.0
    )
