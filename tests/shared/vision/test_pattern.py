"""What all restorations share: seen whatever its period, and nothing seen where there is nothing."""

from __future__ import annotations

import pytest
import torch

from shared.vision.pattern import hatch, shared_place, shared_tile
from tests.helpers.scenes import noisy, scene

GT = scene(16, 64)
BASE = noisy(GT, 0.03)


def stripes(levels: float, period: int, *, side: int = 64) -> torch.Tensor:
    """±levels on diagonals, [1, 1, side, side]: a root mean square of `levels`."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.where((rows + columns) % period < period // 2, levels, -levels)[None, None] / 255


@pytest.mark.parametrize("period", [2, 4, 8, 16])
def test_a_pattern_that_divides_the_tile_is_seen_at_its_height_on_every_picture(period):
    shown = shared_tile(BASE + stripes(2.0, period), GT)
    # What is as coarse as the blur that takes the content away is seen a little lower.
    assert shown.mean().item() == pytest.approx(2.0, rel=0.15 if period < 16 else 0.6)
    assert (shown > 0.8).all()
    assert shared_tile(BASE, GT).abs().max().item() < 1.0
    assert abs(shared_tile(BASE, GT).mean().item()) < 0.2


def test_a_pattern_of_any_period_and_a_patch_are_seen_at_their_place():
    assert shared_place(BASE + stripes(4.0, 6), GT).mean().item() > 2.0
    patch = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    pasted = BASE.clone()
    pasted[:, :, 8:24, 32:48] = patch
    # Of one picture in 16 of the area: a fine error of e levels there counts e / 4 over the whole.
    assert (shared_place(pasted, GT) > 5.0).all()
    assert abs(shared_place(BASE, GT).mean().item()) < 0.3


def test_the_projection_on_the_others_by_hand():
    # Two pictures of one colour whose errors are ±a and ±b stripes: each is projected on the other's direction, which
    # is its own: a and b. Against each other: −a and −b.
    gt = torch.full((2, 3, 64, 64), 0.5)
    both = torch.cat([stripes(1.0, 2), stripes(3.0, 2)]).expand(2, 3, 64, 64)
    torch.testing.assert_close(shared_tile(gt + both, gt), torch.tensor([1.0, 3.0]), atol=0.02, rtol=0)
    turned = both * torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
    torch.testing.assert_close(shared_tile(gt + turned, gt), torch.tensor([-1.0, -3.0]), atol=0.02, rtol=0)
    torch.testing.assert_close(shared_place(gt + turned, gt), torch.tensor([-1.0, -3.0]), atol=0.1, rtol=0)


def test_colour_and_content_are_no_pattern():
    assert shared_tile(GT + 0.05, GT).abs().max().item() < 1e-3
    assert shared_place(GT * 0.9, GT).mean().item() < 0.6
    assert shared_tile(GT, GT).abs().max().item() == 0.0


def test_pictures_smaller_than_the_tile_use_a_part_of_it():
    gt = scene(8, 24)
    assert shared_tile(noisy(gt, 0.01) + stripes(3.0, 4, side=24), gt).mean().item() == pytest.approx(3.0, rel=0.15)


def test_the_hatch_is_what_all_pictures_share():
    generator = torch.Generator().manual_seed(0)
    pictures = torch.nn.functional.interpolate(
        torch.rand(24, 3, 8, 8, generator=generator) * 0.6 + 0.2, size=(66, 64), mode="bicubic"
    )
    assert hatch(pictures) < 0.5
    # ±2 levels in diagonal stripes of period 4, the same on every picture: a root mean square of 2.
    rows, columns = torch.meshgrid(torch.arange(66), torch.arange(64), indexing="ij")
    stripes = torch.where((rows + columns) % 4 < 2, 2.0, -2.0) / 255
    assert hatch(pictures + stripes) == pytest.approx(2.0, abs=0.3)
    assert hatch(0.5 + 0 * pictures + stripes) == pytest.approx(2.0, abs=1e-3)
    assert hatch(pictures * 0 + torch.rand(24, 1, 1, 1, generator=generator)) == pytest.approx(0.0, abs=1e-3)


def test_the_hatch_does_not_depend_on_how_many_pictures_there_are():
    def found(count: int) -> list[float]:
        drawn = [torch.Generator().manual_seed(seed) for seed in range(20)]
        pictures = [0.5 + 0.05 * torch.randn(count, 3, 32, 32, generator=generator) for generator in drawn]
        return [hatch(each + stripes(2.0, 4, side=32)) ** 2 for each in pictures]

    few, many = (torch.tensor(found(count)) for count in (3, 60))
    # The mean tile's own square would be 4 + the noise's share, .61 for three pictures and .03 for sixty.
    assert few.mean().item() == pytest.approx(4.0, abs=0.25)
    assert many.mean().item() == pytest.approx(4.0, abs=0.08)
    one = torch.rand(1, 3, 32, 32)
    assert hatch(one) > 0
