"""Tiles against one pass, and the memory of very large pictures."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from reward_model.network.model import RewardModel, RewardModelConfig
from reward_model.network.score_head import worst_mean
from reward_model.network.tiling import _tiles, score_picture, worst_share
from shared.app.errors import UserError
from tests.helpers.reward_models import build as build_model
from tests.helpers.reward_models import pictures


def build(config: RewardModelConfig | None = None, stage: int | None = None) -> RewardModel:
    model = build_model(config or RewardModelConfig(), stage)
    for head in model.map_heads:  # fresh heads are almost flat: there is nothing to disagree about
        torch.nn.init.normal_(head.weight, std=0.3)
    return model


@pytest.mark.parametrize(
    ("head", "encoder", "size"),
    [
        ("paper", "unshuffle-tiny", (533, 811)),
        ("penalty", "unshuffle-tiny", (700, 570)),
        ("penalty", "unshuffle-small", (700, 570)),
    ],
)
def test_tiles_agree_with_one_pass(head, encoder, size):
    model = build(RewardModelConfig(head=head, encoder=encoder))
    image = pictures(1, *size)
    # Regions of different contrast, so that the tiles have something to disagree about.
    image[..., :200, 200:] = 0.5 + 0.05 * (image[..., :200, 200:] - 0.5)
    with torch.no_grad():
        whole = model(image)
    tiled = score_picture(model, image[0].permute(1, 2, 0).numpy(), tile_px=512, halo_px=192)
    assert len(_tiles(*size, 16, tile_px=512, halo_px=192)) >= 4
    assert whole.degradation_map.std() > 0.005
    assert tiled.score == pytest.approx(whole.score.item(), abs=1e-5)
    difference = np.abs(tiled.degradation_map / 65535.0 - whole.degradation_map[0, 0].numpy())
    assert difference.max() < 1e-4  # of which 1/131070 is the 16-bit map's own rounding


def test_too_small_a_halo_is_seen_and_only_near_borders():
    model, image = build(), pictures(1, 400, 400)
    image[..., :200] = 0.5
    with torch.no_grad():
        whole = model(image).degradation_map[0, 0].numpy()
    tiled = score_picture(model, image[0].permute(1, 2, 0).numpy(), tile_px=224, halo_px=16)
    difference = np.abs(tiled.degradation_map / 65535.0 - whole)
    assert difference.max() > 1e-4
    near = np.zeros_like(difference, bool)
    near[208 - 120 : 208 + 120] = near[:, 208 - 120 : 208 + 120] = True  # where one window ends its core of 208 px
    assert difference[~near].max() < 0.1 * difference.max()


def test_eight_bits_and_floats_give_the_same():
    model = build()
    levels = (pictures(1, 70, 90)[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    from_levels, from_floats = score_picture(model, levels), score_picture(model, levels.astype(np.float32) / 255)
    assert from_levels.score == pytest.approx(from_floats.score, abs=1e-6)
    np.testing.assert_array_equal(from_levels.degradation_map, from_floats.degradation_map)


def test_stage_0_scores_in_tiles_without_a_map():
    model, image = build(stage=0), pictures(1, 500, 450)
    tiled = score_picture(model, image[0].permute(1, 2, 0).numpy(), tile_px=512, halo_px=192)
    assert tiled.degradation_map is None
    with torch.no_grad():
        assert tiled.score == pytest.approx(model(image).score.item(), abs=1e-5)


def test_cores_cover_the_picture_once_and_windows_have_one_shape():
    seen, shapes = np.zeros((416, 528), int), set()  # 401 × 520 on the grid of 16
    for tile in _tiles(401, 520, 16, tile_px=200, halo_px=33):
        window_top, window_bottom, window_left, window_right = tile.window
        shapes.add((window_bottom - window_top, window_right - window_left))
        assert 0 <= window_top < window_bottom <= 416
        assert 0 <= window_left < window_right <= 528
        top, bottom, left, right = tile.core
        seen[top:bottom, left:right] += 1
        assert all(corner % 16 == 0 for corner in (*tile.core, *tile.window))
        for core, window in ((top - window_top, window_top), (left - window_left, window_left)):
            assert core >= 48 or window == 0  # the whole halo, except at the picture's own edge
        for core, window, edge in ((bottom, window_bottom, 416), (right, window_right, 528)):
            assert window - core >= 48 or window == edge
    assert (seen == 1).all()
    assert shapes == {(192, 192)}


@pytest.mark.parametrize("size", [(1000, 1000), (1024, 641), (1500, 2000), (16, 3000)])
def test_no_window_is_run_twice(size):
    windows = [tile.window for tile in _tiles(*size, 16, tile_px=1024, halo_px=192)]
    assert len(set(windows)) == len(windows)
    assert (len(windows) == 1) == (max(size) <= 1024)


def test_a_decoder_that_sees_the_whole_picture_is_not_tiled():
    config = RewardModelConfig(encoder="tu-resnet18", encoder_depth=5, decoder="upernet", decoder_channels=())
    model, picture = build_model(config, 1).eval(), np.zeros((160, 100, 3), np.uint8)
    with pytest.raises(UserError, match=r"upernet looks at the whole picture.*tile_px=160"):
        score_picture(model, picture, tile_px=96, halo_px=0)
    assert score_picture(model, picture, tile_px=160, halo_px=0).degradation_map.shape == (160, 100)


def test_a_negative_halo_is_refused():
    with pytest.raises(UserError, match="halo_px must not be negative, got -5"):
        score_picture(build(), np.zeros((40, 40, 3), np.uint8), halo_px=-5)


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        (np.full((40, 40, 3), np.nan, np.float32), "NaN or infinity"),
        (np.full((40, 40, 3), 255.0, np.float32), "divide by 255"),
        (np.zeros((40, 40), np.float32), r"RGB picture \[H, W, 3\], got shape \[40, 40\]"),
        (np.zeros((1, 1, 3), np.uint8), "at least 16×16 px, got 1×1"),
    ],
)
def test_bad_pictures_are_refused(picture, said):
    with pytest.raises(UserError, match=said):
        score_picture(build(), picture)


def test_a_tile_must_exceed_its_halo():
    with pytest.raises(UserError, match="tile_px must exceed twice the halo"):
        score_picture(build(), np.zeros((40, 40, 3), np.uint8), tile_px=300, halo_px=160)


def test_memory_grows_with_the_tile_and_the_map_alone():
    # A 3-megapixel picture in a process of its own. One pass would hold 96 MB for each layer of the first level (32
    # channels at half size), several at a time. Peak memory is linear in the picture: 3 + 2 bytes a pixel, and the map.
    code = (
        "import resource, numpy, torch; torch.set_num_threads(1)\n"
        "from reward_model.network.model import RewardModel, RewardModelConfig\n"
        "from reward_model.network.tiling import score_picture\n"
        "model = RewardModel(RewardModelConfig(decoder_channels=(16, 8)), stage=1).eval()\n"
        "score_picture(model, numpy.zeros((600, 600, 3), numpy.uint8), tile_px=512, halo_px=32)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "score_picture(model, numpy.full((1500, 2000, 3), 99, numpy.uint8), tile_px=512, halo_px=32)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # Picture 9 MB, map 6 MB, native map at stride 8 under 1 MB; the rest is the allocator's.
    assert float(done.stdout) < 60


def test_the_worst_share_of_levels_is_that_of_the_map():
    levels = (pictures(1, 37, 53)[0, 0].numpy() ** 3 * 65535).astype(np.uint16)
    for share in (0.01, 0.1, 1e-6, 1.0):
        expected = worst_mean(torch.from_numpy(levels / np.float32(65535))[None, None], share).item()
        assert worst_share(levels, share) == pytest.approx(expected, abs=1e-6)
