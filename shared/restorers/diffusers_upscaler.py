"""Published diffusion upscalers as restorers: a diffusers pipeline from the Hub or from a folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler

from shared.app.errors import UserError
from shared.hub import fetch_snapshot
from shared.hub_names import HubName
from shared.restorers.protocol import PIPELINE_INDEX, RestorerSettings
from shared.vision.images import pad_to_multiple

LATENT_DIFFUSION, STABLE_DIFFUSION = "LDMSuperResolutionPipeline", "StableDiffusionUpscalePipeline"
DEFAULT_STEPS = 50


class DiffusersUpscaler:
    """A diffusers upscaling pipeline as a Restorer: half precision on a GPU, each picture's noise from its own seed."""

    def __init__(self, pipeline: Any, settings: RestorerSettings) -> None:
        self.pipeline = pipeline
        self.steps, self.eta = settings.steps or DEFAULT_STEPS, settings.eta or 0.0
        self.text: dict[str, Any] = {}
        if hasattr(pipeline, "text_encoder"):
            self.text = {"prompt": settings.prompt, "guidance_scale": settings.guidance}
        elif settings.prompt:
            raise UserError(f"a {type(pipeline).__name__} takes no prompt, got {settings.prompt!r}; leave it out")
        decoder = pipeline.vae if self.text else pipeline.vqvae
        # Latents have lq's own size; the decoder does the enlarging.
        self.scale = 2 ** (len(decoder.config.block_out_channels) - 1)
        self.multiple = max(self.scale, 2 ** (len(pipeline.unet.config.block_out_channels) - 1))
        if not self.text:
            # Its pipeline hands the scheduler no generator: whatever it came with would draw from the global one.
            # Its own default clips at ±1, which latents pass; only a config that asks for it gets that.
            own = pipeline.scheduler.config
            pipeline.scheduler = DDIMScheduler.from_config(own, clip_sample=own.get("clip_sample", False))
            self._step = pipeline.scheduler.step
        pipeline.set_progress_bar_config(disable=True)

    def to(self, device: torch.device | str) -> DiffusersUpscaler:
        """Moves the pipeline, in half precision to a GPU and in full to anything else."""
        dtype = torch.float16 if torch.device(device).type == "cuda" else torch.float32
        self.pipeline.to(device)
        if self.pipeline.dtype != dtype:
            self.pipeline.to(dtype)
        return self

    @torch.no_grad()
    def restore(self, lq: torch.Tensor, *, sample_seeds: Sequence[int]) -> torch.Tensor:
        """Returns sr [B, 3, scale·h, scale·w] in [0, 1], any h and w. Raises UserError when the network overflows."""
        height, width = (side * self.scale for side in lq.shape[-2:])
        # One at a time: these networks fill a device with one picture, and no picture can depend on its batch.
        padded = pad_to_multiple(lq, self.multiple)
        pictures = [self._restore_one(one[None], int(seed)) for one, seed in zip(padded, sample_seeds, strict=True)]
        sr = torch.cat(pictures)[..., :height, :width].float()
        if not torch.isfinite(sr).all():
            raise UserError(f"a {type(self.pipeline).__name__} gave values that are not finite; use another precision")
        return sr.clamp(0, 1)

    def _restore_one(self, lq: torch.Tensor, seed: int) -> torch.Tensor:
        # A generator on the CPU draws the same noise for every device.
        generator = torch.Generator().manual_seed(seed)
        settings = {"num_inference_steps": self.steps, "eta": self.eta, "generator": generator, "output_type": "pt"}
        if self.text:
            return self.pipeline(image=lq, **self.text, **settings).images
        self.pipeline.scheduler.step = partial(self._step, generator=generator)
        return self.pipeline(lq * 2 - 1, **settings).images


def upscaler_folder(where: str, *, revision: str | None, variant: str | None = None) -> Path:
    """Returns the local folder of `hf:owner/name` at a revision, fetched or from the cache, or a local one as it is.

    Raises UserError when it cannot be had, and before anything large is fetched when it holds no upscaler.
    """
    name = HubName.parse(where, revision=revision)
    if name is None:
        _require_upscaler(Path(where), where)
        return Path(where)
    repo, revision = name.repo, name.revision
    _require_upscaler(fetch_snapshot(repo, revision=revision, patterns=[PIPELINE_INDEX]), where)
    # Configs, vocabularies and one set of weights; repositories also hold copies in other precisions and formats.
    middle = f".{variant}" if variant else ""
    weights = [f"*/{stem}{middle}" for stem in ("model", "diffusion_pytorch_model")]
    parts = [f"{stem}{ending}.safetensors" for stem in weights for ending in ("", "-?????-of-?????")]
    return fetch_snapshot(repo, revision=revision, patterns=[PIPELINE_INDEX, "*/*.json", "*/*.txt", *parts])


def load_upscaler(where: str, settings: RestorerSettings) -> DiffusersUpscaler:
    """Returns the upscaler in a folder or in `hf:owner/name`. Raises UserError when it is none or does not load."""
    import diffusers  # its pipelines take seconds to import

    folder = upscaler_folder(where, revision=settings.revision, variant=settings.variant)
    kind = _require_upscaler(folder, where)
    try:
        # Pickled weights could run anything: only safetensors are read.
        pipeline = getattr(diffusers, kind).from_pretrained(
            folder, variant=settings.variant, use_safetensors=True, local_files_only=True
        )
    except ImportError:
        raise UserError(f"{where}: a {kind} needs transformers: pip install 'restore-rl[clip]'") from None
    except Exception as error:  # each part has its own reader, and each reader its own exceptions
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{where} does not load ({reason[:200]}); expected safetensors weights for every part, with variant=fp16 "
            "where they are in half precision only"
        ) from None
    return DiffusersUpscaler(pipeline, settings)


def _require_upscaler(folder: Path, where: str) -> str:
    """Returns the name of the pipeline in the folder. Raises UserError unless it is one that enlarges pictures."""
    try:
        kind = json.loads((folder / PIPELINE_INDEX).read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{where} holds no diffusers pipeline: its {PIPELINE_INDEX} is missing or damaged") from None
    if kind not in (STABLE_DIFFUSION, LATENT_DIFFUSION):
        raise UserError(f"{where} is a {kind}, no upscaler; expected a {STABLE_DIFFUSION} or {LATENT_DIFFUSION}")
    return kind
