"""What a policy's passes hold at once, from shapes alone: the network runs on tensors that have no memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from rl_finetune.footprint.tracked_bytes import TrackedBytes, autocast_as_on_a_gpu, fused_attention
from shared.policies.interface import Condition, DiffusionPolicy


@dataclass(frozen=True)
class PerSample:
    """Bytes of a pass over n samples: fixed + n · each."""

    fixed: float
    each: float

    def at(self, samples: int) -> float:
        return self.fixed + samples * self.each


@dataclass(frozen=True)
class PolicyPasses:
    """The most that each pass holds beside weights, gradients and what the rollout keeps."""

    draw: PerSample  # one step without gradient
    decode: PerSample  # latents to pictures
    update: PerSample  # forward and backward of one trained step, without the gradients of the weights
    latent: tuple[int, int, int]  # C, h, w
    condition_bytes: float  # of one picture


def passes_of(
    policy: DiffusionPolicy, lq_hw: tuple[int, int], *, device: str, autocast: torch.dtype | None = None
) -> PolicyPasses:
    """Returns what passes over pictures of `lq_hw` hold on `device`, which need not be there.

    `policy`: with what is trained set to require gradients; it is left as it was.
    """
    with ExitStack() as stack:
        fake = stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        values = {
            name: tensor.to(device).detach().requires_grad_(tensor.requires_grad)
            for name, tensor in (
                (n, fake.from_tensor(t)) for n, t in (*policy.named_parameters(), *policy.named_buffers())
            )
        }
        if device == "cuda":
            stack.enter_context(fused_attention())
            stack.enter_context(autocast_as_on_a_gpu(autocast))
        shape = policy.latent_shape(torch.empty(1, 3, *lq_hw))
        condition = shapes_of_condition(policy, values, lq_hw, device=device)

        def inputs(count: int) -> tuple[torch.Tensor, torch.Tensor, Condition]:
            x_t = torch.empty(count, *shape, device=device)
            of_all = {
                name: torch.empty(count, *t.shape[1:], dtype=t.dtype, device=device) for name, t in condition.items()
            }
            return x_t, policy.schedule.batch_at(0, count, device), of_all

        def call(method: str, *arguments: object) -> torch.Tensor:
            return torch.func.functional_call(
                _Method(policy, method), {f"policy.{n}": v for n, v in values.items()}, arguments
            )

        def draw(count: int) -> Callable[[], object]:
            given = inputs(count)
            return lambda: call("predict", *given).float()

        def decode(count: int) -> Callable[[], object]:
            x_t, _, of_all = inputs(count)
            return lambda: call("decode", x_t, of_all).clamp(0, 1)

        def update(count: int) -> Callable[[], object]:
            given = inputs(count)
            return lambda: call("predict", *given).float().square().mean()

        return PolicyPasses(
            draw=_without_gradient(draw),
            decode=_without_gradient(decode),
            update=_line(update, backward=True),
            latent=shape,
            condition_bytes=sum(t.nbytes for t in condition.values()),
        )


def shapes_of_condition(
    policy: DiffusionPolicy, values: dict[str, torch.Tensor], lq_hw: tuple[int, int], *, device: str
) -> Condition:
    """Returns a condition [1, …] without content. The pre-restorer's own passes, made once a group, are not run."""
    lq = torch.empty(1, 3, *lq_hw, device=device)
    known = {}
    if stages := [stage for stage in ("pre_restorer", "guide") if hasattr(policy, stage)]:
        picture = torch.empty(1, 3, *(side * policy.scale for side in lq_hw), device=device)
        known = {"known": dict.fromkeys(stages, picture)}
    with torch.no_grad():
        module, own = _Method(policy, "condition"), {f"policy.{name}": value for name, value in values.items()}
        return torch.func.functional_call(module, own, (lq,), known)


class _Method(nn.Module):
    """A method of a policy as a module's forward, as functional_call needs it."""

    def __init__(self, policy: DiffusionPolicy, name: str) -> None:
        super().__init__()
        self.policy, self.name = policy, name

    def forward(self, *arguments, **named):
        return getattr(self.policy, self.name)(*arguments, **named)


def _line(run_of: Callable[[int], Callable[[], object]], *, backward: bool = False) -> PerSample:
    """Returns the line through the peaks of two and of four samples.

    A backward pass begins with all that the forward pass has kept for it, and holds two gradients of activations beside: of
    a layer's output and of its input.
    """
    peaks = []
    for count in (2, 4):
        run = run_of(count)
        torch.clear_autocast_cache()  # weights that were cast stay cast until a pass ends
        with TrackedBytes() as tracked:
            kept = run()
        peaks.append(max(tracked.peak, tracked.live + 2 * tracked.largest) if backward else tracked.peak)
        del kept
    each = (peaks[1] - peaks[0]) / 2
    return PerSample(max(0.0, peaks[0] - 2 * each), each)


def _without_gradient(run_of: Callable[[int], Callable[[], object]]) -> PerSample:
    with torch.no_grad():
        return _line(run_of)
