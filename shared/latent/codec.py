"""Between pictures in [0, 1] and the latents of an autoencoder: float32 whatever the rest runs in, a few samples at a time."""

from __future__ import annotations

import torch
from torch.utils.checkpoint import checkpoint

from shared.latent.model_folder import DiffusersPart


def cell_px_of(vae: DiffusersPart) -> int:
    """Returns the side of a latent cell in pixels."""
    config = vae.config
    widths = config.encoder_block_out_channels if "encoder_block_out_channels" in config else config.block_out_channels
    return 2 ** (len(widths) - 1)


@torch.no_grad()
def to_latents(vae: DiffusersPart, pictures: torch.Tensor, *, samples_at_once: int = 4) -> torch.Tensor:
    """Returns the latents [B, C, h, w], scaled as diffusion sees them, of pictures [B, 3, H, W] in [0, 1].

    It is the mean of the autoencoder's distribution, nothing is drawn.
    """
    return torch.cat([_encoded(vae, part) for part in pictures.split(samples_at_once)])


def to_pictures(
    vae: DiffusersPart, latents: torch.Tensor, *, samples_at_once: int = 4, recompute: bool = False
) -> torch.Tensor:
    """Returns pictures [B, 3, H, W], near [0, 1] and not clamped, of scaled latents [B, C, h, w]; differentiable in them.

    With `recompute` the decoder runs again in the backward pass: memory for `samples_at_once` samples' activations.
    """
    decode = _decoded
    if recompute and torch.is_grad_enabled():
        return torch.cat([checkpoint(decode, vae, x, use_reentrant=False) for x in latents.split(samples_at_once)])
    return torch.cat([decode(vae, part) for part in latents.split(samples_at_once)])


def _encoded(vae: DiffusersPart, pictures: torch.Tensor) -> torch.Tensor:
    with torch.autocast(pictures.device.type, enabled=False):
        encoded = vae.encode(pictures.float() * 2.0 - 1.0)
        found = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        return (found - shift_of(vae)) * _scaling(vae)


def _decoded(vae: DiffusersPart, latents: torch.Tensor) -> torch.Tensor:
    with torch.autocast(latents.device.type, enabled=False):
        return vae.decode(latents.float() / _scaling(vae) + shift_of(vae)).sample / 2.0 + 0.5


def _scaling(vae: DiffusersPart) -> float:
    # Latent diffusion's own upscaler takes the latents of its VQModel as they are, whatever that one's config says.
    return 1.0 if "num_vq_embeddings" in vae.config else vae.config.scaling_factor


def shift_of(vae: DiffusersPart) -> float:
    """Returns what is taken from an autoencoder's latents before they are scaled; 0 for most."""
    return vae.config.get("shift_factor") or 0.0
