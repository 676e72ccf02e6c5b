"""The head of a procedural portrait: where each pixel's ray meets it, the relief of the face on it, and its skin."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np

from data.procedural.drawing import bump, colour, coverage, mix, ridge, smooth_max, smoothstep, value_noise
from data.procedural.traits import Traits

EYE_Y, BROW_Y, HAIRLINE_Y = -0.04, -0.175, -0.50  # in half picture widths from the middle of an upright, frontal head


@dataclass(frozen=True)
class Head:
    """What the rays met; every array is [H, W]."""

    across: np.ndarray  # picture coordinates of the unrolled, unscaled head: x
    down: np.ndarray  # y
    x: np.ndarray  # head coordinates of the point met: 0 on the nose, positive to the picture's right
    around: np.ndarray  # how far from the nose's plane, the way round the side: |x| before the ears, more behind them
    y: np.ndarray  # 0 between the eyes and the nose's tip, positive downwards
    depth: np.ndarray  # towards the viewer
    alpha: np.ndarray  # coverage of the head without hair

    def part(self, window: tuple[slice, slice]) -> Head:
        """Returns the rows and columns of `window` alone."""
        return Head(**{field.name: getattr(self, field.name)[window] for field in fields(self)})


def build_head(traits: Traits, x: np.ndarray, y: np.ndarray) -> Head:
    """Returns the head of `traits` on a picture grid: two blended ellipsoids, turned, with the face's relief."""
    moved_x, moved_y = x - traits.centre[0], y - traits.centre[1]
    cos, sin = math.cos(traits.roll) / traits.scale, math.sin(traits.roll) / traits.scale
    across, down = moved_x * cos + moved_y * sin, moved_y * cos - moved_x * sin
    turn = rotation(traits.yaw, traits.pitch)
    origin = [turn[0, k] * across + turn[1, k] * down for k in range(3)]
    ray = turn[2]
    w = traits.face_width
    skull = _ray_ellipsoid(origin, ray, centre=(0, -0.22, -0.12), radii=(w + 0.015, 0.62, 0.66))
    jaw = _ray_ellipsoid(origin, ray, centre=(0, 0.15, -0.03), radii=(traits.jaw_width, traits.jaw_length, 0.52))
    depth = smooth_max(skull[0], jaw[0], 0.08)
    field = smooth_max(skull[1], jaw[1], 0.6)
    # The nose stands out so far that it shifts as the head turns; one correction is enough for moderate turns.
    guess = depth + 0.8 * _nose(traits, origin[0] + depth * ray[0], origin[1] + depth * ray[1])
    face_x, face_y = origin[0] + guess * ray[0], origin[1] + guess * ray[1]
    depth = depth + relief(traits, face_x, face_y)
    beyond = 2 * w - np.abs(face_x)
    around = np.where(origin[2] + guess * ray[2] > -0.12, np.abs(face_x), beyond)
    # Beside the head it is the side of the head; below the jaw, the way to the middle of the neck.
    beside = np.where(down > 0.1, np.minimum(np.abs(across) + 0.04, w), w)
    around = np.where(field > 0, around, beside)
    return Head(across=across, down=down, x=face_x, around=around, y=face_y, depth=depth, alpha=coverage(field))


def relief(traits: Traits, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns how far the face stands out of the ellipsoids, in half picture widths."""
    ax = np.abs(x)
    eye, wide = traits.eye_gap, traits.nose_width
    mouth_y = mouth_height(traits)
    height = _nose(traits, x, y)
    height -= 0.075 * bump(ax, y, (eye - 0.01, EYE_Y - 0.02), (0.10, 0.065))  # sockets
    height += 0.045 * bump(ax, y, (eye, EYE_Y), (0.075, 0.05))  # eyeballs behind their lids
    height += (0.045 - 0.022 * traits.feminine) * bump(ax, y, (0.17, BROW_Y + 0.02), (0.15, 0.045))  # brow ridge
    height += 0.05 * traits.cheek * bump(ax, y, (0.30, 0.13 - 0.03 * traits.smile), (0.11, 0.10))
    height -= 0.03 * bump(ax, y, (0.40, 0.36), (0.10, 0.16)) * traits.cheek  # hollows below the cheekbones
    height += 0.035 * bump(x, y, (0, mouth_y), (0.17, 0.10))  # the mouth's muzzle
    height -= 0.018 * bump(x, y, (0, mouth_y - 0.095), (0.016, 0.035))  # philtrum
    height -= 0.028 * bump(x, y, (0, mouth_y + 0.125), (0.10, 0.035))  # below the lower lip
    height += 0.05 * bump(x, y, (0, mouth_y + 0.25), (0.12, 0.085))  # chin
    # Folds from the nose's wings to the mouth's corners, which smiling and age deepen.
    bend = wide + 0.03 + (traits.mouth_width + 0.045 - wide) * np.clip((y - 0.22) / (mouth_y - 0.22), 0, 1.2)
    fold = 0.007 + 0.012 * max(traits.smile, 0) + 0.02 * traits.age
    within = smoothstep(0.17, 0.25, y) * smoothstep(mouth_y + 0.08, mouth_y - 0.03, y)
    height -= fold * ridge(ax - bend, 0.016) * within
    if traits.age > 0.3:
        height -= (traits.age - 0.3) * _wrinkles(traits, ax, y)
    return height


def skin_albedo(traits: Traits, head: Head, rng: np.random.Generator) -> np.ndarray:
    """Returns the colour of bare skin, [H, W, 3] sRGB: ruddier cheeks and nose, darker lids, mottling, freckles."""
    side_px = head.x.shape[0]
    ax = np.abs(head.x)
    skin = traits.skin
    blush = 0.8 * bump(ax, head.y, (0.30, 0.17), (0.11, 0.09)) + bump(head.x, head.y, (0, 0.19), (0.07, 0.06))
    blush = blush * traits.ruddiness + 0.5 * traits.makeup * bump(ax, head.y, (0.34, 0.12), (0.10, 0.06))
    albedo = mix(skin, skin * colour(1.0, 0.72, 0.70), 0.42 * blush)
    lids = bump(ax, head.y, (traits.eye_gap, EYE_Y + 0.015), (0.10, 0.07))
    shadow = colour(0.62, 0.5, 0.55) if traits.makeup > 0.5 else colour(0.80, 0.70, 0.70)
    albedo = mix(albedo, skin * shadow, (0.25 + 0.3 * traits.age + 0.3 * traits.makeup) * lids)
    mottle = 0.012 * value_noise(rng, side_px, cells=9, octaves=4, persistence=0.7)
    pores = value_noise(rng, side_px, cells=side_px / 5, octaves=1)
    albedo = albedo * (1 + (mottle + (0.012 + 0.02 * traits.age) * pores)[..., None])
    if traits.freckles > 0:
        spots = smoothstep(1.1, 1.9, value_noise(rng, side_px, cells=42, octaves=2))
        zone = bump(ax, head.y, (0.2, 0.12), (0.22, 0.12)) * min(traits.freckles, 1.0)
        albedo = mix(albedo, skin * colour(0.72, 0.55, 0.45), 0.5 * spots * zone)
    if traits.age > 0.6:
        spots = smoothstep(2.0, 2.6, value_noise(rng, side_px, cells=24, octaves=2))
        albedo = mix(albedo, skin * colour(0.75, 0.62, 0.52), 0.4 * spots)
    return albedo


def mouth_height(traits: Traits) -> float:
    """Returns the y of the line between the lips."""
    return traits.nose_length + 0.165


def _nose(traits: Traits, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    tip, wide = traits.nose_length - 0.065, traits.nose_width
    down = np.clip((y + 0.12) / (tip + 0.12), 0, 1.25)
    end = smoothstep(tip + 0.13, tip - 0.01, y) * smoothstep(-0.20, -0.04, y)
    bridge = (0.03 + 0.10 * down**1.5) * ridge(x, 0.034 + 0.028 * down) * end
    ball = 0.075 * bump(x, y, (0, tip), (0.056, 0.052))
    wings = 0.065 * bump(np.abs(x), y, (wide - 0.030, tip + 0.035), (0.030, 0.034))
    return traits.nose_height * (bridge + ball + wings)


def _wrinkles(traits: Traits, ax: np.ndarray, y: np.ndarray) -> np.ndarray:
    forehead = np.zeros_like(y)
    for height, phase in ((-0.27, 0.0), (-0.325, 1.3), (-0.375, 2.1)):
        forehead += ridge(y - height - 0.012 * np.cos(7 * ax + phase), 0.007)
    lines = 0.014 * forehead * smoothstep(0.36, 0.22, ax)
    out = ax - traits.eye_gap - traits.eye_width
    for slope in (-0.7, -0.1, 0.45):
        near = smoothstep(0.005, 0.03, out) * smoothstep(0.12, 0.07, out)
        lines += 0.012 * ridge(y - EYE_Y - slope * out, 0.006) * near
    bag = ((ax - traits.eye_gap) / 0.10) ** 2
    lines += 0.022 * ridge(y - EYE_Y - 0.095 + 0.035 * bag, 0.010) * smoothstep(1.3, 0.6, bag)
    return lines


def rotation(yaw: float, pitch: float) -> np.ndarray:
    """Returns the picture's right, down and towards the viewer as rows in head coordinates: a rotation."""
    about_y = np.array([[math.cos(yaw), 0, math.sin(yaw)], [0, 1, 0], [-math.sin(yaw), 0, math.cos(yaw)]])
    about_x = np.array([[1, 0, 0], [0, math.cos(pitch), math.sin(pitch)], [0, -math.sin(pitch), math.cos(pitch)]])
    return (about_x @ about_y).astype(np.float32)


def _ray_ellipsoid(
    origin: list[np.ndarray], ray: np.ndarray, *, centre: tuple[float, ...], radii: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the nearest meeting point's position along the ray, and a field that is positive where there is one."""
    a = float(sum((ray[k] / radii[k]) ** 2 for k in range(3)))
    b = sum((origin[k] - centre[k]) * (ray[k] / radii[k] ** 2) for k in range(3))
    c = sum(((origin[k] - centre[k]) / radii[k]) ** 2 for k in range(3)) - 1.0
    field = b * b - a * c
    # Beside the ellipsoid the surface is continued downwards, so that slopes stay finite at its rim.
    return (-b + np.sign(field) * np.sqrt(np.abs(field))) / a, field
