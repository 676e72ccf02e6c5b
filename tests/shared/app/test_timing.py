"""The benchmarks' own instruments: seconds by part, ratios of functions in turns, and peaks counted to the byte."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import shared.app.timing
from shared.app.timing import Clock, interleaved_seconds, peak_memory_mb

CPU = torch.device("cpu")


class HandClock:
    """A clock that goes on only when it is told to: whatever else runs on the machine takes no time."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def hand(monkeypatch) -> HandClock:
    hand = HandClock()
    monkeypatch.setattr(shared.app.timing, "time", SimpleNamespace(perf_counter=hand.perf_counter))
    return hand


def test_a_clock_adds_up_by_part(hand):
    clock = Clock()
    for _ in range(2):
        with clock("sleep"):
            hand.wait(0.5)
    with clock("nothing"):
        pass
    assert clock.seconds == {"sleep": 1.0, "nothing": 0.0}


def test_functions_take_turns_and_the_first_round_does_not_count(hand):
    calls = []

    def slow_at_first() -> None:
        hand.wait(0.25 if calls else 64.0)
        calls.append("a")

    seconds = interleaved_seconds({"a": slow_at_first, "b": lambda: calls.append("b")}, repeats=3, device=CPU)
    assert calls == ["a", "b"] * 4
    assert seconds == {"a": 0.25, "b": 0.0}


def test_peak_memory_is_what_tensors_hold_at_once():
    held = torch.ones(2**18)  # 1 MB of float32, made before: does not count

    def three_then_two() -> torch.Tensor:
        first, second, third = held + 1, held + 2, held + 3  # 3 MB at once
        first = third = None  # noqa: F841
        return second * 2  # 2 MB

    assert peak_memory_mb(three_then_two, device=CPU) == pytest.approx(3.0, abs=0.01)
