"""Credit in space and time: hand arithmetic, and bias and variance against gradients known in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from rl_finetune.credit.cells import CELL_CLIP, smooth_cells, spacetime_advantages, spatial_advantages
from rl_finetune.credit.pictures import group_advantages
from rl_finetune.credit.steps import credited_gains, temporal_advantages
from shared.app.errors import UserError
from shared.diffusion.latent_grid import to_latent_grid


def test_maps_are_averaged_over_cells():
    # 4×4 pixels 0…15 in 2×2 cells: the first holds 0 1 4 5, mean 2.5; the last 10 11 14 15, mean 12.5.
    maps = torch.arange(16.0).reshape(1, 1, 1, 4, 4)
    assert to_latent_grid(maps, (2, 2)).tolist() == [[[[2.5, 4.5], [10.5, 12.5]]]]
    with pytest.raises(ValueError, match="name the cell's side"):
        to_latent_grid(maps, (3, 2))
    with pytest.raises(ValueError, match="cannot cover"):
        to_latent_grid(maps, (1, 2), cell_px=2)


def test_padding_counts_for_nothing():
    # 3×5 pixels of ones on a 2×4 grid of 2-pixel cells: every cell with a pixel means 1, the column beyond means 0.
    means = to_latent_grid(torch.ones(1, 1, 3, 5), (2, 4), cell_px=2)
    assert means.tolist() == [[[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0]]]
    # And a cell half outside means its own pixels: the last row of 0…14 is 10…14, its third cell holds 14 alone.
    means = to_latent_grid(torch.arange(15.0).reshape(1, 1, 3, 5), (2, 3), cell_px=2)
    assert means[0, 1].tolist() == [10.5, 12.5, 14.0]


def test_smoothing_by_hand():
    cells = torch.zeros(1, 3, 3)
    cells[0, 0, 0] = 9.0
    # The corner reaches the four cells around it; beyond the border counts as 0, so each mean is 9/9.
    assert smooth_cells(cells, 1)[0].tolist() == [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    assert smooth_cells(cells, 0) is cells


def test_spatial_advantages_by_hand():
    maps = torch.zeros(1, 2, 2, 2)
    maps[0, 0] = torch.tensor([[0.4, 0.0], [0.0, 0.0]])
    maps[0, 1] = torch.tensor([[0.0, 0.0], [0.0, 0.2]])
    # −map less the group's mean: ∓.2 where the first is broken, ±.1 where the second is. Mean square over both members
    # and four cells: (2·.04 + 2·.01) / 8 = .0125.
    values = spatial_advantages(maps, radius=0, std="pooled").values
    scale = math.sqrt(0.0125)
    expected = torch.tensor([[[-0.2, 0.0], [0.0, 0.1]], [[0.2, 0.0], [0.0, -0.1]]]) / scale
    torch.testing.assert_close(values[0], expected, atol=1e-6, rtol=0)
    # Per cell, both defects count the same: ±1.
    per_cell = spatial_advantages(maps, radius=0, std="cell").values
    torch.testing.assert_close(per_cell[0, 0], torch.tensor([[-1.0, 0.0], [0.0, 1.0]]), atol=1e-6, rtol=0)


def test_one_cell_that_covers_the_picture_is_the_scalar_algorithm():
    torch.manual_seed(0)
    maps = torch.rand(3, 5, 1, 8, 8)
    values = spatial_advantages(to_latent_grid(maps, (1, 1)), radius=0, std="pooled").values[..., 0, 0]
    torch.testing.assert_close(values, group_advantages(-maps.mean((2, 3, 4)), std="pooled").values, atol=1e-4, rtol=0)


def test_equal_maps_give_zero_and_are_dropped():
    maps = torch.rand(1, 1, 1, 8, 8).expand(2, 4, 1, 8, 8).clone()
    maps[1] += torch.rand(4, 1, 1, 1) * 0.1
    result = spatial_advantages(to_latent_grid(maps, (4, 4)))
    assert result.values[0].abs().max().item() == 0.0
    assert result.kept.tolist() == [False, True]
    maps[1, 2, 0, 3, 3] = math.nan
    with pytest.raises(UserError, match="degradation map is nan for sample 1, member 2"):
        spatial_advantages(to_latent_grid(maps, (4, 4)))
    with pytest.raises(UserError, match="at least 2"):
        spatial_advantages(torch.rand(2, 1, 4, 4))


def test_gains_by_hand():
    # One member's values 1 3 2 6: gains 2 −1 4.
    values = torch.tensor([1.0, 3.0, 2.0, 6.0]).view(1, 1, 4)
    assert credited_gains(values, 0.0).flatten().tolist() == [2.0, -1.0, 4.0]
    # To go: final minus current, 5 3 4.
    assert credited_gains(values, 1.0).flatten().tolist() == [5.0, 3.0, 4.0]
    # λ = .5: 4; −1 + .5·4 = 1; 2 + .5·1 = 2.5.
    assert credited_gains(values, 0.5).flatten().tolist() == [2.5, 1.0, 4.0]


def test_temporal_advantages_by_hand():
    # To-go credits (3, 2) and (−1, 2); means by step 1 and 2; deviations ±2 and 0; mean square 2.
    rewards = torch.tensor([[[0.0, 1.0, 3.0], [0.0, -3.0, -1.0]]])
    result = temporal_advantages(rewards, trace_decay=1.0)
    expected = torch.tensor([[[2.0, 0.0], [-2.0, 0.0]]]) / math.sqrt(2.0)
    torch.testing.assert_close(result.values, expected, atol=1e-6, rtol=0)
    rewards[0, 1, 1] = math.nan
    with pytest.raises(UserError, match="clean-image prediction is nan for sample 0, member 1"):
        temporal_advantages(rewards)


def test_one_step_of_spacetime_from_a_common_start_is_spatial():
    torch.manual_seed(0)
    final = torch.rand(2, 4, 4, 4)
    start = torch.rand(2, 1, 4, 4).expand(2, 4, 4, 4)
    both = spacetime_advantages(torch.stack([start, final], dim=2), radius=1)
    assert both.values.shape == (2, 4, 1, 4, 4)
    torch.testing.assert_close(both.values[:, :, 0], spatial_advantages(final, radius=1).values, atol=1e-5, rtol=0)


@dataclass(frozen=True)
class Estimate:
    """Many estimates of one known gradient."""

    bias: float  # ‖mean estimate − truth‖ / ‖truth‖
    resolution: float  # ‖standard error of the mean estimate‖ / ‖truth‖: what bias can be seen
    noise: float  # √(total variance of one estimate) / ‖truth‖

    @classmethod
    def of(cls, estimates: torch.Tensor, truth: torch.Tensor) -> Estimate:
        error, size = estimates.mean(0) - truth, truth.norm()
        variance = estimates.var(0).sum().sqrt()
        return cls(*(float(v / size) for v in (error.norm(), variance / math.sqrt(len(estimates)), variance)))


class SpatialToy:
    """One step x = Φθ + s·z on 16×16 cells; reward Σ r_c / N with r = −(Kx − y)², K a blur over 3×3 cells.

    ∂/∂θ of the expected reward is −(2/N) Φᵀ Kᵀ(KΦθ − y); without the noise's own variance, which θ cannot change.
    """

    cells, members, std = 16, 8, 0.3

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        self.features = torch.randn(8, self.cells, self.cells, generator=draw, dtype=torch.float64)
        self.target = 0.5 * torch.randn(self.cells, self.cells, generator=draw, dtype=torch.float64)
        self.kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]], dtype=torch.float64) / 16

    def blur(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x.reshape(-1, 1, *x.shape[-2:]), self.kernel[None, None], padding=1).reshape(x.shape)

    def gradient(self, kept_neighbours: torch.Tensor | None = None) -> torch.Tensor:
        """Returns the exact gradient at θ = 0, or its part from the kernel entries an estimator keeps."""
        kernel = self.kernel if kept_neighbours is None else self.kernel * kept_neighbours
        pulled = F.conv2d(-self.target[None, None], kernel[None, None], padding=1)[0, 0]
        return torch.einsum("ij,pij->p", -2 * pulled / self.cells**2, self.features)

    def estimates(self, radius: int | None, count: int) -> torch.Tensor:
        """Returns `count` estimates from one group each; radius None is the scalar form."""
        draw = torch.Generator().manual_seed(1)
        z = torch.randn(count, self.members, self.cells, self.cells, generator=draw, dtype=torch.float64)
        reward = -((self.blur(self.std * z) - self.target) ** 2) / self.cells**2
        centred = (reward - reward.mean(1, keepdim=True)) * self.members / (self.members - 1)
        whole = centred.sum((2, 3), keepdim=True)
        credit = whole if radius is None else smooth_cells(centred, radius) * (2 * radius + 1) ** 2
        return torch.einsum("mgij,pij->mp", credit * z / self.std, self.features) / self.members


def test_spatial_credit_is_unbiased_once_the_radius_covers_the_blur():
    toy = SpatialToy()
    truth = toy.gradient()
    scalar = Estimate.of(toy.estimates(None, 2000), truth)
    covering = Estimate.of(toy.estimates(1, 2000), truth)
    wide = Estimate.of(toy.estimates(2, 2000), truth)
    # Unbiased: nothing beyond three standard errors of the mean.
    assert covering.bias < 3 * covering.resolution < 0.1
    assert wide.bias < 3 * wide.resolution < 0.15
    assert scalar.bias < 3 * scalar.resolution
    # 256 cells compete in the scalar form and 9 in this one: about 256/9 = 28 times less variance (quoted: 6.4 and 1.3).
    assert scalar.noise == pytest.approx(6.4, rel=0.05)
    assert covering.noise == pytest.approx(1.30, rel=0.05)
    assert wide.noise == pytest.approx(1.96, rel=0.05)


def test_the_bias_of_too_small_a_radius_is_the_one_derived():
    toy = SpatialToy()
    truth = toy.gradient()
    only_itself = torch.zeros(3, 3, dtype=torch.float64)
    only_itself[1, 1] = 1.0
    derived = float((toy.gradient(only_itself) - truth).norm() / truth.norm())
    estimates = toy.estimates(0, 2000)
    measured = Estimate.of(estimates, truth)
    assert derived == pytest.approx(0.64, abs=0.01)
    assert measured.bias == pytest.approx(derived, abs=3 * measured.resolution)
    assert measured.noise == pytest.approx(0.54, rel=0.05)
    # And its mean is, component by component, the part of the gradient it keeps.
    error = (estimates.mean(0) - toy.gradient(only_itself)) / (estimates.std(0) / math.sqrt(len(estimates)))
    assert float(error.abs().max()) < 4.0


def _alignment(toy: SpatialToy, std: str, *, clip: float = CELL_CLIP) -> float:
    """Returns the mean cosine between one batch's step and the true gradient, with defects in 16 cells of 256."""
    draw = torch.Generator().manual_seed(2)
    defects = torch.zeros(4, toy.cells, toy.cells, dtype=torch.float64)
    for b in range(4):  # of growing size
        defects[b, 2 + 2 * b : 6 + 2 * b, 5:9] = (b + 1) / 2 * torch.randn(4, 4, generator=draw).sign()
    truth = torch.einsum("bij,pij->p", -2 * toy.blur(defects), toy.features)
    cosines = []
    for _ in range(200):
        z = torch.randn(4, toy.members, toy.cells, toy.cells, generator=draw, dtype=torch.float64)
        maps = (toy.blur(0.1 * z) + defects[:, None]) ** 2
        if std == "scalar":
            credit = group_advantages(-maps.mean((2, 3)), clip=clip).values[..., None, None]
        else:
            credit = spatial_advantages(maps, std=std, clip=clip).values
        step = torch.einsum("bgij,pij->p", credit * z, toy.features)
        cosines.append(float(step @ truth / (step.norm() * truth.norm())))
    return sum(cosines) / len(cosines)


def test_pooled_std_points_better_than_per_picture_and_per_cell():
    toy = SpatialToy()
    # Quoted in docs/equations.md.
    assert _alignment(toy, "pooled") == pytest.approx(0.48, abs=0.03)
    assert _alignment(toy, "group") == pytest.approx(0.41, abs=0.03)
    assert _alignment(toy, "cell") == pytest.approx(0.12, abs=0.03)
    assert _alignment(toy, "scalar") == pytest.approx(0.10, abs=0.03)


def test_the_cell_clip_costs_nothing_where_the_scalar_one_would():
    toy = SpatialToy()
    unclipped = _alignment(toy, "pooled", clip=math.inf)
    assert _alignment(toy, "pooled") == pytest.approx(unclipped, abs=0.003)
    assert _alignment(toy, "pooled", clip=5.0) < unclipped - 0.01


def test_the_scalar_part_of_the_mix_carries_what_the_document_says():
    # Independent cells on 16×16, ρ = 1: one cell's mean moves its own quality alone, and only by its own noise.
    draw = torch.Generator().manual_seed(3)
    z = torch.randn(400, 8, 16, 16, generator=draw, dtype=torch.float64)
    scalar = group_advantages(z.mean((2, 3)), clip=math.inf).values[..., None, None].double()
    spatial = spatial_advantages(-z, radius=1, clip=math.inf).values.double()
    # The expected gradient with respect to a common mean of all cells is E[A · Σ z] over them.
    pull = {name: float((credit * z).mean()) for name, credit in (("scalar", scalar), ("spatial", spatial))}
    share = 0.3 * pull["scalar"] / (0.3 * pull["scalar"] + 0.7 * pull["spatial"])
    assert share == pytest.approx(0.3 * 3 / (0.3 * 3 + 0.7 * 16), abs=0.01)
    assert share == pytest.approx(0.07, abs=0.015)


class TemporalToy:
    """Four steps x ← x + Φθ/4 + s_j·z on 8×8 cells, reward Σ −(x − y)² / N of the last; s = .8 .4 .2 .1.

    The clean-image prediction before step j is x + ρ·(drift still to come): ρ = 1 is a perfect predictor.
    """

    cells, members, steps = 8, 8, 4

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        self.features = torch.randn(4, self.cells, self.cells, generator=draw, dtype=torch.float64)
        self.target = torch.randn(self.cells, self.cells, generator=draw, dtype=torch.float64)
        theta = 0.3 * torch.randn(4, generator=draw, dtype=torch.float64)
        self.drift = torch.einsum("p,pij->ij", theta, self.features)
        self.stds = torch.tensor([0.8, 0.4, 0.2, 0.1], dtype=torch.float64)
        self.truth = -2 / self.cells**2 * torch.einsum("ij,pij->p", self.drift - self.target, self.features)

    def estimate(self, credit: str, trace_decay: float, accuracy: float, count: int = 3000) -> Estimate:
        draw = torch.Generator().manual_seed(1)
        x = torch.zeros(count, self.members, self.cells, self.cells, dtype=torch.float64)
        scores, values = [], []
        for j in range(self.steps):
            values.append(-((x + accuracy * (1 - j / self.steps) * self.drift - self.target) ** 2) / self.cells**2)
            z = torch.randn(x.shape, generator=draw, dtype=torch.float64)
            x = x + self.drift / self.steps + self.stds[j] * z
            scores.append(z / self.stds[j] / self.steps)
        values = torch.stack([*values, -((x - self.target) ** 2) / self.cells**2], dim=2)
        if credit != "spacetime":
            values = values.sum((3, 4), keepdim=True)
        if credit == "scalar":
            credited = values[:, :, -1:].expand(-1, -1, self.steps, -1, -1)
        else:
            credited = credited_gains(values, trace_decay)
        centred = (credited - credited.mean(1, keepdim=True)) * self.members / (self.members - 1)
        terms = centred * torch.stack(scores, dim=2)
        return Estimate.of(torch.einsum("mgjab,pab->mp", terms, self.features) / self.members, self.truth)


@pytest.mark.parametrize("accuracy", [1.0, 0.5, 0.0])
def test_reward_to_go_is_unbiased_however_bad_the_prediction(accuracy):
    estimate = TemporalToy().estimate("temporal", 1.0, accuracy)
    assert estimate.bias < 3 * estimate.resolution < 0.1


def test_temporal_credit_saves_what_the_document_says():
    toy = TemporalToy()
    scalar = toy.estimate("scalar", 1.0, 1.0)
    temporal = toy.estimate("temporal", 1.0, 1.0)
    both = toy.estimate("spacetime", 1.0, 1.0)
    # Quoted in docs/equations.md: 5.7, 1.33, .30.
    assert scalar.noise == pytest.approx(5.7, rel=0.05)
    assert temporal.noise == pytest.approx(1.33, rel=0.05)
    assert both.noise == pytest.approx(0.30, rel=0.05)
    assert both.bias < 3 * both.resolution < 0.03


def test_single_gains_are_biased_by_what_the_prediction_misses():
    toy = TemporalToy()
    perfect = toy.estimate("spacetime", 0.0, 1.0)
    half = toy.estimate("spacetime", 0.0, 0.5)
    blind = toy.estimate("spacetime", 0.0, 0.0)
    assert perfect.bias < 3 * perfect.resolution < 0.03
    # Quoted in docs/equations.md: .20 and .40.
    assert half.bias == pytest.approx(0.20, abs=0.02)
    assert blind.bias == pytest.approx(0.40, abs=0.02)
