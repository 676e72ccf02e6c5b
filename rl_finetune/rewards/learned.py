"""Rewards that a network gives: the reward model's score, map and features, CLIP-IQA, and pyiqa's metrics by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from reward_model.network.encoder import normalisation, require_registered
from reward_model.network.encoder_file import open_encoder
from reward_model.network.model import RewardOutput
from reward_model.network.score_head import WORST_SHARE, worst_mean
from rl_finetune.rewards.registry import PYIQA, ToolSettings, reward, reward_map, tool
from shared.app.errors import UserError
from shared.vision.clip import QUALITY_PROMPTS, ClipSimilarity, clip_iqa, load_clip_similarity
from shared.vision.images import pad_to_multiple

ANY = (-math.inf, math.inf)
# Pixels down and right. An encoder sees blocks of pixels: what a pattern of their period hides in one alignment, another
# shows.
_ALIGNMENTS = ((0, 0), (1, 3))
_LEVELS = 4  # of a published encoder, each at half the side of the one before


class JudgedOnce:
    """A reward model that answers for the same pictures from memory: score and map cost one pass. One per batch."""

    def __init__(self, model: Callable[..., RewardOutput]) -> None:
        self.model, self.takes_lq = model, getattr(model, "takes_lq", False)
        self._images: torch.Tensor | None = None
        self._answer: RewardOutput | None = None

    def __call__(self, images: torch.Tensor, lq: torch.Tensor | None = None) -> RewardOutput:
        if self._images is not images:
            self._images = images
            self._answer = self.model(images) if lq is None else self.model(images, lq)
        return self._answer

    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Returns the encoder's features of the pictures; see RewardModel."""
        return self.model.features(images)


def judge_pictures(reward_model: Callable[..., RewardOutput], sr: torch.Tensor, lq: torch.Tensor) -> RewardOutput:
    """Returns the reward model's answer for sr beside its lq, which a model that takes none is not given."""
    return reward_model(sr, lq) if getattr(reward_model, "takes_lq", False) else reward_model(sr)


@reward("fgr_score", value_range=ANY, needs=("reward_model",))
def fgr_score(
    sr: torch.Tensor, gt: torch.Tensor, lq: torch.Tensor, *, reward_model: Callable[..., RewardOutput]
) -> torch.Tensor:
    """Returns the reward model's score, [B]; on its own scale. S̄_global of CCL (arXiv 2512.22647)."""
    return judge_pictures(reward_model, sr, lq).score


@reward("fgr_worst_spot", value_range=(0.0, 1.0), needs=("reward_model",), needs_map=True)
def fgr_worst_spot(
    sr: torch.Tensor, gt: torch.Tensor, lq: torch.Tensor, *, reward_model: Callable[..., RewardOutput]
) -> torch.Tensor:
    """Returns 1 − the mean of the worst 1 % of the reward model's map, [B]. 1 − max̂(M) of CCL (arXiv 2512.22647)."""
    return 1.0 - worst_mean(judge_pictures(reward_model, sr, lq).require_map(), WORST_SHARE)


@reward_map("fgr_map", needs=("reward_model",), needs_map=True)
def fgr_map(
    sr: torch.Tensor, gt: torch.Tensor, lq: torch.Tensor, *, reward_model: Callable[..., RewardOutput]
) -> torch.Tensor:
    """Returns the reward model's degradation map, [B, 1, H, W]."""
    return judge_pictures(reward_model, sr, lq).require_map()


@reward("fgr_features", value_range=(-1.0, 1.0), needs=("reward_model",))
def fgr_features(
    sr: torch.Tensor, gt: torch.Tensor, lq: torch.Tensor, *, reward_model: Callable[..., RewardOutput]
) -> torch.Tensor:
    """Returns the mean of `feature_agreement`, [B]: 1 at the truth.

    The reward model's score can be raised by pictures that its last layers misjudge. Its features are held against the
    truth's instead (as LPIPS, arXiv 1801.03924, eq. 1, with the network that learnt to see a restorer's artifacts). The
    known cheats lower it; a policy under its own gradient still drifts to grain (docs/decisions.md, section 4).
    """
    return _mean_agreement(reward_model, sr, gt)


@reward_map("fgr_feature_error", needs=("reward_model",))
def fgr_feature_error(
    sr: torch.Tensor, gt: torch.Tensor, lq: torch.Tensor, *, reward_model: Callable[..., RewardOutput]
) -> torch.Tensor:
    """Returns (1 − `feature_agreement`) / 2, each level enlarged to the picture, [B, 1, H, W] in [0, 1]."""
    size = sr.shape[-2:]
    levels = feature_agreement(reward_model, sr, gt, alignments=_ALIGNMENTS[:1])
    enlarged = [F.interpolate(cosine, size, mode="bilinear", align_corners=False) for cosine in levels]
    return (0.5 - 0.5 * torch.stack(enlarged).mean(0)).clamp(0.0, 1.0)


@reward("encoder_features", value_range=(-1.0, 1.0), needs=("feature_encoder",))
def encoder_features(
    sr: torch.Tensor, gt: torch.Tensor, lq: torch.Tensor, *, feature_encoder: PublishedFeatures
) -> torch.Tensor:
    """Returns the mean of `feature_agreement` under a published encoder, [B]: 1 at the truth."""
    return _mean_agreement(feature_encoder, sr, gt)


class PublishedFeatures:
    """The first levels of a published encoder, down to a sixteenth of the picture: what textures and edges look like there."""

    def __init__(self, encoder: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        device = next(encoder.parameters()).device
        self.encoder = encoder.eval().requires_grad_(False)
        self.mean, self.std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (mean, std))

    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Returns the features of pictures [B, 3, H, W] in [0, 1], finest level first; sides are padded to its stride."""
        found = self.encoder((pad_to_multiple(images, 2**_LEVELS) - self.mean) / self.std)[1:]
        return [level for level in found if level.shape[1]]  # smp puts an empty one where a network begins at a quarter


def feature_agreement(
    network: Any, sr: torch.Tensor, gt: torch.Tensor, *, alignments: Sequence[tuple[int, int]] = _ALIGNMENTS
) -> list[torch.Tensor]:
    """Returns the cosine between a network's features of sr and gt, [B, 1, h, w] in [−1, 1] for each level.

    sr, gt: [B, 3, H, W] in [0, 1]; differentiable in sr. One entry for each level and alignment, finest level first.
    """
    cosines = []
    for shift in alignments:
        seen = network.features(torch.roll(sr, shift, dims=(2, 3)))
        with torch.no_grad():
            wanted = network.features(torch.roll(gt, shift, dims=(2, 3)))
        cosines += [F.cosine_similarity(a, b, dim=1, eps=1e-6)[:, None] for a, b in zip(seen, wanted, strict=True)]
    return cosines


def _mean_agreement(network: Any, sr: torch.Tensor, gt: torch.Tensor) -> torch.Tensor:
    """Returns the mean over places, then over levels and alignments, [B]."""
    return torch.stack([cosine.mean((1, 2, 3)) for cosine in feature_agreement(network, sr, gt)]).mean(0)


@reward("clipiqa", value_range=(0.0, 1.0), needs=("clipiqa_network",), substitute="fgr_score")
def clipiqa(
    sr: torch.Tensor, gt: torch.Tensor, lq: torch.Tensor, *, clipiqa_network: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Returns the probability that CLIP calls the picture good rather than bad, [B] (CLIP-IQA, arXiv 2207.12396, eq. 2)."""
    return clip_iqa(clipiqa_network(sr))


@reward(PYIQA, value_range=ANY)
def pyiqa_metric(sr: torch.Tensor, gt: torch.Tensor, lq: torch.Tensor, *, metric: Any) -> torch.Tensor:
    """Returns a pyiqa metric's value, [B], with the sign turned where lower is better."""
    value = metric(sr, gt) if metric.metric_mode == "FR" else metric(sr)
    return -value.reshape(-1) if metric.lower_better else value.reshape(-1)


@tool("feature_encoder")
def _load_feature_encoder(settings: ToolSettings, device: torch.device) -> PublishedFeatures:
    name, file = settings.feature_encoder, settings.feature_weights
    require_registered(name)
    if not file and not settings.allow_download:
        raise UserError(
            f"the reward encoder_features needs the weights of {name}: name their safetensors file in "
            "reward.tools.feature_weights, or set reward.tools.allow_download=true"
        )
    published = True if name.startswith("tu-") else "imagenet"
    encoder = open_encoder(name, depth=_LEVELS, weights=published, file=file)
    return PublishedFeatures(encoder.to(device), *normalisation(name, pretrained=True))


@tool("clipiqa_network")
def _load_clipiqa(settings: ToolSettings, device: torch.device) -> ClipSimilarity:
    return load_clip_similarity(
        settings.clipiqa_model, QUALITY_PROMPTS, device=device, allow_download=settings.allow_download
    )


@tool(PYIQA)
def _load_pyiqa(settings: ToolSettings, device: torch.device) -> Callable[[str], Any]:
    try:
        import pyiqa  # optional: its licence forbids commercial use
    except ImportError:
        raise UserError(
            "rewards named pyiqa:… need the package pyiqa (licence: PolyForm Noncommercial); install it, or choose "
            "another reward"
        ) from None

    def load(name: str) -> Any:
        metric = name.removeprefix(PYIQA)
        if metric not in pyiqa.list_models():
            raise UserError(f"pyiqa has no metric called {metric!r}; pyiqa.list_models() names them")
        return pyiqa.create_metric(metric, device=device)

    return load
