"""The rewards of a rollout under the curriculum: frozen reward models by stage, composites, blending."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from reward_model.network.model import RewardModel
from rl_finetune.credit.assign import Judgement, latent_maps
from rl_finetune.loop.config import RewardConfig
from rl_finetune.methods.trajectory import Rollout
from rl_finetune.rewards.composite import Composite, RewardValues, resolve
from rl_finetune.rewards.curriculum import (
    Blended,
    CurriculumConfig,
    CurriculumState,
    blend,
    blend_maps,
    stage_weights,
)
from rl_finetune.rewards.curriculum import stage_rewards as rewards_of_stage
from rl_finetune.rewards.registry import Toolbox


class Judge:
    """One composite reward per curriculum stage, each on its own frozen stage of the reward model."""

    def __init__(
        self,
        reward: RewardConfig,
        curriculum: CurriculumConfig,
        *,
        checkpoint: str,
        revision: str | None,
        device: torch.device,
        with_maps: bool,
    ) -> None:
        self.curriculum, self.order = curriculum, reward.order
        # Substitutes first: it is they that a stage without a map cannot give.
        weights, replacements = resolve({part.name: part.weight for part in reward.parts}, reward.networks)
        self.map_weights = {part.name: part.weight for part in reward.maps} if with_maps else {}
        self.composites: dict[int, Composite] = {}
        toolbox = Toolbox(settings=reward.tools, device=device)
        for stage in curriculum.stages:
            model = RewardModel.from_pretrained(checkpoint, stage=stage, revision=revision).to(device)
            model.requires_grad_(False)
            composite = Composite.build(
                rewards_of_stage(weights, stage),
                toolbox.giving(reward_model=model),
                parts=reward.networks,
                images_per_call=16,  # small batches stay in cache: twice as fast on a CPU as 48 at once
                maps=[name for name in self.map_weights if stage > 0 or name != "fgr_map"],  # RM_0 has no map
            )
            self.composites[stage] = replace(composite, replacements=replacements)

    @property
    def final(self) -> Composite:
        """The last stage's composite: what evaluation reports."""
        return self.composites[self.curriculum.stages[-1]]

    def require_gradient(self, gt: torch.Tensor, lq: torch.Tensor) -> None:
        """Raises UserError naming the first reward of any stage that has no gradient in the restoration."""
        device = self.final.toolbox.device
        for composite in self.composites.values():
            composite.require_gradient(gt.to(device), lq.to(device))

    @torch.no_grad()
    def judge(self, rollout: Rollout, state: CurriculumState, gather) -> tuple[Judgement, CurriculumState]:
        """Returns the judgement of a rollout and the curriculum's next state.

        `gather` collects [B, …] over processes: the curriculum must see what every process sees.
        """
        stages = list(stage_weights(state, self.curriculum))
        # Before every trained step, and last the final picture: reward-to-go is unbiased only towards that one.
        pictures = (*rollout.sr_by_step[:-1], rollout.sr)
        values = {stage: [self._values(stage, sr, rollout) for sr in pictures] for stage in stages}
        totals = {stage: _by_group([v.total for v in per_step], rollout) for stage, per_step in values.items()}
        final = {stage: gather(total[..., -1]) for stage, total in totals.items()}
        blended: Blended = blend(state, self.curriculum, final)
        total_by_step = _blend_like(state, self.curriculum, blended, totals)
        if len(self.curriculum.stages) > 1 and self.order == "sum_first":
            # Stages differ in scale: the curriculum puts their sums on one, and blends those.
            rewards, weights = {"curriculum": total_by_step}, {"curriculum": 1.0}
        else:
            rewards, weights = self._parts(values, state, rollout)
        return (
            Judgement(
                rewards={name: by_step[..., -1] for name, by_step in rewards.items()},
                weights=weights,
                total=total_by_step[..., -1],
                maps={
                    name: m for name in self.map_weights if (m := self._map(name, values, state, rollout)) is not None
                },
                map_weights=self.map_weights,
                rewards_by_step=rewards if rollout.sr_by_step else {},
            ),
            blended.state,
        )

    def _parts(
        self, values: dict[int, list[RewardValues]], state: CurriculumState, rollout: Rollout
    ) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        """Returns ({name: [B, G, K]}, their weights): every part of every stage in the blend on its own.

        Each is brought to unit spread before it is weighed, so neither a part nor an incoming stage changes the scale.
        """
        rewards, weights = {}, {}
        for stage, share in stage_weights(state, self.curriculum).items():
            own = self.composites[stage].weights
            for name, weight in own.items():
                label = name if len(self.curriculum.stages) == 1 else f"{name}@{stage}"
                rewards[label] = _by_group([v.values[name] for v in values[stage]], rollout)
                weights[label] = share * weight / sum(own.values())
        return rewards, weights

    def _values(self, stage: int, sr: torch.Tensor, rollout: Rollout) -> RewardValues:
        names = [f"picture {i}, member {g}" for i in rollout.group_ids for g in range(rollout.group_size)]
        gt, lq = rollout.each_sample(rollout.gt), rollout.each_sample(rollout.lq)
        return self.composites[stage](sr, gt, lq, sample_ids=names)

    def _map(
        self, name: str, values: dict[int, list[RewardValues]], state: CurriculumState, rollout: Rollout
    ) -> torch.Tensor | None:
        """Returns one map under the curriculum, [B, G, h, w] or [B, G, J + 1, h, w]; None while no stage has it."""
        count = len(next(iter(values.values())))
        per_step = []
        for k in range(count):
            by_stage = {
                stage: v[k].degradation_maps[name] for stage, v in values.items() if name in v[k].degradation_maps
            }
            blended = blend_maps(state, self.curriculum, by_stage)
            if blended is None:
                return None
            per_step.append(latent_maps(blended, rollout))
        return torch.stack(per_step, dim=2) if rollout.sr_by_step else per_step[0]


class FeedbackReward:
    """The curriculum's reward of one iteration, differentiable in sr; remembers what every stage said, in order."""

    def __init__(self, judge: Judge, state: CurriculumState) -> None:
        self.judge, self.state = judge, state
        self.weights = stage_weights(state, judge.curriculum)
        self.said: dict[int, list[RewardValues]] = defaultdict(list)

    def __call__(self, sr: torch.Tensor, gt: torch.Tensor, lq: torch.Tensor, sample_ids: Sequence[str]) -> torch.Tensor:
        """Returns the reward [N] on the scale the run began with."""
        totals = {}
        for stage in self.weights:
            judged = self.judge.composites[stage](sr, gt, lq, sample_ids=sample_ids)
            detached = {name: value.detach() for name, value in judged.values.items()}
            self.said[stage].append(RewardValues(detached, judged.total.detach(), {}))
            totals[stage] = judged.total
        old, *incoming = self.weights
        reward = self.weights[old] * self.state.scale(totals[old])
        for stage in incoming:
            reward = reward + self.weights[stage] * self.state.next_scale(totals[stage])
        return reward

    def totals(self, group_size: int, gather: Callable[[torch.Tensor], torch.Tensor]) -> dict[int, torch.Tensor]:
        """Returns each stage's own totals so far [B, G], over all processes."""
        said = {stage: torch.cat([v.total for v in values]) for stage, values in self.said.items()}
        return {stage: gather(total.unflatten(0, (-1, group_size))) for stage, total in said.items()}


def _by_group(totals: Sequence[torch.Tensor], rollout: Rollout) -> torch.Tensor:
    """Returns [B, G, K] from K totals [B·G]."""
    return torch.stack(list(totals), dim=-1).unflatten(0, (-1, rollout.group_size))


def _blend_like(
    state: CurriculumState, config: CurriculumConfig, blended: Blended, totals: dict[int, torch.Tensor]
) -> torch.Tensor:
    """Returns this process's totals [B, G, K] on the scale and in the mix that `blend` gave everybody's."""
    weights = stage_weights(state, config)
    stages = list(weights)
    mixed = weights[stages[0]] * state.scale(totals[stages[0]])
    if len(stages) == 1:
        return mixed
    scale = blended.state.next_scale or blended.state.scale
    return mixed + weights[stages[1]] * scale(totals[stages[1]])
