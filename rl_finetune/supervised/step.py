"""One supervised step of a diffusion policy: noised truths to denoise, and its own trajectories to end nearer the truth.

A network that only denoises noised truths never sees the errors that its own few steps make, and leaves them. Here it is
also trained where its own sampler takes it (as SinSR and other few-step samplers are). The truth is all that it is trained
towards: sharper than its mean a policy is made by RL.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from data.degradation.pairs import PairDataset, collate_pairs
from rl_finetune.supervised.stage_pictures import StagePictures
from rl_finetune.supervised.windows import Window
from shared.app.config import require_range
from shared.diffusion.sampler import SamplerSpec, draw_step, pure_noise
from shared.policies.interface import Condition, take
from shared.policies.pixel_unet import PixelUNet
from shared.seeds import derive_seed, gaussian, numpy_rng


@dataclass(frozen=True)
class OwnStepsConfig:
    """How the policy learns from its own restorations."""

    share: float = 0.0  # share of each batch that is restored by the policy's own sampler; 0: it only denoises
    pixel_weight: float = 1.0  # weight of their L1 distance, in units of the residual's standard deviation

    def __post_init__(self) -> None:
        require_range(share=(self.share, 0, 0.9), pixel_weight=(self.pixel_weight, 0, 1e6))


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    window: Window,
    iteration: int,
    *,
    own_steps: OwnStepsConfig,
    sampler: SamplerSpec,
    gradient_clip: float,
    seed: int,
    accelerator: Accelerator,
) -> dict[str, float]:
    """Makes one step and returns its figures.

    The first 1 − share of the batch is denoised from every noise level (the mean squared error of what the network
    predicts); the rest is restored by the policy's own sampler, and a step of it trained on the picture it ends in.
    Both pass the network together.
    """
    policy: PixelUNet = accelerator.unwrap_model(model)
    gt, lq = (x.to(accelerator.device) for x in (window.gt, window.lq))
    own = round(own_steps.share * gt.shape[0])
    denoised = gt.shape[0] - own
    seeds = [derive_seed(seed, "noise", iteration, accelerator.process_index, i) for i in range(gt.shape[0])]
    rng = numpy_rng(seed, "t", iteration, accelerator.process_index)
    # One timestep per sample, stratified over the batch: the loss varies far more over t than over images.
    jitter, total = torch.from_numpy(rng.random(denoised)), policy.schedule.config.train_timesteps
    timesteps = ((torch.arange(denoised) + jitter) / denoised * total).long().to(accelerator.device)
    with torch.no_grad(), accelerator.autocast():
        known = {stage: pictures.to(accelerator.device) for stage, pictures in window.stages.items()}
        condition = policy.condition(lq, known=known)
        condition = {name: tensor.float() for name, tensor in condition.items()}
        restored = take(condition, slice(denoised, None))
        x_t = torch.empty(0, device=accelerator.device)
        if own:
            x_t, at = visited(policy, restored, sampler, seeds[denoised:], rng)
            timesteps = torch.cat([timesteps, at])
        x0 = policy.encode(gt, condition)[:denoised]
        noise = gaussian(seeds[:denoised], x0.shape[1:], device=accelerator.device)
        target = policy.schedule.target(x0, noise, timesteps[:denoised])
        x_t = torch.cat([policy.schedule.add_noise(x0, noise, timesteps[:denoised]), x_t])
    output = model(x_t, timesteps, condition).float()
    loss = (output[:denoised] - target).square().mean()
    figures = {"loss": float(loss.detach())}
    if own:
        x0_pred, _ = policy.schedule.to_x0_and_noise(output[denoised:], x_t[denoised:], timesteps[denoised:])
        sr = policy.decode(x0_pred, restored)
        pixel = own_steps.pixel_weight * (sr - gt[denoised:]).abs().mean() / policy.config.residual_std
        loss = loss + pixel
        figures["own_steps/pixel"] = float(pixel.detach())
    optimizer.zero_grad(set_to_none=True)
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(model.parameters(), gradient_clip)
    optimizer.step()
    return figures


def visited(
    policy: PixelUNet, condition: Condition, sampler: SamplerSpec, seeds: list[int], rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns x_t [B, C, h, w] at a step after the first of each sample's own trajectory, and the timesteps [B].

    Two in three are at the last step, whose prediction is the restoration. The sampler takes one step to get there, from
    the first stage's picture, noised: that is nearly what it predicts from pure noise, and spares the way from there.
    """
    plan, start = sampler.plan(policy.schedule), condition["start"]
    shape = (policy.latent_channels, *(side // policy.config.unshuffle for side in start.shape[-2:]))
    last = len(plan) - 1
    picked = [last if i % 3 else int(rng.integers(1, last + 1)) for i in range(len(seeds))]
    x_t = torch.empty(len(seeds), *shape, device=start.device)
    for j in sorted(set(picked)):
        rows = [i for i, step in enumerate(picked) if step == j]
        members, drawn = [seeds[i] for i in rows], {name: tensor[rows] for name, tensor in condition.items()}
        before = plan[j - 1]
        noised = pure_noise(members, shape, device=start.device) * float(policy.schedule.sigmas[before.t])

        def predict(x: torch.Tensor, t: torch.Tensor, drawn: Condition = drawn) -> torch.Tensor:
            return policy.predict(x, t, drawn).float()

        step = draw_step(predict, policy.schedule, before, j - 1, noised, sample_seeds=members)
        x_t[rows] = step.scored.prev
    return x_t, torch.tensor([plan[j].t for j in picked], device=x_t.device)


def residual_std(unit: PixelUNet, pairs: PairDataset, pictures: StagePictures, count: int = 64) -> float:
    """Returns the standard deviation of the residuals to the first stage's pictures over the first pairs.

    `unit` is the policy with a residual_std of 1; the figure is in units of the [0, 1] range.
    """
    batch = collate_pairs([pairs[i] for i in range(min(count, len(pairs)))])
    condition = unit.condition(batch.lq, known=pictures.of(batch.indices))
    return max(1e-3, float(unit.encode(batch.gt, condition).std()))
