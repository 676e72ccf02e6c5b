"""Runs a reward model over samples and keeps what the metrics need: scores, and counts of map levels by pixel label."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from data.store.sample import Sample
from reward_model.measuring import metrics
from reward_model.measuring.metrics import PixelCounts, count_pixels, pointing_hit

# (pictures, their gt), [B, 3, H, W] each → (score [B], map [B, 1, H, W] or None); no-reference scorers ignore gt.
Scorer = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]
MASK_LEVEL = (
    0.5  # of the feathered mask: above it a pixel is a defect, at 0 it is clean; the rim between counts as neither
)


@dataclass(frozen=True)
class Predictions:
    """The predictions of a model, or of a baseline, for N samples."""

    sr: np.ndarray  # [N] scores
    syn: np.ndarray
    gt: np.ndarray
    defects: PixelCounts | None  # of syn's maps: inside the mask against outside
    clean: PixelCounts | None  # of gt's maps, all negative
    pointing: np.ndarray | None  # [N] bool, the map's highest pixel lies in the mask
    area: np.ndarray
    severity: np.ndarray
    is_control: np.ndarray
    image_ids: np.ndarray

    def select(self, rows: np.ndarray) -> Predictions:
        def at(value):
            return None if value is None else value.select(rows) if isinstance(value, PixelCounts) else value[rows]

        return Predictions(**{name: at(value) for name, value in vars(self).items()})


@torch.no_grad()
def predict(samples: Sequence[Sample], scorer: Scorer, *, batch: int = 16) -> Predictions:
    """Returns the predictions of a scorer; samples of one size go through together."""
    rows: list[dict] = []
    for chunk in _chunks(samples, batch):
        stacks = {kind: torch.stack([getattr(s, kind) for s in chunk]) for kind in ("sr", "syn", "gt")}
        said = {kind: scorer(stack, stacks["gt"]) for kind, stack in stacks.items()}
        for index, sample in enumerate(chunk):
            row = {kind: float(score[index]) for kind, (score, _) in said.items()}
            if said["syn"][1] is not None:
                mask = sample.mask.numpy()
                found = said["syn"][1][index].float().cpu().numpy()
                decided = (mask > MASK_LEVEL) | (mask == 0)
                row["defects"] = count_pixels(found[decided], mask[decided] > MASK_LEVEL)
                row["pointing"] = pointing_hit(found, mask > 0)
                clean = said["gt"][1][index].float().cpu().numpy()
                row["clean"] = count_pixels(clean, np.zeros_like(clean, dtype=bool))
            row |= {"area": sample.area, "severity": sample.severity, "is_control": sample.is_control}
            rows.append({**row, "image_ids": sample.image_id})
    return _table(rows)


def predict_samples(model: torch.nn.Module, samples: Sequence[Sample], *, device: torch.device) -> Predictions:
    """Returns a reward model's predictions, in inference mode; its training mode is restored."""
    training = model.training
    model.eval()
    predictions = predict(samples, model_scorer(model, device))
    model.train(training)
    return predictions


def model_scorer(model: torch.nn.Module, device: torch.device) -> Scorer:
    """Returns the model as a scorer of pictures on the CPU."""

    def score(images: torch.Tensor, _gt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        output = model(images.to(device))
        return output.score.cpu(), None if output.degradation_map is None else output.degradation_map.cpu()

    return score


def selection_figures(p: Predictions) -> dict[str, float]:
    """Returns validation figures, with `selection`, the one a stage keeps its best weights by."""
    real = ~p.is_control
    figures = {
        "sr_below_syn": metrics.pair_accuracy(p.sr[real], p.syn[real]),
        "syn_below_gt": metrics.pair_accuracy(p.syn[real], p.gt[real]),
        "triplet": metrics.triplet_accuracy(p.sr[real], p.syn[real], p.gt[real]),
    }
    if p.defects is not None:
        figures["pixel_auroc"] = metrics.pixel_auroc(p.defects.select(real))
        # The map is what RL assigns credit by: it weighs as much as the three orders together.
        orders = [figures["sr_below_syn"], figures["syn_below_gt"], figures["triplet"]]
        figures["selection"] = 0.5 * figures["pixel_auroc"] + 0.5 * sum(orders) / 3
    else:
        figures["selection"] = sum(figures.values()) / 3
    return figures


def _chunks(samples: Sequence[Sample], batch: int) -> Iterable[list[Sample]]:
    chunk: list[Sample] = []
    for index in range(len(samples)):
        sample = samples[index]
        if chunk and (len(chunk) == batch or chunk[0].gt.shape != sample.gt.shape):
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
