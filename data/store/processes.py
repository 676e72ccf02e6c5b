"""The processes of a dataset build: each makes whole chunks, so that their number changes no byte."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from data.regions.targets import Distances, Normaliser
from data.store.config import BuildConfig
from data.store.parquet import DATA_FOLDER, write_rows
from data.store.plan import Chunk
from data.store.rows import RowMaker
from shared.app.errors import UserError

Each = Callable[[Callable, Sequence[Any]], Iterator[Any]]

_maker: RowMaker | None = None  # this process's own


def make_row_maker(config: BuildConfig) -> RowMaker:
    """Returns a RowMaker in a process that computes on one thread: sums must not depend on the number of cores."""
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    return RowMaker(config)


def fit_chunk(chunk: Chunk) -> tuple[Chunk, Distances]:
    """Returns the raw distances of a chunk of the fit pass."""
    return chunk, _maker.fit_values(chunk)


def write_chunk(task: tuple[Chunk, Normaliser, Path]) -> tuple[Chunk, dict[str, float]]:
    """Writes a chunk's file into the dataset folder; returns the seconds its parts took."""
    chunk, normaliser, out = task
    _maker.clock.seconds.clear()
    rows = _maker.rows(chunk, normaliser)
    with _maker.clock("write"):
        write_rows(out / DATA_FOLDER / chunk.file_name, rows, rows_per_pair=_maker.config.masks_per_pair)
    return chunk, dict(_maker.clock.seconds)


@contextmanager
def processes(config: BuildConfig, maker: RowMaker) -> Iterator[Each]:
    """Yields each(function, tasks) → results in any order, computed here by `maker` or in `config.workers` processes.

    Raises UserError when a process was killed.
    """
    global _maker
    if config.workers == 1:
        _maker = maker
        yield map
        return
    # Spawned, not forked: torch's threads and CUDA do not survive a fork.
    context = get_context("spawn")
    executor = ProcessPoolExecutor(config.workers, mp_context=context, initializer=_start, initargs=(config,))

    def each(function: Callable, tasks: Sequence[Any]) -> Iterator[Any]:
        for future in as_completed([executor.submit(function, task) for task in tasks]):
            yield future.result()

    try:
        yield each
    except BrokenProcessPool:
        raise UserError("a build process was killed, most often for want of memory; use fewer workers=") from None
    finally:
        executor.shutdown(cancel_futures=True)


def _start(config: BuildConfig) -> None:
    global _maker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C; chunks in work are finished
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _maker = make_row_maker(config)


def _end_with_parent() -> None:
    # A killed main process cannot stop its workers, which would wait for work for ever.
    parent_process().join()
    os._exit(1)
