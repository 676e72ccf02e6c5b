"""The windows of a supervised step show the same place in every picture, and depend on their random stream alone."""

from __future__ import annotations

import pytest
import torch

from data.degradation.records import PairBatch
from rl_finetune.supervised.windows import windows
from shared.seeds import numpy_rng


def batch(scale: int) -> PairBatch:
    """A picture whose colour says where it is: lq holds the mean of each block of gt."""
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    gt = torch.stack([rows, columns, rows * 0])[None].repeat(6, 1, 1, 1) / 32
    lq = torch.nn.functional.avg_pool2d(gt, scale)
    return PairBatch(gt=gt, lq=lq, image_ids=tuple("abcdef"), indices=tuple(range(6)))


@pytest.mark.parametrize(("task", "scale"), [("sr", 4), ("face", 1)])
def test_all_pictures_show_the_same_place(task, scale):
    pairs = batch(scale)
    cut = windows(pairs, {"guide": pairs.gt + 1}, task=task, window_px=16, multiple_px=8, rng=numpy_rng(0, "w"))
    assert cut.gt.shape == (6, 3, 16, 16)
    torch.testing.assert_close(torch.nn.functional.avg_pool2d(cut.gt, scale), cut.lq)
    torch.testing.assert_close(cut.stages["guide"], cut.gt + 1)
    # Some window begins elsewhere than another, and some picture is mirrored.
    assert len({tuple(picture[:2].mean((1, 2)).tolist()) for picture in cut.gt}) > 1
    upright = (cut.gt[:, 0].diff(dim=1) > 0).all(dim=2).all(dim=1)
    assert bool(upright.all()) == (task == "face")


def test_the_same_stream_gives_the_same_windows_and_no_window_is_the_whole_pair():
    pairs = batch(4)
    first, second = (
        windows(pairs, {}, task="sr", window_px=16, multiple_px=8, rng=numpy_rng(3, "w")) for _ in range(2)
    )
    assert torch.equal(first.gt, second.gt)
    assert windows(pairs, {}, task="sr", window_px=0, multiple_px=8, rng=numpy_rng(3, "w")).gt.shape[-1] == 32
    with pytest.raises(ValueError, match="multiples of 8 px, at most 32; got 40"):
        windows(pairs, {}, task="sr", window_px=40, multiple_px=8, rng=numpy_rng(3, "w"))
