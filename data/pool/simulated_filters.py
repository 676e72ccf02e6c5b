"""Filters that damage a picture as restorers do when they lose detail, repaint it, or sharpen it too much.

Pictures are [H, W, 3] float32, in [0, 1] on the way in; every filter draws its settings from the generator alone.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

Picture = np.ndarray
Rng = np.random.Generator
Artifact = Callable[[Picture, Rng], Picture]
_RESIZE = (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4, cv2.INTER_AREA)


def resample(picture: Picture, rng: Rng) -> Picture:
    """Returns the picture after a trip to 1/1.5 to 1/4.5 of its size, with noise or JPEG on the way."""
    height, width = picture.shape[:2]
    factor = rng.uniform(1.5, 4.5)
    small = (max(4, round(width / factor)), max(4, round(height / factor)))
    low = cv2.resize(picture, small, interpolation=(cv2.INTER_AREA, cv2.INTER_CUBIC)[rng.integers(2)])
    if rng.uniform() < 0.3:
        low = low + rng.normal(0, rng.uniform(0.005, 0.06), low.shape).astype(np.float32)
    if rng.uniform() < 0.3:
        low = jpeg(low, rng)
    return cv2.resize(low, (width, height), interpolation=_RESIZE[rng.integers(3)])


def blur(picture: Picture, rng: Rng) -> Picture:
    """Returns the picture under an anisotropic Gaussian of 0.6 to 3 px."""
    return cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.6, 3.0), sigmaY=rng.uniform(0.6, 3.0))


def ringing(picture: Picture, rng: Rng) -> Picture:
    """Returns the picture under an ideal low-pass of 0.3 to 0.8 of the band: ripples beside edges."""
    cutoff = rng.uniform(0.3, 0.8) * np.pi
    x = np.arange(-6, 7)
    kernel = np.sinc(cutoff * x / np.pi) * cutoff / np.pi
    kernel = (kernel / kernel.sum()).astype(np.float32)
    return cv2.sepFilter2D(picture, -1, kernel, kernel)


def jpeg(picture: Picture, rng: Rng) -> Picture:
    """Returns the picture after JPEG at quality 10 to 50."""
    quality = int(rng.integers(10, 51))
    levels = np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    _, buffer = cv2.imencode(".jpg", levels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(buffer, cv2.IMREAD_COLOR)[..., ::-1].astype(np.float32) / np.float32(255.0)


def sharpen(picture: Picture, rng: Rng) -> Picture:
    """Returns the picture with its detail above 0.5 to 2.5 px amplified by 0.5 to 3: halos and clipped edges."""
    detail = picture - cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.5, 2.5))
    return picture + np.float32(rng.uniform(0.5, 3.0)) * detail


def shock(picture: Picture, rng: Rng) -> Picture:
    """Returns the picture after a shock filter: dilation where it is concave, erosion where convex. GAN-crisp edges."""
    kernel = np.ones((3, 3), np.uint8)
    strength = np.float32(rng.uniform(0.3, 0.9))
    smooth_px = rng.uniform(0.7, 1.6)
    for _ in range(int(rng.integers(1, 4))):
        curvature = cv2.Laplacian(cv2.GaussianBlur(picture, (0, 0), smooth_px), cv2.CV_32F)
        target = np.where(curvature < 0, cv2.dilate(picture, kernel), cv2.erode(picture, kernel))
        weight = np.minimum(np.abs(curvature) * 20, 1.0) * strength
        picture = picture + weight * (target - picture)
    return picture


def median(picture: Picture, rng: Rng) -> Picture:
    """Returns the picture under one or two 3×3 or 5×5 medians: patches of flat paint."""
    size = int(rng.choice((3, 5)))
    for _ in range(int(rng.integers(1, 3))):
        picture = cv2.medianBlur(np.ascontiguousarray(picture), size)
    return picture


def bilateral(picture: Picture, rng: Rng) -> Picture:
    """Returns the picture smoothed inside its edges, as denoisers do."""
    return cv2.bilateralFilter(np.ascontiguousarray(picture), 7, rng.uniform(0.05, 0.25), rng.uniform(1.5, 4.0))


def kuwahara(picture: Picture, rng: Rng) -> Picture:
    """Returns the picture repainted: each pixel takes the mean of the flattest of the four squares around it."""
    side = int(rng.integers(2, 5))
    grey = picture.mean(axis=2)
    mean, variance = (
        cv2.blur(picture, (side, side)),
        cv2.blur(grey * grey, (side, side)) - cv2.blur(grey, (side, side)) ** 2,
    )
    shifts = [(dy, dx) for dy in (-side // 2, side // 2) for dx in (-side // 2, side // 2)]
    variances = np.stack([np.roll(variance, shift, (0, 1)) for shift in shifts])
    means = np.stack([np.roll(mean, shift, (0, 1)) for shift in shifts])
    flattest = variances.argmin(axis=0)[None, ..., None]
    return np.take_along_axis(means, flattest, axis=0)[0]


def paint(picture: Picture, rng: Rng) -> Picture:
    """Returns the picture under an edge-preserving smoother of 3 to 30 px: flat strokes between crisp borders."""
    reach_px = float(np.exp(rng.uniform(np.log(3.0), np.log(30.0))))
    levels = np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    painted = cv2.edgePreservingFilter(
        levels, flags=cv2.RECURS_FILTER, sigma_s=reach_px, sigma_r=rng.uniform(0.15, 0.6)
    )
    return painted.astype(np.float32) / np.float32(255.0)


def wobble(picture: Picture, rng: Rng) -> Picture:
    """Returns the picture bent by a smooth random field of 0.5 to 2.5 px: wrong letters, wrong faces."""
    height, width = picture.shape[:2]
    radius_px = rng.uniform(2.0, 6.0)
    field = [cv2.GaussianBlur(rng.standard_normal((height, width)).astype(np.float32), (0, 0), radius_px) for _ in "xy"]
    dx, dy = (np.float32(rng.uniform(0.5, 2.5)) * f / (f.std() + 1e-6) for f in field)
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return cv2.remap(picture, columns + dx, rows + dy, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)


def posterise(picture: Picture, rng: Rng) -> Picture:
    """Returns the picture with its local contrast pushed through a random tone curve: wrong shading."""
    radius_px = rng.uniform(2.0, 8.0)
    low = cv2.GaussianBlur(picture, (0, 0), radius_px)
    detail = picture - low
    return low * np.float32(rng.uniform(0.9, 1.1)) + np.sign(detail) * np.abs(detail) ** np.float32(
        rng.uniform(0.75, 1.3)
    )


LOSING: tuple[Artifact, ...] = (resample, resample, blur, ringing, jpeg)
REPAINTING: tuple[Artifact, ...] = (median, bilateral, paint, paint, kuwahara, wobble, posterise)
SHARPENING: tuple[Artifact, ...] = (sharpen, shock, shock)
