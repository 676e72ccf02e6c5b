"""A device by the name a person gives it."""

from __future__ import annotations

import torch

from shared.errors import UserError


def open_device(name: str) -> torch.device:
    """Returns the device called `name` (cpu, cuda, cuda:1). Raises UserError for one that this machine does not have."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError):
        raise UserError(f"no device {name!r} on this machine; expected cpu, or cuda where there is a GPU") from None
    return device
