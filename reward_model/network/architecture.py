"""The reward model's parts: encoder and decoder by name from smp and timm, and as many decoder blocks as a stage has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import segmentation_models_pytorch as smp
import torch
from torch import nn
from torch.nn import functional

from reward_model.network.encoder import register_embedded_encoders
from shared.app.errors import UserError

_CLEAN_BIAS = -2.0  # a fresh map starts at sigmoid(-2) = .12: most pixels of the training set are clean

register_embedded_encoders()


@dataclass(frozen=True)
class RewardModelConfig:
    """The network's architecture, saved beside its weights."""

    encoder: str = "unshuffle-tiny"  # any smp encoder name; tu-<timm name> for timm's
    encoder_depth: int = 4  # number of feature levels, strides 2 … 2^depth
    pretrained: bool = False  # start the encoder from its published weights (needs a download once)
    decoder: str = "unet"  # any smp decoder name; only unet's blocks can be staged
    decoder_channels: tuple[int, ...] = (64, 48, 24)  # unet: one width a block; others: empty for smp's default
    head: Literal["paper", "penalty"] = "penalty"  # penalty: S_base − g(features, map); paper: MLP(features ⊙ map)
    mean: tuple[float, ...] = ()  # input normalisation; empty means the encoder's own
    std: tuple[float, ...] = ()  # likewise

    def __post_init__(self) -> None:
        if self.decoder == "unet" and not 1 <= len(self.decoder_channels) <= self.encoder_depth:
            raise ValueError(
                f"decoder_channels must hold 1 to encoder_depth = {self.encoder_depth} widths, one for each stage, "
                f"got {list(self.decoder_channels)}"
            )
        if self.decoder != "unet" and self.decoder_channels:
            raise ValueError(f"decoder_channels belong to unet; leave them empty for {self.decoder}")
        if len(self.mean) != len(self.std) or len(self.mean) not in (0, 3):
            raise ValueError("mean and std must be both empty, or three numbers each")

    @property
    def stages(self) -> int:
        """N, the last stage: RM_0 … RM_N are N + 1 models."""
        return len(self.decoder_channels) if self.decoder == "unet" else 1


def upsample(values: torch.Tensor, factor: int) -> torch.Tensor:
    """Returns values bilinearly enlarged by a whole factor."""
    return functional.interpolate(values, scale_factor=float(factor), mode="bilinear", align_corners=False)


def build_network(config: RewardModelConfig) -> nn.Module:
    options: dict = {}
    if config.decoder == "unet":
        # smp wants a width for every level; the blocks beyond the last stage are dropped again.
        missing = config.encoder_depth - len(config.decoder_channels)
        options["decoder_channels"] = (*config.decoder_channels, *[config.decoder_channels[-1]] * missing)
    weights = None if not config.pretrained else True if config.encoder.startswith("tu-") else "imagenet"
    try:
        return smp.create_model(
            config.decoder,
            encoder_name=config.encoder,
            encoder_depth=config.encoder_depth,
            encoder_weights=weights,
            classes=1,
            **options,
        )
    except OSError as error:
        raise UserError(
            f"the weights of encoder {config.encoder} could not be fetched ({_first_line(error)}); check the network, "
            "or set pretrained=false"
        ) from None
    except (KeyError, ValueError, RuntimeError, TypeError, AssertionError) as error:
        raise UserError(
            f"encoder {config.encoder!r} with decoder {config.decoder!r}: {_first_line(error)}; expected names that "
            "segmentation_models_pytorch knows, or tu-<timm model>"
        ) from None


def build_decoder(network: nn.Module, config: RewardModelConfig, stage: int) -> tuple[nn.Module, nn.ModuleList, int]:
    """Returns (decoder, map heads, stride of the map) of RM_stage."""
    if stage == 0:
        return nn.ModuleList(), nn.ModuleList(), 1
    if config.decoder != "unet":
        width = next(part.in_channels for part in network.segmentation_head if isinstance(part, nn.Conv2d))
        stride = next(
            (int(part.scale_factor) for part in network.segmentation_head if isinstance(part, nn.Upsample)), 1
        )
        return network.decoder, nn.ModuleList([_map_head(width, first=True)]), stride
    blocks = nn.ModuleList(network.decoder.blocks[:stage])
    heads = nn.ModuleList(
        _map_head(width, first=index == 0) for index, width in enumerate(config.decoder_channels[:stage])
    )
    return blocks, heads, 2 ** (config.encoder_depth - stage)


def _map_head(channels: int, *, first: bool) -> nn.Conv2d:
    head = nn.Conv2d(channels, 1, 3, padding=1)
    if first:
        nn.init.constant_(head.bias, _CLEAN_BIAS)
    else:
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    return head


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
