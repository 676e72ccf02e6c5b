"""What the base policy earns on the same pictures: the yardstick of the curriculum's hand-over."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rl_finetune.rewards.curriculum import CurriculumState
from rl_finetune.rewards.judge import Judge
from shared.restorers.protocol import Restorer
from shared.seeds import derive_seed


class BaseRewards:
    """The raw reward of the base policy's restoration of each picture, under the curriculum's present stage.

    Each picture is restored alone and once, with noise of its own, and its reward remembered: the same number in every
    batch, process and resumed run.
    """

    def __init__(self, base: Restorer, judge: Judge, *, seed: int) -> None:
        self.base, self.judge, self.seed = base, judge, seed
        self._known: dict[tuple[int, int], float] = {}

    @torch.no_grad()
    def __call__(
        self, indices: Sequence[int], gt: torch.Tensor, lq: torch.Tensor, state: CurriculumState
    ) -> torch.Tensor:
        """Returns [B] for B pairs by their counters; zeros in the last stage, which hands over to nothing."""
        stages = self.judge.curriculum.stages
        if state.position == len(stages) - 1:
            return torch.zeros(len(indices), device=gt.device)
        stage = stages[state.position]
        for i, index in enumerate(indices):
            if (stage, index) not in self._known:
                seeds = [derive_seed(self.seed, "base reward", index)]
                sr = self.base.restore(lq[i : i + 1], sample_seeds=seeds)
                judged = self.judge.composites[stage](sr, gt[i : i + 1], lq[i : i + 1])
                self._known[stage, index] = float(judged.total)
        return torch.tensor([self._known[stage, index] for index in indices], device=gt.device)
