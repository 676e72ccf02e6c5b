"""Simulated restorers: blur, over-sharpening, repainting and invented texture, at no cost.

A detector trained on the few restorers of the pool learns their signatures. All that these have in common is that they
depart from the statistics of natural images, by losing detail or by adding it, and that carries over to unknown ones.
Pictures are [H, W, 3] float32 in [0, 1]; everything is drawn from the generator alone.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from data.pool.simulated_filters import LOSING, REPAINTING, SHARPENING, Artifact, Picture, Rng
from data.pool.simulated_textures import INVENTING
from shared.vision.images import on_8_bits

LOSING_SHARE = 0.35


def simulated_restoration(picture: Picture, rng: Rng, *, restored: Picture | None = None) -> Picture:
    """Returns `picture` as a restorer that was never trained might return it, on 8-bit levels.

    Three families: detail is lost, repainted or invented. A third of the last two ends with as much fine detail as the
    truth has, within a factor of two, so that the amount of detail says nothing and its appearance has to. Only a third:
    real restorers rarely bring grain back, and a detector that could never use its absence did worse on them.
    `restored` is a real restorer's answer for the picture. The last two families then start from it, so that invented
    texture lies on real losses: painted edges where the truth had texture, as published networks draw them.
    """
    losing = restored is None
    family, result = rng.uniform(0.0 if losing else LOSING_SHARE, 1.0), picture if losing else restored
    if family < LOSING_SHARE:
        result = _pick(LOSING, rng)(result, rng)
        result = _pick(SHARPENING, rng)(result, rng) if rng.uniform() < 0.4 else result
    else:
        result = _pick(LOSING, rng)(result, rng) if losing and rng.uniform() < 0.6 else result
        result = _pick(REPAINTING if family < 0.8 else INVENTING, rng)(result, rng)
        for kinds, chance in ((REPAINTING, 0.25), (SHARPENING, 0.5), (INVENTING, 0.2)):
            result = _pick(kinds, rng)(result, rng) if rng.uniform() < chance else result
        if rng.uniform() < 0.35:
            result = _with_as_much_detail(result, picture, rng)
    if rng.uniform() < 0.3:  # subtle ones too: good restorers differ little
        result = picture + np.float32(rng.uniform(0.4, 0.9)) * (result - picture)
    return on_8_bits(result)


def recolour(rng: Rng) -> Callable[[Picture], Picture]:
    """Returns a change of white balance, exposure and tone that is the same for every picture."""
    gain = np.exp(rng.normal(0, 0.12, 3)).astype(np.float32)
    gain *= np.float32(np.exp(rng.uniform(-0.25, 0.1))) / gain.mean()
    gamma = np.float32(np.exp(rng.uniform(-0.35, 0.35)))
    return lambda picture: on_8_bits(np.clip(picture * gain, 0.0, 1.0) ** gamma)


def _with_as_much_detail(picture: Picture, model: Picture, rng: Rng) -> Picture:
    """Returns the picture with its detail scaled to the energy of the model's, times a factor between 1/2 and 2."""
    radius_px = rng.uniform(0.8, 2.0)
    low = cv2.GaussianBlur(picture, (0, 0), radius_px)
    energy = np.abs(picture - low).mean() + 1e-4
    wanted = np.abs(model - cv2.GaussianBlur(model, (0, 0), radius_px)).mean() * np.exp(rng.uniform(-0.7, 0.7))
    return low + np.float32(np.clip(wanted / energy, 0.3, 5.0)) * (picture - low)


def _pick(kinds: tuple[Artifact, ...], rng: Rng) -> Artifact:
    return kinds[int(rng.integers(len(kinds)))]
