"""One supervised step of a diffusion policy: noised pictures to denoise, and its own trajectories to make better.

A network that only denoises noised truths answers with the mean of all that lq allows, and few steps of it stay a blur.
Here it is also trained where its own sampler takes it (as SinSR and other few-step samplers are). The picture to reach
moves with the noise: at pure noise the truth, of which a network learns the mean and few errors; where little noise is
left, and detail is drawn, the teacher's, or without one the guide's. None of the metrics that judge a restorer is part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from data.degradation.pairs import PairDataset, collate_pairs
from rl_finetune.supervised.windows import Window
from shared.app.config import require_range
from shared.diffusion.sampler import SamplerSpec, draw_step, pure_noise
from shared.diffusion.schedule import NoiseSchedule
from shared.policies.interface import Condition, take
from shared.policies.pixel_unet import PixelUNet
from shared.seeds import derive_seed, gaussian, numpy_rng
from shared.vision.metrics import gradient_distance


@dataclass(frozen=True)
class DetailConfig:
    """How the policy learns from its own restorations."""

    share: float = 0.0  # share of each batch that is restored by the policy's own sampler; 0: it only denoises
    teacher: str | None = None  # a restorer, by folder or file, whose detail is learnt; null: the truth alone
    teacher_pairs: int = 600  # how many pairs the teacher restores, for the guide and the policy to be trained on
    sharp_share: float = (
        1.0  # how far the aim moves from the truth to the teacher's, or without one the guide's, picture
    )
    pixel_weight: float = 1.0  # weight of the L1 distance, in units of the residual's standard deviation
    texture_weight: float = 0.0  # weight of the distance of oriented gradients in neighbourhoods

    def __post_init__(self) -> None:
        require_range(share=(self.share, 0, 0.9), pixel_weight=(self.pixel_weight, 0, 1e6))
        require_range(sharp_share=(self.sharp_share, 0, 1))
        require_range(teacher_pairs=(self.teacher_pairs, 1, 1e9), texture_weight=(self.texture_weight, 0, 1e6))


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    window: Window,
    iteration: int,
    *,
    detail: DetailConfig,
    taught_by: Sequence[str],
    sampler: SamplerSpec,
    gradient_clip: float,
    seed: int,
    accelerator: Accelerator,
) -> dict[str, float]:
    """Makes one step and returns its figures.

    The first 1 − share of the batch is denoised from every noise level (the mean squared error of what the network
    predicts); the rest is restored by the policy's own sampler, and a step of it trained on what the picture looks like.
    Both pass the network together. `taught_by`: which of the policy's stages are the teacher itself.
    """
    policy: PixelUNet = accelerator.unwrap_model(model)
    gt, lq, taught = (x.to(accelerator.device) for x in (window.gt, window.lq, window.taught))
    own = round(detail.share * gt.shape[0])
    denoised = gt.shape[0] - own
    seeds = [derive_seed(seed, "noise", iteration, accelerator.process_index, i) for i in range(gt.shape[0])]
    rng = numpy_rng(seed, "t", iteration, accelerator.process_index)
    # One timestep per sample, stratified over the batch: the loss varies far more over t than over images.
    jitter, total = torch.from_numpy(rng.random(denoised)), policy.schedule.config.train_timesteps
    timesteps = ((torch.arange(denoised) + jitter) / denoised * total).long().to(accelerator.device)
    with torch.no_grad(), accelerator.autocast():
        # A published network takes a hundred times the policy's own time, and where it teaches, its picture is there.
        condition = policy.condition(lq, known=dict.fromkeys(taught_by, taught))
        condition = {name: tensor.float() for name, tensor in condition.items()}
        restored = take(condition, slice(denoised, None))
        x_t = torch.empty(0, device=accelerator.device)
        if own:
            x_t, at = visited(policy, restored, sampler, seeds[denoised:], rng)
            timesteps = torch.cat([timesteps, at])
        sharpness = decided(policy.schedule, timesteps, sampler)
        sharp = condition["guide"] if detail.teacher is None and "guide" in condition else taught
        aim = gt + detail.sharp_share * sharpness * (sharp - gt)
        x0 = policy.encode(aim, condition)[:denoised]
        noise = gaussian(seeds[:denoised], x0.shape[1:], device=accelerator.device)
        target = policy.schedule.target(x0, noise, timesteps[:denoised])
        x_t = torch.cat([policy.schedule.add_noise(x0, noise, timesteps[:denoised]), x_t])
    output = model(x_t, timesteps, condition).float()
    loss = (output[:denoised] - target).square().mean()
    figures = {"loss": float(loss.detach())}
    if own:
        x0_pred, _ = policy.schedule.to_x0_and_noise(output[denoised:], x_t[denoised:], timesteps[denoised:])
        sr = policy.decode(x0_pred, restored)
        pixel = (sr - aim[denoised:]).abs().mean() / policy.config.residual_std
        texture = (gradient_distance(sr, taught[denoised:]) * sharpness[denoised:].view(-1)).mean()
        parts = {"pixel": detail.pixel_weight * pixel, "texture": detail.texture_weight * texture}
        loss = loss + sum(parts.values())
        figures |= {f"detail/{name}": float(part.detach()) for name, part in parts.items()}
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


def decided(schedule: NoiseSchedule, timesteps: torch.Tensor, sampler: SamplerSpec) -> torch.Tensor:
    """Returns how far the aim has moved from the truth to the sharp picture, [B, 1, 1, 1] in [0, 1].

    It goes as α_t, to 1 at the sampler's last step: while x_t is mostly noise, the mean is what is asked for.
    """
    last = float(schedule.alphas[sampler.plan(schedule)[-1].t])
    return (schedule.alpha_sigma(timesteps)[0] / max(last, 1e-3)).clamp(max=1.0)


def residual_std(unit: PixelUNet, pairs: PairDataset, count: int = 64) -> float:
    """Returns the standard deviation of the residuals to the first stage's pictures over the first pairs.

    `unit` is the policy with a residual_std of 1; the figure is in units of the [0, 1] range.
    """
    batch = collate_pairs([pairs[i] for i in range(min(count, len(pairs)))])
    return max(1e-3, float(unit.encode(batch.gt, unit.condition(batch.lq)).std()))
