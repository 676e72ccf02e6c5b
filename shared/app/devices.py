"""Devices and precision by name; what this machine cannot do is refused rather than silently replaced."""

from __future__ import annotations

import torch
from accelerate import Accelerator

from shared.app.errors import UserError


def open_device(name: str) -> torch.device:
    """Returns the device called `name` (cpu, cuda, cuda:1, mps), or for `auto` the first GPU, else the CPU.

    Raises UserError for one that this machine does not have.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError):
        raise UserError(f"no device {name!r} on this machine; expected cpu, or cuda where there is a GPU") from None
    return device


def device_words(device: torch.device) -> str:
    """Returns a device as a person knows it: `cuda (NVIDIA H200)`, `cpu (16 threads)`."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    if device.type == "cpu":
        return f"cpu ({torch.get_num_threads()} threads)"
    return str(device)


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
