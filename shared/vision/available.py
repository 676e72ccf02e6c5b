"""Which metrics of the catalogue this machine can measure, and why it cannot measure the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch

from shared.app.errors import UserError
from shared.vision.landmarks import landmark_distance, load_landmarks
from shared.vision.metrics import METRICS, PairMetric
from shared.vision.perceptual import load_dists, load_lpips


@dataclass(frozen=True)
class MetricWeights:
    """Where the metrics' networks are."""

    perceptual: str = ""  # a folder of features-only weights (LPIPS, DISTS); empty: torchvision's own files
    landmarks: str = ""  # YuNet's .onnx, for faces
    allow_download: bool = False  # fetch what is missing: 233 MB for AlexNet, 528 MB for VGG16


@dataclass(frozen=True)
class AvailableMetrics:
    """What can be measured, by name."""

    of_each: Mapping[str, PairMetric]  # one picture's value depends on that picture alone: any batch will do
    of_all: Mapping[str, PairMetric]  # on the whole set at once
    absent: Mapping[str, str] = field(default_factory=dict)  # name → why it is not measured

    def measure(self, sr: torch.Tensor, gt: torch.Tensor, *, batch: int = 16) -> dict[str, torch.Tensor]:
        """Returns every metric of N restorations, name → [N] on the CPU; NaN where a picture has no value."""
        with torch.no_grad():
            values = {
                name: torch.cat([f(a, b).cpu() for a, b in zip(sr.split(batch), gt.split(batch), strict=True)])
                for name, f in self.of_each.items()
            }
            return values | {name: f(sr, gt).cpu() for name, f in self.of_all.items()}


def open_metrics(weights: MetricWeights, *, faces: bool = False) -> AvailableMetrics:
    """Returns the metrics whose networks can be had; landmarks for `faces` alone.

    Raises UserError for weights that are named and not there: a person who names a file means it.
    """
    of_each = {name: m.function for name, m in METRICS.items() if m.function is not None and not m.of_all}
    of_all = {name: m.function for name, m in METRICS.items() if m.function is not None and m.of_all}
    absent = {}
    for name, load in _loaders(weights, faces=faces).items():
        try:
            of_each[name] = load()
        except UserError as error:
            if METRICS[name].made_of & _named(weights):
                raise
            absent[name] = str(error).split(";")[0]  # the rest says what to do about it, and they are many
    return AvailableMetrics(of_each, of_all, absent)


def _loaders(weights: MetricWeights, *, faces: bool) -> dict[str, Callable[[], PairMetric]]:
    lpips = partial(load_lpips, weights=weights.perceptual, allow_download=weights.allow_download)
    loaders: dict[str, Callable[[], PairMetric]] = {
        "lpips_alex": partial(lpips, "alex"),
        "lpips_vgg": partial(lpips, "vgg"),
        "dists": partial(load_dists, weights=weights.perceptual, allow_download=weights.allow_download),
        "niqe": partial(_no_reference, "niqe", weights.allow_download),
        "musiq": partial(_no_reference, "musiq", weights.allow_download),
    }
    if faces:
        loaders["landmark_distance"] = lambda: partial(landmark_distance, detect=load_landmarks(weights.landmarks))
    return loaders


def _named(weights: MetricWeights) -> set[str]:
    """Returns the networks whose weights the person has named."""
    return ({"alexnet", "vgg16"} if weights.perceptual else set()) | ({"yunet"} if weights.landmarks else set())


def _no_reference(name: str, allow_download: bool) -> PairMetric:
    """Returns a metric that looks at sr alone. Raises UserError without pyiqa, or where it may not fetch its weights."""
    try:
        import pyiqa  # optional: its licence forbids commercial use
    except ImportError:
        raise UserError("pyiqa (PolyForm Noncommercial) is not installed: pip install 'restore-rl[iqa]'") from None
    if not allow_download:
        raise UserError("pyiqa fetches its weights from the Hub, and no download is allowed")
    try:
        metric = pyiqa.create_metric(name)
    except Exception as error:  # no network, no such file: whatever its loaders raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"pyiqa could not load it ({reason})") from None

    def measure(sr: torch.Tensor, gt: torch.Tensor) -> torch.Tensor:
        return metric.to(sr.device)(sr).reshape(-1)

    return measure
