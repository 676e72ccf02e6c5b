"""The end of an RL run: before and after on held-out pictures, as a table, as a grid, and as numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from data.records import PairBatch
from data.sources import Split
from rl_finetune.config import TrainRlConfig
from rl_finetune.evaluate import Evaluation, Measure, compare, evaluate, format_table, held_out_pairs, panel_measure
from rl_finetune.judge import Judge
from shared.images import paint_map, picture_grid, save_image
from shared.lpips import load_lpips, lpips_weights_path
from shared.restorers.load import load_policy
from shared.restorers.pixel_unet import PixelUNetRestorer
from shared.runs import RunFolder

GRID_ROWS = 12


def evaluate_run(
    config: TrainRlConfig, run: RunFolder, tuned: PixelUNetRestorer, judge: Judge, *, seconds: float
) -> dict[str, Any]:
    """Returns the run's summary: the policy before and after RL on distinct held-out pictures, with the same noise.

    Writes `before_after.png` and `evaluation.json` (every picture's values).
    """
    base, _ = load_policy(config.base)
    before_policy = PixelUNetRestorer(base, config.sampler)
    pairs = held_out(config, split="test", count=config.eval_images)
    found: list[Evaluation] = []
    for name, restorer in (("before", before_policy), ("after", tuned)):
        found.append(
            evaluate(
                restorer,
                pairs,
                measures_of(judge),
                batch=config.eval_batch,
                seed=config.seed,
                title=f"{name} RL, {config.task}",
                quiet=False,
            )
        )
    before, after = found
    rows = compare(before, after)
    table = format_table(
        rows,
        title=f"{config.task}: {len(pairs.indices)} held-out pictures, {config.sampler.steps} steps",
        seconds=(before.seconds_per_picture, after.seconds_per_picture),
    )
    save_image(run.path / "before_after.png", before_after_grid(pairs, before, after, judge))
    values = {name: {k: v.tolist() for k, v in e.values.items()} for name, e in (("before", before), ("after", after))}
    run.write_json("evaluation.json", {"image_ids": pairs.image_ids, **values})
    return {
        "table": table,
        "seconds": seconds,
        "rows": [{**dataclasses.asdict(row), "z": row.change.z, "verdict": row.verdict} for row in rows],
        "replacements": dict(judge.final.replacements),
        "pictures": len(pairs.indices),
        "seconds_per_picture": [before.seconds_per_picture, after.seconds_per_picture],
    }


def held_out(config: TrainRlConfig, *, split: Split, count: int) -> PairBatch:
    """Returns one pair from each of `count` distinct pictures that RL does not train on."""
    return held_out_pairs(
        config.source,
        config.pairs,
        task=config.task,
        split=split,
        count=count,
        crop_px=config.eval_crop_px,
        seed=config.seed,
    )


def measures_of(judge: Judge) -> list[Measure]:
    """Returns what evaluation measures: the last stage's reward and its parts, the panel, LPIPS where its weights are."""

    def rewards(sr: torch.Tensor, gt: torch.Tensor, lq: torch.Tensor) -> Mapping[str, torch.Tensor]:
        judged = judge.final(sr, gt, lq)
        # A reward and a panel metric of one name are the same function: one row is enough.
        return {"reward": judged.total, **judged.values}

    measures: list[Measure] = [rewards, panel_measure()]
    if lpips_weights_path("alex").is_file():
        lpips = load_lpips("alex")
        measures.append(lambda sr, gt, lq: {"lpips": lpips(sr, gt)})
    return measures


def before_after_grid(pairs: PairBatch, before: Evaluation, after: Evaluation, judge: Judge) -> torch.Tensor:
    """Returns the picture grid [3, H, W]: lq · before · after · gt · map before · map after."""
    model = judge.final.toolbox.given["reward_model"]
    count = min(GRID_ROWS, len(pairs.indices))
    size = pairs.gt.shape[-2:]
    with torch.no_grad():
        maps = [model(e.sr[:count]).degradation_map for e in (before, after)]
    rows = []
    for i in range(count):
        lq = F.interpolate(pairs.lq[i : i + 1], size=size, mode="nearest")[0]
        row = [lq, before.sr[i], after.sr[i], pairs.gt[i]]
        row += [paint_map(m[i]) for m in maps] if maps[0] is not None else []
        rows.append(row)
    titles = ["lq", "before RL", "after RL", "gt", "map before", "map after"][: len(rows[0])]
    return picture_grid(rows, titles, cell_px=160)
