"""The end of an RL run: before and after on held-out pictures, as a table, as a grid, and as numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from data.degradation.pairs import collate_pairs, pairs_for_task
from data.degradation.records import PairBatch
from data.sources.open_source import Split
from rl_finetune.evidence.gauge import panel_without
from rl_finetune.evidence.measure import (
    LPIPS,
    Evaluation,
    Measure,
    compare,
    evaluate,
    format_table,
    held_out_pairs,
    panel_measure,
)
from rl_finetune.loop.config import TrainRlConfig
from rl_finetune.rewards.faces import identity, load_identity
from rl_finetune.rewards.judge import Judge
from rl_finetune.rewards.objective import OBJECTIVE, RewardScale, measure_scales, objective
from shared.restorers.load import load_policy
from shared.restorers.pixel_unet import PixelUNet, PixelUNetRestorer
from shared.restorers.protocol import Restorer
from shared.runs.folder import RunFolder
from shared.vision.images import paint_map, picture_grid, save_image
from shared.vision.lpips import load_lpips, lpips_weights_path
from shared.vision.metrics import hatch

GRID_ROWS = 12
SCALE_GROUPS, SCALE_MEMBERS = 8, 8  # of the same pictures and noise whatever the run's seed: one unit for all of them
IDENTITY = "identity_check"  # by a recogniser of its own: a reward's cannot testify about itself


@dataclass(frozen=True)
class Panel:
    """What evaluation measures, and what it would measure if it could."""

    measures: list[Measure]
    proxy: str  # which measure training maximises
    checks_identity: bool
    absent: Mapping[str, str]  # name → why it is not measured

    def for_gauge(self, reward_names: Sequence[str]) -> tuple[str, ...]:
        """Returns the names that the hacking gauge reads: none that the reward contains."""
        return panel_without(reward_names) + ((IDENTITY,) if self.checks_identity else ())


def evaluate_run(
    config: TrainRlConfig, run: RunFolder, tuned: PixelUNet, judge: Judge, panel: Panel, *, seconds: float
) -> dict[str, Any]:
    """Returns the run's summary: the policy before and after RL, with the same sampler and the same noise."""
    base, _ = load_policy(config.base)
    before, after = (PixelUNetRestorer(p.to(judge.final.toolbox.device), config.sampler) for p in (base, tuned))
    figures = compare_on_held_out(config, before, after, judge, panel, folder=run.path, steps=config.sampler.steps)
    return {"seconds": seconds, **figures}


def compare_on_held_out(
    config: TrainRlConfig,
    before: Restorer,
    after: Restorer,
    judge: Judge,
    panel: Panel,
    *,
    folder: Path,
    steps: int,
    split: Split = "test",
) -> dict[str, Any]:
    """Returns the figures of two restorers on distinct pictures that RL does not train on.

    Writes `before_after.png` and `evaluation.json` (the figures, and every picture's values) into `folder`.
    """
    pairs = held_out(config, split=split, count=config.eval_images)
    found: list[Evaluation] = []
    for name, restorer in (("before", before), ("after", after)):
        found.append(
            evaluate(
                restorer,
                pairs,
                panel.measures,
                batch=config.eval_batch,
                seed=config.seed,
                title=f"{name} RL, {config.task}",
                quiet=False,
                device=judge.final.toolbox.device,
            )
        )
    rows = compare(*found)
    seconds = tuple(each.seconds_per_picture for each in found)
    title = f"{config.task}: {len(pairs.indices)} held-out pictures, {steps} steps"
    shared_pattern = {
        name: hatch(sr) for name, sr in (("before", found[0].sr), ("after", found[1].sr), ("truth", pairs.gt))
    }
    line = ", ".join(f"{value:.2f} {name}" for name, value in shared_pattern.items())
    figures = {
        "table": format_table(rows, title=title, seconds=seconds)
        + f"\nhatch on every picture, grey levels: {line}; far above the truth's, it is a pattern of the latent grid",
        "hatch": shared_pattern,
        "rows": [{**dataclasses.asdict(row), "z": row.change.z, "verdict": row.verdict} for row in rows],
        "replacements": dict(judge.final.replacements),
        "absent": dict(panel.absent),
        "pictures": len(pairs.indices),
        "seconds_per_picture": seconds,
    }
    save_image(folder / "before_after.png", before_after_grid(pairs, *found, judge))
    values = {
        name: {k: v.tolist() for k, v in e.values.items()} for name, e in zip(("before", "after"), found, strict=True)
    }
    RunFolder(folder).write_json("evaluation.json", {**figures, "image_ids": pairs.image_ids, **values})
    return figures


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


def panel_of(config: TrainRlConfig, judge: Judge, base: Restorer) -> Panel:
    """Returns the last stage's reward and its parts, the metrics, LPIPS and identity where their weights are.

    Where rewards are normalised before they are weighed, `objective` is their sum as training adds them: each from its
    mean, in units of its spread within groups of `base`, the policy before RL.
    Raises UserError when the face recogniser that the config names cannot be loaded.
    """
    scales: dict[str, RewardScale] = {}
    if config.method == "policy_gradient" and config.reward.order == "normalise_first":
        asked = dataclasses.replace(config.pairs, pairs=SCALE_GROUPS, cache=False)
        pairs = pairs_for_task(config.source, asked, task=config.task, split="train", seed=0)
        groups = collate_pairs([pairs[i] for i in range(SCALE_GROUPS)])
        scales = measure_scales(base, groups, judge.final, members=SCALE_MEMBERS, seed=0)

    def rewards(sr: torch.Tensor, gt: torch.Tensor, lq: torch.Tensor) -> Mapping[str, torch.Tensor]:
        judged = judge.final(sr, gt, lq)
        normalised = {OBJECTIVE: objective(judged.values, judge.final.weights, scales)} if scales else {}
        # A reward and a panel metric of one name are the same function: one row is enough.
        return {**normalised, "reward": judged.total, **judged.values}

    measures: list[Measure] = [rewards, panel_measure()]
    absent: dict[str, str] = {}
    if lpips_weights_path("alex").is_file():
        lpips = load_lpips("alex")
        measures.append(lambda sr, gt, lq: {LPIPS: lpips(sr, gt)})
    else:
        absent[LPIPS] = "AlexNet's weights are not on this machine's disk"
    if config.identity_weights:
        download = config.reward.tools.allow_download
        network = load_identity(config.identity_weights, device=judge.final.toolbox.device, allow_download=download)
        measures.append(lambda sr, gt, lq: {IDENTITY: identity(sr, gt, lq, identity_network=network)})
    elif config.task == "face":
        absent[IDENTITY] = "identity_weights names no face recogniser"
    return Panel(measures, OBJECTIVE if scales else "reward", bool(config.identity_weights), absent)


def before_after_grid(pairs: PairBatch, before: Evaluation, after: Evaluation, judge: Judge) -> torch.Tensor:
    """Returns the picture grid [3, H, W]: lq · before · after · gt · map before · map after."""
    model = judge.final.toolbox.given["reward_model"]
    count = min(GRID_ROWS, len(pairs.indices))
    size = pairs.gt.shape[-2:]
    with torch.no_grad():
        maps = [model(e.sr[:count].to(judge.final.toolbox.device)).degradation_map for e in (before, after)]
    rows = []
    for i in range(count):
        lq = F.interpolate(pairs.lq[i : i + 1], size=size, mode="nearest")[0]
        row = [lq, before.sr[i], after.sr[i], pairs.gt[i]]
        row += [paint_map(m[i].cpu()) for m in maps] if maps[0] is not None else []
        rows.append(row)
    titles = ["lq", "before RL", "after RL", "gt", "map before", "map after"][: len(rows[0])]
    return picture_grid(rows, titles, cell_px=160)
