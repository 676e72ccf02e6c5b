"""Seconds by part, seconds side by side, and peak memory: what the benchmarks of every room are made of."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median

import torch


class Clock:
    """Seconds spent, by part; on a GPU a part ends when its last kernel has."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.device = device

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        synchronise(self.device)
        self.seconds[part] += time.perf_counter() - start


def synchronise(device: torch.device | None) -> None:
    """Waits for what a GPU still has to do; for anything else there is nothing to wait for."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved_seconds(
    functions: Mapping[str, Callable[[], object]], *, repeats: int, device: torch.device
) -> dict[str, float]:
    """Returns the median seconds of each function, called in turns after one call of each that does not count.

    In turns, because what else the machine does then slows all of them alike, and their ratio stays.
    """
    clock = Clock(device)
    for function in functions.values():
        function()
    synchronise(device)
    taken: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats):
        for name, function in functions.items():
            clock.seconds.clear()
            with clock(name):
                function()
            taken[name].append(clock.seconds[name])
    return {name: median(seconds) for name, seconds in taken.items()}


def peak_memory_mb(function: Callable[[], object], *, device: torch.device) -> float:
    """Returns by how many MB (2²⁰ bytes) a call's tensors exceed, at their most, what was allocated before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it complains of every GPU that is not there
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    # The process's own size would not do: what it frees, it keeps.
    changes = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        held += change.nbytes()
        peak = max(peak, held)
    return peak / 2**20
