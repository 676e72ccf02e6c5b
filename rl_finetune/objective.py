"""What training maximises, as one number a picture: the same before and after, and the same for every arm of a study.

Under `normalise_first` the advantages add rewards in units of their spread within a group, so the raw weighted sum is
not what is maximised: there, the reward on the widest scale rules, here the weights say what they say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch

from data.records import PairBatch
from rl_finetune.rewards.composite import Composite
from shared.restorers.protocol import Restorer
from shared.seeds import derive_seed

OBJECTIVE = "objective"
STD_FLOOR = 1e-6  # of a reward that cannot tell a group's members apart: it gives no advantage and has no say
Number = TypeVar("Number", float, torch.Tensor)


def objective(values: Mapping[str, Number], weights: Mapping[str, float], spreads: Mapping[str, float]) -> Number:
    """Returns Σ weight · value / spread over the rewards in `spreads`: rewards as the advantages add them."""
    return sum(weights[name] * values[name] / spread for name, spread in spreads.items())


def within_group_spread(rewards: torch.Tensor) -> float:
    """Returns the root mean square of the deviations from the group means of rewards [B, G]."""
    rewards = rewards.double()
    return float((rewards - rewards.mean(dim=1, keepdim=True)).square().mean().sqrt())


@torch.no_grad()
def measure_spreads(
    restorer: Restorer, pairs: PairBatch, composite: Composite, *, members: int, seed: int
) -> dict[str, float]:
    """Returns each reward's spread within groups of `members` restorations of the pairs; silent rewards are left out."""
    device = composite.toolbox.device
    groups: list[Mapping[str, torch.Tensor]] = []
    for i, index in enumerate(pairs.indices):
        gt, lq = (p[i : i + 1].to(device).expand(members, -1, -1, -1) for p in (pairs.gt, pairs.lq))
        seeds = [derive_seed(seed, "spread", index, member) for member in range(members)]
        groups.append(composite(restorer.restore(lq, sample_seeds=seeds), gt, lq).values)
    spreads = {name: within_group_spread(torch.stack([group[name] for group in groups])) for name in groups[0]}
    return {name: spread for name, spread in spreads.items() if spread > STD_FLOOR}
