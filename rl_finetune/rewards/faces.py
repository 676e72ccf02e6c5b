"""Rewards for faces: human preference, and whether a face stays the person it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from rl_finetune.rewards.face_network import MobileFaceNet
from rl_finetune.rewards.registry import ToolSettings, reward, tool
from shared.app.errors import UserError
from shared.vision.clip import ClipSimilarity, load_clip_similarity

# Eyes, nose, corners of the mouth (x, y): of FFHQ's crops at 512 px, and of recognisers' crops at 112×112 px.
_FFHQ_512 = ((192.98, 239.95), (318.90, 240.19), (256.63, 314.01), (201.26, 371.41), (313.08, 371.15))
_RECOGNISER_112 = ((38.29, 51.70), (73.53, 51.50), (56.03, 71.74), (41.55, 92.37), (70.73, 92.20))


@reward("face_preference", value_range=(-1.0, 1.0), needs=("face_preference_network",), substitute="fgr_worst_spot")
def face_preference(
    sr: torch.Tensor, gt: torch.Tensor, lq: torch.Tensor, *, face_preference_network: ClipSimilarity
) -> torch.Tensor:
    """Returns the cosine similarity of picture and prompt by a CLIP ViT-H tuned on human preferences, [B] (LRPO, HPSv2)."""
    return face_preference_network(sr)[:, 0]


@reward("identity", value_range=(-1.0, 1.0), needs=("identity_network",))
def identity(
    sr: torch.Tensor, gt: torch.Tensor, lq: torch.Tensor, *, identity_network: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Returns the cosine similarity of a face recogniser's embeddings of sr and gt, [B]. Faces must be FFHQ-aligned."""
    with torch.no_grad():
        truth = identity_network(gt)
    return F.cosine_similarity(identity_network(sr), truth)


def load_identity(name: str, *, device: torch.device, allow_download: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    """Returns embeddings(images) [B, D], unit length, of a recogniser by name; differentiable.

    `name`: hf_hub:… for a timm recogniser of 112×112 px, or a file with MobileFaceNet's weights (112×96 px).
    Raises UserError when there is no such thing.
    """
    if name.startswith("hf_hub:"):
        network, width = _timm_recogniser(name, allow_download=allow_download), 112
    elif name and Path(name).is_file():
        network, width = MobileFaceNet.load(name), 96
    else:
        raise UserError(
            "identity needs a face recogniser: expected hf_hub:… or a file with MobileFaceNet's weights as "
            f"identity_model or identity_weights, got {name!r}"
        )
    network = network.to(device).eval().requires_grad_(False)

    def embed(images: torch.Tensor) -> torch.Tensor:
        return F.normalize(network(crop_face(images, width=width) * 2.0 - 1.0), dim=1)

    return embed


def crop_face(images: torch.Tensor, *, width: int) -> torch.Tensor:
    """Returns [B, 3, 112, width], the recogniser's crop of FFHQ-aligned pictures of any square-ish size."""
    to_picture = _similarity(np.array(_RECOGNISER_112), np.array(_FFHQ_512))  # 2×3, pixels of 112×112 → of 512
    x = torch.arange(width) + 0.5 + (112 - width) / 2
    y = torch.arange(112) + 0.5
    corners = torch.stack([*torch.meshgrid(y, x, indexing="ij")[::-1], torch.ones(112, width)], dim=-1)
    grid = (corners @ torch.from_numpy(to_picture.T).float()) / 256.0 - 1.0
    grid = grid.to(images).expand(images.shape[0], -1, -1, -1)
    # Shrinking by more than 2 would skip pixels; averaging them first is what a camera does.
    shrink = max(1, int(min(images.shape[-2:]) / 512 * np.hypot(*to_picture[0, :2])))
    if shrink > 1:
        images = F.interpolate(images, [length // shrink for length in images.shape[-2:]], mode="area")
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Returns the 2×3 rotation, scale and shift that take `source` [n, 2] nearest to `target` in least squares."""
    from skimage.transform import SimilarityTransform  # slow to import, and only identity needs it

    return SimilarityTransform.from_estimate(source, target).params[:2]


def _timm_recogniser(name: str, *, allow_download: bool) -> torch.nn.Module:
    import timm  # slow to import, and only this path needs it
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository = name.removeprefix("hf_hub:")
    try:
        folder = snapshot_download(repository, local_files_only=not allow_download)
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        raise UserError(
            f"expected the face recogniser {repository} in the Hub's cache{' or the Hub' if allow_download else ''}, "
            f"but it could not be had ({type(error).__name__}); allow the download or name another"
        ) from None
    return timm.create_model(f"local-dir:{folder}", pretrained=True)


@tool("face_preference_network")
def _load_face_preference(settings: ToolSettings, device: torch.device) -> ClipSimilarity:
    return load_clip_similarity(
        settings.face_preference_model,
        (settings.face_preference_prompt,),
        device=device,
        allow_download=settings.allow_download,
    )


@tool("identity_network")
def _load_identity_network(settings: ToolSettings, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    return load_identity(settings.identity_model, device=device, allow_download=settings.allow_download)
