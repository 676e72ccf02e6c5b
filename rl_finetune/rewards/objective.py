"""What the rewards add up to, as one number a picture: the same before and after, and for every arm of a study.

Under `normalise_first` the advantages add rewards in units of their spread within a group, so the raw weighted sum is
not what is maximised: there, the reward on the widest scale dominates; here the weights mean what they say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch

from data.degradation.records import PairBatch
from rl_finetune.rewards.composite import Composite, RewardValues
from rl_finetune.rewards.config import Order
from shared.restorers.protocol import Restorer
from shared.seeds import derive_seed

OBJECTIVE = "objective"
STD_FLOOR = 1e-6  # of a reward that cannot tell a group's members apart: it gives no advantage and has no say
Number = TypeVar("Number", float, torch.Tensor)


@dataclass(frozen=True)
class RewardScale:
    """Where a reward lies, and how far a group's members lie apart in it."""

    mean: float
    spread: float  # root mean square deviation from the group means

    @classmethod
    def of(cls, rewards: torch.Tensor) -> RewardScale:
        """Returns the scale of rewards [B, G]."""
        rewards = rewards.double()
        spread = (rewards - rewards.mean(dim=1, keepdim=True)).square().mean().sqrt()
        return cls(float(rewards.mean()), float(spread))


def objective(values: Mapping[str, Number], weights: Mapping[str, float], scales: Mapping[str, RewardScale]) -> Number:
    """Returns Σ weight · (value − mean) / spread over the rewards in `scales`: as the advantages add them."""
    return sum(weights[name] * (values[name] - scale.mean) / scale.spread for name, scale in scales.items())


@dataclass(frozen=True)
class StageScales:
    """The scales of one stage's rewards, measured on the base policy before RL."""

    parts: Mapping[str, RewardScale]  # but for rewards that cannot tell a group's members apart
    total: RewardScale  # of their weighted raw sum

    def reward(self, values: RewardValues, weights: Mapping[str, float], order: Order) -> torch.Tensor:
        """Returns a stage's reward [N] in spreads of the base policy's groups, as `order` adds its parts."""
        if order == "sum_first" or not self.parts:
            return (values.total - self.total.mean) / max(self.total.spread, STD_FLOOR)
        return objective(values.values, weights, self.parts) / sum(weights.values())


@torch.no_grad()
def measure_scales(
    restorer: Restorer, pairs: PairBatch, composites: Mapping[int, Composite], *, members: int, seed: int
) -> dict[int, StageScales]:
    """Returns every stage's scales in groups of `members` restorations of the pairs."""
    groups: dict[int, list[RewardValues]] = {stage: [] for stage in composites}
    for i, index in enumerate(pairs.indices):
        device = next(iter(composites.values())).toolbox.device
        gt, lq = (p[i : i + 1].to(device).expand(members, -1, -1, -1) for p in (pairs.gt, pairs.lq))
        seeds = [derive_seed(seed, "spread", index, member) for member in range(members)]
        sr = restorer.restore(lq, sample_seeds=seeds)
        said: RewardValues | None = None
        for stage, composite in composites.items():
            said = composite(sr, gt, lq, known=said)
            groups[stage].append(said)
    scales = {}
    for stage, found in groups.items():
        own = {name: RewardScale.of(torch.stack([group.values[name] for group in found])) for name in found[0].values}
        told = {name: scale for name, scale in own.items() if scale.spread > STD_FLOOR}
        scales[stage] = StageScales(told, RewardScale.of(torch.stack([group.total for group in found])))
    return scales
