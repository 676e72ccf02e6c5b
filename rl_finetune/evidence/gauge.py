"""Is the reward being cheated? The proxy against a panel of metrics it does not contain, on the same held-out pictures.

A reading compares every picture with itself before RL. Proxy up and panel up is learning; proxy up and panel down is
hacking: what the reward model likes and the truth does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from shared.vision.metrics import PANEL, PairedDifference, paired_difference

Verdict = Literal["learning", "level", "hacking", "failing"]
Action = Literal["report", "raise_gt_weight", "rollback"]


@dataclass(frozen=True)
class GaugeConfig:
    """When a reading counts as hacking, and what then happens."""

    action: Action = "report"  # what is done after `patience` readings
    z: float = 2.0  # standard errors a change must have to be called one
    patience: int = 2  # readings in a row that say hacking, before anything is done
    gt_weight_factor: float = 2.0  # raise_gt_weight: what the GT-likelihood weight is multiplied by
    max_gt_weight_factor: float = 16.0  # raise_gt_weight: never beyond this many times the weight

    def __post_init__(self) -> None:
        if self.patience < 1 or not 1.0 < self.gt_weight_factor <= self.max_gt_weight_factor:
            raise ValueError(
                "gauge.patience must be at least 1 and 1 < gt_weight_factor <= max_gt_weight_factor, got "
                f"{self.patience}, {self.gt_weight_factor:g}, {self.max_gt_weight_factor:g}"
            )


@dataclass(frozen=True)
class GaugeReading:
    """What one evaluation says."""

    verdict: Verdict
    proxy: PairedDifference
    panel: PairedDifference  # mean over metrics of signed changes, each in units of its spread between pictures
    fallen: tuple[str, ...]  # metrics that are clearly worse, worst first
    streak: int  # readings in a row that said hacking, this one included
    action: Action | None  # what to do now; None: nothing
    gt_weight_factor: float  # of the configured GT-likelihood weight, from here on

    def line(self) -> str:
        """Returns the reading in one line for a log."""
        fallen = f"; worse: {', '.join(self.fallen)}" if self.fallen else ""
        return f"{self.verdict}: proxy {self.proxy.z:+.1f} se, panel {self.panel.z:+.1f} se{fallen}"


class HackingGauge:
    """Follows one run. The first reading given is the policy before RL, and everything is compared with it."""

    def __init__(self, config: GaugeConfig, panel: Sequence[str]) -> None:
        """`panel` names metrics of `shared.vision.metrics.PANEL`, none of them part of the reward."""
        self.config, self.panel = config, tuple(panel)
        self.baseline: dict[str, list[float]] | None = None
        self.streak = 0
        self.gt_weight_factor = 1.0

    def read(self, proxy: Sequence[float], panel: Mapping[str, Sequence[float]]) -> GaugeReading | None:
        """Returns the reading of n held-out pictures, in the same order every time; None for the baseline itself."""
        now = {"proxy": [float(v) for v in proxy], **{name: [float(v) for v in panel[name]] for name in self.panel}}
        if self.baseline is None:
            self.baseline = now
            return None
        before = self.baseline
        changes = {name: _signed_change(name, before[name], now[name]) for name in self.panel}
        proxy_change = paired_difference(before["proxy"], now["proxy"])
        index = paired_difference(np.zeros(len(now["proxy"])), np.mean(list(changes.values()), axis=0))
        z = {name: paired_difference(np.zeros(len(change)), change).z for name, change in changes.items()}
        fallen = [name for name in sorted(self.panel, key=z.__getitem__) if z[name] <= -self.config.z]
        verdict = _verdict(proxy_change.z, index.z, self.config.z)
        self.streak = self.streak + 1 if verdict == "hacking" else 0
        action = None
        if self.streak >= self.config.patience:
            action = self.config.action
            if action == "raise_gt_weight":
                raised = self.gt_weight_factor * self.config.gt_weight_factor
                self.gt_weight_factor = min(raised, self.config.max_gt_weight_factor)
            if action != "report":
                self.streak = 0
        return GaugeReading(verdict, proxy_change, index, tuple(fallen), self.streak, action, self.gt_weight_factor)

    def state_dict(self) -> dict[str, Any]:
        """Returns everything a resumed run needs, as json-able numbers."""
        return {"baseline": self.baseline, "streak": self.streak, "gt_weight_factor": self.gt_weight_factor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from where `state_dict` was taken."""
        self.baseline, self.streak = state["baseline"], state["streak"]
        self.gt_weight_factor = state["gt_weight_factor"]


def panel_without(reward_names: Sequence[str]) -> tuple[str, ...]:
    """Returns the panel's metrics that are in none of the rewards: a metric cannot testify about itself."""
    measured_by = {"gradient_similarity": "gradient_distance"}
    inside = {measured_by.get(name, name) for name in reward_names}
    return tuple(name for name in PANEL if name not in inside)


def _signed_change(name: str, before: Sequence[float], after: Sequence[float]) -> np.ndarray:
    # In units of the spread between pictures, so that decibels and ΔE can be averaged; positive is better.
    before, after = np.asarray(before), np.asarray(after)
    sign = 1.0 if name not in PANEL or PANEL[name].higher_is_better else -1.0
    return sign * (after - before) / max(float(before.std()), 1e-6)


def _verdict(proxy_z: float, panel_z: float, z: float) -> Verdict:
    if panel_z <= -z:
        return "hacking" if proxy_z >= z else "failing"
    return "learning" if proxy_z >= z else "level"
