"""A pixel-diffusion restorer in two stages: a pre-restored picture, and the residual to it, diffused on cells of pixels.

Small enough for two CPU cores as shipped, wide and with attention on GPUs; trained on patches, applied to any size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from safetensors.torch import save
from torch import nn

from shared.app.config import from_dict, require_range
from shared.app.errors import UserError
from shared.diffusion.schedule import NoiseSchedule, ScheduleConfig
from shared.files import write_bytes
from shared.latent.model_folder import DiffusersPart
from shared.lora import state_without_adapters
from shared.policies.interface import Condition, DiffusionPolicy, OpenStage, Origin
from shared.policies.policy_folder import AGAIN, WEIGHTS_FILE
from shared.restorers.pixel_ends import PixelHead, PixelStem
from shared.restorers.pre_restorer import NONE, OWN, STAGES, bicubic_sr, fitted
from shared.restorers.protocol import Restorer, on_device
from shared.restorers.published import WHEEL_NETWORKS
from shared.restorers.wrapped import RememberedRestorer
from shared.vision.detail import below_detail
from shared.weights import load_network


@dataclass(frozen=True)
class PixelUNetConfig:
    """Architecture of the pixel-diffusion restorer."""

    scale: int = 1  # side of sr / side of lq: 4 for sr, 1 for face
    # The first stage: none (bicubic), own (a network trained for this policy, in its folder), a restorer's folder or file.
    pre_restorer: str = NONE
    guide: str = NONE  # a sharper picture that the network sees as well: none, own, or a restorer's folder or file
    # How far the residual's start moves from the first stage's picture to the guide's, 0 to 1. Above 0 the network sees both
    # relative to it and in units of the residual, so that it starts from a good mixture and its errors are small.
    blend: float = 0.0
    # An upscaler among the two that enlarges more than the policy sees lq shrunk by this much, and what it enlarges too
    # far is averaged; 0: such a one is refused.
    shrink: int = 0
    unshuffle: int = 4  # an n×n block of pixels becomes one latent cell of 3·n² channels
    # Channels of the full-resolution stem and head around the U-Net; 0: it sees and writes cells alone.
    pixel_channels: int = 0
    channels: tuple[int, ...] = (64, 96, 128)  # channels of each resolution level; each level halves the latent side
    layers_per_block: int = 1  # residual layers per level
    # Levels with self-attention, 0 the finest; any of them adds it in the middle too.
    attention_levels: tuple[int, ...] = ()
    head_channels: int = 32  # channels of one attention head
    norm_groups: int = 8  # groups of group normalisation; must divide every channel count
    residual_std: float = 0.1  # the residual to the first stage's picture is divided by this: x_0's variance is near 1
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        require_range(scale=(self.scale, 1, 8), unshuffle=(self.unshuffle, 1, 16), levels=(len(self.channels), 1, 8))
        require_range(layers_per_block=(self.layers_per_block, 1, 16), norm_groups=(self.norm_groups, 1, 1024))
        require_range(head_channels=(self.head_channels, 1, 1024))
        for width in self.channels:
            require_range(channels=(width, 1, 16384))
        require_range(pixel_channels=(self.pixel_channels, 0, 1024), shrink=(self.shrink, 0, 16))
        if self.pixel_channels and self.unshuffle & (self.unshuffle - 1):
            raise ValueError(f"a stem and head (pixel_channels) need unshuffle 1, 2, 4 or 8, got {self.unshuffle}")
        require_range(blend=(self.blend, 0, 1))
        if self.blend and self.guide == NONE:
            raise ValueError("policy.blend mixes the guide's picture in: it needs a policy guide")
        if self.residual_std <= 0:
            raise ValueError(f"residual_std must be positive, got {self.residual_std}")
        unknown = [level for level in self.attention_levels if not 0 <= level < len(self.channels)]
        if unknown:
            raise ValueError(f"attention_levels must lie in 0 … {len(self.channels) - 1}, got {unknown}")
        with_heads = {self.channels[level] for level in self.attention_levels} | {self.channels[-1]}
        uneven = [c for c in with_heads if self.attention_levels and c % self.head_channels]
        if uneven or any(c % self.norm_groups for c in self.channels):
            raise ValueError(
                f"channels must be multiples of norm_groups ({self.norm_groups}), and with attention of head_channels "
                f"({self.head_channels}), got {list(self.channels)}"
            )


class PixelUNet(DiffusionPolicy):
    """The diffusion policy of the embedded configuration; see DiffusionPolicy for what each method promises."""

    kind = "pixel_unet"
    unet: DiffusersPart

    def __init__(
        self, config: PixelUNetConfig, pre_restorer: Restorer | None = None, guide: Restorer | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.schedule = NoiseSchedule.build(config.schedule)
        self.scale, self.cell_px = config.scale, config.unshuffle
        self.multiple = max(1, config.unshuffle * 2 ** (len(config.channels) - 1) // config.scale)
        self.latent_channels = 3 * config.unshuffle**2
        # x_t, the up-sampled lq, the first stage's picture, the guide's, their mixture
        pictures = 2 + (config.pre_restorer != NONE) + (config.guide != NONE) + (config.blend > 0)
        attends = [level in config.attention_levels for level in range(len(config.channels))]
        self.unet = UNet2DModel(
            in_channels=config.channels[0] if config.pixel_channels else pictures * self.latent_channels,
            out_channels=config.channels[0] if config.pixel_channels else self.latent_channels,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
            block_out_channels=tuple(config.channels),
            layers_per_block=config.layers_per_block,
            norm_num_groups=config.norm_groups,
            add_attention=any(attends),
            attention_head_dim=config.head_channels,
        )
        if config.pixel_channels:
            ends = {"pixel_channels": config.pixel_channels, "cell_channels": config.channels[0]}
            self.stem = PixelStem(3 * pictures, **ends, cell_px=config.unshuffle)
            self.head = PixelHead(**ends, cell_px=config.unshuffle)
        else:
            # A residual of zero is the first stage's picture itself: a sound first guess for an untrained network.
            nn.init.zeros_(self.unet.conv_out.weight)
            nn.init.zeros_(self.unet.conv_out.bias)
        # In a dictionary, so that they are no part of what is trained, averaged or saved with this network's weights.
        self._restorers = {
            name: restorer and self._stage(name, restorer)
            for name, restorer in {"pre_restorer": pre_restorer, "guide": guide}.items()
        }

    @property
    def pre_restorer(self) -> Restorer | None:
        """The first stage; None is bicubic up-sampling."""
        return self._restorers["pre_restorer"]

    @property
    def guide(self) -> Restorer | None:
        """What shows the network the detail that could be there, if anything does."""
        return self._restorers["guide"]

    def parts(self) -> Mapping[str, nn.Module]:
        """Returns the U-Net, and the stem and head around it where there are such."""
        return {name: getattr(self, name) for name in ("unet", "stem", "head") if hasattr(self, name)}

    def latent_shape(self, lq: torch.Tensor) -> tuple[int, int, int]:
        """Returns (C, h, w) of the latents that restore lq [B, 3, h_lq, w_lq]."""
        n = self.config.unshuffle
        return self.latent_channels, lq.shape[-2] * self.scale // n, lq.shape[-1] * self.scale // n

    @torch.no_grad()
    def condition(self, lq: torch.Tensor, *, known: Mapping[str, torch.Tensor] | None = None) -> Condition:
        """Returns `start`, the first stage's picture [B, 3, H, W], `seen`, what the network sees beside x_t, and the
        `guide`'s picture where there is a guide.

        `known`: the pictures [B, 3, H, W] of pre_restorer and guide, by name, that need not be made again.
        """
        known = known or {}
        start = enlarged = bicubic_sr(lq, self.scale)
        pictures = [enlarged]
        if self.config.pre_restorer != NONE:
            start = known["pre_restorer"] if "pre_restorer" in known else self._restored("pre_restorer", lq)
            pictures = [start, *pictures]
        guided = {}
        if self.config.guide != NONE:
            guided = {"guide": known["guide"] if "guide" in known else self._restored("guide", lq)}
        pictures += guided.values()
        if self.config.blend:
            start = torch.lerp(start, guided["guide"], self.config.blend)
            relative = torch.cat(pictures, dim=1) - start.repeat(1, len(pictures), 1, 1)
            seen = torch.cat([relative / self.config.residual_std, (start - 0.5) * 2.0], dim=1)
        else:
            seen = (torch.cat(pictures, dim=1) - 0.5) * 2.0
        if not self.config.pixel_channels:
            seen = F.pixel_unshuffle(seen, self.config.unshuffle)
        return {"start": start, "seen": seen, **guided}

    def predict(self, x_t: torch.Tensor, timesteps: torch.Tensor, condition: Condition) -> torch.Tensor:
        """Returns the network's output [B, C, h, w] at x_t [B, C, h, w] and integer timesteps [B]."""
        if not self.config.pixel_channels:
            return self.unet(torch.cat([x_t, condition["seen"]], dim=1), timesteps).sample
        pixels = F.pixel_shuffle(x_t, self.config.unshuffle)
        features, cells = self.stem(torch.cat([pixels, condition["seen"]], dim=1))
        output = self.head(self.unet(cells, timesteps).sample, features)
        return F.pixel_unshuffle(output, self.config.unshuffle)

    def encode(self, gt: torch.Tensor, condition: Condition) -> torch.Tensor:
        """Returns x_0 [B, C, h, w] of gt [B, 3, H, W]; inverts `decode`."""
        return F.pixel_unshuffle((gt - condition["start"]) / self.config.residual_std, self.config.unshuffle)

    def decode(self, x0: torch.Tensor, condition: Condition, *, recompute: bool = False) -> torch.Tensor:
        """Returns sr [B, 3, H, W], not clamped, differentiable in x_0; there is nothing to `recompute`."""
        return condition["start"] + F.pixel_shuffle(x0, self.config.unshuffle) * self.config.residual_std

    def low_band(self, latent: torch.Tensor) -> torch.Tensor:
        """Returns the latent [B, C, h, w] of the residual's picture without what is above an eighth of a cycle per pixel."""
        n = self.config.unshuffle
        return F.pixel_unshuffle(below_detail(F.pixel_shuffle(latent, n)), n)

    def origin(self) -> Origin:
        """Returns the architecture; every weight is the policy's own."""
        return Origin(dataclasses.asdict(self.config))

    @classmethod
    def load(cls, origin: Origin, folder: Path | None, *, open_stage: OpenStage) -> Self:
        """Returns the policy in a folder; see DiffusionPolicy."""
        if folder is None:
            raise UserError("a pixel_unet is a folder saved here; name one")
        config = from_dict(PixelUNetConfig, dict(origin.architecture))
        stages = [open_stage(stage, getattr(config, stage), config.scale) for stage in STAGES]
        return load_network(lambda: cls(config, *stages), folder / WEIGHTS_FILE, advice=AGAIN)

    def save_weights(self, folder: Path, *, half: bool = False) -> list[str]:
        """Writes `model.safetensors`, adapters merged in, then the policy's own restorers."""
        state = state_without_adapters(self, merged=True)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
        write_bytes(folder / WEIGHTS_FILE, save({name: t.half() for name, t in tensors.items()} if half else tensors))
        weights = [WEIGHTS_FILE]
        for stage in STAGES:
            if getattr(self.config, stage) == OWN:
                getattr(self, stage).save(folder / stage, half=half)
                weights.append(f"{stage}/{WEIGHTS_FILE}")
        return weights

    def _stage(self, name: str, restorer: Restorer) -> Restorer:
        where = getattr(self.config, name)
        fit = fitted(restorer, self.config.scale, shrink=self.config.shrink, name=f"{name} {where}")
        # A network of the policy's own is cheap; a published one takes a hundred times a step's time.
        if where == OWN:
            return fit
        # Only a published network's name says the same in every folder.
        return RememberedRestorer(fit, f"{where}, shrink {self.config.shrink}" if where in WHEEL_NETWORKS else "")

    def _restored(self, name: str, lq: torch.Tensor) -> torch.Tensor:
        restorer = self._restorers[name]
        if restorer is None:
            raise ValueError(f"this policy was built without its {name} ({getattr(self.config, name)})")
        # One seed for all: a restorer that draws gives a picture that depends on lq alone.
        return on_device(restorer, lq.device).restore(lq, sample_seeds=[0] * lq.shape[0])
