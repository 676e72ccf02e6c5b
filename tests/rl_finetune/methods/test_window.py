"""The trained window that moves from iteration to iteration, and what it does to a rollout."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import rl_finetune.loop.iteration
from rl_finetune import train as rl
from rl_finetune.credit.config import AdvantageConfig
from rl_finetune.loop.config import TrainRlConfig
from rl_finetune.loop.groups import draw
from rl_finetune.loop.iteration import iterate
from rl_finetune.methods.trajectory import Rollout, sample_slices
from rl_finetune.methods.window import WindowConfig, sampler_of_iteration, stochastic_range
from shared.diffusion.sampler import SamplerSpec
from shared.diffusion.schedule import NoiseSchedule, ScheduleConfig
from shared.diffusion.transition import step_std
from shared.policies.load import load_policy
from tests.helpers.tiny_rl import open_session, tiny_rl_config

SCHEDULES = [
    NoiseSchedule.build(ScheduleConfig()),
    NoiseSchedule.build(ScheduleConfig("rectified_flow", prediction="flow")),
]


def trained_by_iteration(spec: SamplerSpec, config: WindowConfig, count: int, *, seed: int = 0) -> list[list[int]]:
    specs = [sampler_of_iteration(spec, config, iteration=i, seed=seed) for i in range(count)]
    return [each.stochastic_steps(SCHEDULES[0]) for each in specs]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.config.betas)
@pytest.mark.parametrize(
    "spec",
    [
        SamplerSpec(8, 0.5),
        SamplerSpec(8, 0.5, 2),
        SamplerSpec(8, 0.5, 2, 3),
        SamplerSpec(8, 0.5, 6, 2),
        SamplerSpec(1, 1.0),
    ],
)
def test_the_stochastic_range_is_what_the_schedule_says(schedule, spec):
    assert list(stochastic_range(spec)) == spec.stochastic_steps(schedule)
    assert not stochastic_range(dataclasses.replace(spec, eta=0.0))


def test_windows_by_hand():
    # Of 6 steps the last never adds noise: 0 … 4 can be trained, and a window of 2 has 4 places.
    spec = SamplerSpec(steps=6, eta=0.5)
    assert trained_by_iteration(spec, WindowConfig("declared"), 2) == [[0, 1, 2, 3, 4]] * 2
    assert trained_by_iteration(spec, WindowConfig("last", steps=2), 2) == [[3, 4]] * 2
    sliding = [[0, 1], [1, 2], [2, 3], [3, 4], [0, 1]]
    assert trained_by_iteration(spec, WindowConfig("sliding", steps=2), 5) == sliding
    twice = [window for window in sliding[:2] for _ in range(3)]
    assert trained_by_iteration(spec, WindowConfig("sliding", steps=2, every=3), 6) == twice
    # Inside what the sampler declares: 1, 2, 3.
    declared = SamplerSpec(steps=6, eta=0.5, window_start=1, window=3)
    assert trained_by_iteration(declared, WindowConfig("sliding", steps=2), 3) == [[1, 2], [2, 3], [1, 2]]
    assert trained_by_iteration(declared, WindowConfig("last", steps=1), 1) == [[3]]


def test_random_windows_depend_on_seed_and_iteration_alone_and_reach_everywhere():
    spec, config = SamplerSpec(steps=6, eta=0.5), WindowConfig("random", steps=2)
    drawn = trained_by_iteration(spec, config, 200)
    assert drawn == trained_by_iteration(spec, config, 200)
    assert drawn != trained_by_iteration(spec, config, 200, seed=1)
    counts = [drawn.count([start, start + 1]) for start in range(4)]
    # 200 draws over 4 places: 50 each, standard deviation 6.1.
    assert sum(counts) == 200
    assert all(25 < count < 75 for count in counts)
    held = trained_by_iteration(spec, WindowConfig("random", steps=2, every=5), 10)
    assert held == [held[0]] * 5 + [held[5]] * 5


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory) -> TrainRlConfig:
    return tiny_rl_config(tmp_path_factory.mktemp("window"))


def test_groups_share_the_window_and_the_declared_sampler_is_saved(tiny_run, tmp_path):
    spec = SamplerSpec(steps=5, eta=0.7)
    config = dataclasses.replace(tiny_run, sampler=spec, window=WindowConfig("sliding", steps=2))
    session = open_session(config, tmp_path)
    for iteration, expected in enumerate(([0, 1], [1, 2], [2, 3], [0, 1])):
        drawn = draw(session, iteration)
        assert [each.j for each in drawn.steps] == expected
        # Every member of every group took those two stochastic steps.
        assert all(each.x_t.shape[0] == 4 * 3 and each.std > 0 for each in drawn.steps)
    rl.train(session)
    assert load_policy(tmp_path)[1] == spec


@pytest.mark.parametrize("credit", ["spatial", "spacetime"])
def test_every_credit_trains_in_a_moving_window(tiny_run, tmp_path, credit):
    config = dataclasses.replace(
        tiny_run, window=WindowConfig("random", steps=1), advantage=AdvantageConfig(credit=credit)
    )
    session = open_session(config, tmp_path)
    assert all(torch.isfinite(torch.tensor(iterate(session, i)["loss"])) for i in range(3))


def kept_bytes(drawn: Rollout) -> int:
    names = ("x_t", "prev", "mean", "log_prob_map")
    return sum(getattr(each, name).nbytes for each in drawn.steps for name in names)


def test_memory_grows_with_the_trained_steps_only(tiny_run, tmp_path):
    def bytes_of(steps: int, window: WindowConfig) -> int:
        config = dataclasses.replace(tiny_run, sampler=SamplerSpec(steps=steps, eta=0.7), window=window)
        return kept_bytes(draw(open_session(config, tmp_path / f"{steps} {window}"), 0))

    # 12 samples of 48·8·8 floats, three times, and a log-prob map of 8·8.
    one_step = 12 * (3 * 48 * 64 + 64) * 4
    assert bytes_of(6, WindowConfig("last", steps=2)) == bytes_of(12, WindowConfig("last", steps=2)) == 2 * one_step
    assert bytes_of(12, WindowConfig("last", steps=4)) == 4 * one_step
    assert bytes_of(6, WindowConfig()) == 5 * one_step


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"window": WindowConfig("last", steps=4)}, r"window.steps is 4, but the sampler declares only 3 stochastic"),
        ({"sampler": SamplerSpec(4, 0.7, 3)}, "holds the last step alone, which is always deterministic"),
        ({"sampler": SamplerSpec(4, 0.7, 1, 1), "window": WindowConfig("random", steps=2)}, "declares only 1"),
    ],
)
def test_windows_that_do_not_fit_are_refused(tiny_run, values, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(tiny_run, **values)


@pytest.mark.parametrize(("groups", "per_update", "microbatch"), [(6, 3, 2), (2, 1, 2), (6, 6, 4), (4, 2, 1)])
def test_no_slice_of_a_rollout_crosses_the_border_of_two_updates(groups, per_update, microbatch):
    slices = sample_slices(groups, per_update, microbatch)
    assert [i for s in slices for i in range(s.start, s.stop)] == list(range(groups))
    assert all(s.start // per_update == (s.stop - 1) // per_update and s.stop - s.start <= microbatch for s in slices)


@pytest.mark.parametrize("kind", ["declared", "last", "random"])
def test_noise_weights_are_against_every_step_that_is_ever_trained(tiny_run, tmp_path, monkeypatch, kind):
    config = dataclasses.replace(tiny_run, window=WindowConfig(kind, steps=1))
    session, seen, whole = open_session(config, tmp_path), [], rl_finetune.loop.iteration.assign_credit

    def assign(judgement, step_stds, advantage, *, mean_std, **options):
        seen.append((mean_std, step_stds))
        return whole(judgement, step_stds, advantage, mean_std=mean_std, **options)

    monkeypatch.setattr(rl_finetune.loop.iteration, "assign_credit", assign)
    iterate(session, 0)
    ((mean_std, own),) = seen
    declared = [
        step_std(session.learner.policy.schedule, t) for t in config.sampler.plan(session.learner.policy.schedule)
    ]
    if kind == "random":  # another step next time: against the three that are declared
        assert mean_std == pytest.approx(sum(declared) / 3)
        assert len(own) == 1
    else:  # the same steps every time: against their own mean
        assert mean_std is None
        assert len(own) == (3 if kind == "declared" else 1)
