"""The policy being trained, what trains it, and one optimizer step: the same for every method."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from accelerate import Accelerator

from rl_finetune.methods.rollout import ConditionedDenoiser
from shared.policies.interface import DiffusionPolicy


@dataclass(frozen=True)
class Learner:
    """The policy being trained, and what trains it."""

    accelerator: Accelerator
    policy: DiffusionPolicy  # the bare module: encode, condition, decode
    model: torch.nn.Module  # the same as Accelerate prepared it: every trained forward goes through here
    optimizer: torch.optim.Optimizer
    reference: ConditionedDenoiser | None = None  # the frozen base policy, where the loss asks for it


def optimizer_step(learner: Learner, gradient_clip: float) -> torch.Tensor:
    """Makes one optimizer step and returns the norm its gradient had before clipping.

    Raises RuntimeError unless the optimizer's own count goes up by one: a wrapper that accumulates gradients changes
    how many steps a rollout makes, and with it every learning rate, silently.
    """
    before = _steps_made(learner.optimizer)
    norm = learner.accelerator.clip_grad_norm_(learner.model.parameters(), gradient_clip)
    learner.optimizer.step()
    # The fp16 scaler skips a step on an infinite gradient, and reports it.
    expected = 0 if learner.accelerator.optimizer_step_was_skipped else 1
    made = _steps_made(learner.optimizer) - before
    if made != expected:
        raise RuntimeError(f"{expected} optimizer step was to be made, but the optimizer counts {made}")
    return torch.as_tensor(norm).detach()


def _steps_made(optimizer: torch.optim.Optimizer) -> int:
    return int(next(iter(optimizer.state.values()), {}).get("step", 0))


def average_gradients(accelerator: Accelerator, model: torch.nn.Module) -> None:
    """Replaces every trained parameter's gradient by its mean over processes."""
    if accelerator.num_processes == 1:
        return
    trained = [p for p in model.parameters() if p.requires_grad]
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained])
    flat = accelerator.reduce(flat, reduction="mean")
    for parameter, mean in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
        parameter.grad = mean.view_as(parameter)
