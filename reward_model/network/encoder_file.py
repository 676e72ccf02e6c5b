"""Published weights from a file: any smp or timm encoder starts from them, and nothing is downloaded."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from segmentation_models_pytorch.encoders import get_encoder
from torch import nn

from shared.app.errors import UserError

_WRAPPERS = ("module.", "encoder.", "model.", "backbone.")  # prefixes that training scripts put before the names
_COUNTERS = "num_batches_tracked"


def open_encoder(name: str, *, depth: int, weights: Any, file: str) -> nn.Module:
    """Returns smp's encoder of that name with the weights of a safetensors file, where one is named.

    Raises UserError for a file that is missing, no safetensors file, or another network's.
    """
    if not file:
        return get_encoder(name, depth=depth, weights=weights)
    tensors = _read(file)
    if name.startswith("tu-"):
        return _timm_encoder(name, tensors, depth=depth, file=file)
    encoder = get_encoder(name, depth=depth, weights=None)
    _fill(encoder, tensors, name=name, file=file)
    return encoder


def _timm_encoder(name: str, tensors: dict[str, torch.Tensor], *, depth: int, file: str) -> nn.Module:
    """timm renames weights on the way into its feature extractor, so the file goes through timm's own loader.

    That loader passes over what it does not know, so the encoder's tensors are looked up in the file afterwards.
    """
    try:
        encoder = get_encoder(name, depth=depth, weights=True, pretrained_cfg_overlay={"state_dict": tensors})
    except (RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{file} holds no weights of {name} ({reason}); name the encoder that it belongs to") from None
    given = {_digest(tensor) for tensor in tensors.values()}
    own = [tensor for key, tensor in encoder.state_dict().items() if not key.endswith(_COUNTERS)]
    loaded = sum(_digest(tensor) in given for tensor in own)
    if loaded < len(own) / 2:  # not all: timm reshapes a few
        raise UserError(
            f"{file} holds no weights of {name}: {loaded} of its {len(own)} tensors are in the file; name the encoder "
            "that it belongs to"
        )
    return encoder


def _digest(tensor: torch.Tensor) -> bytes:
    return hashlib.sha256(tensor.detach().float().contiguous().numpy().tobytes()).digest()


def _fill(encoder: nn.Module, tensors: dict[str, torch.Tensor], *, name: str, file: str) -> None:
    own = encoder.state_dict()
    tensors = _unwrapped(tensors, own)
    missing = sorted(key for key in own if key not in tensors and not key.endswith(_COUNTERS))
    other = sorted(key for key in own if key in tensors and tensors[key].shape != own[key].shape)
    if missing or other:
        first = f"{missing[0]} is missing" if missing else f"{other[0]} has shape {list(tensors[other[0]].shape)}"
        raise UserError(
            f"{file} holds no weights of {name}: {len(missing) + len(other)} of {len(own)} tensors do not fit, first "
            f"{first}; name the encoder that the file belongs to"
        )
    nn.Module.load_state_dict(encoder, own | {key: tensors[key] for key in own if key in tensors})


def _unwrapped(tensors: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the tensors under the names that fit best: as they are, or without a training script's prefix."""
    candidates = [tensors]
    for prefix in _WRAPPERS:
        if any(key.startswith(prefix) for key in tensors):
            candidates.append({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    return max(candidates, key=lambda named: len(named.keys() & own.keys()))


def _read(file: str) -> dict[str, torch.Tensor]:
    path = Path(file)
    if not path.is_file():
        raise UserError(f"expected the weights of an encoder in a safetensors file, but {file} is missing")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{file} is no safetensors file ({error}); convert the weights to one") from None
