"""Distance maps between two pictures: one of pixels, and one of features, which sees lost and invented texture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from shared.app.errors import UserError

GRADIENTS = "gradients"
BATCH_PIXELS = 2**21  # of pictures that go through a backbone together
# What a window needs around it to be described as it is within its picture, and the grid on which it begins. Oriented
# gradients see 33 pixels; deep features see further, but little of that counts.
GRADIENT_REACH_PX, BACKBONE_REACH_PX = (40, 4), (64, 32)
Features = list[Any]  # one array or tensor per scale


class FeatureDistance(Protocol):
    """Compares two pictures in feature space; features computed once serve every comparison."""

    peak: float  # the largest distance possible: raw maps are stored as fractions of it

    def describe(self, pictures: Sequence[np.ndarray]) -> list[Features]:
        """Returns the features of each [H, W, 3] float32 picture in [0, 1]."""
        ...

    def distance(self, first: Features, second: Features, shape: tuple[int, int]) -> np.ndarray:
        """Returns the [H, W] float32 distance in [0, peak] between the features of two pictures of `shape`."""
        ...


def pixel_distance(first: np.ndarray, second: np.ndarray, *, blur_px: float) -> np.ndarray:
    """Returns |first − second| averaged over RGB and over a Gaussian window of `blur_px`, [H, W] float32 in [0, 1].

    The bare difference changes sign many times across one defect, and is zero wherever it does; its local mean is not.
    """
    difference = np.abs(first - second).mean(axis=2, dtype=np.float32)
    return cv2.GaussianBlur(difference, (0, 0), blur_px) if blur_px > 0 else difference


class GradientDistance:
    """Gradient energy in four directions at three scales: large where texture was lost, invented, or turned.

    Per scale and pixel the features are the window means of |∇·u| over four directions u; their distance is
    ‖a − b‖ / (‖a‖ + ‖b‖ + floor), so that it compares contrast with contrast and stays near zero on flat ground.
    """

    peak = 1.0

    def __init__(self, *, scales: tuple[int, ...] = (1, 2, 4), window_px: float = 1.5, floor: float = 0.04) -> None:
        self.scales = scales
        self.window_px = window_px
        self.floor = floor

    def describe(self, pictures: Sequence[np.ndarray]) -> list[Features]:
        return [self._describe(picture) for picture in pictures]

    def _describe(self, picture: np.ndarray) -> Features:
        grey = picture @ np.array([0.299, 0.587, 0.114], np.float32)
        described = []
        for scale in self.scales:
            size = (max(1, grey.shape[1] // scale), max(1, grey.shape[0] // scale))
            level = cv2.resize(grey, size, interpolation=cv2.INTER_AREA) if scale > 1 else grey
            dx = cv2.Scharr(level, cv2.CV_32F, 1, 0, scale=1 / 32)
            dy = cv2.Scharr(level, cv2.CV_32F, 0, 1, scale=1 / 32)
            half = np.float32(np.sqrt(0.5))
            energy = np.abs(np.stack([dx, half * (dx + dy), dy, half * (dx - dy)], axis=-1))
            described.append(cv2.GaussianBlur(energy, (0, 0), self.window_px))
        return described

    def distance(self, first: Features, second: Features, shape: tuple[int, int]) -> np.ndarray:
        total = np.zeros(shape, np.float32)
        for a, b in zip(first, second, strict=True):
            unlike = _norm(a - b) / (_norm(a) + _norm(b) + np.float32(self.floor))
            total += cv2.resize(unlike, shape[::-1], interpolation=cv2.INTER_LINEAR)
        return total / np.float32(len(self.scales))


class BackboneDistance:
    """Cosine distance between the feature maps of a timm backbone, e.g. DINOv3, averaged over its levels.

    Features stay on the device that computed them; pictures of one size go through the network together.
    """

    peak = 2.0

    def __init__(self, name: str, *, pretrained: bool, input_scale: float = 1.0, device: str = "cpu") -> None:
        import timm  # only this backend needs it

        try:
            self.net = timm.create_model(name, pretrained=pretrained, features_only=True).eval()
        except Exception as error:  # unknown names, missing networks and gated weights each raise their own kind
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"targets.features: timm gives no backbone {name!r} ({reason[:200]})") from None
        self.net.requires_grad_(False).to(device)
        self.input_scale, self.device = input_scale, device
        self.stride = max(self.net.feature_info.reduction())
        settings = self.net.pretrained_cfg
        self.mean = torch.tensor(settings["mean"], device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(settings["std"], device=device).view(1, 3, 1, 1)

    @torch.no_grad()
    def describe(self, pictures: Sequence[np.ndarray]) -> list[Features]:
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for number, picture in enumerate(pictures):
            by_shape.setdefault(picture.shape, []).append(number)
        found: dict[int, Features] = {}
        for shape, numbers in by_shape.items():
            count = max(1, BATCH_PIXELS // (shape[0] * shape[1]))
            for first in range(0, len(numbers), count):
                some = numbers[first : first + count]
                levels = self._levels(np.stack([pictures[number] for number in some]))
                found |= {number: [level[at] for level in levels] for at, number in enumerate(some)}
        return [found[number] for number in range(len(pictures))]

    def _levels(self, pictures: np.ndarray) -> list[torch.Tensor]:
        images = torch.from_numpy(pictures).to(self.device).permute(0, 3, 1, 2)
        # Resized to whole strides, so that every feature cell covers the same share of the picture.
        sides = [max(1, round(side * self.input_scale / self.stride)) * self.stride for side in images.shape[-2:]]
        images = F.interpolate(images, size=sides, mode="bilinear", align_corners=False, antialias=True)
        return self.net((images - self.mean) / self.std)

    @torch.no_grad()
    def distance(self, first: Features, second: Features, shape: tuple[int, int]) -> np.ndarray:
        total = torch.zeros(1, 1, *shape, device=self.device)
        for a, b in zip(first, second, strict=True):
            unlike = 1 - F.cosine_similarity(a, b, dim=0)
            total += F.interpolate(unlike[None, None], size=shape, mode="bilinear", align_corners=False)
        return (total[0, 0] / len(first)).clamp(0, self.peak).cpu().numpy()


def open_feature_distance(name: str, *, pretrained: bool, input_scale: float, device: str = "cpu") -> FeatureDistance:
    """Returns the built-in oriented gradients, or a timm backbone by name. Raises UserError for an unknown one."""
    if name == GRADIENTS:
        return GradientDistance()
    return BackboneDistance(name, pretrained=pretrained, input_scale=input_scale, device=device)


def _norm(features: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(features).sum(axis=-1))
