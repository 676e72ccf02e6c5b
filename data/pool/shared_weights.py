"""One copy of equal weights: pool members that run one network with different settings share its tensors."""

from __future__ import annotations

import torch
from torch import nn

from shared.restorers.protocol import Restorer

Place = tuple[str, torch.Size, torch.dtype, torch.device]


class WeightStore:
    """Remembers the tensors of every network it has seen, and puts equal ones in place of new copies."""

    def __init__(self) -> None:
        self._known: dict[Place, list[torch.Tensor]] = {}

    def share(self, restorer: Restorer) -> None:
        """Lets the restorer's networks use the known tensors wherever theirs are equal in name, type and every value."""
        for network in networks(restorer):
            for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
                known = self._known.setdefault((name, tensor.shape, tensor.dtype, tensor.device), [])
                equal = next((other for other in known if torch.equal(other, tensor.data)), None)
                if equal is None:
                    known.append(tensor.data)
                else:
                    tensor.data = equal


def networks(part: object, *, depth: int = 3) -> list[nn.Module]:
    """Returns the torch networks in an object's attributes, however they are named, and in theirs."""
    if isinstance(part, nn.Module):
        return [part]
    if depth == 0 or not hasattr(part, "__dict__"):
        return []
    return [found for value in vars(part).values() for found in networks(value, depth=depth - 1)]
