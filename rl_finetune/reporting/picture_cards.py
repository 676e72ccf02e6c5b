"""The report's held-out pictures: each with its input, before, after, truth and maps inside URLs, and its figures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from rl_finetune.evidence.gallery import KINDS, MAPS, gallery_file
from rl_finetune.reporting.run_facts import StageFacts
from shared.vision.metrics import METRICS

SHOWN = ("psnr", "ssim", "lpips_alex", "dists", "gradient_distance")  # under a picture, those that are measured
LARGEST_LOSSLESS_PX = 192  # larger ones are JPEGs, or a page of them would have tens of megabytes


@dataclass(frozen=True)
class PictureCard:
    """One held-out picture."""

    index: int  # in evaluation.json
    layers: dict[str, str]  # kind, one of KINDS and MAPS → data URL
    size: tuple[int, int]  # width, height
    lines: list[str]  # metric: before → after
    gains: dict[str, float]  # measure → gain, so that more is better: what the pictures can be sorted by


def picture_cards(stage: StageFacts) -> list[PictureCard]:
    """Returns the pictures of a finished RL stage, those that lost most first; none of a run of an earlier version."""
    indices = stage.evaluation.get("gallery", {}).get("indices", [])
    return [_card(stage, i) for i in indices if gallery_file(stage.folder, i, "after").is_file()]


def sortable(cards: Sequence[PictureCard]) -> list[str]:
    """Returns the measures that every picture has a gain in."""
    return [name for name in (cards[0].gains if cards else ()) if all(name in card.gains for card in cards)]


def _card(stage: StageFacts, index: int) -> PictureCard:
    with Image.open(gallery_file(stage.folder, index, "after")) as after:
        size = after.size
    layers = {kind: _url(gallery_file(stage.folder, index, kind), size) for kind in KINDS}
    layers |= {name: _overlay_url(path) for name in MAPS if (path := gallery_file(stage.folder, index, name)).is_file()}
    before, after = ({n: v[index] for n, v in stage.evaluation[which].items()} for which in ("before", "after"))
    measured = {name: (before[name], after[name]) for name in before if _is_number(before[name], after[name])}
    lines = [f"{name} {METRICS[name].arrow} {of[0]:.3f} → {of[1]:.3f}" for name in SHOWN if (of := measured.get(name))]
    return PictureCard(index, layers, size, lines, {name: _gain(name, *of) for name, of in measured.items()})


def _gain(name: str, before: float, after: float) -> float:
    if name not in METRICS:  # a reward
        return after - before
    first, second = METRICS[name].goodness([before, after])
    return float(second - first)


def _is_number(*values: float) -> bool:
    return all(value is not None and np.isfinite(value) for value in values)


def _url(path, size: tuple[int, int]) -> str:
    with Image.open(path) as image:
        picture = image.convert("RGB")
    if picture.size != size:  # the input: its own pixels, enlarged
        picture = picture.resize(size, Image.Resampling.NEAREST)
    if max(size) <= LARGEST_LOSSLESS_PX:
        return _encoded(picture, "webp", lossless=True)
    return _encoded(picture, "jpeg", quality=95, subsampling=0)


def _overlay_url(path) -> str:
    """Returns a map as a layer to lay over its picture: transparent where it is 0, through orange to red where it is 1."""
    with Image.open(path) as image:
        of_map = np.asarray(image.convert("L"), dtype=np.float32) / 255.0
    colour = np.stack([np.full_like(of_map, 230.0), 160.0 * (1.0 - of_map), 0.0 * of_map], axis=-1)
    alpha = np.clip(of_map * 1.5, 0.0, 0.8)[..., None] * 255.0
    layer = Image.fromarray(np.concatenate([colour, alpha], axis=-1).astype(np.uint8), "RGBA")
    return _encoded(layer, "webp", quality=80)


def _encoded(image: Image.Image, form: str, **options) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)
    return f"data:image/{form};base64,{base64.b64encode(buffer.getvalue()).decode()}"
