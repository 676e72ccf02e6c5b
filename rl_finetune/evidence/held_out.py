"""Two policies beside each other on pictures that RL does not train on: as a table, as a grid, and as numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data.degradation.pairs import PairConfig, collate_pairs, pairs_for_task
from data.degradation.records import PairBatch, Task
from data.sources.open_source import SourceConfig
from data.sources.splits import Split
from rl_finetune.evidence.gallery import GRID_FILE, before_after_grid, write_gallery
from rl_finetune.evidence.judges import reward_parts
from rl_finetune.evidence.measure import (
    Evaluation,
    Measure,
    change_rows,
    evaluate,
    format_table,
    held_out_pairs,
    measured,
)
from rl_finetune.evidence.references import TRUTH
from rl_finetune.evidence.whole_set import KERNEL_DISTANCE, WholeSet
from rl_finetune.rewards.faces import identity, load_identity
from rl_finetune.rewards.judge import Judge
from rl_finetune.rewards.objective import OBJECTIVE, RewardScale, StageScales, measure_scales, objective
from shared.diffusion.sampler import SamplerSpec
from shared.restorers.protocol import Restorer
from shared.runs.run_folder import RunFolder
from shared.vision.available import MetricWeights, open_metrics
from shared.vision.images import save_image
from shared.vision.metrics import METRICS, PairMetric, judging
from shared.vision.pattern import hatch
from shared.vision.removal import REMOVALS

EVALUATION_FILE = "evaluation.json"
REMOVED = "removed"  # its key: what is left of the proxy once the pictures have lost what nobody would miss
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
            of_all=panel.of_all,
            seed=self.seed,
            title=title,
            quiet=quiet,
            device=panel.device,
        )


@dataclass(frozen=True)
class Panel:
    """What is measured, and what is missing and why."""

    measures: list[Measure]
    of_each: Mapping[str, PairMetric]  # the metrics among them
    of_all: Mapping[str, PairMetric]  # metrics that are measured on all pictures at once
    proxy: str  # which measure training maximises
    judges: tuple[str, ...]  # the metrics that the hacking gauge reads
    refused: Mapping[str, str]  # the others, and why: most share something with a reward
    absent: Mapping[str, str]  # name → why it is not measured
    weights: MetricWeights
    device: torch.device

    def only(self, names: Sequence[str]) -> list[Measure]:
        """Returns the measure of these metrics alone, for what is measured many times."""
        return [lambda sr, gt, lq: {name: self.of_each[name](sr, gt) for name in names}]


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
    Writes `before_after.png`, `evaluation.json` (the figures, and every picture's values) and the pictures on which RL
    lost and gained most into `folder`.
    """
    pairs = held_out.draw(split, images)
    found = {
        name: held_out.evaluate(restorer, pairs, panel, title=f"{name} RL, {held_out.task}", quiet=False)
        for name, restorer in (("before", before), ("after", after))
    }
    whole = WholeSet.open(panel.weights, images=images, batch=held_out.batch, device=panel.device)
    for name, pictures in {TRUTH: pairs.gt, **{name: each.sr for name, each in found.items()}}.items():
        whole.add(name, pictures)
    beside = {}
    for title, restorer in references.items():
        reference = held_out.evaluate(restorer, pairs, panel, title=f"{title}, {held_out.task}", quiet=False)
        whole.add(title, reference.sr)
        beside[title] = reference.values
    beside[TRUTH] = measured(
        pairs.gt, pairs, panel.measures, batch=held_out.batch, of_all=panel.of_all, device=panel.device
    )
    rows = change_rows(found["before"], found["after"], beside)
    seconds = tuple(each.seconds_per_picture for each in found.values())
    shared_pattern = {name: hatch(each.sr) for name, each in found.items()} | {"truth": hatch(pairs.gt)}
    line = ", ".join(f"{value:.2f} {name}" for name, value in shared_pattern.items())
    title = f"{held_out.task}: {images} held-out pictures, {sampler.words()}"
    figures = {
        "table": format_table(rows, title=title, seconds=seconds)
        + f"\nhatch on every picture, grey levels: {line}; far above the truth's, it is a pattern of the latent grid"
        + whole.lines(),
        "hatch": shared_pattern,
        KERNEL_DISTANCE: whole.as_json(),
        "rows": [{**dataclasses.asdict(row), "z": row.change.z, "verdict": row.verdict} for row in rows],
        "replacements": dict(judge.final.replacements),
        "absent": {**panel.absent, **whole.absent},
        "pictures": images,
        "seconds_per_picture": seconds,
    }
    save_image(folder / GRID_FILE, before_after_grid(pairs, found["before"], found["after"], judge))
    by_method = {name: each.values for name, each in found.items()} | beside
    values = {name: {k: v.tolist() for k, v in own.items()} for name, own in by_method.items()}
    removed = {name: after_removals(each.sr, pairs, panel, batch=held_out.batch) for name, each in found.items()}
    also = {REMOVED: {name: {k: v.tolist() for k, v in own.items()} for name, own in removed.items()}}
    also["gallery"] = write_gallery(folder, pairs, found["before"], found["after"], judge)
    RunFolder(folder).write_json(EVALUATION_FILE, {**figures, "image_ids": pairs.image_ids, **also, **values})
    return figures


def open_panel(
    judge: Judge,
    *,
    scales: Mapping[str, RewardScale],
    task: Task,
    identity_weights: str,
    weights: MetricWeights,
) -> Panel:
    """Returns the last stage's reward and its parts, and every metric whose weights are there.

    scales: the rewards' (`objective_scales`) where training adds them normalised; `objective` is then their sum as
    training adds them. Raises UserError when weights that are named cannot be loaded.
    """
    device = torch.device(judge.final.toolbox.device)

    def rewards(sr: torch.Tensor, gt: torch.Tensor, lq: torch.Tensor) -> Mapping[str, torch.Tensor]:
        judged = judge.final(sr, gt, lq)
        normalised = {OBJECTIVE: objective(judged.values, judge.final.weights, scales)} if scales else {}
        # A reward and a panel metric of one name are the same function: one row is enough.
        return {**normalised, "reward": judged.total, **judged.values}

    metrics = open_metrics(weights, faces=task == "face")
    measures: list[Measure] = [rewards, lambda sr, gt, lq: {name: f(sr, gt) for name, f in metrics.of_each.items()}]
    names, absent = [*metrics.of_each, *metrics.of_all], dict(metrics.absent)
    if identity_weights:
        network = load_identity(identity_weights, device=device, allow_download=weights.allow_download)
        measures.append(lambda sr, gt, lq: {IDENTITY: identity(sr, gt, lq, identity_network=network)})
        names.append(IDENTITY)
    elif task == "face":
        absent[IDENTITY] = "identity_weights names no face recogniser"
    optimised = [*judge.final.weights, *judge.map_weights]
    parts = reward_parts(optimised, judge.final.toolbox.settings, identity_weights=identity_weights)
    judges, refused = judging([name for name in METRICS if name in names], parts)
    return Panel(
        measures=measures,
        of_each=metrics.of_each,
        of_all=metrics.of_all,
        proxy=OBJECTIVE if scales else "reward",
        judges=judges,
        refused=refused,
        absent=absent,
        weights=weights,
        device=device,
    )


def after_removals(sr: torch.Tensor, pairs: PairBatch, panel: Panel, *, batch: int) -> dict[str, torch.Tensor]:
    """Returns {removal: [N]}: what training maximises, of restorations that have lost what nobody would miss."""
    rewards = panel.measures[:1]
    return {
        name: measured(remove(sr), pairs, rewards, batch=batch, device=panel.device)[panel.proxy]
        for name, remove in REMOVALS.items()
    }


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
