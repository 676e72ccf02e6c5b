"""Surfaces for procedural scenes: two colours and a random pattern between them, from plain paint to lines of script."""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np

from data.procedural.drawing import hue_ramp, mix, smoothstep, streak_noise, value_noise

Pattern = Callable[[np.random.Generator, int], np.ndarray]
FINEST_PX, COARSEST_PX = 2.6, 24.0  # periods of repeated patterns
SMALL_PX = 20


def draw_palette(rng: np.random.Generator) -> np.ndarray:
    """Returns 6 colours of one scene, [6, 3] float32 linear: a few related hues, from dark to light, mostly subdued."""
    # Soil and skin, leaves, sky are the commonest colours outdoors; one scene in four has hues of its own.
    home = rng.choice([0.07, 0.10, 0.25, 0.58, rng.random()], p=[0.25, 0.2, 0.15, 0.15, 0.25])
    hue = home + rng.choice([0.0, 0.5, 0.33], 6, p=[0.7, 0.2, 0.1]) + rng.normal(0, 0.04, 6)
    saturation, value = rng.beta(1.3, 3.4, 6), rng.permutation(np.linspace(0.08, 0.95, 6)) + rng.normal(0, 0.05, 6)
    colours = value[:, None] * (1 - saturation[:, None] * (1 - hue_ramp(hue[:, None])))
    return np.square(np.clip(colours, 0.0, 1.0)).astype(np.float32)


def draw_texture(rng: np.random.Generator, side_px: int, palette: np.ndarray) -> np.ndarray:
    """Returns [side, side, 3] float32 linear: one pattern between two of the palette's colours, unevenly lit."""
    one = int(rng.integers(len(palette)))
    first, second = palette[one], palette[(one + int(rng.integers(1, len(palette)))) % len(palette)]
    # Most surfaces differ from themselves only a little; a few are as contrasting as print.
    second = first + (second - first) * np.float32(rng.beta(1.0, 1.3))
    if side_px < SMALL_PX:  # too small to show more than that it is lit from somewhere
        return mix(first, second, _gradient(rng, side_px))
    pattern = PATTERNS[np.searchsorted(PATTERN_CHANCES, rng.random())](rng, side_px)
    surface = mix(first, second, np.clip(pattern, -0.3, 1.3))
    if side_px < 2 * SMALL_PX:
        return np.clip(surface, 0.0, 1.2)
    uneven = 0.06 * value_noise(rng, side_px, cells=3, octaves=2)
    grain = rng.uniform(0.0, 0.06) * value_noise(rng, side_px, cells=side_px / 2, octaves=1)
    return np.clip(surface * (1.0 + uneven + grain)[..., None], 0.0, 1.2)


def _plain(rng: np.random.Generator, side_px: int) -> np.ndarray:
    return np.zeros((side_px, side_px), dtype=np.float32)


def _gradient(rng: np.random.Generator, side_px: int) -> np.ndarray:
    along, _ = _axes(rng, side_px)
    return (along / side_px + 0.5).astype(np.float32)


def _clouds(rng: np.random.Generator, side_px: int) -> np.ndarray:
    octaves = max(1, int(math.log2(max(4, side_px) / 4)))
    noise = value_noise(rng, side_px, cells=rng.uniform(1.5, 4), octaves=octaves, persistence=rng.uniform(0.5, 0.85))
    return 0.5 + 0.35 * noise


def _marble(rng: np.random.Generator, side_px: int) -> np.ndarray:
    along, _ = _axes(rng, side_px)
    warp = value_noise(rng, side_px, cells=rng.uniform(2, 4), octaves=5, persistence=0.6)
    return 1.0 - np.abs(np.sin(along * math.pi / _period(rng) / 2 + rng.uniform(0.8, 2.5) * warp)) ** 0.6


def _stripes(rng: np.random.Generator, side_px: int) -> np.ndarray:
    along, across = _axes(rng, side_px)
    period = _period(rng)
    bend = rng.choice([0.0, 0.0, rng.uniform(0.2, 1.5)])
    wave = np.cos(2 * math.pi * along / period + bend * np.sin(across * math.pi / (period * rng.uniform(1.5, 5))))
    soft = rng.uniform(0.05, 0.6)
    return smoothstep(-soft, soft, wave + rng.uniform(-0.4, 0.4))


def _checks(rng: np.random.Generator, side_px: int) -> np.ndarray:
    along, across = _axes(rng, side_px)
    period = _period(rng) * 1.5
    waves = np.sin(2 * math.pi * along / period), np.sin(2 * math.pi * across / period)
    if rng.random() < 0.5:
        return smoothstep(-0.1, 0.1, waves[0] * waves[1])
    return 0.5 * smoothstep(-0.15, 0.15, waves[0] - 0.3) + 0.5 * smoothstep(-0.15, 0.15, waves[1] - 0.3)  # tartan


def _bricks(rng: np.random.Generator, side_px: int) -> np.ndarray:
    along, across = _axes(rng, side_px)
    height, ratio = _period(rng) * 1.2, rng.uniform(1.0, 3.0)
    row = np.floor(across / height)
    moved = along + 0.5 * height * ratio * (row % 2)
    column = np.floor(moved / (height * ratio))
    joint = smoothstep(0.5, 0.5 - 1.5 / height, np.abs(across / height - row - 0.5))
    joint = joint * smoothstep(0.5, 0.5 - 1.5 / height / ratio, np.abs(moved / (height * ratio) - column - 0.5))
    shades = rng.uniform(0.45, 1.0, 1024)[((row * 37 + column * 101) % 1024).astype(int)]
    return (joint * shades).astype(np.float32)


def _fibres(rng: np.random.Generator, side_px: int) -> np.ndarray:
    along, across = _axes(rng, side_px)
    warp = rng.uniform(0, 0.03) * value_noise(rng, side_px, cells=2, octaves=2)
    scale = 1.0 / max(side_px, 128)
    fibres = streak_noise(
        rng, across * scale + warp, along * scale, strands=rng.uniform(20, 60), length=rng.uniform(0.3, 1)
    )
    return 0.5 + 0.4 * fibres


def _cells(rng: np.random.Generator, side_px: int) -> np.ndarray:
    count = max(4, int((side_px / _period(rng)) ** 2 / 2))
    seeds = np.ones((side_px, side_px), dtype=np.uint8)
    seeds[tuple(rng.integers(side_px, size=(2, min(count, side_px * side_px // 4))))] = 0
    distance, labels = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    if rng.random() < 0.5:  # pebbles
        return 1.0 - np.clip(distance / (0.6 * side_px / math.sqrt(count)), 0, 1) ** 2
    return rng.random(4096).astype(np.float32)[labels * 61 % 4096]  # a mosaic


def _dots(rng: np.random.Generator, side_px: int) -> np.ndarray:
    along, across = _axes(rng, side_px)
    period = _period(rng)
    row = np.floor(across / period)
    u, v = (along / period + 0.5 * (row % 2)) % 1 - 0.5, across / period - row - 0.5
    return smoothstep(0.8 / period, -0.8 / period, np.hypot(u, v) - rng.uniform(0.15, 0.4))


def _rings(rng: np.random.Generator, side_px: int) -> np.ndarray:
    y, x = np.mgrid[:side_px, :side_px].astype(np.float32) / side_px
    warp = rng.uniform(0, 0.06) * value_noise(rng, side_px, cells=3, octaves=2)
    radius = np.hypot(x - rng.uniform(-0.2, 1.2), y - rng.uniform(-0.2, 1.2)) + warp
    return 0.5 + 0.5 * np.sin(radius * (2 * math.pi * side_px / _period(rng)))


def _script(rng: np.random.Generator, side_px: int) -> np.ndarray:
    """Lines of made-up letters: two to four strokes each, in words, at a slant."""
    page = np.zeros((side_px, side_px), dtype=np.uint8)
    size = rng.uniform(6, 18)
    thickness = max(1, round(size / 9))
    y = rng.uniform(0, size)
    while y < side_px:
        x = -rng.uniform(0, 3 * size)
        while x < side_px:
            width = size * rng.uniform(0.4, 0.65)
            if rng.random() > 0.17:
                corners = np.round(
                    (rng.integers(0, 3, (rng.integers(2, 4), 2, 2)) * (width / 2.4, size / 2.4) + (x, y)) * 16
                )
                cv2.polylines(page, list(corners.astype(np.int32)), False, 255, thickness, cv2.LINE_AA, shift=4)
                if rng.random() < 0.4:
                    middle = (round((x + 0.4 * width) * 16), round((y + 0.45 * size) * 16))
                    axes = (round(0.35 * width * 16), round(0.3 * size * 16))
                    cv2.ellipse(page, middle, axes, 0, 0, 360, 255, thickness, cv2.LINE_AA, shift=4)
            x += width * 1.25
        y += size * 1.6
    turn = cv2.getRotationMatrix2D((side_px / 2, side_px / 2), rng.normal(0, 12), 1.15)
    return cv2.warpAffine(page, turn, (side_px, side_px)).astype(np.float32) / 255.0


PATTERNS: tuple[Pattern, ...] = (
    _plain, _gradient, _clouds, _marble, _stripes, _checks, _bricks, _fibres, _cells, _dots, _rings, _script,
)  # fmt: skip
PATTERN_CHANCES = np.cumsum([10, 12, 20, 5, 10, 5, 6, 12, 7, 4, 3]) / 100  # the rest is for the last


def _axes(rng: np.random.Generator, side_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates from the middle, turned at random."""
    y, x = np.mgrid[:side_px, :side_px].astype(np.float32) - side_px / 2
    angle = rng.uniform(0, math.pi)
    return x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)


def _period(rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(math.log(FINEST_PX), math.log(COARSEST_PX))))
