"""A gain must show against LPIPS and DISTS both, and a table says what stands in where they are missing."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from rl_finetune.evidence.curve import Curve, beyond
from rl_finetune.evidence.gain import Gain, planes_of, write_gain
from shared.diffusion.sampler import SamplerSpec

DEPLOYED = SamplerSpec(4, 0.5)
ALL = ("psnr", "ssim", "gradient_distance", "lpips_alex", "dists")


def gain(tuned: dict[str, float], *, metrics: tuple[str, ...] = ALL) -> Gain:
    """Twenty pictures; each of the tuned policy's metrics is moved by so many spreads of the base."""
    rng = np.random.default_rng(0)
    before = {name: rng.normal(0.5, 0.1, 20) for name in metrics}
    after = {name: values + rng.normal(tuned.get(name, 0.0) * 0.1, 0.01, 20) for name, values in before.items()}
    base, moved = Curve({DEPLOYED: before}), Curve({DEPLOYED: after})
    standings = tuple(beyond(base, moved, setting=DEPLOYED, plane=plane) for plane in planes_of(metrics, ()))
    return Gain(base, moved, standings, pictures=20)


def metrics_of(measured: tuple[str, ...], rewarded: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    return [plane.metrics for plane in planes_of(measured, rewarded)]


def test_lpips_and_dists_are_both_shown_and_no_reward_is_its_own_judge():
    assert metrics_of(ALL) == [("psnr", "lpips_alex"), ("psnr", "dists")]
    assert metrics_of(ALL, ("psnr", "lpips_alex")) == [("ssim", "dists")]
    assert metrics_of(("psnr", "gradient_distance")) == [("psnr", "gradient_distance")]
    assert metrics_of(("psnr", "gradient_distance"), ("gradient_distance",)) == []
    assert metrics_of(ALL, ("psnr", "ssim", "ms_ssim")) == []


def test_a_gain_must_show_in_both_planes():
    assert gain({"psnr": 1.0, "lpips_alex": -1.0, "dists": -1.0}).line.startswith("A gain: 4 steps, SDE η 0.5: beyond")
    one = gain({"psnr": 1.0, "lpips_alex": -1.0, "dists": 3.0})
    assert [standing.beyond for standing in one.standings] == [True, False]
    assert one.line.startswith("No gain: ")
    assert one.standing is one.standings[1]
    assert one.as_json()["p"] == pytest.approx(max(standing.p for standing in one.standings))
    assert [plane["metrics"] for plane in one.as_json()["planes"]] == [["psnr", "lpips_alex"], ["psnr", "dists"]]
    assert "not measured" not in one.line


def test_what_stands_in_for_perception_is_said():
    line = gain({"psnr": 1.0}, metrics=("psnr", "gradient_distance")).line
    assert line.endswith(
        "20 pictures; lpips_alex and dists not measured, or rewarded: gradient_distance stands in, and sees less"
    )
    assert gain({}, metrics=("psnr", "lpips_alex")).line.endswith("20 pictures; dists not measured, or rewarded")


def test_the_table_and_the_figure_show_both_planes(tmp_path):
    shown, single = tmp_path / "both", tmp_path / "one"
    write_gain(shown, gain({"psnr": 1.0}), deployed=DEPLOYED, title="sr")
    write_gain(single, gain({"psnr": 1.0}, metrics=("psnr", "dists")), deployed=DEPLOYED, title="sr")
    assert "| beyond in psnr, lpips_alex | beyond in psnr, dists |" in (shown / "curve.md").read_text()
    widths = [Image.open(folder / "curve.png").width for folder in (shown, single)]
    assert widths[0] > 1.5 * widths[1]
