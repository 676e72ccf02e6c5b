"""The curve as a table and as a picture."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from rl_finetune.evidence.curve import Curve, Plane, beyond, sweep
from rl_finetune.evidence.curve_figure import curve_table, draw_curve, frontier
from shared.diffusion.sampler import SamplerSpec
from tests.helpers.simulated_curves import PLANE, curve_of, difficulties

DEPLOYED = SamplerSpec(8, 1.0)


@pytest.fixture(scope="module")
def curves() -> tuple[Curve, Curve]:
    rng = np.random.default_rng(0)
    hard = difficulties(rng)
    return curve_of(rng, hard), curve_of(rng, hard, shift=(0.9, -0.02))


def test_the_frontier_by_hand():
    # (0, 3) and (3, 0) are the best in y and x, (2, 2) lies outside their chord, (1, 2.4) inside that of its
    # neighbours, (1, 1) and (−1, 3) are worse than others in both or in one.
    points = np.array([[3, 0], [1, 1], [2, 2], [0, 3], [1, 2.4], [-1, 3]], dtype=float)
    assert frontier(points).tolist() == [[0, 3], [2, 2], [3, 0]]
    assert frontier(np.array([[1.0, 1.0], [0.0, 0.0]])).tolist() == [[1, 1]]
    assert frontier(np.array([[1.0, 1.0], [1.0, 1.0]])).tolist() == [[1, 1]]


def test_the_table_has_both_policies_and_says_where_the_tuned_one_is_beyond(curves):
    base, tuned = curves
    lines = curve_table(base, tuned, [PLANE], deployed=DEPLOYED).splitlines()
    assert lines[0] == (
        "| sampler | psnr ↑ base | psnr ↑ tuned | lpips_distance ↓ base | lpips_distance ↓ tuned "
        "| beyond in psnr, lpips_distance |"
    )
    assert len(lines) == 2 + len(base.values)
    assert all(line.count("|") == lines[0].count("|") for line in lines)
    deployed = next(line for line in lines if "deployed" in line)
    assert deployed.startswith("| **8 steps, SDE η 1, deployed** |")
    assert f"| {base.of(DEPLOYED, 'psnr').mean():.4f} | {tuned.of(DEPLOYED, 'psnr').mean():.4f} |" in deployed
    assert beyond(base, tuned, setting=DEPLOYED, plane=PLANE).p_words() in deployed
    others = sweep(base, Curve({s: v for s, v in tuned.values.items() if s != DEPLOYED}), plane=PLANE)
    for setting, standing in others.items():
        line = next(line for line in lines if line.startswith(f"| {setting.words()} |"))
        assert f"{'yes' if standing.beyond else 'no'} ({standing.p_words()})" in line
    assert any("yes" in line for line in lines)
    assert "yes" not in curve_table(base, base, [PLANE, PLANE], deployed=DEPLOYED)


def test_a_picture_is_white_and_the_same_each_time(tmp_path, curves):
    standing = beyond(*curves, setting=DEPLOYED, plane=PLANE)
    for name in ("one.svg", "two.svg", "one.png"):
        draw_curve(tmp_path / name, *curves, panels={PLANE: standing.line()}, deployed=DEPLOYED, title="sr")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    text = (tmp_path / "one.svg").read_text()
    assert all(words in text for words in ("psnr", "lpips_distance", "SDE η 0.5", "8 steps", "deployed"))
    picture = Image.open(tmp_path / "one.png").convert("RGBA")
    assert picture.getpixel((0, 0)) == (255, 255, 255, 255)


def test_better_is_to_the_right_and_upwards(tmp_path, curves, monkeypatch):
    drawn = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *a, **k: drawn.append(figure.axes[0]))
    flipped = Plane("lpips_distance", "psnr", PLANE.higher_is_better)
    for plane in (PLANE, flipped):
        draw_curve(tmp_path / "x.svg", *curves, panels={plane: ""}, deployed=DEPLOYED, title="")
    for axes, plane in zip(drawn, (PLANE, flipped), strict=True):
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        assert np.sign(right - left) == plane.sign(plane.perception)
        assert np.sign(top - bottom) == plane.sign(plane.fidelity)
