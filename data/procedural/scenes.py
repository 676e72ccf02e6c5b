"""Dead-leaves scenes: overlapping textured shapes of power-law sizes, the simplest pictures with natural statistics.

Sizes r with density ∝ r⁻³ make the scene look alike at every scale, as photographs do (Lee, Mumford and Huang 2001,
"Occlusion models for natural images"); the textures are what a restorer has to bring back.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np

from data.procedural.drawing import mix, moved
from data.procedural.textures import draw_palette, draw_texture
from shared.seeds import numpy_rng

LARGEST, SMALLEST = 0.36, 0.026  # radii, in picture sides
PAINT_BITS = 4  # OpenCV draws at positions of 1/16 pixel


def dead_leaves(seed: int, index: int, *, side_px: int = 192) -> np.ndarray:
    """Returns scene `index` as [side, side, 3] float32 in [0, 1], a function of (seed, index, side) alone."""
    rng = numpy_rng(seed, "dead leaves", index)
    palette = draw_palette(rng)
    scene = draw_texture(rng, side_px, palette)
    light = rng.uniform(0, 2 * math.pi)
    for radius in leaf_radii(rng, int(rng.integers(70, 160))):
        _paint_leaf(scene, rng, float(radius) * side_px, palette, light)
    return np.sqrt(np.clip(scene, 0.0, 1.0))


def leaf_radii(rng: np.random.Generator, count: int) -> np.ndarray:
    """Returns [count] radii in picture sides, of density ∝ r⁻³ between the two bounds, by inverting its distribution.

    P(r < x) = (SMALLEST⁻² − x⁻²) / (SMALLEST⁻² − LARGEST⁻²). The first twelfth is large, to cover the ground.
    """
    radii = 1.0 / np.sqrt(SMALLEST**-2 - rng.random(count) * (SMALLEST**-2 - LARGEST**-2))
    radii[: count // 12] = rng.uniform(LARGEST / 3, LARGEST, count // 12)
    return radii


def _paint_leaf(scene: np.ndarray, rng: np.random.Generator, radius: float, palette: np.ndarray, light: float) -> None:
    side = scene.shape[0]
    centre = (rng.uniform(0, side), rng.uniform(0, side))
    left, top = (math.floor(c - 1.5 * radius) - 2 for c in centre)
    extent = math.ceil(3.0 * radius) + 5
    x0, y0, x1, y1 = max(0, left), max(0, top), min(side, left + extent), min(side, top + extent)
    if x1 <= x0 or y1 <= y0:
        return
    outline = SHAPES[np.searchsorted(SHAPE_CHANCES, rng.random())](rng)
    points = (outline * radius + np.array(centre) - (x0, y0)) * 2**PAINT_BITS
    mask = np.zeros((y1 - y0, x1 - x0), dtype=np.uint8)
    cv2.fillPoly(mask, [np.round(points).astype(np.int32)], 255, lineType=cv2.LINE_AA, shift=PAINT_BITS)
    alpha = mask.astype(np.float32) / 255.0
    texture = draw_texture(rng, extent, palette)[y0 - top : y1 - top, x0 - left : x1 - left]
    if rng.random() < 0.6:  # a solid thing in a light: brighter on one side
        ys, xs = np.mgrid[y0:y1, x0:x1].astype(np.float32)
        across = ((xs - centre[0]) * math.cos(light) + (ys - centre[1]) * math.sin(light)) / radius
        texture = texture * np.clip(1.0 + rng.uniform(0.1, 0.5) * across, 0.2, 1.8)[..., None]
    part = scene[y0:y1, x0:x1]
    if rng.random() < 0.5 and radius > 3:  # and its shadow on what lies below
        shift = 0.10 * radius
        shadow = moved(alpha, -shift * math.cos(light), -shift * math.sin(light))
        part = part * (1.0 - 0.5 * cv2.GaussianBlur(shadow, (0, 0), 0.4 + 0.08 * radius))[..., None]
    if rng.random() < 0.08:  # out of focus
        alpha = cv2.GaussianBlur(alpha, (0, 0), 0.6 + 0.04 * radius)
    scene[y0:y1, x0:x1] = mix(part, texture, alpha)


def _disc(rng: np.random.Generator) -> np.ndarray:
    return _ring(64, np.ones(64))


def _ellipse(rng: np.random.Generator) -> np.ndarray:
    points = _ring(64, np.ones(64)) * (1.0, rng.uniform(0.25, 0.9))
    return points @ _turn(rng.uniform(0, math.pi))


def _polygon(rng: np.random.Generator) -> np.ndarray:
    corners = int(rng.integers(3, 8))
    angles = np.sort(rng.uniform(0, 2 * math.pi, corners))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * rng.uniform(0.6, 1.2, (corners, 1))


def _box(rng: np.random.Generator) -> np.ndarray:
    half_width = rng.uniform(0.1, 0.9)
    corners = np.array([(-1, -half_width), (1, -half_width), (1, half_width), (-1, half_width)])
    angle = rng.uniform(0, math.pi) if rng.random() < 0.6 else 0.5 * math.pi * rng.integers(2)
    return corners @ _turn(angle)


def _blob(rng: np.random.Generator) -> np.ndarray:
    return _ring(96, np.clip(0.8 + _wobble(rng, 96, waves=7, size=0.5), 0.15, 1.4))


def _star(rng: np.random.Generator) -> np.ndarray:
    points = int(rng.integers(4, 11))
    waves = 0.7 + 0.3 * np.cos(np.arange(128) / 128 * 2 * math.pi * points)
    return _ring(128, waves + _wobble(rng, 128, waves=3, size=0.15))


SHAPES: tuple[Callable[[np.random.Generator], np.ndarray], ...] = (_disc, _ellipse, _polygon, _box, _blob, _star)
SHAPE_CHANCES = np.cumsum((0.18, 0.18, 0.2, 0.16, 0.2))  # the rest is for the last


def _ring(count: int, radii: np.ndarray) -> np.ndarray:
    angles = np.arange(count) / count * 2 * math.pi
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]


def _wobble(rng: np.random.Generator, count: int, *, waves: int, size: float) -> np.ndarray:
    """A closed random curve around 0: the first few harmonics, each weaker than the one before."""
    angles = np.arange(count) / count * 2 * math.pi
    curve = np.zeros(count)
    for k in range(2, waves + 2):
        curve += rng.normal(0, size / k) * np.cos(k * angles + rng.uniform(0, 2 * math.pi))
    return curve


def _turn(angle: float) -> np.ndarray:
    return np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
