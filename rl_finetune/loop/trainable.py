"""Which of a policy's parameters reinforcement learning trains, by name: all of them, or low-rank adapters (LoRA).

Adapters live inside the policy (peft), so that rollout, update and checkpoint need not know of them. What is saved in
the end is a whole policy with the adapters merged into its weights: nobody needs the base, peft, or this module.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from shared.app.config import require_range
from shared.app.errors import UserError
from shared.seeds import derive_seed, gaussian

Trainable = Literal["full", "lora"]
Policy = TypeVar("Policy", bound=nn.Module)
_ADAPTABLE = (nn.Conv2d, nn.Linear)


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters W + alpha/rank · B·A beside convolutions and linear layers (LoRA, arXiv 2106.09685)."""

    rank: int = 16  # rank of the adapters
    alpha: float = 16.0  # adapters are scaled by alpha / rank
    targets: tuple[str, ...] = ("*",)  # names of layers, * for anything: "*.to_q", "unet.mid_block.*"

    def __post_init__(self) -> None:
        require_range(rank=(self.rank, 1, 4096), alpha=(self.alpha, 1e-3, 1e6))
        if not self.targets:
            raise ValueError('lora.targets names no layers; ["*"] is all of them')


def make_trainable(policy: nn.Module, trainable: Trainable, lora: LoraConfig, *, seed: int) -> list[nn.Parameter]:
    """Returns the parameters to train, in their order; every other one is frozen. Adapters are put in for `lora`.

    A new adapter adds exactly 0 (B is 0), so the policy still is the base. A's entries have variance 1 / (3·fan-in), as
    the layers of torch have, and depend on (seed, layer) alone. Raises UserError for targets that match no layer.
    """
    policy.requires_grad_(trainable == "full")
    if trainable == "lora":
        _add_adapters(policy, lora, seed)
    return [parameter for parameter in policy.parameters() if parameter.requires_grad]


def trained_parameters(policy: nn.Module) -> dict[str, nn.Parameter]:
    """Returns {name: parameter} of what is trained."""
    return {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}


def whole_policy(policy: Policy, values: Mapping[str, torch.Tensor]) -> Policy:
    """Returns a plain copy in evaluation mode: `values` in place of the trained parameters, adapters merged in."""
    whole = copy.deepcopy(policy)
    with torch.no_grad():
        for name, parameter in trained_parameters(whole).items():
            parameter.copy_(values[name])
    for name, layer in _adapters(whole).items():
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(whole.get_submodule(parent), child, layer.get_base_layer())
    return whole.eval().requires_grad_(False)


@contextmanager
def as_base(policy: nn.Module) -> Iterator[None]:
    """Disables the adapters while it lasts: the frozen base as a reference that costs no memory."""
    layers = list(_adapters(policy).values())
    if not layers:
        raise ValueError("this policy has no adapters to put aside: its base needs a copy")
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def _add_adapters(policy: nn.Module, lora: LoraConfig, seed: int) -> None:
    import peft  # takes seconds to import, and only adapters need it

    names = matching_layers(policy, lora.targets)
    with torch.random.fork_rng(devices=[]):  # peft draws from the global stream; what it drew is replaced below
        config = peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=names)
        peft.inject_adapter_in_model(config, policy)
    for name, layer in _adapters(policy).items():
        weight = layer.lora_A["default"].weight
        scale = (3.0 * weight[0].numel()) ** -0.5
        weight.data.copy_(scale * gaussian([derive_seed(seed, "lora", name)], weight.shape)[0])


def matching_layers(policy: nn.Module, targets: tuple[str, ...]) -> list[str]:
    """Returns the names of the convolutions and linear layers that any target matches, in the policy's order."""
    known = [name for name, module in policy.named_modules() if isinstance(module, _ADAPTABLE)]
    for target in targets:
        if not any(fnmatchcase(name, target) for name in known):
            endings = dict.fromkeys(name.rpartition(".")[2] for name in known)
            raise UserError(
                f"lora.targets: {target!r} matches none of the policy's {len(known)} convolutions and linear layers; * "
                f"stands for anything, and their names, such as {known[-2]}, end in {', '.join(endings)}"
            )
    return [name for name in known if any(fnmatchcase(name, target) for target in targets)]


def _adapters(policy: nn.Module) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer  # as above

    return {name: module for name, module in policy.named_modules() if isinstance(module, LoraLayer)}
