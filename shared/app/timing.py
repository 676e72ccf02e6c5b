"""Seconds by part, seconds of alternatives side by side, and peak memory, for the benchmarks of every room."""

from __future__ import annotations

import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median

import torch


class Clock:
    """Adds up seconds by part; on a GPU a part ends when its last kernel has finished."""

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
    """Waits until a GPU has finished its queued work; does nothing on any other device."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved_seconds(
    functions: Mapping[str, Callable[[], object]], *, repeats: int, device: torch.device
) -> dict[str, float]:
    """Returns the median seconds of each function over `repeats` calls, after one warm-up call of each.

    The functions take turns, so that other load on the machine slows all of them alike and their ratios hold.
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
    """Returns the peak memory in MB (2²⁰ bytes) that a call's tensors take on top of what was allocated before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # without it the profiler warns about every missing GPU
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    # The size of the process would mislead: freed memory is not returned to the system.
    changes = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        held += change.nbytes()
        peak = max(peak, held)
    return peak / 2**20


def process_peak_mb() -> dict[str, float]:
    """Returns the most memory in MB (2²⁰ bytes) that this process, and on a GPU its tensors, have taken so far.

    Processes that it started are not counted.
    """
    try:
        import resource  # not on Windows
    except ImportError:
        return {}
    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux kilobytes
    found = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found["gpu"] = max(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count())) / 2**20
    return {name: round(value, 1) for name, value in found.items()}
