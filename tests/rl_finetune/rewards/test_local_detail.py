"""Local detail as a reward: the truth is best, aligned detail gains, and nothing that is not in the truth does."""

from __future__ import annotations

import math

import pytest
import torch

from rl_finetune.rewards.composite import Composite
from rl_finetune.rewards.local_detail import agreement_map
from rl_finetune.rewards.registry import Toolbox, bind, find_map, find_reward
from shared.vision.detail import high_band, low_pass
from tests.helpers.cheats import CHEATS, base_policy, photographs, upsampled

GT = photographs(8)
UP = upsampled(GT)
BASE = base_policy(UP, seed=1)
SOFT = low_pass(GT, 1.2)
LQ = GT[..., ::4, ::4]


def detail(sr: torch.Tensor, gt: torch.Tensor = GT) -> torch.Tensor:
    return bind(find_reward("detail"), Toolbox())(sr, gt, sr)


def wave(levels: float, *, phase: float = 0.0, side: int = 96) -> torch.Tensor:
    """.42 of a cycle per pixel along both axes: all but a fiftieth of it lies in the finest octave."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return 0.5 + levels / 255 * torch.sin(2 * math.pi * 0.42 * (x + y) + phase).expand(1, 3, side, side)


def of_wave(sr: torch.Tensor, gt: torch.Tensor) -> float:
    """What the finest octave says, far from the edges; the two others hold next to nothing and say 1 each."""
    return 3 * agreement_map(sr, gt, energy_weight=0.25)[..., 40:56, 40:56].mean().item() - 2


@pytest.mark.parametrize("name", ["chequerboard 2", "chequerboard 4", "diagonal hatch 1.5", "grain 4", "blur 1.2"])
def test_every_cheat_on_detail_loses_on_every_picture(name):
    for start in (GT, SOFT, UP, BASE) if name != "blur 1.2" else (GT, UP):
        assert (detail(CHEATS[name].apply(start, UP)) < detail(start)).all()


def test_halos_on_the_truth_lose():
    assert (detail(CHEATS["halos"].apply(GT, UP)) < detail(GT) - 0.02).all()


def test_grain_never_pays_for_missing_energy():
    # A picture without any fine detail, and grain up to the truth's energy and beyond.
    for levels in (2.0, 5.0, 10.0, 20.0):
        assert (detail(base_policy(low_pass(GT, 3.0), seed=2, levels=levels)) < detail(low_pass(GT, 3.0))).all()


def test_a_step_towards_the_truth_gains_and_so_does_its_detail():
    for start in (SOFT, UP, BASE):
        assert (detail(start + 0.3 * (GT - start)) > detail(start)).all()
    # The truth's own fine detail at .8 of its energy, against what a blur leaves of it.
    aligned = GT - (1 - math.sqrt(0.8)) * high_band(GT)
    assert (detail(aligned) > detail(SOFT) + 0.5 * (1 - detail(SOFT))).all()
    assert (detail(GT) > detail(aligned)).all()
    torch.testing.assert_close(detail(GT), torch.ones(len(GT)))


def test_the_value_by_hand():
    # A wave of 20 levels has ⟨b²⟩ = 200 levels² and c is 4. Half of it: ⟨a²⟩ = 50, ⟨ab⟩ = 100, so
    # ρ = 104 / √(54·204) = .9909 and e = log(204 / 54) = 1.3291: .9909·exp(−.3323) = .7107.
    assert of_wave(wave(10), wave(20)) == pytest.approx(0.7107, abs=0.02)
    assert of_wave(wave(20), wave(10)) == pytest.approx(0.7107, abs=0.02)
    # Turned by a quarter: ⟨ab⟩ = 0, so ρ = 4 / 204 = .0196 and e = 0. By a half: ρ = −196 / 204 = −.9608.
    assert of_wave(wave(20, phase=math.pi / 2), wave(20)) == pytest.approx(0.0196, abs=0.05)
    assert of_wave(wave(20, phase=math.pi), wave(20)) == pytest.approx(-0.9608, abs=0.08)
    # Nothing at all: ρ = √(4 / 204) = .1400, e = log 51 = 3.9318: .1400·exp(−.9830) = .0524.
    assert of_wave(wave(0), wave(20)) == pytest.approx(0.0524, abs=0.05)


def test_noise_of_a_grey_level_on_flat_ground_is_next_to_nothing_and_of_eight_is_not():
    flat = torch.full((1, 3, 64, 64), 0.5)
    small, large = (detail(base_policy(flat, seed=3, levels=levels), flat).item() for levels in (1.0, 8.0))
    assert 1 > small > 0.96
    assert large < 0.7


def test_the_map_is_where_and_its_mean_is_the_reward():
    broken = GT.clone()
    broken[..., 32:64, 64:96] = SOFT[..., 32:64, 64:96]
    error = bind(find_map("detail_error"), Toolbox())(broken, GT, LQ)
    assert error.shape == (len(GT), 1, 128, 128)
    inside, around = error[..., 36:60, 68:92].mean((1, 2, 3)), error[..., :32, :32].mean((1, 2, 3))
    assert (inside > 0.004).all()
    assert (inside > 20 * around).all()
    assert error[..., 110:, :16].max().item() < 1e-5
    torch.testing.assert_close(1 - 2 * error.mean((1, 2, 3)), detail(broken), atol=1e-6, rtol=0)


def test_sides_that_no_octave_divides():
    ragged = GT[:2, :, :45, :61]
    torch.testing.assert_close(detail(ragged, ragged), torch.ones(2))
    assert agreement_map(ragged, ragged, energy_weight=0.25).shape == (2, 1, 45, 61)


def test_its_gradient_is_finite_everywhere_and_leads_to_the_truth():
    at_truth = GT[:2].clone().requires_grad_()
    assert torch.isfinite(torch.autograd.grad(detail(at_truth, GT[:2]).sum(), at_truth)[0]).all()
    for start in (SOFT, UP, torch.full_like(GT, 0.5)):
        sr = start[:2].clone().requires_grad_()
        gradient = torch.autograd.grad(detail(sr, GT[:2]).sum(), sr)[0]
        assert torch.isfinite(gradient).all()
        assert ((gradient * (GT[:2] - start[:2])).sum((1, 2, 3)) > 0).all()
    composite = Composite.build({"detail": 1.0}, Toolbox(), maps=["detail_error"])
    composite.require_gradient(GT[:2], LQ[:2])
    assert composite(BASE[:2], GT[:2], LQ[:2]).degradation_maps["detail_error"].shape == (2, 1, 128, 128)
