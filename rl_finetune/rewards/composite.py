"""Several rewards at once: resolved by name, evaluated on clamped pictures, refused when not finite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from rl_finetune.rewards import faces, fidelity, local_detail  # noqa: F401  importing them registers their rewards
from rl_finetune.rewards.learned import JudgedOnce
from rl_finetune.rewards.registry import Reward, Toolbox, bind, find_map, find_reward
from shared.app.errors import UserError

REWARD_MODEL = "reward_model"  # the tool that changes with the curriculum's stage
Parts = Literal["embedded", "hub"]

# LRPO (arXiv 2509.23339): face preference, 1 − LPIPS, CLIP-IQA, dual-tree wavelet fidelity.
LRPO_FACE: Mapping[str, float] = {"face_preference": 0.3, "lpips": 0.3, "clipiqa": 0.1, "dwt": 0.3}


@dataclass(frozen=True)
class RewardValues:
    """What the rewards say of N pictures."""

    values: Mapping[str, torch.Tensor]  # name → [N], each on its own scale
    total: torch.Tensor  # [N], the weighted sum of the raw values
    degradation_maps: Mapping[str, torch.Tensor]  # name → [N, 1, H, W], of the maps asked for

    def detached(self) -> RewardValues:
        """Returns the values without their gradient, and without the maps."""
        return RewardValues({name: v.detach() for name, v in self.values.items()}, self.total.detach(), {})

    @classmethod
    def joined(cls, parts: Sequence[RewardValues]) -> RewardValues:
        """Returns the values of several batches one after the other, without the maps."""
        names = parts[0].values
        values = {name: torch.cat([part.values[name] for part in parts]) for name in names}
        return cls(values, torch.cat([part.total for part in parts]), {})


@dataclass(frozen=True)
class Composite:
    """Weighted rewards, and per-pixel maps beside them, evaluated together."""

    weights: Mapping[str, float]  # of the rewards really evaluated
    replacements: Mapping[str, str]  # reward asked for → reward that stands in for it
    entries: tuple[Reward, ...]
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
        maps: Sequence[str] = (),
        images_per_call: int = 0,
    ) -> Composite:
        """Returns the composite with every tool loaded, so that a missing one stops a run before it starts.

        parts: `embedded` puts a substitute for every reward that declares one, whatever is on this machine's disk, so
        that a config means the same everywhere; `hub` takes the rewards as named. Raises UserError for unknown names,
        weights that are not positive, and tools that cannot be had.
        """
        resolved, replacements = resolve(weights, parts)
        entries = tuple(find_reward(name) for name in resolved)
        map_entries = tuple(find_map(name) for name in maps)
        for entry in (*entries, *map_entries):
            bind(entry, toolbox)
        return cls(resolved, replacements, entries, map_entries, toolbox, images_per_call)

    def __call__(
        self,
        sr: torch.Tensor,
        gt: torch.Tensor,
        lq: torch.Tensor,
        *,
        sample_ids: Sequence[str] | None = None,
        known: RewardValues | None = None,
    ) -> RewardValues:
        """Returns the rewards of N restorations; sr and gt [N, 3, H, W] and lq [N, 3, h, w], clamped to [0, 1] here.

        known: what another stage's composite said of the very same pictures; what does not need the reward model is
        taken from there. Raises UserError naming the reward and the sample when a value is not finite: clamping hides
        an infinite picture, so pictures are checked before it.
        """
        step = self.images_per_call or len(sr)
        require_finite_reward("the restoration itself", sr.flatten(1).sum(1), sample_ids)
        entries, map_entries = (_unknown(entries, known) for entries in (self.entries, self.map_entries))
        batches = [
            self._judge(entries, map_entries, sr[i : i + step], gt[i : i + step], lq[i : i + step])
            for i in range(0, len(sr), step)
        ]
        fresh = {entry.name: torch.cat([values[entry.name] for values, _ in batches]) for entry in entries}
        values = {e.name: fresh[e.name] if e.name in fresh else known.values[e.name] for e in self.entries}
        fresh = {entry.name: torch.cat([maps[entry.name] for _, maps in batches]) for entry in map_entries}
        maps = {e.name: fresh[e.name] if e.name in fresh else known.degradation_maps[e.name] for e in self.map_entries}
        said = {f"reward {name!r}": value for name, value in values.items()}
        said |= {f"the degradation map {name!r}": each.flatten(1).sum(1) for name, each in maps.items()}
        # One look at the device for all of them; only where one is bad, one each.
        if not torch.stack([torch.isfinite(each).all() for each in said.values()]).all():
            for name, each in said.items():
                require_finite_reward(name, each, sample_ids)
        total = sum(self.weights[name] * value for name, value in values.items())
        return RewardValues(values, total, maps)

    def require_gradient(self, gt: torch.Tensor, lq: torch.Tensor) -> None:
        """Raises UserError naming the first reward that gives a restoration of gt [B, 3, H, W] no gradient."""
        sr = (0.9 * gt + 0.05).detach().requires_grad_()
        for entry in self.entries:
            value = bind(entry, self.toolbox)(sr, gt, lq).sum()
            gradient = torch.autograd.grad(value, sr, allow_unused=True)[0] if value.requires_grad else None
            if gradient is None or not gradient.abs().sum() > 0:  # also where it is not a number
                raise UserError(
                    f"refl and draft follow the rewards' own gradients, and {entry.name!r} has none; leave it out of "
                    "reward.parts, or take method=policy_gradient"
                )

    def _judge(
        self,
        entries: Sequence[Reward],
        map_entries: Sequence[Reward],
        sr: torch.Tensor,
        gt: torch.Tensor,
        lq: torch.Tensor,
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        sr, gt, lq = (picture.float().clamp(0.0, 1.0) for picture in (sr, gt, lq))
        toolbox = self.toolbox
        if REWARD_MODEL in toolbox.given:
            toolbox = toolbox.giving(reward_model=JudgedOnce(toolbox.given[REWARD_MODEL]))
        values = {entry.name: bind(entry, toolbox)(sr, gt, lq).float() for entry in entries}
        return values, {entry.name: bind(entry, toolbox)(sr, gt, lq).float() for entry in map_entries}


def _unknown(entries: Sequence[Reward], known: RewardValues | None) -> list[Reward]:
    """Returns the entries that have to be evaluated: all, or only those that use the reward model."""
    return [entry for entry in entries if known is None or REWARD_MODEL in entry.needs]


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
    if torch.isfinite(values).all():  # one look at the device
        return
    bad = (~torch.isfinite(values)).nonzero().flatten().tolist()
    who = f"sample {bad[0]}" + (f" ({sample_ids[bad[0]]})" if sample_ids else "")
    raise UserError(
        f"expected finite rewards, but {name} is {values[bad[0]].item()} for {who} and {len(bad)} of {len(values)} "
        "samples in all; lower the learning rate and resume from the last checkpoint, or leave that reward out"
    )
