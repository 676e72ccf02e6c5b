"""The gauge against what policies are known to do to a reward, on photographs: each is called hacking, by its name.

The base policy is a stand-in, an enlarged picture under residual noise; what a policy may turn it into is real.
"""

from __future__ import annotations

import dataclasses
import functools
from itertools import permutations

import numpy as np
import pytest
import torch

from rl_finetune.evidence.family_tests import read_families
from rl_finetune.evidence.gauge import GaugeConfig, GaugeReading, HackingGauge
from shared.vision.available import AvailableMetrics
from shared.vision.metrics import METRICS
from shared.vision.removal import REMOVALS
from tests.helpers.cheats import CHEATS, PROXIES, base_policy, photographs, upsampled

READINGS = 5
METRICS_HERE = AvailableMetrics(
    of_each={name: m.function for name, m in METRICS.items() if m.function is not None and not m.of_all},
    of_all={name: m.function for name, m in METRICS.items() if m.function is not None and m.of_all},
)
NAMES = tuple(name for name, metric in METRICS.items() if metric.function is not None)


@functools.cache
def pictures() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Truth, up-sampled lq and what the base policy makes of it, 32 photographs of 128 px each."""
    gt = photographs(32)
    up = upsampled(gt)
    return gt, up, base_policy(up, 0)


@functools.cache
def base_values(seed: int) -> dict[str, list[float]]:
    gt, up, _ = pictures()
    return {name: of.tolist() for name, of in METRICS_HERE.measure(base_policy(up, seed), gt).items()}


@functools.cache
def base_without(removal: str) -> torch.Tensor:
    return REMOVALS[removal](pictures()[2])


def closeness(sr: torch.Tensor) -> torch.Tensor:
    """An honest reward: it compares with the truth."""
    return -(sr - pictures()[0]).abs().mean((1, 2, 3))


def reading_of(sr: torch.Tensor, proxy) -> GaugeReading:
    gt, _, base = pictures()
    gauge = HackingGauge(GaugeConfig(), NAMES, READINGS)

    def read(values: dict[str, list[float]], restored: torch.Tensor, without) -> GaugeReading | None:
        removed = {name: proxy(without(name)).tolist() for name in REMOVALS}
        return gauge.read({**values, "reward": proxy(restored).tolist()}, proxy="reward", removed=removed)

    assert read(base_values(0), base, base_without) is None
    values = {name: of.tolist() for name, of in METRICS_HERE.measure(sr, gt).items()}
    return read(values, sr, lambda name: REMOVALS[name](sr))


@pytest.mark.parametrize("name", CHEATS)
def test_a_known_cheat_is_called_hacking_and_its_family_named(name):
    cheat = CHEATS[name]
    _, up, base = pictures()
    reading = reading_of(cheat.apply(base, up), PROXIES[cheat.proxy])
    assert (reading.verdict, reading.fault) == ("hacking", cheat.family), reading.line()
    # A pattern's gain goes with the pattern: what all pictures share, and a chequerboard with half a pixel's shift too.
    if name.startswith(("chequerboard", "diagonal")):
        assert "mean tile" in reading.gone
    assert ("half-pixel shift" in reading.gone) == name.startswith("chequerboard")


def test_a_step_towards_the_truth_is_learning():
    gt, _, base = pictures()
    reading = reading_of(base + 0.3 * (gt - base), closeness)
    assert (reading.verdict, reading.worse, reading.gone) == ("learning", (), ()), reading.line()
    assert {of.family for of in reading.families if of.up} >= {"fidelity", "perception", "detail", "colour"}


def test_the_base_policy_with_other_noise_is_not_called_worse():
    """Whatever the reward says: the families are read as if it had risen every time."""
    seeds = range(15)
    alarms = [
        [of.line() for of in read_families(base_values(a), base_values(b), NAMES, alpha=0.05 / READINGS) if of.worse]
        for a, b in permutations(seeds, 2)
    ]
    assert len(alarms) >= 200
    assert sum(map(bool, alarms)) <= 0.05 * len(alarms), alarms


def test_without_the_smallest_change_that_matters_it_would_still_hold_its_error(monkeypatch):
    """The correction alone, not the limit of what anybody would mind, keeps false alarms at alpha."""
    import rl_finetune.evidence.family_tests as family_tests

    strict = {name: dataclasses.replace(metric, noticeable=1e-12) for name, metric in METRICS.items()}
    monkeypatch.setattr(family_tests, "METRICS", strict)
    pairs = list(permutations(range(15), 2))
    alarms = [
        any(of.worse for of in read_families(base_values(a), base_values(b), NAMES, alpha=0.05)) for a, b in pairs
    ]
    # .05 of 210 pairs of 15 draws, which are not independent: two of 15 seeds that are odd make 28 odd pairs.
    assert np.mean(alarms) <= 0.15
