"""What a run has left on disk, stage by stage: how far each is, what made it, what it found. Nothing is computed here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from rl_finetune.evidence.held_out import EVALUATION_FILE
from shared.app.errors import UserError
from shared.app.shipped import PREFIX
from shared.runs.finished import SUMMARY_FILE
from shared.runs.run_folder import CONFIG_FILE, RunFolder
from shared.runs.tracking import read_metrics

STAGES = {  # folder → what a person calls it, in the order they run
    "base_sr": "Base policy, ×4 super-resolution",
    "base_face": "Base policy, faces",
    "pool/sr": "Small super-resolution restorers",
    "pool/face": "Small face restorers",
    "dataset": "Distortion dataset",
    "reward_model": "Reward model",
    "rl_sr": "RL, ×4 super-resolution",
    "rl_face": "RL, faces",
}
RL_STAGES = ("rl_sr", "rl_face")
Status = Literal["finished", "unfinished", "taken over", "not needed", "not begun"]


@dataclass(frozen=True)
class StageFacts:
    """One stage of a run."""

    key: str  # one of STAGES
    status: Status
    says: str  # its status in a few words
    folder: Path | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    config_text: str = ""
    summary: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    starts: tuple[Mapping[str, Any], ...] = ()
    records: tuple[Mapping[str, float], ...] = ()  # of metrics.jsonl

    @property
    def name(self) -> str:
        return STAGES[self.key]

    @property
    def begun(self) -> bool:
        return self.status in ("finished", "unfinished")


def read_stages(run: Path, *, dataset: Path | None) -> list[StageFacts]:
    """Returns every stage of a run, in order, begun or not. Raises UserError where none was begun."""
    if not run.is_dir():
        raise UserError(f"expected a run's folder, but {run} is missing; make one with: make train-rl RUN={run}")
    places = {key: dataset if key == "dataset" else run / key for key in STAGES}
    begun = {key: _begun(key, place) for key, place in places.items() if place is not None and _is_begun(place)}
    if not begun:
        raise UserError(f"no stage is begun in {run}; make train-rl RUN={run} runs or resumes them")
    taken = _taken_over(run, begun)
    return [begun.get(key) or _absent(key, taken) for key in STAGES]


def missing_stages(stages: Sequence[StageFacts]) -> list[StageFacts]:
    """Returns the stages that a person would look for in vain: those begun and not finished, and what is left of the run.

    A run of one task needs no base policy of the other.
    """
    of_rl_alone = any(stage.key in RL_STAGES and stage.begun for stage in stages)
    return [
        stage
        for stage in stages
        if stage.status == "unfinished" or (stage.status == "not begun" and (stage.key in RL_STAGES or not of_rl_alone))
    ]


def _is_begun(place: Path) -> bool:
    return (place / CONFIG_FILE).is_file() or (place / SUMMARY_FILE).is_file()


def _begun(key: str, place: Path) -> StageFacts:
    run = RunFolder(place)
    text = run.config_path.read_text(encoding="utf-8") if run.config_path.is_file() else ""
    config = yaml.safe_load(text) or {}
    records = tuple(read_metrics(place))
    finished = run.is_finished()
    evaluation = place / EVALUATION_FILE
    return StageFacts(
        key,
        "finished" if finished else "unfinished",
        "finished" if finished else _how_far(config, records),
        folder=place,
        config=config,
        config_text=text,
        summary=run.summary() if finished else {},
        evaluation=json.loads(evaluation.read_text(encoding="utf-8")) if finished and evaluation.is_file() else {},
        starts=tuple(run.starts()),
        records=records,
    )


def _how_far(config: Mapping[str, Any], records: tuple[Mapping[str, float], ...]) -> str:
    total = config.get("iterations") or sum(config.get("stage_iterations", ()))
    done = int(records[-1]["step"]) if records else 0
    return f"not finished: {done}{f' of {total}' if total else ''} steps so far" if done else "begun, not finished"


def _taken_over(run: Path, begun: Mapping[str, StageFacts]) -> dict[str, str]:
    """Returns {stage: the checkpoint that stood in for it}: what RL started from without this run having trained it."""
    taken = {}
    for key in RL_STAGES:
        config = begun[key].config if key in begun else {}
        asked = {f"base_{key.removeprefix('rl_')}": config.get("base"), "reward_model": config.get("reward_model")}
        taken |= {stage: str(where) for stage, where in asked.items() if where and stage not in begun}
    if "reward_model" not in begun and (run / "reward_model/checkpoint").is_dir():
        taken["reward_model"] = str(run / "reward_model/checkpoint")
    return taken


def _absent(key: str, taken: Mapping[str, str]) -> StageFacts:
    if key in taken:
        how = "as it ships" if taken[key].startswith(PREFIX) else "trained elsewhere"
        return StageFacts(key, "taken over", f"{taken[key]}, {how}")
    reward_model_is_there = "reward_model" in taken
    if reward_model_is_there and key in ("pool/sr", "pool/face", "dataset"):
        return StageFacts(key, "not needed", "not needed: the reward model was not trained here")
    return StageFacts(key, "not begun", "not begun")
