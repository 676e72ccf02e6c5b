"""Strips of a resized picture agree with the whole; what alpha hides does not bleed; large canvases lie on the disk."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from shared.app.errors import UserError
from shared.pictures import canvas
from shared.pictures.canvas import open_canvas
from shared.pictures.resampling import filled_under, resized


@pytest.mark.parametrize("size", [(60, 90), (17, 13), (30, 41)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("resample", [Image.Resampling.BICUBIC, Image.Resampling.LANCZOS])
def test_strips_agree_with_the_whole(size, dtype, resample):
    top = np.iinfo(dtype).max
    levels = np.random.Generator(np.random.Philox(2)).integers(0, top, (41, 30, 3)).astype(dtype)
    whole = resized(levels, size, resample=resample)
    assert whole.shape == (size[1], size[0], 3)
    strips = [
        resized(levels, size, rows=slice(i, min(i + 7, size[1])), resample=resample) for i in range(0, size[1], 7)
    ]
    assert np.abs(np.concatenate(strips).astype(int) - whole).max() <= 1
    smooth = (levels // 4 + top // 3).astype(dtype)  # nothing overshoots, so that Pillow's 8 bits cut nothing
    eight = Image.fromarray((smooth / (top / 255) + 0.5).astype(np.uint8)).resize(size, resample)
    assert np.abs(resized(smooth, size, resample=resample) / top - np.asarray(eight) / 255).max() < 2.5 / 255


def test_colours_under_transparency_do_not_bleed_into_the_edge():
    levels, alpha = np.zeros((40, 40, 3), np.uint8), np.zeros((40, 40), np.uint8)
    levels[10:30, 10:30], alpha[10:30, 10:30] = (200, 100, 50), 255
    filled = filled_under(levels, alpha)
    assert np.array_equal(filled[10:30, 10:30], levels[10:30, 10:30])
    assert np.abs(filled.astype(int) - (200, 100, 50)).max() <= 1
    assert filled_under(levels, np.full_like(alpha, 9)) is levels
    assert filled_under(levels, np.zeros_like(alpha)) is levels


def test_each_side_is_filled_from_what_is_visible_near_it():
    levels, alpha = np.zeros((32, 64, 3), np.uint16), np.zeros((32, 64), np.uint16)
    levels[:, :8], levels[:, 56:] = 60000, 1000
    alpha[:, :8] = alpha[:, 56:] = 65535
    filled = filled_under(levels, alpha)
    assert filled[16, 12, 0] > 50000
    assert filled[16, 52, 0] < 12000


def test_a_large_canvas_lies_on_the_disk_and_leaves_nothing(tmp_path, monkeypatch):
    small = open_canvas((4, 3), tmp_path / "out")
    large = open_canvas((4, 3), tmp_path / "out", in_memory_bytes=10)
    assert small.shape == large.shape == (3, 4, 3)
    assert isinstance(large, np.memmap)
    large[1] = 7
    assert (large[0].sum(), large[1].sum()) == (0, 7 * 12)
    assert list((tmp_path / "out").iterdir()) == []
    monkeypatch.setattr(canvas.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10**9})())
    with pytest.raises(UserError, match=r"20000×20000 needs 2\.4 GB of disk .* has 1\.0 GB"):
        open_canvas((20000, 20000), tmp_path / "nowhere" / "yet")
