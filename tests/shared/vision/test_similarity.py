"""Formulas of closeness against torchmetrics and scikit-image."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import skimage.color
import skimage.metrics
import torch
import torch.nn.functional as F
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure, peak_signal_noise_ratio

from shared.vision.similarity import (
    colour_shift,
    gradient_distance,
    gradient_distance_map,
    ms_ssim,
    psnr,
    ssim,
)
from tests.helpers.scenes import blurred, noisy, scene

GT = scene()
SR = noisy(blurred(GT, 0.8), 0.02)


def test_psnr_is_torchmetrics_and_one_number_a_picture():
    expected = peak_signal_noise_ratio(SR, GT, data_range=1.0, reduction="none", dim=(1, 2, 3))
    torch.testing.assert_close(psnr(SR, GT), expected, atol=1e-4, rtol=0)
    # A difference of .1 everywhere: mean square .01, 20 dB.
    assert psnr(torch.full((1, 3, 4, 4), 0.6), torch.full((1, 3, 4, 4), 0.5)).item() == pytest.approx(20.0, abs=1e-4)
    assert psnr(GT, GT).tolist() == [100.0, 100.0]


def test_ssim_is_scikit_images():
    expected = [
        skimage.metrics.structural_similarity(
            a.numpy(), b.numpy(), channel_axis=0, data_range=1.0, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False,
        )
        for a, b in zip(SR.double(), GT.double(), strict=True)
    ]  # fmt: skip
    torch.testing.assert_close(ssim(SR, GT).double(), torch.tensor(expected).double(), atol=1e-5, rtol=0)


def test_ms_ssim_is_torchmetrics_where_all_scales_fit_and_defined_where_they_do_not():
    gt = scene(side=176)
    sr = noisy(gt, 0.05)
    expected = multiscale_structural_similarity_index_measure(sr, gt, data_range=1.0, reduction="none")
    torch.testing.assert_close(ms_ssim(sr, gt), expected, atol=1e-3, rtol=0)
    # 64 px has room for three scales: their weights .0448 .2856 .3001 over their sum, .6305.
    three = multiscale_structural_similarity_index_measure(
        SR, GT, data_range=1.0, betas=(0.071055, 0.452974, 0.475971), normalize="relu", reduction="none"
    )
    torch.testing.assert_close(ms_ssim(SR, GT), three, atol=1e-5, rtol=0)
    for side in (16, 33, 64, 90):
        small = scene(side=side)
        worse = ms_ssim(noisy(small, 0.1), small)
        better = ms_ssim(noisy(small, 0.02), small)
        assert ((worse > 0.2) & (worse < better) & (better < 1.0)).all()


def test_gradient_distance_properties():
    assert gradient_distance(GT, GT).abs().max().item() < 1e-6
    torch.testing.assert_close(gradient_distance(SR, GT), gradient_distance(GT, SR), atol=1e-6, rtol=0)
    rising = [gradient_distance(blurred(GT, s), GT).mean().item() for s in (0.5, 1.0, 2.0, 4.0)]
    assert rising == sorted(rising)
    assert 0.02 < rising[0] < rising[-1] < 1.0
    noise = [gradient_distance(noisy(GT, s), GT).mean().item() for s in (0.01, 0.03, 0.1)]
    assert noise == sorted(noise)
    # Brightness is colour_shift's matter, not texture's.
    assert gradient_distance(GT + 0.05, GT).max().item() < 1e-4


def test_gradient_distance_is_the_mean_of_three_octaves():
    octaves = []
    for level in range(3):
        sr, gt = (F.avg_pool2d(x, 2**level) if level else x for x in (SR, GT))
        octaves.append(gradient_distance_map(sr, gt, scales=1).mean((1, 2, 3)))
    # Enlarging a map moves its mean a little, at its borders; the octaves differ by far more.
    torch.testing.assert_close(gradient_distance(SR, GT), sum(octaves) / 3, atol=3e-3, rtol=0)
    assert min((a - b).abs().min().item() for a, b in pairwise(octaves)) > 0.03


def test_gradient_distance_prefers_a_shifted_texture_where_psnr_prefers_a_blurred_one():
    texture = noisy(torch.full((2, 3, 64, 64), 0.5), 0.15)
    texture = blurred(texture, 0.7)
    shifted, smeared = texture.roll(1, dims=3), blurred(texture, 2.0)
    assert (psnr(shifted, texture) < psnr(smeared, texture)).all()
    # Not because it is blind: .12 against .51. Without the 5×5 windows the shift would cost .45.
    assert (gradient_distance(shifted, texture) < 0.3 * gradient_distance(smeared, texture)).all()
    assert gradient_distance(shifted, texture).min().item() > 0.05


def test_gradient_distance_map_is_where_the_defect_is():
    broken = GT.clone()
    broken[:, :, 16:32, 32:48] = blurred(GT, 3.0)[:, :, 16:32, 32:48]
    where = gradient_distance_map(broken, GT)
    assert where.shape == (2, 1, 64, 64)
    assert where.min().item() >= 0.0
    assert where.max().item() <= 1.0
    inside, outside = where[:, :, 16:32, 32:48].mean(), where[:, :, 48:, :16].max()
    assert inside > 0.1
    assert outside < 0.01
    torch.testing.assert_close(where.mean((1, 2, 3)), gradient_distance(broken, GT))


@pytest.mark.parametrize("side", [64, 65])
def test_gradient_distance_map_lies_over_the_defect(side):
    plain = torch.full((1, 3, side, side), 0.5)
    off = []
    for top in range(28, 36):  # every place within the windows of the coarsest scale, 8 px apart
        broken = plain.clone()
        broken[..., top : top + 2, top - 4 : top - 2] = 0.9
        where = gradient_distance_map(broken, plain)[0, 0].double()
        row, column = ((where.sum(dim) * torch.arange(side)).sum() / where.sum() for dim in (1, 0))
        off += [row.item() - top - 0.5, column.item() - (top - 4) - 0.5]
    # One window of a scale lies up to half its distance beside the defect; on average they lie over it.
    assert np.mean(off) == pytest.approx(0.0, abs=0.15)
    assert max(map(abs, off)) < 1.0


def test_gradient_distance_map_turns_with_the_picture():
    # 65 px: rows that have a window on both ends, so that a picture turned upside down has its map turned, too.
    gt = scene(2, 65)
    sr = noisy(blurred(gt, 0.8), 0.02)
    turned = gradient_distance_map(sr.flip(-1, -2), gt.flip(-1, -2), scales=1).flip(-1, -2)
    torch.testing.assert_close(gradient_distance_map(sr, gt, scales=1), turned, atol=1e-5, rtol=0)


def test_colour_shift_weighs_a_cut_block_by_its_pixels():
    gt = torch.full((1, 3, 20, 16), 0.5)
    sr = gt.clone()
    sr[..., 16:, :] += 0.1  # the lower block, of 4 rows among 20
    whole = colour_shift(gt + 0.1, gt)
    torch.testing.assert_close(colour_shift(sr, gt), whole * 4 / 20, atol=1e-4, rtol=0)


def test_colour_shift_is_the_mean_cie76_of_scikit_image():
    block = F.avg_pool2d(SR, 16), F.avg_pool2d(GT, 16)
    lab = [skimage.color.rgb2lab(x.permute(0, 2, 3, 1).double().numpy()) for x in block]
    expected = np.sqrt(((lab[0] - lab[1]) ** 2).sum(-1)).mean((1, 2))
    np.testing.assert_allclose(colour_shift(SR, GT).numpy(), expected, atol=1e-3)
    assert colour_shift(GT, GT).max().item() <= 1e-6
