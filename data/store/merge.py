"""Shards of one build: which one a launched process makes, and how all of them are merged.

torchrun and `accelerate launch` tell each process its RANK and the WORLD_SIZE; all of them must see the same disk.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

from data.store.config import FREE_KEYS, BuildConfig
from data.store.parquet import DATA_FOLDER, INPUTS_FILE, NORMALISER_FILE, log_name
from data.store.plan import Chunk
from shared.app.errors import UserError
from shared.files import link_or_copy
from shared.runs.run_folder import RunFolder

WAIT_S = 2.0  # between looks for the files of other processes


def launched() -> tuple[int, int]:
    """Returns (rank, processes) as the launcher says; (0, 1) without one."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def is_shared(config: BuildConfig) -> bool:
    """Whether a launcher started several processes for the build, and no shard was named by hand."""
    return launched()[1] > 1 and config.shard == "1/1"


def own_shard(config: BuildConfig, rank: int, processes: int) -> BuildConfig:
    """Returns the build of one process: every n-th file, in a folder beside the dataset's own."""
    out = shards_folder(config) / f"{rank + 1}-of-{processes}"
    return replace(config, out=str(out), shard=f"{rank + 1}/{processes}", merge=(), push="")


def whole_build(config: BuildConfig, processes: int) -> BuildConfig:
    """Returns the build that takes over the files of all processes."""
    return replace(config, merge=tuple(own_shard(config, rank, processes).out for rank in range(processes)))


def shards_folder(config: BuildConfig) -> Path:
    """Returns the folder that holds the processes' shards until they are merged."""
    return Path(f"{config.out}.shards")


def wait_for_files(config: BuildConfig, chunks: list[Chunk]) -> None:
    """Returns when every chunk's file is in one of the folders to be merged. A launcher stops all when one fails."""
    missing = {chunk.file_name for chunk in chunks}
    while True:
        for folder in config.merge:
            missing -= {path.name for path in (Path(folder) / DATA_FOLDER).glob("*.parquet")}
        if not missing:
            return
        time.sleep(WAIT_S)


def use_own_gpu() -> None:
    """Lets this process see one GPU of its machine alone, in turn, before anything has looked for GPUs."""
    seen = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each]
    rank = int(os.environ.get("LOCAL_RANK", 0))
    os.environ["CUDA_VISIBLE_DEVICES"] = seen[rank % len(seen)] if seen else str(rank)


def check_shards(config: BuildConfig) -> None:
    """Raises UserError unless every folder of `merge` is a shard of this build."""
    for folder in map(Path, config.merge):
        if not RunFolder(folder).config_path.exists():
            raise UserError(f"merge: {folder} is no dataset folder; name folders that shard=k/n builds wrote")
        RunFolder.check(folder, config, free_keys=FREE_KEYS)
        for other in map(Path, config.merge):
            _require_same(folder, other)


def take_over(run: RunFolder, config: BuildConfig, chunks: list[Chunk]) -> None:
    """Links the finished files of the shards in `merge` into `run`, or copies them from another disk.

    Raises UserError when they differ from its own.
    """
    for folder in map(Path, config.merge):
        _require_same(folder, run.path)
        files = [f"{DATA_FOLDER}/{chunk.file_name}" for chunk in chunks] + [log_name(chunk) for chunk in chunks]
        for name in (NORMALISER_FILE, *files):
            if (folder / name).exists() and not (run.path / name).exists():
                link_or_copy(folder / name, run.path / name)


def _require_same(folder: Path, other: Path) -> None:
    # The same config over other pictures or weights is another build.
    for name in (INPUTS_FILE, NORMALISER_FILE):
        here, there = folder / name, other / name
        if here.exists() and there.exists() and here.read_bytes() != there.read_bytes():
            raise UserError(f"merge: {here} differs from {there}; both must be shards of one build")
