"""Trains the reward model, RM_0 … RM_N one after the other, and publishes them as one checkpoint folder.

python -m reward_model.train configs/train_rm.yaml dataset=datasets/mine out=runs/mine/reward_model
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator

from data.store.dataset_sample import Sample
from data.store.reader import load_samples
from data.store.sample_maker import TargetScale
from reward_model.learning.adversarial import AdversarialConfig
from reward_model.learning.anchor import EMBEDDED, Anchor, open_anchor
from reward_model.learning.augment import AugmentConfig, Augmenter
from reward_model.learning.losses import TripletLossConfig
from reward_model.learning.optimizer import OptimConfig
from reward_model.learning.run_stages import (
    STAGES_FOLDER,
    finished_stages,
    growth_of,
    stages_left,
    training_folder,
)
from reward_model.learning.stages import StageJob, TrainingData, train_stage, validation_figures
from reward_model.measuring.model_card import write_model_card
from reward_model.measuring.predict import predict_samples
from reward_model.measuring.reference import ALONE, BESIDE_LQ, DetailReference, ScoreReference, reference_to_json
from reward_model.measuring.scored import targets_to_json
from reward_model.network.checkpoint import METRICS_FILE, TRAINING_FILE, read_config, write_stage
from reward_model.network.model import RewardModel, RewardModelConfig
from shared.app import devices
from shared.app.config import load_config, require_range, to_yaml
from shared.app.entry import run_command
from shared.files import replace_folder, write_bytes
from shared.runs.run_folder import RunFolder
from shared.seeds import derive_seed

CHECKPOINT_FOLDER = "checkpoint"
FREE_KEYS = ("workers", "device", "tracking", "optim.save_every")  # speed, not results


@dataclass(frozen=True)
class TrainConfig:
    """One reward model; configs/train_rm.yaml explains every field."""

    out: str = "runs/default/reward_model"  # the run's folder; the checkpoint ends up in its checkpoint/
    dataset: str = "datasets/default"  # a finished dataset folder
    seed: int = 0  # seed of weights, order and augmentation
    # Optimizer steps of RM_0, RM_1, …; 0 passes the weights on as they are.
    stage_iterations: tuple[int, ...] = (60, 60, 80, 800)
    # What S_base is: embedded (RM_0's own score) | clip_iqa:<CLIP on the Hub> (needs the extra `clip`).
    anchor: str = EMBEDDED
    # α of the map target, mixed anew from the stored components; null: as the dataset was built.
    pixel_weight: float | None = None
    lq_share: float = 0.0  # share of the samples shown with the lq they were restored from; 0 without model.takes_lq
    licence: str = ""  # licence of the weights, for the model card; empty: the card states none
    validation_samples: int = 96  # samples of the split val on which the best weights are chosen
    tracking: str = "tensorboard"  # trackers that Accelerate knows, commas between: tensorboard,wandb; or none
    workers: int = 1  # processes that decode and augment
    device: Literal["auto", "cpu"] = "auto"  # auto: a GPU where there is one
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # precision of the forward pass
    channels_last: bool = True  # memory layout; about 20 % faster on CPUs
    compile: bool = False  # torch.compile: pays after some hundred steps on a GPU
    model: RewardModelConfig = field(default_factory=RewardModelConfig)
    loss: TripletLossConfig = field(default_factory=TripletLossConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        require_range(workers=(self.workers, 0, 256), validation_samples=(self.validation_samples, 1, 10**6))
        if self.pixel_weight is not None:
            require_range(pixel_weight=(self.pixel_weight, 0.0, 1.0))
        require_range(lq_share=(self.lq_share, 0.0, 1.0))
        if (self.lq_share > 0) != self.model.takes_lq:
            raise ValueError(
                f"a model that takes lq learns from it: set lq_share and model.takes_lq both, got {self.lq_share:g} and "
                f"{self.model.takes_lq}"
            )
        if len(self.stage_iterations) != self.model.stages + 1:
            raise ValueError(
                f"stage_iterations must hold {self.model.stages + 1} numbers, RM_0 to RM_{self.model.stages}, got "
                f"{list(self.stage_iterations)}"
            )
        if min(self.stage_iterations) < 0 or self.stage_iterations[-1] < 1:
            raise ValueError(f"stage_iterations must be 0 or more, the last at least 1, got {self.stage_iterations}")

    @property
    def iterations(self) -> int:
        """Optimizer steps of all stages."""
        return sum(self.stage_iterations)


def main(argv: Sequence[str]) -> None:
    config = load_config(TrainConfig, argv)
    run = RunFolder.begin(config.out, config, argv, free_keys=FREE_KEYS, needed_mb=200, growth=growth_of(config))
    if run is None:
        return
    data = open_data(config)
    run.make(config, inputs={"dataset": config.dataset, "encoder_weights": config.model.encoder_weights})
    train(config, run, data)


def open_data(config: TrainConfig) -> TrainingData:
    """Returns the dataset's training and validation splits, and the augmentation on its target scale."""
    folder = Path(config.dataset)
    train_split = load_samples(folder, "train", pixel_weight=config.pixel_weight, cache=True)
    validation = load_samples(folder, "val", pixel_weight=config.pixel_weight, cache=True)
    # Evenly spread: neighbouring rows share their photograph.
    count = min(config.validation_samples, len(validation))
    kept = [validation[index * len(validation) // count] for index in range(count)]
    scale = TargetScale.of(folder, pixel_weight=config.pixel_weight)
    augmenter = Augmenter(config.augment, scale, seed=config.seed)
    if augmenter.labels_later:  # a backbone that is not there is told before the run's folder is made
        augmenter.maker(str(accelerator_of(config).device))
    return TrainingData(train_split, kept, augmenter)


def train(config: TrainConfig, run: RunFolder, data: TrainingData) -> None:
    """Trains every stage that is not finished yet, publishes the checkpoint, and marks the run as finished."""
    last = len(config.stage_iterations) - 1
    for stage in stages_left(run.path, config.stage_iterations):
        iterations = config.stage_iterations[stage]
        # A new accelerator for each stage: what it prepared and registered must not enter the next stage's state.
        accelerator = accelerator_of(config)
        model = build_stage(config, run, stage)
        weights, seconds = model.state_dict(), 0.0
        if iterations:
            job = StageJob(
                iterations=iterations,
                seed=derive_seed(config.seed, "stage", stage),
                folder=training_folder(run.path, stage),
                log_folder=run.path,
                log_offset=sum(config.stage_iterations[:stage]),
                can_go_on=stage == last,
                tracking=config.tracking,
                workers=config.workers,
                compile=config.compile,
                channels_last=config.channels_last,
                adversarial=config.adversarial,
                lq_share=config.lq_share,
            )
            anchor = stage_anchor(config, run, stage, accelerator.device)
            weights, seconds = train_stage(
                model, job, data, anchor=anchor, loss=config.loss, optim=config.optim, accelerator=accelerator
            )
        if accelerator.is_main_process:
            run.write_json(f"{STAGES_FOLDER}/seconds_{stage}.json", seconds)
            write_stage(run.path / STAGES_FOLDER, asdict(model.config), stage, weights)
            if stage < last:
                shutil.rmtree(training_folder(run.path, stage), ignore_errors=True)
        accelerator.wait_for_everyone()
    accelerator = accelerator_of(config)
    if accelerator.is_main_process:
        publish(config, run, data, accelerator.device)
    accelerator.wait_for_everyone()


def accelerator_of(config: TrainConfig) -> Accelerator:
    """Returns what owns device, precision and processes."""
    precision = "no" if config.precision == "fp32" else config.precision
    return devices.open_accelerator(precision, cpu=config.device == "cpu")


def build_stage(config: TrainConfig, run: RunFolder, stage: int) -> RewardModel:
    """Returns RM_stage, warm-started from the stage before; its fresh weights depend on seed and stage alone."""
    before = RewardModel.from_pretrained(run.path / STAGES_FOLDER, stage=stage - 1) if stage > 0 else None
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(config.seed, "init", stage))
        # The encoder's published weights, and the normalisation that belongs to them, come with the stage before.
        model = RewardModel(config.model if before is None else before.config, stage=stage)
    if before is not None:
        model.warm_start(before)
    return model


def stage_anchor(config: TrainConfig, run: RunFolder, stage: int, device: torch.device) -> Anchor | None:
    """Returns the anchor of the stage's scores; None at stage 0, which learns quality itself."""
    if stage == 0 or not config.loss.align:
        return None
    first = RewardModel.from_pretrained(run.path / STAGES_FOLDER, stage=0) if config.stage_iterations[0] else None
    return open_anchor(config.anchor, first_stage=first, device=device)


def publish(config: TrainConfig, run: RunFolder, data: TrainingData, device: torch.device) -> None:
    """Puts the checkpoint folder in place, whole, and finishes the run with its validation figures."""
    stages = run.path / STAGES_FOLDER
    temporary = run.path / f"{CHECKPOINT_FOLDER}.part"
    shutil.rmtree(temporary, ignore_errors=True)
    for stage in finished_stages(run.path)[:-1]:  # a kill between a stage's weights and this leaves its state
        shutil.rmtree(training_folder(run.path, stage), ignore_errors=True)
    temporary.mkdir()
    figures: dict[str, dict[str, float]] = {}
    references: dict[str, dict[str, ScoreReference]] = {}
    for stage in read_config(stages)["stages"]:
        model = RewardModel.from_pretrained(stages, stage=int(stage)).to(device)
        figures[stage] = validation_figures(model, data.validation, device)
        figures[stage]["seconds"] = float((stages / f"seconds_{stage}.json").read_text(encoding="utf-8"))
        references[stage] = score_references(model, data.validation, device)
        model.cpu().save_pretrained(temporary)
    metrics = {
        "validation": figures,
        "reference": reference_to_json(references, DetailReference.of(data.validation)),
        "targets": targets_to_json(data.augmenter.scale),
    }
    write_bytes(temporary / METRICS_FILE, (json.dumps(metrics, indent=2) + "\n").encode())
    write_bytes(temporary / TRAINING_FILE, to_yaml(without_local_paths(config)).encode())
    write_model_card(temporary, licence=config.licence)
    replace_folder(temporary, run.path / CHECKPOINT_FOLDER)
    summary = figures[max(figures, key=int)] | {"seconds": sum(f["seconds"] for f in figures.values())}
    run.finish(summary, says=f"{run.path / CHECKPOINT_FOLDER}: {summary_line(summary)}")


def score_references(
    model: RewardModel, validation: Sequence[Sample], device: torch.device
) -> dict[str, ScoreReference]:
    """Returns what the stage's scores are read against, alone and, where the model takes it, beside lq."""
    hows = {ALONE: False} | ({BESIDE_LQ: True} if model.takes_lq else {})
    predictions = {how: predict_samples(model, validation, device=device, reads_lq=lq) for how, lq in hows.items()}
    return {how: ScoreReference.of(of) for how, of in predictions.items()}


def without_local_paths(config: TrainConfig) -> TrainConfig:
    """Returns the config as it is published: folders and files by their last name alone."""
    model = replace(config.model, encoder_weights=Path(config.model.encoder_weights).name)
    return replace(config, out=Path(config.out).name, dataset=Path(config.dataset).name, model=model)


def summary_line(summary: dict[str, float]) -> str:
    """Returns a finished run's validation figures in a line."""
    names = ("pixel_auroc", "sr_below_syn", "syn_below_gt", "triplet", "lq/pixel_auroc", "lq/triplet")
    shown = ", ".join(f"{name} {summary[name]:.3f}" for name in names if name in summary)
    return f"validation {shown}; {summary['seconds']:.0f} s"


if __name__ == "__main__":
    run_command(main)
