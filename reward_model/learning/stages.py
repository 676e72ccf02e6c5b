"""Training one stage RM_k: the loss of a batch, exponential averaging, validation, and exact resume."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from data.store.sample import Sample
from reward_model.learning import losses
from reward_model.learning.adversarial import DisguiseConfig, disguised
from reward_model.learning.anchor import BaseScore
from reward_model.learning.augment import Augmenter
from reward_model.learning.batches import StepBatches, TripletBatch
from reward_model.learning.losses import LossConfig
from reward_model.measuring.full_reference import full_reference_quality
from reward_model.measuring.predict import predict_samples, selection_figures
from reward_model.network.model import RewardModel
from shared.app.config import require_range
from shared.app.errors import UserError
from shared.runs.training_loop import TrainingLoop, set_learning_rate
from shared.seeds import derive_seed


@dataclass(frozen=True)
class OptimConfig:
    """How a stage is optimised."""

    batch_triplets: int = 16  # over all processes; each triplet is three pictures
    accumulate: int = 1  # batches per optimizer step
    learning_rate: float = 2e-3  # peak, reached after the warm-up; falls to 0 along a cosine
    encoder_lr_scale: float = 1.0  # below 1 for pretrained encoders
    inherited_lr_scale: float = 1.0  # from RM_2 on, of what the stage before already trained
    warmup: float = 0.05  # share of the stage's iterations
    weight_decay: float = 1e-4
    gradient_clip: float = 1.0  # norm
    ema_decay: float = 0.99
    validate_every: int = 100  # iterations; the best weights on validation are kept
    save_every: int = 100  # iterations between resumable states

    def __post_init__(self) -> None:
        require_range(
            batch_triplets=(self.batch_triplets, 1, 65536),
            accumulate=(self.accumulate, 1, 4096),
            learning_rate=(self.learning_rate, 0, 1),
            encoder_lr_scale=(self.encoder_lr_scale, 0, 10),
            inherited_lr_scale=(self.inherited_lr_scale, 0, 10),
            warmup=(self.warmup, 0, 1),
            weight_decay=(self.weight_decay, 0, 1),
            gradient_clip=(self.gradient_clip, 1e-6, 1e6),
            ema_decay=(self.ema_decay, 0, 0.99999),
            validate_every=(self.validate_every, 1, 10**9),
            save_every=(self.save_every, 1, 10**9),
        )


class AveragedWeights:
    """The exponential average of a model's weights and buffers, and the best average seen on validation."""

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.average = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.best = {name: value.clone() for name, value in self.average.items()}
        self.best_figure = torch.tensor(-1.0)

    @torch.no_grad()
    def update(self, model: torch.nn.Module, step: int) -> None:
        """Moves the average towards the model; early steps count for more, so that the start is soon forgotten."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value.to(self.average[name].dtype), weight)
            else:
                self.average[name].copy_(value)

    def keep_if_best(self, figure: float) -> None:
        if figure >= self.best_figure.item():
            self.best_figure = torch.tensor(figure)
            self.best = {name: value.clone() for name, value in self.average.items()}

    def state_dict(self) -> dict:
        return {"average": self.average, "best": self.best, "best_figure": self.best_figure}

    def load_state_dict(self, state: dict) -> None:
        # Into what is there: a state comes back on the CPU, whatever device it left.
        for name in ("average", "best"):
            for key, value in getattr(self, name).items():
                value.copy_(state[name][key])
        self.best_figure = state["best_figure"]


def stage_loss(
    model: torch.nn.Module, batch: TripletBatch, config: LossConfig, base_score: BaseScore | None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Returns (total, terms) of one batch: quality and rank at stage 0, map, rank and alignment after it.

    syn, sr and gt go through the model as one batch and weigh alike: RL feeds it pictures of all three kinds.
    """
    output = model(torch.cat([batch.syn, batch.sr, batch.gt]))
    score_syn, score_sr, score_gt = output.score.chunk(3)
    terms = {
        "rank": config.rank
        * losses.rank_loss(
            score_sr,
            score_syn,
            score_gt,
            syn_damage=batch.degradation_map.mean(dim=(1, 2, 3)),
            sr_damage=batch.sr_degradation_map.mean(dim=(1, 2, 3)),
            margin=config.margin,
        )
    }
    if output.degradation_map is None:
        pictures, reference = torch.cat([batch.syn, batch.sr, batch.gt]), batch.gt.repeat(3, 1, 1, 1)
        with torch.autocast(pictures.device.type, enabled=False):  # in bfloat16 .9987 is 1
            quality = full_reference_quality(pictures, reference)
        terms["quality"] = config.quality * losses.quality_loss(output.score, quality)
    else:
        clean = torch.zeros_like(batch.degradation_map)
        target = torch.cat([batch.degradation_map, batch.sr_degradation_map, clean])
        terms["map"] = config.map * losses.map_loss(output.degradation_map, target, config)
        if base_score is not None and config.align:
            terms["align"] = config.align * losses.align_loss(score_gt, base_score(batch.gt))
    return sum(terms.values()), terms


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
    workers: int
    compile: bool
    channels_last: bool
    disguise: DisguiseConfig


def train_stage(
    model: RewardModel,
    job: StageJob,
    data: TrainingData,
    *,
    base_score: BaseScore | None,
    loss: LossConfig,
    optim: OptimConfig,
    accelerator: Accelerator,
) -> tuple[dict[str, torch.Tensor], float]:
    """Returns (the best averaged weights, seconds); goes on from the state in the job's folder."""
    if job.channels_last:
        model = model.to(memory_format=torch.channels_last)
    model = model.to(accelerator.device)
    optimizer = torch.optim.AdamW(_parameter_groups(model, optim), lr=optim.learning_rate)
    wrapped, optimizer = accelerator.prepare(torch.compile(model) if job.compile else model, optimizer)
    averaged = AveragedWeights(model, optim.ema_decay)
    accelerator.register_for_checkpointing(averaged)
    loop = TrainingLoop(
        accelerator,
        job.folder,
        title=f"reward model, stage {model.stage}",
        steps=job.iterations,
        save_every=optim.save_every,
        log_folder=job.log_folder,
        log_offset=job.log_offset,
    )
    batches = StepBatches(
        data.train,
        data.augmenter,
        seed=job.seed,
        batch_triplets=optim.batch_triplets,
        steps=range(loop.done * optim.accumulate, job.iterations * optim.accumulate),
        process=accelerator.process_index,
        processes=accelerator.num_processes,
    )
    loader = iter(batches.loader(workers=job.workers))
    if loop.done == 0 and model.stage > 1:  # a short stage may fall behind what it started from: then that is kept
        _validate(model, averaged, data.validation, accelerator.device)
    prepared = _prepared(model, loader, job, accelerator, first=loop.done * optim.accumulate)
    for step in loop:
        wrapped.train()
        set_learning_rate(optimizer, learning_rate(optim.learning_rate, step / job.iterations, optim.warmup))
        figures = _optimizer_step(
            wrapped, optimizer, prepared, loss=loss, optim=optim, accelerator=accelerator, base_score=base_score
        )
        averaged.update(model, step)
        if loop.done % optim.validate_every == 0 or loop.done == job.iterations:
            figures |= _validate(model, averaged, data.validation, accelerator.device)
        named = {f"stage_{model.stage}/{name}": value for name, value in figures.items()}
        loop.record(named, show=[name for name in named if "/val/" in name])
    return averaged.best, loop.seconds


def learning_rate(peak: float, share: float, warmup: float) -> float:
    """Returns the rate at a share of the stage: a linear rise, then half a cosine down to 0."""
    if share < warmup:
        return peak * (0.02 + 0.98 * share / warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * (share - warmup) / max(1 - warmup, 1e-9)))


def _prepared(
    model: RewardModel, loader: Iterator[TripletBatch], job: StageJob, accelerator: Accelerator, *, first: int
) -> Iterator[TripletBatch]:
    """Yields the batches on the device, some of their restorations disguised from the model as it then is."""
    for number, batch in enumerate(loader, start=first):
        seed = derive_seed(job.seed, "disguise", number, accelerator.process_index)
        yield disguised(model, batch.to(accelerator.device), job.disguise, seed=seed)


def _optimizer_step(
    wrapped: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[TripletBatch],
    *,
    loss: LossConfig,
    optim: OptimConfig,
    accelerator: Accelerator,
    base_score: BaseScore | None,
) -> dict[str, float]:
    """Returns the mean terms of one step of `accumulate` batches, their sum, and the gradient's norm."""
    sums: dict[str, float] = {}
    for micro in range(optim.accumulate):
        batch = next(batches)
        synced = micro + 1 == optim.accumulate
        with accelerator.autocast(), nullcontext() if synced else accelerator.no_sync(wrapped):
            total, terms = stage_loss(wrapped, batch, loss, base_score)
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
    figures = selection_figures(predict_samples(model, validation, device=device))
    averaged.keep_if_best(figures["selection"])
    model.load_state_dict(own)
    return {f"val/{name}": value for name, value in figures.items()}


def _parameter_groups(model: RewardModel, optim: OptimConfig) -> list[dict]:
    """Returns groups with their share of the rate: the encoder's, and that of what the stages before have trained.

    RM_1 is never spared: RM_0 has learned to score, and what a map needs is still to come.
    """
    groups: dict[float, list[torch.nn.Parameter]] = {}
    fresh = (f"decoder.{model.stage - 1}.", f"map_heads.{model.stage - 1}.")
    for name, parameter in model.named_parameters():
        scale = optim.encoder_lr_scale if name.startswith("encoder.") else 1.0
        if model.stage > 1 and not name.startswith(fresh):
            scale *= optim.inherited_lr_scale
        groups.setdefault(scale, []).append(parameter)
    return [
        {"params": members, "lr_scale": scale, "weight_decay": optim.weight_decay} for scale, members in groups.items()
    ]
