"""A latent-diffusion restorer with few and random weights, in the folder that `convert` writes for DiffBIR's.

Latent cells are 4 px wide; sides of pictures are multiples of 8 px.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

CELL_PX, MULTIPLE = 4, 8
LATENT_CHANNELS, TEXT_CHANNELS, WORDS = 4, 16, 7
_DOWN_PATH = {
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": TEXT_CHANNELS,
    "attention_head_dim": (2, 2),
    "use_linear_projection": True,
}


def save_tiny_latent(
    folder: Path,
    *,
    prediction: str = "epsilon",
    zero_snr: bool = False,
    tokenizer: bool = False,
    pipeline: str = "",
    tiny_vae: bool = False,
    seed: int = 0,
) -> Path:
    """Saves unet, controlnet, vae, text_encoder and scheduler as `rl_finetune.convert` does.

    `tokenizer` and `pipeline`, the class in model_index.json, are what a repository of Stable Diffusion also has.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = {
            "unet": _stirred(UNet2DConditionModel(**_unet())),
            "controlnet": _stirred(_controlnet()),
            "vae": _tiny_vae() if tiny_vae else _stirred(_vae()),
            "text_encoder": CLIPTextModel(_text()),
        }
    for name, part in parts.items():
        part.eval().save_pretrained(folder / name, safe_serialization=True)
    DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction,
        rescale_betas_zero_snr=zero_snr,
        timestep_spacing="trailing" if zero_snr else "leading",
    ).save_pretrained(folder / "scheduler")
    if tokenizer:
        letter_tokenizer().save_pretrained(folder / "tokenizer")
    if pipeline:
        (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline, "_diffusers_version": "0.38.0"}))
    else:
        (folder / "converted.json").write_text(json.dumps({"sha256": {"tiny.ckpt": "0" * 64}}))
    return folder


def save_tiny_pre_restorer(path: Path, *, scale: int = 1, seed: int = 0) -> Path:
    """Saves a network that spandrel knows (Real-ESRGAN's Compact) and that hardly changes a picture."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        body = {f"body.{i}.weight": 0.02 * torch.randn(c, d, 3, 3) for i, c, d in ((0, 8, 3), (2, 8, 8), (4, 3, 8))}
    tensors = body | {f"body.{i}.bias": torch.zeros(c) for i, c in ((0, 8), (2, 8), (4, 3))}
    tensors |= {f"body.{i}.weight": torch.full((8,), 0.2) for i in (1, 3)}
    if scale != 1:
        tensors["body.4.weight"] = 0.02 * torch.ones(3 * scale**2, 8, 3, 3)
        tensors["body.4.bias"] = torch.zeros(3 * scale**2)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path


def letter_tokenizer() -> CLIPTokenizer:
    """Returns a tokenizer that knows letters, for prompts of `WORDS` tokens."""
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=WORDS, pad_token="!")


def _unet() -> dict:
    return {
        **_DOWN_PATH,
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "sample_size": 8,
    }


def _controlnet() -> ControlNetModel:
    ends = {"conditioning_channels": 3, "conditioning_embedding_out_channels": (16,)}
    model = ControlNetModel(**_DOWN_PATH, **ends, in_channels=2 * LATENT_CHANNELS)
    for parameter in model.controlnet_cond_embedding.parameters():  # the hint is no picture: it adds 0
        nn.init.zeros_(parameter)
    return model


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        latent_channels=LATENT_CHANNELS,
        scaling_factor=0.18215,
        sample_size=32,
    )


def _tiny_vae() -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
        latent_channels=LATENT_CHANNELS,
    )


def _text() -> CLIPTextConfig:
    vocabulary = 2 * len(ByteLevel.alphabet()) + 2
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=TEXT_CHANNELS,
        intermediate_size=2 * TEXT_CHANNELS,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=WORDS,
        hidden_act="gelu",
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=0,
    )


def _stirred(model: nn.Module) -> nn.Module:
    """Returns the model with no weight left at 0 or 1, so that nothing is without effect; a hint's embedding stays 0."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "controlnet_cond_embedding" in name:
                continue
            if "controlnet_" in name and parameter.ndim > 1:
                parameter.copy_(0.2 * torch.randn_like(parameter))
            elif parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model
