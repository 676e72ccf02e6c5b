"""The parts of a tuned policy that are not those of the repository it began from, each in the folder diffusers reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save

from shared.files import write_bytes
from shared.latent.model_folder import DiffusersPart, ModelFolder, load_part
from shared.lora import state_without_adapters

WEIGHTS = "diffusion_pytorch_model.safetensors"  # diffusers' name


def holder_of(part: str, base: ModelFolder, folder: Path | None) -> ModelFolder:
    """Returns where a part is read from: the policy's own folder where it was saved there, its repository otherwise."""
    saved = ModelFolder(str(folder), folder) if folder else None
    return saved if saved and saved.has(part) else base


def save_changed(
    parts: Mapping[str, DiffusersPart], bases: Mapping[str, ModelFolder], folder: Path, *, half: bool
) -> list[str]:
    """Writes the parts that differ from those of their bases, in float16 where `half`, and returns the files' names.

    Adapters alone make no difference; beside other changes they are merged in.
    """
    return [_save(parts[name], name, folder, half=half) for name in bases if differs(parts[name], bases[name], name)]


def differs(part: DiffusersPart, base: ModelFolder, name: str) -> bool:
    """Whether a part's weights, adapters aside, are other than its repository's in the part's own precision."""
    there = load_part(base, name, [type(part).__name__]).state_dict()
    own = state_without_adapters(part, merged=False)
    return any(not torch.equal(there[key].to(tensor.dtype), tensor.cpu()) for key, tensor in own.items())


def _save(part: DiffusersPart, name: str, folder: Path, *, half: bool) -> str:
    part.save_config(folder / name)
    state = {key: tensor.cpu().contiguous() for key, tensor in state_without_adapters(part, merged=True).items()}
    state = {key: tensor.half() for key, tensor in state.items()} if half else state
    write_bytes(folder / name / WEIGHTS, save(state, metadata={"format": "pt"}))
    return f"{name}/{WEIGHTS}"
