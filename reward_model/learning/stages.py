"""Trains one stage RM_k, with validation, the best average of its weights, and exact resume."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from data.store.dataset_sample import Sample
from reward_model.learning.adversarial import AdversarialConfig, make_adversarial
from reward_model.learning.anchor import Anchor
from reward_model.learning.augment import Augmenter
from reward_model.learning.averaged_weights import AveragedWeights
from reward_model.learning.batches import DrawnBatch, StepBatches, TripletBatch
from reward_model.learning.losses import TripletLossConfig
from reward_model.learning.optimizer import OptimConfig, cosine_rate, parameter_groups
from reward_model.learning.stage_loss import stage_loss
from reward_model.measuring.predict import predict_samples, selection_figures
from reward_model.network.model import RewardModel
from shared.app.errors import UserError
from shared.runs.training_loop import TrainingLoop, set_learning_rate
from shared.seeds import derive_seed


@dataclass(frozen=True)
class TrainingData:
    """What the stages learn from."""

    train: Sequence[Sample]
    validation: Sequence[Sample]
    augmenter: Augmenter


@dataclass(frozen=True)
class StageJob:
    """One stage's place in the run."""

    iterations: int
    seed: int
    folder: Path  # of the resumable state
    log_folder: Path
    log_offset: int  # iterations of the stages before
    can_go_on: bool  # the state after its last step is kept
    tracking: str  # trackers' names
    workers: int
    compile: bool
    channels_last: bool
    lq_share: float
    adversarial: AdversarialConfig


def train_stage(
    model: RewardModel,
    job: StageJob,
    data: TrainingData,
    *,
    anchor: Anchor | None,
    loss: TripletLossConfig,
    optim: OptimConfig,
    accelerator: Accelerator,
) -> tuple[dict[str, torch.Tensor], float]:
    """Returns (the best averaged weights, seconds); resumes from the state in the job's folder."""
    if job.channels_last:
        model = model.to(memory_format=torch.channels_last)
    model = model.to(accelerator.device)
    optimizer = torch.optim.AdamW(parameter_groups(model, optim), lr=optim.learning_rate)
    wrapped, optimizer = accelerator.prepare(torch.compile(model) if job.compile else model, optimizer)
    averaged = AveragedWeights(model, optim.ema_decay)
    loop = TrainingLoop(
        accelerator,
        job.folder,
        {"model": model, "optimizer": optimizer, "average": averaged},
        title=f"reward model, stage {model.stage}",
        steps=job.iterations,
        save_every=optim.save_every,
        log_folder=job.log_folder,
        log_offset=job.log_offset,
        can_go_on=job.can_go_on,
        tracking=job.tracking,
    )
    batches = StepBatches(
        data.train,
        data.augmenter,
        seed=job.seed,
        batch_triplets=optim.batch_triplets,
        lq_share=job.lq_share,
        steps=range(loop.done * optim.accumulate, job.iterations * optim.accumulate),
        process=accelerator.process_index,
        processes=accelerator.num_processes,
    )
    loader = iter(batches.loader(workers=job.workers))
    if loop.done == 0 and model.stage > 1:  # a short stage may end up worse than it began: then the start is kept
        _validate(model, averaged, data.validation, accelerator.device)
    prepared = _prepared(model, loader, data.augmenter, job, accelerator, first=loop.done * optim.accumulate)
    for step in loop:
        wrapped.train()
        set_learning_rate(optimizer, cosine_rate(optim.learning_rate, step / job.iterations, optim.warmup))
        figures = _optimizer_step(
            wrapped, optimizer, prepared, loss=loss, optim=optim, accelerator=accelerator, anchor=anchor
        )
        averaged.update(model, step)
        if loop.done % optim.validate_every == 0 or loop.done == job.iterations:
            figures |= _validate(model, averaged, data.validation, accelerator.device)
        named = {f"stage_{model.stage}/{name}": value for name, value in figures.items()}
        loop.record(named, show=[name for name in named if "/val/" in name])
    return averaged.best, loop.seconds


def _prepared(
    model: RewardModel,
    loader: Iterator[TripletBatch | DrawnBatch],
    augmenter: Augmenter,
    job: StageJob,
    accelerator: Accelerator,
    *,
    first: int,
) -> Iterator[TripletBatch]:
    """Yields the batches on the device, some of their restorations perturbed against the model as it then is."""
    for number, batch in enumerate(loader, start=first):
        if isinstance(batch, DrawnBatch):
            batch = batch.with_maps(augmenter, accelerator.device)
        seed = derive_seed(job.seed, "disguise", number, accelerator.process_index)
        yield make_adversarial(model, batch.to(accelerator.device), job.adversarial, seed=seed)


def _optimizer_step(
    wrapped: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[TripletBatch],
    *,
    loss: TripletLossConfig,
    optim: OptimConfig,
    accelerator: Accelerator,
    anchor: Anchor | None,
) -> dict[str, float]:
    """Returns the mean terms of one step of `accumulate` batches, their sum, and the gradient's norm."""
    sums: dict[str, float] = {}
    for micro in range(optim.accumulate):
        batch = next(batches)
        synced = micro + 1 == optim.accumulate
        with accelerator.autocast(), nullcontext() if synced else accelerator.no_sync(wrapped):
            total, terms = stage_loss(wrapped, batch, loss, anchor)
            accelerator.backward(total / optim.accumulate)
        for name, value in {**terms, "loss": total}.items():
            sums[name] = sums.get(name, 0.0) + value.item() / optim.accumulate
    if not math.isfinite(sums["loss"]):
        raise UserError(f"the loss is no longer finite ({sums}); lower optim.learning_rate, or set precision=fp32")
    sums["gradient_norm"] = float(accelerator.clip_grad_norm_(wrapped.parameters(), optim.gradient_clip))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return sums


def _validate(
    model: RewardModel, averaged: AveragedWeights, validation: Sequence[Sample], device: torch.device
) -> dict[str, float]:
    own = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(averaged.average)
    figures = validation_figures(model, validation, device)
    averaged.keep_if_best(figures["selection"])
    model.load_state_dict(own)
    return {f"val/{name}": value for name, value in figures.items()}


def validation_figures(model: RewardModel, validation: Sequence[Sample], device: torch.device) -> dict[str, float]:
    """Returns the figures without lq, and `lq/…` with it where the model takes it; `selection` is the mean of both."""
    figures = selection_figures(predict_samples(model, validation, device=device))
    if model.takes_lq:
        beside = selection_figures(predict_samples(model, validation, device=device, reads_lq=True))
        figures |= {f"lq/{name}": value for name, value in beside.items()}
        figures["selection"] = (figures["selection"] + beside["selection"]) / 2
    return figures
