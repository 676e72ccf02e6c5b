"""Kernels by hand, noise by its moments, JPEG beside another encoder."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from data.degradation.kernels import blur_kernel, sinc_kernel
from data.degradation.operators import (
    A,
    GaussianNoise,
    Jpeg,
    KernelBlur,
    PoissonNoise,
    RandomResize,
    SincFilter,
    odd_side,
)
from shared.seeds import numpy_rng


def test_gaussian_kernel_is_opencvs():
    one = cv2.getGaussianKernel(15, 2.3)
    ours = blur_kernel("gaussian", 15, sigma_x=2.3, sigma_y=2.3, angle=0.7, beta=1.0)
    assert np.abs(ours - one @ one.T).max() < 1e-7


def test_anisotropic_kernel_has_the_turned_covariance():
    weights = blur_kernel("gaussian", 61, sigma_x=5.0, sigma_y=2.0, angle=np.pi / 6, beta=1.0).astype(np.float64)
    y, x = np.mgrid[-30:31, -30:31]
    # R diag(25, 4) Rᵀ with cos² = 3/4, sin² = 1/4, cos·sin = √3/4: [19.75, 21·√3/4 = 9.093, 9.25].
    moments = [(weights * x * x).sum(), (weights * x * y).sum(), (weights * y * y).sum()]
    assert moments == pytest.approx([19.75, 9.0933, 9.25], rel=1e-3)


def test_generalized_and_plateau_kernels_by_hand():
    one = blur_kernel("generalized", 9, sigma_x=1.5, sigma_y=1.5, angle=0, beta=1.0)
    assert np.array_equal(one, blur_kernel("gaussian", 9, sigma_x=1.5, sigma_y=1.5, angle=0, beta=1.0))
    # Two pixels from the centre at sigma 2, q = 1: exp(−1/2) whatever beta is; at four pixels, q = 4 and 4² = 16.
    sharp = blur_kernel("generalized", 9, sigma_x=2.0, sigma_y=2.0, angle=0, beta=2.0)
    assert sharp[4, 6] / sharp[4, 4] == pytest.approx(np.exp(-0.5), rel=1e-5)
    assert sharp[4, 8] / sharp[4, 4] == pytest.approx(np.exp(-8.0), rel=1e-5)
    # Plateau: 1/(1 + 1) and 1/(1 + 16).
    flat = blur_kernel("plateau", 9, sigma_x=2.0, sigma_y=2.0, angle=0, beta=2.0)
    assert flat[4, 6] / flat[4, 4] == pytest.approx(1 / 2, rel=1e-5)
    assert flat[4, 8] / flat[4, 4] == pytest.approx(1 / 17, rel=1e-5)
    for kernel in (one, sharp, flat):
        assert kernel.sum() == pytest.approx(1, abs=1e-6)
        assert kernel.dtype == np.float32


def test_sinc_kernel_passes_below_its_cutoff_and_stops_above():
    weights = sinc_kernel(61, np.pi / 2).astype(np.float64)
    assert weights.sum() == pytest.approx(1, abs=1e-6)
    # k(1)/k(0) = 2·J₁(π/2)/(π/2), J₁(π/2) = 0.566824: 0.72170.
    assert weights[30, 31] / weights[30, 30] == pytest.approx(0.72170, abs=2e-5)
    x = np.arange(-30, 31)
    response = {f: float((weights * np.cos(f * x)[None, :]).sum()) for f in (0.25 * np.pi, 0.75 * np.pi)}
    assert response[0.25 * np.pi] == pytest.approx(1.0, abs=0.08)
    assert response[0.75 * np.pi] == pytest.approx(0.0, abs=0.08)


def test_kernel_sides_are_odd_and_within_range():
    rng = numpy_rng(0)
    assert {odd_side(rng, (7, 21)) for _ in range(300)} == {7, 9, 11, 13, 15, 17, 19, 21}
    assert {odd_side(rng, (6, 10)) for _ in range(60)} == {5, 7, 9}
    assert odd_side(rng, (4, 4)) == 3
    assert odd_side(rng, (1, 1)) == 1


def test_jpeg_weighs_red_and_blue_as_jpeg_does():
    image = np.zeros((32, 32, 3), dtype=np.float32)
    image[..., 0], image[8:, 12:, 2] = 0.9, 0.8
    ours = Jpeg().apply(image, quality=30, image_type=".jpg")
    buffer = io.BytesIO()
    Image.fromarray((image * 255 + 0.5).astype(np.uint8)).save(buffer, format="JPEG", quality=30, subsampling="4:2:0")
    theirs = np.asarray(Image.open(buffer), dtype=np.float32) / 255
    assert np.abs(ours - theirs).max() < 3 / 255
    # albumentations' own passes RGB where OpenCV expects BGR; the difference is what Jpeg is there for.
    swapped = A.ImageCompression(quality_range=(30, 30), p=1.0)(image=image)["image"]
    assert np.abs(swapped - theirs).max() > 10 / 255


def test_gaussian_noise_has_its_sigma():
    grey = np.full((200, 200, 3), 0.5, dtype=np.float32)
    coloured = GaussianNoise().apply(grey, sigma_levels=12.0, grey=False, noise_seed=1) - grey
    # 120,000 samples: the standard error of a deviation is 1/√240,000 = 0.2 %.
    assert coloured.std() == pytest.approx(12 / 255, rel=0.01)
    assert abs(np.corrcoef(coloured[..., 0].ravel(), coloured[..., 1].ravel())[0, 1]) < 0.02
    same = GaussianNoise().apply(grey, sigma_levels=12.0, grey=True, noise_seed=1) - grey
    assert np.array_equal(same[..., 0], same[..., 2])
    assert same.std() == pytest.approx(12 / 255, rel=0.02)


def test_poisson_noise_has_the_variance_of_counts():
    # 64 distinct levels 96 … 159 in equal parts: white is 64 photons, so a value v has variance v/64.
    ramp = np.repeat(np.arange(96, 160, dtype=np.float32) / 255, 625).reshape(200, 200)
    image = np.repeat(ramp[..., None], 3, axis=2)
    noise = PoissonNoise().apply(image, scale=0.5, grey=False, noise_seed=2) - image
    # Mean v = 127.5/255 = 0.5: deviation 0.5 · √(0.5/64) = 0.04419.
    assert noise.std() == pytest.approx(0.04419, rel=0.02)
    assert noise.mean() == pytest.approx(0, abs=1e-3)
    assert noise[:40].std() < noise[160:].std()  # brighter, noisier
    same = PoissonNoise().apply(image, scale=0.5, grey=True, noise_seed=2) - image
    assert np.array_equal(same[..., 0], same[..., 1])


def test_noise_of_a_flat_picture_is_finite():
    for value in (0.0, 1.0):
        flat = np.full((8, 8, 3), value, dtype=np.float32)
        noisy = PoissonNoise().apply(flat, scale=3.0, grey=False, noise_seed=0)
        assert np.isfinite(noisy).all()
        assert noisy.min() >= 0
        assert noisy.max() <= 1


def test_blur_and_sinc_leave_flat_pictures_alone():
    flat = np.full((10, 10, 3), 0.3, dtype=np.float32)
    rng = numpy_rng(0)
    for _ in range(20):
        # The kernel of 21 pixels is larger than the picture.
        assert KernelBlur().apply(flat, **KernelBlur(kernel_px=(21, 21)).draw(rng)) == pytest.approx(flat, abs=1e-5)
        assert SincFilter().apply(flat, **SincFilter().draw(rng)) == pytest.approx(flat, abs=1e-5)


def test_resizes_never_vanish():
    tiny = RandomResize(base_px=(16, 16), downscale_max=32.0)
    sizes = {tiny.draw(numpy_rng(seed))["height"] for seed in range(50)}
    assert min(sizes) >= 1
