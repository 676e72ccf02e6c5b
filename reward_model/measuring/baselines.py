"""What a trained map and score are compared with: detectors without a reference, and full-reference bounds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from data.store.sample_maker import SampleMaker
from reward_model.measuring.full_reference import full_reference_quality
from reward_model.measuring.predict import Scorer
from shared.vision.images import to_array

_WINDOW_PX = 7
_HALF = (
    0.02  # the raw response that becomes one half in a baseline's map; ranks, and with them AUROC, do not depend on it
)

Response = Callable[[torch.Tensor], torch.Tensor]  # [B, 3, H, W] → [B, 1, H, W], at least 0


def no_reference_baselines() -> dict[str, Scorer]:
    """Returns scorers by name; each scores a picture by minus its map's mean."""
    return {
        "constant map": Scorer(_constant),
        "|x − blur(x)|": _from_response(_detail, flip=False),
        "smoothness: 1 − |x − blur(x)|": _from_response(_detail, flip=True),
        "local contrast": _from_response(_contrast, flip=False),
        "flatness: 1 − local contrast": _from_response(_contrast, flip=True),
        "finest octave's share": _from_response(_finest_share, flip=False),
    }


def upper_bounds(swaps: SampleMaker | None) -> dict[str, Scorer]:
    """Returns full-reference scorers. What they lack of 1 cannot be reached from the picture alone."""
    bounds = {"full reference: |x − gt|": Scorer(_pixel_error)}
    if swaps is not None:
        bounds["full reference: the target map"] = _target_scorer(swaps)
    return bounds


def _constant(images: torch.Tensor, _gt: torch.Tensor, _lq: None) -> tuple[torch.Tensor, torch.Tensor]:
    return images.new_zeros(len(images)), images.new_full((len(images), 1, *images.shape[-2:]), 0.5)


def _from_response(response: Response, *, flip: bool) -> Scorer:
    def score(images: torch.Tensor, _gt: torch.Tensor, _lq: None) -> tuple[torch.Tensor, torch.Tensor]:
        raw = response(images)
        degradation_map = raw / (raw + _HALF)
        degradation_map = 1 - degradation_map if flip else degradation_map
        return -degradation_map.mean(dim=(1, 2, 3)), degradation_map

    return Scorer(score)


def _detail(images: torch.Tensor) -> torch.Tensor:
    """|x − blur(x)|, averaged over channels and a window."""
    return _smooth((images - _smooth(images, 3)).abs().mean(dim=1, keepdim=True), _WINDOW_PX)


def _contrast(images: torch.Tensor) -> torch.Tensor:
    grey = images.mean(dim=1, keepdim=True)
    variance = _smooth(grey**2, _WINDOW_PX) - _smooth(grey, _WINDOW_PX) ** 2
    return variance.clamp(min=0).sqrt()


def _finest_share(images: torch.Tensor) -> torch.Tensor:
    """How much of the local detail lies in the finest octave: high for noise and checkerboards, low for blur."""
    grey = images.mean(dim=1, keepdim=True)
    fine = _smooth((grey - _smooth(grey, 3)).abs(), _WINDOW_PX)
    coarse = _smooth((_smooth(grey, 3) - _smooth(grey, 7)).abs(), _WINDOW_PX)
    return fine / (coarse + 0.004) * _HALF


def _pixel_error(images: torch.Tensor, gt: torch.Tensor, _lq: None) -> tuple[torch.Tensor, torch.Tensor]:
    error = _smooth((images - gt).abs().mean(dim=1, keepdim=True), 3)
    return full_reference_quality(images, gt), error / (error + _HALF)


def _target_scorer(swaps: SampleMaker) -> Scorer:
    def score(images: torch.Tensor, gt: torch.Tensor, _lq: None) -> tuple[torch.Tensor, torch.Tensor]:
        maps = [
            torch.from_numpy(swaps.reference_map(to_array(x), to_array(y))) for x, y in zip(images, gt, strict=True)
        ]
        degradation_map = torch.stack(maps)[:, None]
        return -degradation_map.mean(dim=(1, 2, 3)), degradation_map

    return Scorer(score)


def _smooth(values: torch.Tensor, side: int) -> torch.Tensor:
    padded = functional.pad(values, (side // 2,) * 4, mode="reflect")
    return functional.avg_pool2d(padded, side, stride=1)
