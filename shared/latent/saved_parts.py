"""The parts of a tuned policy that are not those of the repository it began from, each in the folder diffusers reads."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from shared.latent.model_folder import ModelFolder, load_part

WEIGHTS = "diffusion_pytorch_model.safetensors"  # diffusers' name
_NEVER_SHARDED = "1000GB"


def holder_of(part: str, base: ModelFolder, folder: Path | None) -> ModelFolder:
    """Returns where a part is read from: the policy's own folder where it was saved there, its repository otherwise."""
    saved = ModelFolder(str(folder), folder) if folder else None
    return saved if saved and saved.has(part) else base


def save_changed(
    parts: Mapping[str, nn.Module], bases: Mapping[str, ModelFolder], folder: Path, *, half: bool
) -> list[str]:
    """Writes the parts that differ from those of their bases, in float16 where `half`, and returns the files' names."""
    return [_save(parts[name], name, folder, half=half) for name in bases if _differs(parts[name], bases[name], name)]


def _differs(part: nn.Module, base: ModelFolder, name: str) -> bool:
    there = load_part(base, name, [type(part).__name__]).state_dict()
    return any(not torch.equal(there[key].to(tensor.dtype), tensor.cpu()) for key, tensor in part.state_dict().items())


def _save(part: nn.Module, name: str, folder: Path, *, half: bool) -> str:
    if half:
        part = copy.deepcopy(part).half()
    part.save_pretrained(folder / name, safe_serialization=True, max_shard_size=_NEVER_SHARDED)
    return f"{name}/{WEIGHTS}"
