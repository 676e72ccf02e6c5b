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
    has_gained,
    has_plateaued,
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
    config = CurriculumConfig(stages=(0, 1), budget_iterations=6, min_iterations=6, plateau_z=-1e9, ramp_iterations=3)
    seen, state = run(config, 12)
    # Six iterations of stage 0, three of the ramp at 1/4 2/4 3/4, then stage 1 to the end: the last has no budget.
    expected = [{0: 1.0}] * 6 + [{0: 0.75, 1: 0.25}, {0: 0.5, 1: 0.5}, {0: 0.25, 1: 0.75}] + [{1: 1.0}] * 3
    assert seen == expected
    assert state.position == 1


def test_plateau_by_hand():
    config = CurriculumConfig(plateau_window=4, plateau_z=1.0)
    # Halves (1, 2) and (4, 5): rise 3, variances .5 and .5, standard error √(1/2) = .71.
    assert not has_plateaued((1.0, 2.0, 4.0, 5.0), config)
    # Halves (1, 2) and (1.5, 2.5): rise .5 < .71.
    assert has_plateaued((1.0, 2.0, 1.5, 2.5), config)
    assert has_plateaued((9.0, 9.0, 5.0, 4.0), config)
    assert not has_plateaued((2.0, 1.5, 2.5), config)
    # Six flat iterations are no plateau yet where eight are asked for.
    assert not has_plateaued((2.0, 1.5, 2.5, 2.0, 1.5, 2.5), CurriculumConfig(plateau_window=8))
    # Only the last window counts.
    assert has_plateaued((-50.0, -50.0, 1.0, 2.0, 1.5, 2.5), config)


def test_a_gain_must_stand_out_by_hand():
    config = CurriculumConfig(plateau_window=4, gain_z=2.0)
    # Mean 1, standard deviation √(2/3) = .816, standard error .408: 2.4 of them.
    assert has_gained((0.0, 1.0, 1.0, 2.0), config)
    # Mean .75, standard deviation 1.71, standard error .85: less than one.
    assert not has_gained((-1.0, 0.0, 1.0, 3.0), config)
    assert not has_gained((5.0, 5.0, 5.0), config)  # too few to tell


def hand_over(gain_of, config: CurriculumConfig, seed: int, iterations: int) -> int:
    """Returns the iteration at which a stage hands over, of a reward known to gain `gain_of(iteration)`; −1: never.

    Six pictures an iteration, each with a luck of its own of size 1 and six restorations that differ by .2.
    """
    generator, state = torch.Generator().manual_seed(seed), CurriculumState()
    for iteration in range(iterations):
        restorations = 0.2 * torch.randn(6, 6, generator=generator)
        base = 0.2 * torch.randn(6, 1, generator=generator)  # its luck is the same picture's, and so is gone
        state = advance(state, config, gain_of(iteration) + restorations - base)
        if state.ramp:
            return iteration
    return -1


def test_without_a_gain_a_stage_seldom_hands_over():
    config = CurriculumConfig(stages=(0, 1), min_iterations=10, plateau_window=10)
    earliest = [hand_over(lambda _: 0.0, config, seed, 10) for seed in range(300)]
    # Two of a hundred by chance: gain_z = 2 on ten readings.
    assert sum(iteration == 9 for iteration in earliest) <= 15


def test_a_rising_reward_is_waited_for_and_its_end_is_found():
    config = CurriculumConfig(stages=(0, 1), min_iterations=10, plateau_window=20)
    found = [hand_over(lambda i: 0.03 * min(i, 40), config, seed, 90) for seed in range(100)]
    # The rise ends at 40. Between the halves of a window of twenty it is .3, seven standard errors: never missed.
    assert min(found) >= 40
    assert sum(iteration <= 65 for iteration in found) >= 95


def test_a_rising_reward_is_waited_for_and_a_flat_one_is_not():
    state = CurriculumState()
    for iteration in range(12):
        state = advance(state, CONFIG, torch.full((2, 2), float(iteration)) + rewards(0, 0)[:2, :2])
        assert state.ramp == 0
    # Halves (10, 11) and (11, 11) still rise; (11, 11) and (11, 11) do not.
    for ramp in (0, 0, 1):
        state = advance(state, CONFIG, torch.full((2, 2), 11.0))
        assert state.ramp == ramp


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
    weights = {"fgr_score": 0.5, "fgr_map": 0.5}
    assert stage_rewards(weights, 0, need_map=["fgr_map"]) == {"fgr_score": 0.5}
    assert stage_rewards(weights, 1, need_map=["fgr_map"]) == weights
    with pytest.raises(UserError, match="stage 0 of the curriculum has no degradation map"):
        stage_rewards({"fgr_map": 1.0}, 0, need_map=["fgr_map"])


def test_config_is_checked():
    with pytest.raises(ValueError, match="must rise"):
        CurriculumConfig(stages=(1, 0))
    with pytest.raises(ValueError, match="must rise"):
        CurriculumConfig(stages=())
    with pytest.raises(ValueError, match="at least 4"):
        CurriculumConfig(plateau_window=3)
