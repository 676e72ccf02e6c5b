"""CLIP by name: similarities of pictures to prompts, differentiable, and the quality score made of two of them.

torchmetrics' CLIP-IQA is not used: it fails on transformers 5, cuts the gradient, and passes pictures in [0, 1] to a
processor that divides them by 255 again.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from shared.app.errors import UserError

QUALITY_PROMPTS = ("Good photo.", "Bad photo.")
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class ClipSimilarity:
    """Cosine similarities of pictures [B, 3, H, W] in [0, 1] to fixed prompts, [B, prompts]; differentiable."""

    def __init__(self, model: Any, text_embeddings: torch.Tensor) -> None:
        self.model = model
        self.text = F.normalize(text_embeddings, dim=1)  # [prompts, D]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        side = self.model.config.vision_config.image_size
        scale = side / min(images.shape[-2:])
        size = [round(length * scale) for length in images.shape[-2:]]
        images = F.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        top, left = ((length - side) // 2 for length in images.shape[-2:])
        images = images[:, :, top : top + side, left : left + side]
        mean, std = (images.new_tensor(values).view(1, 3, 1, 1) for values in (_CLIP_MEAN, _CLIP_STD))
        pooled = self.model.vision_model(pixel_values=(images - mean) / std).pooler_output
        return F.normalize(self.model.visual_projection(pooled), dim=1) @ self.text.T


def load_clip_similarity(
    name: str,
    prompts: tuple[str, ...],
    *,
    device: torch.device,
    allow_download: bool = True,
    instead: str = "the reward's embedded substitute",
) -> ClipSimilarity:
    """Returns a CLIP from the Hub or a folder, with its prompts embedded.

    Raises UserError when it cannot be had; `instead` names what does without it.
    """
    try:
        from transformers import CLIPModel, CLIPTokenizerFast  # type: ignore[attr-defined] # an optional extra, and slow to import
    except ImportError:
        raise UserError(f"{name} needs transformers; install the extra with: pip install 'restore-rl[clip]'") from None
    try:
        model = CLIPModel.from_pretrained(name, local_files_only=not allow_download)
        tokenizer = CLIPTokenizerFast.from_pretrained(name, local_files_only=not allow_download)
    except (OSError, ValueError) as error:
        raise UserError(
            f"expected the CLIP network {name} on disk{' or the Hub' if allow_download else ''}, but it did not load "
            f"({str(error).splitlines()[0]}); allow the download, or take {instead}"
        ) from None
    model = torch.nn.Module.to(model, device).eval().requires_grad_(False)
    tokens = tokenizer(list(prompts), padding=True, return_tensors="pt").to(device)
    with torch.no_grad():
        pooled = model.text_model(**tokens).pooler_output
        return ClipSimilarity(model, model.text_projection(pooled))


def clip_iqa(similarity: torch.Tensor) -> torch.Tensor:
    """Returns [B] in [0, 1]: the probability that the picture fits the first prompt and not the second, from
    [B, 2] similarities.

    CLIP-IQA, arXiv 2207.12396, equation 2, with CLIP's own temperature of 1/100.
    """
    return (100.0 * similarity).softmax(1)[:, 0]
