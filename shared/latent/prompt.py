"""What the networks of Stable Diffusion see of a text: encoded once, after which the text encoder is not needed again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from shared.app.errors import UserError
from shared.latent.model_folder import ModelFolder, load_text_encoder


@torch.no_grad()
def encoded_prompts(folder: ModelFolder, prompts: Sequence[str]) -> torch.Tensor:
    """Returns the text encoder's last state for each prompt, [N, tokens, channels] float32, padded as Stable Diffusion does.

    An empty prompt needs no tokenizer: it is the tokens of beginning, end and padding, which the encoder's config names.
    Raises UserError for other prompts where the folder has no tokenizer.
    """
    encoder = load_text_encoder(folder)
    tokens = _tokens(folder, prompts, encoder.config)
    state = encoder(tokens)
    return state.last_hidden_state.float()


def _tokens(folder: ModelFolder, prompts: Sequence[str], config: Any) -> torch.Tensor:
    length = config.max_position_embeddings
    if folder.has("tokenizer"):
        from transformers import CLIPTokenizer

        try:
            tokenizer = CLIPTokenizer.from_pretrained(folder.path / "tokenizer", local_files_only=True)
        except Exception as error:  # transformers raises many kinds
            reason = " ".join(str(error).split())[:160]
            raise UserError(f"the tokenizer of {folder.where} does not load ({reason}); fetch it again") from None
        found = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return found.input_ids
    if any(prompts):
        raise UserError(f"{folder.where} has no tokenizer, so that it reads no prompt; leave prompts empty, or add one")
    if (
        config.eos_token_id != config.vocab_size - 1
    ):  # CLIP's last two; published configs carry others that no tokenizer uses
        raise UserError(
            f"{folder.where} has no tokenizer, and its text encoder's config does not name CLIP's tokens; add one"
        )
    empty = [config.bos_token_id, config.eos_token_id, *[config.pad_token_id] * (length - 2)]
    return torch.tensor([empty] * len(prompts))
