"""Published diffusion upscalers as policies: lq and x_t lie side by side as the U-Net's input, and the decoder enlarges.

Two layouts: Stable Diffusion's upscaler (noised lq, whose noise level is a class, and a text), and latent diffusion's
(2112.10752), which sees lq alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from shared.app.config import from_dict, require_range
from shared.app.errors import UserError
from shared.diffusion.schedule import NoiseSchedule
from shared.latent.model_folder import DiffusersPart, ModelFolder, load_part, open_model_folder, pipeline_of
from shared.latent.prompt import encoded_prompts
from shared.latent.saved_parts import holder_of
from shared.policies.interface import Condition, OpenStage, Origin
from shared.policies.latent_policy import LatentConfig, LatentPolicy, schedule_of
from shared.seeds import gaussian

STABLE, PLAIN = "StableDiffusionUpscalePipeline", "LDMSuperResolutionPipeline"
_PARTS = {
    STABLE: {"unet": ("UNet2DConditionModel",), "vae": ("AutoencoderKL",)},
    PLAIN: {"unet": ("UNet2DModel",), "vqvae": ("VQModel",)},
}
_LQ_SEED = 0  # of the noise that is added to every lq


@dataclass(frozen=True)
class LatentConcatConfig(LatentConfig):
    """How an upscaler's networks serve as a policy."""

    # Stable Diffusion's: noise added to lq, a timestep of its low_res_scheduler; more of it leaves more to be invented.
    noise_level: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(noise_level=(self.noise_level, 0, 999))


class LatentConcat(LatentPolicy):
    """The policy; see DiffusionPolicy for what each method promises. Its scale is that of its decoder."""

    kind = "latent_concat"
    config: LatentConcatConfig
    unet: DiffusersPart
    texts: torch.Tensor | None

    def __init__(
        self,
        config: LatentConcatConfig,
        parts: Mapping[str, DiffusersPart],
        *,
        schedule: NoiseSchedule,
        lq_schedule: NoiseSchedule | None,
        texts: torch.Tensor | None,
        bases: Mapping[str, ModelFolder],
    ) -> None:
        """parts: unet, and vae or vqvae; texts: what the U-Net reads, as [1 or 2, tokens, channels].

        lq_schedule and texts are None in latent diffusion's layout.
        """
        super().__init__(config, parts, schedule=schedule, bases=bases)
        self.scale = self.cell_px  # latents have lq's own size
        self.multiple = 2 ** (len(self.unet.config.block_out_channels) - 1)
        self.register_buffer("texts", texts, persistent=False)
        self._lq_schedule = lq_schedule

    @torch.no_grad()
    def condition(self, lq: torch.Tensor) -> Condition:
        """Returns `seen`, lq in [−1, 1] with the noise of `config.noise_level`, [B, 3, h_lq, w_lq]."""
        seen = lq * 2.0 - 1.0
        if self._lq_schedule is not None:
            noise = gaussian([_LQ_SEED] * lq.shape[0], lq.shape[1:], device=lq.device)
            seen = self._lq_schedule.add_noise(seen, noise, self._noise_levels(lq))
        return {"seen": seen}

    def predict(self, x_t: torch.Tensor, timesteps: torch.Tensor, condition: Condition) -> torch.Tensor:
        """Returns the network's output [B, C, h, w] at x_t and timesteps [B]."""
        seen = torch.cat([x_t, condition["seen"]], dim=1).to(self.unet.dtype)
        times = self.schedule.model_times(timesteps)
        if self.texts is None:
            return self.unet(seen, times).sample.float()
        texts = [text.to(seen.dtype).expand(x_t.shape[0], -1, -1) for text in self.texts]
        labels = self._noise_levels(x_t)
        return self.guided([self.unet(seen, times, text, class_labels=labels).sample.float() for text in texts])

    @classmethod
    def load(cls, origin: Origin, folder: Path | None, *, open_stage: OpenStage) -> Self:
        """Returns the policy of a diffusers folder, or of a repository of the Hub at its revision."""
        config = from_dict(LatentConcatConfig, dict(origin.architecture))
        model = open_model_folder(
            origin.repository or str(folder),
            ("unet", "scheduler"),
            pipelines=(STABLE, PLAIN),
            optional=("vae", "vqvae", "text_encoder", "tokenizer", "low_res_scheduler"),
            revision=origin.revision,
            variant=config.variant,
        )
        layout = pipeline_of(model)
        if layout not in _PARTS:
            raise UserError(f"{model.where} has no model_index.json that says which upscaler it is; fetch it again")
        bases = dict.fromkeys(_PARTS[layout], model)
        parts = {n: load_part(holder_of(n, model, folder), n, classes) for n, classes in _PARTS[layout].items()}
        _require_fit(parts, model)
        if layout == PLAIN and (config.prompt or config.guidance != 1.0):
            raise UserError(f"{model.where} reads no text: leave prompt empty and guidance at 1")
        reads = layout == STABLE
        return cls(
            config,
            parts,
            schedule=schedule_of(model),
            lq_schedule=schedule_of(model, "low_res_scheduler") if reads else None,
            texts=encoded_prompts(model, config.prompts) if reads else None,
            bases=bases,
        )

    def _noise_levels(self, like: torch.Tensor) -> torch.Tensor:
        return torch.full((like.shape[0],), self.config.noise_level, dtype=torch.long, device=like.device)


def _require_fit(parts: Mapping[str, DiffusersPart], model: ModelFolder) -> None:
    latent = (parts.get("vae") or parts["vqvae"]).config.latent_channels
    seen, written = parts["unet"].config.in_channels, parts["unet"].config.out_channels
    if (seen, written) != (latent + 3, latent):
        raise UserError(
            f"the unet of {model.where} sees {seen} channels and writes {written}; expected {latent + 3}, x_t and the "
            f"picture, and {latent}"
        )
