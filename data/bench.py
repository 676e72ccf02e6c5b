"""Measures what a row of the dataset costs on one core: each part, beside the bare operators and the restorer pool alone.

python -m data.bench configs/dataset.yaml runs=runs/mine          # prints a table, and the figures as JSON
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from data.degradation.presets import compose
from data.degradation.records import SCALES
from data.regions.targets import fit_normaliser
from data.store.config import BuildConfig
from data.store.plan import Chunk, pair_counter
from data.store.processes import make_row_maker
from data.store.rows import RowMaker, to_float
from shared.app.config import load_config
from shared.app.entry import run_command

PAIRS = 64
OURS = ("masks", "swap", "targets", "encode")  # what the build adds to operators and pool


def main(argv: Sequence[str]) -> None:
    config = load_config(BuildConfig, argv)
    figures = measure_parts(make_row_maker(config), pairs=PAIRS)
    rows = figures["rows"]
    print(f"{rows} rows of {config.crop_px} pixels on one core: {figures['rows_per_second']:.1f} rows a second")
    for part, seconds in figures["seconds_by_part"].items():
        print(f"  {part:<12}{1000 * seconds / rows:8.2f} ms a row")
    print(f"  bare operators {1000 * figures['bare_operators_seconds'] / rows:5.2f} ms a row")
    print(f"what the build adds, over operators and pool: {figures['added_share']:.2f}")
    print(json.dumps(figures))


def measure_parts(maker: RowMaker, *, pairs: int) -> dict[str, object]:
    """Returns the seconds of each part for the rows of the first `pairs` train pairs, and what to compare them with.

    `added_share` is what masks, swap, targets and encoding took over what operators and pool took.
    """
    chunk = Chunk("train", 0, 1, 0, pairs)
    normaliser = fit_normaliser(
        maker.fit_values(Chunk("train", 0, 1, 0, 8)),  # also loads every network the first time
        quantile=maker.config.targets.quantile,
        feature_peak=maker.targets.feature_distance.peak,
    )
    maker.restored(chunk)
    maker.clock.seconds.clear()
    started = time.perf_counter()
    rows = len(maker.rows(chunk, normaliser))
    seconds, by_part = time.perf_counter() - started, dict(maker.clock.seconds)
    added = sum(by_part[part] for part in OURS)
    return {
        "rows": rows,
        "rows_per_second": rows / seconds,
        "seconds_by_part": by_part,
        "bare_operators_seconds": bare_operators(maker, chunk),
        "added_share": added / (by_part["operators"] + by_part["pool"]),
    }


def bare_operators(maker: RowMaker, chunk: Chunk) -> float:
    """Returns the seconds that the same operators take in a plain albumentations pipeline, with the crops already made."""
    config, pictures, pipelines = maker.config, [], {}
    for number in range(chunk.first_pair, chunk.first_pair + chunk.pairs):
        counter = pair_counter(chunk.split, number)
        task = maker.plan.task_of(chunk.split, counter, seed=config.seed, face_fraction=config.face_fraction)
        dataset = maker.pair_dataset(chunk.split, task)
        gt = to_float(dataset.levels(counter)[0])
        pictures.append((task, gt))
        pipelines.setdefault(task, compose(config.degradation(task), gt.shape[:2], scale=SCALES[task]))
    started = time.perf_counter()
    for task, gt in pictures:
        pipelines[task](image=gt)
    return time.perf_counter() - started


if __name__ == "__main__":
    run_command(main)
