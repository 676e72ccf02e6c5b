"""The reference columns of every table: doing nothing, the base policy in one step, the mean of its samples, the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from shared.diffusion.sampler import SamplerSpec
from shared.policies.policy_restorer import PolicyRestorer
from shared.restorers.interpolation import BicubicRestorer
from shared.restorers.protocol import Restorer
from shared.seeds import derive_seed

UP_SAMPLED, ONE_STEP, MEAN_OF_SAMPLES, TRUTH = "up-sampled", "base, 1 step", "mean of 8", "truth"
SAMPLES = 8


class MeanOfSamples:
    """The mean of several restorations: what is left of a sampler when its noise is averaged away."""

    def __init__(self, restorer: Restorer, count: int = SAMPLES) -> None:
        self.restorer, self.count, self.scale = restorer, count, restorer.scale

    def restore(self, lq: torch.Tensor, *, sample_seeds: Sequence[int]) -> torch.Tensor:
        """Returns the mean sr [B, 3, scale·h, scale·w] of `count` restorations with noise of their own."""
        drawn = (
            self.restorer.restore(lq, sample_seeds=[derive_seed(seed, "mean", k) for seed in sample_seeds])
            for k in range(self.count)
        )
        return sum(drawn) / self.count


def otherwise_deployed(before: PolicyRestorer, after: PolicyRestorer, sampler: SamplerSpec) -> Mapping[str, Restorer]:
    """Returns both policies with the sampler that they are not deployed with: the trained one's noise, or its ODE.

    Empty where the two draw alike.
    """
    own = before.spec.canonical()
    other = sampler.canonical() if own == sampler.as_ode() else sampler.as_ode()
    if other == own:
        return {}
    word = "ODE" if other == sampler.as_ode() else "SDE"
    named = (("before", before), ("after", after))
    return {f"{name}, {word}": PolicyRestorer(restorer.policy, other) for name, restorer in named}


def reference_restorers(base: PolicyRestorer) -> Mapping[str, Restorer]:
    """Returns {column title: restorer} for a table about a policy that began as `base`."""
    return {
        UP_SAMPLED: BicubicRestorer(base.scale),
        ONE_STEP: PolicyRestorer(base.policy, SamplerSpec(steps=1, eta=0.0, noise=base.spec.noise)),
        MEAN_OF_SAMPLES: MeanOfSamples(base),
    }
