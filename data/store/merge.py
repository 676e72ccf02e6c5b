"""Merges the shards of one build that other machines made."""

from __future__ import annotations

from pathlib import Path

from data.store.config import FREE_KEYS, BuildConfig
from data.store.parquet import DATA_FOLDER, INPUTS_FILE, NORMALISER_FILE, log_name
from data.store.plan import Chunk
from shared.app.errors import UserError
from shared.files import link_or_copy
from shared.runs.run_folder import RunFolder


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
