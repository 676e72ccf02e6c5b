"""LPIPS where its weights are: torchmetrics' network on torchvision's backbone, looked for on disk before the net."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import torch

from shared.app.errors import UserError

PairDistance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (sr, gt) → [B]
NETS = {"vgg": "VGG16_Weights", "alex": "AlexNet_Weights", "squeeze": "SqueezeNet1_1_Weights"}


def lpips_weights_path(net: str) -> Path:
    """Returns where torchvision keeps the backbone of `net`: vgg (as LRPO), alex or squeeze."""
    import torchvision  # seconds to import, and only this path needs it

    url = getattr(torchvision.models, NETS[net]).DEFAULT.url
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]


def load_lpips(net: str = "vgg", *, allow_download: bool = False) -> PairDistance:
    """Returns lpips(sr, gt) → [B], lower is closer, differentiable in sr; pictures [B, 3, H, W] in [0, 1].

    Raises UserError when the backbone's weights are neither on disk nor allowed to be fetched.
    """
    if net not in NETS:
        raise UserError(f"expected one of {', '.join(NETS)} as the LPIPS network, got {net!r}")
    path = lpips_weights_path(net)
    if not path.is_file() and not allow_download:
        raise UserError(
            f"LPIPS needs the weights of its {net} backbone at {path}; allow the download, put the file there, or use "
            "gradient_distance, which needs none"
        )
    return _network(net)


@functools.cache
def _network(net: str) -> PairDistance:
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity  # imports torchvision

    network = LearnedPerceptualImagePatchSimilarity(net_type=net, normalize=True).net.eval().requires_grad_(False)

    def lpips(sr: torch.Tensor, gt: torch.Tensor) -> torch.Tensor:
        return network.to(sr.device)(sr, gt, normalize=True).reshape(-1)

    return lpips
