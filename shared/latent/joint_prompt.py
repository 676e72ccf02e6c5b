"""What Stable Diffusion 3's transformer sees of a text: the tokens of two or three encoders, and a pooled vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from shared.app.errors import UserError
from shared.latent.model_folder import ModelFolder, without_bars


@dataclass(frozen=True)
class JointPrompts:
    """N prompts, encoded."""

    tokens: torch.Tensor  # [N, tokens, channels] float32
    pooled: torch.Tensor  # [N, channels] float32


@torch.no_grad()
def joint_prompts(
    folder: ModelFolder, prompts: Sequence[str], transformer: nn.Module, *, t5: bool = True
) -> JointPrompts:
    """Returns prompts as diffusers' own pipeline encodes them; its encoders are dropped afterwards.

    Without `t5`, or where the folder has no third encoder, zeros stand in its place. Raises UserError where they do not load.
    """
    from diffusers import StableDiffusion3Pipeline  # takes seconds to import

    left_out = dict.fromkeys(("vae", "scheduler", "image_encoder", "feature_extractor"))
    if not t5 or not folder.has("text_encoder_3"):
        left_out |= {"text_encoder_3": None, "tokenizer_3": None}
    try:
        # Pickled weights could run anything: only safetensors are read.
        with without_bars():
            pipeline = StableDiffusion3Pipeline.from_pretrained(
                folder.path,
                transformer=transformer,
                **left_out,
                variant=folder.variant or None,
                use_safetensors=True,
                local_files_only=True,
            )
    except ImportError:
        raise UserError(
            f"{folder.where} reads a text, which needs transformers: pip install 'restore-rl[clip]'"
        ) from None
    except Exception as error:  # each part has its own reader, and each reader its own exceptions
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"the text encoders of {folder.where} do not load ({reason}); fetch it again") from None
    encoded = [pipeline.encode_prompt(prompt, prompt, prompt, do_classifier_free_guidance=False) for prompt in prompts]
    return JointPrompts(
        torch.cat([tokens.float() for tokens, *_ in encoded]),
        torch.cat([pooled.float() for _, _, pooled, _ in encoded]),
    )
