"""What `pip install .` leaves without the checkout: every module, config and checkpoint, and one console script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.helpers.tiny import save_pictures, save_tiny_policy

ROOT = Path(__file__).parent.parent
ROOMS = ("shared", "data", "reward_model", "rl_finetune")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # A copy of what the wheel is made from: building leaves files beside its sources.
    source = folder / "source"
    source.mkdir()
    for name in (*ROOMS, "configs", "checkpoints", "pyproject.toml", "README.md", "LICENSE"):
        subprocess.run(["cp", "-r", str(ROOT / name), str(source)], check=True)
    save_tiny_policy(source / "checkpoints" / "rl_sr", "sr")  # whatever ships today
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source))
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Returns a function that runs the installed console script in an empty folder."""
    folder = tmp_path_factory.mktemp("elsewhere")
    prefix = folder / "prefix"
    pip("install", "--no-deps", "--ignore-installed", "--prefix", str(prefix), str(wheel))
    (packages,) = prefix.rglob("site-packages")
    (script,) = prefix.rglob("restore-rl")
    environment = {**os.environ, "PYTHONPATH": str(packages), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}

    def run(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [script, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )

    run.folder, run.packages = folder, packages
    return run


def pip(*words: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_wheel_holds_every_module_config_and_checkpoint(wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = {path.relative_to(ROOT).as_posix() for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    templates = {
        path.relative_to(ROOT).as_posix()
        for kind in ("css", "html", "js")
        for path in (ROOT / "rl_finetune" / "reporting").glob(f"*.{kind}")
    }
    configs = {f"shared/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.yaml")}
    shipped = {
        f"shared/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "checkpoints").rglob("*") if path.is_file()
    }
    tiny = {f"shared/checkpoints/rl_sr/{name}" for name in ("config.json", "model.safetensors")}
    assert held == modules | templates | configs | shipped | tiny


def test_help_works_without_the_checkout(installed):
    assert "  train-rl " in installed("--help").stdout
    printed = installed("base-policies", "configs/base_sr.yaml", "--help")
    assert printed.returncode == 0, printed.stderr
    assert "with the values of configs/base_sr.yaml" in printed.stdout
    assert "  pairs.degradation.jpeg_quality_min=60\n" in printed.stdout


def test_a_mistake_is_one_line(installed):
    done = installed("train-rl", "gpu/train_rl_sr.yaml", "iteration=5")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "Did you mean one of: 'iterations'" in done.stderr


def test_a_stage_runs_on_its_shipped_config(installed):
    tiny = "iterations=2 batch_size=2 pairs.pairs=4 policy.channels=[8,16] policy.norm_groups=4 early_iteration=1"
    words = ["configs/base_sr.yaml", "out=base", *tiny.split(), "source.embedded_images=12", "source.val_fraction=0.25"]
    done = installed("base-policies", *words)
    assert done.returncode == 0, done.stderr
    summary = json.loads((installed.folder / "base" / "summary.json").read_text())
    assert summary["iterations"] == 2
    assert installed("base-policies", *words).stdout == f"finished: {summary['says']}\n"


def test_a_picture_is_restored_with_the_shipped_policy(installed):
    save_pictures(installed.folder / "pictures", 1, side_px=16)
    done = installed("restore", "in=pictures")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("policy: shipped:rl_sr (runs/default/rl_sr is not trained)\n")
    assert "16×16 → 64×64" in done.stdout


def test_what_runs_is_what_was_installed(installed):
    script = "import rl_finetune.cli, shared.app.shipped as s; print(rl_finetune.cli.__file__, s.shipped_folder())"
    environment = {**os.environ, "PYTHONPATH": str(installed.packages)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=installed.folder, env=environment, capture_output=True, text=True, check=True)
    for path in done.stdout.split():
        assert Path(path).is_relative_to(installed.packages)
