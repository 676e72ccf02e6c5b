"""The smallest true CLIP, with random weights and a tokenizer that knows letters, as a folder or repository."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPConfig, CLIPModel, CLIPTokenizerFast


def save_tiny_clip(folder: Path) -> Path:
    """Saves the network and its tokenizer."""
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    shared = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    text = {**shared, **special, "vocab_size": len(words), "max_position_embeddings": 77}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vision = {**shared, "image_size": 32, "patch_size": 8}
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    CLIPTokenizerFast(vocab={word: i for i, word in enumerate(words)}, merges=[]).save_pretrained(folder)
    return folder
