"""Devices and precision by name; what this machine cannot do is refused rather than silently replaced."""

from __future__ import annotations

import torch
from accelerate import Accelerator

from shared.app.errors import UserError


def open_device(name: str) -> torch.device:
    """Returns the device called `name` (cpu, cuda, cuda:1). Raises UserError for one that this machine does not have."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError):
        raise UserError(f"no device {name!r} on this machine; expected cpu, or cuda where there is a GPU") from None
    return device


def open_accelerator(mixed_precision: str, *, cpu: bool = False) -> Accelerator:
    """Returns the Accelerator, which owns device, precision (no, bf16, fp16) and processes.

    Raises UserError for any other precision, and for fp16 without a GPU, where Accelerate would compute in float32.
    """
    if mixed_precision not in ("no", "bf16", "fp16"):
        raise UserError(f"expected mixed precision no, bf16 or fp16, got {mixed_precision}")
    accelerator = Accelerator(cpu=cpu, mixed_precision=mixed_precision)
    if mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError("fp16 needs a GPU; on a CPU take bf16 or full precision")
    return accelerator
