"""What a rollout leaves behind: the restorations of whole groups, and only those steps that will be trained."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from shared.diffusion.transition import StepTimes
from shared.policies.interface import Condition, repeat, take


@dataclass(frozen=True)
class TrainedStep:
    """One stochastic step of N samples, as drawn. Everything float32, whatever precision the network ran in."""

    j: int  # position in the plan, 0 at pure noise
    times: StepTimes
    std: float
    x_t: torch.Tensor  # [N, C, h, w]
    prev: torch.Tensor  # [N, C, h, w] the action taken
    mean: torch.Tensor  # [N, C, h, w] of the policy that drew it
    log_prob_map: torch.Tensor  # [N, h, w] of the policy that drew it
    # What the network computed that no trained weight reaches, kept for the update, in its precision; or nothing.
    frozen: Condition = field(default_factory=dict)


@dataclass(frozen=True)
class Rollout:
    """B groups of G restorations, flattened group-major: sample n = b·G + g."""

    gt: torch.Tensor  # [B, 3, H, W]
    lq: torch.Tensor  # [B, 3, h_lq, w_lq]
    condition: Condition  # of B lq, what the network saw, once a group: updates re-score with the very same
    group_ids: tuple[int, ...]  # B integers: the pairs' counters
    group_size: int
    x0: torch.Tensor  # [B·G, C, h, w] the clean latents drawn
    sr: torch.Tensor  # [B·G, 3, H, W] in [0, 1], their pictures
    steps: tuple[TrainedStep, ...]  # J, in the order they were taken
    # The clean-image prediction before every trained step, as pictures; only where credit is given in time.
    predictions: tuple[torch.Tensor, ...]  # J of [B·G, 3, H, W] in [0, 1], or empty

    @property
    def pictures(self) -> tuple[torch.Tensor, ...]:
        """Returns what is judged, K of [B·G, 3, H, W]: the predictions, and last the restoration itself."""
        return (*self.predictions, self.sr)

    @property
    def step_stds(self) -> torch.Tensor:
        """Returns the noise of each trained step, [J] float32."""
        return torch.tensor([step.std for step in self.steps], device=self.sr.device)

    def each_sample(self, per_group: torch.Tensor, samples: slice = slice(None)) -> torch.Tensor:
        """Returns [B·G, …] from [B, …], or those in `samples`: every member of a group sees the same."""
        return per_group.repeat_interleave(self.group_size, dim=0)[samples]

    def condition_of(self, samples: slice) -> Condition:
        """Returns what the network saw of some samples."""
        groups = groups_around(samples, self.group_size)
        inside = slice(samples.start - groups.start * self.group_size, samples.stop - groups.start * self.group_size)
        return take(repeat(take(self.condition, groups), self.group_size), inside)


def groups_around(samples: slice, group_size: int) -> slice:
    """Returns the groups that some samples belong to."""
    return slice(samples.start // group_size, -(-samples.stop // group_size))


def sample_slices(total: int, per_update: int, per_pass: int) -> list[slice]:
    """Returns slices of at most `per_pass` samples (0: as many as there are), none across the border of two updates."""
    size = per_pass or per_update
    return [
        slice(start, min(start + size, first + per_update))
        for first in range(0, total, per_update)
        for start in range(first, first + per_update, size)
    ]
