"""Which families of metrics are worse than before RL, and which better: paired tests, corrected for how many there are.

docs/equations.md, section 7.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from shared.vision.metrics import METRICS, Metric, PairedDifference, holm, paired_difference

# Families that say which defect it is come before those that notice any: a hatch lowers fidelity too.
GENERAL = ("fidelity", "perception", "identity")
TRADE = ("fidelity", "perception")  # one can be had for the other by sampling differently: the base policy's curve


@dataclass(frozen=True)
class FamilyReading:
    """One family's change since before RL, told by the metric that says most of it."""

    family: str
    metric: str
    change: PairedDifference  # of that metric, turned so that up is better
    worse: bool  # clearly, and by more than nobody would mind
    up: bool  # clearly, and not worse

    @property
    def size(self) -> float:
        """The change in units of the smallest that somebody would mind; negative: worse."""
        return self.change.mean / METRICS[self.metric].noticeable

    def line(self) -> str:
        """Returns the family in a few words."""
        return f"{self.family} ({self.metric} {self.change.z:+.1f} se)"


@dataclass(frozen=True)
class _Test:
    metric: Metric
    change: PairedDifference
    p_worse: float
    p_up: float


def read_families(
    before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]], names: Sequence[str], *, alpha: float
) -> tuple[FamilyReading, ...]:
    """Returns the families of the metrics in `names`, each tested in both directions at a family-wise error of `alpha`.

    A family is as bad as its worst metric: Bonferroni within a family, Holm between families.
    """
    tests = [test for name in names if (test := _test(METRICS[name], before[name], after[name])) is not None]
    tests = [_excused(test, tests, alpha) for test in tests]
    families = list(dict.fromkeys(test.metric.family for test in tests))
    members = {family: [test for test in tests if test.metric.family == family] for family in families}
    p_worse = {family: _smallest([test.p_worse for test in of]) for family, of in members.items()}
    p_up = {family: _smallest([test.p_up for test in of]) for family, of in members.items()}
    worse, up = (_rejected(p_values, alpha) for p_values in (p_worse, p_up))
    return tuple(
        FamilyReading(family, told.metric.name, told.change, family in worse, family in up - worse)
        for family, of in members.items()
        for told in [_telling(of, worse=family in worse, up=family in up, alpha=alpha)]
    )


def by_fault(families: Sequence[FamilyReading], *, beyond_curve: bool) -> tuple[str, ...]:
    """Returns the families that are worse, the one at fault first: the specific before the general, then by size.

    `beyond_curve`: what fidelity or perception has lost was a fair price where the other has gained: the policy lies
    beyond the curve of that trade.
    """
    worse = [reading for reading in families if reading.worse]
    traded = {reading.family for reading in families if reading.up and reading.family in TRADE}
    if beyond_curve and traded:
        worse = [reading for reading in worse if reading.family not in TRADE]
    return tuple(reading.family for reading in sorted(worse, key=lambda r: (r.family in GENERAL, r.size)))


def spent_alpha(alpha: float, reading: int, expected: int) -> float:
    """Returns the error that reading 1, 2, … of `expected` may spend: equal shares, then halves of the last.

    All readings together spend `alpha`, or less than one share more in a run that goes on for longer than expected.
    """
    return alpha / expected * 0.5 ** max(0, reading - expected)


def _test(metric: Metric, before: Sequence[float], after: Sequence[float]) -> _Test | None:
    """Returns the metric's test on the pictures that have a value both times; None where fewer than two have."""
    values = np.array([metric.goodness(before), metric.goodness(after)])
    values = values[:, np.isfinite(values).all(axis=0)]
    if values.shape[1] < 2:
        return None
    change = paired_difference(values[0], values[1])
    p_worse = (-change).p_up if -change.mean >= metric.noticeable else 1.0
    return _Test(metric, change, p_worse, change.p_up)


def _excused(test: _Test, tests: Sequence[_Test], alpha: float) -> _Test:
    """Returns the test, its loss forgiven where the metric that excuses it has clearly and noticeably risen."""
    for other in tests:
        risen = other.p_up <= alpha and other.change.mean >= other.metric.noticeable
        if other.metric.name == test.metric.excused_by and risen:
            return _Test(test.metric, test.change, 1.0, test.p_up)
    return test


def _rejected(p_values: Mapping[str, float], alpha: float) -> set[str]:
    corrected = holm(list(p_values.values()))
    return {name for name, p in zip(p_values, corrected, strict=True) if p <= alpha}


def _telling(tests: Sequence[_Test], *, worse: bool, up: bool, alpha: float) -> _Test:
    """Returns the metric to name for a family: of those that are clear the largest change, not the surest one."""
    if not worse and not up:
        return max(tests, key=lambda test: abs(test.change.z))
    sign = -1.0 if worse else 1.0
    clear = [test for test in tests if (test.p_worse if worse else test.p_up) * len(tests) <= alpha]
    return max(clear, key=lambda test: sign * test.change.mean / test.metric.noticeable)


def _smallest(p_values: Sequence[float]) -> float:
    return min(1.0, len(p_values) * min(p_values))
