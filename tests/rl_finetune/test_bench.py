"""The benchmark of RL on tiny networks: every figure there, and consistent with the others."""

from __future__ import annotations

import dataclasses
import json

import pytest

import rl_finetune.bench
from rl_finetune.bench import Shape, at_last_stage, bare_passes, measure_memory, memory_shapes
from rl_finetune.loop.groups import draw
from shared.app.config import to_yaml
from shared.app.errors import UserError
from tests.helpers.tiny_rl import open_session, tiny_rl_config


def test_the_rl_bench_says_where_the_time_goes(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(rl_finetune.bench, "ITERATIONS", 2)
    path = tmp_path / "rl.yaml"
    path.write_text(to_yaml(tiny_rl_config(tmp_path)))
    rl_finetune.bench.main([str(path)])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not (tmp_path / "out").exists()  # nothing is left behind
    seconds, share = figures["seconds"], figures["share"]
    assert sum(share.values()) == pytest.approx(
        1.0, abs=0.2
    )  # medians of parts, and the average of weights beside them
    assert figures["rollout_per_second"] == pytest.approx(12 / seconds["rollout"])  # 4 groups of 3
    assert figures["update_per_second"] == pytest.approx(12 / seconds["update"])
    bare = sum(seconds[f"bare {part}"] for part in ("rollout", "judge", "update"))
    assert figures["times_networks"] == pytest.approx((seconds["data"] + seconds["whole"]) / bare)
    assert [m["trained_steps"] for m in figures["memory"]] == [3, 3, 2, 2, 7]
    assert {steps: seconds > 0 for steps, seconds in figures["update_by_steps_per_pass"].items()} == {
        "1": True,
        "3": True,
    }


def test_memory_grows_with_groups_and_trained_steps_not_with_steps(tmp_path):
    config = at_last_stage(tiny_rl_config(tmp_path))
    session = open_session(config, tmp_path / "run")
    few, more, longer, wider = (
        measure_memory(session, shape) for shape in (Shape(3, 4, 1), Shape(3, 4, 3), Shape(3, 8, 1), Shape(6, 4, 1))
    )
    # A trained step keeps three latents and a log-prob map: 12 samples · 64 cells · (3 · 48 + 1) floats = 0.425 MB, and
    # the restorations are 12 · 3 · 32 · 32 floats = 0.141 MB.
    assert few["rollout_keeps_mb"] == pytest.approx(0.425 + 0.141, abs=0.002)
    assert more["rollout_keeps_mb"] == pytest.approx(3 * 0.425 + 0.141, abs=0.002)
    assert longer["rollout_keeps_mb"] == few["rollout_keeps_mb"]
    assert wider["rollout_keeps_mb"] == pytest.approx(2 * few["rollout_keeps_mb"], abs=0.002)
    assert longer["peak_mb"] == pytest.approx(few["peak_mb"], rel=0.05)
    assert more["peak_mb"] > few["peak_mb"] + 0.4
    assert wider["peak_mb"] > few["peak_mb"] + 2 * 0.566  # twice the pictures pass through the networks as well


def test_bare_passes_are_the_networks_of_an_iteration(tmp_path):
    session = open_session(at_last_stage(tiny_rl_config(tmp_path)), tmp_path / "run")
    drawn, calls = draw(session, 0), {"policy": 0, "reward": 0}

    def count(name):
        def hook(module, inputs, output):
            calls[name] += len(inputs[0])

        return hook

    session.learner.policy.unet.register_forward_hook(count("policy"))
    session.judge.final.toolbox.given["reward_model"].register_forward_hook(count("reward"))
    passes = bare_passes(session, drawn)
    passes["rollout"]()
    assert calls["policy"] == 12 * 4  # every sample, every step
    passes["judge"]()
    assert calls["reward"] == 12
    passes["update"]()
    assert calls["policy"] == 12 * (4 + 3)  # the three trained ones again
    assert all(p.grad is not None for p in session.learner.policy.parameters())


def test_shapes_differ_in_one_thing_and_feedback_is_refused(tmp_path):
    shapes = memory_shapes(Shape(8, 8, 7))
    assert shapes == [Shape(8, 8, 7), Shape(16, 8, 7), Shape(8, 8, 2), Shape(8, 16, 2), Shape(8, 16, 15)]
    config = dataclasses.replace(tiny_rl_config(tmp_path), method="refl")
    with pytest.raises(UserError, match="the benchmark takes method=policy_gradient apart, got refl"):
        at_last_stage(config)
