"""One stage's loss: which pictures it looks at, and what stage 0 is taught about them."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from reward_model.learning.batches import TripletBatch
from reward_model.learning.losses import TripletLossConfig
from reward_model.learning.stage_loss import stage_loss
from reward_model.network.model import RewardOutput
from tests.helpers.reward_models import build
from tests.helpers.reward_samples import tiny_samples


class Brightness(torch.nn.Module):
    """A stage 0 that scores a picture by `gain` times its mean, plus 1."""

    stage = 0

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain, self.seen = gain, None

    def forward(self, pictures, lq=None, lq_given=None):
        self.seen = pictures
        return RewardOutput(1.0 + self.gain * pictures.mean(dim=(1, 2, 3)), None)


def batch() -> TripletBatch:
    plain = tiny_samples(4)
    dark = [dataclasses.replace(s, gt=s.gt * 0, syn=s.gt * 0 + 0.2, sr=s.gt * 0 + 0.4) for s in plain]
    maps = {"degradation_map": 0.04, "sr_degradation_map": 0.16}  # depths .5·.2 = .1 and .5·.4 = .2
    return TripletBatch.collate(
        [dataclasses.replace(s, **{k: torch.full((1, 48, 48), v) for k, v in maps.items()}) for s in dark]
    )


def test_stage_0_learns_how_far_each_picture_is_from_its_truth():
    # Half way between sr and gt lies half the damage: depth .5·sqrt(.08) = .1414. Scores 1 − .5·mean are .9, .8, 1, .9
    # for syn, sr, gt and the picture half way: only the last is off, by .0414 against each of three, in six pairs.
    model = Brightness(-0.5)
    _, terms = stage_loss(model, batch(), TripletLossConfig(), None)
    assert terms["distance"].item() == pytest.approx(3 * (0.5 * 0.08**0.5 - 0.1) / 6, abs=1e-5)
    assert terms["rank"].item() == pytest.approx(0.0, abs=1e-6)
    assert terms["level"].item() == pytest.approx(0.0, abs=1e-6)
    assert torch.equal(model.seen[12:], torch.full((4, 3, 48, 48), 0.2))
    assert stage_loss(Brightness(0.5), batch(), TripletLossConfig(), None)[1]["distance"] > 0.1


def test_later_stages_learn_maps_of_the_same_pictures_without_the_one_half_way():
    model, seen = build(stage=1), []
    model.register_forward_pre_hook(lambda _module, given: seen.append(len(given[0])))
    _, terms = stage_loss(model, batch(), TripletLossConfig(), lambda gt: torch.ones(len(gt)))
    assert set(terms) == {"rank", "map", "align"}
    assert seen == [12]
