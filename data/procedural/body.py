"""What is around the face of a procedural portrait: ears, neck, clothes, and the room behind, out of focus."""

from __future__ import annotations

import math

import numpy as np

from data.procedural.drawing import Layer, colour, coverage, mix, smoothstep, value_noise
from data.procedural.head import Head
from data.procedural.traits import Traits


def build_ears(traits: Traits, head: Head) -> Layer:
    """Returns both ears, with their earrings if any; the head and the hair come over them."""
    alpha, inner, ring = np.zeros_like(head.x), np.zeros_like(head.x), np.zeros_like(head.x)
    for side in (-1, 1):
        at = side * (traits.face_width + 0.005) * math.cos(traits.yaw) - 0.10 * math.sin(traits.yaw)
        u = (head.across - at - side * 0.02 + side * 0.03 * (head.down - 0.02)) / 0.058
        v = (head.down - 0.035 + 0.3 * math.sin(traits.pitch)) / (0.125 - 0.03 * smoothstep(0, 0.1, head.down))
        field = 1 - u**2 - v**2
        alpha = np.maximum(alpha, coverage(field))
        inner = np.maximum(inner, np.exp(-0.5 * ((np.hypot(u + 0.15 * side, v) - 0.55) / 0.13) ** 2) * (field > 0))
        if traits.earrings:
            ring = np.maximum(ring, smoothstep(0.028, 0.018, np.hypot(0.058 * u, 0.09 * v - 0.115)))
    skin = colour(*traits.skin) * colour(0.97, 0.86, 0.84)
    albedo = np.broadcast_to(skin, (*alpha.shape, 3)) * (1 - 0.38 * inner)[..., None]
    albedo = mix(albedo, colour(0.92, 0.80, 0.50), ring)
    depth = -0.12 + 0.03 * inner + 0.1 * (np.abs(head.across) - 0.5) + 0.02 * ring
    return Layer(np.maximum(alpha, ring), albedo, depth, 0.05 + 1.5 * ring, is_skin=True)


def build_body(traits: Traits, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> tuple[Layer, Layer]:
    """Returns the bare neck, and the clothes over it."""
    side_px = x.shape[0]
    across = (x - traits.centre[0]) / traits.scale + 0.06 * math.sin(traits.yaw) * 2
    down = (y - traits.centre[1]) / traits.scale
    middle = across + math.sin(traits.roll) * np.clip(0.9 - down, 0, 0.9) * -0.6
    half = 0.255 + 0.075 * (1 - traits.feminine)
    slope = 0.30 * smoothstep(0.72, 1.10, down)
    neck = coverage(np.minimum(half + slope - np.abs(middle), down - 0.2))
    skin = colour(*traits.skin) * colour(0.97, 0.93, 0.92)
    tendon = np.exp(-0.5 * ((np.abs(middle) - 0.17 + 0.12 * (down - 0.7)) / 0.03) ** 2)
    neck_depth = -0.30 + 0.36 * np.sqrt(np.clip(1 - (middle / (half + 0.08 + slope)) ** 2, 0, 1)) + 0.012 * tendon
    mottle = 1 + 0.02 * value_noise(rng, side_px, cells=8, octaves=3)
    bare = Layer(neck, skin * mottle[..., None], neck_depth, np.full_like(x, 0.05), is_skin=True)
    ax = np.abs(across)
    shoulder = down - 0.80 - 0.16 * ax - 0.55 * np.clip(ax - 0.55, 0, None) ** 1.5
    opening = {
        "round": 1 - np.hypot(across / 0.40, (down - 0.72) / 0.30),
        "v": 0.40 - 0.62 * np.clip(down - 0.62, 0, None) - ax,
        "shirt": 0.34 - 0.85 * np.clip(down - 0.70, 0, None) - ax,
    }[traits.collar]
    wrinkles = value_noise(rng, side_px, cells=4, octaves=3)
    weave = value_noise(rng, side_px, cells=side_px / 6, octaves=1)
    cloth = colour(*traits.cloth) * (1 + 0.05 * wrinkles + 0.05 * weave)[..., None]
    if traits.hair_length > 0.66:  # a patterned cloth
        stripes = smoothstep(-0.2, 0.2, np.cos(across * 40 * (1 + traits.hair_volume) + 0.6 * wrinkles))
        cloth = mix(cloth, colour(*traits.cloth_accent), 0.55 * stripes)
    hem = np.exp(-0.5 * ((opening + 0.025) / 0.018) ** 2)
    if traits.collar == "shirt":
        cloth = mix(cloth, colour(*traits.cloth) * 0.3 + 0.66, smoothstep(-0.16, -0.15, opening) * (down < 1.02 + ax))
    depth = -0.22 + 0.03 * wrinkles + 0.05 * hem - 0.25 * ax**2 + 0.2 * np.clip(down - 0.8, 0, 1)
    clothes = Layer(coverage(np.minimum(shoulder, -opening)), np.clip(cloth, 0, 1), depth, np.zeros_like(x))
    return bare, clothes


def backdrop(traits: Traits, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns what is behind the person, out of focus, in linear light."""
    side_px = x.shape[0]
    first, second, third = (colour(*shade) ** 2 for shade in traits.backdrop_colours)
    wide = value_noise(rng, side_px, cells=2, octaves=2)
    if traits.backdrop == "plain":
        return first * (1.0 - 0.25 * (x * x + y * y) + 0.03 * wide)[..., None]
    base = mix(np.broadcast_to(first, (*x.shape, 3)), second, smoothstep(-1.2, 1.2, y + 0.5 * wide))
    if traits.backdrop == "gradient":
        return base
    if traits.backdrop == "foliage":
        leaves = smoothstep(-0.8, 2.0, value_noise(rng, side_px, cells=7, octaves=2))
        green = colour(0.10, 0.20, 0.05) + 0.1 * third
        return mix(mix(base * 0.5, green, smoothstep(-0.8, 0.6, wide)), green * 2.4, 0.7 * leaves)
    if traits.backdrop == "rooms":
        for _ in range(6):
            left, top = rng.uniform(-1.3, 0.8), rng.uniform(-1.3, 0.6)
            right, bottom = left + rng.uniform(0.1, 0.9), top + rng.uniform(0.1, 0.9)
            inside = np.minimum(np.minimum(x - left, right - x), np.minimum(y - top, bottom - y))
            shade = first + (third - first) * rng.random()
            base = mix(base, shade * rng.uniform(0.3, 1.6), smoothstep(-0.03, 0.04, inside))
        return base
    for _ in range(14):
        at, radius = (rng.uniform(-1, 1), rng.uniform(-1, 1)), rng.uniform(0.05, 0.22)
        disc = smoothstep(radius, radius * 0.82, np.hypot(x - at[0], y - at[1]))
        base = mix(base, third * rng.uniform(0.6, 2.2), 0.45 * disc)
    return base
