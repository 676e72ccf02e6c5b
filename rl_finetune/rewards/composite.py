"""Several rewards at once: resolved by name, evaluated on clamped pictures, refused when not finite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from rl_finetune.rewards import faces, fidelity  # noqa: F401  importing them registers their rewards
from rl_finetune.rewards.learned import JudgedOnce
from rl_finetune.rewards.registry import Reward, Toolbox, bind, find_map, find_reward
from shared.errors import UserError

Parts = Literal["embedded", "hub"]

# LRPO (arXiv 2509.23339): face preference, 1 − LPIPS, CLIP-IQA, dual-tree wavelet fidelity.
LRPO_FACE: Mapping[str, float] = {"face_preference": 0.3, "lpips": 0.3, "clipiqa": 0.1, "dwt": 0.3}


@dataclass(frozen=True)
class RewardValues:
    """What the rewards say of N pictures."""

    values: Mapping[str, torch.Tensor]  # name → [N], each on its own scale
    total: torch.Tensor  # [N], the weighted sum of the raw values
    degradation_map: torch.Tensor | None  # [N, 1, H, W] in [0, 1], where maps were asked for


@dataclass(frozen=True)
class Composite:
    """Weighted rewards, and weighted per-pixel maps beside them, evaluated together."""

    weights: Mapping[str, float]  # of the rewards really evaluated
    replacements: Mapping[str, str]  # reward asked for → reward that stands in for it
    entries: tuple[Reward, ...]
    map_weights: Mapping[str, float]
    map_entries: tuple[Reward, ...]
    toolbox: Toolbox
    images_per_call: int = 0  # pictures judged at once; 0: all

    @classmethod
    def build(
        cls,
        weights: Mapping[str, float],
        toolbox: Toolbox,
        *,
        parts: Parts = "embedded",
        maps: Mapping[str, float] | None = None,
        images_per_call: int = 0,
    ) -> Composite:
        """Returns the composite with every tool loaded, so that a missing one stops a run before it starts.

        parts: `embedded` puts a substitute for every reward that declares one, whatever is on this machine's disk, so
        that a config means the same everywhere; `hub` takes the rewards as named. Raises UserError for unknown names,
        weights that are not positive, and tools that cannot be had.
        """
        resolved, replacements = resolve(weights, parts)
        entries = tuple(find_reward(name) for name in resolved)
        map_entries = tuple(find_map(name) for name in maps or {})
        for entry in (*entries, *map_entries):
            bind(entry, toolbox)
        return cls(resolved, replacements, entries, dict(maps or {}), map_entries, toolbox, images_per_call)

    def __call__(
        self, sr: torch.Tensor, gt: torch.Tensor, lq: torch.Tensor, *, sample_ids: Sequence[str] | None = None
    ) -> RewardValues:
        """Returns the rewards of N restorations; sr and gt [N, 3, H, W] and lq [N, 3, h, w], clamped to [0, 1] here.

        Raises UserError naming the reward and the sample when a value is not finite: clamping hides an infinite
        picture, so pictures are checked before it.
        """
        step = self.images_per_call or len(sr)
        require_finite_reward("the restoration itself", sr.flatten(1).sum(1), sample_ids)
        batches = [self._judge(sr[i : i + step], gt[i : i + step], lq[i : i + step]) for i in range(0, len(sr), step)]
        values = {entry.name: torch.cat([values[entry.name] for values, _ in batches]) for entry in self.entries}
        for name, value in values.items():
            require_finite_reward(f"reward {name!r}", value, sample_ids)
        degradation_map = torch.cat([m for _, m in batches]) if self.map_entries else None
        if degradation_map is not None:
            require_finite_reward("the degradation map", degradation_map.flatten(1).sum(1), sample_ids)
        total = sum(self.weights[name] * value for name, value in values.items())
        return RewardValues(values, total, degradation_map)

    def _judge(
        self, sr: torch.Tensor, gt: torch.Tensor, lq: torch.Tensor
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        sr, gt, lq = (picture.float().clamp(0.0, 1.0) for picture in (sr, gt, lq))
        toolbox = self.toolbox
        if "reward_model" in toolbox.given:
            toolbox = toolbox.giving(reward_model=JudgedOnce(toolbox.given["reward_model"]))
        values = {entry.name: bind(entry, toolbox)(sr, gt, lq).float() for entry in self.entries}
        if not self.map_entries:
            return values, None
        share = sum(self.map_weights.values())
        maps = [
            self.map_weights[entry.name] / share * bind(entry, toolbox)(sr, gt, lq).float()
            for entry in self.map_entries
        ]
        return values, sum(maps[1:], start=maps[0])


def resolve(weights: Mapping[str, float], parts: Parts) -> tuple[dict[str, float], dict[str, str]]:
    """Returns (weights, replacements): the rewards to evaluate, and which of them stand in for which asked-for ones.

    A substitute that is also asked for by its own name gets both weights.
    """
    if not weights or any(not weight > 0 for weight in weights.values()):
        raise UserError(f"expected rewards with weights above 0, got {dict(weights) or 'none'}")
    resolved: dict[str, float] = {}
    replacements: dict[str, str] = {}
    for asked, weight in weights.items():
        substitute = find_reward(asked).substitute if parts == "embedded" else None
        if substitute is not None:
            replacements[asked] = substitute
        name = substitute or asked
        resolved[name] = resolved.get(name, 0.0) + weight
    return resolved, replacements


def require_finite_reward(name: str, values: torch.Tensor, sample_ids: Sequence[str] | None) -> None:
    """Raises UserError naming the reward and the first sample of `values` [N] that is not finite."""
    bad = (~torch.isfinite(values)).nonzero().flatten().tolist()
    if bad:
        who = f"sample {bad[0]}" + (f" ({sample_ids[bad[0]]})" if sample_ids else "")
        raise UserError(
            f"expected finite rewards, but {name} is {values[bad[0]].item()} for {who} and {len(bad)} of {len(values)} "
            "samples in all; lower the learning rate and resume from the last checkpoint, or leave that reward out"
        )
