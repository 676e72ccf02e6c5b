"""What policies on an autoencoder's latents share: their two ends, where their parts are from, and how they are saved."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from shared.app.config import require_range
from shared.app.errors import UserError
from shared.diffusion.published_schedule import from_diffusers
from shared.diffusion.schedule import NoiseSchedule
from shared.latent.codec import cell_px_of, to_latents, to_pictures
from shared.latent.model_folder import DiffusersPart, ModelFolder
from shared.latent.precision import FrozenDtype, cast_frozen, frozen_dtype
from shared.latent.saved_parts import differs, save_changed
from shared.policies.interface import Condition, DiffusionPolicy, Origin
from shared.vision.detail import below_detail


@dataclass(frozen=True)
class LatentConfig:
    """Settings of every latent policy."""

    prompt: str = ""  # what the network reads, where it reads a text
    negative_prompt: str = ""  # what guidance leads away from
    guidance: float = 1.0  # how far it leads: negative + guidance · (prompt − negative); 1: not at all, half the time
    pictures_at_once: int = 4  # pictures that the autoencoder sees at once
    variant: str = ""  # of the files of weights, where the plain ones are not there: fp16
    # Weights that are not trained: float32, bfloat16, or auto, which is bfloat16 on a GPU. The autoencoder is float32.
    frozen_dtype: FrozenDtype = "auto"

    def __post_init__(self) -> None:
        require_range(guidance=(self.guidance, 0, 100), pictures_at_once=(self.pictures_at_once, 1, 4096))

    @property
    def prompts(self) -> list[str]:
        """Every text the network reads, the one that guidance leads away from last."""
        return [self.prompt] if self.guidance == 1.0 else [self.prompt, self.negative_prompt]


class LatentPolicy(DiffusionPolicy):
    """A policy on the latents of an autoencoder; see DiffusionPolicy for what each method promises."""

    fixed = frozenset({"vae", "vqvae"})
    vae: DiffusersPart
    vqvae: DiffusersPart

    def __init__(
        self,
        config: LatentConfig,
        parts: Mapping[str, DiffusersPart],
        *,
        schedule: NoiseSchedule,
        bases: Mapping[str, ModelFolder],
    ) -> None:
        """parts: `vae` or `vqvae` and the others by name, each from its folder in `bases`, but for what was tuned."""
        super().__init__()
        self.config, self.schedule = config, schedule
        for name, part in parts.items():
            setattr(self, name, part)
        self._bases = dict(bases)
        self.cell_px = cell_px_of(self.autoencoder)

    @property
    def autoencoder(self) -> DiffusersPart:
        """The network between pictures and latents."""
        return self.vae if "vae" in self._bases else self.vqvae

    def parts(self) -> Mapping[str, nn.Module]:
        """Returns the networks by name; text encoders have done their work before the policy is there."""
        return {name: getattr(self, name) for name in self._bases}

    def latent_shape(self, lq: torch.Tensor) -> tuple[int, int, int]:
        """Returns (C, h, w) of the latents that restore lq [B, 3, h_lq, w_lq]."""
        h, w = (side * self.scale // self.cell_px for side in lq.shape[-2:])
        return self.autoencoder.config.latent_channels, h, w

    def encode(self, gt: torch.Tensor, condition: Condition) -> torch.Tensor:
        """Returns x_0 [B, C, h, w] of gt [B, 3, H, W]: the mean of the autoencoder's distribution, scaled."""
        return to_latents(self.autoencoder, gt, samples_at_once=self.config.pictures_at_once)

    def decode(self, x0: torch.Tensor, condition: Condition, *, recompute: bool = False) -> torch.Tensor:
        """Returns sr [B, 3, H, W], float32, not clamped, differentiable in x_0."""
        return to_pictures(self.autoencoder, x0, samples_at_once=self.config.pictures_at_once, recompute=recompute)

    def low_band(self, latent: torch.Tensor) -> torch.Tensor:
        """Returns the latent [B, C, h, w] under a Gaussian over cells, as wide in pixels as `below_detail`'s."""
        return below_detail(latent, cell_px=self.cell_px)

    def guided(self, outputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Returns the network's output [B, C, h, w] of its outputs for each of `config.prompts`."""
        if len(outputs) == 1:
            return outputs[0]
        towards, away = outputs
        return away + self.config.guidance * (towards - away)

    def cast_frozen(self, device: torch.device) -> None:
        """Puts what is not trained into `config.frozen_dtype`, once it is said what is; the autoencoder stays as it is."""
        dtype = frozen_dtype(self.config.frozen_dtype, device)
        for name, part in self.parts().items():
            # What an earlier run trained would be rounded away with the rest.
            if name not in self.fixed and dtype != torch.float32 and not differs(part, self._bases[name], name):
                cast_frozen(part, dtype)

    def origin(self) -> Origin:
        """Returns the settings and the repository, at its commit, that `load` builds this policy from."""
        model = next(iter(self._bases.values()))
        return Origin(dataclasses.asdict(self.config), model.repository, model.commit)

    def save_weights(self, folder: Path, *, half: bool = False) -> list[str]:
        """Writes every part that differs from its repository's into a folder that diffusers reads it from."""
        bases = {name: base for name, base in self._bases.items() if name not in self.fixed}
        return save_changed(self.parts(), bases, folder, half=half)


def schedule_of(model: ModelFolder, scheduler: str = "scheduler") -> NoiseSchedule:
    """Returns the noise schedule that a scheduler in the folder describes."""
    try:
        return NoiseSchedule.build(from_diffusers(model.description(scheduler)))
    except UserError as error:
        raise UserError(f"{model.where}: {error}") from None
