"""The reward model's parts: encoder and decoder by name from smp and timm, and as many decoder blocks as a stage has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import segmentation_models_pytorch as smp
import torch
from segmentation_models_pytorch.encoders import encoders
from torch import nn
from torch.nn import functional

from reward_model.network.encoder import (
    EncoderWithDetail,
    is_embedded,
    register_embedded_encoders,
    require_registered,
)
from reward_model.network.encoder_file import open_encoder
from shared.app.config import require_range
from shared.app.errors import UserError

_CLEAN_BIAS = -2.0  # a fresh map starts at sigmoid(-2) = .12: most pixels of the training set are clean

_COMPOSED = "restore-rl-composed"

register_embedded_encoders()


@dataclass(frozen=True)
class RewardModelConfig:
    """The network's architecture, saved beside its weights."""

    encoder: str = "unshuffle-tiny"  # any smp encoder name; tu-<timm name> for timm's
    encoder_depth: int = 4  # number of feature levels, strides 2 … 2^depth
    pretrained: bool = False  # start the encoder from its published weights (needs a download once)
    encoder_weights: str = ""  # a safetensors file that the encoder starts from; empty: none
    # Width of the detail front end beside a published encoder, at stride 2; embedded ones have their own.
    detail: int = 0
    takes_lq: bool = False  # reads the degraded input too, when it is given
    decoder: str = "unet"  # any smp decoder name; only unet's blocks can be staged
    # Widths of the decoder's blocks for unet; empty for others: smp's default.
    decoder_channels: tuple[int, ...] = (64, 48, 24)
    head: Literal["paper", "penalty"] = "penalty"  # penalty: S_base − g(features, map); paper: MLP(features ⊙ map)
    mean: tuple[float, ...] = ()  # mean that inputs are normalised by; empty: the encoder's own
    std: tuple[float, ...] = ()  # deviation that inputs are normalised by; empty: the encoder's own

    def __post_init__(self) -> None:
        if self.decoder == "unet" and not 1 <= len(self.decoder_channels) <= self.encoder_depth:
            raise ValueError(
                f"decoder_channels must hold 1 to encoder_depth = {self.encoder_depth} widths, one for each stage, "
                f"got {list(self.decoder_channels)}"
            )
        if self.decoder != "unet" and self.decoder_channels:
            raise ValueError(f"decoder_channels belong to unet; leave them empty for {self.decoder}")
        require_range(encoder_depth=(self.encoder_depth, 1, 8))
        for width in self.decoder_channels:
            require_range(decoder_channels=(width, 1, 4096))
        if len(self.mean) != len(self.std) or len(self.mean) not in (0, 3):
            raise ValueError("mean and std must be both empty, or three numbers each")
        if self.pretrained and self.encoder_weights:
            raise ValueError(
                "pretrained fetches the encoder's weights, encoder_weights names a file of them: choose one"
            )
        if not 0 <= self.detail <= 1024 or (self.detail and is_embedded(self.encoder)):
            raise ValueError(f"detail must lie between 0 and 1024, 0 for embedded encoders, got {self.detail}")
        if self.takes_lq and not (self.detail or is_embedded(self.encoder)):
            raise ValueError("takes_lq needs the detail front end: an embedded encoder, or detail above 0")

    @property
    def stages(self) -> int:
        """N, the last stage: RM_0 … RM_N are N + 1 models."""
        return len(self.decoder_channels) if self.decoder == "unet" else 1


def upsample(values: torch.Tensor, factor: int) -> torch.Tensor:
    """Returns values bilinearly enlarged by a whole factor."""
    return functional.interpolate(values, scale_factor=float(factor), mode="bilinear", align_corners=False)


def build_network(config: RewardModelConfig) -> nn.Module:
    """Returns smp's model of that encoder and decoder. Raises UserError for names that smp and timm do not know."""
    require_registered(config.encoder)
    options: dict = {}
    if config.decoder == "unet":
        # smp wants a width for every level; the blocks beyond the last stage are dropped again.
        missing = config.encoder_depth - len(config.decoder_channels)
        options["decoder_channels"] = (*config.decoder_channels, *[config.decoder_channels[-1]] * missing)
    weights = None if not config.pretrained else True if config.encoder.startswith("tu-") else "imagenet"
    try:
        name = _with_detail(config, weights) if config.detail else config.encoder
        network = smp.create_model(
            config.decoder,
            encoder_name=name,
            encoder_depth=config.encoder_depth,
            encoder_weights=None if config.detail else weights,
            classes=1,
            **options,
        )
        if config.encoder_weights and not config.detail:
            network.encoder.load_state_dict(_published(config, None).state_dict())
        return network
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


def _published(config: RewardModelConfig, weights: str | bool | None) -> nn.Module:
    return open_encoder(config.encoder, depth=config.encoder_depth, weights=weights, file=config.encoder_weights)


def _with_detail(config: RewardModelConfig, weights: str | bool | None) -> str:
    """Returns a name under which smp finds the encoder with the detail front end: it knows registered ones alone."""

    def encoder(*, depth: int, output_stride: int) -> nn.Module:
        return EncoderWithDetail(_published(config, weights), first_channels=config.detail, depth=depth)

    encoders[_COMPOSED] = {"encoder": encoder, "pretrained_settings": {}, "params": {}}
    return _COMPOSED


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
