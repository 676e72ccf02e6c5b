"""Held-out pictures for a person to look at: one grid, and the pictures on which RL lost and gained most, each in files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from data.degradation.records import PairBatch
from rl_finetune.evidence.measure import Evaluation
from rl_finetune.rewards.judge import Judge
from rl_finetune.rewards.learned import judge_pictures
from shared.vision.images import paint_map, picture_grid, save_image
from shared.vision.metrics import METRICS

GRID_ROWS, CHECK_ROWS = 12, 4
GRID_FILE = "before_after.png"
GALLERY_FOLDER, GALLERY_EACH = "held_out", 8  # so many of the worst, and of the best
KINDS = ("lq", "before", "after", "gt")  # the files of a picture: 007_before.png; the maps are grey, white is worst
MAPS = ("map_before", "map_after")
# What the gallery is ranked by: the first that is measured. All but the last see what a person sees.
RANKED_BY = ("lpips_alex", "dists", "gradient_distance", "psnr")


def before_after_grid(pairs: PairBatch, before: Evaluation, after: Evaluation, judge: Judge) -> torch.Tensor:
    """Returns the picture grid [3, H, W]: lq · before · after · gt · map before · map after."""
    indices = range(min(GRID_ROWS, len(pairs.indices)))
    maps = [maps_of(judge, each.sr, pairs.lq, indices) for each in (before, after)]
    size = pairs.gt.shape[-2:]
    rows = []
    for i in indices:
        lq = F.interpolate(pairs.lq[i : i + 1], size=size, mode="nearest")[0]
        row = [lq, before.sr[i], after.sr[i], pairs.gt[i]]
        row += [paint_map(m[i]) for m in maps if m is not None]
        rows.append(row)
    titles = ["lq", "before RL", "after RL", "gt", "map before", "map after"][: len(rows[0])]
    return picture_grid(rows, titles, cell_px=160)


def check_grid(pairs: PairBatch, sr: torch.Tensor, judge: Judge) -> torch.Tensor:
    """Returns the picture grid [3, H, W] of a check in training: lq · restored · gt · map."""
    indices = range(min(CHECK_ROWS, len(sr)))
    maps = maps_of(judge, sr, pairs.lq, indices)
    rows = []
    for i in indices:
        lq = F.interpolate(pairs.lq[i : i + 1], size=pairs.gt.shape[-2:], mode="nearest")[0]
        rows.append([lq, sr[i], pairs.gt[i], *([] if maps is None else [paint_map(maps[i])])])
    return picture_grid(rows, ["lq", "restored", "gt", "map"][: len(rows[0])])


def write_gallery(
    folder: Path, pairs: PairBatch, before: Evaluation, after: Evaluation, judge: Judge
) -> dict[str, Any]:
    """Writes the pictures on which RL lost and gained most as PNGs; returns which they are, and by what.

    indices: of the pictures, as in evaluation.json; those that lost most first.
    """
    ranked_by = next(name for name in RANKED_BY if name in before.values)
    order = by_gain(before.values, after.values, ranked_by)
    shown = order if len(order) <= 2 * GALLERY_EACH else [*order[:GALLERY_EACH], *order[-GALLERY_EACH:]]
    maps = {name: maps_of(judge, each.sr, pairs.lq, shown) for name, each in zip(MAPS, (before, after), strict=True)}
    for place, i in enumerate(shown):
        pictures = dict(zip(KINDS, (pairs.lq[i], before.sr[i], after.sr[i], pairs.gt[i]), strict=True))
        pictures |= {name: m[place].expand(3, -1, -1) for name, m in maps.items() if m is not None}
        for kind, picture in pictures.items():
            save_image(gallery_file(folder, i, kind), picture)
    return {"indices": shown, "ranked_by": ranked_by, "pictures": len(order)}


def gallery_file(folder: Path, index: int, kind: str) -> Path:
    """Returns where a picture of a run's gallery lies; `kind` is one of KINDS or MAPS."""
    return folder / GALLERY_FOLDER / f"{index:03d}_{kind}.png"


def by_gain(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor], name: str) -> list[int]:
    """Returns the pictures' indices by their gain in a metric, the largest loss first; without a value: no gain."""
    first, second = (METRICS[name].goodness(values[name].tolist()) for values in (before, after))
    return np.argsort(np.nan_to_num(second - first), kind="stable").tolist()


@torch.no_grad()
def maps_of(judge: Judge, sr: torch.Tensor, lq: torch.Tensor, indices: Sequence[int]) -> torch.Tensor | None:
    """Returns the reward model's maps [n, 1, H, W] in [0, 1] of some of the restorations; None of a model without maps."""
    model, device = judge.final.toolbox.given["reward_model"], judge.final.toolbox.device
    chosen = list(indices)
    found = judge_pictures(model, sr[chosen].to(device), lq[chosen].to(device)).degradation_map
    return None if found is None else found.clamp(0.0, 1.0).cpu()
