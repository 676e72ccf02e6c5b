"""Detail as two numbers: blur loses energy and stays right, grain has energy and is wrong."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision

from shared.vision.detail import (
    detail_correlation,
    detail_energy,
    detail_maps,
    high_band,
    low_pass,
    octave_bands,
    true_detail,
)
from tests.helpers.scenes import blurred, noisy, scene

GT = scene()


def wave(cycles_per_px: float, *, levels: float = 20.0, side: int = 128) -> torch.Tensor:
    x = torch.arange(side, dtype=torch.float32)
    return 0.5 + levels / 255 * torch.sin(2 * math.pi * cycles_per_px * x + 0.3).expand(1, 3, side, side)


def test_blur_grain_and_sharpening_are_told_apart():
    soft, grainy = blurred(GT, 1.0), noisy(GT, 0.1)
    sharp = GT + (GT - blurred(GT, 1.0))
    assert (detail_energy(soft, GT) < -0.5).all()
    assert (detail_energy(grainy, GT) > 0.3).all()
    assert (detail_energy(sharp, GT) > 0.5).all()
    assert (detail_correlation(soft, GT) > 0.9).all()
    assert (detail_correlation(grainy, GT) < 0.8).all()
    assert (true_detail(soft, GT) < 0.8).all()
    torch.testing.assert_close(true_detail(grainy, GT), torch.ones(2), atol=0.05, rtol=0)  # noise adds nothing to it
    assert detail_energy(GT, GT).abs().max().item() == 0.0
    torch.testing.assert_close(detail_correlation(GT, GT), torch.ones(2))


def test_the_three_numbers_by_hand():
    # Half the amplitude: a quarter of the energy, log ¼, all of it right, half of the truth. The floor of one level
    # squared moves each a little at 20 levels.
    gt, sr = wave(0.3), wave(0.3, levels=10.0)
    assert detail_energy(sr, gt).item() == pytest.approx(math.log(0.25), abs=0.03)
    assert detail_correlation(sr, gt).item() == pytest.approx(1.0, abs=0.01)
    assert true_detail(sr, gt).item() == pytest.approx(0.5, abs=0.01)
    # A wave of another frequency and the same height: all the energy, nothing right.
    other = wave(0.36)
    assert detail_energy(other, gt).item() == pytest.approx(0.0, abs=0.2)
    assert detail_correlation(other, gt).item() == pytest.approx(0.0, abs=0.03)
    assert detail_energy(sr, gt).item() == pytest.approx(
        2 * math.log(true_detail(sr, gt).item() / detail_correlation(sr, gt).item()), abs=0.03
    )


def test_the_high_band_begins_at_an_eighth_of_a_cycle_and_its_octaves_add_up_to_it():
    inner = (..., slice(32, 96), slice(32, 96))
    kept = [(high_band(wave(f))[inner].std() / (wave(f) - 0.5)[inner].std()).item() for f in (1 / 32, 1 / 8, 1 / 3)]
    assert kept[0] < 0.1
    assert kept[1] == pytest.approx(0.5, abs=0.02)  # a Gaussian halves the amplitude at the edge
    assert kept[2] > 0.97
    torch.testing.assert_close(sum(octave_bands(GT)), high_band(GT), atol=1e-6, rtol=0)
    fine = [octave_bands(wave(f))[0][inner].std().item() for f in (1 / 8, 1 / 3)]
    assert fine[0] < 0.25 * fine[1]


def test_maps_say_where_and_at_which_octave():
    broken = GT.clone()
    broken[:, :, 16:32, 32:48] = blurred(GT, 2.0)[:, :, 16:32, 32:48]
    broken[:, :, 48:, :16] = noisy(GT, 0.15)[:, :, 48:, :16]
    maps = detail_maps(broken, GT, cell_px=16, octaves=3)
    assert maps.energy.shape == maps.correlation.shape == (2, 3, 4, 4)
    assert (maps.energy <= 0.0).all()
    assert (maps.energy[:, 0, 1, 2] < -1.0).all()
    assert (maps.correlation[:, 0, 3, 0] < 0.7).all()
    whole = torch.ones(4, 4, dtype=torch.bool)
    whole[0:3, 1:4] = whole[2:4, 0:2] = False  # the cells with a defect, and those whose filters reach into one
    torch.testing.assert_close(maps.correlation[:, 0][:, whole], torch.ones(2, int(whole.sum())), atol=1e-4, rtol=0)
    assert maps.energy[:, 0][:, whole].abs().max().item() < 1e-3
    # A coarse octave hears noise less than a fine one.
    assert (maps.correlation[:, 2, 3, 0] > maps.correlation[:, 0, 3, 0]).all()


def test_flat_ground_without_detail_is_right_and_grain_on_it_is_not():
    flat = torch.full((1, 3, 32, 32), 0.4)
    still, grain = (detail_maps(sr, flat, cell_px=8) for sr in (flat + 0.002, noisy(flat, 0.04)))
    assert still.energy.abs().max().item() < 0.02
    assert still.correlation.min().item() > 0.99
    assert grain.energy.max().item() < -1.0
    assert grain.correlation.max().item() < 0.6


def test_low_pass_is_torchvisions_gaussian_inside_and_keeps_a_constant():
    ours, theirs = low_pass(GT, 1.5), torchvision.transforms.functional.gaussian_blur(GT, 11, 1.5)
    torch.testing.assert_close(ours[..., 8:-8, 8:-8], theirs[..., 8:-8, 8:-8], atol=1e-5, rtol=0)
    torch.testing.assert_close(low_pass(torch.full((1, 3, 9, 9), 0.7), 3.0), torch.full((1, 3, 9, 9), 0.7))


def test_maps_have_a_gradient_everywhere():
    sr = noisy(GT, 0.02).requires_grad_()
    maps = detail_maps(sr, GT, cell_px=8)
    gradient = torch.autograd.grad(maps.energy.sum() + maps.correlation.sum(), sr)[0]
    assert torch.isfinite(gradient).all()
    assert gradient.abs().sum().item() > 0.0
    at_truth = GT.clone().requires_grad_()
    same = detail_maps(at_truth, GT, cell_px=8)
    assert torch.isfinite(torch.autograd.grad(same.energy.sum() + same.correlation.sum(), at_truth)[0]).all()
