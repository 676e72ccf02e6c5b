"""What is painted on the skin of a procedural portrait: eyes, brows, lips, nostrils, beard, glasses."""

from __future__ import annotations

import numpy as np

from data.procedural.drawing import bounds, bump, colour, coverage, mix, ridge, smoothstep, streak_noise, value_noise
from data.procedural.head import BROW_Y, EYE_Y, Head, mouth_height
from data.procedural.traits import Traits

Painted = tuple[np.ndarray, np.ndarray]  # albedo [H, W, 3] and gloss [H, W]


def paint_face(albedo: np.ndarray, gloss: np.ndarray, traits: Traits, head: Head, rng: np.random.Generator) -> Painted:
    """Returns albedo and gloss with every part painted on, each in its own small window."""
    if traits.beard != "none":
        albedo, gloss = _paint_beard(albedo, gloss, traits, head, rng)
    eye, mouth = traits.eye_gap, mouth_height(traits)
    painters = (
        (_paint_nostrils, (-0.2, 0.2), (traits.nose_length - 0.15, traits.nose_length + 0.08)),
        (_paint_mouth, (-0.36, 0.36), (mouth - 0.16, mouth + 0.2)),
        (_paint_eye, (-eye - 0.16, -eye + 0.16), (EYE_Y - 0.14, EYE_Y + 0.1)),
        (_paint_eye, (eye - 0.16, eye + 0.16), (EYE_Y - 0.14, EYE_Y + 0.1)),
        (_paint_brows, (-0.42, 0.42), (BROW_Y - 0.2, BROW_Y + 0.12)),
    )
    for paint, (left, right), (top, bottom) in painters:
        window = bounds((head.x > left) & (head.x < right) & (head.y > top) & (head.y < bottom) & (head.alpha > 0))
        part = head.part(window)
        if part.x.size:
            albedo[window], gloss[window] = paint(albedo[window], gloss[window], traits, part, rng)
    return np.clip(albedo, 0, 1), gloss


def paint_glasses(picture: np.ndarray, traits: Traits, head: Head) -> np.ndarray:
    """Returns the shaded picture with rims, bridge and a sheen on the lenses."""
    if not traits.glasses:
        return picture
    ax, y = np.abs(head.x), head.y - EYE_Y - 0.015
    power = 2.0 + 4.0 * (1 - traits.glasses)
    radius = (np.abs((ax - traits.eye_gap) / 0.155) ** power + np.abs(y / 0.115) ** power) ** (1 / power)
    rim = smoothstep(0.13, 0.05, np.abs(radius - 1.0))
    bridge = smoothstep(0.016, 0.008, np.abs(y + 0.02 + 0.3 * ax**2)) * (ax < traits.eye_gap - 0.15)
    temple = smoothstep(0.016, 0.008, np.abs(y + 0.03)) * (ax > traits.eye_gap + 0.15)
    frame = np.maximum(np.maximum(rim, bridge), temple) * head.alpha
    sheen = 0.10 * smoothstep(1.02, 0.98, radius) * smoothstep(-0.03, 0.05, 0.5 * (head.x - y) % 0.19 - 0.08)
    metal = traits.cloth_accent**2 * 0.25
    return mix(mix(picture, 1.0, sheen * head.alpha), metal, frame)


def _paint_eye(albedo: np.ndarray, gloss: np.ndarray, traits: Traits, head: Head, rng: np.random.Generator) -> Painted:
    side = 1 if float(head.x.mean()) > 0 else -1
    width, opening = traits.eye_width, traits.eye_open
    out = (head.x * side - traits.eye_gap) / width  # −1 at the inner corner, 1 at the outer
    y = head.y - EYE_Y + traits.eye_tilt * out * width
    arch = np.clip(1 - out**2, 0, None)
    upper = -1.15 * opening * arch ** (0.75) * (1 + 0.12 * out)
    lower = 0.70 * opening * arch**0.9
    open_alpha = coverage(np.minimum(y - upper, lower - y))
    # White of the eye: a ball in shade below the lid and in its corners.
    shade = 0.88 - 0.30 * smoothstep(0.025, 0.0, y - upper) - 0.16 * np.abs(out) ** 3
    white = np.stack([shade, shade * 0.955, shade * 0.93], axis=-1)
    white = mix(white, colour(0.74, 0.42, 0.40), smoothstep(-0.72, -0.98, out))
    ix, iy = head.x - side * traits.eye_gap - traits.gaze[0], y - traits.gaze[1] + 0.10 * opening
    r = np.hypot(ix, iy) / 0.050
    iris = traits.iris
    fibres = 0.25 * np.sin(23 * np.arctan2(iy, ix) + rng.uniform(0, 6)) * (r < 1)
    eyeball = mix(white, iris * 0.45, smoothstep(1.06, 0.94, r))
    glow = iris * (1.0 + 0.5 * smoothstep(-0.02, 0.04, iy))[..., None] * (1.05 + fibres)[..., None]
    eyeball = mix(eyeball, np.clip(glow, 0, 1), smoothstep(0.92, 0.76, r))
    eyeball = mix(eyeball, 0.02, smoothstep(0.46, 0.36, r))
    eyeball = eyeball * (0.55 + 0.45 * smoothstep(-0.002, 0.022, y - upper))[..., None]
    light_x, light_y = traits.light[0] * 0.022, traits.light[1] * 0.022
    spark = smoothstep(0.0135, 0.007, np.hypot(ix - light_x, iy - light_y))
    eyeball = mix(eyeball, 1.0, 0.95 * spark)
    albedo = mix(albedo, eyeball, open_alpha)
    gloss = gloss * (1 - open_alpha)
    # Lashes, the upper lid's crease, and the lower rim.
    lash = (0.007 + 0.007 * traits.feminine + 0.006 * traits.makeup) * (1.15 + 0.35 * out)
    reach = smoothstep(1.12, 0.96, np.abs(out))
    upper_line = smoothstep(1.0, 0.55, np.abs(y - upper + 0.003) / lash) * reach
    dark = traits.skin * 0.12
    albedo = mix(albedo, dark, 0.92 * upper_line)
    lower_line = smoothstep(1.0, 0.4, np.abs(y - lower) / 0.007) * reach
    albedo = mix(albedo, traits.skin * colour(0.55, 0.38, 0.38), (0.55 + 0.3 * traits.makeup) * lower_line)
    crease_y = upper - 0.020 - 0.012 * traits.feminine - 0.004 * out
    crease = smoothstep(1.0, 0.2, np.abs(y - crease_y) / 0.009) * smoothstep(1.08, 0.75, np.abs(out))
    return mix(albedo, traits.skin * colour(0.55, 0.42, 0.40), 0.60 * crease), gloss


def _paint_brows(
    albedo: np.ndarray, gloss: np.ndarray, traits: Traits, head: Head, rng: np.random.Generator
) -> Painted:
    ax = np.abs(head.x)
    along = (ax - 0.085) / 0.255  # 0 at the nose, 1 at the temple
    rise = traits.brow_arch * np.sin(np.clip(along, 0, 1.1) * 2.6) + 0.020 * along
    middle = BROW_Y - traits.brow_lift - rise + 0.045 * np.clip(along - 0.62, 0, None) / 0.38
    thick = traits.brow_thickness * (1.05 - 0.6 * np.clip(along, 0, 1) ** 1.6) * smoothstep(-0.12, 0.12, along)
    hairs = streak_noise(rng, along * 0.35 + 0.8 * (head.y - middle), head.y - middle, strands=70, length=0.5)
    field = 1 - np.abs(head.y - middle) / np.maximum(thick, 1e-3) + 0.28 * hairs
    alpha = smoothstep(-0.05, 0.55, field) * smoothstep(-0.06, 0.10, along) * smoothstep(1.06, 0.86, along)
    hair = traits.hair_colour * 0.62
    pale = 0.15 if traits.age > 0.75 else 0.0
    return mix(albedo, hair + pale * (0.7 - hair), 0.86 * alpha), gloss


def _paint_nostrils(
    albedo: np.ndarray, gloss: np.ndarray, traits: Traits, head: Head, rng: np.random.Generator
) -> Painted:
    ax = np.abs(head.x)
    bottom = traits.nose_length - 0.010
    tilt = bottom + 0.25 * (ax - 0.04)
    hole = smoothstep(1.15, 0.55, np.hypot((ax - 0.48 * traits.nose_width) / 0.024, (head.y - tilt) / 0.0105))
    below = bump(head.x, head.y, (0, bottom + 0.018), (0.6 * traits.nose_width, 0.014))
    rim = np.hypot((ax - traits.nose_width + 0.03) / 0.9, head.y - bottom + 0.028) - 0.042
    wing = ridge(rim, 0.006) * smoothstep(traits.nose_width - 0.02, traits.nose_width + 0.004, ax)
    skin = traits.skin
    albedo = mix(albedo, skin * colour(0.66, 0.50, 0.47), 0.35 * np.maximum(below, wing))
    return mix(albedo, skin * colour(0.22, 0.12, 0.10), 0.9 * hole), gloss


def _paint_mouth(
    albedo: np.ndarray, gloss: np.ndarray, traits: Traits, head: Head, rng: np.random.Generator
) -> Painted:
    wide = traits.mouth_width * (1 + 0.22 * max(traits.smile, 0) + 0.04 * traits.mouth_open)
    u = head.x / wide
    arch = np.clip(1 - u**2, 0, None)
    # Corners rise with a smile, so the whole mouth bends with u².
    y = head.y - mouth_height(traits) + (0.065 * traits.smile) * (u**2 - 0.25)
    full = traits.lip_thickness
    gap = 0.052 * traits.mouth_open
    bow = 0.006 * np.cos(np.clip(np.abs(u) * 9, 0, np.pi)) * full
    upper_out = -(0.040 * full * (1 - 0.25 * traits.mouth_open)) * arch**0.75 + bow * arch - 0.25 * gap * arch
    upper_in = -0.35 * gap * arch**0.8 + 0.004 * np.cos(u * 5) * arch
    lower_in = 0.90 * gap * arch**0.8 + 0.004 * np.cos(u * 5) * arch
    lower_out = (0.052 * full + 0.95 * gap) * arch**0.62
    lips = coverage(np.minimum(y - upper_out, lower_out - y))
    rows = streak_noise(rng, head.x, y, strands=40, length=0.4)
    lip = traits.lip * (0.86 + 0.14 * smoothstep(-0.02, 0.03, y) + 0.05 * rows)[..., None]
    soft = 0.82 if traits.makeup < 0.3 else 0.95
    albedo = mix(albedo, np.clip(lip, 0, 1), soft * lips)
    gloss = gloss + lips * (0.25 + 0.5 * traits.makeup) * smoothstep(-0.01, 0.03, y)
    if gap > 0.004:
        hollow = coverage(np.minimum(y - upper_in, lower_in - y))
        teeth_edge = upper_in + (0.036 + 0.008 * np.cos(u * 2)) * smoothstep(0.0, 0.02, gap) * arch**0.3
        slits = 1 - 0.16 * smoothstep(0.8, 1.0, np.abs(np.cos(head.x / 0.030 * np.pi / 2)))
        ivory = colour(0.93, 0.90, 0.83) * (slits * (1 - 0.45 * u**2))[..., None]
        cavity = colour(0.20, 0.05, 0.06) + 0.22 * smoothstep(0.4, 0.95, (y - upper_in) / gap)[..., None] * (
            colour(1.0, 0.4, 0.4)
        )
        inner = mix(cavity, ivory, coverage(teeth_edge - y))
        albedo = mix(albedo, inner * (0.65 + 0.35 * smoothstep(0, 0.012, y - upper_in))[..., None], hollow)
        gloss = gloss * (1 - 0.7 * hollow)
    else:
        line = smoothstep(1.0, 0.25, np.abs(y - upper_in) / 0.010) * smoothstep(1.06, 0.9, np.abs(u))
        albedo = mix(albedo, traits.lip * colour(0.36, 0.25, 0.25), 0.85 * line)
    corner = bump(np.abs(u), y, (1.0, 0.0), (0.07, 0.012))
    return mix(albedo, traits.skin * colour(0.5, 0.36, 0.34), 0.6 * corner), gloss


def _paint_beard(
    albedo: np.ndarray, gloss: np.ndarray, traits: Traits, head: Head, rng: np.random.Generator
) -> Painted:
    ax, mouth_y = np.abs(head.x), mouth_height(traits)
    edge = mouth_y - 0.11 - 1.6 * np.clip(ax - 0.26, 0, None) + 0.16 * smoothstep(0.30, 0.14, ax)
    jaw = smoothstep(-0.03, 0.06, head.y - edge)
    above = smoothstep(0.03, 0.0, np.abs(head.y - mouth_y + 0.085 - 0.12 * ax) - 0.030) * smoothstep(0.24, 0.18, ax)
    chin = smoothstep(0.21, 0.14, ax) * smoothstep(mouth_y + 0.075, mouth_y + 0.12, head.y)
    chin = np.maximum(chin, smoothstep(0.035, 0.015, np.abs(ax - 0.20)) * smoothstep(mouth_y - 0.06, mouth_y, head.y))
    zone = {
        "stubble": np.maximum(jaw, above),
        "full": np.maximum(jaw, above),
        "goatee": np.maximum(chin, above),
        "moustache": above,
    }[traits.beard]
    hairs = streak_noise(rng, head.x + 0.25 * head.y, head.y, strands=55, length=0.25)
    specks = value_noise(rng, albedo.shape[0], cells=albedo.shape[0] / 3, octaves=1)
    hair = traits.hair_colour * 0.75
    if traits.beard == "stubble":
        alpha = zone * np.clip(0.36 + 0.07 * specks + 0.04 * hairs, 0, 0.6)
        return mix(albedo, 0.7 * hair + 0.3 * traits.skin * 0.5, alpha), gloss * (1 - 0.4 * zone)
    alpha = smoothstep(0.25, 0.8, zone + 0.10 * specks + 0.06 * hairs) * 0.95
    textured = np.clip(hair * (1 + 0.30 * hairs + 0.15 * specks)[..., None], 0, 1)
    return mix(albedo, textured, alpha), gloss * (1 - 0.8 * alpha)
