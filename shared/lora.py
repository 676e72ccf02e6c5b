"""Low-rank adapters (LoRA, arXiv 2106.09685) in networks, and the file that diffusers reads of them.

Adapters live inside a network (peft), so that what runs it need not know of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from shared.app.errors import UserError
from shared.files import write_bytes
from shared.weights import tensors_in

# As `load_lora_weights` of a pipeline finds it in a folder: each tensor's name begins with its part's.
LORA_FILE = "pytorch_lora_weights.safetensors"
ADAPTER = "default"  # peft's name for it


def adapters_of(module: nn.Module) -> dict[str, Any]:
    """Returns {name of the layer: it, with its adapter} of all of peft's adapters in a module."""
    return {name: layer for name, layer in module.named_modules() if hasattr(layer, "lora_A")}


def state_without_adapters(module: nn.Module, *, merged: bool) -> dict[str, torch.Tensor]:
    """Returns the state dict that a module has without its adapters: their sums where `merged`, else the base's."""
    state = {
        name.replace(".base_layer.", "."): tensor.detach()
        for name, tensor in module.state_dict().items()
        if ".lora_" not in name
    }
    for name, layer in adapters_of(module).items() if merged else ():
        state[f"{name}.weight"] = state[f"{name}.weight"] + layer.get_delta_weight(ADAPTER).detach()
    return state


def save_adapters(parts: Mapping[str, nn.Module], folder: Path, *, half: bool = False) -> list[str]:
    """Writes the adapters of these parts as diffusers reads them, and returns the file's name; nothing where there are none.

    alpha / rank is multiplied into B, so that no reader needs to know it.
    """
    tensors = {}
    for part, module in parts.items():
        for name, layer in adapters_of(module).items():
            a, b = (factor[ADAPTER].weight.detach().cpu().contiguous() for factor in (layer.lora_A, layer.lora_B))
            tensors[f"{part}.{name}.lora_A.weight"] = a.half() if half else a
            b = b * layer.scaling[ADAPTER]
            tensors[f"{part}.{name}.lora_B.weight"] = b.half() if half else b
    if not tensors:
        return []
    write_bytes(folder / LORA_FILE, save(tensors, metadata={"format": "pt"}))
    return [LORA_FILE]


@torch.no_grad()
def merge_saved_adapters(parts: Mapping[str, nn.Module], folder: Path) -> None:
    """Adds the adapters that `save_adapters` wrote, if it wrote any, to the parts' weights.

    Raises UserError where they are not those of these parts.
    """
    path = folder / LORA_FILE
    if not path.is_file():
        return
    factors = tensors_in(path, advice="fetch or train it again")
    for name in sorted({name.rpartition(".lora_")[0] for name in factors}):
        part, _, layer = name.partition(".")
        try:
            weight: Any = parts[part].get_submodule(layer).weight
            a, b = (factors[f"{name}.lora_{letter}.weight"].to(weight) for letter in "AB")
            weight += torch.einsum("or,r...->o...", b.flatten(1), a).view_as(weight)
        except (KeyError, AttributeError, RuntimeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"{path} holds adapters of another network: {name} does not fit ({reason})") from None
