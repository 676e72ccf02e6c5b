"""The second input: lq, the degraded picture that a restoration began from, enlarged to the restoration's size.

A soft, grainy truth and a soft restoration can be the same picture. Beside lq they differ: the truth agrees with lq as
far as lq shows anything, and has beyond it what a camera gives and not what a network invents.
"""

from __future__ import annotations

import torch
from torch import nn

from reward_model.network.blocks import ResidualBlock
from reward_model.network.front_end import DetailEnergy, DetailStem
from shared.app.errors import UserError

_CUBIC = -0.75  # the sharpness of the usual bicubic kernel (Keys 1981), as in torch and OpenCV
_MIN_LQ_PX = 4


class LqBranch(nn.Module):
    """Returns [B, C, H/2, W/2], what is added to the first features of a picture when its lq is there.

    Nothing is added where it is not: that path is the same as without this branch. The last layer starts at 0, so that
    a model without lq can be trained on with it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem, self.energy = DetailStem(), DetailEnergy()
        inputs = 2 * self.stem.channels + self.energy.channels
        self.body = nn.Sequential(
            nn.Conv2d(inputs, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            ResidualBlock(channels),
            nn.Conv2d(channels, channels, 1),
        )
        nn.init.zeros_(self.body[-1].weight)
        nn.init.zeros_(self.body[-1].bias)

    def forward(
        self, images: torch.Tensor, stem: torch.Tensor, enlarged: torch.Tensor, given: torch.Tensor | None
    ) -> torch.Tensor:
        """`stem` is the picture's own; `given` [B] says whose lq counts, None that all do."""
        beyond_lq = self.energy(images - enlarged)
        added = self.body(torch.cat([stem, self.stem(enlarged), beyond_lq], dim=1))
        return added if given is None else added * given.to(added.dtype)[:, None, None, None]


def require_lq(lq: torch.Tensor, images: torch.Tensor) -> None:
    """Raises UserError unless lq [B, 3, h, w] is of the same shape as the pictures [B, 3, H, W], and no larger."""
    if lq.ndim != 4 or lq.shape[:2] != images.shape[:2]:
        raise UserError(
            f"expected an lq for each picture, {list(images.shape[:2])} and its sides, got {list(lq.shape)}"
        )
    (height, width), (lq_height, lq_width) = images.shape[-2:], lq.shape[-2:]
    off_px = abs(height * lq_width / width - lq_height)
    if off_px > 1 or lq_height > height or lq_width > width or min(lq_height, lq_width) < _MIN_LQ_PX:
        raise UserError(
            f"expected lq of the picture's proportions, {width}×{height} px or smaller, got {lq_width}×{lq_height}; "
            "name the picture that the restoration began from"
        )
    low, high = (value.item() for value in lq.detach().aminmax())
    if not -1e-3 <= low <= high <= 1 + 1e-3:
        raise UserError(f"expected lq values in [0, 1], got [{low:.3g}, {high:.3g}]; divide by 255 or clamp it")


def enlarge(
    lq: torch.Tensor, size: tuple[int, int], *, window: tuple[int, int, int, int] | None = None
) -> torch.Tensor:
    """Returns lq [B, 3, h, w] enlarged to `size` (H, W) bicubically and clamped to [0, 1], or a window of that.

    `window` is (top, bottom, left, right) in pixels of the enlarged picture, whose edge is repeated beyond it. A window
    holds the same values as the whole: tiles agree.
    """
    top, bottom, left, right = window or (0, size[0], 0, size[1])
    rows, row_weights = _taps(lq.shape[-2], size[0], top, bottom, lq)
    columns, column_weights = _taps(lq.shape[-1], size[1], left, right, lq)
    with torch.autocast(lq.device.type, enabled=False):  # 16 bits are coarser than the picture's 8-bit levels
        return (row_weights @ lq[..., rows, columns].to(row_weights) @ column_weights.mT).clamp(0.0, 1.0)


def _taps(length: int, enlarged: int, start: int, stop: int, like: torch.Tensor) -> tuple[slice, torch.Tensor]:
    """Returns (the slice of `length` samples that is needed, weights [stop − start, its length])."""
    places = torch.arange(start, stop, device=like.device, dtype=torch.float64).clamp(max=enlarged - 1)
    centres = (places + 0.5) * (length / enlarged) - 0.5
    first = centres.floor()
    offset = (centres - first)[:, None] + torch.tensor([1.0, 0.0, -1.0, -2.0], device=like.device, dtype=torch.float64)
    taps = (first[:, None] + torch.arange(-1, 3, device=like.device)).clamp(0, length - 1).long()
    low, high = _extent(length, enlarged, start, stop)
    weights = torch.zeros(len(places), high - low, device=like.device, dtype=torch.float64)
    weights.scatter_add_(1, taps - low, _cubic(offset.abs()))
    return slice(low, high), weights.float()


def _extent(length: int, enlarged: int, start: int, stop: int) -> tuple[int, int]:
    """Returns the first sample that the window's taps reach, and the one after the last."""
    first, last = (min(place, enlarged - 1) + 0.5 for place in (start, stop - 1))
    low, high = (int((place * (length / enlarged) - 0.5) // 1) for place in (first, last))
    return max(low - 1, 0), min(high + 3, length)


def _cubic(distance: torch.Tensor) -> torch.Tensor:
    near = (_CUBIC + 2) * distance**3 - (_CUBIC + 3) * distance**2 + 1
    far = _CUBIC * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, torch.zeros_like(distance)))
