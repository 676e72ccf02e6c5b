"""Restores held-out pictures with a policy's own sampler, measures them, and compares two policies picture by picture."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from data.degradation.pairs import PairConfig, PairDataset, collate_pairs, pairs_for_task
from data.degradation.records import PairBatch, Task
from data.sources.open_source import SourceConfig
from data.sources.splits import Split
from shared.app.errors import UserError
from shared.restorers.protocol import Restorer
from shared.runs.tracking import progress
from shared.seeds import derive_seed
from shared.vision.metrics import METRICS, PairedDifference, PairMetric, paired_difference

LEVEL = 0.05  # of a row's test
# measure(sr, gt, lq) → {name: [B]}: rewards and metrics alike
Measure = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Mapping[str, torch.Tensor]]


@dataclass(frozen=True)
class Evaluation:
    """One restorer on N held-out pictures."""

    sr: torch.Tensor  # [N, 3, H, W]
    values: dict[str, torch.Tensor]  # name → [N]
    seconds_per_picture: float


@dataclass(frozen=True)
class ChangeRow:
    """One line of a before/after table."""

    name: str
    before: float
    after: float
    change: PairedDifference
    gain: PairedDifference  # the change turned so that more is better; a reward's is the change itself
    arrow: str  # which way is better
    references: Mapping[str, float]  # column title → mean of what the table is read beside

    @property
    def verdict(self) -> str:
        """better, worse, or level: by the two-sided paired t-test over the pictures, this row by itself."""
        if self.gain.p >= LEVEL:
            return "level"
        return "better" if self.gain.mean > 0 else "worse"


def held_out_pairs(
    source: SourceConfig, pairs: PairConfig, *, task: Task, split: Split, count: int, crop_px: int, seed: int
) -> PairBatch:
    """Returns one pair from each of `count` distinct pictures of a split. Raises UserError when it holds fewer."""
    dataset: PairDataset = pairs_for_task(
        source, replace(pairs, crop_px=crop_px, pairs=count, cache=False), task=task, split=split, seed=seed
    )
    available = len(dataset.image_ids)
    if available < count:
        raise UserError(
            f"{count} {split} pictures are wanted, but the source has {available} in that split; give more pictures, "
            f"raise source.{split}_fraction, or ask for fewer (eval_images, check_images)"
        )
    return collate_pairs([dataset[i] for i in range(count)])


def evaluate(
    restorer: Restorer,
    pairs: PairBatch,
    measures: Sequence[Measure],
    *,
    batch: int,
    of_all: Mapping[str, PairMetric] | None = None,
    seed: int,
    title: str,
    quiet: bool,
    device: torch.device | str = "cpu",
) -> Evaluation:
    """Returns pictures and measures; picture i's noise depends on (seed, pair i) alone, so both policies see the same noise.

    `device`: where the restorer and the measures' networks are; what is returned is on the CPU.
    """
    restored, seconds = [], 0.0
    starts = range(0, len(pairs.indices), batch)
    for start in progress(starts, title=title, unit="batch", quiet=quiet):
        window = slice(start, start + batch)
        seeds = [derive_seed(seed, "evaluate", index) for index in pairs.indices[window]]
        began = time.perf_counter()
        sr = restorer.restore(pairs.lq[window].to(device), sample_seeds=seeds)
        seconds += time.perf_counter() - began
        restored.append(sr.cpu())
    sr = torch.cat(restored)
    return Evaluation(
        sr,
        measured(sr, pairs, measures, batch=batch, of_all=of_all, device=device),
        seconds_per_picture=seconds / len(pairs.indices),
    )


@torch.no_grad()
def measured(
    sr: torch.Tensor,
    pairs: PairBatch,
    measures: Sequence[Measure],
    *,
    batch: int,
    of_all: Mapping[str, PairMetric] | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, torch.Tensor]:
    """Returns {name: [N]} on the CPU of restorations [N, 3, H, W] of the pairs; sr may also be the truth.

    `of_all`: metrics in which a picture's value depends on all the others.
    """
    values = []
    for start in range(0, len(sr), batch):
        pictures = [p[start : start + batch].to(device) for p in (sr, pairs.gt, pairs.lq)]
        values.append({name: v.cpu() for measure in measures for name, v in measure(*pictures).items()})
    each = {name: torch.cat([part[name] for part in values]) for name in values[0]}
    return each | {name: function(sr, pairs.gt) for name, function in (of_all or {}).items()}


def change_rows(
    before: Evaluation, after: Evaluation, references: Mapping[str, Mapping[str, torch.Tensor]]
) -> list[ChangeRow]:
    """Returns the table's rows, in the order of the measures, each over the pictures that have a value both times.

    `references` holds {column title: {measure: [N]}}.
    """
    rows = []
    for name in before.values:
        both = torch.stack([before.values[name], after.values[name]])
        both = both[:, both.isfinite().all(dim=0)]  # a face that is not found has no landmarks
        if both.shape[1] < 2:
            continue
        first, second = both.tolist()
        change = gain = paired_difference(first, second)
        arrow = "↑"
        if metric := METRICS.get(name):
            gain = paired_difference(metric.goodness(first), metric.goodness(second))
            arrow = metric.arrow
        beside = {title: float(values[name].nanmean()) for title, values in references.items()}
        rows.append(ChangeRow(name, float(both[0].mean()), float(both[1].mean()), change, gain, arrow, beside))
    return rows


def format_table(rows: Sequence[ChangeRow], *, title: str, seconds: tuple[float, float]) -> str:
    """Returns the table as text, with seconds per picture before and after."""
    columns = list(rows[0].references)
    head = "".join(f"{column:>14}" for column in columns)
    lines = [
        f"{title}, n = {rows[0].change.n}; better, worse: paired t-test, two-sided p < {LEVEL:g} in the row by itself",
        f"{'':22}{'before':>9}{'after':>9}{'change ± s.e.':>20}   {'':7}{head}",
    ]
    for row in rows:
        beside = "".join(f"{row.references[column]:14.4f}" for column in columns)
        missing = f"   {row.change.n} have a value" if row.change.n < rows[0].change.n else ""
        change = f"{row.change.mean:+.4f} ± {row.change.standard_error:.4f}"
        lines.append(
            f"{row.name + ' ' + row.arrow:22}{row.before:9.4f}{row.after:9.4f}{change:>20}   {row.verdict:7}{beside}{missing}"
        )
    lines.append(f"{'seconds per picture':22}{seconds[0]:9.3f}{seconds[1]:9.3f}")
    return "\n".join(lines)
