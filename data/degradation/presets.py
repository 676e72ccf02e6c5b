"""The two published degradations as lists of albumentations operators."""

from __future__ import annotations

import math
from dataclasses import dataclass

from data.degradation.operators import (
    A,
    GaussianNoise,
    Jpeg,
    KernelBlur,
    KernelChoice,
    PoissonNoise,
    RandomResize,
    ResizeMode,
    SincFilter,
)
from data.degradation.ranges import POISSON_SCALE_MIN, DegradationConfig, Ranges, at_strength, ranges_of

FACE_KERNELS: tuple[KernelChoice, ...] = (("gaussian", True, 0.5), ("gaussian", False, 0.5))
REAL_SR_KERNELS: tuple[KernelChoice, ...] = (
    ("gaussian", True, 0.45),
    ("gaussian", False, 0.25),
    ("generalized", True, 0.12),
    ("generalized", False, 0.03),
    ("plateau", True, 0.12),
    ("plateau", False, 0.03),
)
RESIZE_MODES: tuple[ResizeMode, ...] = ("area", "bilinear", "bicubic")
KEEP_SIZE = (0.0, 0.0, 1.0)


@dataclass(frozen=True)
class Round:
    """One round of real_sr relative to the first: ranges as multiples of the first's, probabilities as they are."""

    blur: float
    blur_probability: float
    downscale: float
    upscale: float  # of what exceeds 1
    resize_weights: tuple[float, float, float]  # up, down, keep
    noise: float


FIRST_ROUND = Round(1.0, 1.0, 1.0, 1.0, (0.2, 0.7, 0.1), 1.0)
# Published: sigma to 1.5 where the first goes to 3, ×0.3–1.2 where ×0.15–1.5, noise to 25 where 30.
SECOND_ROUND = Round(0.5, 0.8, 0.5, 0.4, (0.3, 0.4, 0.3), 25 / 30)


def compose(
    config: DegradationConfig,
    gt_px: tuple[int, int],
    *,
    scale: int,
    strength: float = 1.0,
    save_applied_params: bool = False,
) -> A.Compose:
    """Returns the preset as one albumentations pipeline for pictures of [height, width]."""
    operators = operators_for(config, gt_px, scale=scale, strength=strength)
    return A.Compose(operators, save_applied_params=save_applied_params)


def operators_for(
    config: DegradationConfig, gt_px: tuple[int, int], *, scale: int, strength: float = 1.0
) -> list[A.BasicTransform]:
    """Returns the preset's operators for [height, width], ending at 1/scale of it; any Compose takes them."""
    ranges = at_strength(ranges_of(config), strength)
    lq_px = (gt_px[0] // scale, gt_px[1] // scale)
    unit = min(gt_px) / ranges.reference_px if ranges.reference_px else 1.0
    if config.preset == "face":
        return _face(ranges, gt_px, lq_px, unit=unit)
    return _real_sr(ranges, gt_px, lq_px, unit=unit, rounds=config.rounds, ringing=min(strength, 1.0))


def _face(ranges: Ranges, gt_px: tuple[int, int], lq_px: tuple[int, int], *, unit: float) -> list[A.BasicTransform]:
    """Blur, downsampling, noise and JPEG at the small size, then the resize back."""
    side = max(1, round(ranges.blur_kernel_px * unit))
    return [
        KernelBlur(
            kernel_px=(side, side),
            sigma_px=(ranges.blur_sigma_min * unit, ranges.blur_sigma_max * unit),
            kernels=FACE_KERNELS,
        ),
        RandomResize(base_px=gt_px, downscale_max=ranges.downscale_max, down_uniform="divisor"),
        GaussianNoise(sigma_levels=(ranges.noise_sigma_min, ranges.noise_sigma_max)),
        Jpeg(quality_range=(ranges.jpeg_quality_min, ranges.jpeg_quality_max)),
        RandomResize(base_px=lq_px, weights=KEEP_SIZE),
    ]


def _real_sr(
    ranges: Ranges, gt_px: tuple[int, int], lq_px: tuple[int, int], *, unit: float, rounds: int, ringing: float
) -> list[A.BasicTransform]:
    """Blur, resize, noise and JPEG, twice; at the end the resize to lq and a sinc filter, before or after the JPEG.

    `ringing` multiplies the chances of the sinc filters.
    """
    kernel_px = (max(1, round(ranges.blur_kernel_px * unit / 3)), max(1, round(ranges.blur_kernel_px * unit)))
    common = {"kernel_px": kernel_px, "unit": unit, "ringing": ringing}
    first = _blur_resize_noise(ranges, FIRST_ROUND, base_px=gt_px, **common)
    second = _blur_resize_noise(ranges, SECOND_ROUND, base_px=lq_px, **common)
    jpeg = Jpeg(quality_range=(ranges.jpeg_quality_min, ranges.jpeg_quality_max))
    finish = [
        RandomResize(base_px=lq_px, weights=KEEP_SIZE, modes=RESIZE_MODES),
        SincFilter(kernel_px=kernel_px, lowest_cutoff=math.pi / 3, p=0.8 * ringing),
    ]
    last = A.OneOf([A.Sequential([*finish, jpeg], p=0.5), A.Sequential([jpeg, *finish], p=0.5)], p=1.0)
    return [*first, jpeg, *second, last] if rounds == 2 else [*first, last]


def _blur_resize_noise(
    ranges: Ranges,
    which: Round,
    *,
    base_px: tuple[int, int],
    kernel_px: tuple[int, int],
    unit: float,
    ringing: float,
) -> list[A.BasicTransform]:
    sigma_max = max(ranges.blur_sigma_min, ranges.blur_sigma_max * which.blur)
    noise_max = max(ranges.noise_sigma_min, ranges.noise_sigma_max * which.noise)
    poisson_max = max(POISSON_SCALE_MIN, ranges.poisson_scale_max * which.noise)
    blur = KernelBlur(
        kernel_px=kernel_px, sigma_px=(ranges.blur_sigma_min * unit, sigma_max * unit), kernels=REAL_SR_KERNELS, p=0.9
    )
    resize = RandomResize(
        base_px=base_px,
        downscale_max=max(1.0, ranges.downscale_max * which.downscale),
        upscale_max=1.0 + (ranges.upscale_max - 1.0) * which.upscale,
        weights=which.resize_weights,
        modes=RESIZE_MODES,
        down_uniform="factor",
    )
    gaussian = GaussianNoise(sigma_levels=(ranges.noise_sigma_min, noise_max), grey_probability=0.4, p=0.5)
    poisson = PoissonNoise(scale=(POISSON_SCALE_MIN, poisson_max), grey_probability=0.4, p=0.5)
    return [
        A.OneOf([blur, SincFilter(kernel_px=kernel_px, p=0.1 * ringing)], p=which.blur_probability),
        resize,
        A.OneOf([gaussian, poisson], p=1.0),
    ]
