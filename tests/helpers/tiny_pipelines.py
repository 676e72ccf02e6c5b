"""The smallest true diffusers upscalers, with random weights, as folders that `from_pretrained` reads."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    LDMSuperResolutionPipeline,
    StableDiffusionUpscalePipeline,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

DOWN_UP = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
ENCODER = {
    "block_out_channels": (8, 8, 8),  # three levels: the decoder enlarges ×4
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "norm_num_groups": 4,
    "latent_channels": 3,
}


def save_latent_diffusion(folder: Path) -> Path:
    """Saves a tiny LDMSuperResolutionPipeline."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DModel(in_channels=6, out_channels=3, block_out_channels=(8, 16), norm_num_groups=4, **DOWN_UP)
        vqvae = VQModel(num_vq_embeddings=16, **ENCODER)
    LDMSuperResolutionPipeline(vqvae=vqvae, unet=unet, scheduler=DDIMScheduler()).save_pretrained(folder)
    return folder


def save_stable_diffusion(folder: Path) -> Path:
    """Saves a tiny StableDiffusionUpscalePipeline, its text encoder and a tokenizer that knows letters included."""
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=16)
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
        pad_token_id=len(words) - 1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = StableDiffusionUpscalePipeline(
            vae=AutoencoderKL(scaling_factor=0.08333, **ENCODER),
            text_encoder=CLIPTextModel(text),
            tokenizer=tokenizer,
            unet=UNet2DConditionModel(
                in_channels=6,
                out_channels=3,
                block_out_channels=(8, 16),
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                norm_num_groups=4,
                cross_attention_dim=16,
                attention_head_dim=2,
                num_class_embeds=1000,  # of the noise added to lq
            ),
            low_res_scheduler=DDPMScheduler(),
            scheduler=DDIMScheduler(),
            max_noise_level=350,
        )
    pipeline.save_pretrained(folder)
    return folder
