"""The picture that a latent policy starts from: lq at sr's size, by its pre-restorer where it has one."""

from __future__ import annotations

from collections.abc import Callable

import torch

from shared.app.errors import UserError
from shared.restorers.pre_restorer import NONE, bicubic_sr
from shared.restorers.protocol import Restorer, on_device
from shared.restorers.wrapped import RememberedRestorer


class StartingPicture:
    """Makes the picture once for every lq; no module, so that it is no part of what is trained, averaged or saved."""

    def __init__(self, restorer: Restorer | None, scale: int, *, name: str) -> None:
        if restorer is not None and restorer.scale not in (1, scale):
            raise UserError(
                f"{name} enlarges {restorer.scale} times, but the policy {scale} times: name one for ×{scale}, or one for "
                "×1, which sees lq enlarged"
            )
        self.scale = scale
        self.restorer = restorer and RememberedRestorer(restorer)

    @torch.no_grad()
    def restore(self, lq: torch.Tensor) -> torch.Tensor:
        """Returns the picture [B, 3, scale·h, scale·w] in [0, 1] of lq [B, 3, h, w]: a function of lq alone."""
        if self.restorer is None:
            return bicubic_sr(lq, self.scale)
        seen = lq if self.restorer.scale == self.scale else bicubic_sr(lq, self.scale)
        return on_device(self.restorer, lq.device).restore(seen, sample_seeds=[0] * lq.shape[0])


def open_starting_picture(
    where: str, scale: int, open_stage: Callable[[str, str, int], Restorer | None], *, name: str = ""
) -> StartingPicture:
    """Returns what makes the picture with the pre-restorer `where`; `name` is how a person calls it, where it differs."""
    restorer = None if where == NONE else open_stage("pre_restorer", where, scale)
    return StartingPicture(restorer, scale, name=f"pre_restorer {name or where}")
