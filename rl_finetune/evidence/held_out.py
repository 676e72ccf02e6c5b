"""Two policies beside each other on pictures that RL does not train on: as a table, as a grid, and as numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from data.degradation.pairs import PairConfig, collate_pairs, pairs_for_task
from data.degradation.records import PairBatch, Task
from data.sources.open_source import SourceConfig
from data.sources.splits import Split
from rl_finetune.evidence.gauge import panel_without
from rl_finetune.evidence.measure import (
    LPIPS,
    Evaluation,
    Measure,
    change_rows,
    evaluate,
    format_table,
    held_out_pairs,
    measured,
    panel_measure,
)
from rl_finetune.evidence.references import TRUTH
from rl_finetune.rewards.faces import identity, load_identity
from rl_finetune.rewards.judge import Judge
from rl_finetune.rewards.learned import judge_pictures
from rl_finetune.rewards.objective import OBJECTIVE, RewardScale, StageScales, measure_scales, objective
from shared.diffusion.sampler import SamplerSpec
from shared.restorers.protocol import Restorer
from shared.runs.run_folder import RunFolder
from shared.vision.images import paint_map, picture_grid, save_image
from shared.vision.lpips import load_lpips, lpips_weights_path
from shared.vision.metrics import PANEL, hatch

GRID_ROWS = 12
SCALE_GROUPS, SCALE_MEMBERS = 8, 8  # of the same pictures and noise whatever the run's seed: one unit for all of them
IDENTITY = "identity_check"  # by a recogniser of its own: a reward cannot check itself


@dataclass(frozen=True)
class HeldOut:
    """Which pictures are measured, and how."""

    source: SourceConfig
    pairs: PairConfig
    task: Task
    crop_px: int
    batch: int
    seed: int  # of crops, degradation and the sampler's noise; the split is the source's own

    def draw(self, split: Split, count: int) -> PairBatch:
        """Returns one pair from each of `count` distinct pictures of a split. Raises UserError when it holds fewer."""
        return held_out_pairs(
            self.source, self.pairs, task=self.task, split=split, count=count, crop_px=self.crop_px, seed=self.seed
        )

    def evaluate(self, restorer: Restorer, pairs: PairBatch, panel: Panel, *, title: str, quiet: bool) -> Evaluation:
        """Returns the panel's measures of a restorer on `pairs`."""
        return evaluate(
            restorer,
            pairs,
            panel.measures,
            batch=self.batch,
            seed=self.seed,
            title=title,
            quiet=quiet,
            device=panel.device,
        )


@dataclass(frozen=True)
class Panel:
    """What is measured, and what is missing and why."""

    measures: list[Measure]
    proxy: str  # which measure training maximises
    checks_identity: bool
    absent: Mapping[str, str]  # name → why it is not measured
    device: torch.device

    @property
    def metrics(self) -> list[Measure]:
        """Returns the measures that are no rewards."""
        return self.measures[1:]

    def rewarded(self, reward_names: Collection[str]) -> frozenset[str]:
        """Returns the metrics that a reward contains: they cannot judge it."""
        inside = frozenset(PANEL) - frozenset(panel_without(list(reward_names)))
        return inside | ({LPIPS} if "lpips" in reward_names else frozenset())

    def for_gauge(self, reward_names: Sequence[str]) -> tuple[str, ...]:
        """Returns the names that the hacking gauge reads: none that the reward contains."""
        return panel_without(reward_names) + ((IDENTITY,) if self.checks_identity else ())


def compare_on_held_out(
    held_out: HeldOut,
    before: Restorer,
    after: Restorer,
    judge: Judge,
    panel: Panel,
    *,
    references: Mapping[str, Restorer],
    folder: Path,
    images: int,
    sampler: SamplerSpec,
    split: Split = "test",
) -> dict[str, Any]:
    """Returns the figures of two restorers on distinct pictures that RL does not train on, with the same noise.

    Beside them stand the `references` (title → restorer) and the truth itself, each metric's best value.
    Writes `before_after.png` and `evaluation.json` (the figures, and every picture's values) into `folder`.
    """
    pairs = held_out.draw(split, images)
    found = {
        name: held_out.evaluate(restorer, pairs, panel, title=f"{name} RL, {held_out.task}", quiet=False)
        for name, restorer in (("before", before), ("after", after))
    }
    beside = {
        title: held_out.evaluate(restorer, pairs, panel, title=f"{title}, {held_out.task}", quiet=False).values
        for title, restorer in references.items()
    }
    beside[TRUTH] = measured(pairs.gt, pairs, panel.measures, batch=held_out.batch, device=panel.device)
    rows = change_rows(found["before"], found["after"], beside)
    seconds = tuple(each.seconds_per_picture for each in found.values())
    shared_pattern = {name: hatch(each.sr) for name, each in found.items()} | {"truth": hatch(pairs.gt)}
    line = ", ".join(f"{value:.2f} {name}" for name, value in shared_pattern.items())
    title = f"{held_out.task}: {images} held-out pictures, {sampler.words()}"
    figures = {
        "table": format_table(rows, title=title, seconds=seconds)
        + f"\nhatch on every picture, grey levels: {line}; far above the truth's, it is a pattern of the latent grid",
        "hatch": shared_pattern,
        "rows": [{**dataclasses.asdict(row), "z": row.change.z, "verdict": row.verdict} for row in rows],
        "replacements": dict(judge.final.replacements),
        "absent": dict(panel.absent),
        "pictures": images,
        "seconds_per_picture": seconds,
    }
    save_image(folder / "before_after.png", before_after_grid(pairs, found["before"], found["after"], judge))
    by_method = {name: each.values for name, each in found.items()} | beside
    values = {name: {k: v.tolist() for k, v in own.items()} for name, own in by_method.items()}
    RunFolder(folder).write_json("evaluation.json", {**figures, "image_ids": pairs.image_ids, **values})
    return figures


def open_panel(
    judge: Judge,
    *,
    scales: Mapping[str, RewardScale],
    task: Task,
    identity_weights: str,
    allow_download: bool,
) -> Panel:
    """Returns the last stage's reward and its parts, the metrics, LPIPS and identity where their weights are.

    scales: the rewards' (`objective_scales`) where training adds them normalised; `objective` is then their sum as
    training adds them. Raises UserError when the face recogniser that is named cannot be loaded.
    """
    device = torch.device(judge.final.toolbox.device)

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
    if identity_weights:
        network = load_identity(identity_weights, device=device, allow_download=allow_download)
        measures.append(lambda sr, gt, lq: {IDENTITY: identity(sr, gt, lq, identity_network=network)})
    elif task == "face":
        absent[IDENTITY] = "identity_weights names no face recogniser"
    return Panel(measures, OBJECTIVE if scales else "reward", bool(identity_weights), absent, device)


def objective_scales(
    judge: Judge, base: Restorer, source: SourceConfig, pairs: PairConfig, task: Task
) -> dict[int, StageScales]:
    """Returns the scales of every stage of the curriculum within groups of `base`.

    `base` is the policy before RL, the pictures are training pictures.
    """
    few = dataclasses.replace(pairs, pairs=SCALE_GROUPS, cache=False)
    dataset = pairs_for_task(source, few, task=task, split="train", seed=0)
    groups = collate_pairs([dataset[i] for i in range(SCALE_GROUPS)])
    return measure_scales(base, groups, judge.composites, members=SCALE_MEMBERS, seed=0)


def before_after_grid(pairs: PairBatch, before: Evaluation, after: Evaluation, judge: Judge) -> torch.Tensor:
    """Returns the picture grid [3, H, W]: lq · before · after · gt · map before · map after."""
    model = judge.final.toolbox.given["reward_model"]
    count = min(GRID_ROWS, len(pairs.indices))
    size = pairs.gt.shape[-2:]
    with torch.no_grad():
        lq = pairs.lq[:count].to(judge.final.toolbox.device)
        shown = [e.sr[:count].to(lq.device) for e in (before, after)]
        maps = [judge_pictures(model, sr, lq).degradation_map for sr in shown]
    rows = []
    for i in range(count):
        lq = F.interpolate(pairs.lq[i : i + 1], size=size, mode="nearest")[0]
        row = [lq, before.sr[i], after.sr[i], pairs.gt[i]]
        row += [paint_map(m[i].cpu()) for m in maps] if maps[0] is not None else []
        rows.append(row)
    titles = ["lq", "before RL", "after RL", "gt", "map before", "map after"][: len(rows[0])]
    return picture_grid(rows, titles, cell_px=160)
