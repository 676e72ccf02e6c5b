"""The first of a policy's two stages: a restorer that makes the picture whose residual is diffused (as in DiffBIR).

Beside it a second one, the guide, may show what detail could be there. Each is `none` (bicubic up-sampling; no guide),
`own` (a network trained for this policy and saved inside its folder), or what `load_restorer` reads: a restorer's folder
or a published checkpoint file.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from shared.app.errors import UserError
from shared.restorers.protocol import Restorer
from shared.restorers.wrapped import ShrunkRestorer

NONE, OWN = "none", "own"
STAGES = ("pre_restorer", "guide")  # the keys of a policy's config, and its own networks' folders within its own


def bicubic_sr(lq: torch.Tensor, scale: int) -> torch.Tensor:
    """Returns lq [B, 3, h, w] at sr's size, bicubic and in [0, 1]."""
    if scale == 1:
        return lq
    return F.interpolate(lq, scale_factor=scale, mode="bicubic", align_corners=False).clamp(0, 1)


def fitted(restorer: Restorer, scale: int, *, shrink: int, name: str) -> Restorer:
    """Returns the restorer at `scale`: one that enlarges more sees pictures shrunk by `shrink`, a divisor of the excess.

    Raises UserError where it does not fit, and where it enlarges more but `shrink` is 0.
    """
    if restorer.scale == scale or not shrink or restorer.scale % (scale * shrink):
        return require_scale(restorer, scale, name=name)
    return ShrunkRestorer(restorer, scale, shrink)


def require_scale(restorer: Restorer, scale: int, *, name: str) -> Restorer:
    """Returns the restorer. Raises UserError where it is made for another enlargement than the policy's."""
    if restorer.scale != scale:
        raise UserError(f"{name} enlarges {restorer.scale} times, but the policy {scale} times: name one for ×{scale}")
    return restorer
