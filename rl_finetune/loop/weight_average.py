"""An exponential average of the trained parameters alone: what is evaluated and saved."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rl_finetune.loop.trainable import trained_parameters
from shared.policies.interface import Condition


class WeightAverage:
    """Follows a policy's trained parameters: average ← decay·average + (1 − decay)·parameter; the first is a copy."""

    def __init__(self, policy: nn.Module, decay: float) -> None:
        self.policy, self.decay, self.updates = policy, decay, 0
        self.values = {name: p.detach().clone() for name, p in trained_parameters(policy).items()}

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the parameters as they are now."""
        for name, parameter in trained_parameters(self.policy).items():
            if self.updates == 0:
                self.values[name].copy_(parameter)
            else:
                self.values[name].lerp_(parameter, 1.0 - self.decay)
        self.updates += 1

    def predict(self, x_t: torch.Tensor, timesteps: torch.Tensor, condition: Condition) -> torch.Tensor:
        """Returns the policy's output [B, C, h, w] with the average in place of its trained parameters."""
        return torch.func.functional_call(self.policy, self.values, (x_t, timesteps, condition))

    def state_dict(self) -> dict[str, Any]:
        """Returns everything a resumed run needs."""
        return {"updates": self.updates, "values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from where `state_dict` was taken, on the device the average is on."""
        self.updates = state["updates"]
        for name, value in state["values"].items():
            self.values[name].copy_(value)
