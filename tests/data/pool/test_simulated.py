"""Simulated restorers: what each kind may change; and a change of colours that is the same for every picture."""

from __future__ import annotations

import numpy as np
import pytest

from data.pool.simulated import recolour, simulated_restoration
from data.pool.simulated_filters import LOSING, REPAINTING, SHARPENING
from data.pool.simulated_textures import INVENTING, grid
from shared.seeds import numpy_rng
from shared.vision.images import on_8_bits

SIDE = 48


@pytest.fixture
def picture() -> np.ndarray:
    ramp = np.linspace(0.2, 0.8, SIDE, dtype=np.float32)
    texture = numpy_rng(0, "texture").normal(0, 0.05, (SIDE, SIDE, 3)).astype(np.float32)
    return on_8_bits(ramp[:, None, None] + texture)


@pytest.mark.parametrize(
    "kind",
    sorted(
        {*LOSING, *REPAINTING, *SHARPENING, *INVENTING},
        key=lambda f: f.__name__,
    ),
)
def test_every_kind_of_artifact_changes_a_picture_and_keeps_its_shape(kind, picture):
    broken = kind(picture.copy(), numpy_rng(3, "artifact"))
    assert broken.shape == picture.shape
    assert broken.dtype == np.float32
    assert np.isfinite(broken).all()
    assert 1e-3 < np.abs(broken - picture).mean() < 0.3


def test_a_simulated_restoration_is_a_function_of_its_generator_and_on_8_bit_levels(picture):
    once, again, other = (simulated_restoration(picture, numpy_rng(seed, "m")) for seed in (1, 1, 2))
    np.testing.assert_array_equal(once, again)
    assert np.abs(once - other).max() > 0
    np.testing.assert_array_equal(once, on_8_bits(once))


def test_a_simulation_can_start_from_a_real_restoration(picture):
    restored = np.full_like(picture, 0.3)  # far from the truth, and nothing that any kind would make of it
    made = [simulated_restoration(picture, numpy_rng(seed, "m"), restored=restored) for seed in range(30)]
    nearer = [np.abs(m - restored).mean() < np.abs(m - picture).mean() for m in made]
    assert sum(nearer) >= 20  # the subtle ones are mixed with the truth


@pytest.mark.parametrize("seed", range(6))
def test_a_grid_repeats_one_tile_over_flat_ground_too(seed):
    flat = np.full((SIDE, SIDE, 3), 0.5, np.float32)
    pattern = grid(flat, numpy_rng(seed, "grid")) - flat
    np.testing.assert_allclose(pattern[8:, :], pattern[:-8, :], atol=1e-6)  # 8 is a multiple of every period drawn
    np.testing.assert_allclose(pattern[:, 8:], pattern[:, :-8], atol=1e-6)
    assert 0.003 < pattern.std() < 0.031  # the amplitude drawn is its standard deviation, 0.004 to 0.03
    assert abs(float(pattern.mean())) < 1e-6


def test_recolouring_keeps_order_and_is_the_same_curve_for_every_picture(picture):
    change = recolour(numpy_rng(5, "colour"))
    levels = np.linspace(0, 1, 256, dtype=np.float32)[:, None, None].repeat(3, axis=2)
    curve = change(levels)
    assert (np.diff(curve, axis=0) >= 0).all()
    index = np.round(picture * 255).astype(int)
    expected = np.stack([curve[index[..., c], 0, c] for c in range(3)], axis=-1)
    np.testing.assert_array_equal(change(picture), expected)
    assert np.abs(curve - levels).max() > 0.02
