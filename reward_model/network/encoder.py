"""The encoders: embedded ones, registered with smp by name, and published ones with the detail front end beside them."""

from __future__ import annotations

import timm
import torch
from segmentation_models_pytorch.encoders import encoders
from segmentation_models_pytorch.encoders._base import EncoderMixin
from torch import nn
from torch.nn import functional

from reward_model.network.blocks import level_block
from reward_model.network.front_end import DetailStem
from shared.app.errors import UserError

_EMBEDDED = {
    "unshuffle-tiny": {"channels": (32, 48, 64, 96), "blocks": (1, 1, 1, 2)},
    "unshuffle-small": {"channels": (64, 96, 128, 192), "blocks": (1, 2, 1, 2)},
    "unshuffle-base": {"channels": (64, 112, 176, 256), "blocks": (2, 2, 2, 2)},
}
_TIMM = "tu-"  # smp's prefix of timm's names
# For encoders without published statistics: a photograph's own, in [0, 1], roughly.
_PLAIN_MEAN, _PLAIN_STD = (0.45, 0.45, 0.45), (0.25, 0.25, 0.25)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class UnshuffleEncoder(nn.Module, EncoderMixin):
    """Returns [images, f_1 … f_depth] at strides 1, 2, 4 … 2^depth, the first level from the detail front end.

    No step filters pixels away: each moves 2×2 of them into channels.
    """

    def __init__(
        self, *, channels: tuple[int, ...], blocks: tuple[int, ...], depth: int = 4, output_stride: int = 32
    ) -> None:
        super().__init__()
        self._depth = depth
        self._in_channels = 3
        self._output_stride = output_stride
        self._out_channels = [3, *channels]
        self.stem = DetailStem()
        self.levels = nn.ModuleList()
        width_in = self.stem.channels
        for level, (width, count) in enumerate(list(zip(channels, blocks, strict=True))[:depth]):
            self.levels.append(level_block(width_in, width, count, side=1 if level else 3))
            width_in = 4 * width

    @property
    def detail_channels(self) -> int:
        """The width of the first level, to which an lq's features are added."""
        return self._out_channels[1]

    def forward(
        self, images: torch.Tensor, *, stem: torch.Tensor | None = None, added: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        """`stem`: the front end's output, where it is known already; `added`: what is added to the first level."""
        return [images, *_pyramid(self.levels, self.stem(images) if stem is None else stem, added)]


class EncoderWithDetail(nn.Module, EncoderMixin):
    """Returns the published encoder's features with, at each level, those of a small pyramid on the detail front end.

    A published encoder's strided stem loses the finest frequencies and keeps what the picture is of; the pyramid beside
    it keeps them.
    """

    def __init__(self, published: nn.Module, *, first_channels: int, depth: int) -> None:
        super().__init__()
        self.published, self.stem = published, DetailStem()
        self._depth, self._in_channels, self._output_stride = depth, 3, 32
        widths = [first_channels * (2 + level) // 2 for level in range(depth)]
        self._out_channels = [
            3,
            *(own + beside for own, beside in zip(published.out_channels[1:], widths, strict=True)),
        ]
        self.detail_channels = first_channels
        inputs = [self.stem.channels, *(4 * width for width in widths[:-1])]
        self.levels = nn.ModuleList(
            level_block(width_in, width, 1, side=1 if level else 3)
            for level, (width_in, width) in enumerate(zip(inputs, widths, strict=True))
        )

    def forward(
        self, images: torch.Tensor, *, stem: torch.Tensor | None = None, added: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        """`stem` and `added` as for the embedded encoders; the published part does not see them."""
        first, *published = self.published(images)
        beside = _pyramid(self.levels, self.stem(images) if stem is None else stem, added)
        return [first, *(torch.cat(pair, dim=1) for pair in zip(published, beside, strict=True))]


def is_embedded(encoder: str) -> bool:
    """Whether the name is one of the embedded encoders."""
    return encoder in _EMBEDDED


def register_embedded_encoders() -> None:
    """Makes the embedded encoders known to smp under their names; calling it twice changes nothing."""
    for name, params in _EMBEDDED.items():
        encoders[name] = {"encoder": UnshuffleEncoder, "pretrained_settings": {}, "params": params}


def require_registered(encoder: str) -> None:
    """Raises UserError unless smp's or timm's own registry has the encoder: a name must never fetch or open anything.

    timm also builds what `hf-hub:` and `local-dir:` name, so a config from elsewhere could make it download code's
    worth of settings or read this machine's files.
    """
    known = encoder in encoders
    if encoder.startswith(_TIMM):
        known = timm.is_model(encoder.removeprefix(_TIMM)) and ":" not in encoder
    if not known:
        raise UserError(
            f"encoder {encoder!r} is not in the registry; expected a name that segmentation_models_pytorch knows, or "
            "tu-<timm model> without hf-hub: or local-dir: (weights of your own: model.encoder_weights=file.safetensors)"
        )


def normalisation(encoder: str, *, pretrained: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the (mean, std) that the encoder's own weights were trained with, per RGB channel in [0, 1].

    smp does not normalise inputs; timm publishes the figures in each model's pretrained_cfg, which needs no download.
    """
    if encoder.startswith(_TIMM):
        name = encoder.removeprefix(_TIMM)
        try:
            settings = timm.get_pretrained_cfg(name)
        except RuntimeError:  # the architecture is known, the tag behind the dot is not
            settings = None
        if settings is None:
            raise UserError(f"timm knows no model {name!r}; timm.list_models(pretrained=True) lists those it does")
        return tuple(settings.mean), tuple(settings.std)
    if encoder in _EMBEDDED or not pretrained:
        return _PLAIN_MEAN, _PLAIN_STD
    return _IMAGENET_MEAN, _IMAGENET_STD  # every set of weights in smp's own registry is an ImageNet one


def _pyramid(levels: nn.ModuleList, stem: torch.Tensor, added: torch.Tensor | None) -> list[torch.Tensor]:
    features: list[torch.Tensor] = []
    for level in levels:
        hidden = level(functional.pixel_unshuffle(features[-1], 2) if features else stem)
        features.append(hidden if features or added is None else hidden + added)
    return features
