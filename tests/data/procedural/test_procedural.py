"""Procedural pictures: a function of (seed, index) alone, with the statistics and the anatomy they claim."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys

import numpy as np
import pytest

from data.procedural.around import build_body, build_ears, build_hair
from data.procedural.drawing import bounds, colour, coverage, pixel_grid, smoothstep, value_noise
from data.procedural.head import EYE_Y, build_head, rotation
from data.procedural.portraits import portrait, render
from data.procedural.scenes import LARGEST, SMALLEST, dead_leaves, leaf_radii
from data.procedural.textures import PATTERNS, draw_palette
from data.procedural.traits import Traits
from shared.seeds import numpy_rng


def frontal(index: int) -> Traits:
    """A bare-faced person who looks straight into a camera with the light behind it, in the middle of the picture."""
    return Traits(numpy_rng(0, "portrait", index)).but(
        **{"yaw": 0.0, "pitch": 0.0, "roll": 0.0, "centre": (0.0, 0.1), "scale": 1.0, "gaze": (0.0, 0.0)},
        **{"light": (0.0, -0.3, 0.954), "hair": "bald", "beard": "none", "glasses": 0.0, "eye_open": 0.045},
        **{"skin": colour(0.84, 0.66, 0.53), "age": 0.2, "makeup": 0.0, "ambient": 0.4},
        **{"smile": 0.2, "mouth_open": 0.0},
    )


def at(picture: np.ndarray, x: float, y: float, radius: float = 0.015) -> float:
    """Mean brightness around a point of the frontal head, x and y in half picture widths from its middle."""
    grid_x, grid_y = pixel_grid(picture.shape[0])
    near = np.hypot(grid_x - x, grid_y - 0.1 - y) < radius
    return float(picture.mean(axis=2)[near].mean())


# Mean levels of a 4×4 grid of 16 px blocks, written down before drawing was tidied the last time.
AS_THEY_WERE = {
    (portrait, 0): (
        144.43, 64.36, 59.11, 128.16, 101.71, 104.98, 72.73, 138.62,
        68.52, 104.74, 82.68, 130.64, 37.35, 70.97, 66.87, 130.12,
    ),
    (portrait, 1): (
        94.72, 45.92, 47.65, 104.97, 70.01, 71.36, 115.7, 76.98,
        65.73, 94.66, 108.87, 53.17, 59.27, 74.18, 81.17, 45.25,
    ),
    (portrait, 2): (
        52.29, 39.68, 30.11, 53.68, 46.51, 82.65, 56.12, 43.63,
        57.45, 78.68, 48.71, 51.74, 56.82, 60.09, 41.6, 57.01,
    ),
    (dead_leaves, 0): (
        86.37, 97.17, 126.61, 133.05, 57.82, 113.49, 107.72, 100.45,
        96.72, 106.9, 129.72, 129.89, 120.58, 108.26, 121.24, 157.29,
    ),
    (dead_leaves, 1): (
        108.4, 130.74, 94.9, 100.77, 159.76, 113.25, 79.02, 109.37,
        110.45, 73.6, 83.57, 98.67, 138.89, 102.69, 110.12, 112.03,
    ),
    (dead_leaves, 2): (
        135.76, 101.07, 92.12, 145.89, 117.46, 112.11, 102.36, 123.22,
        128.89, 97.72, 78.6, 128.33, 92.23, 115.53, 113.29, 124.8,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("draw", "index"), AS_THEY_WERE)
def test_a_picture_is_what_it_was(draw, index):
    blocks = draw(0, index, side_px=64).astype(np.float64).reshape(4, 16, 4, 16, 3).mean(axis=(1, 3, 4))
    # Another processor's last bits may move an edge by less than this; another picture moves a block by whole levels.
    np.testing.assert_allclose(blocks.ravel() * 255, AS_THEY_WERE[draw, index], atol=0.02)


@pytest.mark.parametrize("draw", [portrait, dead_leaves])
def test_a_picture_is_a_function_of_seed_and_index(draw):
    first = draw(3, 7, side_px=64)
    assert first.shape == (64, 64, 3)
    assert first.dtype == np.float32
    assert first.min() >= 0
    assert first.max() <= 1
    others = [draw(3, 8, side_px=64), draw(4, 7, side_px=64)]
    assert np.array_equal(draw(3, 7, side_px=64), first)
    for other in others:
        assert np.abs(other - first).mean() > 0.02


def test_another_process_draws_the_same_bytes():
    code = (
        "import hashlib\n"
        "from data.procedural.portraits import portrait\n"
        "from data.procedural.scenes import dead_leaves\n"
        "print(hashlib.sha256(portrait(1, 2, side_px=64).tobytes() + dead_leaves(1, 2, side_px=64).tobytes()).hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    here = hashlib.sha256(portrait(1, 2, side_px=64).tobytes() + dead_leaves(1, 2, side_px=64).tobytes()).hexdigest()
    assert there == here


def test_a_portrait_has_a_persons_features_where_they_belong():
    for index in range(6):
        traits = frontal(index)
        picture = np.sqrt(np.clip(render(traits, 256, numpy_rng(0, index)), 0, 1))
        cheek = at(picture, 0.29, 0.22)
        for side in (-1, 1):
            assert at(picture, side * traits.eye_gap, EYE_Y) < 0.65 * cheek  # pupils
            white = at(picture, side * (traits.eye_gap + 0.075), EYE_Y, 0.008)
            assert white > at(picture, side * traits.eye_gap, EYE_Y) + 0.1
        assert at(picture, 0.0, traits.nose_length + 0.165) < 0.9 * cheek  # the line between the lips
        # Faces are alike on both sides; the background and the skin's mottling are not.
        face = picture[70:210, 68:188].mean(axis=2)
        alike = np.corrcoef(face.ravel(), face[:, ::-1].ravel())[0, 1]
        assert alike > 0.85


def test_the_tip_of_the_nose_is_nearest_to_the_viewer():
    x, y = pixel_grid(128)
    traits = frontal(0)
    head = build_head(traits, x, y)
    row, column = np.unravel_index(np.argmax(np.where(head.alpha > 0.5, head.depth, -9)), head.depth.shape)
    assert abs(head.x[row, column]) < 0.02
    assert head.y[row, column] == pytest.approx(traits.nose_length - 0.065, abs=0.03)
    # Turned to the side, the nose moves that way and the eye on that side comes nearer to the rim.
    turned = build_head(traits.but(yaw=0.4), x, y)
    nose = np.hypot(turned.x, turned.y - 0.2).argmin() % 128
    assert nose > 64 + 10


def test_people_differ():
    people = [Traits(numpy_rng(0, "portrait", index)) for index in range(300)]
    assert {person.hair for person in people} == {
        *("bald", "buzz", "short", "quiff", "bob", "straight", "wavy", "curly", "tied", "beanie", "scarf")
    }
    assert {person.beard for person in people} == {"none", "stubble", "goatee", "full", "moustache"}
    brightness = np.array([np.mean(person.skin) for person in people])
    assert brightness.min() < 0.3
    assert brightness.max() > 0.8
    assert 0.1 < np.mean([person.glasses > 0 for person in people]) < 0.4
    assert np.ptp([person.yaw for person in people]) > 0.8


def test_every_kind_of_portrait_renders_in_single_precision():
    rng = numpy_rng(0)
    styles = ("bald", "buzz", "short", "quiff", "bob", "straight", "wavy", "curly", "tied", "beanie", "scarf")
    x, y = pixel_grid(48)
    for number, hair in enumerate(styles):
        backdrop = ("plain", "gradient", "bokeh", "foliage", "rooms")[number % 5]
        collar = ("round", "v", "shirt")[number % 3]
        traits = Traits(rng).but(hair=hair, backdrop=backdrop, collar=collar, beard="full", age=0.9)
        head = build_head(traits, x, y)
        # One double among the arrays would halve the speed of all that follows.
        for layer in (*build_hair(traits, head, rng), *build_body(traits, x, y, rng), build_ears(traits, head)):
            if layer is not None:
                assert {a.dtype for a in (layer.alpha, layer.albedo, layer.depth, layer.gloss)} == {np.dtype("float32")}
        picture = render(traits, 48, rng)
        assert picture.dtype == np.float32
        assert np.isfinite(picture).all()


def test_turning_a_head_is_a_rotation():
    turn = rotation(0.4, 0.2)
    assert turn @ turn.T == pytest.approx(np.eye(3), abs=1e-6)
    assert np.linalg.det(turn) == pytest.approx(1.0, abs=1e-6)
    # A yaw moves what is in front (0, 0, 1) to the right by its sine; a pitch moves it down.
    assert rotation(0.4, 0.0) @ (0, 0, 1) == pytest.approx([0.38942, 0, 0.92106], abs=1e-5)
    assert rotation(0.0, 0.2) @ (0, 0, 1) == pytest.approx([0, 0.19867, 0.98007], abs=1e-5)


def test_leaf_sizes_follow_the_power_law():
    radii = np.sort(leaf_radii(numpy_rng(0), 24_000)[2_000:])  # without the first twelfth
    assert radii[0] >= SMALLEST
    assert radii[-1] <= LARGEST
    expected = (SMALLEST**-2 - radii**-2) / (SMALLEST**-2 - LARGEST**-2)
    empirical = (np.arange(radii.size) + 0.5) / radii.size
    # Kolmogorov–Smirnov: 1.63 / √22000 = 0.011 is exceeded by chance once in a hundred.
    assert np.abs(empirical - expected).max() < 0.011


def test_scenes_have_the_spectrum_of_photographs():
    slopes = []
    for index in range(8):
        grey = dead_leaves(0, index).mean(axis=2)
        side = grey.shape[0]
        window = np.hanning(side)
        power = np.abs(np.fft.fft2((grey - grey.mean()) * window * window[:, None])) ** 2
        frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
        edges = np.geomspace(4 / side, 0.35, 12)
        bands = [power[(frequency >= a) & (frequency < b)].mean() for a, b in itertools.pairwise(edges)]
        slopes.append(np.polyfit(np.log(np.sqrt(edges[1:] * edges[:-1])), np.log(bands), 1)[0])
    # scikit-image's astronaut, coffee and chelsea have −2.7, −3.0 and −2.7 by the same measure.
    assert np.mean(slopes) == pytest.approx(-2.8, abs=0.15)
    assert np.std(slopes) < 0.3


@pytest.mark.parametrize("number", range(len(PATTERNS)))
def test_every_texture_has_a_pattern(number):
    pattern = PATTERNS[number](numpy_rng(0, number), 96)
    assert pattern.shape == (96, 96)
    assert np.isfinite(pattern).all()
    assert number == 0 or pattern.std() > 0.05  # the first is plain paint


def test_palettes_hold_dark_and_light():
    for index in range(20):
        palette = draw_palette(numpy_rng(index))
        assert palette.shape == (6, 3)
        assert palette.max() > 0.4
        assert palette.mean(axis=1).min() < 0.1


def test_coverage_is_the_covered_part_of_each_pixel():
    x, _ = pixel_grid(8)  # centres at ±1/8, ±3/8 …, a quarter apart
    # A straight edge at x = 0.03125 passes the pixel [0, 0.25] at an eighth of its width: 7/8 of it lie beyond.
    assert coverage(x - 0.03125)[0] == pytest.approx([0, 0, 0, 0, 0.875, 1, 1, 1], abs=1e-5)
    assert coverage((x - 0.03125) * 40)[0, 4] == pytest.approx(0.875, abs=1e-5)


def test_smoothstep_and_bounds():
    assert smoothstep(0.0, 1.0, np.array([-1, 0, 0.25, 1, 2])) == pytest.approx([0, 0, 0.15625, 1, 1])  # 3t² − 2t³
    assert smoothstep(1.0, 0.0, np.array([0.25])) == pytest.approx([1 - 0.15625])
    region = np.zeros((10, 12), dtype=bool)
    region[4, 5:8] = True
    assert bounds(region, margin_px=1) == (slice(3, 6), slice(4, 9))
    assert region[bounds(np.zeros((10, 12), dtype=bool), margin_px=0)].size == 0


def test_noise_has_blobs_of_the_asked_size():
    def blob_px(cells: float) -> float:
        noise = value_noise(numpy_rng(0), 256, cells=cells, octaves=1)
        return 1 / np.abs(np.diff(noise, axis=1)).mean()

    assert blob_px(8) == pytest.approx(4 * blob_px(32), rel=0.25)
    noise = np.stack([value_noise(numpy_rng(i), 64, cells=8) for i in range(40)])
    assert noise.mean() == pytest.approx(0, abs=0.1)
    assert noise.std() == pytest.approx(1.2, abs=0.1)
