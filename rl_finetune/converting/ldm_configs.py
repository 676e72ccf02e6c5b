"""The architecture behind a latent-diffusion checkpoint, read from its tensors' shapes, as diffusers writes it."""

from __future__ import annotations

import re
from typing import Any

import torch

from rl_finetune.converting.ldm_checkpoint import Tensors
from shared.app.errors import UserError

LATENT_SCALE = 0.18215  # of Stable Diffusion's autoencoder: latents are multiplied by it


def unet_config(tensors: Tensors, head_channels: int) -> dict[str, Any]:
    """Returns UNet2DConditionModel's config. Shapes do not tell `head_channels`, an attention head's width."""
    down = _down_path(tensors, head_channels)
    cross = [block.startswith("Cross") for block in down["down_block_types"]]
    return {
        **down,
        "up_block_types": ["CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(cross)],
        "out_channels": tensors["out.2.weight"].shape[0],
        "sample_size": 64,
    }


def controlnet_config(tensors: Tensors, head_channels: int) -> dict[str, Any]:
    """Returns ControlNetModel's config: x_t and the hint's latent enter side by side, as channels of `conv_in`.

    The embedding of a hint in pixels, which diffusers' class always has, is made as small as it can be.
    """
    return {
        **_down_path(tensors, head_channels),
        "conditioning_channels": 3,
        "conditioning_embedding_out_channels": [16],
    }


def vae_config(tensors: Tensors) -> dict[str, Any]:
    """Returns AutoencoderKL's config."""
    levels = _indices(tensors, r"encoder\.down\.(\d+)\.")
    widths = [tensors[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in levels]
    return {
        "in_channels": tensors["encoder.conv_in.weight"].shape[1],
        "out_channels": tensors["decoder.conv_out.weight"].shape[0],
        "down_block_types": ["DownEncoderBlock2D"] * len(levels),
        "up_block_types": ["UpDecoderBlock2D"] * len(levels),
        "block_out_channels": widths,
        "latent_channels": tensors["decoder.conv_in.weight"].shape[1],
        "layers_per_block": len(_indices(tensors, r"encoder\.down\.0\.block\.(\d+)\.")),
        "scaling_factor": LATENT_SCALE,
        "sample_size": 512,
    }


def text_config(tensors: Tensors) -> dict[str, Any]:
    """Returns the config of transformers' CLIPTextModel whose last state is OpenCLIP's after its layer before the last."""
    layers = _indices(tensors, r"transformer\.resblocks\.(\d+)\.")
    vocabulary, width = tensors["token_embedding.weight"].shape
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": tensors["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        "num_hidden_layers": len(layers) - 1,
        "num_attention_heads": max(1, width // 64),  # OpenCLIP's heads are 64 wide
        "max_position_embeddings": tensors["positional_embedding"].shape[0],
        "hidden_act": "gelu",
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": 0,
    }


def _down_path(tensors: Tensors, head_channels: int) -> dict[str, Any]:
    """Returns what UNet and ControlNet share: the levels of the way down."""
    blocks = _indices(tensors, r"input_blocks\.(\d+)\.")
    downs = [block for block in blocks if f"input_blocks.{block}.0.op.weight" in tensors]
    layers = (downs[0] if downs else len(blocks)) - 1
    firsts = [1, *(down + 1 for down in downs)]
    widths = [tensors[f"input_blocks.{first}.0.in_layers.2.weight"].shape[0] for first in firsts]
    attends = [f"input_blocks.{first}.1.proj_in.weight" in tensors for first in firsts]
    if not any(attends):
        raise UserError("expected a UNet with attention to a text, as Stable Diffusion's; this one has none")
    uneven = [width for width in widths if width % head_channels]
    if uneven:
        raise UserError(f"head_channels={head_channels} does not divide the levels' {uneven} channels; name another")
    first = firsts[attends.index(True)]
    return {
        "in_channels": tensors["input_blocks.0.0.weight"].shape[1],
        "down_block_types": ["CrossAttnDownBlock2D" if each else "DownBlock2D" for each in attends],
        "block_out_channels": widths,
        "layers_per_block": layers,
        "cross_attention_dim": tensors[f"input_blocks.{first}.1.transformer_blocks.0.attn2.to_k.weight"].shape[1],
        # diffusers calls the number of heads so.
        "attention_head_dim": [width // head_channels for width in widths],
        "use_linear_projection": tensors[f"input_blocks.{first}.1.proj_in.weight"].ndim == 2,
    }


def _indices(tensors: dict[str, torch.Tensor], pattern: str) -> list[int]:
    return sorted({int(found[1]) for name in tensors if (found := re.match(pattern, name))})
