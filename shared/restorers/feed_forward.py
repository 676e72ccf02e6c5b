"""Restorers that answer in one pass: a small convolutional network trained here, and published ones read by spandrel."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from omegaconf.errors import OmegaConfBaseException
from safetensors.torch import save
from torch import nn

from shared.app.config import from_dict, require_range
from shared.app.errors import UserError
from shared.files import write_bytes
from shared.seeds import gaussian
from shared.vision.images import pad_to_multiple
from shared.weights import load_network, read_description, require_no_pointer

if TYPE_CHECKING:
    from spandrel import ImageModelDescriptor
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


@dataclass(frozen=True)
class FeedForwardConfig:
    """Architecture of the small network."""

    scale: int = 4  # side of sr / side of lq: 4 for sr, 1 for face
    cell_px: int = 4  # the body works on cells of this many sr pixels; a multiple of scale
    channels: int = 48  # channels of the body
    blocks: int = 4  # residual blocks of the body
    pixel_channels: int = 12  # features of each sr pixel, from which its colour is mixed
    smooth: bool = False  # cells are enlarged by bilinear steps instead of shuffled: costs more, and leaves no grid
    # Channels of noise beside the pixel features, from which texture can be made where lq says nothing; 0: none.
    noise_channels: int = 4

    def __post_init__(self) -> None:
        require_range(scale=(self.scale, 1, 8), channels=(self.channels, 4, 512), blocks=(self.blocks, 1, 64))
        require_range(cell_px=(self.cell_px, 1, 64), pixel_channels=(self.pixel_channels, 1, 4096))
        require_range(noise_channels=(self.noise_channels, 0, 4096))
        if self.smooth and self.cell_px & (self.cell_px - 1):
            raise ValueError(f"smooth enlarging needs a cell_px of 2, 4 or 8, got {self.cell_px}")
        if self.cell_px % self.scale:
            raise ValueError(f"cell_px must be a multiple of scale {self.scale}, got {self.cell_px}")


class FeedForwardNet(nn.Module):
    """Adds a residual to the up-sampled lq: lq un-shuffled to cells, residual blocks, shuffled back to pixels.

    The body runs at the same resolution for every scale, so restoring a face costs what super-resolving to its size does.
    """

    def __init__(self, config: FeedForwardConfig) -> None:
        super().__init__()
        self.config = config
        self.lq_cell_px = config.cell_px // config.scale
        channels = config.channels
        self.head = nn.Conv2d(3 * self.lq_cell_px**2, channels, 3, padding=1)
        self.body = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1),
                nn.ReLU(),
                _quiet(nn.Conv2d(channels, channels, 3, padding=1)),
            )
            for _ in range(config.blocks)
        )
        self.shuffle = _smooth(config) if config.smooth else _shuffle(config)
        # At full resolution, so that neighbouring cells agree: without it their grid shows.
        mixed = nn.Conv2d(config.pixel_channels + config.noise_channels, config.pixel_channels, 3, padding=1)
        self.tail = nn.Sequential(mixed, nn.ReLU(), _quiet(nn.Conv2d(config.pixel_channels, 3, 3, padding=1)))
        # Noise has no say until a training that draws it gives it one: L1 would first have to unlearn it.
        nn.init.zeros_(mixed.weight.data[:, config.pixel_channels :])

    def forward(self, lq: torch.Tensor, sample_seeds: Sequence[int] | None) -> torch.Tensor:
        """Returns sr [B, 3, scale·h, scale·w], not clamped, for lq [B, 3, h, w] in [0, 1], any h and w.

        Each picture's noise is drawn from its own seed; it is 0 where there are none, and its weights then learn nothing.
        """
        height, width = lq.shape[-2:]
        lq = pad_to_multiple(lq, self.lq_cell_px)
        features = self.head(F.pixel_unshuffle(lq - 0.5, self.lq_cell_px))
        for block in self.body:
            features = features + block(features)
        pixels = self.shuffle(features)
        shape = (self.config.noise_channels, *pixels.shape[-2:])
        if sample_seeds is None:
            noise = pixels.new_zeros(len(pixels), *shape)
        else:
            noise = gaussian(sample_seeds, shape, device=lq.device).to(pixels.dtype)
        residual = self.tail(torch.cat([pixels, noise], dim=1))
        scale = self.config.scale
        upsampled = lq if scale == 1 else F.interpolate(lq, scale_factor=scale, mode="bicubic", align_corners=False)
        return (upsampled + residual)[..., : height * scale, : width * scale]


class FeedForwardRestorer:
    """A FeedForwardNet as a Restorer, with its folder on disk."""

    def __init__(self, net: FeedForwardNet) -> None:
        self.net = net.eval()
        self.scale = net.config.scale

    @classmethod
    def from_folder(cls, folder: str | Path) -> FeedForwardRestorer:
        """Returns the restorer that `save` wrote. Raises UserError when the folder holds none."""
        folder = Path(folder)
        try:
            written = read_description(folder / CONFIG_FILE, advice="train it again")
            config = from_dict(FeedForwardConfig, written["network"])
            net = load_network(lambda: FeedForwardNet(config), folder / WEIGHTS_FILE, advice="train it again")
        except FileNotFoundError as error:
            raise UserError(f"no {Path(error.filename).name} in {folder}: it is no finished restorer") from None
        except (UserError, OmegaConfBaseException, KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"{folder} holds no feed-forward restorer ({reason}); train it again") from None
        return cls(net)

    def save(self, folder: str | Path, *, half: bool = False) -> None:
        """Writes `model.safetensors` (float16 where `half`), then `config.json`, each whole."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.net.state_dict().items()}
        if half:
            tensors = {name: tensor.half() for name, tensor in tensors.items()}
        write_bytes(Path(folder) / WEIGHTS_FILE, save(tensors))
        content = {"kind": "feed_forward", "network": dataclasses.asdict(self.net.config)}
        write_bytes(Path(folder) / CONFIG_FILE, (json.dumps(content, indent=2) + "\n").encode())

    @torch.no_grad()
    def restore(self, lq: torch.Tensor, *, sample_seeds: Sequence[int]) -> torch.Tensor:
        """Returns sr [B, 3, scale·h, scale·w] in [0, 1]; the texture of each picture is its seed's."""
        return self.net(lq, sample_seeds).clamp(0, 1)


class SpandrelRestorer:
    """A published network in spandrel's wrapper, which pads to the sides that the architecture asks for."""

    def __init__(self, descriptor: ImageModelDescriptor[nn.Module]) -> None:
        self.descriptor = descriptor.eval()
        self.scale = descriptor.scale

    @torch.no_grad()
    def restore(self, lq: torch.Tensor, *, sample_seeds: Sequence[int]) -> torch.Tensor:
        """Returns sr [B, 3, scale·h, scale·w] in [0, 1]; draws nothing."""
        return self.descriptor(lq).clamp(0, 1)


def load_spandrel(path: str | Path) -> SpandrelRestorer:
    """Returns the published restorer in a .pth or .safetensors file. Raises UserError when spandrel cannot read it."""
    from spandrel import ImageModelDescriptor, ModelLoader, UnsupportedModelError  # its registry takes seconds

    require_no_pointer(Path(path))
    try:
        descriptor = ModelLoader(device="cpu").load_from_file(str(path))
    except UnsupportedModelError:
        raise UserError(f"{path} holds no architecture that spandrel knows; convert it, or name another file") from None
    except Exception as error:  # truncated files raise whatever the reader inside meets first
        raise UserError(f"{path} does not load ({error or type(error).__name__}); download it again") from None
    if not isinstance(descriptor, ImageModelDescriptor):
        raise UserError(f"{path} holds a {descriptor.architecture.name} that needs a mask; expected picture to picture")
    if descriptor.input_channels != 3 or descriptor.output_channels != 3:
        raise UserError(f"{path} takes {descriptor.input_channels} channels; expected an RGB restorer")
    return SpandrelRestorer(descriptor)


def _shuffle(config: FeedForwardConfig) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(config.channels, config.pixel_channels * config.cell_px**2, 1),
        nn.PixelShuffle(config.cell_px),
        nn.ReLU(),
    )


def _smooth(config: FeedForwardConfig) -> nn.Sequential:
    doublings = config.cell_px.bit_length() - 1
    widths = [config.channels, *(max(config.pixel_channels, config.channels >> i) for i in range(1, doublings))]
    layers: list[nn.Module] = []
    for wide, narrow in pairwise([*widths, config.pixel_channels]):
        layers += [nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(wide, narrow, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers)


def _quiet(conv: nn.Conv2d) -> nn.Conv2d:
    # Starts near zero: the untrained network returns its up-sampled input, and training starts from there.
    nn.init.normal_(conv.weight, std=1e-3)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv
