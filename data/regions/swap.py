"""syn from gt and sr: the region swap, and the controls that teach a reward model to ignore seams."""

from __future__ import annotations

import io
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

from shared.vision.images import to_uint8

CONTROL_NONE = ""


def swap_region(gt: np.ndarray, other: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns syn = mask·other + (1 − mask)·gt, [H, W, 3] uint8, from uint8 pictures and an [H, W] uint8 mask.

    Where the mask is 0, syn equals gt bit for bit; where it is 255, it equals `other` bit for bit.
    """
    weight = mask[..., None].astype(np.int32)
    mixed = weight * other.astype(np.int32) + (255 - weight) * gt.astype(np.int32)
    return ((mixed + 127) // 255).astype(np.uint8)  # 255·g + 127 over 255 is g again


def draw_control(gt: np.ndarray, rng: np.random.Generator) -> tuple[str, np.ndarray]:
    """Returns (kind, a harmless variant of gt): uint8 [H, W, 3], different in its bytes and not to the eye."""
    kind = sorted(CONTROLS)[int(rng.integers(len(CONTROLS)))]
    return kind, CONTROLS[kind](gt, rng)


def reencoded(gt: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns gt after one JPEG at quality 90 to 98, full chroma."""
    buffer = io.BytesIO()
    Image.fromarray(gt).save(buffer, format="JPEG", quality=int(rng.integers(90, 99)), subsampling=0)
    return np.asarray(Image.open(buffer).convert("RGB"))


def shifted(gt: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns gt moved by up to 0.4 pixels with a Lanczos kernel, which keeps its sharpness."""
    dx, dy = rng.uniform(-0.4, 0.4, 2)
    matrix = np.array([[1, 0, dx], [0, 1, dy]], np.float64)
    return cv2.warpAffine(gt, matrix, gt.shape[1::-1], flags=cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REPLICATE)


def recoloured(gt: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns gt with each channel's contrast changed by up to 2 % around its mean, so its mean colour is matched."""
    picture = gt.astype(np.float32) / 255.0
    mean = picture.mean(axis=(0, 1))
    return to_uint8(mean + (picture - mean) * rng.uniform(0.98, 1.02, 3).astype(np.float32))


CONTROLS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "reencoded": reencoded,
    "shifted": shifted,
    "recoloured": recoloured,
}
