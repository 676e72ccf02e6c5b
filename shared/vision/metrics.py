"""Which metrics there are, what each one sees and needs; and how sure a mean change of pictures is.

A metric belongs to one family. The general families, fidelity and perception, notice most defects; the others say which
defect it is. A metric judges a run only where no reward is made of the same network or formula.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy import special

from shared.seeds import numpy_rng
from shared.vision.detail import detail_correlation, detail_energy, true_detail
from shared.vision.pattern import shared_place, shared_tile
from shared.vision.similarity import colour_shift, gradient_distance, ms_ssim, psnr, ssim

Family = Literal["fidelity", "perception", "detail", "pattern", "colour", "identity"]
PairMetric = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (sr, gt) → [N]

Direction = Literal["higher", "lower", "zero"]


@dataclass(frozen=True)
class Metric:
    """One metric by name."""

    name: str
    family: Family
    direction: Direction  # what is better; zero: too much and too little are both wrong
    # A change of the mean that somebody would mind: what is smaller harms nobody, however sure it is.
    noticeable: float
    made_of: frozenset[str]  # networks and formulas: what a reward must not share
    function: PairMetric | None = None  # where nothing has to be loaded
    of_all: bool = False  # a picture's value depends on all N: measure the whole set at once
    needs: str = ""  # what has to be loaded, in words
    truth: float | None = None  # what the truth itself scores; None: whatever its pictures have, a floor to measure
    judges: bool = True  # False: never sees the truth, and can be cheated as a reward can
    # A loss here is none where that metric rises: energy lost with noise while true detail grows.
    excused_by: str | None = None

    @property
    def higher_is_better(self) -> bool:
        return self.direction == "higher"

    @property
    def arrow(self) -> str:
        """The direction as tables show it."""
        return {"higher": "↑", "lower": "↓", "zero": "→0"}[self.direction]

    def goodness(self, values: Sequence[float]) -> np.ndarray:
        """Returns the values turned so that more is better."""
        array = np.asarray(values, dtype=np.float64)
        return {"higher": array, "lower": -array, "zero": -np.abs(array)}[self.direction]


def _metric(
    name: str, family: Family, direction: Direction, noticeable: float, made_of: str | Sequence[str], **more: Any
) -> Metric:
    parts = frozenset([made_of] if isinstance(made_of, str) else made_of)
    return Metric(name, family, direction, noticeable, parts, **more)


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        _metric("psnr", "fidelity", "higher", 0.1, "pixel error", function=psnr, truth=100.0),
        _metric("ssim", "fidelity", "higher", 0.005, "ssim", function=ssim, truth=1.0),
        _metric("ms_ssim", "fidelity", "higher", 0.003, "ssim", function=ms_ssim, truth=1.0),
        _metric(
            "gradient_distance",
            "perception",
            "lower",
            0.005,
            "gradient_distance",
            function=gradient_distance,
            truth=0.0,
        ),
        _metric("lpips_alex", "perception", "lower", 0.005, "alexnet", needs="AlexNet's weights", truth=0.0),
        _metric("lpips_vgg", "perception", "lower", 0.005, "vgg16", needs="VGG16's weights", truth=0.0),
        _metric("dists", "perception", "lower", 0.005, "vgg16", needs="VGG16's weights", truth=0.0),
        _metric("niqe", "perception", "lower", 0.1, "niqe", needs="pyiqa", judges=False),
        _metric("musiq", "perception", "higher", 0.5, "musiq", needs="pyiqa", judges=False),
        _metric(
            "detail_energy",
            "detail",
            "zero",
            0.1,
            "high band",
            function=detail_energy,
            truth=0.0,
            excused_by="true_detail",
        ),
        _metric("detail_correlation", "detail", "higher", 0.02, "high band", function=detail_correlation, truth=1.0),
        _metric("true_detail", "detail", "higher", 0.02, "high band", function=true_detail, truth=1.0),
        _metric("shared_tile", "pattern", "lower", 0.2, "mean tile", function=shared_tile, of_all=True, truth=0.0),
        _metric("shared_place", "pattern", "lower", 0.2, "mean picture", function=shared_place, of_all=True, truth=0.0),
        _metric("colour_shift", "colour", "lower", 0.5, "lab", function=colour_shift, truth=0.0),
        _metric("identity_check", "identity", "higher", 0.01, "recogniser", needs="a face recogniser", truth=1.0),
        _metric("landmark_distance", "identity", "lower", 0.005, "yunet", needs="a face detector", truth=0.0),
    )
}
# What needs no weights and sees one picture at a time.
PANEL: Mapping[str, Metric] = {
    name: metric for name, metric in METRICS.items() if metric.function is not None and not metric.of_all
}


def judging(measured: Sequence[str], rewards: Mapping[str, frozenset[str]]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Returns the metrics that may judge a run, in order, and for each of the others the reason why it may not.

    `rewards`: each reward's networks and formulas. Names of no metric are left out of both.
    """
    refused = {}
    for name in measured:
        shared = [(reward, METRICS[name].made_of & parts) for reward, parts in rewards.items() if name in METRICS]
        guilty = [f"the reward {reward} is made of {', '.join(sorted(both))} too" for reward, both in shared if both]
        if guilty:
            refused[name] = guilty[0]
        elif name in METRICS and not METRICS[name].judges:
            refused[name] = "it never sees the truth"
    return tuple(name for name in measured if name in METRICS and name not in refused), refused


@dataclass(frozen=True)
class PairedDifference:
    """The mean change of n pictures measured twice."""

    mean: float
    standard_error: float  # of the mean, from the spread of the n differences
    n: int

    @property
    def z(self) -> float:
        """The change in standard errors; ±inf when every picture changed by the same amount, 0 when none changed."""
        if self.standard_error > 0:
            return self.mean / self.standard_error
        return math.copysign(math.inf, self.mean) if self.mean else 0.0

    @property
    def p_up(self) -> float:
        """The one-sided paired t-test's p: how likely a rise at least this large is where nothing has changed."""
        return float(special.stdtr(self.n - 1, -self.z))

    @property
    def p(self) -> float:
        """The two-sided paired t-test's p: how likely a change at least this large is where nothing has changed."""
        return 2.0 * float(special.stdtr(self.n - 1, -abs(self.z)))

    @property
    def half_width(self) -> float:
        """Half the width of the mean's 95 % interval, by Student's t with n − 1 degrees of freedom."""
        return float(special.stdtrit(self.n - 1, 0.975)) * self.standard_error

    def __neg__(self) -> PairedDifference:
        return PairedDifference(-self.mean, self.standard_error, self.n)


def paired_difference(before: Sequence[float], after: Sequence[float]) -> PairedDifference:
    """Returns the mean of after − before over the same n ≥ 2 pictures, with its standard error."""
    change = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    if change.ndim != 1 or len(change) < 2:
        raise ValueError(f"a paired difference needs two rows of at least 2 pictures, got shape {change.shape}")
    # Differences that are equal but for rounding have no spread worth dividing by.
    spread = float(change.std(ddof=1)) if np.ptp(change) > 1e-12 * max(1.0, float(np.abs(change).max())) else 0.0
    return PairedDifference(float(change.mean()), spread / math.sqrt(len(change)), len(change))


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns each p corrected for all of them being read (Holm 1979), in their order."""
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[int(i)] = highest
    return corrected


def bootstrap_interval(
    values: Sequence[float], *, seed: int, level: float = 0.95, resamples: int = 2000
) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of the mean of `values`, the same for the same seed."""
    array = np.asarray(values, dtype=np.float64)
    picks = numpy_rng(seed, "bootstrap", len(values)).integers(0, len(values), (resamples, len(values)))
    low, high = np.quantile(array[picks].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
