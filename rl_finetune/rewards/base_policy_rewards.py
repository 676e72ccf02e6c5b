"""What the base policy earns on the same pictures: the yardstick of the curriculum's hand-over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from rl_finetune.rewards.composite import RewardValues
from rl_finetune.rewards.curriculum import CurriculumState
from rl_finetune.rewards.judge import Judge
from rl_finetune.rewards.objective import StageScales
from shared.restorers.protocol import Restorer
from shared.seeds import derive_seed


class BaseRewards:
    """The reward of the base policy's restoration of each picture, under the curriculum's present stage.

    Each picture is restored alone and once, with noise of its own, and its reward remembered: the same number in every
    batch, process and resumed run. In spreads of the base policy's groups, as the run's order adds the parts.
    """

    def __init__(self, base: Restorer, judge: Judge, scales: Mapping[int, StageScales], *, seed: int) -> None:
        self.base, self.judge, self.scales, self.seed = base, judge, scales, seed
        self._known: dict[tuple[int, int], float] = {}

    def gain(
        self,
        values: RewardValues,
        indices: Sequence[int],
        gt: torch.Tensor,
        lq: torch.Tensor,
        state: CurriculumState,
    ) -> torch.Tensor:
        """Returns [B, G]: the present stage's reward of B·G restorations less the base policy's of the same pictures.

        Zeros in the last stage, which hands over to nothing.
        """
        stages = self.judge.curriculum.stages
        if state.position == len(stages) - 1:
            return torch.zeros(len(indices), len(values.total) // len(indices), device=gt.device)
        stage = stages[state.position]
        earned = self.earned(stage, indices, gt, lq)
        return self._reward(stage, values).unflatten(0, (len(indices), -1)) - earned[:, None]

    @torch.no_grad()
    def earned(self, stage: int, indices: Sequence[int], gt: torch.Tensor, lq: torch.Tensor) -> torch.Tensor:
        """Returns the base policy's reward [B] for B pairs by their counters."""
        for i, index in enumerate(indices):
            if (stage, index) not in self._known:
                sr = self.base.restore(lq[i : i + 1], sample_seeds=[derive_seed(self.seed, "base reward", index)])
                judged = self.judge.composites[stage](sr, gt[i : i + 1], lq[i : i + 1])
                self._known[stage, index] = float(self._reward(stage, judged))
        return torch.tensor([self._known[stage, index] for index in indices], device=gt.device)

    def _reward(self, stage: int, values: RewardValues) -> torch.Tensor:
        return self.scales[stage].reward(values, self.judge.composites[stage].weights, self.judge.order)
