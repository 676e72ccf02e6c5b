"""Training with lq as a second input: both ways are validated and kept, and lq teaches what a picture alone cannot."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from reward_model.learning.losses import TripletLossConfig
from reward_model.learning.stage_loss import stage_loss
from reward_model.network.model import RewardModel
from reward_model.train import TrainConfig
from tests.helpers.reward_models import build
from tests.helpers.reward_samples import tiny_samples
from tests.helpers.reward_training import NETWORK, run_training, tiny_config

WITH_LQ = dataclasses.replace(NETWORK, takes_lq=True)


def test_a_run_with_lq_measures_and_keeps_both_ways(tmp_path):
    run = run_training(tmp_path / "run", model=WITH_LQ, lq_share=0.5)
    assert {"triplet", "lq/triplet", "pixel_auroc", "lq/pixel_auroc"} <= run.summary().keys()
    metrics = json.loads((run.path / "checkpoint" / "metrics.json").read_text())
    assert metrics["reference"]["scores"]["2"].keys() == {"alone", "beside_lq"}
    assert "| RM_2 with lq | " in (run.path / "checkpoint" / "README.md").read_text()
    model = RewardModel.from_pretrained(run.path / "checkpoint")
    images = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert model(images).score != model(images, images[..., ::4, ::4]).score


def test_only_the_samples_that_show_their_lq_teach_the_branch(tmp_path):
    from reward_model.learning.batches import TripletBatch

    model, samples = build(WITH_LQ, 1), tiny_samples(4)
    torch.nn.init.normal_(model.lq_branch.body[-1].weight, std=0.1)

    def loss(given: list[bool], lq: torch.Tensor | None = None) -> torch.Tensor:
        shown = [s if lq is None else dataclasses.replace(s, lq=lq[i]) for i, s in enumerate(samples)]
        return stage_loss(model, TripletBatch.collate(shown, given), TripletLossConfig(), None)[0]

    other = torch.rand(4, 3, 48, 48)
    other[0] = samples[0].lq
    with torch.no_grad():
        assert torch.equal(loss([True, False, False, False]), loss([True, False, False, False], other))
        assert not torch.equal(loss([True, True, False, False]), loss([True, True, False, False], other))


@pytest.mark.parametrize(("share", "takes_lq"), [(0.5, False), (0.0, True)])
def test_a_share_and_the_input_belong_together(tmp_path, share, takes_lq):
    network = dataclasses.replace(NETWORK, takes_lq=takes_lq)
    with pytest.raises(ValueError, match=r"set lq_share and model\.takes_lq both"):
        tiny_config(tmp_path, lq_share=share, model=network)
    assert TrainConfig().lq_share == 0
