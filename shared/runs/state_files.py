"""A nested state ↔ one safetensors file: tensors as they are, everything around them as JSON in its header. No pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

_TREE = "tree"  # the header's entry with the JSON
_PLAIN = (str, int, float, bool, type(None))


class DamagedState(Exception):
    """A file that is no state, or no longer the one that was written."""


def write_tree(path: Path, tree: Any) -> None:
    """Writes dicts, lists, tuples, numbers, text, None and tensors, nested in any way. Raises TypeError for anything else.

    A tensor keeps the order in which its elements lie in memory, so that sums over it come out the same when read again.
    """
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(_to_plain(tree, tensors))
    save_file(tensors, path, metadata={_TREE: text})


def read_tree(path: Path) -> Any:
    """Returns what `write_tree` wrote, tensors on the CPU. Raises DamagedState for any other file."""
    try:
        with safe_open(path, framework="pt") as file:
            tree = json.loads((file.metadata() or {})[_TREE])
            # Copied: a tensor over the file's own pages may lie at an address that other kernels serve.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        return _from_plain(tree, tensors)
    except (SafetensorError, ValueError, KeyError, TypeError, IndexError, RuntimeError, RecursionError) as error:
        raise DamagedState(f"{path}: {' '.join(str(error).split()) or type(error).__name__}") from None


def _to_plain(node: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(node, _PLAIN):
        return node
    if isinstance(node, torch.Tensor):
        # Of equal strides, the one that comes first stays first: a plain tensor keeps its order.
        order = sorted(range(node.ndim), key=lambda axis: -node.stride()[axis])
        name = str(len(tensors))
        # Two names of one memory are two tensors here: each is filled from its own.
        tensors[name] = node.detach().cpu().permute(order).clone(memory_format=torch.contiguous_format)
        return {"tensor": name, "order": order}
    if isinstance(node, dict):  # as pairs: an optimizer's keys are numbers, which JSON would make text
        return {"dict": [[_to_plain(key, tensors), _to_plain(value, tensors)] for key, value in node.items()]}
    if isinstance(node, tuple):
        return {"tuple": [_to_plain(value, tensors) for value in node]}
    if isinstance(node, list):
        return [_to_plain(value, tensors) for value in node]
    raise TypeError(f"a state holds numbers, text, tensors and what nests them, got {type(node).__name__}")


def _from_plain(node: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(node, _PLAIN):
        return node
    if isinstance(node, list):
        return [_from_plain(value, tensors) for value in node]
    if "tensor" in node:
        stored, order = tensors[node["tensor"]], node["order"]
        return stored.permute([order.index(axis) for axis in range(stored.ndim)])
    if "tuple" in node:
        return tuple(_from_plain(value, tensors) for value in node["tuple"])
    return {_from_plain(key, tensors): _from_plain(value, tensors) for key, value in node["dict"]}
