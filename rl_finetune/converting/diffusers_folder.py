"""Writes the parts of a latent-diffusion checkpoint as a diffusers folder: a sub-folder a part, config and safetensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_controlnet_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors.torch import save
from torch import nn

from rl_finetune.converting.ldm_checkpoint import PREFIXES, Tensors
from rl_finetune.converting.ldm_configs import controlnet_config, text_config, unet_config, vae_config
from shared.app.errors import UserError
from shared.files import write_bytes

PRE_RESTORER_FILE = "pre_restorer.safetensors"
_EMBEDDING = "controlnet_cond_embedding."


def convert_unet(tensors: Tensors, head_channels: int) -> UNet2DConditionModel:
    """Returns the UNet of `model.diffusion_model.`."""
    config = unet_config(tensors, head_channels)
    named = convert_ldm_unet_checkpoint(_prefixed("unet", tensors), config)
    return _filled(UNet2DConditionModel(**config), named, part="unet")


def convert_controlnet(tensors: Tensors, head_channels: int) -> ControlNetModel:
    """Returns the ControlNet of `control_model.`, whose hint is a latent beside x_t: [x_t, hint] are its channels.

    diffusers' class also embeds a hint in pixels and adds it; that embedding adds 0.
    """
    config = controlnet_config(tensors, head_channels)
    if any(name.startswith("input_hint_block.") for name in tensors):
        raise UserError("this ControlNet's hint is a picture, not a latent as DiffBIR's; diffusers reads it by itself")
    model = ControlNetModel(**config)
    embedding = {name: torch.zeros_like(t) for name, t in model.state_dict().items() if name.startswith(_EMBEDDING)}
    named = {n: t for n, t in convert_controlnet_checkpoint(tensors, config).items() if not n.startswith(_EMBEDDING)}
    return _filled(model, named | embedding, part="controlnet")


def convert_vae(tensors: Tensors) -> AutoencoderKL:
    """Returns the autoencoder of `first_stage_model.`."""
    config = vae_config(tensors)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("loss.")}
    return _filled(AutoencoderKL(**config), convert_ldm_vae_checkpoint(tensors, config), part="vae")


def convert_text_encoder(tensors: Tensors) -> nn.Module:
    """Returns the OpenCLIP text encoder of `cond_stage_model.model.` without its last layer, whose output is not used."""
    try:
        from transformers import CLIPTextConfig, CLIPTextModel
    except ImportError:
        raise UserError("the text encoder needs transformers: pip install 'restore-rl[clip]'") from None
    config = text_config(tensors)
    last = f"transformer.resblocks.{config['num_hidden_layers']}."
    model = CLIPTextModel(CLIPTextConfig(**config))
    kept = {name: t for name, t in tensors.items() if not name.startswith((last, "text_projection", "logit_scale"))}
    named = convert_open_clip_checkpoint(model, _prefixed("text_encoder", kept))
    own = set(model.state_dict())
    # From transformers 5 on the names begin after text_model.
    named = {n if n in own else n.removeprefix("text_model."): t for n, t in named.items()}
    return _filled(model, named, part="text_encoder")


def scheduler_of(prediction: str, zero_snr: bool) -> DDIMScheduler:
    """Returns Stable Diffusion's noise schedule, as DiffBIR and LRPO use it."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction,
        rescale_betas_zero_snr=zero_snr,
        timestep_spacing="trailing" if zero_snr else "leading",
    )


def write_parts(folder: Path, parts: dict[str, Tensors], *, head_channels: int, half: bool) -> list[str]:
    """Writes every part into its sub-folder, one after the other, and returns their names."""
    made: dict[str, Callable[[Tensors], Any]] = {
        "unet": lambda tensors: convert_unet(tensors, head_channels),
        "vae": convert_vae,
        "text_encoder": convert_text_encoder,
        "controlnet": lambda tensors: convert_controlnet(tensors, head_channels),
    }
    for part, convert in made.items():
        if part in parts:
            model = convert(parts[part])
            (model.half() if half else model).save_pretrained(folder / part, safe_serialization=True)
            del model  # one part in memory at a time
    if "pre_restorer" in parts:
        tensors = {name: tensor.float().contiguous() for name, tensor in parts["pre_restorer"].items()}
        write_bytes(folder / PRE_RESTORER_FILE, save(tensors))
    return [part for part in (*made, "pre_restorer") if part in parts]


def _prefixed(part: str, tensors: Tensors) -> Tensors:
    return {PREFIXES[part] + name: tensor for name, tensor in tensors.items()}


def _filled(model: nn.Module, named: Tensors, *, part: str) -> nn.Module:
    """Returns the model with these tensors. Raises UserError unless they are its tensors, all and no others."""
    own = {name: tensor.shape for name, tensor in model.state_dict().items() if not name.endswith("position_ids")}
    came = {name: tensor.shape for name, tensor in named.items() if tensor is not None}
    if own != came:
        differing = sorted(name for name in own.keys() | came.keys() if own.get(name) != came.get(name))
        raise UserError(
            f"the {part} is not Stable Diffusion's as DiffBIR uses it: {len(differing)} of {len(own)} tensors differ, "
            f"first {differing[0]}"
        )
    model.load_state_dict({name: tensor.float() for name, tensor in named.items()}, strict=False)
    return model.eval()
