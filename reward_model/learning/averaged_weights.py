"""The exponential average of a model's weights, and the best average that validation has seen."""

from __future__ import annotations

import torch
from torch import nn


class AveragedWeights:
    """The exponential average of a model's weights and buffers, and the best average seen on validation."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.average = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.best = {name: value.clone() for name, value in self.average.items()}
        self.best_figure = torch.tensor(-1.0)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Moves the average towards the model; early steps weigh more, so that the initial weights are soon forgotten."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value.to(self.average[name].dtype), weight)
            else:
                self.average[name].copy_(value)

    def keep_if_best(self, figure: float) -> None:
        if figure >= self.best_figure.item():
            self.best_figure = torch.tensor(figure)
            self.best = {name: value.clone() for name, value in self.average.items()}

    def state_dict(self) -> dict:
        return {"average": self.average, "best": self.best, "best_figure": self.best_figure}

    def load_state_dict(self, state: dict) -> None:
        # Into the tensors that are there: a loaded state lies on the CPU, whatever device it was saved from.
        for name in ("average", "best"):
            for key, value in getattr(self, name).items():
                value.copy_(state[name][key])
        self.best_figure = state["best_figure"]
