"""Drawing with arrays: layers, soft steps, bumps, coverage of implicit shapes, and noise for textures."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class Layer:
    """One thing in the picture, painted over what is behind it."""

    alpha: np.ndarray  # [H, W]
    albedo: np.ndarray  # [H, W, 3] sRGB
    depth: np.ndarray  # [H, W] towards the viewer, in half picture widths
    gloss: np.ndarray  # [H, W]
    is_skin: bool = False  # light travels some way below its surface

    def part(self, window: tuple[slice, slice]) -> Layer:
        """Returns the rows and columns of `window` alone."""
        return Layer(self.alpha[window], self.albedo[window], self.depth[window], self.gloss[window], self.is_skin)


def pixel_grid(side_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns x and y of the pixel centres, [side, side] float32 in (−1, 1), y downwards."""
    axis = (np.arange(side_px, dtype=np.float32) + 0.5) * (2.0 / side_px) - 1.0
    return np.meshgrid(axis, axis)


def colour(red: float, green: float, blue: float) -> np.ndarray:
    """Returns the colour as an array that keeps pictures in single precision."""
    return np.array([red, green, blue], dtype=np.float32)


def hue_ramp(hue: np.ndarray | float) -> np.ndarray:
    """Returns the pure colour of a hue, [..., 3] in [0, 1] for hues [..., 1] of which 1 is a whole turn."""
    return np.clip(np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)


def smoothstep(low: float, high: float, value: np.ndarray) -> np.ndarray:
    """Returns 0 below `low`, 1 above `high`, and a smooth cubic between; `low` may be the larger of the two."""
    t = np.clip((value - low) * (1.0 / (high - low)), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def mix(below: np.ndarray, above: np.ndarray | float, alpha: np.ndarray) -> np.ndarray:
    """Returns `above` painted over `below`; a [H, W] alpha paints colours, [H, W, 3] or one for all pixels."""
    if np.ndim(below) in (1, 3) and np.ndim(alpha) == 2:
        alpha = alpha[..., None]
    return below + (above - below) * alpha


def bounds(region: np.ndarray, *, margin_px: int = 2) -> tuple[slice, slice]:
    """Returns the rows and columns of the smallest rectangle around a [H, W] boolean region, with a margin."""
    spans = []
    for axis in (1, 0):
        hit = np.flatnonzero(region.any(axis=axis))
        low, high = (int(hit[0]), int(hit[-1]) + 1) if hit.size else (0, 0)
        spans.append(slice(max(0, low - margin_px), high + margin_px))
    return spans[0], spans[1]


def bump(x: np.ndarray, y: np.ndarray, at: tuple[float, float], size: tuple[float, float]) -> np.ndarray:
    """Returns a Gaussian hill of height 1 at `at` with the two standard deviations `size`."""
    return np.exp(-0.5 * (((x - at[0]) / size[0]) ** 2 + ((y - at[1]) / size[1]) ** 2))


def ridge(across: np.ndarray, width: np.ndarray | float) -> np.ndarray:
    """Returns a Gaussian of height 1 where `across` is 0, with the standard deviation `width`."""
    return np.exp(-0.5 * (across / width) ** 2)


def moved(picture: np.ndarray, right_px: float, down_px: float, *, beyond: int = cv2.BORDER_CONSTANT) -> np.ndarray:
    """Returns a [H, W] picture moved by parts of pixels; `beyond` its rim it is 0, or what OpenCV's border says."""
    move = np.float32([[1, 0, right_px], [0, 1, down_px]])
    return cv2.warpAffine(picture, move, picture.shape[::-1], borderMode=beyond)


def coverage(field: np.ndarray) -> np.ndarray:
    """Returns how much of each pixel lies where `field` > 0, from the field's own slope: edges one pixel soft."""
    slope = np.hypot(*np.gradient(field))
    return np.clip(field / np.maximum(slope, 1e-5) + 0.5, 0.0, 1.0)


def smooth_max(a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
    """Returns the larger of the two, with the crease between them rounded over `width`."""
    h = np.clip(0.5 + 0.5 * (a - b) / width, 0.0, 1.0)
    return b + (a - b) * h + width * h * (1.0 - h)


def value_noise(
    rng: np.random.Generator, side_px: int, *, cells: float, octaves: int = 3, persistence: float = 0.5
) -> np.ndarray:
    """Returns [side, side] noise of deviation about 1.2: `cells` blobs across the picture, each octave half the size."""
    total, power = np.zeros((side_px, side_px), dtype=np.float32), 0.0
    for octave in range(octaves):
        count = round(cells * 2**octave) + 3
        coarse = rng.standard_normal((count, count), dtype=np.float32)
        weight = persistence**octave
        total += weight * cv2.resize(coarse, (side_px, side_px), interpolation=cv2.INTER_CUBIC)
        power += weight**2
    return total * np.float32(1.4 / np.sqrt(power))


def streak_noise(
    rng: np.random.Generator, across: np.ndarray, along: np.ndarray, *, strands: float, length: float
) -> np.ndarray:
    """Returns fibres of deviation about 0.7: fine in `across` (`strands` a unit), slow in `along` (`length` units)."""
    texture = np.zeros((32, 512), dtype=np.float32)
    for fineness, weight in ((512, 0.5), (256, 0.7), (64, 0.7)):
        fibres = rng.standard_normal((8, fineness), dtype=np.float32)
        texture += weight * cv2.resize(fibres, (512, 32), interpolation=cv2.INTER_LINEAR)
    # A unit of `across` spans `strands` fibres of the second size, each two texels wide.
    map_x, map_y = across * (strands * 2.0) + 256.0, along * (4.0 / length) + 16.0
    return cv2.remap(texture, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
