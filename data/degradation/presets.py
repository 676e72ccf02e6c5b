"""The two published degradations as lists of albumentations operators, and the config that overrides their ranges."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

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
from shared.app.config import require_range

Preset = Literal["face", "real_sr"]


@dataclass(frozen=True)
class DegradationConfig:
    """Ranges of one preset; None is the published value, in brackets as (face / real_sr's first round).

    real_sr's second round draws from narrower ranges, in the published proportion to the first.
    """

    preset: Preset = "real_sr"  # face: LRPO's single round; real_sr: Real-ESRGAN's two rounds
    # Kernels and sigmas are meant for pictures of this side and scale with it; 0: pixels of any picture (512 / 0).
    reference_px: int | None = None
    blur_kernel_px: int | None = None  # largest side (41 / 21)
    blur_sigma_min: float | None = None  # pixels (0.1 / 0.2)
    blur_sigma_max: float | None = None  # pixels (12 / 3)
    downscale_max: float | None = None  # times smaller (12 / 6.67); a 64-pixel face is no face beyond about 4
    upscale_max: float | None = None  # times larger (1 / 1.5)
    noise_sigma_min: float | None = None  # 8-bit levels (0 / 1)
    noise_sigma_max: float | None = None  # 8-bit levels (15 / 30)
    poisson_scale_max: float | None = None  # (none / 3)
    jpeg_quality_min: int | None = None  # (30 / 30)
    jpeg_quality_max: int | None = None  # (100 / 95)
    rounds: int = 2  # real_sr: 2 as published, 1 for the first round alone

    def __post_init__(self) -> None:
        asked = {name: getattr(self, name) for name in LIMITS if getattr(self, name) is not None}
        require_range(**{name: (value, *LIMITS[name]) for name, value in asked.items()})
        ranges = resolve(self)
        for name in ("blur_sigma", "noise_sigma", "jpeg_quality"):
            low, high = getattr(ranges, f"{name}_min"), getattr(ranges, f"{name}_max")
            if low > high:
                raise ValueError(f"{name}_min must not exceed {name}_max, got {low:g} and {high:g}")


@dataclass(frozen=True)
class Ranges:
    """The ranges of a DegradationConfig, every one set."""

    reference_px: int
    blur_kernel_px: int
    blur_sigma_min: float
    blur_sigma_max: float
    downscale_max: float
    upscale_max: float
    noise_sigma_min: float
    noise_sigma_max: float
    poisson_scale_max: float
    jpeg_quality_min: int
    jpeg_quality_max: int


LIMITS = {
    "reference_px": (0, 8192),
    "blur_kernel_px": (1, 101),
    "blur_sigma_min": (0.01, 50),
    "blur_sigma_max": (0.01, 50),
    "downscale_max": (1, 32),
    "upscale_max": (1, 4),
    "noise_sigma_min": (0, 128),
    "noise_sigma_max": (0, 128),
    "poisson_scale_max": (0.05, 10),
    "jpeg_quality_min": (1, 100),
    "jpeg_quality_max": (1, 100),
    "rounds": (1, 2),
}
PUBLISHED: dict[Preset, Ranges] = {
    # LRPO (arXiv 2509.23339), which takes them from DiffBIR's faces.
    "face": Ranges(
        reference_px=512,
        blur_kernel_px=41,
        blur_sigma_min=0.1,
        blur_sigma_max=12.0,
        downscale_max=12.0,
        upscale_max=1.0,
        noise_sigma_min=0.0,
        noise_sigma_max=15.0,
        poisson_scale_max=0.05,
        jpeg_quality_min=30,
        jpeg_quality_max=100,
    ),
    # Real-ESRGAN (arXiv 2107.10833), section 4.1 and its released training options.
    "real_sr": Ranges(
        reference_px=0,
        blur_kernel_px=21,
        blur_sigma_min=0.2,
        blur_sigma_max=3.0,
        downscale_max=1 / 0.15,
        upscale_max=1.5,
        noise_sigma_min=1.0,
        noise_sigma_max=30.0,
        poisson_scale_max=3.0,
        jpeg_quality_min=30,
        jpeg_quality_max=95,
    ),
}
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
class RoundStrength:
    """One round of real_sr relative to the first: ranges as multiples of the first's, probabilities as they are."""

    blur: float
    blur_probability: float
    downscale: float
    upscale: float  # of what exceeds 1
    resize_weights: tuple[float, float, float]  # up, down, keep
    noise: float


FIRST_ROUND = RoundStrength(1.0, 1.0, 1.0, 1.0, (0.2, 0.7, 0.1), 1.0)
# Published: sigma to 1.5 where the first goes to 3, ×0.3–1.2 where ×0.15–1.5, noise to 25 where 30.
SECOND_ROUND = RoundStrength(0.5, 0.8, 0.5, 0.4, (0.3, 0.4, 0.3), 25 / 30)


def resolve(config: DegradationConfig) -> Ranges:
    """Returns the config's ranges, the preset's published ones where it sets none."""
    published = PUBLISHED[config.preset]
    asked = {field.name: getattr(config, field.name) for field in fields(Ranges)}
    return Ranges(**{name: getattr(published, name) if value is None else value for name, value in asked.items()})


def compose(
    config: DegradationConfig, gt_px: tuple[int, int], *, scale: int, save_applied_params: bool = False
) -> A.Compose:
    """Returns the preset as one albumentations pipeline for pictures of [height, width]."""
    return A.Compose(operators_for(config, gt_px, scale=scale), save_applied_params=save_applied_params)


def operators_for(config: DegradationConfig, gt_px: tuple[int, int], *, scale: int) -> list[A.BasicTransform]:
    """Returns the preset's operators for [height, width], ending at 1/scale of it; any Compose takes them."""
    ranges = resolve(config)
    lq_px = (gt_px[0] // scale, gt_px[1] // scale)
    unit = min(gt_px) / ranges.reference_px if ranges.reference_px else 1.0
    if config.preset == "face":
        return _face(ranges, gt_px, lq_px, unit=unit)
    return _real_sr(ranges, gt_px, lq_px, unit=unit, rounds=config.rounds)


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
    ranges: Ranges, gt_px: tuple[int, int], lq_px: tuple[int, int], *, unit: float, rounds: int
) -> list[A.BasicTransform]:
    """Blur, resize, noise and JPEG, twice; at the end the resize to lq and a sinc filter, before or after the JPEG."""
    kernel_px = (max(1, round(ranges.blur_kernel_px * unit / 3)), max(1, round(ranges.blur_kernel_px * unit)))
    first = _blur_resize_noise(ranges, FIRST_ROUND, base_px=gt_px, kernel_px=kernel_px, unit=unit)
    second = _blur_resize_noise(ranges, SECOND_ROUND, base_px=lq_px, kernel_px=kernel_px, unit=unit)
    jpeg = Jpeg(quality_range=(ranges.jpeg_quality_min, ranges.jpeg_quality_max))
    finish = [
        RandomResize(base_px=lq_px, weights=KEEP_SIZE, modes=RESIZE_MODES),
        SincFilter(kernel_px=kernel_px, lowest_cutoff=math.pi / 3, p=0.8),
    ]
    last = A.OneOf([A.Sequential([*finish, jpeg], p=0.5), A.Sequential([jpeg, *finish], p=0.5)], p=1.0)
    return [*first, jpeg, *second, last] if rounds == 2 else [*first, last]


def _blur_resize_noise(
    ranges: Ranges, strength: RoundStrength, *, base_px: tuple[int, int], kernel_px: tuple[int, int], unit: float
) -> list[A.BasicTransform]:
    sigma_max = max(ranges.blur_sigma_min, ranges.blur_sigma_max * strength.blur)
    noise_max = max(ranges.noise_sigma_min, ranges.noise_sigma_max * strength.noise)
    poisson_max = max(0.05, ranges.poisson_scale_max * strength.noise)
    blur = KernelBlur(
        kernel_px=kernel_px, sigma_px=(ranges.blur_sigma_min * unit, sigma_max * unit), kernels=REAL_SR_KERNELS, p=0.9
    )
    resize = RandomResize(
        base_px=base_px,
        downscale_max=max(1.0, ranges.downscale_max * strength.downscale),
        upscale_max=1.0 + (ranges.upscale_max - 1.0) * strength.upscale,
        weights=strength.resize_weights,
        modes=RESIZE_MODES,
        down_uniform="factor",
    )
    gaussian = GaussianNoise(sigma_levels=(ranges.noise_sigma_min, noise_max), grey_probability=0.4, p=0.5)
    poisson = PoissonNoise(scale=(0.05, poisson_max), grey_probability=0.4, p=0.5)
    return [
        A.OneOf([blur, SincFilter(kernel_px=kernel_px, p=0.1)], p=strength.blur_probability),
        resize,
        A.OneOf([gaussian, poisson], p=1.0),
    ]
