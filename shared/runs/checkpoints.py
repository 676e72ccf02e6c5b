"""Resumable training state: written whole to a new folder, then renamed over the old one; nothing in it is unpickled."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from shared.app.errors import UserError
from shared.files import make_folder, read_json, replace_folder, require_plain_file
from shared.runs.growth import PROGRESS_FILE, STATE_FOLDER, remove_interrupted_saves, state_place
from shared.runs.state_files import DamagedState, read_tree, write_tree

FORMAT = 2  # 1, Accelerate's own, holds pickles and is not read
# Each process would hold a part of the network, which only pickles can be made of.
_IN_PARTS = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


class Stateful(Protocol):
    """A network, an optimizer, or whatever else a training goes on from."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


@dataclass(frozen=True)
class Progress:
    """How far a training has come."""

    step: int = 0  # steps made
    seconds: float = 0.0  # spent on them over all its runs
    figures: dict[str, float] = field(default_factory=dict)  # of the last step


def save_state(accelerator: Accelerator, folder: Path, progress: Progress, states: Mapping[str, Stateful]) -> None:
    """Saves every state by its name, the gradient scaler and each process's random state to `folder`/state."""
    final, temporary = folder / STATE_FOLDER, folder / f"{STATE_FOLDER}.part"
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        make_folder(temporary)
    accelerator.wait_for_everyone()
    write_tree(temporary / _random_file(accelerator), _random_state())
    if accelerator.is_main_process:
        for name, state in _with_scaler(accelerator, states).items():
            write_tree(temporary / f"{name}.safetensors", state.state_dict())
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        digests = {path.name: _sha256(path) for path in sorted(temporary.iterdir())}
        content = {"format": FORMAT, **asdict(progress), "sha256": digests}
        (temporary / PROGRESS_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        replace_folder(temporary, final)
    accelerator.wait_for_everyone()


def load_state(accelerator: Accelerator, folder: Path, states: Mapping[str, Stateful]) -> Progress:
    """Loads the last saved state, if there is one, and returns how far the training has come.

    Raises UserError, having read no weights, for a state of an earlier version, a damaged one, and one of other networks.
    """
    if accelerator.distributed_type in _IN_PARTS:
        raise UserError(
            f"a training in parts ({accelerator.distributed_type.value}) keeps no state that can be resumed"
        )
    place = state_place(folder)
    if place is None:
        return Progress()
    try:
        content = read_json(place / PROGRESS_FILE)
        if content.get("format") != FORMAT:
            raise UserError(
                f"{place} is of an earlier version and would have to be unpickled, which could run any program: it is "
                "not read; remove it to begin this training again, or finish it with that version"
            )
        progress = Progress(int(content["step"]), float(content["seconds"]), dict(content["figures"]))
        for name, digest in content["sha256"].items():
            if _sha256(place / Path(name).name) != digest:
                raise DamagedState(f"{place / name} is not the file that was saved")
        for name, state in _with_scaler(accelerator, states).items():
            settings = _settings_of(state)
            state.load_state_dict(read_tree(place / f"{name}.safetensors"))
            _require_fitting(name, state, settings)
        own = place / _random_file(accelerator)
        if own.is_file():  # there is none where more processes go on than began
            _set_random_state(read_tree(own))
        if accelerator.is_main_process and place.name == STATE_FOLDER:
            remove_interrupted_saves(folder)  # where no step is left, no save follows that would
        return progress
    except (DamagedState, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"the state in {place} is damaged ({said}); remove it to begin this training again") from None


def _with_scaler(accelerator: Accelerator, states: Mapping[str, Stateful]) -> dict[str, Stateful]:
    return {**states, **({"scaler": accelerator.scaler} if accelerator.scaler is not None else {})}


def _settings_of(state: Stateful) -> list[dict[str, str]]:
    """Returns what kind of value each setting of an optimizer's groups has; nothing for what is no optimizer."""
    groups = getattr(state, "param_groups", [])
    return [{key: _kind(value) for key, value in group.items() if key != "params"} for group in groups]


def _kind(value: Any) -> str:
    if isinstance(value, bool | int | float):
        return "number"
    return f"{type(value).__name__}{[_kind(each) for each in value] if isinstance(value, list | tuple) else ''}"


def _require_fitting(name: str, state: Stateful, settings: list[dict[str, str]]) -> None:
    """Raises DamagedState where an optimizer's state, which `load_state_dict` takes unseen, does not fit its weights."""
    if _settings_of(state) != settings:
        raise DamagedState(f"{name} has other settings than an optimizer's")
    kept = getattr(state, "state", {}) if settings else {}
    for parameter, each in kept.items():
        for key, value in each.items():
            shape = tuple(value.shape) if isinstance(value, torch.Tensor) else None
            if shape not in ([()] if key == "step" else [tuple(parameter.shape)]):
                raise DamagedState(f"{name} holds {key} that does not fit its weights")
    if len({frozenset(each) for each in kept.values()}) > 1:
        raise DamagedState(f"{name} holds less of some weights than of others")


def _random_file(accelerator: Accelerator) -> str:
    return f"random_{accelerator.process_index}.safetensors"


def _random_state() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state(legacy=True)
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    numpy = (kind, np.asarray(keys).tolist(), *rest)
    return {"python": random.getstate(), "numpy": numpy, "torch": torch.get_rng_state(), "cuda": cuda}


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def _sha256(path: Path) -> str:
    require_plain_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
