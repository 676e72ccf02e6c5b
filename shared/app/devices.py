"""Devices, precision and the launcher's strategy; what this machine or a training here cannot do is refused, not replaced.

A policy is evaluated, averaged, merged and saved whole, at any iteration, on every process; an update makes several
backward passes and one optimizer step. DistributedDataParallel does that. What cuts the policy into parts does not.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping

import torch
from accelerate import Accelerator

from shared.app.errors import UserError

DDP_CONFIG = "configs/gpu/accelerate/ddp.yaml"
# Of glibc's mallopt: a value for each parameter, by malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _MOST_BYTES = -1, -4, 2**31 - 1
_INSTEAD = f"launch with {DDP_CONFIG}; where memory is short, see `restore-rl memory`"


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
    if device.type == "cpu":
        keep_memory()
    return device


def keep_memory() -> None:
    """Keeps what tensors leave free, up to 2 GB, for the next ones, where the C library is glibc.

    By itself it returns every block above 32 MB to the kernel at once, and the next layer takes as much anew: the kernel
    then clears pages for as long as the network computes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, _MOST_BYTES)
        mallopt(_MMAP_MAX, 0)


def device_words(device: torch.device) -> str:
    """Returns a device as a person knows it: `cuda (NVIDIA H200)`, `cpu (16 threads)`."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    if device.type == "cpu":
        return f"cpu ({torch.get_num_threads()} threads)"
    return str(device)


def open_accelerator(mixed_precision: str, *, cpu: bool = False) -> Accelerator:
    """Returns the Accelerator, which owns device, precision (no, bf16, fp16) and processes.

    Raises UserError for any other precision, for fp16 without a GPU, where Accelerate would compute in float32, and for a
    strategy of the launcher's that a training here cannot use.
    """
    require_strategy()
    if mixed_precision not in ("no", "bf16", "fp16"):
        raise UserError(f"expected mixed precision no, bf16 or fp16, got {mixed_precision}")
    accelerator = Accelerator(cpu=cpu, mixed_precision=mixed_precision)
    if accelerator.device.type == "cpu":
        keep_memory()
    if mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError("fp16 needs a GPU; on a CPU take bf16 or full precision")
    return accelerator


def require_strategy(asked: Mapping[str, str] = os.environ) -> None:
    """Raises UserError, in one line with the reason, for a strategy of Accelerate's that a training here cannot use.

    `asked`: the environment, in which `accelerate launch` says what its config wants.
    """
    name, reason = _refused(asked)
    if name:
        raise UserError(f"{name} cannot be used here: {reason}; {_INSTEAD}")
    steps = asked.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps not in ("", "1", "auto"):
        raise UserError(
            f"gradient_accumulation_steps={steps} of Accelerate would leave out optimizer steps that a rollout is to make: "
            "set it to 1, and cut an update into passes by microbatch_groups="
        )


def _refused(asked: Mapping[str, str]) -> tuple[str, str]:
    def on(key: str) -> bool:
        return asked.get(key, "").lower() in ("true", "1", "yes")

    if on("ACCELERATE_USE_DEEPSPEED"):
        stage = asked.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "")
        if stage == "3":
            return "DeepSpeed ZeRO-3", "no process holds a whole weight that could be averaged, merged or saved"
        zero = f" ZeRO-{stage}" if stage.isdigit() else ""
        return (
            f"DeepSpeed{zero}",
            "its engine makes an optimizer step in every backward pass, and an update has several",
        )
    if on("ACCELERATE_USE_FSDP"):
        if asked.get("FSDP_VERSION", "1") != "2":
            return "FSDP1", "it flattens trained and frozen weights into one, and adapters among them"
        if on("FSDP_OFFLOAD_PARAMS"):
            return "FSDP2 with CPU offload", "the weights' average follows them on the GPU"
        return (
            "FSDP2",
            "the weights' average, the state that a killed run resumes from and the merged policy are read whole",
        )
    if on("ACCELERATE_USE_MEGATRON_LM"):
        return "Megatron-LM", "it trains language models"
    if on("ACCELERATE_USE_PARALLELISM_CONFIG"):
        return "a parallelism_config", "tensor and context parallelism cut the policy into parts"
    return "", ""
