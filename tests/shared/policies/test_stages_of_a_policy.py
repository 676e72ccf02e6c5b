"""What a policy is conditioned on: upscalers that enlarge more than it, and pictures that are asked for again."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from shared.app.errors import UserError
from shared.policies.pixel_unet import PixelUNet, PixelUNetConfig
from shared.restorers.interpolation import BicubicRestorer
from shared.restorers.pre_restorer import fitted
from shared.restorers.wrapped import RememberedRestorer, ShrunkRestorer


class Counting:
    """Enlarges by repeating pixels, and counts the pictures it is asked for."""

    def __init__(self, scale: int) -> None:
        self.scale, self.asked = scale, 0

    def restore(self, lq, *, sample_seeds):
        self.asked += len(lq)
        return F.interpolate(lq, scale_factor=self.scale, mode="nearest")


@pytest.mark.parametrize("shrink", [0, 1, 2, 4])
def test_an_upscaler_that_enlarges_too_far_returns_lq_averaged_over_what_it_was_shrunk_by(shrink):
    lq = torch.rand(2, 3, 10, 13)
    sr = ShrunkRestorer(Counting(4), 1, shrink).restore(lq, sample_seeds=[0, 0])
    block = shrink or 4
    assert sr.shape == lq.shape
    inner = lq[..., : 10 // block * block, : 13 // block * block]
    blocks = F.interpolate(F.avg_pool2d(inner, block), scale_factor=block, mode="nearest")
    torch.testing.assert_close(sr[..., : inner.shape[-2], : inner.shape[-1]], blocks)


def test_an_upscaler_fits_a_policy_of_its_own_scale_and_a_smaller_one_where_a_shrink_is_given():
    same, other = Counting(4), Counting(4)
    assert fitted(same, 4, shrink=2, name="guide") is same
    assert fitted(other, 1, shrink=2, name="guide").excess == 2
    for shrink in (0, 3, 8):
        with pytest.raises(UserError, match="guide x enlarges 4 times, but the policy 1 times"):
            fitted(Counting(4), 1, shrink=shrink, name="guide x")


def test_a_remembered_picture_is_restored_once_and_alone():
    counting = Counting(1)
    remembered = RememberedRestorer(counting)
    lq = torch.rand(3, 3, 8, 8)
    first = remembered.restore(lq, sample_seeds=[1, 2, 3])
    again = remembered.restore(lq[[2, 0, 0]], sample_seeds=[7, 8, 9])
    assert counting.asked == 3
    assert torch.equal(first, lq)
    assert torch.equal(again, lq[[2, 0, 0]])
    remembered.restore(lq + 1e-3, sample_seeds=[0, 0, 0])
    assert counting.asked == 6


def test_restorers_of_one_name_share_their_pictures_and_others_do_not():
    lq, twins = torch.rand(2, 3, 8, 8), [Counting(1), Counting(1), Counting(1)]
    for counting, name in zip(twins, ("a test's network", "a test's network", ""), strict=True):
        RememberedRestorer(counting, name).restore(lq, sample_seeds=[0, 0])
    assert [counting.asked for counting in twins] == [2, 0, 2]


def test_the_oldest_pictures_are_forgotten_when_the_memory_is_full(monkeypatch):
    counting = Counting(1)
    monkeypatch.setattr("shared.restorers.wrapped.REMEMBERED_BYTES", 2 * 3 * 8 * 8 * 4)
    remembered = RememberedRestorer(counting)
    lq = torch.rand(3, 3, 8, 8)
    remembered.restore(lq, sample_seeds=[0] * 3)
    remembered.restore(lq[1:], sample_seeds=[0] * 2)  # the last two are kept
    assert counting.asked == 3
    remembered.restore(lq[:1], sample_seeds=[0])
    assert counting.asked == 4


def test_a_policy_for_faces_sees_what_an_upscaler_makes_of_the_shrunk_picture():
    config = PixelUNetConfig(scale=1, guide="upscaler.pth", shrink=2, channels=(8, 8), unshuffle=2)
    upscaler = Counting(4)
    policy = PixelUNet(config, None, upscaler)
    lq = torch.rand(1, 3, 16, 16)
    for _ in range(2):
        guide = policy.condition(lq)["guide"]
    torch.testing.assert_close(guide, F.interpolate(F.avg_pool2d(lq, 2), scale_factor=2, mode="nearest"))
    assert upscaler.asked == 1


def test_a_policy_refuses_an_upscaler_of_another_scale_where_no_shrink_is_given():
    config = PixelUNetConfig(scale=1, guide="upscaler.pth", channels=(8, 8), unshuffle=2)
    with pytest.raises(UserError, match=r"guide upscaler\.pth enlarges 4 times, but the policy 1 times"):
        PixelUNet(config, None, BicubicRestorer(4))
