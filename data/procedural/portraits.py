"""Procedural portraits: people who do not exist, lit and posed at random, so that faces need no download.

A person is a set of numbers (traits), a turned head with relief (head), painted eyes and lips (face_parts), and what
is around the face: hair, ears, neck, clothes and room (around). Here the layers are lit, shadowed and composited.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from data.procedural.around import OVER_EARS, backdrop, build_body, build_ears, build_hair
from data.procedural.drawing import Layer, bounds, bump, colour, mix, moved, pixel_grid, smoothstep
from data.procedural.face_parts import paint_face, paint_glasses
from data.procedural.head import build_head, skin_albedo
from data.procedural.traits import Traits
from shared.seeds import numpy_rng

SUPERSAMPLING = 1.5
SKIN_WRAP = colour(0.42, 0.22, 0.16)  # light travels below skin, red the farthest
CLOTH_WRAP = colour(0.1, 0.1, 0.1)


def portrait(seed: int, index: int, *, side_px: int = 128) -> np.ndarray:
    """Returns portrait `index` as [side, side, 3] float32 in [0, 1], a function of (seed, index, side) alone.

    Framed as aligned faces are: eyes level, a little above the middle, the face about half as wide as the picture.
    """
    traits = Traits(numpy_rng(seed, "portrait", index))
    linear = render(traits, round(side_px * SUPERSAMPLING), numpy_rng(seed, "portrait texture", index))
    small = cv2.resize(linear.astype(np.float32), (side_px, side_px), interpolation=cv2.INTER_AREA)
    # A soft shoulder instead of burnt highlights, then sRGB's gamma.
    exposed = np.clip(small, 0, None) * traits.exposure
    exposed = np.where(exposed > 0.6, 0.6 + 0.4 * np.tanh((exposed - 0.6) / 0.4), exposed)
    return (np.sqrt(exposed)).astype(np.float32)


def render(traits: Traits, side_px: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the picture in linear light, [side, side, 3]."""
    x, y = pixel_grid(side_px)
    head = build_head(traits, x, y)
    back_hair, front_hair = build_hair(traits, head, rng)
    gloss = 0.10 + 0.10 * bump(head.x, head.y, (0, 0.12), (0.07, 0.12)) + 0.06 * smoothstep(-0.15, -0.25, head.y)
    albedo, gloss = paint_face(skin_albedo(traits, head, rng), gloss, traits, head, rng)
    face = Layer(head.alpha, albedo, head.depth, gloss, is_skin=True)
    neck, clothes = build_body(traits, x, y, rng)
    ears = None if traits.hair in OVER_EARS else build_ears(traits, head)
    layers = [layer for layer in (back_hair, neck, clothes, ears, face, front_hair) if layer is not None]
    surface = np.full_like(x, -1.2)
    for layer in layers:
        surface = np.where(layer.alpha > 0.5, layer.depth, surface)
    light = _shadow(surface, traits, side_px)
    picture = backdrop(traits, x, y, rng)
    for layer in layers:
        window = bounds(layer.alpha > 0)
        if layer.alpha[window].size < 9:
            continue
        part = layer.part(window)
        near = _contact(front_hair if layer is face else face if layer is neck else None, side_px)
        shaded = _shade(part, traits, light[window] * near[window], pixel=2.0 / side_px)
        picture[window] = mix(picture[window], shaded, part.alpha)
    picture = paint_glasses(picture, traits, head)
    return picture * (1 - 0.12 * np.clip(x * x + y * y - 0.6, 0, None))[..., None]


def _contact(above: Layer | None, side_px: int) -> np.ndarray:
    """Returns how much light is left just beside and below what lies on top."""
    if above is None:
        return np.ones((side_px, side_px), dtype=np.float32)
    soft = cv2.GaussianBlur(moved(above.alpha, 0, side_px * 0.02), (0, 0), side_px * 0.022)
    return 1.0 - 0.55 * soft


def _shade(layer: Layer, traits: Traits, light: np.ndarray, *, pixel: float) -> np.ndarray:
    """Returns the layer's colour under the key light and the light from all around, [H, W, 3], linear."""
    slope_y, slope_x = np.gradient(layer.depth, pixel / traits.scale)
    steep = 1.0 / np.sqrt(slope_x**2 + slope_y**2 + 1.0)
    lx, ly, lz = traits.light
    facing = (lz - slope_x * lx - slope_y * ly) * steep
    wrap = SKIN_WRAP if layer.is_skin else CLOTH_WRAP
    key = traits.light_colour
    diffuse = np.clip((facing[..., None] + wrap) / (1 + wrap), 0, 1) * light[..., None]
    broad = cv2.GaussianBlur(layer.depth, (0, 0), 0.07 / pixel)
    hollow = np.clip(1.0 - 2.6 * np.clip(broad - layer.depth, 0, 0.2), 0.4, 1.0) * (0.5 + 0.5 * light)
    ambient = traits.ambient * (0.80 - 0.20 * slope_y * steep) * hollow
    tint = 0.6 + 0.4 * traits.backdrop_colours[0]
    length = math.sqrt(lx**2 + ly**2 + (lz + 1.0) ** 2)
    shine = np.clip((lz + 1.0 - slope_x * lx - slope_y * ly) * steep / length, 0, 1)
    tight = shine * shine * shine * shine
    tight = tight * tight * tight  # the 12th power
    sparkle = layer.gloss * (0.45 * tight + 0.35 * tight * tight * tight) * light
    return layer.albedo * layer.albedo * (ambient[..., None] * tint + 1.05 * diffuse * key) + sparkle[..., None] * key


def _shadow(surface: np.ndarray, traits: Traits, side_px: int) -> np.ndarray:
    """Returns how much of the key light reaches each pixel: the surface is followed a little way towards the light."""
    lx, ly, lz = traits.light
    flat = float(np.hypot(lx, ly)) + 1e-6
    blocked = np.full_like(surface, -1.0)
    for step in range(1, 11):
        reach = 0.035 * step * (1 + 0.06 * step)
        right, down = -lx / flat * reach * side_px / 2, -ly / flat * reach * side_px / 2
        there = moved(surface.astype(np.float32), right, down, beyond=cv2.BORDER_REPLICATE)
        blocked = np.maximum(blocked, there - surface - reach * lz / flat)
    soft = cv2.GaussianBlur(smoothstep(0.0, 0.07, blocked).astype(np.float32), (0, 0), side_px / 110)
    return 1.0 - 0.75 * soft
