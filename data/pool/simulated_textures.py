"""Detail that was never there: invented texture, other places' detail, sampler noise, lattices of network cells.

Pictures are [H, W, 3] float32, in [0, 1] on the way in; every kind draws its settings from the generator alone.
"""

from __future__ import annotations

import cv2
import numpy as np

from data.pool.simulated_filters import Artifact, Picture, Rng


def noise_texture(picture: Picture, rng: Rng) -> Picture:
    """Returns the picture with band-passed noise where it has contrast: invented grain, hair, weave."""
    height, width = picture.shape[:2]
    channels = 1 if rng.uniform() < 0.7 else 3
    noise = rng.standard_normal((height, width, channels)).astype(np.float32)
    if rng.uniform() < 0.5:
        noise = _streaks(noise, rng)
    fine = rng.uniform(0.4, 1.2)
    noise = cv2.GaussianBlur(noise, (0, 0), fine) - cv2.GaussianBlur(noise, (0, 0), fine * rng.uniform(1.3, 3.0))
    noise = noise.reshape(height, width, channels) / (noise.std() + 1e-6)
    return picture + np.float32(rng.uniform(0.005, 0.045)) * noise * _contrast(picture, rng)


def foreign_detail(picture: Picture, rng: Rng) -> Picture:
    """Returns the picture with the detail of another place in it: plausible texture that is not the truth."""
    height, width = picture.shape[:2]
    radius_px = rng.uniform(0.8, 3.0)
    low = cv2.GaussianBlur(picture, (0, 0), radius_px)
    shift = (int(rng.integers(-height // 2, height // 2)), int(rng.integers(-width // 2, width // 2)))
    detail = np.roll(picture - low, shift, (0, 1))
    if rng.uniform() < 0.5:
        detail = detail[:, ::-1]
    own = _contrast(picture, rng)
    gain = own / (_contrast(detail, rng, base=0.25)) if rng.uniform() < 0.5 else np.float32(1.0)
    return low + np.float32(rng.uniform(0.4, 1.1)) * detail * np.minimum(gain, 1.5)


def random_network(picture: Picture, rng: Rng) -> Picture:
    """Returns the picture plus the response of a small random convolutional network to its detail: a fingerprint."""
    hidden = int(rng.integers(4, 9))
    detail = picture - cv2.GaussianBlur(picture, (0, 0), rng.uniform(1.0, 3.0))
    grey = detail.mean(axis=2)
    features = [np.maximum(cv2.filter2D(grey, -1, _kernel(rng)), 0) for _ in range(hidden)]
    response = np.zeros_like(picture)
    for feature in features:
        response += cv2.filter2D(feature, -1, _kernel(rng))[..., None] * rng.normal(1, 0.3, 3).astype(np.float32)
    scale = rng.uniform(0.3, 1.2) * (grey.std() + 0.01) / (response.std() + 1e-6)
    return picture + np.float32(scale) * response


def speckle(picture: Picture, rng: Rng) -> Picture:
    """Returns the picture with coloured noise of 2 to 13 levels at every pixel: what a sampler with few steps leaves."""
    noise = rng.standard_normal(picture.shape).astype(np.float32)
    if rng.uniform() < 0.4:
        noise = cv2.GaussianBlur(noise, (0, 0), rng.uniform(0.4, 0.9))
    return picture + np.float32(rng.uniform(0.008, 0.05)) * noise / (noise.std() + 1e-6)


def checkerboard(picture: Picture, rng: Rng) -> Picture:
    """Returns the picture with a faint periodic pattern of 2, 4 or 8 px, as transposed convolutions leave."""
    period = int(rng.choice((2, 2, 4, 4, 8)))
    tile = rng.standard_normal((period, period, 1)).astype(np.float32)
    tile = (tile - tile.mean()) / (tile.std() + 1e-6)
    height, width = picture.shape[:2]
    pattern = np.tile(tile, (-(-height // period), -(-width // period), 1))[:height, :width]
    return picture + np.float32(rng.uniform(0.005, 0.03)) * pattern * _contrast(picture, rng)


def grid(picture: Picture, rng: Rng) -> Picture:
    """Returns the picture under one tile of 2, 4 or 8 px laid out evenly, flat ground included: a latent grid shows."""
    period = int(rng.choice((2, 4, 4, 4, 8)))
    tile = rng.standard_normal((period, period, 1 if rng.uniform() < 0.5 else 3))
    if period > 2 and rng.uniform() < 0.5:  # waves of one cell, without finer edges inside it
        slow = np.abs(np.fft.fftfreq(period)) < 0.3
        tile = np.fft.ifft2(np.fft.fft2(tile, axes=(0, 1)) * (slow[:, None] & slow)[..., None], axes=(0, 1)).real
    tile = (tile - tile.mean()) / (tile.std() + 1e-6)
    height, width = picture.shape[:2]
    pattern = np.tile(tile, (-(-height // period), -(-width // period), 1))[:height, :width].astype(np.float32)
    return picture + np.float32(np.exp(rng.uniform(np.log(0.004), np.log(0.03)))) * pattern


INVENTING: tuple[Artifact, ...] = (noise_texture, foreign_detail, random_network, checkerboard, grid, speckle)


def _contrast(picture: Picture, rng: Rng, *, base: float | None = None) -> Picture:
    # [H, W, 1], about 1 at ordinary contrast; the base keeps some of it on flat ground.
    grey = picture.mean(axis=2) if picture.ndim == 3 else picture
    deviation = cv2.GaussianBlur(np.abs(grey - cv2.GaussianBlur(grey, (0, 0), 2.0)), (0, 0), 3.0) / np.float32(0.03)
    base = rng.uniform(0.1, 1.0) if base is None else base
    return (np.float32(base) + np.minimum(deviation, 3.0))[..., None]


def _streaks(noise: Picture, rng: Rng) -> Picture:
    length = int(rng.integers(3, 10))
    kernel = np.zeros((2 * length + 1,) * 2, np.float32)
    angle = rng.uniform(0, np.pi)
    reach = np.round(length * np.array([np.cos(angle), np.sin(angle)])).astype(int)
    cv2.line(kernel, tuple(map(int, length - reach)), tuple(map(int, length + reach)), 1.0)
    return cv2.filter2D(noise, -1, kernel / kernel.sum()).reshape(noise.shape)


def _kernel(rng: Rng) -> np.ndarray:
    side = int(rng.choice((3, 5)))
    kernel = rng.standard_normal((side, side)).astype(np.float32)
    return (kernel - kernel.mean()) / np.abs(kernel).sum()
