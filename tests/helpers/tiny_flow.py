"""A Stable Diffusion 3 with few and random weights, as a folder that `from_pretrained` reads, with a ControlNet or without."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3ControlNetModel,
    SD3Transformer2DModel,
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3Pipeline,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from tests.helpers.tiny_latent import letter_tokenizer

LATENT_CHANNELS, CELL_PX, MULTIPLE = 4, 4, 8
_TRANSFORMER = {
    "sample_size": 8,
    "patch_size": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 24,
    "caption_projection_dim": 16,
    "pooled_projection_dim": 16,
    "pos_embed_max_size": 16,
}


def save_tiny_flow(folder: Path, *, controlnet: bool, shift: float = 3.0, shifted: bool = False) -> Path:
    """Saves the pipeline; `shifted`: the ControlNet sees latents shifted as the transformer's, and the pooled text."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = {
            "transformer": _stirred(
                SD3Transformer2DModel(
                    **_TRANSFORMER,
                    num_layers=2,
                    in_channels=LATENT_CHANNELS * (1 if controlnet else 2),
                    out_channels=LATENT_CHANNELS,
                )
            ),
            "vae": AutoencoderKL(
                block_out_channels=(8, 8, 8),
                down_block_types=("DownEncoderBlock2D",) * 3,
                up_block_types=("UpDecoderBlock2D",) * 3,
                norm_num_groups=4,
                latent_channels=LATENT_CHANNELS,
                scaling_factor=1.5305,
                shift_factor=0.0609,
                use_quant_conv=False,
                use_post_quant_conv=False,
            ),
            "text_encoder": CLIPTextModelWithProjection(_text()),
            "text_encoder_2": CLIPTextModelWithProjection(_text()),
        }
        if controlnet:
            parts["controlnet"] = _stirred(
                SD3ControlNetModel(
                    **_TRANSFORMER,
                    num_layers=1,
                    in_channels=LATENT_CHANNELS,
                    out_channels=LATENT_CHANNELS,
                    force_zeros_for_pooled_projection=not shifted,
                )
            )
    kind = StableDiffusion3ControlNetPipeline if controlnet else StableDiffusion3Pipeline
    kind(
        **{name: part.eval() for name, part in parts.items()},
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        tokenizer=letter_tokenizer(),
        tokenizer_2=letter_tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    ).save_pretrained(folder)
    return folder


def _text() -> CLIPTextConfig:
    vocabulary = len(letter_tokenizer())
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=12,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=7,
        projection_dim=8,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=0,
    )


def _stirred(model: nn.Module) -> nn.Module:
    """Returns the model with no weight left at 0, so that nothing is without effect."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model
