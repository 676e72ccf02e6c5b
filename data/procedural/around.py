"""What is around the face of a procedural portrait: hair and headwear, ears, neck, clothes, and the room behind."""

from __future__ import annotations

import math

import numpy as np

from data.procedural.drawing import (
    Layer,
    colour,
    coverage,
    mix,
    ridge,
    smooth_max,
    smoothstep,
    streak_noise,
    value_noise,
)
from data.procedural.head import BROW_Y, HAIRLINE_Y, Head
from data.procedural.traits import Traits

LONG = ("bob", "straight", "wavy", "curly")
OVER_EARS = (*LONG, "scarf")


def build_hair(traits: Traits, head: Head, rng: np.random.Generator) -> tuple[Layer | None, Layer | None]:
    """Returns the hair behind the neck, if any, and the hair in front of the forehead and cheeks, if any."""
    if traits.hair == "bald":
        return None, None
    if traits.hair == "scarf":
        return _scarf(traits, head, rng)
    outer = _outline(traits, head, rng)
    albedo, strands = _strands(traits, head, rng)
    ax = head.around
    line = _hairline(traits, head, ax) + 0.022 * strands
    inside = np.minimum(outer + 0.012 * strands, 2.2 * (line - head.y))
    alpha = smoothstep(-0.05, 0.10, inside) if traits.hair != "beanie" else coverage(inside)
    dome = np.sqrt(np.clip(_dome(traits, head), 0.0, None))
    depth = 0.56 * dome + 0.02 + 0.010 * strands
    gloss = np.zeros_like(alpha)
    if traits.hair == "buzz":
        density = 0.62 * smoothstep(-0.02, 0.16, inside) * np.clip(0.9 + 0.3 * strands, 0, 1.2)
        return None, Layer(np.clip(density, 0, 0.8), albedo, head.depth, gloss)
    front = Layer(alpha, albedo, depth, gloss)
    if traits.hair == "beanie":
        return None, _beanie(front, traits, head, rng)
    if traits.hair not in LONG:
        return None, front
    drape = 0.10 - 1.2 * np.clip(ax - 0.50, -0.3, 0.3) ** 2 + 0.012 * strands
    front = Layer(alpha, albedo, smooth_max(depth, drape, 0.1), gloss)
    back = Layer(coverage(outer), albedo * 0.45, np.full_like(alpha, -0.45), gloss)
    return back, front


def _dome(traits: Traits, head: Head) -> np.ndarray:
    """Positive inside the skull with its hair, falling off like the height of an ellipsoid."""
    puffy = {"curly": 0.30, "quiff": 0.13, "wavy": 0.13, "short": 0.09, "buzz": 0.012, "tied": 0.035, "beanie": 0.05}
    volume = puffy.get(traits.hair, 0.09) * (0.55 + 0.6 * traits.hair_volume)
    sides = volume * (0.35 if traits.hair in ("quiff", "short") else 0.9)
    shift = 0.12 * math.sin(traits.yaw)
    lean = 0.10 * traits.parting if traits.hair == "quiff" else 0.0
    x = (head.across + shift + lean * head.down) / (traits.face_width + 0.02 + sides)
    y = (head.down + 0.22) / (0.62 + volume)
    return 1.0 - x**2 - y**2


def _outline(traits: Traits, head: Head, rng: np.random.Generator) -> np.ndarray:
    side_px = head.x.shape[0]
    dome = 0.5 * _dome(traits, head)
    if traits.hair not in LONG:
        return dome
    reach = {"bob": 0.45 + 0.3 * traits.hair_length, "curly": 0.10 + 0.75 * traits.hair_length}
    length = reach.get(traits.hair, 0.85 + 0.7 * traits.hair_length)
    flare = {"bob": 0.12, "curly": 0.10, "straight": 0.06, "wavy": 0.22}[traits.hair] * (0.4 + traits.hair_volume)
    volume = 0.05 + 0.09 * traits.hair_volume + (0.10 if traits.hair == "curly" else 0.0)
    down = np.clip(head.down + 0.22, 0, None)
    half = traits.face_width + volume + flare * smoothstep(0.0, 0.9, down)
    across = np.abs(head.across + 0.10 * math.sin(traits.yaw))
    curtain = np.minimum(half - across, length - head.down)
    curtain = np.where(head.down > -0.22, np.minimum(curtain, 0.6), -1.0)
    ragged = 0.07 if traits.hair == "curly" else 0.022
    field = np.maximum(dome, curtain)
    return field + ragged * value_noise(rng, side_px, cells=14, octaves=3)


def _hairline(traits: Traits, head: Head, ax: np.ndarray) -> np.ndarray:
    """Returns the y above which, on the face, there is hair."""
    base = HAIRLINE_Y + traits.hairline
    if traits.hair == "beanie":
        return np.full_like(ax, BROW_Y - 0.13) + 0.10 * ax**2
    if traits.hair in LONG:
        if traits.fringe:
            top = BROW_Y - 0.035 - 0.05 * traits.hair_length + 0.10 * ax**2
        else:
            top = base + 0.75 * np.abs(head.x - traits.parting) ** 1.5
        return top + 3.0 * smoothstep(0.40 - 0.02 * traits.hair_volume, 0.52, ax)
    temple = 0.045 * ridge(ax - 0.27, 0.07) * (1 - traits.feminine)
    burns = 0.52 * smoothstep(0.35, 0.46, ax) * (0.8 if traits.hair == "tied" else 1.0)
    if traits.fringe and traits.hair == "short":
        return base + 0.16 + 0.05 * traits.parting * head.x + burns
    if traits.hair == "quiff":
        lean = 0.12 * (head.x - traits.parting) * math.copysign(1.0, traits.parting) * (ax < 0.4)
        return base - 0.02 + lean + burns - temple
    return base + 0.10 * ax**2 + burns - temple


def _strands(traits: Traits, head: Head, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns the hair's colour and the strands' brightness pattern around 0."""
    side_px = head.x.shape[0]
    x, y = head.across - traits.parting * (traits.hair != "curly"), head.down + 0.82
    if traits.hair in ("straight", "wavy", "bob"):
        spread = 0.22 + 0.62 * (1 - np.exp(-np.clip(y, 0, None) / 0.42))
        across, along = x / spread, y + 0.3 * np.abs(x)
    else:
        along = np.hypot(x, y + 0.35)
        across = 0.7 * np.arctan2(x, y + 0.35)
    if traits.hair in ("wavy", "curly"):
        phase = 2.0 * value_noise(rng, side_px, cells=4, octaves=1)
        across = across + (0.035 + 0.03 * traits.hair_volume) * np.sin(along * 15 + phase)
    if traits.hair == "curly":
        coils = value_noise(rng, side_px, cells=26 + 16 * traits.hair_length, octaves=2, persistence=0.7)
        strands = 0.9 * np.abs(coils) * 1.6 - 1.0 + 0.25 * streak_noise(rng, across, along, strands=60, length=0.3)
    else:
        strands = streak_noise(rng, across, along, strands=34, length=1.6)
    locks = value_noise(rng, side_px, cells=5, octaves=2)
    sheen_at = 0.40 + 0.10 * traits.light[1] + 0.02 * strands
    sheen = ridge(along - sheen_at, 0.10) * (0.10 if traits.hair == "curly" else 0.30)
    base = traits.hair_colour
    contrast = 0.28 - 0.16 * float(base.mean())
    tone = 0.92 + contrast * strands + 0.08 * locks
    albedo = (
        base * np.clip(tone, 0.25, 1.9)[..., None]
        + (0.35 * base + 0.06) * (sheen * np.clip(1 + 0.7 * strands, 0, 3))[..., None]
    )
    return np.clip(albedo, 0.0, 1.0), strands


def _beanie(front: Layer, traits: Traits, head: Head, rng: np.random.Generator) -> Layer:
    ribs = np.cos(head.across * 75 + 0.5 * np.sin(head.down * 9))
    knit = 0.85 + 0.10 * ribs + 0.05 * value_noise(rng, head.x.shape[0], cells=60, octaves=1)
    band = smoothstep(-0.47, -0.455, head.y)
    knitted = mix(traits.cloth_accent * knit[..., None], traits.cloth, 0.35 * band)
    edge = 1 - 0.35 * ridge(head.y + 0.465, 0.008)
    depth = front.depth + 0.03 + 0.02 * band + 0.004 * ribs
    return Layer(front.alpha, np.clip(knitted * edge[..., None], 0, 1), depth, front.gloss)


def _scarf(traits: Traits, head: Head, rng: np.random.Generator) -> tuple[Layer, Layer]:
    side_px = head.x.shape[0]
    face = np.hypot(head.x / 0.435, (head.y - 0.09) / 0.60) - 1.0
    down = np.clip(head.down + 0.1, 0, None)
    across = np.abs(head.across + 0.1 * math.sin(traits.yaw))
    cover = np.maximum(0.5 * _dome(traits, head), np.where(head.down > -0.22, 0.60 + 0.45 * down**1.5 - across, -1.0))
    folds = np.sin(16 * face + 2.2 * value_noise(rng, side_px, cells=3, octaves=2) + 3 * head.across)
    cloth = traits.cloth_accent * (0.88 + 0.10 * folds)[..., None]
    alpha = coverage(np.minimum(cover, face))
    depth = 0.25 + 0.30 * np.sqrt(np.clip(_dome(traits, head), 0, None)) + 0.018 * folds - 0.25 * np.clip(face, 0, 0.5)
    gloss = np.zeros_like(alpha)
    back = Layer(coverage(cover), cloth * 0.4, np.full_like(alpha, -0.3), gloss)
    return back, Layer(alpha, np.clip(cloth, 0, 1), depth, gloss)


def build_ears(traits: Traits, head: Head) -> Layer:
    """Returns both ears, with their earrings if any; the head and the hair come over them."""
    alpha, inner, ring = np.zeros_like(head.x), np.zeros_like(head.x), np.zeros_like(head.x)
    for side in (-1, 1):
        at = side * (traits.face_width + 0.005) * math.cos(traits.yaw) - 0.10 * math.sin(traits.yaw)
        u = (head.across - at - side * 0.02 + side * 0.03 * (head.down - 0.02)) / 0.058
        v = (head.down - 0.035 + 0.3 * math.sin(traits.pitch)) / (0.125 - 0.03 * smoothstep(0, 0.1, head.down))
        field = 1 - u**2 - v**2
        alpha = np.maximum(alpha, coverage(field))
        inner = np.maximum(inner, ridge(np.hypot(u + 0.15 * side, v) - 0.55, 0.13) * (field > 0))
        if traits.earrings:
            ring = np.maximum(ring, smoothstep(0.028, 0.018, np.hypot(0.058 * u, 0.09 * v - 0.115)))
    albedo = traits.skin * colour(0.97, 0.86, 0.84) * (1 - 0.38 * inner)[..., None]
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
    skin = traits.skin * colour(0.97, 0.93, 0.92)
    tendon = ridge(np.abs(middle) - 0.17 + 0.12 * (down - 0.7), 0.03)
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
    cloth = traits.cloth * (1 + 0.05 * wrinkles + 0.05 * weave)[..., None]
    if traits.hair_length > 0.66:  # a patterned cloth
        stripes = smoothstep(-0.2, 0.2, np.cos(across * 40 * (1 + traits.hair_volume) + 0.6 * wrinkles))
        cloth = mix(cloth, traits.cloth_accent, 0.55 * stripes)
    hem = ridge(opening + 0.025, 0.018)
    if traits.collar == "shirt":
        cloth = mix(cloth, traits.cloth * 0.3 + 0.66, smoothstep(-0.16, -0.15, opening) * (down < 1.02 + ax))
    depth = -0.22 + 0.03 * wrinkles + 0.05 * hem - 0.25 * ax**2 + 0.2 * np.clip(down - 0.8, 0, 1)
    clothes = Layer(coverage(np.minimum(shoulder, -opening)), np.clip(cloth, 0, 1), depth, np.zeros_like(x))
    return bare, clothes


def backdrop(traits: Traits, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns what is behind the person, out of focus, in linear light."""
    side_px = x.shape[0]
    first, second, third = (shade**2 for shade in traits.backdrop_colours)
    wide = value_noise(rng, side_px, cells=2, octaves=2)
    if traits.backdrop == "plain":
        return first * (1.0 - 0.25 * (x * x + y * y) + 0.03 * wide)[..., None]
    base = mix(first, second, smoothstep(-1.2, 1.2, y + 0.5 * wide))
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
