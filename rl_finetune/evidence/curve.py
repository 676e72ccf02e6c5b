"""What a policy reaches by its sampler alone: a curve over steps and η, and whether a tuned policy lies beyond it.

Fewer steps or less noise buy fidelity with detail, without any training. So a tuned policy has gained something only
where it lies beyond what the base policy reaches over its own samplers, in the plane of one metric of fidelity and one
of perception.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch

from data.degradation.records import PairBatch
from rl_finetune.evidence.measure import Measure, evaluate
from shared.diffusion.sampler import SamplerSpec
from shared.restorers.protocol import Restorer
from shared.vision.metrics import PairedDifference, holm, paired_difference

STEPS, ETAS = (1, 2, 4, 8), (0.0, 0.5, 1.0)
# Fidelity's share of what is compared, in units of spread. Neither metric counts more than twice the other: with one
# of them alone, a collapse to a blur (or to noise) that runs past an end of the curve would be a gain.
WEIGHTS = (1 / 3, 1 / 2, 2 / 3)


@dataclass(frozen=True)
class Curve:
    """One policy with several samplers, each on the same n pictures and the same noise."""

    values: Mapping[SamplerSpec, Mapping[str, np.ndarray]]  # canonical spec → metric → [n]

    def of(self, setting: SamplerSpec, metric: str) -> np.ndarray:
        """Returns the values [n] of a metric with one sampler. Raises ValueError when that was not measured."""
        found = self.values.get(setting.canonical(), {})
        if metric not in found:
            raise ValueError(f"the curve has no {metric} of {setting.words()}: measure it first")
        return found[metric]

    def as_json(self) -> list[dict[str, Any]]:
        """Returns the values as plain lists, a record a sampler."""
        return [
            {"sampler": asdict(spec), "values": {name: v.tolist() for name, v in of.items()}}
            for spec, of in self.values.items()
        ]

    @classmethod
    def from_json(cls, records: Sequence[Mapping[str, Any]]) -> Curve:
        """Returns the curve that `as_json` wrote."""
        return cls(
            {
                SamplerSpec(**record["sampler"]): {name: np.array(v) for name, v in record["values"].items()}
                for record in records
            }
        )


@dataclass(frozen=True)
class Plane:
    """Two metrics that trade against each other."""

    fidelity: str
    perception: str
    higher_is_better: Mapping[str, bool] = field(hash=False)

    @property
    def metrics(self) -> tuple[str, str]:
        return self.fidelity, self.perception

    def sign(self, metric: str) -> float:
        """Returns 1 where higher is better, else −1."""
        return 1.0 if self.higher_is_better[metric] else -1.0


@dataclass(frozen=True)
class Standing:
    """Whether a tuned policy lies beyond the base's curve with one sampler."""

    setting: SamplerSpec
    plane: Plane
    weight: float  # fidelity's share under which it is clearest
    rival: SamplerSpec  # the base's sampler that comes nearest under that weight
    margin: PairedDifference  # tuned − rival, in spreads of the base's pictures
    p: float  # corrected for the weights, and for whatever else was read with it
    level: float = 0.05

    @property
    def beyond(self) -> bool:
        return self.p <= self.level

    def p_words(self) -> str:
        """Returns the p as a table shows it."""
        return f"p {self.p:.3f}" if self.p >= 0.001 else "p < 0.001"

    def line(self) -> str:
        """Returns the standing in one line for a log."""
        where = "beyond" if self.beyond else "not beyond"
        margin = f"{self.margin.mean:+.3f} ± {self.margin.standard_error:.3f} spreads"
        return (
            f"{self.setting.words()}: {where} the base's curve in {self.plane.fidelity} and {self.plane.perception} "
            f"({self.p_words()}; {margin} over the base with {self.rival.words()}, fidelity's share {self.weight:.2f})"
        )


def curve_settings(*own: SamplerSpec) -> tuple[SamplerSpec, ...]:
    """Returns the samplers of a curve, a run's `own` among them; with one step no noise is added, whatever η is."""
    noise = own[0].noise if own else "cpu"  # the same for all: their differences are paired
    grid = [SamplerSpec(steps, eta, noise=noise) for steps in STEPS for eta in ETAS]
    return tuple(dict.fromkeys(spec.canonical() for spec in (*grid, *own)))


def measure_curve(
    restorer_at: Callable[[SamplerSpec], Restorer],
    pairs: PairBatch,
    measures: Sequence[Measure],
    *,
    batch: int,
    seed: int,
    settings: Sequence[SamplerSpec] = (),
    known: Mapping[SamplerSpec, Mapping[str, torch.Tensor]] | None = None,
    title: str = "curve",
    quiet: bool = True,
    device: torch.device | str = "cpu",
) -> Curve:
    """Returns a policy's curve; `evaluate` gives picture i the same noise with every sampler and for every policy.

    `settings`: `curve_settings()` where none are given. `known`: values of samplers that were evaluated before, with
    the same pairs and seed; they are not measured again. Only metrics that every sampler has are kept.
    """
    found = {spec.canonical(): values for spec, values in (known or {}).items()}
    wanted = list(dict.fromkeys(spec.canonical() for spec in settings or curve_settings()))
    for spec in wanted:
        if spec not in found:
            options = {"batch": batch, "seed": seed, "quiet": quiet, "device": device}
            found[spec] = evaluate(
                restorer_at(spec), pairs, measures, title=f"{title}, {spec.words()}", **options
            ).values
    names = [name for name in found[wanted[0]] if all(name in found[spec] for spec in wanted)]
    return Curve({spec: {name: found[spec][name].double().numpy() for name in names} for spec in wanted})


def beyond(
    base: Curve,
    tuned: Curve,
    *,
    setting: SamplerSpec,
    plane: Plane,
    level: float = 0.05,
) -> Standing:
    """Returns whether the tuned policy with `setting`, which was chosen in advance, lies beyond the base's curve.

    It does if for some weight λ its pictures' λ·fidelity + (1 − λ)·perception, each signed so that more is better and
    in units of the base's spread between pictures, is higher than with *every* sampler of the base. Mixtures of the
    base's samplers need no test of their own: a weighted sum is highest at a corner of a convex hull, so what beats
    every sampler under one λ beats every mixture too, and whatever lies outside the hull does so under some λ ≥ 0.
    `WEIGHTS` are some of them, none near an end: the test errs towards “not beyond”.

    For one λ the p is the largest of the one-sided paired t-tests against each sampler: all must be beaten, so their
    number costs nothing (intersection–union test). That one λ of several is enough costs their number (Bonferroni).
    A claim that several planes must all bear out costs nothing more, and its p is their largest.
    """
    spreads = {name: _spread(base, name) for name in plane.metrics}
    candidates = [_against_all(base, tuned, setting.canonical(), plane, spreads, weight) for weight in WEIGHTS]
    best = min(candidates, key=lambda standing: standing.p)
    return replace(best, p=min(1.0, best.p * len(WEIGHTS)), level=level)


def sweep(base: Curve, tuned: Curve, *, plane: Plane, level: float = 0.05) -> dict[SamplerSpec, Standing]:
    """Returns where the tuned policy stands with each of its samplers, corrected for reading all of them (Holm)."""
    standings = [beyond(base, tuned, setting=setting, plane=plane, level=level) for setting in tuned.values]
    corrected = holm([standing.p for standing in standings])
    return {each.setting: replace(each, p=p) for each, p in zip(standings, corrected, strict=True)}


def _against_all(
    base: Curve, tuned: Curve, setting: SamplerSpec, plane: Plane, spreads: Mapping[str, float], weight: float
) -> Standing:
    """Returns the standing under one weight, its p for that weight alone."""

    def goodness(curve: Curve, spec: SamplerSpec) -> np.ndarray:
        shares = zip(plane.metrics, (weight, 1.0 - weight), strict=True)
        return sum(share * plane.sign(name) / spreads[name] * curve.of(spec, name) for name, share in shares)

    mine = goodness(tuned, setting)
    margins = {rival: paired_difference(goodness(base, rival), mine) for rival in base.values}
    rival = min(margins, key=lambda spec: margins[spec].z)
    margin = margins[rival]
    return Standing(setting, plane, weight, rival, margin, p=margin.p_up)


def _spread(base: Curve, metric: str) -> float:
    """Returns the deviation between pictures of the base's mean over its samplers; 1 where all pictures are alike."""
    over_pictures = np.mean([base.of(setting, metric) for setting in base.values], axis=0)
    return float(over_pictures.std(ddof=1)) or 1.0
