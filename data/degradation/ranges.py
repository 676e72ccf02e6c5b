"""The two published degradations as ranges of numbers, what a config overrides of them, and how strong they are."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

from shared.app.config import require_range

Preset = Literal["face", "real_sr"]
POISSON_SCALE_MIN = 0.05


@dataclass(frozen=True)
class DegradationConfig:
    """Ranges of one preset; None is the published value, in brackets as (face / real_sr's first round).

    real_sr's second round draws from narrower ranges, in the published proportion to the first.
    """

    preset: Preset = "real_sr"  # face: LRPO's single round; real_sr: Real-ESRGAN's two rounds
    # Kernels and sigmas are meant for pictures of this side and scale with it; 0: pixels of any picture (512 / 0).
    reference_px: int | None = None
    blur_kernel_px: int | None = None  # largest side of the blur's kernel (41 / 21)
    blur_sigma_min: float | None = None  # smallest sigma of the blur, in pixels (0.1 / 0.2)
    blur_sigma_max: float | None = None  # largest sigma of the blur, in pixels (12 / 3)
    # How many times smaller at most (12 / 6.67); a 64-pixel face is no face beyond about 4.
    downscale_max: float | None = None
    upscale_max: float | None = None  # how many times larger at most (1 / 1.5)
    noise_sigma_min: float | None = None  # least Gaussian noise, in 8-bit levels (0 / 1)
    noise_sigma_max: float | None = None  # most Gaussian noise, in 8-bit levels (15 / 30)
    poisson_scale_max: float | None = None  # largest scale of Poisson noise (none / 3)
    jpeg_quality_min: int | None = None  # lowest JPEG quality (30 / 30)
    jpeg_quality_max: int | None = None  # highest JPEG quality (100 / 95)
    rounds: int = 2  # rounds of real_sr: 2 as published, 1 for the first alone
    strength_min: float = 1.0  # least strength that a picture's ranges are multiplied by; 0: nearly clean
    strength_max: float = 1.0  # greatest strength that a picture's ranges are multiplied by; 1: the ranges as they are

    def __post_init__(self) -> None:
        asked = {name: getattr(self, name) for name in LIMITS if getattr(self, name) is not None}
        require_range(**{name: (value, *LIMITS[name]) for name, value in asked.items()})
        require_range(
            strength_min=(self.strength_min, 0, self.strength_max),
            strength_max=(self.strength_max, self.strength_min, 8),
        )
        ranges = ranges_of(self)
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


def ranges_of(config: DegradationConfig) -> Ranges:
    """Returns the config's ranges, the preset's published ones where it sets none."""
    published = PUBLISHED[config.preset]
    asked = {field.name: getattr(config, field.name) for field in fields(Ranges)}
    return Ranges(**{name: getattr(published, name) if value is None else value for name, value in asked.items()})


def at_strength(ranges: Ranges, strength: float) -> Ranges:
    """Returns the ranges with every step away from a clean picture multiplied by `strength`; 1 leaves them."""
    if strength == 1.0:
        return ranges
    weaker = min(strength, 1.0)  # lower ends follow downwards alone: a strong degradation may still draw little

    def quality(percent: int, by: float) -> int:
        return max(5, round(100 - (100 - percent) * by))

    return replace(
        ranges,
        blur_sigma_max=ranges.blur_sigma_min + (ranges.blur_sigma_max - ranges.blur_sigma_min) * strength,
        downscale_max=1 + (ranges.downscale_max - 1) * strength,
        upscale_max=1 + (ranges.upscale_max - 1) * strength,
        noise_sigma_min=ranges.noise_sigma_min * weaker,
        noise_sigma_max=ranges.noise_sigma_max * strength,
        poisson_scale_max=max(POISSON_SCALE_MIN, ranges.poisson_scale_max * strength),
        jpeg_quality_min=quality(ranges.jpeg_quality_min, strength),
        jpeg_quality_max=quality(ranges.jpeg_quality_max, weaker),
    )
