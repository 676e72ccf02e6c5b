"""The stages of a reward model's run: which are finished, where the state of one lies, and how the last one goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from reward_model.learning.optimizer import OptimConfig, cosine_rate
from reward_model.network.checkpoint import CONFIG_FILE, read_config, unlist_stage
from shared.runs.growth import Growth, steps_made
from shared.runs.run_folder import is_main_process

STAGES_FOLDER = "stages"


class Staged(Protocol):
    """The part of a run's settings that says how long its stages train."""

    stage_iterations: tuple[int, ...]
    optim: OptimConfig


def growth_of(config: Staged) -> Growth:
    """Returns how the run goes on: the last stage trains longer, from its last state."""
    last = len(config.stage_iterations) - 1
    before = config.stage_iterations[:last]
    return Growth(
        f"stage_iterations.{last}",
        stage_rate,
        also=_validated_otherwise,
        made=lambda folder: _made(folder, before),
        state=training_folder(Path(), last).name,
    )


def stage_rate(config: Staged, iteration: int) -> float:
    """Returns the learning rate at an iteration counted over all stages."""
    stage = 0
    while iteration >= config.stage_iterations[stage]:
        iteration -= config.stage_iterations[stage]
        stage += 1
    return cosine_rate(config.optim.learning_rate, iteration / config.stage_iterations[stage], config.optim.warmup)


def stages_left(folder: Path, iterations: Sequence[int]) -> range:
    """Returns the stages that are still to be trained: those not finished, and the last where it is asked for more.

    What it then takes off the list of finished stages is only put back trained: no kill on the way leaves it as finished.
    """
    finished = len(finished_stages(folder))
    last = len(iterations) - 1
    if finished > last and (steps_made(training_folder(folder, last)) or iterations[last]) < iterations[last]:
        if is_main_process():
            unlist_stage(folder / STAGES_FOLDER, last)
        finished = last
    return range(finished, len(iterations))


def finished_stages(folder: Path) -> list[int]:
    """Returns the stages whose weights are written."""
    stages = folder / STAGES_FOLDER
    return sorted(map(int, read_config(stages)["stages"])) if (stages / CONFIG_FILE).exists() else []


def training_folder(folder: Path, stage: int) -> Path:
    """Returns where the resumable state of a stage lies: while it trains, and that of the last one also afterwards."""
    return folder / f"stage_{stage}_training"


def _made(folder: Path, before: Sequence[int]) -> int | None:
    finished = len(finished_stages(folder))
    stage = min(finished, len(before))
    made = steps_made(training_folder(folder, stage))
    if made is None and finished > len(before):
        return None
    return sum(before[:stage]) + (made or 0)


def _validated_otherwise(old: Staged, new: Staged) -> list[str]:
    end = old.stage_iterations[-1]
    if end % new.optim.validate_every == 0:
        return []
    return [f"its last stage was also validated after {end} iterations"]
