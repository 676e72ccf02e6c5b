"""Adversarial training: restorations the model itself is deceived by, no further than asked, and nothing else changed."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from reward_model.learning.adversarial import DisguiseConfig, disguised
from reward_model.learning.batches import TripletBatch
from reward_model.network.model import RewardModel, RewardModelConfig
from tests.helpers.reward_samples import tiny_samples


@pytest.fixture(scope="module")
def model() -> RewardModel:
    torch.manual_seed(0)
    model = RewardModel(RewardModelConfig(decoder_channels=(16, 8)), stage=2)
    for head in model.map_heads:  # fresh ones are all but flat: nothing to be deceived in
        torch.nn.init.normal_(head.weight, std=0.3)
    return model.train()


@pytest.fixture(scope="module")
def batch() -> TripletBatch:
    return TripletBatch.collate(tiny_samples(4))


def test_half_of_the_restorations_move_by_no_more_than_asked(model, batch):
    found = disguised(model, batch, DisguiseConfig(share=0.5, max_levels=4.0), seed=1)
    for name in ("gt", "degradation_map", "sr_degradation_map"):
        assert torch.equal(getattr(found, name), getattr(batch, name))
    for name in ("syn", "sr"):
        moved = (getattr(found, name) - getattr(batch, name)).abs().amax(dim=(1, 2, 3)) * 255
        assert moved[2:].tolist() == [0.0, 0.0]
        assert (moved[:2] > 0.1).all()
        assert (moved[:2] < 4.001).all()
        assert 0 <= getattr(found, name).min() <= getattr(found, name).max() <= 1
    # A triplet's syn and sr have one reach, and every triplet its own.
    reach = [(getattr(found, name) - getattr(batch, name)).abs().amax(dim=(1, 2, 3))[:2] for name in ("syn", "sr")]
    torch.testing.assert_close(reach[0], reach[1], atol=2e-3, rtol=0.05)
    assert (reach[0][0] - reach[0][1]).abs() > 1e-3


def test_the_model_judges_them_better_than_the_same_amount_of_noise(model, batch):
    batch = dataclasses.replace(batch, sr=batch.gt)  # grainy: on the samples' flat sr a gradient says little
    found = disguised(model, batch, DisguiseConfig(share=1.0, max_levels=2.0), seed=2)
    reach = (found.sr - batch.sr).abs().amax(dim=(1, 2, 3), keepdim=True)
    signs = torch.randn(batch.sr.shape, generator=torch.Generator().manual_seed(3)).sign()
    model.eval()
    with torch.no_grad():
        judged = {
            name: output.score - output.degradation_map.mean(dim=(1, 2, 3))
            for name, output in (
                ("disguised", model(found.sr)),
                ("noisy", model((batch.sr + signs * reach).clamp(0, 1))),
                ("plain", model(batch.sr)),
            )
        }
    model.train()
    assert (judged["disguised"] > judged["noisy"]).all()
    assert (judged["disguised"] > judged["plain"]).all()


def test_the_model_is_left_as_it_was(model, batch):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.zero_grad(set_to_none=True)
    disguised(model, batch, DisguiseConfig(share=1.0), seed=4)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())  # statistics too
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_is_drawn_follows_from_the_seed(model, batch):
    one, again, other = (disguised(model, batch, DisguiseConfig(share=0.5), seed=seed).sr for seed in (5, 5, 6))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_no_share_and_no_map_leave_the_batch_alone(model, batch):
    assert disguised(model, batch, DisguiseConfig(share=0.0), seed=1) is batch
    assert disguised(RewardModel(model.config, stage=0), batch, DisguiseConfig(share=1.0), seed=1) is batch
    with pytest.raises(ValueError, match="share must lie between 0 and 1"):
        DisguiseConfig(share=1.5)
