"""The base policy's curve: on simulated values with a known answer, and measured with restorers made up for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data.degradation.records import PairBatch
from rl_finetune.evidence.curve import (
    Curve,
    beyond,
    curve_settings,
    measure_curve,
    sweep,
)
from shared.diffusion.sampler import SamplerSpec
from shared.seeds import gaussian
from tests.helpers.simulated_curves import PICTURES, PLANE, curve_of, difficulties

DEPLOYED = SamplerSpec(8, 1.0)


def gains(count: int, *, setting: SamplerSpec = DEPLOYED, luck: float = 0.15, **tuned) -> int:
    """Returns in how many of `count` redraws the tuned policy is called beyond the base's curve."""
    found = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        difficulty = difficulties(rng)
        base, other = curve_of(rng, difficulty, luck=luck), curve_of(rng, difficulty, luck=luck, **tuned)
        found.append(beyond(base, other, setting=setting, plane=PLANE).beyond)
    return sum(found)


@pytest.mark.parametrize("setting", [DEPLOYED, SamplerSpec(1, 0.0)], ids=SamplerSpec.words)
def test_the_same_policy_with_other_noise_is_not_beyond_its_own_curve(setting):
    assert gains(200, setting=setting) <= 10


def test_false_alarms_stay_at_the_level_where_one_sampler_of_the_base_is_all_that_counts():
    # The hardest case: every other sampler of the base is far worse, and the tuned one equals the best.
    alarms = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        difficulty = difficulties(rng)
        base, tuned = curve_of(rng, difficulty), curve_of(rng, difficulty)
        worse = {
            s: {"psnr": v["psnr"] - 5, "lpips_distance": v["lpips_distance"] + 0.2} for s, v in base.values.items()
        }
        base = Curve({**worse, DEPLOYED: base.values[DEPLOYED]})
        alarms += beyond(base, tuned, setting=DEPLOYED, plane=PLANE).beyond
    assert 1 <= alarms <= 20


def test_a_whole_sweep_raises_as_few_false_alarms_as_one_sampler():
    alarms = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        difficulty = difficulties(rng)
        found = sweep(curve_of(rng, difficulty), curve_of(rng, difficulty), plane=PLANE)
        assert list(found) == list(curve_settings())
        alarms += any(each.beyond for each in found.values())
    assert alarms <= 5


def test_the_very_same_values_are_beyond_nowhere():
    curve = curve_of(np.random.default_rng(0), difficulties(np.random.default_rng(1)))
    found = sweep(curve, curve, plane=PLANE)
    assert not any(each.beyond for each in found.values())
    assert all(each.p == 1.0 for each in found.values())


@pytest.mark.parametrize("effort", [0.0, 0.3, 0.6, 0.9])
def test_less_noise_alone_is_no_gain(effort):
    # The tuned policy's eight noisy steps invent as little as fewer or quieter ones: PSNR up, LPIPS worse.
    assert gains(100, luck=0.05, effort=effort) <= 5


def test_running_past_the_end_of_the_curve_is_no_gain():
    # Blurrier than the base's one step: +.3 dB over the best of them, which no sampler has, at LPIPS .06 worse.
    past = gains(100, luck=0.02, setting=SamplerSpec(1, 0.0), shift=(0.3, 0.06))
    assert past == 0


def test_better_in_both_is_beyond():
    assert gains(100, shift=(0.8, -0.03)) >= 95


def test_a_gain_in_one_metric_that_costs_the_other_counts_by_its_price():
    # Spreads are 4 dB and .1. +.8 dB is .2 spreads; LPIPS .004 worse is .04 of them, .06 worse is .6. From one step,
    # the end of the curve.
    one = SamplerSpec(1, 0.0)
    assert gains(100, setting=one, luck=0.05, shift=(0.8, 0.004)) >= 95
    assert gains(100, setting=one, luck=0.05, shift=(0.8, 0.06)) == 0


def test_a_mixture_of_two_samplers_is_within_the_curve():
    # On a curve that bends inwards the chord between its ends lies outside it, but switching between the two ends
    # reaches the chord; being better than each sampler in a metric of its own is not enough.
    def curve(places: dict[SamplerSpec, tuple[float, float]]) -> Curve:
        rng = np.random.default_rng(0)
        spread = np.linspace(-1, 1, PICTURES)
        values = {}
        for setting, (psnr, lpips) in places.items():
            noise = rng.normal(0, 0.01, (2, PICTURES))
            values[setting] = {"psnr": psnr + spread + noise[0], "lpips_distance": lpips - spread + noise[1]}
        return Curve(values)

    ends = {SamplerSpec(1, 0.0): (1.0, 1.0), DEPLOYED: (0.0, 0.0)}
    middle = curve({DEPLOYED: (0.5, 0.5)})
    assert not beyond(curve({**ends, SamplerSpec(2, 0.0): (0.3, 0.7)}), middle, setting=DEPLOYED, plane=PLANE).beyond
    further = curve({DEPLOYED: (0.56, 0.44)})
    found = beyond(curve({**ends, SamplerSpec(2, 0.0): (0.3, 0.7)}), further, setting=DEPLOYED, plane=PLANE)
    assert found.beyond
    assert found.weight == 0.5


def test_the_p_by_hand():
    # Three pictures, spreads 1 and 1 (values 0, 1, 2). Tuned − base is (+.2, +.4, +.6) in PSNR and nothing in LPIPS:
    # at λ = 2/3 the margin is .8/3 with deviation .4/3, so t = √3 · 2 = 3.464 on 2 degrees of freedom, for any λ. The
    # one-sided p is .0371, times three weights .1113.
    base = Curve({DEPLOYED: {"psnr": np.array([0.0, 1.0, 2.0]), "lpips_distance": np.array([2.0, 1.0, 0.0])}})
    after = {"psnr": np.array([0.2, 1.4, 2.6]), "lpips_distance": np.array([2.0, 1.0, 0.0])}
    found = beyond(base, Curve({DEPLOYED: after}), setting=DEPLOYED, plane=PLANE)
    assert found.p == pytest.approx(0.1113, abs=1e-4)
    assert not found.beyond
    assert "8 steps, SDE η 1: not beyond the base's curve in psnr and lpips_distance" in found.line()


def test_settings_name_one_step_once_and_the_runs_own():
    settings = curve_settings()
    assert len(settings) == 10
    assert [s.steps for s in settings].count(1) == 1
    assert curve_settings(SamplerSpec(8, 0.5, window=8)) == settings
    own = SamplerSpec(20, 1.0)
    assert curve_settings(own, own.as_ode())[-2:] == (own, SamplerSpec(20, 0.0))


class NoisyRestorer:
    """Adds its seed's noise, as much as η says, and remembers nothing."""

    scale = 1

    def __init__(self, spec: SamplerSpec, log: list[SamplerSpec]) -> None:
        self.spec = spec
        log.append(spec)

    def restore(self, lq, *, sample_seeds):
        return (lq + 0.1 * self.spec.eta * gaussian(sample_seeds, lq.shape[1:])).clamp(0, 1)


@pytest.fixture
def pairs() -> PairBatch:
    gt = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return PairBatch(gt=gt, lq=gt * 0.9, image_ids=tuple(f"p{i}" for i in range(6)), indices=tuple(range(6)))


def error(sr, gt, lq):
    return {"error": (sr - gt).square().mean((1, 2, 3)), "brightness": sr.mean((1, 2, 3))}


def test_a_curve_is_measured_once_a_sampler_with_the_same_noise(pairs):
    log: list[SamplerSpec] = []
    settings = [SamplerSpec(1, 1.0), SamplerSpec(1, 0.0), SamplerSpec(2, 1.0), SamplerSpec(4, 1.0)]
    curve = measure_curve(lambda spec: NoisyRestorer(spec, log), pairs, [error], batch=4, seed=3, settings=settings)
    assert log == list(curve.values) == [SamplerSpec(1, 0.0), SamplerSpec(2, 1.0), SamplerSpec(4, 1.0)]
    np.testing.assert_array_equal(curve.of(SamplerSpec(2, 1.0), "error"), curve.of(SamplerSpec(4, 1.0), "error"))
    assert (curve.of(SamplerSpec(2, 1.0), "error") > curve.of(SamplerSpec(1, 0.7), "error")).all()
    with pytest.raises(ValueError, match="no error of 8 steps, ODE: measure it first"):
        curve.of(SamplerSpec(8, 0.0), "error")


def test_what_was_evaluated_before_is_not_measured_again(pairs):
    log: list[SamplerSpec] = []
    known = {SamplerSpec(2, 1.0, window=2): {"error": torch.arange(6.0), "reward": torch.zeros(6)}}
    settings = [SamplerSpec(2, 1.0), SamplerSpec(2, 0.0)]
    curve = measure_curve(
        lambda spec: NoisyRestorer(spec, log), pairs, [error], batch=4, seed=3, settings=settings, known=known
    )
    assert log == [SamplerSpec(2, 0.0)]
    assert curve.of(SamplerSpec(2, 1.0), "error").tolist() == [0, 1, 2, 3, 4, 5]
    # Only what every sampler has can be compared.
    assert list(curve.values[SamplerSpec(2, 0.0)]) == ["error"]


def test_every_sampler_of_a_curve_draws_its_noise_where_the_runs_own_does():
    own = SamplerSpec(steps=3, eta=0.5, noise="device")
    assert {spec.noise for spec in curve_settings(own) if spec.eta} == {"device"}
    assert {spec.noise for spec in curve_settings()} == {"cpu"}
