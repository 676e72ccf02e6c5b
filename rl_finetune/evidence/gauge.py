"""Is the reward being cheated? What training maximises against metrics of every family, on the same held-out pictures.

A reading compares every picture with itself before RL, and the worst family decides: a reward that rose while one family
fell was bought, whatever the other families say. It also looks at what is left of the reward's gain once the pictures
have lost what nobody would miss (`shared.vision.removal`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from rl_finetune.evidence.family_tests import (
    FamilyReading,
    by_fault,
    read_families,
    spent_alpha,
)
from shared.vision.metrics import PairedDifference, paired_difference

Verdict = Literal["learning", "level", "hacking", "failing"]
Action = Literal["report", "raise_gt_weight", "rollback"]
Values = Mapping[str, Sequence[float]]  # name → one value a picture, always in the same order
_KEPT = 0.5  # the share of the reward's gain that must outlive every removal


@dataclass(frozen=True)
class GaugeConfig:
    """When a reading counts as hacking, and what then happens."""

    action: Action = "report"  # what is done after `patience` readings
    alpha: float = 0.05  # how often a run in which nothing happens may be called worse, over all of its readings
    patience: int = 2  # readings in a row that say hacking, before anything is done
    gt_weight_factor: float = 2.0  # what raise_gt_weight multiplies the GT-likelihood weight by
    max_gt_weight_factor: float = 16.0  # raise_gt_weight stops at this many times the weight

    def __post_init__(self) -> None:
        if not 0.0 < self.alpha < 0.5:
            raise ValueError(f"gauge.alpha must be between 0 and .5, got {self.alpha:g}")
        if self.patience < 1 or not 1.0 < self.gt_weight_factor <= self.max_gt_weight_factor:
            raise ValueError(
                "gauge.patience must be at least 1 and 1 < gt_weight_factor <= max_gt_weight_factor, got "
                f"{self.patience}, {self.gt_weight_factor:g}, {self.max_gt_weight_factor:g}"
            )


@dataclass(frozen=True)
class GaugeReading:
    """What one evaluation says."""

    verdict: Verdict
    proxy: PairedDifference  # the change of what training maximises
    families: tuple[FamilyReading, ...]  # in the catalogue's order
    worse: tuple[str, ...]  # families that are clearly worse, the one at fault first
    gone: tuple[str, ...]  # removals that take the proxy's gain with them
    streak: int  # readings in a row that said hacking, this one included
    action: Action | None  # what to do now; None: nothing
    gt_weight_factor: float  # of the configured GT-likelihood weight, from here on

    @property
    def fault(self) -> str | None:
        """The family at fault, if any."""
        return self.worse[0] if self.worse else None

    def line(self) -> str:
        """Returns the reading in one line for a log."""
        of = {reading.family: reading for reading in self.families}
        parts = [f"proxy {self.proxy.z:+.1f} se"]
        if self.worse:
            parts.append("worse: " + ", ".join(of[name].line() for name in self.worse))
        better = [reading.line() for reading in self.families if reading.up]
        if better:
            parts.append("better: " + ", ".join(better))
        if self.gone:
            parts.append(f"the proxy's gain goes with: {', '.join(self.gone)}")
        return f"{self.verdict}: {'; '.join(parts)}"

    def as_json(self) -> dict[str, Any]:
        """Returns the verdict and every family as plain numbers; `size` in units of the change that somebody would mind."""
        families = [
            {**asdict(reading), "z": reading.change.z, "half_width": reading.change.half_width, "size": reading.size}
            for reading in self.families
        ]
        return {"verdict": self.verdict, "families": families, "gone": list(self.gone)}


class HackingGauge:
    """Follows one run. The first reading given is the policy before RL, and everything is compared with it."""

    def __init__(self, config: GaugeConfig, measured: Sequence[str], readings_expected: int) -> None:
        """`measured`: names of `shared.vision.metrics.METRICS`, none of them made of what a reward is made of.

        `readings_expected`: how often the run will be read, the baseline not counted; `alpha` is shared out among them.
        """
        self.config, self.measured, self.readings_expected = config, tuple(measured), max(1, readings_expected)
        self.baseline: dict[str, list[float]] | None = None  # the metrics', and `proxy`
        self.baseline_removed: dict[str, list[float]] = {}
        self.readings = 0
        self.streak = 0
        self.gt_weight_factor = 1.0

    def read(
        self, values: Values, *, proxy: str, removed: Values | None = None, beyond_curve: bool | None = None
    ) -> GaugeReading | None:
        """Returns the reading of n held-out pictures; None for the baseline itself.

        `proxy`: which of the values training maximises. `removed`: removal → that value once the pictures have lost
        what it takes. `beyond_curve`: whether the policy lies beyond the base policy's own curve of fidelity and
        perception over steps and noise; None: not known.
        """
        now = {"proxy": _plain(values[proxy]), **{name: _plain(values[name]) for name in self.measured}}
        now_removed = {name: _plain(of) for name, of in (removed or {}).items()}
        if self.baseline is None:
            self.baseline, self.baseline_removed = now, now_removed
            return None
        self.readings += 1
        alpha = spent_alpha(self.config.alpha, self.readings, self.readings_expected)
        gain = paired_difference(self.baseline["proxy"], now["proxy"])
        risen = gain.p_up <= alpha
        families = read_families(self.baseline, now, self.measured, alpha=alpha)
        worse = by_fault(families, beyond_curve=beyond_curve is True)
        gone = self._gone(now["proxy"], now_removed, alpha=alpha) if risen else ()
        better = beyond_curve if beyond_curve is not None else any(family.up for family in families)
        if worse or gone:
            verdict: Verdict = "hacking" if risen else "failing"
        else:
            verdict = "learning" if risen and better else "level"
        self.streak = self.streak + 1 if verdict == "hacking" else 0
        action = self._act()
        return GaugeReading(verdict, gain, families, worse, gone, self.streak, action, self.gt_weight_factor)

    def state_dict(self) -> dict[str, Any]:
        """Returns everything a resumed run needs, as json-able numbers."""
        return {
            "baseline": self.baseline,
            "baseline_removed": self.baseline_removed,
            "readings": self.readings,
            "streak": self.streak,
            "gt_weight_factor": self.gt_weight_factor,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from where `state_dict` was taken."""
        self.baseline, self.baseline_removed = state["baseline"], state["baseline_removed"]
        self.readings, self.streak = state["readings"], state["streak"]
        self.gt_weight_factor = state["gt_weight_factor"]

    def _gone(self, proxy: Sequence[float], removed: Values, *, alpha: float) -> tuple[str, ...]:
        """Returns the removals after which clearly less than half of the proxy's gain is left."""
        gain = np.subtract(proxy, self.baseline["proxy"])
        known = [name for name in removed if name in self.baseline_removed]
        lost = {
            name: paired_difference(np.subtract(removed[name], self.baseline_removed[name]), _KEPT * gain)
            for name in known
        }
        return tuple(name for name in known if lost[name].p_up <= alpha / len(known))

    def _act(self) -> Action | None:
        if self.streak < self.config.patience:
            return None
        action = self.config.action
        if action == "raise_gt_weight":
            raised = self.gt_weight_factor * self.config.gt_weight_factor
            self.gt_weight_factor = min(raised, self.config.max_gt_weight_factor)
        if action != "report":
            self.streak = 0
        return action


def _plain(values: Sequence[float]) -> list[float]:
    return [float(value) for value in values]
