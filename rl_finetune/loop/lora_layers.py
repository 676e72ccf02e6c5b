"""Which layers get low-rank adapters, by name, and how they begin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from shared.app.config import require_range
from shared.app.errors import UserError
from shared.lora import ADAPTER, adapters_of
from shared.policies.interface import DiffusionPolicy
from shared.seeds import derive_seed, gaussian

_ADAPTABLE = (nn.Conv2d, nn.Linear)


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters W + alpha/rank · B·A beside convolutions and linear layers (LoRA, arXiv 2106.09685)."""

    rank: int = 16  # rank of the adapters
    alpha: float = 16.0  # adapters are scaled by alpha / rank
    targets: tuple[str, ...] = ("*",)  # names of layers, part first, * for anything: "unet.*.to_q", "controlnet.*"

    def __post_init__(self) -> None:
        require_range(rank=(self.rank, 1, 4096), alpha=(self.alpha, 1e-3, 1e6))
        if not self.targets:
            raise ValueError('lora.targets names no layers; ["*"] is all of them')


def add_adapters(policy: DiffusionPolicy, lora: LoraConfig, *, seed: int) -> None:
    """Puts adapters beside the layers that the targets match; they are trained, and nothing else is.

    A new adapter adds exactly 0 (B is 0), so the policy still is the base. A's entries have variance 1 / (3·fan-in), as
    the layers of torch have, and depend on (seed, layer) alone. Raises UserError for targets that match no layer, or only
    such as no gradient reaches.
    """
    import peft  # takes seconds to import, and only adapters need it

    names = matching_layers(policy, lora.targets)
    with torch.random.fork_rng(devices=[]):  # peft draws from the global stream; what it drew is replaced below
        config = peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=names)
        peft.inject_adapter_in_model(config, policy)
    for name, layer in adapters_of(policy).items():
        weight = layer.lora_A[ADAPTER].weight
        scale = (3.0 * weight[0].numel()) ** -0.5
        weight.data.copy_(scale * gaussian([derive_seed(seed, "lora", name)], weight.shape)[0])


def matching_layers(policy: DiffusionPolicy, targets: Sequence[str]) -> list[str]:
    """Returns the names, part first, of the convolutions and linear layers that any target matches, in the policy's order."""
    known = {part: _layers(part, module) for part, module in policy.parts().items()}
    fixed_starts = tuple(f"{name}." for name in policy.fixed)
    free = [name for names in known.values() for name in names if not f"{name}.".startswith(fixed_starts or "\0")]
    for target in targets:
        if any(fnmatchcase(name, target) for name in free):
            continue
        if fixed := [part for part in known if any(fnmatchcase(name, target) for name in known[part])]:
            raise UserError(
                f"lora.targets: {target!r} matches layers of the {' and '.join(fixed)} alone, which no gradient reaches; "
                f"name layers of {', '.join(part for part in known if part not in policy.fixed)}"
            )
        endings = dict.fromkeys(name.rpartition(".")[2] for name in free)
        raise UserError(
            f"lora.targets: {target!r} matches none of the policy's {len(free)} convolutions and linear layers; * "
            f"stands for anything, and their names, such as {free[-2]}, end in {', '.join(endings)}"
        )
    return [name for name in free if any(fnmatchcase(name, target) for target in targets)]


def _layers(part: str, module: nn.Module) -> list[str]:
    named = ((f"{part}.{name}".rstrip("."), layer) for name, layer in module.named_modules())
    return [name for name, layer in named if isinstance(layer, _ADAPTABLE)]
