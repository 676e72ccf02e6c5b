"""Degradations: ranges as published, and the same bytes from a seed, from JSON, and in any process."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys

import cv2
import numpy as np
import pytest

from data.degradation.degrade import Degradation
from data.degradation.operators import A
from data.degradation.presets import operators_for
from data.degradation.ranges import DegradationConfig, ranges_of
from shared.app.config import load_config
from shared.app.errors import UserError
from shared.seeds import numpy_rng
from tests.helpers.places import ROOT

PRESETS = [("face", 1), ("real_sr", 4)]


def crop(seed: int = 0, side: int = 64) -> np.ndarray:
    """Smooth coloured blobs on 8-bit levels."""
    coarse = numpy_rng(seed, "crop").random((6, 6, 3), dtype=np.float32)
    smooth = np.clip(cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC), 0, 1)
    return np.round(smooth * 255).astype(np.float32) / np.float32(255)


def draws(config: DegradationConfig, scale: int, count: int, side: int = 64) -> list[list[dict]]:
    degradation = Degradation(config, scale=scale)
    return [degradation(crop(side=side), seed=seed)[1]["operators"] for seed in range(count)]


def test_face_draws_what_lrpo_publishes():
    # At 512 pixels the numbers are the published ones.
    config, found = DegradationConfig(preset="face"), []
    rng_count = 250
    operators = operators_for(config, (512, 512), scale=1)
    for seed in range(rng_count):
        rng = numpy_rng(seed)
        for operator in operators:
            operator.set_random_state(rng, random.Random(seed))
        found.append([operator.get_params() for operator in operators])
    blur, down, noise, jpeg, back = zip(*found, strict=True)
    assert {b["kernel_px"] for b in blur} == {41}
    assert {b["kernel"] for b in blur} == {"gaussian"}
    sigmas = np.array([(b["sigma_x"], b["sigma_y"]) for b in blur])
    assert sigmas.min() >= 0.1
    assert sigmas.max() <= 12
    assert sigmas[:, 0].mean() == pytest.approx(6.05, abs=0.6)  # (0.1 + 12)/2, standard error 0.22
    isotropic = np.mean(sigmas[:, 0] == sigmas[:, 1])
    assert isotropic == pytest.approx(0.5, abs=0.1)  # three standard errors
    factors = np.array([512 / d["height"] for d in down])
    assert factors.min() >= 1
    assert factors.max() <= 12.2  # 512/12 rounds to 43 pixels at most half a pixel off
    assert factors.mean() == pytest.approx(6.5, abs=0.6)  # the divisor is uniform, not its inverse
    levels = np.array([n["sigma_levels"] for n in noise])
    assert levels.min() >= 0
    assert 13 < levels.max() <= 15
    qualities = np.array([j["quality"] for j in jpeg])
    assert qualities.min() >= 30
    assert 95 < qualities.max() <= 100
    assert {(b["height"], b["width"]) for b in back} == {(512, 512)}


def test_face_ranges_shrink_with_the_picture():
    ((blur, *_),) = draws(DegradationConfig(preset="face"), 1, 1)
    assert blur["kernel_px"] == 5  # 41 · 64/512 = 5.1
    sigmas = [d[0]["sigma_x"] for d in draws(DegradationConfig(preset="face"), 1, 100)]
    assert 1.2 < max(sigmas) <= 12 * 64 / 512
    fixed = [d[0]["sigma_x"] for d in draws(DegradationConfig(preset="face", reference_px=0), 1, 30)]
    assert max(fixed) > 8


def test_real_sr_draws_what_real_esrgan_publishes():
    everything = draws(DegradationConfig(preset="real_sr"), 4, 400)
    flat = [operator for drawn in everything for operator in drawn]
    by_name = {name: [o for o in flat if o["operator"] == name] for name in {o["operator"] for o in flat}}
    assert by_name.keys() == {"KernelBlur", "SincFilter", "RandomResize", "GaussianNoise", "PoissonNoise", "Jpeg"}
    kinds = [(b["kernel"], b["sigma_x"] == b["sigma_y"]) for b in by_name["KernelBlur"]]
    for kind, share in {
        ("gaussian", True): 0.45,
        ("gaussian", False): 0.25,
        ("generalized", True): 0.12,
        ("generalized", False): 0.03,
        ("plateau", True): 0.12,
        ("plateau", False): 0.03,
    }.items():
        # About 650 kernels: three standard errors are at most 6 percentage points.
        assert kinds.count(kind) / len(kinds) == pytest.approx(share, abs=0.06)
    assert {b["kernel_px"] for b in by_name["KernelBlur"]} == {7, 9, 11, 13, 15, 17, 19, 21}
    betas = {k: [b["beta"] for b in by_name["KernelBlur"] if b["kernel"] == k] for k in ("generalized", "plateau")}
    assert 0.5 <= min(betas["generalized"]) < 0.7
    assert 3 < max(betas["generalized"]) <= 4
    assert min(betas["plateau"]) == 1
    assert max(betas["plateau"]) <= 2
    for sinc in by_name["SincFilter"]:
        assert (np.pi / 3 if sinc["kernel_px"] < 13 else np.pi / 5) <= sinc["cutoff"] <= np.pi
    for drawn in everything:
        first, second = (group for group in _rounds(drawn))
        sigma = [b["sigma_x"] for b in first if b["operator"] == "KernelBlur"]
        assert all(0.2 <= s <= 3.0 for s in sigma)
        assert all(0.2 <= b["sigma_x"] <= 1.5 for b in second if b["operator"] == "KernelBlur")
        sizes = [r["height"] for r in drawn if r["operator"] == "RandomResize"]
        assert 10 <= sizes[0] <= 96  # 64 · 0.15 and 64 · 1.5
        assert 5 <= sizes[1] <= 19  # 16 · 0.3 and 16 · 1.2
        assert sizes[2] == 16
        assert all(30 <= j["quality"] <= 95 for j in drawn if j["operator"] == "Jpeg")
        assert sum(j["operator"] == "Jpeg" for j in drawn) == 2
        assert sum(n["operator"] in ("GaussianNoise", "PoissonNoise") for n in drawn) == 2
        for noise in first:
            assert noise["operator"] != "GaussianNoise" or 1 <= noise["sigma_levels"] <= 30
            assert noise["operator"] != "PoissonNoise" or 0.05 <= noise["scale"] <= 3
        for noise in second:
            assert noise["operator"] != "GaussianNoise" or 1 <= noise["sigma_levels"] <= 25
            assert noise["operator"] != "PoissonNoise" or 0.05 <= noise["scale"] <= 2.5
    grey = [n["grey"] for n in by_name["GaussianNoise"] + by_name["PoissonNoise"]]
    assert np.mean(grey) == pytest.approx(0.4, abs=0.06)
    assert len(by_name["GaussianNoise"]) / 800 == pytest.approx(0.5, abs=0.06)
    assert {r["mode"] for r in by_name["RandomResize"]} == {"area", "bilinear", "bicubic"}
    jpeg_last = np.mean([drawn[-1]["operator"] == "Jpeg" for drawn in everything])
    assert jpeg_last == pytest.approx(0.5, abs=0.08)
    first_sizes = np.array([next(o for o in d if o["operator"] == "RandomResize")["height"] for d in everything])
    assert np.mean(first_sizes > 64) == pytest.approx(0.2, abs=0.07)
    assert np.mean(first_sizes == 64) == pytest.approx(0.1, abs=0.06)


def _rounds(drawn: list[dict]) -> tuple[list[dict], list[dict]]:
    first_jpeg = next(i for i, operator in enumerate(drawn) if operator["operator"] == "Jpeg")
    return drawn[:first_jpeg], drawn[first_jpeg + 1 :]


def test_one_round_and_overridden_ranges():
    mild = DegradationConfig(rounds=1, blur_sigma_max=1.0, downscale_max=2.0, noise_sigma_max=5.0, jpeg_quality_min=80)
    for drawn in draws(mild, 4, 60):
        assert sum(o["operator"] == "Jpeg" for o in drawn) == 1
        for o in drawn:
            assert o.get("sigma_x", 0) <= 1.0
            assert o.get("sigma_levels", 0) <= 5.0
            assert o.get("quality", 80) >= 80
        assert next(o for o in drawn if o["operator"] == "RandomResize")["height"] >= 32
    assert ranges_of(mild).jpeg_quality_max == 95  # what is not asked for stays as published


def test_one_preset_is_usable_without_the_adapter():
    compose = A.Compose(operators_for(DegradationConfig(), (64, 64), scale=4))
    assert compose(image=crop())["image"].shape == (16, 16, 3)


@pytest.mark.parametrize(("preset", "scale"), PRESETS)
def test_replay_gives_the_same_bytes_from_json(preset, scale):
    degradation = Degradation(DegradationConfig(preset=preset), scale=scale)
    # Another config replays the same: the drawn parameters alone decide.
    replayer = Degradation(DegradationConfig(preset="real_sr", downscale_max=1.0), scale=1)
    for seed in range(60):
        gt = crop(seed)
        lq, drawn = degradation(gt, seed=seed)
        text = json.dumps(drawn)
        assert np.array_equal(replayer.replay(gt, json.loads(text)), lq)
        assert lq.shape == (64 // scale, 64 // scale, 3)
        assert lq.dtype == np.float32
        assert np.array_equal(np.round(lq * 255) / np.float32(255), lq)  # on 8-bit levels


@pytest.mark.parametrize(("preset", "scale"), PRESETS)
def test_bytes_do_not_depend_on_order_or_on_other_sizes(preset, scale):
    one, other = (Degradation(DegradationConfig(preset=preset), scale=scale) for _ in range(2))
    forward = [one(crop(seed), seed=seed)[0] for seed in range(12)]
    other(crop(side=96), seed=5)
    backward = [other(crop(seed), seed=seed)[0] for seed in reversed(range(12))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(forward, backward, strict=True))
    assert not np.array_equal(one(crop(0), seed=1)[0], forward[0])


def test_another_process_makes_the_same_bytes_whatever_its_global_seeds():
    code = (
        "import hashlib, os, random, numpy as np, torch\n"
        "random.seed(9); np.random.seed(9); torch.manual_seed(9)\n"
        "from tests.data.degradation.test_degrade import all_bytes\n"
        "print(hashlib.sha256(all_bytes()).hexdigest(), os.environ['NO_ALBUMENTATIONS_UPDATE'])"
    )
    root = ROOT
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    there = run.stdout.strip()
    # The 1 keeps albumentations from asking a server for its newest version.
    assert there == f"{hashlib.sha256(all_bytes()).hexdigest()} 1"


def all_bytes() -> bytes:
    pictures = [
        Degradation(DegradationConfig(preset=preset), scale=scale)(crop(seed), seed=seed)[0]
        for preset, scale in PRESETS
        for seed in range(8)
    ]
    return b"".join(picture.tobytes() for picture in pictures)


def test_global_generators_are_left_alone():
    random.seed(1)
    np.random.seed(1)
    before = random.getstate(), np.random.get_state()[1].copy()
    all_bytes()
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_the_clean_picture_is_not_written_to():
    gt = crop()
    gt.flags.writeable = False
    kept = gt.copy()
    for preset, scale in PRESETS:
        Degradation(DegradationConfig(preset=preset), scale=scale)(gt, seed=0)
    assert np.array_equal(gt, kept)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("downscale_max=0.5", "downscale_max must lie between 1 and 32, got 0.5"),
        ("blur_sigma_min=4", "blur_sigma_min must not exceed blur_sigma_max, got 4 and 3"),
        ("jpeg_quality_min=99", "jpeg_quality_min must not exceed jpeg_quality_max, got 99 and 95"),
        ("preset=sharp", "preset"),
        ("rounds=3", "rounds must lie between 1 and 2"),
        ("noise_sgima_max=3", "noise_sigma_max"),
    ],
)
def test_mistakes_in_the_config_are_named(tmp_path, line, words):
    (tmp_path / "c.yaml").write_text("preset: real_sr\n")
    with pytest.raises(UserError) as caught:
        load_config(DegradationConfig, [str(tmp_path / "c.yaml"), line])
    assert words in str(caught.value)


def test_sides_must_be_divisible():
    with pytest.raises(ValueError, match="divisible by 4, got 30x64"):
        Degradation(DegradationConfig(), scale=4)(np.zeros((30, 64, 3), dtype=np.float32), seed=0)
