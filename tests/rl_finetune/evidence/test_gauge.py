"""The hacking gauge: what it calls learning, what hacking, and what it does then."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from rl_finetune import train
from rl_finetune.evidence.gauge import GaugeConfig, HackingGauge, panel_without
from shared.restorers.load import load_policy, read_provenance
from tests.helpers.tiny_rl import open_session, tiny_rl_config

DRAW = np.random.default_rng(0)
PROXY = DRAW.normal(0.5, 0.1, 32)
PANEL = {
    "psnr": DRAW.normal(28.0, 3.0, 32),
    "ssim": DRAW.normal(0.8, 0.05, 32),
    "colour_shift": DRAW.normal(2.0, 0.5, 32),
}


def moved(proxy: float, psnr: float, ssim: float, colour_shift: float):
    """Returns a reading's figures: the baseline moved by these amounts, with a tenth of them as noise."""
    steps = {"psnr": psnr, "ssim": ssim, "colour_shift": colour_shift}
    draw = np.random.default_rng(1)

    def by(values: np.ndarray, step: float) -> np.ndarray:
        return values + step * (1 + 0.1 * draw.normal(size=len(values)))

    return by(PROXY, proxy), {name: by(PANEL[name], step) for name, step in steps.items()}


def gauge(**options) -> HackingGauge:
    made = HackingGauge(GaugeConfig(**options), tuple(PANEL))
    assert made.read(PROXY, PANEL) is None
    return made


def test_proxy_and_panel_up_is_learning():
    reading = gauge().read(*moved(0.1, 0.5, 0.01, -0.1))
    assert (reading.verdict, reading.fallen, reading.action) == ("learning", (), None)


def test_proxy_up_and_panel_down_is_hacking():
    reading = gauge(patience=1).read(*moved(0.1, -0.5, -0.01, 0.1))
    assert reading.verdict == "hacking"
    assert set(reading.fallen) == {"psnr", "ssim", "colour_shift"}
    assert reading.action == "report"
    assert reading.proxy.z > 2.0 > -2.0 > reading.panel.z
    assert "hacking" in reading.line()
    assert "psnr" in reading.line()


def test_both_down_is_failing_and_nothing_moved_is_level():
    assert gauge().read(*moved(-0.1, -0.5, -0.01, 0.1)).verdict == "failing"
    assert gauge().read(PROXY, PANEL).verdict == "level"


def test_lower_is_better_is_known():
    # Only the colour shift rises, by three of its own spreads; up is worse.
    reading = gauge(patience=1).read(*moved(0.1, 0.0, 0.0, 1.5))
    assert (reading.verdict, reading.fallen) == ("hacking", ("colour_shift",))
    assert gauge().read(*moved(0.1, 0.0, 0.0, -1.5)).verdict == "learning"


def test_the_panel_index_by_hand():
    # One metric, 0 and 4: population standard deviation 2. Changes −1 and −5, in spreads −.5 and −2.5: mean −1.5,
    # standard deviation √2, standard error 1.
    made = HackingGauge(GaugeConfig(), ("psnr",))
    made.read([0.0, 0.0], {"psnr": [0.0, 4.0]})
    reading = made.read([0.0, 0.0], {"psnr": [-1.0, -1.0]})
    assert reading.panel.mean == -1.5
    assert reading.panel.standard_error == pytest.approx(1.0, abs=1e-12)


def test_patience_is_counted_in_a_row():
    hacked, learned = moved(0.1, -0.5, -0.01, 0.1), moved(0.1, 0.5, 0.01, -0.1)
    made = gauge(patience=2, action="rollback")
    assert made.read(*hacked).action is None
    between = made.read(*learned)
    assert (between.streak, between.action) == (0, None)
    assert made.read(*hacked).action is None
    assert made.read(*hacked).action == "rollback"
    # After acting, the count begins anew: the policy is another one now.
    assert made.read(*hacked).action is None


def test_the_gt_weight_is_raised_up_to_its_limit():
    hacked = moved(0.1, -0.5, -0.01, 0.1)
    made = gauge(patience=1, action="raise_gt_weight", gt_weight_factor=3.0, max_gt_weight_factor=10.0)
    assert [made.read(*hacked).gt_weight_factor for _ in range(4)] == [3.0, 9.0, 10.0, 10.0]


def test_resuming_through_json_equals_never_stopping():
    hacked = moved(0.1, -0.5, -0.01, 0.1)
    options = {"patience": 3, "action": "raise_gt_weight"}
    whole = gauge(**options)
    half = gauge(**options)
    whole.read(*hacked), half.read(*hacked)
    resumed = HackingGauge(GaugeConfig(**options), tuple(PANEL))
    resumed.load_state_dict(json.loads(json.dumps(half.state_dict())))
    for _ in range(3):
        assert resumed.read(*hacked) == whole.read(*hacked)
    assert resumed.gt_weight_factor == 2.0


def test_the_panel_leaves_out_what_the_reward_measures():
    assert "gradient_distance" not in panel_without(["fgr_map", "gradient_similarity"])
    assert "psnr" not in panel_without(["psnr"])
    assert {"psnr", "ssim"} <= set(panel_without(["fgr_map", "dwt"]))


def test_config_is_checked():
    with pytest.raises(ValueError, match="patience"):
        GaugeConfig(patience=0)
    with pytest.raises(ValueError, match="gt_weight_factor"):
        GaugeConfig(gt_weight_factor=1.0)


def test_a_run_that_is_rolled_back_ends_with_its_last_good_policy(tmp_path, monkeypatch):
    session = open_session(
        dataclasses.replace(tiny_rl_config(tmp_path), check_every=1, check_images=2), tmp_path / "out"
    )
    plain, actions = session.gauge.read, iter([None, None, "rollback"])  # before RL, after one iteration, after two

    def read(*values):
        reading, action = plain(*values), next(actions)
        return reading and dataclasses.replace(reading, verdict="hacking" if action else "learning", action=action)

    monkeypatch.setattr(session.gauge, "read", read)
    train.train(session)
    saved, good, average = (
        *(load_policy(folder)[0].state_dict() for folder in (tmp_path / "out", session.good)),
        session.average.values,
    )
    assert all(torch.equal(saved[name], good[name]) for name in good)
    assert any(not torch.equal(saved[name], average[name]) for name in average)
    assert read_provenance(tmp_path / "out")["iterations"] == 1
