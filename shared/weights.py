"""Reads what a checkpoint's folder says of itself, and its weights, without trusting either.

A file is read only where it is a plain one of bounded size, and a network is built only after its shapes, computed without
memory, were found to be those of the file: a description of a few bytes can ask for any number of gigabytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from shared.app.errors import UserError
from shared.files import is_lfs_pointer

Network = TypeVar("Network", bound=nn.Module)
MOST_JSON_BYTES = 100_000_000


def read_description(path: Path, *, advice: str) -> dict[str, Any]:
    """Returns the json object in a file. Raises UserError, with what to do, where it is none, damaged or huge.

    Raises FileNotFoundError where there is no such file.
    """
    if path.exists() and (not path.is_file() or path.stat().st_size > MOST_JSON_BYTES):
        raise UserError(f"{path} is no file of at most {MOST_JSON_BYTES // 10**6} MB; {advice}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); {advice}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged (it holds a {type(found).__name__}, expected an object); {advice}")
    return found


def tensors_in(path: Path, *, advice: str) -> dict[str, torch.Tensor]:
    """Returns the tensors in a safetensors file. Raises UserError, with what to do, where it is none."""
    _require_file(path, advice)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is no safetensors file ({error}); {advice}") from None


def load_network(build: Callable[[], Network], path: Path, *, advice: str) -> Network:
    """Returns the network that `build` makes, with the weights in a safetensors file.

    Raises UserError, with what to do, where file and network do not have the same tensors, before memory is taken.
    """
    require_same_tensors(build, path, advice=advice)
    network = build()
    network.load_state_dict(tensors_in(path, advice=advice))
    return network


def require_same_tensors(build: Callable[[], nn.Module], path: Path, *, advice: str) -> None:
    """Raises UserError unless the network that `build` makes has the tensors that a safetensors file holds, and no others."""
    came = shapes_in(path, advice=advice)
    with torch.device("meta"):
        own = {name: tuple(tensor.shape) for name, tensor in build().state_dict().items()}
    differing = sorted(name for name in own.keys() | came.keys() if own.get(name) != came.get(name))
    if differing:
        first, there, here = differing[0], came.get(differing[0], "absent"), own.get(differing[0], "absent")
        raise UserError(
            f"{path} does not fit the description beside it: {len(differing)} tensors differ, first {first} ({there} in "
            f"the file, {here} in the description); {advice}"
        )


def shapes_in(path: Path, *, advice: str) -> dict[str, tuple[int, ...]]:
    """Returns {tensor: its shape} of a safetensors file, from its header alone. Raises UserError where it is none."""
    _require_file(path, advice)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is no safetensors file ({error}); {advice}") from None


def require_no_pointer(path: Path) -> None:
    """Raises UserError where Git LFS has left a pointer in place of a file that it has not fetched."""
    if path.is_file() and is_lfs_pointer(path):
        raise UserError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` in its checkout")


def _require_file(path: Path, advice: str) -> None:
    if not path.is_file():
        raise UserError(f"{path} is missing or no file; {advice}")
    require_no_pointer(path)
