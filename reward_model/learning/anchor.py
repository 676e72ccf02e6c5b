"""The anchor S_base: a frozen global quality that keeps the scores of clean pictures in place. RM_0's own score, or
CLIP-IQA by name."""

from __future__ import annotations

from collections.abc import Callable

import torch

from reward_model.network.model import RewardModel
from shared.app.errors import UserError
from shared.vision.clip import QUALITY_PROMPTS, clip_iqa, load_clip_similarity

EMBEDDED = "embedded"
_CLIP_IQA = "clip_iqa"

Anchor = Callable[[torch.Tensor], torch.Tensor]  # [B, 3, H, W] in [0, 1] → [B]


def open_anchor(name: str, *, first_stage: RewardModel | None, device: torch.device) -> Anchor:
    """Returns S_base by name: `embedded` (the frozen RM_0) or `clip_iqa:<CLIP on the Hub or in a folder>`.

    Raises UserError for an unknown name, and for a model that is not installed or cannot be fetched.
    """
    if name == EMBEDDED:
        if first_stage is None:
            raise UserError("anchor=embedded is RM_0's own score: give stage 0 some iterations, or name clip_iqa")
        frozen = first_stage.eval().requires_grad_(False).to(device)
        return lambda images: frozen(images).score
    kind, _, model = name.partition(":")
    if kind == _CLIP_IQA:
        return _clip_iqa(model or "openai/clip-vit-base-patch16", device)
    raise UserError(f"expected anchor to be {EMBEDDED} or {_CLIP_IQA}:<model>, got {name!r}")


def _clip_iqa(model: str, device: torch.device) -> Anchor:
    similarity = load_clip_similarity(model, QUALITY_PROMPTS, device=device, instead=f"anchor={EMBEDDED}")

    @torch.no_grad()
    def score(images: torch.Tensor) -> torch.Tensor:
        return clip_iqa(similarity(images)).float()

    return score
