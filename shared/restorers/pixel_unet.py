"""A pixel-diffusion restorer: diffuses the residual to the up-sampled lq on un-shuffled pixels.

Small enough for two CPU cores as shipped, wide and with attention on GPUs; trained on patches, applied to any size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from torch import nn

from shared.app.config import require_range
from shared.diffusion.sampler import SamplerSpec, sample
from shared.diffusion.schedule import NoiseSchedule, ScheduleConfig
from shared.vision.images import pad_to_multiple


@dataclass(frozen=True)
class PixelUNetConfig:
    """Architecture of the pixel-diffusion restorer."""

    scale: int = 1  # side of sr / side of lq: 4 for sr, 1 for face
    unshuffle: int = 4  # an n×n block of pixels becomes one latent cell of 3·n² channels
    channels: tuple[int, ...] = (64, 96, 128)  # per resolution level; each level halves the latent side
    layers_per_block: int = 1  # residual layers per level
    attention_levels: tuple[int, ...] = ()  # levels with self-attention, 0 the finest; any adds it in the middle too
    head_channels: int = 32  # of one attention head
    norm_groups: int = 8  # of group normalisation; must divide every channel count
    residual_std: float = 0.1  # the residual gt − up(lq) is divided by this, so that x_0 has a variance near 1
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        require_range(scale=(self.scale, 1, 8), unshuffle=(self.unshuffle, 1, 16))
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


class PixelUNet(nn.Module):
    """The diffusion policy of the embedded configuration; see DiffusionPolicy for what each method promises."""

    def __init__(self, config: PixelUNetConfig) -> None:
        super().__init__()
        self.config = config
        self.schedule = NoiseSchedule.build(config.schedule)
        self.scale = config.scale
        self.latent_channels = 3 * config.unshuffle**2
        attends = [level in config.attention_levels for level in range(len(config.channels))]
        self.unet = UNet2DModel(
            in_channels=2 * self.latent_channels,
            out_channels=self.latent_channels,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
            block_out_channels=tuple(config.channels),
            layers_per_block=config.layers_per_block,
            norm_num_groups=config.norm_groups,
            add_attention=any(attends),
            attention_head_dim=config.head_channels,
        )
        # A residual of zero is the up-sampled lq itself: a sound first guess for an untrained network.
        nn.init.zeros_(self.unet.conv_out.weight)
        nn.init.zeros_(self.unet.conv_out.bias)

    @property
    def multiple(self) -> int:
        """Sides of lq must be a multiple of this."""
        sr_multiple = self.config.unshuffle * 2 ** (len(self.config.channels) - 1)
        return max(1, sr_multiple // self.scale)

    def latent_shape(self, lq: torch.Tensor) -> tuple[int, int, int]:
        """Returns (C, h, w) of the latents that restore lq [B, 3, h_lq, w_lq]."""
        n = self.config.unshuffle
        return self.latent_channels, lq.shape[-2] * self.scale // n, lq.shape[-1] * self.scale // n

    def condition(self, lq: torch.Tensor) -> torch.Tensor:
        """Returns what of lq the network sees, [B, C, h, w], computed once for all steps of a rollout."""
        return F.pixel_unshuffle(self._upsample(lq) - 0.5, self.config.unshuffle) * 2.0

    def predict(self, x_t: torch.Tensor, timesteps: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Returns the network's output [B, C, h, w] at x_t [B, C, h, w] and integer timesteps [B]."""
        return self.unet(torch.cat([x_t, condition], dim=1), timesteps).sample

    def forward(self, x_t: torch.Tensor, timesteps: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """The same as `predict`: DistributedDataParallel synchronises gradients only through forward."""
        return self.predict(x_t, timesteps, condition)

    def encode(self, gt: torch.Tensor, lq: torch.Tensor) -> torch.Tensor:
        """Returns x_0 [B, C, h, w] of gt [B, 3, H, W]; inverts `decode`."""
        return F.pixel_unshuffle((gt - self._upsample(lq)) / self.config.residual_std, self.config.unshuffle)

    def decode(self, x0: torch.Tensor, lq: torch.Tensor) -> torch.Tensor:
        """Returns sr [B, 3, H, W], not clamped, differentiable in x_0."""
        return self._upsample(lq) + F.pixel_shuffle(x0, self.config.unshuffle) * self.config.residual_std

    def _upsample(self, lq: torch.Tensor) -> torch.Tensor:
        if self.scale == 1:
            return lq
        return F.interpolate(lq, scale_factor=self.scale, mode="bicubic", align_corners=False).clamp(0, 1)


class PixelUNetRestorer:
    """A pixel-diffusion policy with the sampler it was trained for, as a Restorer."""

    def __init__(self, policy: PixelUNet, spec: SamplerSpec) -> None:
        self.policy = policy.eval()
        self.spec = spec
        self.scale = policy.scale

    @torch.no_grad()
    def restore(self, lq: torch.Tensor, *, sample_seeds: Sequence[int]) -> torch.Tensor:
        """Returns sr [B, 3, scale·h, scale·w] in [0, 1]; any side lengths."""
        height, width = lq.shape[-2] * self.scale, lq.shape[-1] * self.scale
        padded = pad_to_multiple(lq, self.policy.multiple)
        condition = self.policy.condition(padded)
        x0 = sample(
            lambda x_t, t: self.policy.predict(x_t, t, condition),
            self.policy.schedule,
            self.spec,
            sample_seeds=sample_seeds,
            latent_shape=self.policy.latent_shape(padded),
            device=lq.device,
        )
        return self.policy.decode(x0, padded)[..., :height, :width].clamp(0, 1)
