"""The embedded encoders, registered with smp by name, so that they and any timm encoder are built by the same call."""

from __future__ import annotations

import timm
import torch
from segmentation_models_pytorch.encoders import encoders
from segmentation_models_pytorch.encoders._base import EncoderMixin
from torch import nn
from torch.nn import functional

from shared.app.errors import UserError

_EMBEDDED = {
    "unshuffle-tiny": {"channels": (32, 48, 64, 96), "blocks": (1, 1, 1, 2)},
    "unshuffle-small": {"channels": (64, 96, 128, 192), "blocks": (1, 2, 1, 2)},
}
_LOG_FLOOR = 0.01  # under one 8-bit level of a normalised picture: flat ground reads as flat, not as minus infinity
# For encoders without published statistics: a photograph's own, in [0, 1], roughly.
_PLAIN_MEAN, _PLAIN_STD = (0.45, 0.45, 0.45), (0.25, 0.25, 0.25)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions around a skip. Batch norm, not group norm: its inference is local, so tiles can agree."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.relu(features + self.body(features))


class DetailEnergy(nn.Module):
    """Returns [B, 54, H/2, W/2]: logarithms of how much detail there is, of which direction, octave and colour, and how
    far each is from its mean over the surroundings.

    A restored region is recognised mostly by the *ratio* of its octaves and directions, at any contrast: grain without
    edges, edges without grain, patterns of one frequency. In logarithms a ratio is a difference, which one convolution
    computes; from pixels a small network learns it slowly, if at all. The mean logarithm beside the logarithm of the
    mean tells sparse detail (painted edges on flat ground) from even detail (grain). Cameras differ in all of these, and
    a planted region differs from the picture around it: hence the distance from the surroundings. Nothing is trained.
    """

    channels = 54

    def __init__(self) -> None:
        super().__init__()
        line = torch.tensor([1.0, -2.0, 1.0])
        kernels = torch.zeros(5, 1, 3, 3)
        kernels[0, 0, 1] = line / 2
        kernels[1, 0, :, 1] = line / 2
        kernels[2, 0] = torch.diag(line) / 2
        kernels[3, 0] = torch.diag(line).flip(1) / 2
        kernels[4, 0] = torch.outer(line, line) / 4
        self.register_buffer("kernels", kernels, persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        red, green, blue = images.split(1, dim=1)
        level, energies = (red + green + blue) / 3, []
        for octave in range(3):
            response = _response(level, self.kernels)
            energies.append(torch.log(_local_mean(response, octave) + _LOG_FLOOR))
            if octave < 2:
                energies.append(_local_mean(torch.log(response + _LOG_FLOOR), octave))
            level = functional.avg_pool2d(level, 2)
        energies[-1] = functional.interpolate(energies[-1], scale_factor=2.0, mode="nearest")
        for chroma in (red - green, blue - (red + green) / 2):
            energies.append(torch.log(_local_mean(_response(chroma, self.kernels[4:]), 0) + _LOG_FLOOR))
        energy = torch.cat(energies, dim=1)
        return torch.cat([energy, energy - _surroundings(energy)], dim=1)


def _surroundings(energy: torch.Tensor) -> torch.Tensor:
    """Returns the mean over about 56×56 px around each place, [B, C, H/2, W/2]."""
    coarse = functional.avg_pool2d(energy, 4, ceil_mode=True, count_include_pad=False)
    mean = functional.avg_pool2d(coarse, 7, stride=1, padding=3, count_include_pad=False)
    return functional.interpolate(mean, size=energy.shape[-2:], mode="bilinear", align_corners=False)


def _response(level: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    return functional.conv2d(functional.pad(level, (1, 1, 1, 1), mode="replicate"), kernels).abs()


def _local_mean(values: torch.Tensor, octave: int) -> torch.Tensor:
    """Returns the mean over 4×4 pixels at every second one in the finest octave, over 3×3 at every one in coarser ones."""
    if octave == 0:
        return functional.avg_pool2d(values, 4, stride=2, padding=1, count_include_pad=False)
    return functional.avg_pool2d(values, 3, stride=1, padding=1, count_include_pad=False)


class UnshuffleEncoder(nn.Module, EncoderMixin):
    """Returns [images, f_1 … f_depth] at strides 1, 2, 4 … 2^depth.

    The first step moves 2×2 pixels into channels instead of filtering them away: restoration artifacts live in the
    finest frequencies, and an ordinary strided stem loses them before any feature is computed. Beside the pixels it
    sees the energy of their detail.
    """

    def __init__(
        self, *, channels: tuple[int, ...], blocks: tuple[int, ...], depth: int = 4, output_stride: int = 32
    ) -> None:
        super().__init__()
        self._depth = depth
        self._in_channels = 3
        self._output_stride = output_stride
        self._out_channels = [3, *channels]
        self.energy = DetailEnergy()
        self.levels = nn.ModuleList()
        width_in = 4 * 3 + self.energy.channels
        for level, (width, count) in enumerate(list(zip(channels, blocks, strict=True))[:depth]):
            side = 3 if level == 0 else 1
            self.levels.append(
                nn.Sequential(
                    nn.Conv2d(width_in, width, side, padding=side // 2, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                    *(ResidualBlock(width) for _ in range(count)),
                )
            )
            width_in = 4 * width

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        features = [images]
        hidden = torch.cat([functional.pixel_unshuffle(images, 2), self.energy(images)], dim=1)
        for index, level in enumerate(self.levels):
            features.append(level(functional.pixel_unshuffle(features[-1], 2) if index else hidden))
        return features


def register_embedded_encoders() -> None:
    """Makes the embedded encoders known to smp under their names; calling it twice changes nothing."""
    for name, params in _EMBEDDED.items():
        encoders[name] = {"encoder": UnshuffleEncoder, "pretrained_settings": {}, "params": params}


def normalisation(encoder: str, *, pretrained: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the (mean, std) that the encoder's own weights were trained with, per RGB channel in [0, 1].

    smp does not normalise inputs; timm publishes the figures in each model's pretrained_cfg, which needs no download.
    """
    if encoder.startswith("tu-"):
        name = encoder.removeprefix("tu-")
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
