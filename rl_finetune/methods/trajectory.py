"""What a rollout leaves behind: the restorations of whole groups, and only those steps that will be trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from shared.diffusion.transition import StepTimes
from shared.policies.interface import Condition


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

    def each_sample(self, per_group: torch.Tensor) -> torch.Tensor:
        """Returns [B·G, …] from [B, …]: every member of a group sees the same."""
        return per_group.repeat_interleave(self.group_size, dim=0)
