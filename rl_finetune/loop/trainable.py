"""Which of a policy's parameters reinforcement learning trains, by name: all, a part, or low-rank adapters (LoRA)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from rl_finetune.loop.lora_layers import LoraConfig, add_adapters
from shared.app.errors import UserError
from shared.policies.interface import DiffusionPolicy

FULL, LORA = "full", "lora"


def make_trainable(policy: DiffusionPolicy, trainable: str, lora: LoraConfig, *, seed: int) -> list[nn.Parameter]:
    """Returns the parameters to train, in their order; every other one is frozen. Adapters are put in for `lora`.

    `full` is every part that a gradient reaches. Raises UserError for what is no part, or one that none reaches.
    """
    policy.requires_grad_(False)
    if trainable == LORA:
        add_adapters(policy, lora, seed=seed)
    else:
        for part in _trained_parts(policy, trainable):
            policy.parts()[part].requires_grad_(True)
        for name in policy.fixed:
            if "." in name:
                policy.get_submodule(name).requires_grad_(False)
    return [parameter for parameter in policy.parameters() if parameter.requires_grad]


def trained_parameters(policy: nn.Module) -> dict[str, nn.Parameter]:
    """Returns {name: parameter} of what is trained."""
    return {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}


def checkpoint_gradients(policy: DiffusionPolicy, parts: Sequence[str]) -> None:
    """Lets parts compute their activations again in the backward pass: less memory, the same gradient.

    Raises UserError for what is no part, or one that cannot.
    """
    for part in parts:
        network = policy.parts().get(part)
        if not getattr(network, "_supports_gradient_checkpointing", False):
            able = [n for n, p in policy.parts().items() if getattr(p, "_supports_gradient_checkpointing", False)]
            raise UserError(
                f"recompute_parts: expected parts among {', '.join(able) or 'none of this policy'}, got {part!r}"
            )
        network.enable_gradient_checkpointing()


def _trained_parts(policy: DiffusionPolicy, trainable: str) -> list[str]:
    free = [part for part in policy.parts() if part not in policy.fixed]
    if trainable == FULL:
        return free
    if trainable not in free:
        why = ", which no gradient reaches" if trainable in policy.fixed else ""
        raise UserError(f"trainable: expected {FULL}, {LORA} or a part ({', '.join(free)}), got {trainable!r}{why}")
    return [trainable]
