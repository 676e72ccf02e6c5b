"""The study: figures by hand, words given to each run, and what is refused."""

from __future__ import annotations

import json
import math
import re
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest

from rl_finetune import study
from rl_finetune.evidence.study_figures import (
    ArmFigures,
    ObjectivePart,
    difference,
    iterations_to_reach,
    read_run,
    study_tables,
)
from rl_finetune.loop.config import TrainRlConfig
from rl_finetune.reporting.study_plot import panels_svg
from rl_finetune.rewards.composite import resolve
from shared.app.config import load_config
from shared.app.errors import UserError
from shared.runs.finished import command_hash


def arm(curves: list[list[float]], gains: list[float]) -> ArmFigures:
    return ArmFigures((0, 5, 10), np.array(curves), {"reward": np.array(gains)})


SLOW = arm([[0.0, 0.01, 0.04], [0.0, 0.03, 0.04]], [0.02, 0.06])
FAST = arm([[0.0, 0.05, 0.06], [0.0, 0.05, 0.08]], [0.05, 0.07])


def write_run(folder, *, curve: list[float], before: list[float], after: list[float], command: str = "") -> None:
    folder.mkdir(parents=True)
    records = [{"step": 5 * i, "check/reward": value} for i, value in enumerate(curve)]
    records.insert(1, {"step": 1, "loss": 0.5})  # not every line is a check
    records.insert(0, {"step": 0, "check/reward": curve[0]})  # stopped before its first checkpoint, and begun again
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "evaluation.json").write_text(json.dumps({"before": {"reward": before}, "after": {"reward": after}}))
    (folder / "summary.json").write_text(json.dumps({"command": command}))


def test_a_run_is_read_as_gains_over_its_start(tmp_path):
    write_run(tmp_path / "a", curve=[0.5, 0.55, 0.7], before=[0.1, 0.3], after=[0.2, 0.6])
    found = read_run(tmp_path / "a", curve="reward", parts={})
    assert found.iterations == (0, 5, 10)
    assert found.curve == pytest.approx((0.0, 0.05, 0.2))
    assert found.gains == {"reward": pytest.approx(0.2)}


def test_the_objective_adds_rewards_in_their_own_spreads(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    checks = [{"step": 0, "check/a": 1.0, "check/b": 5.0}, {"step": 4, "check/a": 1.5, "check/b": 4.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(check) + "\n" for check in checks))
    both = {"before": {"a": [1.0], "b": [2.0]}, "after": {"a": [2.0], "b": [1.0]}}
    (folder / "evaluation.json").write_text(json.dumps(both))
    parts = {"a": ObjectivePart(weight=0.5, spread=0.1), "b": ObjectivePart(weight=0.25, spread=2.0)}
    found = read_run(folder, curve="objective", parts=parts)
    assert found.curve == pytest.approx((0.0, 0.5 * 0.5 / 0.1 - 0.25 * 1.0 / 2.0))
    assert found.gains["objective"] == pytest.approx(0.5 * 1.0 / 0.1 - 0.25 * 1.0 / 2.0)
    assert read_run(folder, curve="b", parts={}).curve == (0.0, -1.0)


def test_means_errors_and_differences_by_hand():
    np.testing.assert_allclose(SLOW.mean_curve(), [0.0, 0.02, 0.04])
    np.testing.assert_allclose(SLOW.curve_error(), [0.0, 0.01, 0.0], atol=1e-12)  # (.03 − .01)/√2/√2
    found = difference(FAST, SLOW, "reward")  # .03 and .01 by seed: paired, not .06 − .04 with both spreads
    assert (found.mean, found.standard_error, found.n) == (pytest.approx(0.02), pytest.approx(0.01), 2)


def test_the_iteration_that_reaches_another_arms_gain():
    assert iterations_to_reach(FAST, 0.04) == pytest.approx(4.0)  # .05 at 5
    assert iterations_to_reach(FAST, 0.06) == pytest.approx(7.5)  # .05 at 5, .07 at 10
    assert math.isnan(iterations_to_reach(SLOW, 0.05))
    dips = arm([[0.0, 0.05, 0.01], [0.0, 0.05, 0.01]], [0.0, 0.0])
    assert math.isnan(iterations_to_reach(dips, 0.02))  # there once, and lost again
    assert math.isnan(iterations_to_reach(FAST, -0.01))  # a loss is not a goal, though every curve starts above it


def test_tables_compare_with_the_first_arm():
    rows = study_tables({"slow": SLOW, "fast": FAST}, {"speed": ["slow", "fast"]}, ["reward"]).splitlines()
    assert rows[0].startswith("**speed** (mean ± standard error over 2 seeds of RL; p: paired t-test")
    assert rows[2] == "| | reward ↑ | reward against slow (p) | iterations to its gain |"
    assert rows[4] == "| slow | +0.0400 ± 0.0200 |  | 10 |"
    assert rows[5] == "| fast | +0.0600 ± 0.0100 | +0.0200 ± 0.0100 (0.295) | 4 |"  # t = 2 on one degree of freedom
    assert (
        study_tables({"slow": SLOW, "fast": FAST}, {"x": ["fast", "slow"]}, ["reward"]).rstrip().endswith("| never |")
    )


def test_curves_are_drawn_on_their_panels_scale():
    svg = panels_svg({"slow": SLOW, "fast": FAST}, {"a": ["slow", "fast"], "b": ["slow", "fast"]}, title="reward")
    assert svg.count("<polygon") == 4
    # The slow arm's band: out along mean + error, back along mean − error; .03 and .01 at iteration 5, .04 at 10.
    band = re.search(r'<polygon points="([^"]+)"', svg)[1].split()
    assert [point.split(",")[0] for point in band] == ["0.0", "150.0", "300.0", "300.0", "150.0", "0.0"]
    heights = [f"{(0.084 - y) / 0.088 * 190:.1f}" for y in (0.0, 0.03, 0.04, 0.04, 0.01, 0.0)]
    assert [point.split(",")[1] for point in band] == heights
    # From 0 to .08 (the fast arm's last mean and error) and 5 % more: .07 lies at 14/88 of the panel's 190 px.
    fast = re.findall(r'<polyline points="([^"]+)" fill="none" stroke="#b3261e"', svg)
    assert fast[0] == fast[1]
    assert fast[0].split()[0] == "0.0,181.4"
    assert fast[0].split()[-1] == f"300.0,{(0.084 - 0.07) / 0.088 * 190:.1f}"
    alone = panels_svg({"slow": SLOW, "fast": FAST}, {"a": ["slow", "fast"], "b": ["slow"]}, title="reward")
    first, second = re.findall(r'<polyline points="([^"]+)" fill="none" stroke="#1b6ca8"', alone)
    assert first != second


@pytest.fixture
def small_study(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(
        "config: configs/train_rl_face.yaml\nsettings: [iterations=2]\nseeds: [3, 4]\n"
        "arms: {scalar: [advantage.credit=scalar], mixed: []}\ncomparisons: {credit: [scalar, mixed]}\n"
        "report: [reward]\n"
    )
    return path


def test_every_arm_runs_with_every_seed_once(small_study, tmp_path, monkeypatch, capsys):
    asked = []

    def run(command, **_):
        words = dict(word.split("=", 1) for word in command if "=" in word)
        asked.append((words["seed"], words.get("advantage.credit"), words["iterations"], words["groups"]))
        out = tmp_path / "study" / ("scalar" if "advantage.credit" in words else "mixed") / f"seed_{words['seed']}"
        assert words["out"] == str(out)
        after = [0.1, 0.1 * int(words["seed"])]
        write_run(out, curve=[0.0, 0.1], before=[0.0, 0.0], after=after, command=command_hash(command[3:]))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(study.subprocess, "run", run)
    words = [str(small_study), f"out={tmp_path / 'study'}", "also=[groups=2]"]
    study.main(words)
    assert asked == [(seed, credit, "2", "2") for seed in "34" for credit in ("scalar", None)]
    study.main(words)  # finished runs are not run again
    assert len(asked) == 4
    monkeypatch.setattr(study.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 2))
    with pytest.raises(UserError, match="arm scalar, seed 3 failed"):  # others are given to the stage, which refuses
        study.main([*words[:2], "also=[groups=4]"])
    with pytest.raises(UserError, match="report names lpips, but the runs have only reward"):
        study.main([*words, "report=[lpips]"])
    assert "| mixed | +0.2250 ± 0.0250 | +0.0000 ± 0.0000 (1.000) | 5 |" in capsys.readouterr().out  # (.2 + .25)/2
    assert {p.name for p in (tmp_path / "study").glob("study.*")} == {"study.json", "study.md", "study.svg"}


def test_a_failing_arm_is_named(small_study, tmp_path, monkeypatch):
    monkeypatch.setattr(study.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 2))
    with pytest.raises(UserError, match="arm scalar, seed 3 failed"):
        study.main([str(small_study), f"out={tmp_path / 'study'}"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seeds=[1]"], "at least two different"),
        (["seeds=[1,1]"], "at least two different"),
        (["comparisons.credit=[scalar,spatail]"], "names spatail, but arms has only scalar, mixed"),
        (["comparisons.credit=[scalar]"], "at least two arms"),
        (["report=[]"], "report must not be empty"),
    ],
)
def test_refused(small_study, words, message):
    with pytest.raises(UserError, match=message):
        load_config(study.StudyConfig, [str(small_study), *words])


def test_the_shipped_study_is_sound():
    config = load_config(study.StudyConfig, ["configs/study_face.yaml"])
    arms = [load_config(TrainRlConfig, [config.config, *config.settings, *words]) for words in config.arms.values()]
    assert len({repr(arm) for arm in arms}) == len(arms)  # no two arms are one
    assert len({(arm.iterations, arm.groups, arm.group_size) for arm in arms}) == 1  # and all have one budget
    shipped = {part.name for part in arms[0].reward.parts}
    assert set(config.objective) == set(resolve(dict.fromkeys(shipped, 1.0), "embedded")[0])


def test_unfinished_runs_are_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "metrics.jsonl").write_text('{"step": 0, "check/reward": 1}\n')
    with pytest.raises(UserError, match="check_every"):
        read_run(tmp_path / "a", curve="reward", parts={})
    write_run(tmp_path / "b", curve=[0.0, 0.1], before=[0], after=[0])
    (tmp_path / "b" / "evaluation.json").unlink()
    with pytest.raises(UserError, match="not finished"):
        read_run(tmp_path / "b", curve="reward", parts={})
    write_run(tmp_path / "c", curve=[0.0, 0.1], before=[0], after=[0])
    parts = {"reward": ObjectivePart(1.0, 1.0), "dwt": ObjectivePart(1.0, 1.0)}
    with pytest.raises(UserError, match=r"objective names dwt, which .*c did not measure"):
        read_run(tmp_path / "c", curve="reward", parts=parts)
    with pytest.raises(UserError, match="no curve of check/reward and check/dwt"):
        read_run(tmp_path / "c", curve="objective", parts=parts)
