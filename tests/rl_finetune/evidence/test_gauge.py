"""The hacking gauge: verdicts from the worst family, its actions, and that resuming changes nothing."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rl_finetune import train
from rl_finetune.evidence.gauge import GaugeConfig, HackingGauge
from rl_finetune.loop.config import TrainRlConfig
from rl_finetune.loop.final_evaluation import final_reading
from shared.policies.load import load_policy
from shared.policies.policy_folder import read_provenance
from tests.helpers.tiny_rl import open_session, tiny_rl_config

DRAW = np.random.default_rng(0)
BASE = {
    "reward": DRAW.normal(0.5, 0.1, 32),
    "psnr": DRAW.normal(24.0, 2.0, 32),
    "dists": DRAW.normal(0.3, 0.05, 32),
    "detail_energy": DRAW.normal(-1.0, 0.3, 32),
    "true_detail": DRAW.normal(0.2, 0.05, 32),
    "colour_shift": DRAW.normal(2.0, 0.5, 32),
}
MEASURED = tuple(name for name in BASE if name != "reward")
HACKED = {"reward": 0.1, "psnr": -1.0, "colour_shift": 1.5}
LEARNED = {"reward": 0.1, "psnr": 1.0, "dists": -0.05}


def values(**steps: float) -> dict[str, list[float]]:
    """Returns the base policy's values, each moved by so much on average, with a spread between pictures."""
    spread = np.random.default_rng(1).normal(1.0, 0.3, 32)
    return {name: (of + steps.get(name, 0.0) * spread).tolist() for name, of in BASE.items()}


def gauge(readings: int = 3, **options) -> HackingGauge:
    made = HackingGauge(GaugeConfig(**options), MEASURED, readings)
    assert made.read(values(), proxy="reward") is None
    return made


def read(made: HackingGauge, **steps: float):
    return made.read(values(**steps), proxy="reward")


@pytest.mark.parametrize(
    ("steps", "verdict", "fault"),
    [
        (LEARNED, "learning", None),
        (HACKED, "hacking", "colour"),
        ({"reward": 0.1, "psnr": 1.0, "colour_shift": 1.5}, "hacking", "colour"),  # not averaged away
        ({"reward": 0.1, "psnr": -1.0}, "hacking", "fidelity"),
        ({"psnr": -1.0}, "failing", "fidelity"),
        ({"reward": -0.1, "psnr": -1.0}, "failing", "fidelity"),
        ({"reward": 0.1}, "level", None),  # nothing else moves
        ({"psnr": 1.0}, "level", None),  # not what is trained
        ({}, "level", None),
        ({"reward": 0.1, "psnr": 1.0, "colour_shift": 0.1}, "learning", None),  # sure, but nobody would mind
    ],
)
def test_the_worst_family_decides(steps, verdict, fault):
    reading = read(gauge(), **steps)
    assert (reading.verdict, reading.fault) == (verdict, fault)


def test_a_loss_either_side_of_right_counts_and_is_excused_by_true_detail_alone():
    assert read(gauge(), reward=0.1, detail_energy=-0.5).fault == "detail"
    assert read(gauge(), reward=0.1, detail_energy=4.0).fault == "detail"  # from −1 to +3
    assert read(gauge(), reward=0.1, detail_energy=0.5).verdict == "learning"  # from −1 to −.5
    # Energy falls because noise goes, while more of the truth's detail is there.
    assert read(gauge(), reward=0.1, detail_energy=-0.5, true_detail=0.1).verdict == "learning"
    assert read(gauge(), reward=0.1, detail_energy=-0.5, true_detail=0.001).fault == "detail"


def test_the_line_names_who_is_at_fault_and_who_gained():
    line = read(gauge(), **HACKED, dists=-0.05).line()
    assert line.startswith("hacking: proxy +")
    assert "worse: colour (colour_shift -" in line
    assert line.index("colour") < line.index("fidelity (psnr -")  # what it is before what it does
    assert "better: perception (dists +" in line


def test_learning_needs_to_lie_beyond_the_base_policys_curve_where_it_is_known():
    def read_with(beyond, **steps):
        return gauge().read(values(**steps), proxy="reward", beyond_curve=beyond)

    assert read_with(None, **LEARNED).verdict == "learning"
    assert read_with(True, **LEARNED).verdict == "learning"
    assert read_with(False, **LEARNED).verdict == "level"
    assert read_with(True, reward=0.1).verdict == "learning"
    # Beyond the curve fidelity may be the price of perception; colour may not, and neither without a gain.
    trade = {"reward": 0.1, "psnr": -1.0, "dists": -0.05}
    assert [read_with(beyond, **trade).verdict for beyond in (None, False, True)] == ["hacking", "hacking", "learning"]
    assert read_with(True, **trade, colour_shift=1.5).fault == "colour"
    assert read_with(True, reward=0.1, psnr=-1.0).fault == "fidelity"


def test_a_gain_that_goes_with_what_nobody_would_miss_is_none():
    made = HackingGauge(GaugeConfig(), MEASURED, 3)
    rewards = {name: values(reward=step)["reward"] for name, step in (("base", 0.0), ("most", 0.08), ("some", 0.02))}
    base = {"mean tile": rewards["base"], "re-encoding": rewards["base"]}
    assert made.read(values(), proxy="reward", removed=base) is None

    def verdict(removed, **steps):
        reading = made.read(values(**steps), proxy="reward", removed=removed)
        return reading.verdict, reading.gone

    kept = {"mean tile": rewards["most"], "re-encoding": rewards["most"]}
    lost = {"mean tile": rewards["some"], "re-encoding": rewards["most"]}
    assert verdict(kept, **LEARNED) == ("learning", ())
    assert verdict(lost, **LEARNED) == ("hacking", ("mean tile",))
    reading = made.read(values(**LEARNED), proxy="reward", removed=lost)
    assert "the proxy's gain goes with: mean tile" in reading.line()
    assert reading.fault is None
    # There is nothing to lose where the reward has not risen.
    assert verdict({"mean tile": rewards["base"]}, psnr=1.0) == ("level", ())
    assert verdict({"unknown": rewards["base"]}, **LEARNED) == ("learning", ())


def test_the_more_readings_are_expected_the_surer_each_must_be():
    # 32 pictures, a change whose standard errors are about 3.3: p is near .001.
    weak = {"reward": 0.1, "colour_shift": 0.6}
    noise = 0.9 * np.random.default_rng(3).normal(size=32)
    noise -= noise.mean()

    def fault(expected):
        made = gauge(expected)
        found = values(**weak)
        found["colour_shift"] = (np.array(found["colour_shift"]) + noise).tolist()
        return made.read(found, proxy="reward").fault

    assert fault(1) == "colour"
    assert fault(1000) is None


def test_patience_is_counted_in_a_row():
    made = gauge(patience=2, action="rollback")
    assert read(made, **HACKED).action is None
    between = read(made, **LEARNED)
    assert (between.streak, between.action) == (0, None)
    assert read(made, **HACKED).action is None
    assert read(made, **HACKED).action == "rollback"
    # After acting, the count begins anew: the policy is another one now.
    assert read(made, **HACKED).action is None


def test_the_gt_weight_is_raised_up_to_its_limit():
    made = gauge(patience=1, action="raise_gt_weight", gt_weight_factor=3.0, max_gt_weight_factor=10.0)
    assert [read(made, **HACKED).gt_weight_factor for _ in range(4)] == [3.0, 9.0, 10.0, 10.0]


def test_resuming_through_json_equals_never_stopping():
    options = {"patience": 3, "action": "raise_gt_weight"}
    removed = {"mean tile": values()["reward"]}

    def again(made):
        return made.read(values(**HACKED), proxy="reward", removed=removed)

    whole, half = (HackingGauge(GaugeConfig(**options), MEASURED, 2) for _ in range(2))
    for made in (whole, half):
        assert made.read(values(), proxy="reward", removed=removed) is None
        assert again(made).gone == ("mean tile",)
    resumed = HackingGauge(GaugeConfig(**options), MEASURED, 2)
    resumed.load_state_dict(json.loads(json.dumps(half.state_dict())))
    for _ in range(3):
        assert again(resumed) == again(whole)
    assert resumed.gt_weight_factor == 2.0
    assert resumed.state_dict() == whole.state_dict()


def test_config_is_checked():
    with pytest.raises(ValueError, match="patience"):
        GaugeConfig(patience=0)
    with pytest.raises(ValueError, match="gt_weight_factor"):
        GaugeConfig(gt_weight_factor=1.0)
    with pytest.raises(ValueError, match=r"gauge\.alpha must be between 0 and \.5, got 0"):
        GaugeConfig(alpha=0.0)


def test_a_run_that_is_rolled_back_ends_with_its_last_good_policy(tmp_path, monkeypatch):
    session = open_session(
        dataclasses.replace(tiny_rl_config(tmp_path), check_every=1, check_images=2), tmp_path / "out"
    )
    plain, actions = session.gauge.read, iter([None, None, "rollback"])  # before RL, after one iteration, after two

    def read(found, **more):
        # The reward is re-scored after every removal, at the baseline too.
        assert set(more["removed"]) == {"mean tile", "half-pixel shift", "re-encoding"}
        assert all(len(scores) == 2 for scores in more["removed"].values())
        reading, action = plain(found, **more), next(actions)
        return reading and dataclasses.replace(reading, verdict="hacking" if action else "learning", action=action)

    monkeypatch.setattr(session.gauge, "read", read)
    assert session.gauge.readings_expected == session.config.iterations + 1  # the evaluation at the end is one, too
    train.train(session)
    saved, good, average = (
        *(load_policy(folder)[0].state_dict() for folder in (tmp_path / "out", session.good)),
        session.average.values,
    )
    assert all(torch.equal(saved[name], good[name]) for name in good)
    assert any(not torch.equal(saved[name], average[name]) for name in average)
    assert read_provenance(tmp_path / "out")["iterations"] == 1


def last_reading(folder, after: dict, *, checks: int = 0, removed: float = 0.1):
    """Returns the last reading of a run that was checked so many times, of what lies in its evaluation.json."""
    what_is_left = {
        "before": {"mean tile": values()["reward"]},
        "after": {"mean tile": values(reward=removed)["reward"]},
    }
    (folder / "evaluation.json").write_text(json.dumps({"before": values(), "after": after, "removed": what_is_left}))
    config = TrainRlConfig(iterations=10 * max(1, checks), check_every=10 if checks else 0)
    assert config.readings == checks + 1
    return final_reading(config, SimpleNamespace(judges=MEASURED, proxy="reward"), folder, beyond_curve=True)


def test_the_last_reading_looks_at_what_is_left_too(tmp_path):
    assert last_reading(tmp_path, values(**LEARNED)).verdict == "learning"
    reading = last_reading(tmp_path, values(**LEARNED), removed=0.02)
    assert (reading.verdict, reading.gone) == ("hacking", ("mean tile",))


def test_the_last_reading_is_one_of_the_runs(tmp_path):
    # A loss of three standard errors: p .0026, .0105 for four families. One of 20 readings may spend .0025 alone.
    noise = np.random.default_rng(3).normal(size=32)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    after = values()
    after["psnr"] = (np.array(after["psnr"]) - 0.5 + 0.5 / 3 * 32**0.5 * noise).tolist()
    assert last_reading(tmp_path, after).verdict == "failing"
    assert last_reading(tmp_path, after, checks=19).verdict == "level"
