"""Regions: exact areas, feathered edges that end in exact zeros and ones, nothing but the generator behind a draw."""

from __future__ import annotations

import math
import sys
import types
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import data.regions.masks
from data.regions.masks import MaskConfig, blobs, draw_mask, feather, polygons, sam_region, strokes, superpixels
from shared.app.errors import UserError
from shared.seeds import numpy_rng
from shared.vision.images import to_uint8


def picture(seed: int = 0, side: int = 64) -> np.ndarray:
    """Coloured tiles of 8 pixels under a little noise: parts for superpixels to find."""
    rng = np.random.default_rng(seed)
    tiles = rng.random((side // 8, side // 8, 3)).repeat(8, 0).repeat(8, 1)
    return np.clip(tiles + rng.normal(0, 0.02, tiles.shape), 0, 1).astype(np.float32)


@pytest.mark.parametrize("region", [strokes, blobs, polygons])
@pytest.mark.parametrize("area", [0.005, 0.03, 0.4])
def test_random_regions_have_exactly_the_asked_area(region, area):
    # 64 · 64 pixels · 0.005 = 20.48, rounded to 20; · 0.03 = 122.88 → 123; · 0.4 = 1638.4 → 1638.
    expected = {0.005: 20, 0.03: 123, 0.4: 1638}[area]
    for seed in range(5):
        assert region(picture(), area, numpy_rng(seed)).sum() == expected


@pytest.mark.parametrize("area", [0.02, 0.1, 0.4])
def test_superpixels_come_near_the_area_and_follow_edges(area):
    gt = picture()
    for seed in range(5):
        region = superpixels(gt, area, numpy_rng(seed))
        assert 0.4 * area <= region.mean() <= 1.25 * area


def test_superpixel_borders_lie_on_the_edges_of_the_picture():
    gt = np.zeros((64, 64, 3), np.float32)
    gt[:, 29:] = 0.9  # one edge, off any regular grid
    on_edge = 0
    for seed in range(8):
        region = superpixels(gt, 0.3, numpy_rng(seed))
        crossing = region[:, 28] != region[:, 29]
        inside = np.mean([np.mean(region[:, x - 1] != region[:, x]) for x in range(1, 64) if x != 29])
        on_edge += crossing.mean() > 3 * inside
    assert on_edge >= 6


def test_a_flat_picture_still_gets_a_region_of_its_area():
    flat = np.full((64, 64, 3), 0.5, np.float32)
    for seed in range(8):
        assert 0 < superpixels(flat, 0.01, numpy_rng(seed)).mean() <= 0.0125


def test_area_is_log_uniform_between_its_bounds():
    config = MaskConfig(kinds=("polygons",), feather_min_px=0.0, feather_max_px=0.0)
    areas = np.array([draw_mask(picture(), config, numpy_rng(1, n)).values.mean() for n in range(400)])
    assert areas.min() >= 0.0049
    assert areas.max() <= 0.4001
    # Log-uniform on [0.005, 0.4]: a quarter of the draws lies below 0.005 · 80^(1/4) = 0.01495. Three standard errors of
    # a share of 1/4 among 400 are 0.065.
    for quarter in (1, 2, 3):
        assert np.mean(areas < 0.005 * 80 ** (quarter / 4)) == pytest.approx(quarter / 4, abs=0.075)


def test_feather_is_a_smooth_step_across_the_border():
    region = np.zeros((1, 12), bool)
    region = np.repeat(region, 9, axis=0)
    region[:, :6] = True
    # Width 4: half-width 2. Pixel centres lie 0.5, 1.5, … from the border at x = 6, so with t = (signed + 2) / 4:
    # x=4 → t=.875, x=5 → .625, x=6 → .375, x=7 → .125, and the step is 3t² − 2t³.
    expected = [1, 1, 1, 1] + [3 * t**2 - 2 * t**3 for t in (0.875, 0.625, 0.375, 0.125)] + [0, 0, 0, 0]
    np.testing.assert_allclose(feather(region, 4.0)[4], expected, atol=1e-6)


def test_feather_ends_in_exact_zeros_and_keeps_thin_regions_whole():
    line = np.zeros((32, 32), bool)
    line[16, 4:28] = True
    soft = feather(line, 6.0)
    assert soft.max() == 1.0
    assert soft[10:13].max() == 0.0


def test_a_region_that_fills_the_picture_has_no_edge():
    assert feather(np.ones((16, 16), bool), 4.0).min() == 1.0


def test_a_mask_depends_on_its_generator_alone():
    first = [draw_mask(picture(), MaskConfig(), numpy_rng(7, n)) for n in range(24)]
    np.random.seed(3)
    for n in reversed(range(24)):
        again = draw_mask(picture(), MaskConfig(), numpy_rng(7, n))
        assert np.array_equal(again.values, first[n].values)
        assert (again.kind, again.feather_px) == (first[n].kind, first[n].feather_px)
    assert {mask.kind for mask in first} == set(MaskConfig().kinds)


def test_a_mask_does_not_depend_on_where_things_lie_in_memory():
    rng, held, gt = np.random.default_rng(0), [], picture(side=96)
    first = [strokes(gt, 0.07, numpy_rng(11, number)) for number in range(200)]
    for _ in range(4):
        for number, region in enumerate(first):
            held.append(np.zeros(int(rng.integers(1, 100_000)), np.uint8))  # moves what is allocated next
            assert np.array_equal(strokes(gt, 0.07, numpy_rng(11, number)), region)


def test_polygons_have_straight_sides():
    for seed in range(5):
        region = polygons(np.zeros((256, 256, 3), np.float32), 0.1, numpy_rng(seed))
        contours, _ = cv2.findContours(region.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        assert len(contours) == 1
        corners = cv2.approxPolyDP(contours[0], 2.0, True)
        drawn = np.zeros(region.shape, np.uint8)
        cv2.fillPoly(drawn, [corners], 1)
        assert len(corners) <= 9 + 4  # the picture's own corners may cut it
        assert np.logical_xor(drawn.astype(bool), region).mean() < 0.02 * region.mean()


def test_unknown_kinds_and_bad_areas_are_refused():
    with pytest.raises(ValueError, match=r"masks\.kinds must be some of strokes, blobs"):
        MaskConfig(kinds=("squares",))
    with pytest.raises(ValueError, match="area_min must lie between"):
        MaskConfig(area_min=0.5, area_max=0.4)


def fake_transformers(monkeypatch, pipeline) -> None:
    module = types.ModuleType("transformers")
    module.pipeline = pipeline
    monkeypatch.setitem(sys.modules, "transformers", module)


def test_sam_segments_are_chosen_by_area(monkeypatch):
    small, large = np.zeros((64, 64), bool), np.ones((64, 64), bool)
    small[:8, :8] = True  # 64 / 4096 = 1.6 %
    crowd = [large] * 10 + [small] * 10
    fake_transformers(monkeypatch, lambda task, model, device: lambda image: {"masks": crowd})
    for seed in range(5):
        assert np.array_equal(sam_region(picture(), 0.02, numpy_rng(seed), model="fake/choice"), small)


def save_tiny_sam(folder: Path) -> None:
    """Saves a Segment Anything of a few thousand random weights, made to be sure of all it finds."""
    from transformers import (
        SamConfig,
        SamImageProcessor,
        SamMaskDecoderConfig,
        SamModel,
        SamProcessor,
        SamPromptEncoderConfig,
        SamVisionConfig,
    )

    common = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_dim": 16}
    sizes = {"image_size": 64, "patch_size": 8}
    vision = SamVisionConfig(
        output_channels=16, window_size=4, num_pos_feats=8, global_attn_indexes=[0], **common, **sizes
    )
    decoder = SamMaskDecoderConfig(iou_head_hidden_dim=16, iou_head_depth=2, **common)
    prompt = SamPromptEncoderConfig(hidden_size=16, mask_input_channels=4, **sizes)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(3)
        parts = {"vision_config": vision, "prompt_encoder_config": prompt, "mask_decoder_config": decoder}
        model = SamModel(SamConfig(**{name: part.to_dict() for name, part in parts.items()}))
        for parameter in model.parameters():
            parameter.mul_(20 if parameter.ndim > 1 else 1)
        quality = model.mask_decoder.iou_prediction_head.proj_out
        quality.weight.zero_()
        quality.bias.fill_(1.0)
        for network in model.mask_decoder.output_hypernetworks_mlps:
            network.proj_out.weight.mul_(1e4)
    model.save_pretrained(folder)
    square, low = {"height": 64, "width": 64}, {"height": 16, "width": 16}
    SamProcessor(
        SamImageProcessor(size={"longest_edge": 64}, pad_size=square, mask_size={"longest_edge": 16}, mask_pad_size=low)
    ).save_pretrained(folder)


def test_a_real_sam_finds_regions(tmp_path):
    save_tiny_sam(tmp_path)
    config = MaskConfig(kinds=("sam",), sam_model=str(tmp_path), feather_max_px=2.0)
    gt = np.random.default_rng(0).random((64, 64, 3), np.float32)
    mask = draw_mask(gt, config, numpy_rng(0))
    assert mask.kind == "sam"
    # A found segment, not the blob that stands in for none: its area is its own, whatever area was asked for.
    segments = data.regions.masks._sam_pipeline(str(tmp_path), "cpu")(Image.fromarray(to_uint8(gt)))["masks"]
    areas = {np.asarray(segment, bool).sum() for segment in segments}
    assert len(areas) > 3
    assert (mask.values > 0.5).sum() in areas


def test_a_picture_without_segments_gets_a_blob(monkeypatch):
    fake_transformers(monkeypatch, lambda task, model, device: lambda image: {"masks": []})
    assert sam_region(picture(), 0.1, numpy_rng(0), model="fake/empty").sum() == round(0.1 * 64 * 64)


def test_sam_that_cannot_be_had_is_one_clear_line(monkeypatch):
    def missing(task, model, device):
        raise OSError(f"{model} is not a local folder\nand more")

    fake_transformers(monkeypatch, missing)
    with pytest.raises(UserError, match=r"could not load SAM from no/sam \(no/sam is not a local folder\); set masks"):
        sam_region(picture(), 0.1, numpy_rng(0), model="no/sam")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="needs transformers: pip install"):
        sam_region(picture(), 0.1, numpy_rng(0), model="no/transformers")


def test_log_area_bounds_reach_the_draw():
    config = MaskConfig(kinds=("blobs",), area_min=0.1, area_max=0.1, feather_min_px=0, feather_max_px=0)
    assert draw_mask(picture(), config, numpy_rng(0)).values.sum() == round(math.exp(math.log(0.1)) * 64 * 64)
