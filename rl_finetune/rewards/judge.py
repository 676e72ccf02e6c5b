"""The rewards of a rollout under the curriculum: pictures in, one record of values and maps out.

    pictures → values and maps of every stage in the blend → one `Judgement` → credit (rl_finetune.credit)

Later stages only read this record.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from reward_model.network.model import RewardModel
from rl_finetune.rewards.composite import Composite, RewardValues, resolve
from rl_finetune.rewards.config import Order, RewardConfig
from rl_finetune.rewards.curriculum import CurriculumConfig, CurriculumState, blend_maps, stage_rewards, stage_weights
from rl_finetune.rewards.objective import StageScales
from rl_finetune.rewards.registry import Toolbox, find_map, find_reward
from shared.diffusion.latent_grid import to_latent_grid


@dataclass(frozen=True)
class Judgement:
    """What the rewards say of B groups of G restorations, at K moments: the last is the final picture.

    K is 1, or with credit in time J + 1: the clean-image predictions before each of J trained steps, then the picture.
    """

    rewards: Mapping[str, torch.Tensor]  # name → [B, G, K]; to be added under `order` with `weights`
    weights: Mapping[str, float]  # of the same names
    order: Order
    maps: Mapping[str, torch.Tensor]  # name → [B, G, K, h, w] degradation on the latent grid
    map_weights: Mapping[str, float]  # of the same names, each times the share of the stages that have the map
    map_weight_total: float  # what they sum to where every stage in the blend has every map
    map_order: Order
    total: torch.Tensor  # [B, G] the weighted sum of the raw rewards of the final picture
    stage_values: RewardValues  # of the final picture [B·G] by the curriculum's present stage alone


@dataclass(frozen=True)
class Subjects:
    """B groups of G restorations to be judged, flattened group-major, with what they are compared with."""

    pictures: Sequence[torch.Tensor]  # K of [B·G, 3, H, W] in [0, 1]
    gt: torch.Tensor  # [B·G, 3, H, W]
    lq: torch.Tensor  # [B·G, 3, h_lq, w_lq]
    sample_ids: Sequence[str]  # B·G names for messages
    group_size: int
    latent_hw: tuple[int, int]

    def by_group(self, values: Sequence[torch.Tensor]) -> torch.Tensor:
        """Returns [B, G, K, …] from K tensors [B·G, …]."""
        return torch.stack(list(values), dim=1).unflatten(0, (-1, self.group_size))


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
        # Substitutes are resolved first: one may need a map, which stage 0 cannot give.
        weights, replacements = resolve({part.name: part.weight for part in reward.parts}, reward.networks)
        self.map_weights = {part.name: part.weight for part in reward.maps} if with_maps else {}
        self.composites: dict[int, Composite] = {}
        toolbox = Toolbox(settings=reward.tools, device=device)
        for stage in curriculum.stages:
            model = RewardModel.from_pretrained(checkpoint, stage=stage, revision=revision).to(device)
            model.requires_grad_(False)
            composite = Composite.build(
                stage_rewards(weights, stage, need_map=[n for n in weights if find_reward(n).needs_map]),
                toolbox.giving(reward_model=model),
                parts=reward.networks,
                images_per_call=16,  # small batches stay in cache: twice as fast on a CPU as 48 at once
                maps=[name for name in self.map_weights if stage > 0 or not find_map(name).needs_map],
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
    def judge(self, subjects: Subjects, state: CurriculumState) -> Judgement:
        """Returns what every stage in the curriculum's blend says of the pictures, as one record."""
        shares = stage_weights(state, self.curriculum)
        values: dict[int, list[RewardValues]] = {stage: [] for stage in shares}
        for sr in subjects.pictures:
            said: RewardValues | None = None
            for stage in shares:  # what does not depend on the stage is computed by the first
                said = self.composites[stage](sr, subjects.gt, subjects.lq, sample_ids=subjects.sample_ids, known=said)
                values[stage].append(said)
        totals = {stage: subjects.by_group([v.total for v in said]) for stage, said in values.items()}
        rewards, weights, order = self._parts(values, totals, shares, subjects)
        first = next(iter(shares))
        maps = self._maps(values, shares, subjects)
        present = {
            name: sum(s for stage, s in shares.items() if name in values[stage][0].degradation_maps) for name in maps
        }
        return Judgement(
            rewards=rewards,
            weights=weights,
            order=order,
            maps=maps,
            map_weights={name: self.map_weights[name] * share for name, share in present.items()},
            map_weight_total=sum(self.map_weights.values()),
            map_order=self.order,
            total=sum(share * totals[stage] for stage, share in shares.items())[..., -1],
            stage_values=values[first][-1],
        )

    def _parts(
        self,
        values: Mapping[int, list[RewardValues]],
        totals: Mapping[int, torch.Tensor],
        shares: Mapping[int, float],
        subjects: Subjects,
    ) -> tuple[dict[str, torch.Tensor], dict[str, float], Order]:
        """Returns ({name: [B, G, K]}, their weights, how they are to be added).

        Every part of every stage in the blend stands on its own, but for a ramp under `sum_first`: two stages differ in
        scale, so each one's sum of raw rewards is normalised before it is blended.
        """
        if self.order == "sum_first" and len(shares) > 1:
            named = {f"stage {stage}": total for stage, total in totals.items()}
            return named, dict(zip(named, shares.values(), strict=True)), "normalise_first"
        rewards, weights = {}, {}
        for stage, share in shares.items():
            own = self.composites[stage].weights
            for name, weight in own.items():
                label = name if len(self.curriculum.stages) == 1 else f"{name}@{stage}"
                rewards[label] = subjects.by_group([v.values[name] for v in values[stage]])
                weights[label] = share * weight / sum(own.values())
        return rewards, weights, self.order

    def _maps(
        self, values: Mapping[int, list[RewardValues]], shares: Mapping[int, float], subjects: Subjects
    ) -> dict[str, torch.Tensor]:
        """Returns {name: [B, G, K, h, w]} of the maps that a stage in the blend has."""
        maps = {}
        for name in self.map_weights:
            given = [stage for stage in shares if name in values[stage][0].degradation_maps]
            if not given:
                continue
            cells = []
            for k in range(len(subjects.pictures)):
                blended = blend_maps(shares, {stage: values[stage][k].degradation_maps[name] for stage in given})
                cells.append(to_latent_grid(blended, subjects.latent_hw))
            maps[name] = subjects.by_group(cells)
        return maps


class DifferentiableReward:
    """The curriculum's reward of one iteration with its gradient in sr; remembers what each stage said, in order."""

    def __init__(self, judge: Judge, state: CurriculumState, scales: Mapping[int, StageScales]) -> None:
        """`scales` of every stage in the blend: they put parts and stages on one scale, in spreads of the base policy."""
        self.judge, self.scales = judge, scales
        self.shares = stage_weights(state, judge.curriculum)
        self.said: dict[int, list[RewardValues]] = defaultdict(list)

    def __call__(self, sr: torch.Tensor, gt: torch.Tensor, lq: torch.Tensor, sample_ids: Sequence[str]) -> torch.Tensor:
        """Returns Σ share · stage's reward [N], each in spreads and added as the run's order has it."""
        total: torch.Tensor | None = None
        for stage, share in self.shares.items():
            composite = self.judge.composites[stage]
            judged = composite(sr, gt, lq, sample_ids=sample_ids)
            self.said[stage].append(judged.detached())
            own = share * self.scales[stage].reward(judged, composite.weights, self.judge.order)
            total = own if total is None else total + own
        return total

    def of_stage(self, stage: int) -> RewardValues:
        """Returns everything a stage has said so far, in order."""
        return RewardValues.joined(self.said[stage])
