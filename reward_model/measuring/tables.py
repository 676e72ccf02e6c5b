"""One row of the evaluation table: what is computed from predictions, and how it is printed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from reward_model.measuring import detection
from reward_model.measuring.bootstrap import MISSING, Figure, Interval, bootstrap
from reward_model.measuring.detection import PixelCounts
from reward_model.measuring.predict import Predictions

AREA_EDGES = (0.0, 0.02, 0.1, 1.0)  # of the picture

LEGEND = (
    "A model that takes lq has two rows, without and with it; the second is of the samples whose lq is known. Defect "
    "pixels are those of the mask (> 0.5) whose target is at least 0.1, clean ones those with mask 0; the others count as "
    "neither. AUROC and AP over all pixels of a set together; IoU and F1 at the threshold that was best on validation "
    "among those that leave clean pictures alone; clean area: share of clean pictures' pixels above it; control area: the "
    "same on controls, whose swap is harmless; seam AUROC: controls' masks against the map, 0.5 when the seam is not "
    "seen. Triplet: S(sr) < S(syn) < S(gt); chance is 1/6. 95 % bootstrap intervals over source pictures."
)


@dataclass(frozen=True)
class MethodRow:
    """One method on one set."""

    overall: dict[str, Interval]
    by_area: dict[str, dict[str, Interval]]
    samples: int


def figures(p: Predictions, threshold: float | None, *, rounds: int, seed: int) -> MethodRow:
    """Returns every figure with its interval; map figures only where there is a map."""
    real, controls = np.flatnonzero(~p.is_control), np.flatnonzero(p.is_control)

    def on(rows: np.ndarray, figure: Figure) -> Interval:
        return bootstrap(figure, p.select(rows), seed=seed, rounds=rounds) if len(rows) else MISSING

    orders, maps = _order_figures(), _map_figures(threshold) if p.defects is not None else {}
    overall = {name: on(real, figure) for name, figure in {**maps, **orders}.items()}
    if p.defects is not None:
        overall["control area"] = on(controls, _of_counts(lambda c: detection.share_above(c, threshold)))
        overall["seam AUROC"] = on(controls, _of_counts(detection.auroc))
    by_area = {}
    for low, high in pairwise(AREA_EDGES):
        rows = real[(p.area[real] > low) & (p.area[real] <= high)]
        chosen = {k: f for k, f in {**maps, **orders}.items() if k in ("AUROC", "SR<syn", "syn<GT", "SR<GT", "triplet")}
        by_area[f"{low:.0%}–{high:.0%} ({len(rows)})"] = {name: on(rows, figure) for name, figure in chosen.items()}
    return MethodRow(overall, by_area, len(p.sr))


def markdown(rows: dict[str, MethodRow]) -> str:
    """Returns a table of methods by figures."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row.overall))
    lines = [f"| method | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for method, row in rows.items():
        cells = (str(row.overall[name]) if name in row.overall else "–" for name in names)
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def markdown_by_area(rows: dict[str, MethodRow]) -> str:
    """Returns a table of methods by defect area."""
    lines = []
    for method, row in rows.items():
        for area, of in row.by_area.items():
            if not lines:
                names = list(dict.fromkeys(n for r in rows.values() for a in r.by_area.values() for n in a))
                lines = [f"| method | area (samples) | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
            cells = (str(of[name]) if name in of else "–" for name in names)
            lines.append(f"| {method} | {area} | {' | '.join(cells)} |")
    return "\n".join(lines)


def as_json(row: MethodRow) -> dict:
    """Returns the row as plain numbers; a figure that does not exist is null."""

    def plain(interval: Interval) -> dict[str, float | None]:
        return {name: None if np.isnan(value) else value for name, value in vars(interval).items()}

    return {
        "samples": row.samples,
        "overall": {name: plain(interval) for name, interval in row.overall.items()},
        "by_area": {area: {name: plain(i) for name, i in of.items()} for area, of in row.by_area.items()},
    }


def _map_figures(threshold: float) -> dict[str, Figure]:
    return {
        "AUROC": _of_counts(detection.auroc),
        "AUROC in a picture": _mean(lambda p: detection.auroc(p.defects)),
        "AP": _of_counts(detection.average_precision),
        "IoU": _of_counts(lambda c: detection.iou_and_f1(c, threshold)[0]),
        "F1": _of_counts(lambda c: detection.iou_and_f1(c, threshold)[1]),
        "clean area": _of_counts(lambda c: detection.share_above(c, threshold), of=lambda p: p.clean),
        "pointing": _mean(lambda p: p.pointing),
    }


def _order_figures() -> dict[str, Figure]:
    return {
        "SR<syn": _mean(lambda p: detection.pair_order(p.sr, p.syn)),
        "syn<GT": _mean(lambda p: detection.pair_order(p.syn, p.gt)),
        "SR<GT": _mean(lambda p: detection.pair_order(p.sr, p.gt)),
        "triplet": _mean(lambda p: detection.triplet_order(p.sr, p.syn, p.gt)),
    }


def _of_counts(
    figure: Callable[[PixelCounts], np.ndarray], *, of: Callable[[Predictions], PixelCounts] = lambda p: p.defects
) -> Figure:
    """Returns a figure of the counts of all pictures together."""

    def terms(p: Predictions) -> np.ndarray:
        counts = of(p)
        return np.concatenate([counts.positive, counts.negative], axis=1)

    return Figure(terms, lambda sums: figure(PixelCounts(*np.split(sums, 2, axis=1))))


def _mean(each: Callable[[Predictions], np.ndarray]) -> Figure:
    """Returns the mean of a value of each sample, over those that have it."""

    def terms(p: Predictions) -> np.ndarray:
        values = each(p)
        return np.stack([np.nan_to_num(values), ~np.isnan(values)], axis=1)

    def mean(sums: np.ndarray) -> np.ndarray:
        return np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] > 0)

    return Figure(terms, mean)
