"""What makes one procedural person: every number of a portrait, drawn once and independent of its size."""

from __future__ import annotations

import copy
from typing import Any, Literal

import numpy as np

from data.procedural.drawing import colour, hue_ramp

HairStyle = Literal["bald", "buzz", "short", "quiff", "bob", "straight", "wavy", "curly", "tied", "beanie", "scarf"]
BeardStyle = Literal["none", "stubble", "goatee", "full", "moustache"]

# sRGB, from the palest to the darkest skin.
SKINS = np.array(
    [
        (248, 222, 205), (240, 206, 182), (230, 188, 158), (214, 168, 134), (194, 146, 110),
        (168, 120, 86), (140, 96, 68), (112, 74, 52), (86, 57, 42),
    ]
) / 255.0  # fmt: skip
HAIRS = {
    "black": (24, 20, 20), "dark brown": (48, 34, 27), "brown": (84, 57, 38), "light brown": (126, 92, 62),
    "blond": (196, 160, 104), "platinum": (226, 208, 172), "red": (150, 72, 36), "auburn": (98, 46, 32),
    "grey": (138, 136, 134), "white": (214, 212, 208),
}  # fmt: skip
DYED = ((70, 90, 170), (190, 80, 130), (60, 140, 130), (120, 70, 150))
LIPSTICKS = np.array([(0.72, 0.14, 0.18), (0.78, 0.34, 0.38), (0.5, 0.12, 0.2), (0.8, 0.4, 0.34)])
IRISES = ((58, 36, 22), (84, 54, 30), (110, 80, 44), (92, 104, 66), (88, 124, 150), (112, 134, 148), (46, 28, 20))


class Traits:
    """One person, one pose, one light. Lengths in half picture widths, angles in radians, colours sRGB in [0, 1]."""

    def __init__(self, rng: np.random.Generator) -> None:
        """Draws a random person."""
        self.feminine = feminine = float(np.clip(rng.beta(0.5, 0.5), 0, 1))  # 0 … 1, and between
        self.age = age = float(rng.beta(1.2, 2.0))  # 0 twenty … 1 eighty
        tone = float(rng.uniform(0, len(SKINS) - 1))
        skin = _between(SKINS, tone) * (1 + rng.normal(0, 0.015, 3))
        self.hair, self.beard = _hair_style(rng, feminine, age), _beard(rng, feminine)
        self.hair_colour = _hair_colour(rng, tone, age)
        lip = np.clip(skin * (0.86, 0.62, 0.62) + (0.04, 0, 0.01), 0, 1)
        self.makeup = makeup = float(feminine > 0.55) * float(rng.beta(1, 1.3))
        lipstick = LIPSTICKS[rng.integers(4)]
        lip = lip + (lipstick - lip) * 0.7 * makeup
        azimuth, height = rng.normal(0, 0.8), rng.uniform(0.1, 0.95)
        light = np.array([np.sin(azimuth) * np.cos(height), -np.sin(height), np.cos(azimuth) * np.cos(height)])
        light[2] = max(light[2], 0.25)
        self.smile = smile = float(np.clip(rng.normal(0.35, 0.4), -0.2, 1))
        self.backdrop_colours = tuple(_colour(0.75 * _hsv(rng) + 0.25 * rng.uniform(0.1, 0.9)) for _ in range(3))
        self.yaw = float(np.clip(rng.normal(0, 0.26), -0.6, 0.6))
        self.pitch = float(np.clip(rng.normal(0, 0.1), -0.25, 0.25))
        self.roll = float(np.clip(rng.normal(0, 0.1), -0.3, 0.3))
        self.centre = (float(rng.normal(0, 0.03)), float(rng.normal(0.11, 0.03)))
        self.scale = float(rng.uniform(1.05, 1.25))
        self.face_width = float(rng.normal(0.535, 0.02))
        self.jaw_width = float(rng.normal(0.435, 0.022) - 0.035 * feminine)
        self.jaw_length = float(rng.normal(0.60, 0.025) - 0.02 * feminine)
        self.cheek = float(rng.uniform(0.3, 1.2))
        self.skin = _colour(skin)
        self.ruddiness = float(rng.uniform(0.2, 1.0))
        self.freckles = float(max(0.0, rng.normal(-0.5, 0.6)) * (tone < 3))
        self.eye_gap = float(rng.normal(0.212, 0.008))
        self.eye_width = float(rng.normal(0.105, 0.006))
        self.eye_open = float(
            np.clip(rng.normal(0.038, 0.006) + 0.005 * feminine - 0.012 * max(smile, 0), 0.018, 0.055)
        )
        self.eye_tilt = float(rng.normal(0.06, 0.07))
        self.gaze = (float(rng.normal(0, 0.012)), float(rng.normal(0, 0.006)))
        self.iris = _colour(np.array(IRISES[rng.choice(len(IRISES), p=_iris_weights(tone))]) / 255)
        self.brow_thickness = float(rng.normal(0.033, 0.005) - 0.012 * feminine)
        self.brow_arch = float(rng.normal(0.028, 0.015) + 0.015 * feminine)
        self.brow_lift = float(rng.normal(0.0, 0.015) + 0.012 * feminine)
        self.nose_width = float(rng.normal(0.092, 0.01) + 0.003 * tone - 0.008 * feminine)
        self.nose_length = float(rng.normal(0.285, 0.018))
        self.nose_height = float(rng.normal(0.9, 0.13))
        self.mouth_width = float(rng.normal(0.185, 0.014))
        self.lip_thickness = float(np.clip(rng.normal(0.9, 0.18) + 0.2 * feminine + 0.03 * tone - 0.35 * age, 0.4, 1.5))
        self.mouth_open = _mouth_open(rng, smile)
        self.lip = _colour(lip)
        self.hair_volume = float(rng.uniform(0.0, 1.0))
        self.hair_length = float(rng.uniform(0.0, 1.0))
        self.hairline = float(rng.normal(0.0, 0.03) - 0.12 * age * (1 - feminine) * rng.random())
        self.parting = float(rng.normal(0, 0.16))
        self.fringe = bool(rng.random() < 0.3 * feminine + 0.08)
        # 0: none, else the roundness of their rims.
        self.glasses = float(rng.uniform(0.2, 1.0)) if rng.random() < 0.14 + 0.15 * age else 0.0
        self.earrings = bool(rng.random() < 0.4 * feminine)
        self.cloth = _colour(_hsv(rng))
        self.cloth_accent = _colour(_hsv(rng))
        self.collar = ("round", "v", "shirt")[rng.integers(3)]
        # A unit vector towards the key light: x to the right, y down, z to the viewer.
        self.light = tuple(float(v) for v in light / np.linalg.norm(light))
        self.light_colour = _colour(np.array([1.0, 0.96, 0.9]) + rng.normal(0, 1) * np.array([0.06, 0.01, -0.09]))
        self.ambient = float(rng.uniform(0.22, 0.55))
        self.exposure = float(rng.uniform(0.8, 1.08) + 0.05 * tone)
        self.backdrop = ("plain", "gradient", "bokeh", "foliage", "rooms")[rng.integers(5)]

    def but(self, **changes: Any) -> Traits:
        """Returns the same person with other values of some traits."""
        if unknown := changes.keys() - vars(self).keys():
            raise AttributeError(f"a person has no {', '.join(sorted(unknown))}")
        other = copy.copy(self)
        vars(other).update(changes)
        return other


def _hair_style(rng: np.random.Generator, feminine: float, age: float) -> HairStyle:
    weights: dict[HairStyle, float] = {
        "bald": 0.02 + 0.25 * age * (1 - feminine),
        "buzz": 0.12 * (1 - feminine),
        "short": 0.12 + 0.5 * (1 - feminine),
        "quiff": 0.03 + 0.25 * (1 - feminine),
        "bob": 0.02 + 0.2 * feminine,
        "straight": 0.02 + 0.28 * feminine,
        "wavy": 0.03 + 0.28 * feminine,
        "curly": 0.12,
        "tied": 0.01 + 0.15 * feminine,
        "beanie": 0.04,
        "scarf": 0.04 * feminine,
    }
    names = list(weights)
    chances = np.array([weights[name] for name in names])
    return names[rng.choice(len(names), p=chances / chances.sum())]


def _beard(rng: np.random.Generator, feminine: float) -> BeardStyle:
    if feminine > 0.4 or rng.random() < 0.4:
        return "none"
    return ("stubble", "goatee", "full", "moustache")[rng.choice(4, p=(0.45, 0.15, 0.3, 0.1))]


def _hair_colour(rng: np.random.Generator, tone: float, age: float) -> np.ndarray:
    if rng.random() < 0.03:
        return _colour(np.array(DYED[rng.integers(len(DYED))]) / 255)
    names = list(HAIRS)[:8]
    fair = np.clip(1.2 - tone / 4, 0.02, 1)
    weights = np.array([1.4, 1.2, 0.9 * fair + 0.1, 0.7 * fair, 0.8 * fair, 0.3 * fair, 0.35 * fair, 0.35 * fair])
    colour = np.array(HAIRS[names[rng.choice(8, p=weights / weights.sum())]]) / 255
    grey = np.array(HAIRS["white" if age > 0.6 else "grey"]) / 255
    colour = colour + (grey - colour) * np.clip(2.2 * (age - 0.42) + rng.normal(0, 0.1), 0, 0.95)
    return _colour(colour * (1 + rng.normal(0, 0.04, 3)))


def _mouth_open(rng: np.random.Generator, smile: float) -> float:
    if smile > 0.25 and rng.random() < 0.6:
        return float(rng.uniform(0.3, 1.0))
    return float(max(0.0, rng.normal(-0.3, 0.3)))


def _iris_weights(tone: float) -> np.ndarray:
    pale = np.clip(1 - tone / 3.5, 0, 1)
    weights = np.array([1.0, 1.0, 0.6, 0.5 * pale, 0.9 * pale, 0.6 * pale, 0.8])
    return weights / weights.sum()


def _between(table: np.ndarray, position: float) -> np.ndarray:
    low = min(int(position), len(table) - 2)
    return table[low] + (table[low + 1] - table[low]) * (position - low)


def _hsv(rng: np.random.Generator) -> np.ndarray:
    """A clothing-like colour: any hue, mostly subdued, any brightness."""
    hue, saturation, value = rng.random(), rng.beta(1.2, 2.2), rng.uniform(0.08, 0.95)
    return value * (1 - saturation + saturation * hue_ramp(hue))


def _colour(values: np.ndarray) -> np.ndarray:
    return colour(*np.clip(values, 0, 1))
