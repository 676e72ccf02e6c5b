"""Runs a reward model over samples and keeps what the metrics need: scores, and counts of map levels by pixel label."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from data.store.dataset_sample import Sample
from reward_model.measuring import detection
from reward_model.measuring.detection import PixelCounts, count_pixels, pointing_hit

MASK_LEVEL = (
    0.5  # of the feathered mask: above it a pixel is a defect, at 0 it is clean; the rim between counts as neither
)
VISIBLE = 0.1  # target level below which a pixel of the mask is no defect, and not clean either: the swap hardly shows


@dataclass(frozen=True)
class Scorer:
    """A reward model, with or without lq, or a baseline."""

    # (pictures, their gt, [B, 3, H, W] each, their lq [B, 3, h, w]) → (score [B], map [B, 1, H, W] or None). Only full
    # references look at gt, and only scorers that read lq are given one.
    function: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], tuple[torch.Tensor, torch.Tensor | None]]
    reads_lq: bool = False  # samples without an lq are left out


@dataclass(frozen=True)
class Predictions:
    """The predictions of a model, or of a baseline, for N samples."""

    sr: np.ndarray  # [N] scores
    syn: np.ndarray
    gt: np.ndarray
    defects: PixelCounts | None  # of syn's maps: inside the mask against outside
    clean: PixelCounts | None  # of gt's maps, all negative
    pointing: np.ndarray | None  # [N] 1 where the map's highest pixel lies in the defect, NaN without a visible one
    area: np.ndarray
    severity: np.ndarray
    is_control: np.ndarray
    image_ids: np.ndarray

    def select(self, rows: np.ndarray) -> Predictions:
        def at(value):
            return None if value is None else value.select(rows) if isinstance(value, PixelCounts) else value[rows]

        return Predictions(**{name: at(value) for name, value in vars(self).items()})


def has_lq(sample: Sample) -> bool:
    """Whether the sample's degraded input is known."""
    return sample.lq.numel() > 0


def pixel_labels(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Returns (defect, counted), both bool [1, H, W]: pixels of the mask whose swap can be seen, and these with the
    clean ones. A control's swap is harmless by design: all of its mask counts.
    """
    mask = sample.mask.numpy()
    defect = mask > MASK_LEVEL
    if not sample.is_control:
        defect &= sample.degradation_map.numpy() >= VISIBLE
    return defect, defect | (mask == 0)


@torch.no_grad()
def predict(samples: Sequence[Sample], scorer: Scorer, *, batch: int = 16) -> Predictions | None:
    """Returns the predictions of a scorer, None where no sample has the lq that it reads.

    Samples of one size go through together.
    """
    rows: list[dict] = []
    for chunk in _chunks(samples, batch, scorer.reads_lq):
        stacks = {kind: torch.stack([getattr(s, kind) for s in chunk]) for kind in ("sr", "syn", "gt")}
        lq = torch.stack([s.lq for s in chunk]) if scorer.reads_lq else None
        found = {kind: scorer.function(stack, stacks["gt"], lq) for kind, stack in stacks.items()}
        for index, sample in enumerate(chunk):
            row = {kind: float(score[index]) for kind, (score, _) in found.items()}
            if found["syn"][1] is not None:
                maps = {kind: found[kind][1][index].float().cpu().numpy() for kind in ("syn", "gt")}
                row |= _pixel_row(sample, maps["syn"], maps["gt"])
            row |= {"area": sample.area, "severity": sample.severity, "is_control": sample.is_control}
            rows.append({**row, "image_ids": sample.image_id})
    return _table(rows) if rows else None


def predict_samples(
    model: torch.nn.Module, samples: Sequence[Sample], *, device: torch.device, reads_lq: bool = False
) -> Predictions:
    """Returns a reward model's predictions, in inference mode; its training mode is restored."""
    training = model.training
    model.eval()
    predictions = predict(samples, model_scorer(model, device, reads_lq=reads_lq))
    model.train(training)
    return predictions


def model_scorer(model: torch.nn.Module, device: torch.device, *, reads_lq: bool = False) -> Scorer:
    """Returns the model as a scorer of pictures on the CPU."""

    def score(images: torch.Tensor, _gt: torch.Tensor, lq: torch.Tensor | None):
        output = model(images.to(device)) if lq is None else model(images.to(device), lq.to(device))
        return output.score.cpu(), None if output.degradation_map is None else output.degradation_map.cpu()

    return Scorer(score, reads_lq=reads_lq)


def selection_figures(p: Predictions) -> dict[str, float]:
    """Returns validation figures, with `selection`, the one a stage keeps its best weights by."""
    real = ~p.is_control
    figures = {
        "sr_below_syn": detection.pair_accuracy(p.sr[real], p.syn[real]),
        "syn_below_gt": detection.pair_accuracy(p.syn[real], p.gt[real]),
        "triplet": detection.triplet_accuracy(p.sr[real], p.syn[real], p.gt[real]),
    }
    orders = sum(figures.values()) / 3
    if p.defects is None:
        return figures | {"selection": orders}
    figures["pixel_auroc"] = detection.pixel_auroc(p.defects.select(real))
    figures["picture_auroc"] = detection.picture_auroc(p.defects.select(real))
    # The map is what RL assigns credit by: it weighs as much as the three orders together.
    found = [value for value in (figures["pixel_auroc"], figures["picture_auroc"]) if not np.isnan(value)]
    return figures | {"selection": 0.5 * (sum(found) / len(found) if found else 0.5) + 0.5 * orders}


def _pixel_row(sample: Sample, syn_map: np.ndarray, gt_map: np.ndarray) -> dict:
    defect, counted = pixel_labels(sample)
    return {
        "defects": count_pixels(syn_map[counted], defect[counted]),
        "pointing": float(pointing_hit(syn_map[counted], defect[counted])) if defect.any() else float("nan"),
        "clean": count_pixels(gt_map, np.zeros_like(gt_map, dtype=bool)),
    }


def _chunks(samples: Sequence[Sample], batch: int, reads_lq: bool) -> Iterable[list[Sample]]:
    chunk: list[Sample] = []
    for index in range(len(samples)):
        sample = samples[index]
        if reads_lq and not has_lq(sample):
            continue
        shapes = (sample.gt.shape, sample.lq.shape)[: 1 + reads_lq]
        same = not chunk or (chunk[0].gt.shape, chunk[0].lq.shape)[: 1 + reads_lq] == shapes
        if chunk and (len(chunk) == batch or not same):
            yield chunk
            chunk = []
        chunk.append(sample)
    if chunk:
        yield chunk


def _table(rows: list[dict]) -> Predictions:
    def column(name: str) -> np.ndarray:
        return np.array([row[name] for row in rows])

    def counts(name: str) -> PixelCounts | None:
        if name not in rows[0]:
            return None
        return PixelCounts(*(np.stack([row[name][side] for row in rows]) for side in (0, 1)))

    plain = {name: column(name) for name in ("sr", "syn", "gt", "area", "severity", "is_control", "image_ids")}
    pointing = column("pointing") if "pointing" in rows[0] else None
    return Predictions(**plain, defects=counts("defects"), clean=counts("clean"), pointing=pointing)
