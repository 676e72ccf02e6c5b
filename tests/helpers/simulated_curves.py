"""Curves of made-up policies over steps and η, whose answer is known."""

from __future__ import annotations

import numpy as np

from rl_finetune.evidence.curve import Curve, Plane, curve_settings
from shared.diffusion.sampler import SamplerSpec

PLANE = Plane("psnr", "lpips_distance", {"psnr": True, "lpips_distance": False})
PICTURES = 32


def effort_of(setting: SamplerSpec) -> float:
    """Returns how much a sampler invents: 0 with one step, 1 with eight noisy ones."""
    return float(np.log2(setting.steps) / 3 * (0.5 + 0.5 * setting.eta))


def reached(effort: float) -> np.ndarray:
    """Returns (PSNR, LPIPS) that a base policy reaches: inventing buys LPIPS with PSNR, ever more dearly."""
    return np.array([23.4 - 0.6 * effort**2, 0.53 - 0.03 * effort])


def curve_of(
    rng: np.random.Generator,
    difficulty: np.ndarray,
    *,
    shift: tuple[float, float] = (0.0, 0.0),
    effort: float = 1.0,
    luck: float = 0.15,
) -> Curve:
    """Returns a policy's values: a picture's own difficulty, what the sampler reaches, and luck of its own.

    difficulty: [n, 2] in dB and LPIPS; `shift` moves the whole curve; `effort` scales what every sampler invents, so
    that another value than 1 slides along the curve.
    """
    values = {}
    for setting in curve_settings():
        noise = rng.standard_t(5, (len(difficulty), 2)) * np.array([luck, luck / 20])
        both = reached(effort * effort_of(setting)) + np.array(shift) + difficulty + noise
        values[setting] = {"psnr": both[:, 0], "lpips_distance": both[:, 1]}
    return Curve(values)


def difficulties(rng: np.random.Generator) -> np.ndarray:
    """Returns [n, 2] whose spreads are 4 dB and .1; what is hard in one is hard in the other."""
    common, own = rng.standard_normal((PICTURES, 1)), rng.standard_normal((PICTURES, 2))
    return np.array([4.0, -0.1]) * (0.8 * common + 0.6 * own)
