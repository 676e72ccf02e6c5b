"""Compares ways of RL training: every arm with every seed at one budget, learning curves, differences paired by seed.

python -m rl_finetune.study configs/study_face.yaml out=runs/study_face also='[source.faces=my/faces]'

Each run is a folder `out/<arm>/seed_<n>` of its own: a study that was stopped goes on where it was, and a new arm costs
its own runs alone.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rl_finetune.evidence.study_figures import ArmFigures, ObjectivePart, read_run, study_tables, written_figures
from rl_finetune.reporting.study_plot import panels_svg
from shared.app.config import load_config
from shared.app.entry import run_command
from shared.app.errors import UserError
from shared.files import write_bytes
from shared.runs.finished import command_hash
from shared.runs.run_folder import RunFolder

FIGURES_FILE, TABLE_FILE, CURVES_FILE = "study.json", "study.md", "study.svg"


@dataclass(frozen=True)
class StudyConfig:
    """Arms of one RL stage; configs/study_face.yaml explains every field."""

    out: str = "runs/study_face"  # folder of the runs and tables
    config: str = "configs/train_rl_face.yaml"  # every arm starts from these settings
    settings: list[str] = field(default_factory=list)  # settings changed for every arm: one budget for all
    # Settings of this machine, for every arm: where it keeps its pictures, policies and reward model.
    also: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])  # seeds; each arm is trained with each
    arms: dict[str, list[str]] = field(default_factory=dict)  # settings of each arm alone, by a name of your choice
    # One table and one panel each; the first arm is what the others are compared with.
    comparisons: dict[str, list[str]] = field(default_factory=dict)
    # What training maximises: the sum of weight · gain / spread.
    objective: dict[str, ObjectivePart] = field(default_factory=dict)
    curve: str = "reward"  # what the learning curves show of the checks: objective, or one measure
    # Measures whose changes on the held-out pictures are reported.
    report: list[str] = field(default_factory=lambda: ["reward", "psnr", "ssim"])

    def __post_init__(self) -> None:
        for name in ("arms", "comparisons", "report"):
            if not getattr(self, name):
                raise ValueError(f"{name} must not be empty: there would be nothing to compare")
        if len(self.seeds) < 2 or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be at least two different numbers, got {self.seeds}")
        for name, members in self.comparisons.items():
            unknown = [arm for arm in members if arm not in self.arms]
            if unknown:
                raise ValueError(f"comparisons.{name} names {unknown[0]}, but arms has only {', '.join(self.arms)}")
            if len(members) < 2:
                raise ValueError(f"comparisons.{name} must name at least two arms, the first is compared with")


def main(argv: Sequence[str]) -> None:
    config = load_config(StudyConfig, argv)
    for seed in config.seeds:  # seed by seed, so that a study cut short has whole seeds
        for arm in config.arms:
            run_arm(config, arm, seed)
            require_measures(config, arm_folder(config, arm, seed))  # after the first run, not after the last
    figures = {arm: gather(config, arm) for arm in config.arms}
    folder = Path(config.out)
    text = study_tables(figures, config.comparisons, config.report)
    RunFolder(folder).write_json(FIGURES_FILE, written_figures(figures))
    write_bytes(folder / TABLE_FILE, text.encode())
    write_bytes(folder / CURVES_FILE, panels_svg(figures, config.comparisons, title=config.curve).encode())
    print(f"{text}\n{folder / TABLE_FILE}, {folder / CURVES_FILE}")


def arm_folder(config: StudyConfig, arm: str, seed: int) -> Path:
    """Returns where one run of the study lies."""
    return Path(config.out) / arm / f"seed_{seed}"


def run_arm(config: StudyConfig, arm: str, seed: int) -> None:
    """Trains one arm with one seed in a process of its own, unless this very command has finished it.

    Raises UserError when it fails: also when other settings made the folder, which the stage itself refuses.
    """
    folder = arm_folder(config, arm, seed)
    words = [config.config, *config.settings, *config.also, *config.arms[arm], f"seed={seed}", f"out={folder}"]
    run = RunFolder(folder)
    if run.is_finished() and run.summary()["command"] == command_hash(words):
        return
    print(f"{arm}, seed {seed}", flush=True)
    done = subprocess.run([sys.executable, "-m", "rl_finetune.train", *words], check=False)
    if done.returncode:
        raise UserError(f"arm {arm}, seed {seed} failed (exit code {done.returncode}); its own message is above")


def require_measures(config: StudyConfig, folder: Path) -> None:
    """Raises UserError, naming those there are, when a finished run has not what the study is to report."""
    found = read_run(folder, curve=config.curve, parts=config.objective).gains
    missing = [name for name in config.report if name not in found]
    if missing:
        raise UserError(f"report names {missing[0]}, but the runs have only {', '.join(found)}")


def gather(config: StudyConfig, arm: str) -> ArmFigures:
    """Returns an arm's curves and final gains over all seeds."""
    folders = [arm_folder(config, arm, seed) for seed in config.seeds]
    return ArmFigures.of([read_run(folder, curve=config.curve, parts=config.objective) for folder in folders])


if __name__ == "__main__":
    run_command(main)
