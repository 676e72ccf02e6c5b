"""The moving average of weights that a supervised training saves."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

YOUNG_STEPS = 20  # until it is much older than this, the average forgets faster: its first weights were untrained


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """Returns the exponential moving average of `model`'s weights, of decay min(decay, (n + 1) / (n + 20)) at update n."""

    def update(average: torch.Tensor, current: torch.Tensor, updates: torch.Tensor) -> torch.Tensor:
        count = float(updates)
        return torch.lerp(average, current, 1.0 - min(decay, (count + 1) / (count + YOUNG_STEPS)))

    return AveragedModel(model, avg_fn=update)
