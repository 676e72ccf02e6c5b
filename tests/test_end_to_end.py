"""Every stage through the Makefile's own commands, on embedded pictures and tiny networks; then killed and run again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.pool_networks import UNCHECKED

ROOT = Path(__file__).parent.parent
SOURCE = "source.embedded_images=12 source.val_fraction=0.25"
STAGES = {
    "BASE_ARGS": "iterations=6 early_iteration=2 checkpoint_every=2 batch_size=4 pairs.pairs=8 "
    f"policy.channels=[8,16] policy.norm_groups=4 {SOURCE}",
    "POOL_ARGS": f"{' '.join(UNCHECKED)} l1_iterations=2 gan_iterations=2 batch_size=2 channels=8 blocks=1 "
    f"sr_pairs.pairs=8 face_pairs.pairs=8 {SOURCE}",
    "DATASET_ARGS": "crop_px=32 workers=1 pairs_per_file=4 pairs.train=8 pairs.val=4 pairs.test=4 "
    f"pairs.test_restorer=4 pairs.test_source=4 {SOURCE}",
    "RM_ARGS": "stage_iterations=[2,2,2,2] optim.batch_triplets=2 validation_samples=4 augment.crop_px=0 workers=0",
    "ARGS": "iterations=4 groups=2 group_size=2 checkpoint_every=1 check_every=2 check_images=2 eval_images=3 "
    f"eval_crop_px=32 sampler.steps=3 pairs.crop_px=32 pairs.pairs=8 {SOURCE}",
}


def make(*words: str, run: Path, **options) -> subprocess.Popen:
    named = {word.partition("=")[0] for word in words}
    variables = [f"{name}={value}" for name, value in STAGES.items() if name not in named]
    if words[0] == "base-policies":  # ARGS is for the stage that is asked for by name
        variables = [variable for variable in variables if not variable.startswith("ARGS=")]
    places = [f"RUN={run / 'run'}", f"DATASET={run / 'dataset'}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "TQDM_DISABLE": "1"}
    return subprocess.Popen(
        ["make", *words, *places, *variables],
        cwd=ROOT,
        text=True,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **options,
    )


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output[-3000:]
    return output


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("e2e")
    finish(make("train-rl", "FROM=scratch", run=folder))
    return folder


def test_the_main_job_ends_with_tables_pictures_and_a_page(run):
    for task in ("sr", "face"):
        summary = json.loads((run / "run" / f"rl_{task}" / "summary.json").read_text())
        names = [row["name"] for row in summary["rows"]]
        assert {"objective", "reward", "psnr", "ssim", "gradient_distance"} <= set(names)
        assert all(row["change"]["n"] == 3 for row in summary["rows"])
        assert (run / "run" / f"rl_{task}" / "before_after.png").stat().st_size > 1000
        assert (run / "run" / f"rl_{task}" / "state" / "progress.json").exists()  # it can be asked for more
        assert json.loads((run / "run" / f"rl_{task}" / "provenance.json").read_text())["inputs"].keys() == {
            "base",
            "reward_model",
        }
    page = (run / "run" / "report.html").read_text()
    assert page.count('class="layer after"') == 6  # three pictures a task
    assert "http://" not in page  # self-contained
    assert "https://" not in page
    for asked, stands_in in (
        ("face_preference", "fgr_worst_spot"),
        ("lpips", "gradient_similarity"),
        ("clipiqa", "fgr_score"),
    ):
        assert f"<code>{asked}</code> needs weights from the Hub; <code>{stands_in}</code> stood in for it." in page


def test_running_it_again_says_what_is_finished_and_changes_nothing(run):
    def snapshot() -> dict[str, int]:
        files = [p for p in (run / "run").rglob("*") if p.is_file() and p.name != "report.html"]
        return {str(p): p.stat().st_mtime_ns for p in files}

    before = snapshot()
    output = finish(make("train-rl", run=run))
    assert output.count("finished") >= 6
    assert snapshot() == before


def test_a_run_killed_in_the_middle_is_finished_by_the_same_command(run):
    # The RL stage alone, on the stages that are there: killed as soon as its first checkpoint is on disk.
    for leftover in ("summary.json", "config.yaml", "model.safetensors"):
        (run / "run" / "rl_face" / leftover).unlink()
    for path in sorted((run / "run" / "rl_face").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    first = make("rl-face", run=run, start_new_session=True)
    progress = run / "run" / "rl_face" / "state" / "progress.json"
    deadline = time.monotonic() + 120
    while not progress.exists() and time.monotonic() < deadline and first.poll() is None:
        time.sleep(0.01)
    assert progress.exists()
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert not (run / "run" / "rl_face" / "summary.json").exists()
    finish(make("rl-face", run=run))
    assert (run / "run" / "rl_face" / "summary.json").exists()


def test_its_results_serve_the_commands_that_use_them(run, tmp_path):
    rows, columns = np.mgrid[:40, :56]
    picture = np.stack([rows * 4, columns * 4, rows + columns], axis=2).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "small.png")
    output = finish(
        make("restore", "score", f"IN={tmp_path / 'small.png'}", f"OUT={tmp_path / 'out'}", "ARGS=", run=run)
    )
    assert "56×40 → 224×160" in output
    assert Image.open(tmp_path / "out" / "small.png").size == (224, 160)
    assert Image.open(tmp_path / "out" / "small_map.png").mode == "I;16"
    assert Image.open(tmp_path / "out" / "small_overlay.png").size == (56, 40)
    assert "face: 2 held-out pictures, 3 steps, SDE" in finish(make("eval", "TASK=face", "ARGS=images=2", run=run))
    output = finish(make("eval-rm", "ARGS=samples_per_set=4 bootstrap_rounds=2", run=run))
    assert all(f"RM_{stage}" in output for stage in range(4))
    assert (run / "run" / "reward_model" / "evaluation" / "evaluation.json").exists()


def test_a_downloaded_reward_model_is_used_and_not_trained_again(tmp_path):
    checkpoint = tmp_path / "run" / "reward_model" / "checkpoint"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_text("{}")
    planned = finish(make("--dry-run", "train-rl", run=tmp_path))
    assert " train-rl " in planned
    assert " train-rm " not in planned
    assert " dataset " not in planned


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["IMAGES=nowhere"], "IMAGES: no folder nowhere"),
        (["FACES=nowhere"], "FACES: no folder nowhere"),
        (["BASE_ARGS=iteration=5"], "Did you mean one of: 'iterations'"),
        (["BASE_ARGS=pairs.crop_px=8"], "crop_px must lie between 16 and 2048, got 8"),
    ],
)
def test_mistakes_end_in_one_line_exit_code_2_and_nothing_on_disk(tmp_path, words, message):
    refuse(make("base-policies", *words, run=tmp_path), message)
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_of_another_config_is_refused(run):
    refuse(make("base-policies", "BASE_ARGS=learning_rate=0.5", run=run), "was made by another config: ")


def refuse(process: subprocess.Popen, message: str) -> None:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, output
    assert message in errors[0]
    assert "Traceback" not in output
