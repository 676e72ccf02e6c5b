"""CCL: the reward grows stricter stage by stage (RM_0, RM_1, …), each blended in over a ramp.

Pure functions of a frozen state of plain numbers, so that a resumed run goes on from exactly where it was. Every process
must see the same rewards: pass those gathered over all of them. arXiv 2512.22647, co-evolutionary curriculum learning.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy import stats

from shared.app.errors import UserError


@dataclass(frozen=True)
class CurriculumConfig:
    """When a stage of the reward model hands over to the next."""

    stages: tuple[int, ...] = (3,)  # stages of the reward model, in order; one stage is no curriculum
    # Iterations after which a stage hands over at the latest; 0: only after a gain, at a plateau.
    budget_iterations: int = 0
    min_iterations: int = 10  # iterations before which no stage hands over
    plateau_window: int = 10  # iterations that are read together
    plateau_z: float = 1.0  # a rise from window to window below this many standard errors is a plateau
    gain_alpha: float = 0.05  # how often a stage that teaches nothing may be taken for one that has, over all readings
    ramp_iterations: int = 5  # iterations over which the next stage is blended in

    def __post_init__(self) -> None:
        if not self.stages or list(self.stages) != sorted(set(self.stages)):
            raise ValueError(f"curriculum.stages must rise, got {self.stages}")
        if self.plateau_window < 4 or self.ramp_iterations < 1:
            raise ValueError(
                "curriculum.plateau_window must be at least 4 and ramp_iterations at least 1, got "
                f"{self.plateau_window} and {self.ramp_iterations}"
            )


@dataclass(frozen=True)
class CurriculumState:
    """Where the curriculum stands."""

    position: int = 0  # index into the config's stages
    iterations: int = 0  # completed in this stage, the ramp into it not counted
    ramp: int = 0  # iterations of the ramp into the next stage begun; 0 when none is under way
    history: tuple[float, ...] = ()  # this stage's mean gains above the base policy, one an iteration


def stage_rewards(weights: Mapping[str, float], stage: int, *, need_map: Collection[str]) -> dict[str, float]:
    """Returns the weights of one stage's own reward R_k = λ₁·fgr_score + λ₂·fgr_worst_spot + ….

    RM_0 has no map: the rewards named in `need_map` are left out. Raises UserError when none is left.
    """
    kept = {name: weight for name, weight in weights.items() if stage > 0 or name not in need_map}
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


def blend_maps(shares: Mapping[int, float], maps: Mapping[int, torch.Tensor]) -> torch.Tensor | None:
    """Returns the degradation map [N, 1, H, W] under the stages' shares; None while no stage in the blend has one.

    `maps` leaves out stages without a map (RM_0): next to one, the other's map counts whole.
    """
    weights = {stage: weight for stage, weight in shares.items() if stage in maps}
    total = sum(weights.values())
    return sum(weight / total * maps[stage] for stage, weight in weights.items()) if weights else None


def advance(state: CurriculumState, config: CurriculumConfig, gain: torch.Tensor) -> CurriculumState:
    """Returns the state for the next iteration.

    gain: [B, G], what this iteration's own stage (on a ramp, the one being left) said of every restoration, less what it
    said of the base policy's restoration of the same picture, in the units that training adds. Pictures differ far more
    in reward than a policy gains in ten iterations; less the base's, that luck is gone.
    """
    if 0 < state.ramp < config.ramp_iterations:
        return replace(state, ramp=state.ramp + 1)
    if state.ramp:
        return CurriculumState(position=state.position + 1)
    history = (*state.history, float(gain.double().mean()))
    iterations = state.iterations + 1
    spent = 0 < config.budget_iterations <= iterations
    ready = iterations >= config.min_iterations and (spent or has_settled(history, config))
    is_last = state.position == len(config.stages) - 1
    return replace(state, iterations=iterations, history=history, ramp=1 if ready and not is_last else 0)


def has_settled(history: tuple[float, ...], config: CurriculumConfig) -> bool:
    """Whether a stage has taught something and has stopped doing so, read once a window of `plateau_window` iterations.

    Taught: the last window lies above the stage's first, by a one-sided Welch test; that the windows do not overlap and
    that α is spent over the readings (6/(π²k²) of it on the k-th) makes `gain_alpha` hold for the whole stage, however
    long. Stopped: the last window is not above the one before by `plateau_z` standard errors. Against the first window
    of its own stage, so that a later stage gets no credit for what an earlier one taught, and a yardstick that is off by
    a constant (another sampler than the base was drawn with) changes nothing.
    """
    size, windows = config.plateau_window, len(history) // config.plateau_window
    if windows < 2 or len(history) % size:
        return False
    first, before, last = (history[k * size : (k + 1) * size] for k in (0, windows - 2, windows - 1))
    level = config.gain_alpha * 6.0 / (math.pi * (windows - 1)) ** 2
    gained = stats.ttest_ind(last, first, equal_var=False, alternative="greater").pvalue <= level
    error = math.sqrt((np.var(before, ddof=1) + np.var(last, ddof=1)) / size)
    return bool(gained) and float(np.mean(last) - np.mean(before)) <= config.plateau_z * error


def to_plain(state: CurriculumState) -> dict[str, Any]:
    """Returns the state as json-able numbers."""
    return asdict(state)


def from_plain(content: Mapping[str, Any]) -> CurriculumState:
    """Returns the state that `to_plain` wrote, bit for bit, also through json."""
    return CurriculumState(**{**content, "history": tuple(content["history"])})
