"""CCL's hand-over: when it comes, what the blend is, and that a resumed run goes on."""

from __future__ import annotations

import json

import pytest
import torch

from rl_finetune.rewards.curriculum import (
    CurriculumConfig,
    CurriculumState,
    advance,
    blend_maps,
    from_plain,
    has_settled,
    stage_rewards,
    stage_weights,
    to_plain,
)
from shared.app.errors import UserError

CONFIG = CurriculumConfig(stages=(0, 1, 2), min_iterations=4, plateau_window=4, ramp_iterations=3)


def rewards(iteration: int, stage: int) -> torch.Tensor:
    """Returns [3, 4] rewards of a stage at an iteration."""
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(100 * iteration + stage))


def run(config: CurriculumConfig, iterations: int, state: CurriculumState | None = None, start: int = 0):
    """Returns every iteration's weights and the last state."""
    state, seen = state or CurriculumState(), []
    for iteration in range(start, iterations):
        seen.append(stage_weights(state, config))
        state = advance(state, config, rewards(iteration, config.stages[state.position]))
    return seen, state


def test_one_stage_is_the_plain_reward():
    seen, state = run(CurriculumConfig(stages=(2,), budget_iterations=5), 20)
    assert seen == [{2: 1.0}] * 20
    assert state.iterations == 20


def test_a_budget_hands_over_over_a_ramp():
    config = CurriculumConfig(stages=(0, 1), budget_iterations=6, min_iterations=6, ramp_iterations=3)
    seen, state = run(config, 12)
    # Six iterations of stage 0, three of the ramp at 1/4 2/4 3/4, then stage 1 to the end: the last has no budget.
    expected = [{0: 1.0}] * 6 + [{0: 0.75, 1: 0.25}, {0: 0.5, 1: 0.5}, {0: 0.25, 1: 0.75}] + [{1: 1.0}] * 3
    assert seen == expected
    assert state.position == 1


def test_a_stage_is_read_once_a_window_against_its_own_first():
    config = CurriculumConfig(plateau_window=4, plateau_z=1.0, gain_alpha=0.05)
    first, higher = (0.0, 0.1, -0.1, 0.0), (5.0, 5.1, 4.9, 5.0)
    assert not has_settled(first, config)  # nothing to compare with
    assert not has_settled((*first, *higher), config)  # taught, and still rising: the window before was the first
    assert has_settled((*first, *higher, *higher), config)  # taught, and level
    assert not has_settled((*first, *higher, *higher, 5.0), config)  # between two readings
    assert not has_settled((*first, *first, *first), config)  # level, and taught nothing
    assert not has_settled((*first, *higher, *(x + 5.0 for x in higher)), config)  # still rising
    # A yardstick that is off by a constant changes nothing.
    assert has_settled(tuple(x - 3.0 for x in (*first, *higher, *higher)), config)


def hand_over(gain_of, config: CurriculumConfig, seed: int, iterations: int) -> int:
    """Returns the iteration at which a stage hands over, of a reward known to gain `gain_of(iteration)`; −1: never.

    Six pictures an iteration, six restorations of each that differ by .2, and one of the base policy's.
    """
    generator, state = torch.Generator().manual_seed(seed), CurriculumState()
    for iteration in range(iterations):
        restorations = 0.2 * torch.randn(6, 6, generator=generator)
        base = 0.2 * torch.randn(6, 1, generator=generator)
        state = advance(state, config, gain_of(iteration) + restorations - base)
        if state.ramp:
            return iteration
    return -1


@pytest.mark.parametrize("window", [6, 10])
def test_without_a_gain_a_stage_hardly_ever_hands_over(window):
    config = CurriculumConfig(stages=(0, 1), min_iterations=window, plateau_window=window)
    found = [hand_over(lambda _: 0.0, config, seed, 100) for seed in range(200)]
    # Over a hundred iterations, not at the first reading alone: alpha is .05, and 5 + 2·1.5 % are allowed by chance.
    assert sum(iteration >= 0 for iteration in found) <= 16


def test_a_rising_reward_is_waited_for_and_its_end_is_found():
    config = CurriculumConfig(stages=(0, 1), min_iterations=10, plateau_window=10)
    found = [hand_over(lambda i: 0.03 * min(i, 40), config, seed, 120) for seed in range(100)]
    # The rise ends at 40. From window to window it is .3, seven standard errors: never missed.
    assert min(found) >= 49
    assert sum(iteration <= 79 for iteration in found) >= 90


@pytest.mark.parametrize("stop", [3, 6, 8, 9, 14])
def test_resuming_through_json_equals_never_stopping(stop):
    config = CurriculumConfig(
        stages=(0, 1, 2), budget_iterations=6, min_iterations=4, plateau_window=4, ramp_iterations=3
    )
    whole, whole_state = run(config, 20)
    _, half = run(config, stop)
    assert from_plain(json.loads(json.dumps(to_plain(half)))) == half
    resumed, state = run(config, 20, from_plain(json.loads(json.dumps(to_plain(half)))), start=stop)
    assert state == whole_state
    assert resumed == whole[stop:]


def test_maps_are_blended_and_a_stage_without_one_gives_way():
    maps = {1: torch.full((1, 1, 2, 2), 0.4), 2: torch.full((1, 1, 2, 2), 0.8)}
    shares = stage_weights(CurriculumState(position=1, ramp=1), CONFIG)
    # .75·.4 + .25·.8
    torch.testing.assert_close(blend_maps(shares, maps), torch.full((1, 1, 2, 2), 0.5))
    from_rm_0 = stage_weights(CurriculumState(position=0, ramp=1), CONFIG)
    assert torch.equal(blend_maps(from_rm_0, {1: maps[1]}), maps[1])
    assert blend_maps({0: 1.0}, {}) is None


def test_stage_zero_has_no_map_to_reward():
    weights = {"fgr_score": 0.5, "fgr_worst_spot": 0.5}
    assert stage_rewards(weights, 0, need_map=["fgr_worst_spot"]) == {"fgr_score": 0.5}
    assert stage_rewards(weights, 1, need_map=["fgr_worst_spot"]) == weights
    with pytest.raises(UserError, match="stage 0 of the curriculum has no degradation map"):
        stage_rewards({"fgr_worst_spot": 1.0}, 0, need_map=["fgr_worst_spot"])


def test_config_is_checked():
    with pytest.raises(ValueError, match="must rise"):
        CurriculumConfig(stages=(1, 0))
    with pytest.raises(ValueError, match="must rise"):
        CurriculumConfig(stages=())
    with pytest.raises(ValueError, match="at least 4"):
        CurriculumConfig(plateau_window=3)
