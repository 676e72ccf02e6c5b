"""Adversarial training: perturbed restorations deceive the model, stay within reach, and nothing else changes."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from reward_model.learning.adversarial import AdversarialConfig, make_adversarial
from reward_model.learning.batches import TripletBatch
from reward_model.network.model import RewardModel, RewardModelConfig
from tests.helpers.reward_samples import tiny_samples


@pytest.fixture(scope="module")
def model() -> RewardModel:
    torch.manual_seed(0)
    model = RewardModel(RewardModelConfig(decoder_channels=(16, 8)), stage=2)
    for head in model.map_heads:  # fresh heads are almost flat: there is nothing to deceive
        torch.nn.init.normal_(head.weight, std=0.3)
    return model.train()


@pytest.fixture(scope="module")
def batch() -> TripletBatch:
    return TripletBatch.collate(tiny_samples(4))


def test_half_of_the_restorations_move_by_no_more_than_asked(model, batch):
    found = make_adversarial(model, batch, AdversarialConfig(share=0.5, max_levels=4.0), seed=1)
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
    batch = dataclasses.replace(batch, sr=batch.gt)  # grainy: the samples' own sr is flat and has little gradient
    found = make_adversarial(model, batch, AdversarialConfig(share=1.0, max_levels=2.0), seed=2)
    reach = (found.sr - batch.sr).abs().amax(dim=(1, 2, 3), keepdim=True)
    signs = torch.randn(batch.sr.shape, generator=torch.Generator().manual_seed(3)).sign()
    model.eval()
    with torch.no_grad():
        judged = {
            name: output.score - output.degradation_map.mean(dim=(1, 2, 3))
            for name, output in (
                ("adversarial", model(found.sr)),
                ("noisy", model((batch.sr + signs * reach).clamp(0, 1))),
                ("plain", model(batch.sr)),
            )
        }
    model.train()
    assert (judged["adversarial"] > judged["noisy"]).all()
    assert (judged["adversarial"] > judged["plain"]).all()


def test_the_model_is_left_as_it_was(model, batch):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.zero_grad(set_to_none=True)
    make_adversarial(model, batch, AdversarialConfig(share=1.0), seed=4)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())  # statistics too
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_is_drawn_follows_from_the_seed(model, batch):
    one, again, other = (
        make_adversarial(model, batch, AdversarialConfig(share=0.5), seed=seed).sr for seed in (5, 5, 6)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_no_share_and_no_map_leave_the_batch_alone(model, batch):
    assert make_adversarial(model, batch, AdversarialConfig(share=0.0), seed=1) is batch
    assert make_adversarial(RewardModel(model.config, stage=0), batch, AdversarialConfig(share=1.0), seed=1) is batch
    with pytest.raises(ValueError, match="share must lie between 0 and 1"):
        AdversarialConfig(share=1.5)
