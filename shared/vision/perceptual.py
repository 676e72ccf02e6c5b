"""LPIPS and DISTS by torchmetrics' networks, on features read from disk or, where they are missing, downloaded.

A folder of features-only weights is a tenth of what torchvision fetches. It holds `alexnet_features.safetensors` and
`vgg16_features.safetensors` (torchvision's `features.N.weight` and `.bias`) and, to replace torchmetrics' own, LPIPS's
heads (`lpips_alex.safetensors`, `lpips_vgg.safetensors`) and DISTS's weights (`dists.safetensors`).
"""

from __future__ import annotations

import functools
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from shared.app.errors import UserError

PairDistance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (sr, gt) → [B]
NETS = {"vgg": "VGG16_Weights", "alex": "AlexNet_Weights", "squeeze": "SqueezeNet1_1_Weights"}
_ARCHITECTURES = {"vgg": "vgg16", "alex": "alexnet", "squeeze": "squeezenet1_1"}
_DISTS_CHANNELS = (3, 64, 128, 256, 512, 512)  # of the picture and after each of VGG16's five stages
_DISTS_STAGES = (0, 4, 9, 16, 23, 30)  # where they begin among VGG16's layers: at a pooling, but for the first


def lpips_weights_path(net: str) -> Path:
    """Returns where torchvision keeps the backbone of `net`: vgg (as LRPO), alex or squeeze."""
    return Path(torch.hub.get_dir()) / "checkpoints" / _published(net).url.rsplit("/", 1)[-1]


def load_lpips(net: str = "vgg", *, weights: str | Path = "", allow_download: bool = False) -> PairDistance:
    """Returns lpips(sr, gt) → [B], lower is closer, differentiable in sr; pictures [B, 3, H, W] in [0, 1].

    `weights`: a folder of features-only weights. Without it torchvision's own file is used, on disk or, if allowed,
    fetched. Raises UserError when the weights cannot be had.
    """
    if net not in NETS:
        raise UserError(f"expected one of {', '.join(NETS)} as the LPIPS network, got {net!r}")
    return _lpips(net, _folder(weights), features_file("LPIPS", net, weights, allow_download=allow_download))


def load_dists(*, weights: str | Path = "", allow_download: bool = False) -> PairDistance:
    """Returns dists(sr, gt) → [B], lower is closer, differentiable in sr; pictures [B, 3, H, W] in [0, 1], at their size.

    Ding et al. 2020 (arXiv 2004.07728). `weights` and what is raised: as `load_lpips`.
    """
    return _dists(_folder(weights), features_file("DISTS", "vgg", weights, allow_download=allow_download))


@functools.cache
def _lpips(net: str, folder: Path | None, features_file: Path) -> PairDistance:
    from torchmetrics.functional.image import lpips as source  # imports torchvision

    # On the meta device nothing is drawn for 138 million weights that are replaced at once.
    with torch.device("meta"):
        network = source._NoTrainLpips(net=cast(Any, net), pretrained=False, pnet_rand=True)
    network.scaling_layer = source.ScalingLayer()
    heads = read_weights(folder / f"lpips_{net}.safetensors") if folder else {}
    heads = heads or read_weights(Path(source.__file__).parent / "lpips_models" / f"{net}.pth")
    # torchmetrics lists every head twice, by its name and by its place.
    heads |= {re.sub(r"^lin(\d)", r"lins.\1", name): value for name, value in heads.items()}
    fill_features(network, read_weights(features_file), heads, features_file)

    def lpips(sr: torch.Tensor, gt: torch.Tensor) -> torch.Tensor:
        return network.to(sr.device)(sr, gt, normalize=True).reshape(-1)

    return lpips


@functools.cache
def _dists(folder: Path | None, features_file: Path) -> PairDistance:
    from torchmetrics.functional.image import dists as source  # imports torchvision

    class Network(source.DISTSNetwork):
        """torchmetrics' network without its constructor, which fetches the whole of VGG16."""

        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.chns = list(_DISTS_CHANNELS)
            layers = untrained_features("vgg")
            for stage, (start, stop) in enumerate(pairwise(_DISTS_STAGES), 1):
                parts = OrderedDict((str(i), layers[i]) for i in range(start, stop))
                if stage > 1:
                    parts[str(start)] = source.L2pooling(channels=_DISTS_CHANNELS[stage - 1])
                setattr(self, f"stage{stage}", nn.Sequential(parts))
            # ImageNet's, as torchvision states them.
            self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, -1, 1, 1))
            self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, -1, 1, 1))
            for name in ("alpha", "beta"):
                shape = (1, sum(_DISTS_CHANNELS), 1, 1)
                self.register_parameter(name, nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False))

    network = Network()
    shares = read_weights(folder / "dists.safetensors") if folder else {}
    shares = shares or read_weights(source._PATH_WEIGHT_DISTS)
    own = {name: value for name, value in network.state_dict().items() if not value.is_meta}
    fill_features(network, read_weights(features_file), {**own, **shares}, features_file)

    def dists(sr: torch.Tensor, gt: torch.Tensor) -> torch.Tensor:
        # Not inference mode, torchmetrics' default: what it makes can never meet a gradient.
        return network.to(sr.device)(sr, gt, require_grad=True).reshape(-1)

    return dists


def fill_features(network: nn.Module, features: Mapping[str, Any], others: Mapping[str, Any], source: Path) -> None:
    """Puts `features.N.…` where the network has layer N of its backbone, and `others` by name."""
    wanted = {name: re.sub(r"^(net\.slices?\.?|stage)\d+\.", "features.", name) for name in network.state_dict()}
    missing = sorted({key for name, key in wanted.items() if name not in others and key not in features})
    if missing:
        raise UserError(f"expected the backbone's weights in {source}, but it has no {missing[0]}: another network's?")
    state = {name: others[name] if name in others else features[key] for name, key in wanted.items()}
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:  # a shape that does not fit
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"expected the backbone's weights in {source}, but they do not fit: {reason}") from None
    network.eval().requires_grad_(False)


def features_file(name: str, net: str, weights: str | Path, *, allow_download: bool) -> Path:
    """Returns the file with the backbone's weights, fetched if need be. Raises UserError when it cannot be had."""
    if weights:
        path = Path(weights) / f"{_ARCHITECTURES[net]}_features.safetensors"
        if not path.is_file():
            raise UserError(
                f"{name} needs the weights of its {net} backbone at {path}; put the file there, or leave the "
                "folder out and allow the download"
            )
        return path
    path = lpips_weights_path(net)
    if path.is_file():
        return path
    if not allow_download:
        raise UserError(
            f"{name} needs the weights of its {net} backbone at {path}; allow the download, put the file there, name a "
            "folder of features-only weights, or use gradient_distance, which needs none"
        )
    published = _published(net)
    print(
        f"{name}: fetching {published.meta['_file_size']:.0f} MB of weights from {published.url} to {path}", flush=True
    )
    try:
        published.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:  # no network, a full disk; a hash that is not the listed one
        raise UserError(
            f"{name}: {published.url} could not be fetched ({str(error) or type(error).__name__}); put the file at {path} "
            "yourself, or name a folder of features-only weights"
        ) from None
    return path


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Returns the tensors of a .safetensors or torch file; nothing for one that is not there."""
    if not path.is_file():
        return {}
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # a torn file: torch and safetensors raise a dozen kinds
        raise UserError(f"expected weights in {path}, but they do not load: {str(error).splitlines()[0]}") from None


def _published(net: str) -> Any:
    import torchvision  # seconds to import, and only this path needs it

    return getattr(torchvision.models, NETS[net]).DEFAULT


def untrained_features(net: str) -> nn.Sequential:
    import torchvision

    with torch.device("meta"):
        return getattr(torchvision.models, _ARCHITECTURES[net])(weights=None).features


def _folder(weights: str | Path) -> Path | None:
    return Path(weights).resolve() if weights else None
