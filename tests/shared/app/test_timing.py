"""The benchmarks' own instruments: seconds by part, ratios of functions in turns, and peaks counted to the byte."""

from __future__ import annotations

import time

import pytest
import torch

from shared.app.timing import Clock, interleaved_seconds, peak_memory_mb

CPU = torch.device("cpu")


def test_a_clock_adds_up_by_part():
    clock = Clock()
    for _ in range(2):
        with clock("sleep"):
            time.sleep(0.02)
    with clock("nothing"):
        pass
    assert 0.04 <= clock.seconds["sleep"] < 0.4
    assert clock.seconds["nothing"] < 0.02


def test_functions_take_turns_and_the_first_round_does_not_count():
    calls = []

    def slow_at_first() -> None:
        time.sleep(0.3 if "a" not in calls else 0.0)
        calls.append("a")

    seconds = interleaved_seconds({"a": slow_at_first, "b": lambda: calls.append("b")}, repeats=3, device=CPU)
    assert calls == ["a", "b"] * 4
    assert seconds["a"] < 0.1


def test_peak_memory_is_what_tensors_hold_at_once():
    held = torch.ones(2**18)  # 1 MB of float32, made before: does not count

    def three_then_two() -> torch.Tensor:
        first, second, third = held + 1, held + 2, held + 3  # 3 MB at once
        first = third = None  # noqa: F841
        return second * 2  # 2 MB

    assert peak_memory_mb(three_then_two, device=CPU) == pytest.approx(3.0, abs=0.01)
