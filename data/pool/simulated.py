"""Made-up restorers: pictures get blurred, over-sharpened, repainted and furnished with invented texture, at no cost.

A detector trained on the pool's few restorers learns their signatures. These have hardly anything in common but that
they leave natural image statistics, in both directions, and that is what carries over to restorers never met.
Pictures are [H, W, 3] float32 in [0, 1]; every kind draws from its generator alone.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from shared.vision.images import on_8_bits

Picture = np.ndarray
Rng = np.random.Generator
_RESIZE = (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4, cv2.INTER_AREA)


def resample(picture: Picture, rng: Rng) -> Picture:
    """Returns the picture after a trip to 1/1.5 to 1/4.5 of its size, with noise or JPEG on the way."""
    height, width = picture.shape[:2]
    factor = rng.uniform(1.5, 4.5)
    small = (max(4, round(width / factor)), max(4, round(height / factor)))
    low = cv2.resize(picture, small, interpolation=(cv2.INTER_AREA, cv2.INTER_CUBIC)[rng.integers(2)])
    if rng.uniform() < 0.3:
        low = low + rng.normal(0, rng.uniform(0.005, 0.06), low.shape).astype(np.float32)
    if rng.uniform() < 0.3:
        low = jpeg(low, rng)
    return cv2.resize(low, (width, height), interpolation=_RESIZE[rng.integers(3)])


def blur(picture: Picture, rng: Rng) -> Picture:
    """Returns the picture under an anisotropic Gaussian of 0.6 to 3 px."""
    return cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.6, 3.0), sigmaY=rng.uniform(0.6, 3.0))


def sharpen(picture: Picture, rng: Rng) -> Picture:
    """Returns the picture with its detail above 0.5 to 2.5 px amplified by 0.5 to 3: halos and clipped edges."""
    detail = picture - cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.5, 2.5))
    return picture + np.float32(rng.uniform(0.5, 3.0)) * detail


def shock(picture: Picture, rng: Rng) -> Picture:
    """Returns the picture after a shock filter: dilation where it is concave, erosion where convex. GAN-crisp edges."""
    kernel = np.ones((3, 3), np.uint8)
    strength = np.float32(rng.uniform(0.3, 0.9))
    smooth_px = rng.uniform(0.7, 1.6)
    for _ in range(int(rng.integers(1, 4))):
        curvature = cv2.Laplacian(cv2.GaussianBlur(picture, (0, 0), smooth_px), cv2.CV_32F)
        target = np.where(curvature < 0, cv2.dilate(picture, kernel), cv2.erode(picture, kernel))
        weight = np.minimum(np.abs(curvature) * 20, 1.0) * strength
        picture = picture + weight * (target - picture)
    return picture


def median(picture: Picture, rng: Rng) -> Picture:
    """Returns the picture under one or two 3×3 or 5×5 medians: patches of flat paint."""
    size = int(rng.choice((3, 5)))
    for _ in range(int(rng.integers(1, 3))):
        picture = cv2.medianBlur(np.ascontiguousarray(picture), size)
    return picture


def bilateral(picture: Picture, rng: Rng) -> Picture:
    """Returns the picture smoothed inside its edges, as denoisers do."""
    return cv2.bilateralFilter(np.ascontiguousarray(picture), 7, rng.uniform(0.05, 0.25), rng.uniform(1.5, 4.0))


def kuwahara(picture: Picture, rng: Rng) -> Picture:
    """Returns the picture repainted: each pixel takes the mean of the flattest of the four squares around it."""
    side = int(rng.integers(2, 5))
    grey = picture.mean(axis=2)
    mean, variance = (
        cv2.blur(picture, (side, side)),
        cv2.blur(grey * grey, (side, side)) - cv2.blur(grey, (side, side)) ** 2,
    )
    shifts = [(dy, dx) for dy in (-side // 2, side // 2) for dx in (-side // 2, side // 2)]
    variances = np.stack([np.roll(variance, shift, (0, 1)) for shift in shifts])
    means = np.stack([np.roll(mean, shift, (0, 1)) for shift in shifts])
    flattest = variances.argmin(axis=0)[None, ..., None]
    return np.take_along_axis(means, flattest, axis=0)[0]


def paint(picture: Picture, rng: Rng) -> Picture:
    """Returns the picture under an edge-preserving smoother of 3 to 30 px: flat strokes between crisp borders."""
    reach_px = float(np.exp(rng.uniform(np.log(3.0), np.log(30.0))))
    levels = np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    painted = cv2.edgePreservingFilter(
        levels, flags=cv2.RECURS_FILTER, sigma_s=reach_px, sigma_r=rng.uniform(0.15, 0.6)
    )
    return painted.astype(np.float32) / np.float32(255.0)


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


def ringing(picture: Picture, rng: Rng) -> Picture:
    """Returns the picture under an ideal low-pass of 0.3 to 0.8 of the band: ripples beside edges."""
    cutoff = rng.uniform(0.3, 0.8) * np.pi
    x = np.arange(-6, 7)
    kernel = np.sinc(cutoff * x / np.pi) * cutoff / np.pi
    kernel = (kernel / kernel.sum()).astype(np.float32)
    return cv2.sepFilter2D(picture, -1, kernel, kernel)


def speckle(picture: Picture, rng: Rng) -> Picture:
    """Returns the picture with coloured noise of 2 to 13 levels at every pixel: what a sampler with few steps leaves."""
    noise = rng.standard_normal(picture.shape).astype(np.float32)
    if rng.uniform() < 0.4:
        noise = cv2.GaussianBlur(noise, (0, 0), rng.uniform(0.4, 0.9))
    return picture + np.float32(rng.uniform(0.008, 0.05)) * noise / (noise.std() + 1e-6)


def jpeg(picture: Picture, rng: Rng) -> Picture:
    """Returns the picture after JPEG at quality 10 to 50."""
    return _jpeg(picture, int(rng.integers(10, 51)))


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


def wobble(picture: Picture, rng: Rng) -> Picture:
    """Returns the picture bent by a smooth random field of 0.5 to 2.5 px: wrong letters, wrong faces."""
    height, width = picture.shape[:2]
    radius_px = rng.uniform(2.0, 6.0)
    field = [cv2.GaussianBlur(rng.standard_normal((height, width)).astype(np.float32), (0, 0), radius_px) for _ in "xy"]
    dx, dy = (np.float32(rng.uniform(0.5, 2.5)) * f / (f.std() + 1e-6) for f in field)
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return cv2.remap(picture, columns + dx, rows + dy, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)


def posterise(picture: Picture, rng: Rng) -> Picture:
    """Returns the picture with its local contrast pushed through a random tone curve: wrong shading."""
    radius_px = rng.uniform(2.0, 8.0)
    low = cv2.GaussianBlur(picture, (0, 0), radius_px)
    detail = picture - low
    return low * np.float32(rng.uniform(0.9, 1.1)) + np.sign(detail) * np.abs(detail) ** np.float32(
        rng.uniform(0.75, 1.3)
    )


LOSING: tuple[Callable[[Picture, Rng], Picture], ...] = (resample, resample, blur, ringing, jpeg)
REPAINTING = (median, bilateral, paint, paint, kuwahara, wobble, posterise)
SHARPENING = (sharpen, shock, shock)
INVENTING = (noise_texture, foreign_detail, random_network, checkerboard, grid, speckle)
LOSING_SHARE = 0.35


def simulated_restoration(picture: Picture, rng: Rng, *, restored: Picture | None = None) -> Picture:
    """Returns `picture` as a restorer that was never trained might give it back, on 8-bit levels.

    Three families: one loses detail, one repaints it crisply, one invents it. Some end with the truth's own amount of
    fine detail, give or take a factor of two: how much there is then says nothing, and what it looks like has to. Not
    most of them: real restorers rarely bring the grain back, and a detector that may not use that does worse on them.
    restored: what a real restorer made of the picture. The last two families then go on from that, from real losses in
    place of made-up ones: painted edges where the truth had texture, as published networks draw them.
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


def _jpeg(picture: Picture, quality: int) -> Picture:
    levels = np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    _, buffer = cv2.imencode(".jpg", levels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(buffer, cv2.IMREAD_COLOR)[..., ::-1].astype(np.float32) / np.float32(255.0)


def _with_as_much_detail(picture: Picture, model: Picture, rng: Rng) -> Picture:
    """Returns the picture with its detail scaled to the energy of the model's, times a factor between 1/2 and 2."""
    radius_px = rng.uniform(0.8, 2.0)
    low = cv2.GaussianBlur(picture, (0, 0), radius_px)
    energy = np.abs(picture - low).mean() + 1e-4
    wanted = np.abs(model - cv2.GaussianBlur(model, (0, 0), radius_px)).mean() * np.exp(rng.uniform(-0.7, 0.7))
    return low + np.float32(np.clip(wanted / energy, 0.3, 5.0)) * (picture - low)


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


def _pick(kinds: tuple[Callable[[Picture, Rng], Picture], ...], rng: Rng) -> Callable[[Picture, Rng], Picture]:
    return kinds[int(rng.integers(len(kinds)))]
