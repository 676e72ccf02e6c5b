"""Bootstrap intervals over source pictures. Figures are functions of sums over samples, so a round is a weighted sum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from reward_model.measuring.predict import Predictions
from shared.seeds import numpy_rng


@dataclass(frozen=True)
class Figure:
    """A figure that depends on its samples through sums alone."""

    terms: Callable[[Predictions], np.ndarray]  # of N samples: [N, K], what each adds
    of_sums: Callable[[np.ndarray], np.ndarray]  # [R, K] sums of R draws → [R]; NaN where a draw has no figure


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return "–" if np.isnan(self.value) else f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


MISSING = Interval(float("nan"), float("nan"), float("nan"))


def bootstrap(figure: Figure, predictions: Predictions, *, rounds: int, seed: int = 0) -> Interval:
    """Returns the figure of all samples with the 2.5 and 97.5 % quantiles over resampled source pictures.

    Crops of one photograph are no independent evidence, so a draw takes a picture's samples together.
    """
    terms = np.asarray(figure.terms(predictions), np.float64)
    if not len(terms):
        return MISSING
    names, picture_of = np.unique(predictions.image_ids, return_inverse=True)
    sums = np.zeros((len(names), terms.shape[1]))
    np.add.at(sums, picture_of, terms)
    value = float(figure.of_sums(sums.sum(axis=0, keepdims=True))[0])
    even = np.full(len(names), 1 / len(names))
    draws = numpy_rng(seed, "bootstrap").multinomial(len(names), even, size=rounds)  # [rounds, pictures]
    found = figure.of_sums(draws @ sums)
    usable = found[~np.isnan(found)]
    if not len(usable):
        return Interval(value, float("nan"), float("nan"))
    return Interval(value, float(np.quantile(usable, 0.025)), float(np.quantile(usable, 0.975)))
