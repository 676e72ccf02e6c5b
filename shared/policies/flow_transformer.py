"""Stable Diffusion 3's transformer on a rectified flow as a policy: lq's latent beside x_t, or before it in a ControlNet.

The first stage's picture is encoded. A transformer of twice the channels sees its latent as channels beside x_t's; one of
plain Stable Diffusion 3 (arXiv 2403.03206) is led by diffusers' SD3ControlNetModel, whose hint it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from shared.app.config import from_dict, require_range
from shared.app.errors import UserError
from shared.diffusion.schedule import NoiseSchedule
from shared.latent.codec import shift_of, to_latents
from shared.latent.joint_prompt import JointPrompts, joint_prompts
from shared.latent.model_folder import DiffusersPart, ModelFolder, load_part, open_model_folder
from shared.latent.saved_parts import holder_of
from shared.latent.starting_picture import StartingPicture, open_starting_picture
from shared.policies.interface import Condition, OpenStage, Origin
from shared.policies.latent_policy import LatentConfig, LatentPolicy, schedule_of
from shared.restorers.pre_restorer import NONE, OWN

PIPELINES = ("StableDiffusion3Pipeline", "StableDiffusion3ControlNetPipeline")
_CLASSES = {
    "transformer": ("SD3Transformer2DModel",),
    "controlnet": ("SD3ControlNetModel",),
    "vae": ("AutoencoderKL", "AutoencoderTiny"),
}
_TEXTS = ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")


@dataclass(frozen=True)
class FlowTransformerConfig(LatentConfig):
    """How the networks in a folder serve as a policy."""

    scale: int = 1  # side of sr / side of lq: 4 for sr, 1 for face
    pre_restorer: str = NONE  # the first stage: none (bicubic), or a restorer's folder or file
    # What holds the ControlNet: a folder, hf:owner/name@revision, own (the policy's folder); empty: the model's own, if any.
    controlnet: str = ""
    t5: bool = True  # whether the third text encoder is asked, where there is one; false: zeros in its place

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(scale=(self.scale, 1, 8))


class FlowTransformer(LatentPolicy):
    """The policy; see DiffusionPolicy for what each method promises."""

    kind = "flow_transformer"
    config: FlowTransformerConfig
    transformer: DiffusersPart
    controlnet: DiffusersPart
    texts: torch.Tensor
    pooled_texts: torch.Tensor

    def __init__(
        self,
        config: FlowTransformerConfig,
        parts: Mapping[str, DiffusersPart],
        *,
        schedule: NoiseSchedule,
        prompts: JointPrompts,
        starting_picture: StartingPicture,
        bases: Mapping[str, ModelFolder],
    ) -> None:
        """parts: transformer, vae, and controlnet where lq's latent does not lie beside x_t; prompts: `config.prompts`."""
        super().__init__(config, parts, schedule=schedule, bases=bases)
        self.scale = config.scale
        self.register_buffer("texts", prompts.tokens, persistent=False)
        self.register_buffer("pooled_texts", prompts.pooled, persistent=False)
        self._patch: int = self.transformer.config.patch_size
        self.multiple = max(1, self.cell_px * self._patch // self.scale)
        self._starting_picture = starting_picture

    @property
    def led(self) -> bool:
        """Whether a ControlNet leads the transformer."""
        return "controlnet" in self._bases

    @torch.no_grad()
    def condition(self, lq: torch.Tensor) -> Condition:
        """Returns `start`, the first stage's picture [B, 3, H, W], and `hint`, its latent [B, C, h, w].

        Raises UserError for pictures larger than the transformer has positions for.
        """
        most_px = self.transformer.config.pos_embed_max_size * self._patch * self.cell_px
        if max(lq.shape[-2:]) * self.scale > most_px:
            raise UserError(
                f"the transformer has positions for pictures of {most_px} px, got {lq.shape[-1] * self.scale}×"
                f"{lq.shape[-2] * self.scale}; restore in tiles, or crop"
            )
        start = self._starting_picture.restore(lq)
        hint = to_latents(self.vae, start, samples_at_once=self.config.pictures_at_once)
        if self.led and self.controlnet.config.force_zeros_for_pooled_projection:
            # diffusers shows such a ControlNet latents that are not shifted.
            hint = hint + shift_of(self.vae) * self.vae.config.scaling_factor
        return {"start": start, "hint": hint}

    def predict(self, x_t: torch.Tensor, timesteps: torch.Tensor, condition: Condition) -> torch.Tensor:
        """Returns the network's output [B, C, h, w] at x_t and timesteps [B]."""
        times, dtype, count = self.schedule.model_times(timesteps), self.transformer.dtype, x_t.shape[0]
        seen = x_t if self.led else torch.cat([x_t, condition["hint"]], dim=1)
        outputs = []
        for text, pooled in zip(self.texts, self.pooled_texts, strict=True):
            text, pooled = text.expand(count, -1, -1), pooled.expand(count, -1)
            added = self._added(x_t, times, condition["hint"], text, pooled) if self.led else None
            output = self.transformer(
                seen.to(dtype),
                encoder_hidden_states=text.to(dtype),
                pooled_projections=pooled.to(dtype),
                timestep=times,
                block_controlnet_hidden_states=added,
                return_dict=False,
            )
            outputs.append(output[0].float())
        return self.guided(outputs)

    @classmethod
    def load(cls, origin: Origin, folder: Path | None, *, open_stage: OpenStage) -> Self:
        """Returns the policy of a diffusers folder, or of a repository of the Hub at its revision."""
        config = from_dict(FlowTransformerConfig, dict(origin.architecture))
        if config.controlnet == OWN:  # a policy that is tuned further on needs to know where that was
            config = dataclasses.replace(config, controlnet=str(folder))
        model = open_model_folder(
            origin.repository or str(folder),
            ("transformer", "vae", "scheduler", "text_encoder", "text_encoder_2"),
            pipelines=PIPELINES,
            optional=("controlnet", *(name for name in _TEXTS if config.t5 or not name.endswith("_3"))),
            revision=origin.revision,
            variant=config.variant,
        )
        bases = {"transformer": model, "vae": model}
        if config.controlnet:
            bases["controlnet"] = open_model_folder(
                config.controlnet, ["controlnet"], pipelines=PIPELINES, variant=config.variant
            )
        elif model.has("controlnet"):
            bases["controlnet"] = model
        parts = {name: load_part(holder_of(name, base, folder), name, _CLASSES[name]) for name, base in bases.items()}
        _require_fit(parts, model)
        return cls(
            config,
            parts,
            schedule=schedule_of(model),
            prompts=joint_prompts(model, config.prompts, parts["transformer"], t5=config.t5),
            starting_picture=open_starting_picture(config.pre_restorer, config.scale, open_stage),
            bases=bases,
        )

    def _added(
        self, x_t: torch.Tensor, times: torch.Tensor, hint: torch.Tensor, text: torch.Tensor, pooled: torch.Tensor
    ) -> list[torch.Tensor]:
        """Returns what the ControlNet adds after the transformer's blocks."""
        dtype = self.controlnet.dtype
        if self.controlnet.config.force_zeros_for_pooled_projection:
            pooled = torch.zeros_like(pooled)
        (added,) = self.controlnet(
            x_t.to(dtype),
            controlnet_cond=hint.to(dtype),
            encoder_hidden_states=text.to(dtype),
            pooled_projections=pooled.to(dtype),
            timestep=times,
            return_dict=False,
        )
        return [each.to(self.transformer.dtype) for each in added]


def _require_fit(parts: Mapping[str, DiffusersPart], model: ModelFolder) -> None:
    """Raises UserError where the parts do not make a restorer."""
    latent, seen = parts["vae"].config.latent_channels, parts["transformer"].config.in_channels
    if "controlnet" not in parts:
        if seen != 2 * latent:
            raise UserError(
                f"the transformer of {model.where} sees {seen} channels and has no controlnet; expected {2 * latent}, x_t "
                "and lq's latent, or a controlnet that sees lq's"
            )
        return
    control = parts["controlnet"]
    if seen != latent or control.config.in_channels != latent:
        raise UserError(
            f"transformer and controlnet see {seen} and {control.config.in_channels} channels; expected {latent} each, "
            f"those of a latent of {model.where}"
        )
    if control.pos_embed is None or control.context_embedder is None:
        raise UserError(
            "this controlnet has no positions or texts of its own (Stable Diffusion 3.5 Large's); name another"
        )
    if control.config.extra_conditioning_channels:
        raise UserError("this controlnet sees more than a picture's latent (an inpainting mask); name another")
