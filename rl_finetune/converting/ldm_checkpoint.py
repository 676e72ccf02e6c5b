"""Reads published checkpoints in the layout of latent diffusion: Stable Diffusion's, DiffBIR's and LRPO's.

One file holds a whole model (`model.diffusion_model.`, `first_stage_model.`, `cond_stage_model.model.`, `control_model.`,
`preprocess_model.`), or a ControlNet alone, with its prefix (DiffBIR v1) or without (v2, LRPO).
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from shared.app.errors import UserError

# Our name of each part, and what its tensors' names begin with.
PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.model.",
    "controlnet": "control_model.",
    "pre_restorer": "preprocess_model.",
}
_WRAPPERS = ("state_dict", "params_ema", "params", "model")  # dictionaries that training scripts put around the tensors
_CONTROL_ONLY = "middle_block_out.0.weight"  # in a ControlNet, and nowhere else

Tensors = dict[str, torch.Tensor]


def read_parts(path: str | Path) -> dict[str, Tensors]:
    """Returns {part: {name without the part's prefix: tensor}} of the parts that a file holds.

    Raises UserError for a file that is missing, is damaged, holds code beside weights, or holds none of these parts.
    """
    tensors = {name.removeprefix("module."): tensor for name, tensor in read_tensors(path).items()}
    parts = {
        part: {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        for part, prefix in PREFIXES.items()
    }
    if _CONTROL_ONLY in tensors:
        parts["controlnet"] = tensors
    found = {part: named for part, named in parts.items() if named}
    if not found:
        first = next(iter(tensors), "nothing")
        raise UserError(
            f"{path} holds neither Stable Diffusion nor a ControlNet in the layout of latent diffusion: its tensors begin "
            f"with {first}; a diffusers folder needs no converting"
        )
    return found


def read_tensors(path: str | Path) -> Tensors:
    """Returns the tensors of a .safetensors file, or of a PyTorch file that holds nothing but weights, by name."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"expected a checkpoint file (.ckpt, .pth, .pt or .safetensors), but {path} is missing")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path} is no safetensors file ({error}); fetch it again") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} holds more than weights, and reading it could run code: it is not opened; take the .safetensors of "
            "the same model"
        ) from None
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        raise UserError(f"{path} is no PyTorch file, or it was cut ({_first_line(error)}); fetch it again") from None
    return _unwrapped(content, path)


def _unwrapped(content: Any, path: Path) -> Tensors:
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    tensors = (
        {name: value for name, value in content.items() if torch.is_tensor(value)}
        if isinstance(content, Mapping)
        else {}
    )
    if not tensors:
        raise UserError(f"{path} holds no weights by name; expected a checkpoint's state_dict")
    return tensors


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
