"""The degradations as albumentations operators whose drawn parameters are plain numbers, so that they replay from JSON.

The only place that imports albumentations. It composes and chooses operators, seeds them, records what they drew,
resizes, and compresses. Its own blur, sinc and noise are not used: they keep arrays among their parameters, draw other
kernels than the published ones, and clip after every operator; its Downscale resizes back at once, so that no noise
could be added at the small size.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else every import asks a server for the newest version

import albumentations as A
import cv2
import numpy as np
from albumentations.augmentations.geometric.functional import resize

from data.degradation.kernels import KernelShape, blur_kernel, sinc_kernel
from shared.seeds import numpy_rng
from shared.vision.images import to_uint8

# Crops are small and workers are processes: threads of OpenCV's own would only compete with them.
cv2.setNumThreads(1)

ResizeMode = Literal["area", "bilinear", "bicubic"]
INTERPOLATION = {"area": cv2.INTER_AREA, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
KernelChoice = tuple[KernelShape, bool, float]  # shape, isotropic, weight


class Operator(A.ImageOnlyTransform):
    """An albumentations operator that draws numbers from its seeded generator and applies as a function of them."""

    def __init__(self, p: float = 1.0) -> None:
        super().__init__(p=p)

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        """Returns the keyword arguments of `apply`, JSON-able."""
        return {}

    def get_params(self) -> dict[str, Any]:
        return self.draw(self.random_generator)


class KernelBlur(Operator):
    """Blurs with a Gaussian, generalised Gaussian or plateau kernel, isotropic or not (Real-ESRGAN, section 3.1)."""

    def __init__(
        self,
        *,
        kernel_px: tuple[int, int] = (7, 21),
        sigma_px: tuple[float, float] = (0.2, 3.0),
        kernels: Sequence[KernelChoice] = (("gaussian", True, 0.5), ("gaussian", False, 0.5)),
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        self.kernel_px, self.sigma_px, self.kernels = kernel_px, sigma_px, tuple(kernels)
        weights = np.array([weight for *_, weight in self.kernels])
        self.weights = weights / weights.sum()

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        kernel, isotropic, _ = self.kernels[rng.choice(len(self.kernels), p=self.weights)]
        sigma_x = float(rng.uniform(*self.sigma_px))
        beta_max = {"gaussian": 1.0, "generalized": 4.0, "plateau": 2.0}[kernel]
        beta_min = 0.5 if kernel == "generalized" else 1.0
        # Sharper and flatter than a Gaussian are equally likely, although the two sides of 1 differ in width.
        beta = float(rng.uniform(beta_min, 1.0) if rng.random() < 0.5 else rng.uniform(1.0, beta_max))
        return {
            "kernel": kernel,
            "kernel_px": odd_side(rng, self.kernel_px),
            "sigma_x": sigma_x,
            "sigma_y": sigma_x if isotropic else float(rng.uniform(*self.sigma_px)),
            "angle": 0.0 if isotropic else float(rng.uniform(-np.pi, np.pi)),
            "beta": beta,
        }

    def apply(
        self,
        img: np.ndarray,
        *,
        kernel: KernelShape,
        kernel_px: int,
        sigma_x: float,
        sigma_y: float,
        angle: float,
        beta: float,
        **_: Any,
    ) -> np.ndarray:
        weights = blur_kernel(kernel, kernel_px, sigma_x=sigma_x, sigma_y=sigma_y, angle=angle, beta=beta)
        return cv2.filter2D(img, -1, weights, borderType=cv2.BORDER_REFLECT_101)


class SincFilter(Operator):
    """Rings like a sharpened or over-compressed picture: an ideal low-pass of a random cut-off (section 3.4)."""

    def __init__(
        self, *, kernel_px: tuple[int, int] = (7, 21), lowest_cutoff: float = np.pi / 5, p: float = 1.0
    ) -> None:
        """The cut-off in radians a pixel lies between π/3 and π; kernels of 13 pixels and more go down to the lowest."""
        super().__init__(p=p)
        self.kernel_px, self.lowest_cutoff = kernel_px, lowest_cutoff

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        side = odd_side(rng, self.kernel_px)
        lowest = np.pi / 3 if side < 13 else self.lowest_cutoff
        return {"kernel_px": side, "cutoff": float(rng.uniform(lowest, np.pi))}

    def apply(self, img: np.ndarray, *, kernel_px: int, cutoff: float, **_: Any) -> np.ndarray:
        return cv2.filter2D(img, -1, sinc_kernel(kernel_px, cutoff), borderType=cv2.BORDER_REFLECT_101)


class RandomResize(Operator):
    """Resizes to a random multiple of `base_px`: smaller, larger or exactly it, by weights (section 3.2)."""

    def __init__(
        self,
        *,
        base_px: tuple[int, int] = (64, 64),  # height, width that a factor of 1 gives
        downscale_max: float = 1.0,
        upscale_max: float = 1.0,
        weights: tuple[float, float, float] = (0.0, 1.0, 0.0),  # up, down, keep
        modes: tuple[ResizeMode, ...] = ("bilinear",),
        down_uniform: Literal["factor", "divisor"] = "divisor",
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        self.base_px, self.downscale_max, self.upscale_max = base_px, downscale_max, upscale_max
        self.weights, self.modes, self.down_uniform = np.array(weights) / sum(weights), modes, down_uniform

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        way = ("up", "down", "keep")[rng.choice(3, p=self.weights)]
        factor = 1.0
        if way == "up":
            factor = rng.uniform(1.0, self.upscale_max)
        elif way == "down" and self.down_uniform == "divisor":
            factor = 1.0 / rng.uniform(1.0, self.downscale_max)
        elif way == "down":
            factor = rng.uniform(1.0 / self.downscale_max, 1.0)
        height, width = (max(1, round(side * factor)) for side in self.base_px)
        return {"height": height, "width": width, "mode": str(self.modes[rng.integers(len(self.modes))])}

    def apply(self, img: np.ndarray, *, height: int, width: int, mode: ResizeMode, **_: Any) -> np.ndarray:
        return resize(img, (height, width), INTERPOLATION[mode])


class GaussianNoise(Operator):
    """Adds normal noise, one draw per channel or one for all three."""

    def __init__(
        self, *, sigma_levels: tuple[float, float] = (1.0, 30.0), grey_probability: float = 0.0, p: float = 1.0
    ) -> None:
        """`sigma_levels` in 8-bit levels: 25.5 is a tenth of the range."""
        super().__init__(p=p)
        self.sigma_levels, self.grey_probability = sigma_levels, grey_probability

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        return {
            "sigma_levels": float(rng.uniform(*self.sigma_levels)),
            "grey": bool(rng.random() < self.grey_probability),
            "noise_seed": int(rng.integers(2**31)),
        }

    def apply(self, img: np.ndarray, *, sigma_levels: float, grey: bool, noise_seed: int, **_: Any) -> np.ndarray:
        shape = (*img.shape[:2], 1 if grey else 3)
        noise = numpy_rng(noise_seed, "gaussian").standard_normal(shape, dtype=np.float32)
        return np.clip(img + np.float32(sigma_levels / 255.0) * noise, 0.0, 1.0)


class PoissonNoise(Operator):
    """Adds `scale` times the noise of a photon count as large as the picture has distinct levels (section 3.3)."""

    def __init__(
        self, *, scale: tuple[float, float] = (0.05, 3.0), grey_probability: float = 0.0, p: float = 1.0
    ) -> None:
        super().__init__(p=p)
        self.scale, self.grey_probability = scale, grey_probability

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        return {
            "scale": float(rng.uniform(*self.scale)),
            "grey": bool(rng.random() < self.grey_probability),
            "noise_seed": int(rng.integers(2**31)),
        }

    def apply(self, img: np.ndarray, *, scale: float, grey: bool, noise_seed: int, **_: Any) -> np.ndarray:
        levels = to_uint8(img)
        levels = cv2.cvtColor(levels, cv2.COLOR_RGB2GRAY)[..., None] if grey else levels
        # As published: the photon count of white is the number of distinct levels, rounded up to a power of two.
        distinct = max(2, np.count_nonzero(np.bincount(levels.ravel(), minlength=256)))
        photons = 2.0 ** np.ceil(np.log2(distinct))
        clean = levels.astype(np.float32) / 255.0
        counts = numpy_rng(noise_seed, "poisson").poisson(clean * photons)
        noise = (counts / photons).astype(np.float32) - clean
        return np.clip(img + np.float32(scale) * noise, 0.0, 1.0)


class Jpeg(A.ImageCompression):
    """Compresses and decodes. albumentations hands OpenCV RGB as if it were BGR: red and blue swap in YCbCr."""

    def __init__(self, quality_range: tuple[int, int] = (30, 95), p: float = 1.0) -> None:
        super().__init__(compression_type="jpeg", quality_range=quality_range, p=p)

    def apply(self, img: np.ndarray, *, quality: int, image_type: str, **_: Any) -> np.ndarray:
        bgr = np.ascontiguousarray(to_uint8(img)[..., ::-1])
        decoded = super().apply(bgr, quality, image_type)
        return decoded[..., ::-1].astype(np.float32) / 255.0


OPERATORS = (KernelBlur, SincFilter, RandomResize, GaussianNoise, PoissonNoise, Jpeg)


def odd_side(rng: np.random.Generator, side_px: tuple[int, int]) -> int:
    """Returns an odd kernel side, uniform between the two bounds, each rounded down to an odd number."""
    low, high = ((side - 1) | 1 for side in side_px)
    return int(low + 2 * rng.integers((high - low) // 2 + 1))
