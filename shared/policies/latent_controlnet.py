"""Stable Diffusion with a ControlNet that sees the latent of a pre-restored picture: DiffBIR's IRControlNet, and LRPO's.

The picture of the first stage is encoded; its latent and x_t, side by side, are what the ControlNet sees (arXiv 2308.15070,
section 3.3). U-Net and autoencoder are Stable Diffusion's own.
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
from shared.latent.codec import to_latents
from shared.latent.model_folder import PRE_RESTORER_FILE, DiffusersPart, ModelFolder, load_part, open_model_folder
from shared.latent.prompt import encoded_prompts
from shared.latent.saved_parts import holder_of
from shared.latent.starting_picture import StartingPicture, open_starting_picture
from shared.latent.unet_halves import first_half, first_half_is_frozen, require_plain, second_half
from shared.policies.interface import Condition, OpenStage, Origin
from shared.policies.latent_policy import LatentConfig, LatentPolicy, schedule_of
from shared.restorers.pre_restorer import NONE, OWN

PIPELINES = ("StableDiffusionPipeline", "StableDiffusionControlNetPipeline")
AUTOENCODERS = ("AutoencoderKL", "AutoencoderTiny")
_STABLE_DIFFUSION = ("unet", "vae", "text_encoder", "scheduler")


@dataclass(frozen=True)
class LatentControlNetConfig(LatentConfig):
    """How the networks in a folder serve as a policy."""

    scale: int = 1  # side of sr / side of lq: 4 for sr, 1 for face
    # The first stage: none (bicubic), own (the one beside the ControlNet), a restorer's folder or file; empty: own, if any.
    pre_restorer: str = ""
    # What holds the ControlNet: a folder, hf:owner/name@revision, own (the policy's folder); empty: the model's own.
    controlnet: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(scale=(self.scale, 1, 8))


class LatentControlNet(LatentPolicy):
    """The policy; see DiffusionPolicy for what each method promises."""

    kind = "latent_controlnet"
    # diffusers' embedding of a hint in pixels: DiffBIR has none, and it stays at 0.
    fixed = LatentPolicy.fixed | {"controlnet.controlnet_cond_embedding"}
    config: LatentControlNetConfig
    unet: DiffusersPart
    controlnet: DiffusersPart
    texts: torch.Tensor

    def __init__(
        self,
        config: LatentControlNetConfig,
        parts: Mapping[str, DiffusersPart],
        *,
        schedule: NoiseSchedule,
        texts: torch.Tensor,
        starting_picture: StartingPicture,
        bases: Mapping[str, ModelFolder],
    ) -> None:
        """parts: unet, controlnet, vae; texts: what the U-Net reads, `config.prompts` as [1 or 2, tokens, channels]."""
        super().__init__(config, parts, schedule=schedule, bases=bases)
        self.scale = config.scale
        self.register_buffer("texts", texts, persistent=False)
        self.multiple = max(1, self.cell_px * 2 ** (len(self.unet.config.block_out_channels) - 1) // self.scale)
        self._starting_picture = starting_picture

    @torch.no_grad()
    def condition(self, lq: torch.Tensor) -> Condition:
        """Returns `start`, the first stage's picture [B, 3, H, W], and `hint`, its latent [B, C, h, w]."""
        start = self._starting_picture.restore(lq)
        return {"start": start, "hint": to_latents(self.vae, start, samples_at_once=self.config.pictures_at_once)}

    def frozen(self, x_t: torch.Tensor, timesteps: torch.Tensor, condition: Condition) -> Condition:
        """Returns the outputs of the U-Net's encoder and middle block, or nothing where some of their weights are trained."""
        if not first_half_is_frozen(self.unet):
            return {}
        with torch.no_grad():
            return {
                f"{branch} {name}": tensor
                for branch in range(len(self.texts))
                for name, tensor in self._first_half(x_t, timesteps, branch).items()
            }

    def predict(self, x_t: torch.Tensor, timesteps: torch.Tensor, condition: Condition) -> torch.Tensor:
        """Returns the network's output [B, C, h, w] at x_t and timesteps [B]."""
        outputs = []
        for branch in range(len(self.texts)):
            start = f"{branch} "
            kept = {name.removeprefix(start): t for name, t in condition.items() if name.startswith(start)}
            features = kept or self._first_half(x_t, timesteps, branch)
            outputs.append(self._second_half(features, x_t, timesteps, condition["hint"], branch))
        return self.guided(outputs)

    @classmethod
    def load(cls, origin: Origin, folder: Path | None, *, open_stage: OpenStage) -> Self:
        """Returns the policy of a diffusers folder, or of a repository of the Hub at its revision.

        Without a repository the parts are in the policy's own `folder`.
        """
        config = from_dict(LatentControlNetConfig, dict(origin.architecture))
        if config.controlnet == OWN:  # a policy that is tuned further on needs to know where that was
            config = dataclasses.replace(config, controlnet=str(folder))
        model = open_model_folder(
            origin.repository or str(folder),
            _STABLE_DIFFUSION if config.controlnet else (*_STABLE_DIFFUSION, "controlnet"),
            pipelines=PIPELINES,
            optional=("tokenizer",),
            revision=origin.revision,
            variant=config.variant,
        )
        control = model
        if config.controlnet:
            control = open_model_folder(config.controlnet, ["controlnet"], pipelines=PIPELINES, variant=config.variant)
        bases = {"unet": model, "controlnet": control, "vae": model}
        parts, texts = _fitting_parts(bases, folder), encoded_prompts(model, config.prompts)
        if texts.shape[-1] != parts["unet"].config.cross_attention_dim:
            raise UserError(
                f"the unet of {model.where} reads a text of {parts['unet'].config.cross_attention_dim} channels, but its "
                f"text_encoder writes {texts.shape[-1]}; name a folder whose parts belong together"
            )
        return cls(
            config,
            parts,
            schedule=schedule_of(model),
            texts=texts,
            starting_picture=_starting_picture(config, control, open_stage),
            bases=bases,
        )

    def _first_half(self, x_t: torch.Tensor, timesteps: torch.Tensor, branch: int) -> dict[str, torch.Tensor]:
        return first_half(self.unet, x_t, self.schedule.model_times(timesteps), self._text(x_t, branch))

    def _second_half(
        self, features: Condition, x_t: torch.Tensor, timesteps: torch.Tensor, hint: torch.Tensor, branch: int
    ) -> torch.Tensor:
        text, times, dtype = self._text(x_t, branch), self.schedule.model_times(timesteps), self.controlnet.dtype
        # diffusers' class adds the embedding of a hint in pixels; this one's is 0.
        no_picture = x_t.new_zeros(x_t.shape[0], 3, *x_t.shape[-2:], dtype=dtype)
        seen = torch.cat([x_t, hint], dim=1).to(dtype)
        skips, middle = self.controlnet(seen, times, text.to(dtype), controlnet_cond=no_picture, return_dict=False)
        return second_half(self.unet, features, text, added_to_skips=skips, added_to_middle=middle)

    def _text(self, x_t: torch.Tensor, branch: int) -> torch.Tensor:
        return self.texts[branch].expand(x_t.shape[0], -1, -1)


def _fitting_parts(bases: Mapping[str, ModelFolder], folder: Path | None) -> dict[str, DiffusersPart]:
    """Returns the parts, tuned ones from the policy's own folder. Raises UserError where they do not fit each other."""
    classes = {"unet": ("UNet2DConditionModel",), "controlnet": ("ControlNetModel",), "vae": AUTOENCODERS}
    parts = {name: load_part(holder_of(name, base, folder), name, classes[name]) for name, base in bases.items()}
    require_plain(parts["unet"], where=bases["unet"].where)
    latent, seen = parts["vae"].config.latent_channels, parts["controlnet"].config.in_channels
    if parts["unet"].config.in_channels != latent:
        raise UserError(
            f"the unet of {bases['unet'].where} sees {parts['unet'].config.in_channels} channels, but a latent has "
            f"{latent}; expected a text-to-image model, such as Stable Diffusion 2.1's"
        )
    if seen != 2 * latent:
        raise UserError(
            f"the controlnet of {bases['controlnet'].where} sees {seen} channels; expected {2 * latent}, x_t and the latent "
            "of a pre-restored picture, as DiffBIR's has"
        )
    widths = {name: parts[name].config.cross_attention_dim for name in ("unet", "controlnet")}
    levels = {name: list(parts[name].config.block_out_channels) for name in widths}
    if widths["unet"] != widths["controlnet"] or levels["unet"] != levels["controlnet"]:
        raise UserError(
            f"the controlnet of {bases['controlnet'].where} was made for another unet than that of {bases['unet'].where}: "
            f"channels {levels['controlnet']} beside {levels['unet']}; name the one it was trained with"
        )
    return parts


def _starting_picture(config: LatentControlNetConfig, control: ModelFolder, open_stage: OpenStage) -> StartingPicture:
    own = control.path / PRE_RESTORER_FILE
    where = config.pre_restorer or (OWN if own.is_file() else NONE)
    if where == OWN and not own.is_file():
        raise UserError(f"{control.where} holds no {PRE_RESTORER_FILE}; name a pre_restorer, or none")
    return open_starting_picture(str(own) if where == OWN else where, config.scale, open_stage, name=where)
