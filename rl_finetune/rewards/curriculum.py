"""CCL: the reward grows stricter stage by stage (RM_0, RM_1, …), and its scale never jumps at a hand-over.

The state is a frozen record of plain numbers, so that a resumed run goes on from exactly where it was. Every process
must see the same rewards: pass those gathered over all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from shared.app.errors import UserError

_STD_FLOOR = 1e-6


@dataclass(frozen=True)
class CurriculumConfig:
    """When a stage of the reward model hands over to the next."""

    stages: tuple[int, ...] = (3,)  # of the reward model, in order; one stage is no curriculum
    budget_iterations: int = 0  # a stage hands over after this many at the latest; 0: only at a plateau
    min_iterations: int = 10  # and not before
    plateau_window: int = 10  # iterations; the later half is compared with the earlier
    plateau_z: float = 1.0  # a gain below this many standard errors is a plateau
    ramp_iterations: int = 5  # over which the next stage is blended in

    def __post_init__(self) -> None:
        if not self.stages or list(self.stages) != sorted(set(self.stages)):
            raise ValueError(f"curriculum.stages must rise, got {self.stages}")
        if self.plateau_window < 4 or self.ramp_iterations < 1:
            raise ValueError(
                "curriculum.plateau_window must be at least 4 and ramp_iterations at least 1, got "
                f"{self.plateau_window} and {self.ramp_iterations}"
            )


@dataclass(frozen=True)
class Scale:
    """reward → gain · reward + offset: what puts one stage's rewards on the scale the run began with."""

    gain: float = 1.0
    offset: float = 0.0

    def __call__(self, rewards: torch.Tensor) -> torch.Tensor:
        return self.gain * rewards + self.offset


@dataclass(frozen=True)
class CurriculumState:
    """Where the curriculum stands."""

    position: int = 0  # index into the config's stages
    iterations: int = 0  # completed in this stage, the ramp into it not counted
    ramp: int = 0  # iterations of the ramp into the next stage begun; 0 when none is under way
    scale: Scale = Scale()
    next_scale: Scale | None = None  # fitted on the ramp's first iteration
    history: tuple[float, ...] = ()  # mean scaled rewards of this stage, at most `plateau_window` of them


@dataclass(frozen=True)
class Blended:
    """One iteration's reward under the curriculum, and the state after it."""

    rewards: torch.Tensor  # [B, G]
    state: CurriculumState


def stage_rewards(weights: Mapping[str, float], stage: int) -> dict[str, float]:
    """Returns the weights of one stage's own reward R_k = λ₁·fgr_score + λ₂·fgr_map + …: RM_0 has no map to ask."""
    kept = {name: weight for name, weight in weights.items() if stage > 0 or name != "fgr_map"}
    if not kept:
        raise UserError("stage 0 of the curriculum has no degradation map: give fgr_score a weight or begin at 1")
    return kept


def stage_weights(state: CurriculumState, config: CurriculumConfig) -> dict[int, float]:
    """Returns {stage: weight} of this iteration's blend, summing to 1: one stage, or two while a ramp is under way."""
    stage = config.stages[state.position]
    if state.ramp == 0:
        return {stage: 1.0}
    share = state.ramp / (config.ramp_iterations + 1)
    return {stage: 1.0 - share, config.stages[state.position + 1]: share}


def blend(state: CurriculumState, config: CurriculumConfig, rewards: Mapping[int, torch.Tensor]) -> Blended:
    """Returns the blended rewards [B, G] of the stages in `stage_weights`, and the state for the next iteration.

    On a ramp's first iteration the new stage's scale is fitted: on these very pictures it has the old one's mean and
    its spread within groups, which is what advantages are made of. From there on the scale is fixed.
    """
    weights = stage_weights(state, config)
    old = state.scale(rewards[config.stages[state.position]])
    if state.ramp == 0:
        return Blended(old, _after_stage_iteration(state, config, float(old.double().mean())))
    incoming = config.stages[state.position + 1]
    next_scale = state.next_scale or fit_scale(rewards[incoming], old)
    mixed = weights[config.stages[state.position]] * old + weights[incoming] * next_scale(rewards[incoming])
    if state.ramp < config.ramp_iterations:
        return Blended(mixed, replace(state, ramp=state.ramp + 1, next_scale=next_scale))
    return Blended(mixed, CurriculumState(position=state.position + 1, scale=next_scale))


def blend_maps(
    state: CurriculumState, config: CurriculumConfig, maps: Mapping[int, torch.Tensor]
) -> torch.Tensor | None:
    """Returns the degradation map [N, 1, H, W] under the same weights; None while no stage in the blend has one.

    `maps` leaves out stages without a map (RM_0): next to one, the other's map counts whole.
    """
    weights = {stage: weight for stage, weight in stage_weights(state, config).items() if stage in maps}
    total = sum(weights.values())
    return sum(weight / total * maps[stage] for stage, weight in weights.items()) if weights else None


def fit_scale(rewards: torch.Tensor, target: torch.Tensor) -> Scale:
    """Returns the scale that gives `rewards` [B, G] the mean and the within-group spread of `target` [B, G].

    Groups of one, which reward feedback allows, have no spread of their own: there the spread over pictures serves.
    """
    rewards, target = rewards.double(), target.double()
    over = 1 if rewards.shape[1] > 1 else 0
    spread, wanted = (
        float((values - values.mean(over, keepdim=True)).square().mean().sqrt()) for values in (rewards, target)
    )
    gain = wanted / spread if min(spread, wanted) > _STD_FLOOR else 1.0
    return Scale(gain, float(target.mean()) - gain * float(rewards.mean()))


def has_plateaued(history: tuple[float, ...], config: CurriculumConfig) -> bool:
    """Whether the later half of the last `plateau_window` mean rewards is not clearly above the earlier half.

    Clearly: by `plateau_z` standard errors of the difference. Pictures change from iteration to iteration, and so do
    their rewards; a rise within that noise is no progress worth waiting for.
    """
    window = history[-config.plateau_window :]
    if len(window) < config.plateau_window:
        return False
    half = len(window) // 2
    earlier, later = (torch.tensor(part, dtype=torch.float64) for part in (window[:half], window[-half:]))
    error = math.sqrt(float(earlier.var() + later.var()) / half)
    return float(later.mean() - earlier.mean()) <= config.plateau_z * error


def to_plain(state: CurriculumState) -> dict[str, Any]:
    """Returns the state as json-able numbers."""
    return asdict(state)


def from_plain(content: Mapping[str, Any]) -> CurriculumState:
    """Returns the state that `to_plain` wrote, bit for bit, also through json."""
    next_scale = content["next_scale"]
    return CurriculumState(
        position=content["position"],
        iterations=content["iterations"],
        ramp=content["ramp"],
        scale=Scale(**content["scale"]),
        next_scale=None if next_scale is None else Scale(**next_scale),
        history=tuple(content["history"]),
    )


def _after_stage_iteration(state: CurriculumState, config: CurriculumConfig, mean: float) -> CurriculumState:
    history = (*state.history, mean)[-config.plateau_window :]
    iterations = state.iterations + 1
    spent = 0 < config.budget_iterations <= iterations
    ready = iterations >= config.min_iterations and (spent or has_plateaued(history, config))
    is_last = state.position == len(config.stages) - 1
    return replace(state, iterations=iterations, history=history, ramp=1 if ready and not is_last else 0)
