"""Other values of the trained parameters beside the policy's own: an exponential average of them, and where they began."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from rl_finetune.loop.trainable import trained_parameters
from shared.diffusion.sampler import SamplerSpec
from shared.policies.interface import Condition
from shared.policies.policy_restorer import PolicyRestorer


class Weights:
    """The trained parameters of a policy as they are now, to come back to. What is frozen exists once."""

    def __init__(self, policy: nn.Module) -> None:
        self.policy = policy
        self.values = {name: p.detach().clone() for name, p in trained_parameters(policy).items()}

    @contextmanager
    def put_in(self) -> Iterator[None]:
        """Puts these values in the policy's parameters while it lasts, in evaluation mode; nothing is copied."""
        parameters, training = trained_parameters(self.policy), self.policy.training
        own = {name: parameter.data for name, parameter in parameters.items()}
        try:
            self.policy.eval()
            for name, parameter in parameters.items():
                parameter.data = self.values[name]
            yield
        finally:
            for name, parameter in parameters.items():
                parameter.data = own[name]
            self.policy.train(training)

    def predict(self, x_t: torch.Tensor, timesteps: torch.Tensor, condition: Condition) -> torch.Tensor:
        """Returns the policy's output [B, C, h, w] with these values in place of its trained parameters."""
        return torch.func.functional_call(self.policy, self.values, (x_t, timesteps, condition))


class RestorerWith:
    """A policy with other weights than its own, and a sampler, as a Restorer."""

    def __init__(self, weights: Weights, spec: SamplerSpec) -> None:
        self.weights, self.spec, self.scale = weights, spec, weights.policy.scale

    def restore(self, lq: torch.Tensor, *, sample_seeds: Sequence[int]) -> torch.Tensor:
        """Returns sr [B, 3, scale·h, scale·w] in [0, 1]; any side lengths."""
        with self.weights.put_in():
            return PolicyRestorer(self.weights.policy, self.spec).restore(lq, sample_seeds=sample_seeds)


class WeightAverage(Weights):
    """Follows a policy's trained parameters: average ← decay·average + (1 − decay)·parameter; the first is a copy."""

    def __init__(self, policy: nn.Module, decay: float) -> None:
        super().__init__(policy)
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the parameters as they are now."""
        for name, parameter in trained_parameters(self.policy).items():
            if self.updates == 0:
                self.values[name].copy_(parameter)
            else:
                self.values[name].lerp_(parameter, 1.0 - self.decay)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """Returns everything a resumed run needs."""
        return {"updates": self.updates, "values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from where `state_dict` was taken, on the device the average is on."""
        self.updates = state["updates"]
        for name, value in state["values"].items():
            self.values[name].copy_(value)


class TrainedState:
    """The trained parameters of a policy as a state to resume from: what is frozen is read from its base again."""

    def __init__(self, policy: nn.Module) -> None:
        self.policy = policy

    def state_dict(self) -> dict[str, Any]:
        """Returns {name: value} of what is trained."""
        return {name: parameter.detach() for name, parameter in trained_parameters(self.policy).items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from where `state_dict` was taken; what else a state holds is as the base has it."""
        for name, parameter in trained_parameters(self.policy).items():
            parameter.copy_(state[name].view_as(parameter))
