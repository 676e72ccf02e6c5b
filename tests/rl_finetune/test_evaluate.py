"""make eval: a finished run's policy measured again, on what was asked for."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from PIL import Image

from rl_finetune import evaluate as compare
from rl_finetune.evidence import whole_set
from rl_finetune.evidence.references import MEAN_OF_SAMPLES, ONE_STEP, TRUTH, UP_SAMPLED
from rl_finetune.rewards.config import RewardConfig
from shared.app.errors import UserError
from shared.diffusion.sampler import SamplerSpec
from shared.policies.load import load_policy
from shared.policies.policy_folder import save_policy
from shared.restorers.feed_forward import FeedForwardConfig, FeedForwardNet, FeedForwardRestorer
from shared.runs.run_folder import RunFolder
from shared.vision import distribution
from tests.helpers.tiny import save_pictures, tiny_policy
from tests.helpers.tiny_rl import tiny_rl_config


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """What RL leaves behind, its policy another than its base."""
    folder = tmp_path_factory.mktemp("compare")
    config = dataclasses.replace(
        tiny_rl_config(folder), out=str(folder / "rl"), reward=RewardConfig(), sampler=SamplerSpec(steps=3, eta=0.7)
    )
    RunFolder.open(config.out, config)
    save_policy(folder / "rl", tiny_policy(seed=1), config.sampler, provenance={})
    return folder / "rl"


def measure(run: Path, out: Path, *words: str) -> dict:
    compare.main([f"run={run}", f"out={out}", *words])
    return json.loads((out / "evaluation.json").read_text())


def test_the_policy_is_measured_against_its_base_with_the_same_noise(run, tmp_path, capsys):
    found = measure(run, tmp_path)
    assert "face: 4 held-out pictures, 3 steps, SDE η 0.7" in capsys.readouterr().out
    assert len(set(found["image_ids"])) == found["pictures"] == len(found["after"]["psnr"]) == 4
    # A policy against itself differs in nothing: same pictures, degradation, sampler and noise.
    assert any(row["change"]["mean"] != 0 for row in found["rows"])
    same = measure(run, tmp_path, f"against={run}")
    assert same["before"] == same["after"] == found["after"]
    assert Image.open(tmp_path / "before_after.png").size[0] > 300


def test_what_is_asked_for_takes_the_place_of_what_the_run_said(run, tmp_path, capsys):
    usual = measure(run, tmp_path)
    more = measure(run, tmp_path, "images=3", "steps=2", "eta=0", "seed=5")
    assert "face: 3 held-out pictures, 2 steps, ODE" in capsys.readouterr().out
    assert more["image_ids"] == usual["image_ids"][:3]  # another seed is no other split
    for word in ("steps=2", "eta=0", "seed=5"):
        other = measure(run, tmp_path, word)
        assert all(a != b for a, b in zip(other["after"]["psnr"], usual["after"]["psnr"], strict=True)), word
    assert measure(run, tmp_path, "split=val", "images=2")["image_ids"] != usual["image_ids"][:2]
    assert measure(run, tmp_path, "crop_px=48")["after"]["psnr"] != usual["after"]["psnr"]


def test_the_sampler_is_the_runs_whatever_the_base_was_saved_with(run, tmp_path):
    base, spec = load_policy(run.parent / "base")
    assert spec.steps == 4
    save_policy(tmp_path / "other", base, SamplerSpec(steps=1, eta=0), provenance={})
    ours = measure(run, tmp_path)
    assert measure(run, tmp_path, f"against={tmp_path / 'other'}")["before"] == ours["before"]


def test_by_default_the_result_lies_in_the_run(run):
    compare.main([f"run={run}", "images=2"])
    assert (run / "eval" / "evaluation.json").is_file()
    assert not (run / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run=nowhere"], r"expected an RL run's folder, but nowhere has no config.yaml"),
        (["images=3"], "expected run="),
        (["run={run}", "image=3"], "Did you mean: 'images'"),
        (["run={run}", "images=1"], "eval_images must lie between 2"),
        (["run={run}", "images=99"], "99 test pictures are wanted, but the source has 5"),
        (["run={run}", "steps=0"], "steps"),
        (["run={run}", "policy=nowhere"], "nowhere is missing"),
    ],
)
def test_mistakes_are_one_line(run, words, message):
    with pytest.raises(UserError, match=message) as refusal:
        compare.main([word.format(run=run) for word in words])
    assert "\n" not in str(refusal.value)


def test_another_stages_folder_is_no_rl_run(run, tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Other:
        wings: int = 2

    RunFolder.open(tmp_path / "other", Other())
    with pytest.raises(UserError, match="wings"):
        compare.main([f"run={tmp_path / 'other'}"])


def test_a_feed_forward_restorer_can_be_measured_too(run, tmp_path):
    FeedForwardRestorer(FeedForwardNet(FeedForwardConfig(scale=1, channels=8, blocks=1))).save(tmp_path / "net")
    found = measure(run, tmp_path, f"against={tmp_path / 'net'}")
    assert found["before"]["psnr"] != found["after"]["psnr"]


def test_every_table_stands_beside_doing_nothing_one_step_the_mean_and_the_truth(run, tmp_path, capsys):
    found = measure(run, tmp_path, "against=bicubic")
    printed = capsys.readouterr().out
    assert all(title in printed for title in (UP_SAMPLED, ONE_STEP, MEAN_OF_SAMPLES, TRUTH))
    rows = {row["name"]: row for row in found["rows"]}
    # Against bicubic, `before` is doing nothing; the truth beside itself has 100 dB, the metric's ceiling.
    assert rows["psnr"]["references"][UP_SAMPLED] == pytest.approx(rows["psnr"]["before"])
    assert rows["psnr"]["references"][TRUTH] == 100.0
    assert found[TRUTH]["ssim"] == pytest.approx([1.0] * 4)
    # One step has no noise to speak of: it is what the base gives with steps=1, whatever eta.
    one_step = measure(run, tmp_path, "steps=1", "eta=0.7")["before"]["psnr"]
    assert found[ONE_STEP]["psnr"] == pytest.approx(one_step)
    # And the mean of eight noisy samples lies nearer to the truth than one of them.
    assert sum(found[MEAN_OF_SAMPLES]["psnr"]) > sum(measure(run, tmp_path)["before"]["psnr"])


def test_a_restorer_of_another_scale_is_refused(run, tmp_path):
    save_policy(tmp_path / "x4", tiny_policy("sr"), SamplerSpec(steps=1, eta=0), provenance={})
    with pytest.raises(UserError, match="enlarges 4 times, but this run's task 1 times"):
        measure(run, tmp_path, f"against={tmp_path / 'x4'}")


def test_other_pictures_than_the_runs_can_be_measured_on(run, tmp_path):
    save_pictures(tmp_path / "mine", 10, side_px=64)
    found = measure(run, tmp_path / "out", f"pictures={tmp_path / 'mine'}", "images=6")
    assert len(set(found["image_ids"])) == 6
    assert found["before"]["psnr"] != measure(run, tmp_path / "usual")["before"]["psnr"][:6]


def test_with_pictures_enough_whole_sets_are_compared_too(run, tmp_path, monkeypatch, capsys):
    few = measure(run, tmp_path)
    assert (few["kernel_distance"], few["absent"]["kernel_distance"][:15]) == ({}, "it needs 500 pi")
    for module in (distribution, whole_set):
        monkeypatch.setattr(module, "MIN_PICTURES", 4)
    monkeypatch.setattr(whole_set, "load_describe", lambda **given: lambda pictures: pictures.mean((2, 3)))
    found = measure(run, tmp_path)
    assert {"before", "after", UP_SAMPLED, ONE_STEP, MEAN_OF_SAMPLES} <= set(found["kernel_distance"])
    assert "kernel_distance" not in found["absent"]
    assert f"after {found['kernel_distance']['after']['value']:.4f} ±" in capsys.readouterr().out
