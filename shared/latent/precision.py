"""Half the bytes for what is not trained; what is trained stays in float32, or small steps would be rounded away."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

FrozenDtype = Literal["auto", "float32", "bfloat16"]


def frozen_dtype(setting: FrozenDtype, device: torch.device) -> torch.dtype:
    """Returns the type of weights that are not trained; `auto` is bfloat16 on a GPU and float32 elsewhere."""
    if setting == "auto":
        setting = "bfloat16" if device.type == "cuda" else "float32"
    return getattr(torch, setting)


def cast_frozen(part: nn.Module, dtype: torch.dtype) -> None:
    """Puts the weights of a part that is not trained into `dtype`; adapters (LoRA) beside them stay in float32.

    A part of which some own weights are trained stays as it is: its layers hand each other their outputs in one type.
    """
    if any(p.requires_grad and ".lora_" not in name for name, p in part.named_parameters()):
        return
    for tensor in [*(p for p in part.parameters() if not p.requires_grad), *part.buffers()]:
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
