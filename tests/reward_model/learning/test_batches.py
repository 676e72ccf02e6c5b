"""Training batches: a function of the step, shared between processes, of one picture size."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import data.regions.targets
from data.regions.distances import BackboneDistance
from data.store.sample_maker import TargetScale
from reward_model.learning.augment import AugmentConfig, Augmenter
from reward_model.learning.batches import StepBatches, step_indices
from reward_model.learning.stages import TrainingData
from reward_model.train import train
from shared.app.errors import UserError
from shared.runs.run_folder import RunFolder
from tests.helpers.reward_samples import SCALE, tiny_samples
from tests.helpers.reward_training import tiny_config


def test_the_batch_of_a_step_depends_on_the_step_alone():
    samples, augmenter = tiny_samples(6), Augmenter(AugmentConfig(), SCALE, seed=1)
    whole = StepBatches(samples, augmenter, seed=1, batch_triplets=4, steps=range(6))
    late = StepBatches(samples, augmenter, seed=1, batch_triplets=4, steps=range(4, 6))
    assert torch.equal(whole[4].syn, late[0].syn)
    assert torch.equal(whole[5].degradation_map, late[1].degradation_map)
    # Two processes hold the halves of the batch that one holds.
    halves = [
        StepBatches(samples, augmenter, seed=1, batch_triplets=4, steps=range(6), process=p, processes=2)
        for p in range(2)
    ]
    assert torch.equal(torch.cat([half[3].gt for half in halves]), whole[3].gt)
    with pytest.raises(UserError, match="cannot be shared by 3 processes"):
        StepBatches(samples, augmenter, seed=1, batch_triplets=4, steps=range(6), processes=3)


def test_every_epoch_holds_every_sample_once():
    drawn = [index for step in range(9) for index in step_indices(6, seed=3, step=step, batch_triplets=4)]
    for epoch in range(6):
        assert sorted(drawn[6 * epoch : 6 * epoch + 6]) == list(range(6))
    assert drawn[:6] != drawn[6:12]


def test_pictures_of_several_sizes_need_a_crop():
    samples = [*tiny_samples(2), *tiny_samples(2, side_px=64)]
    plain = Augmenter(AugmentConfig(), SCALE, seed=0)
    with pytest.raises(UserError, match=r"several sizes .* set augment.crop_px"):
        StepBatches(samples, plain, seed=0, batch_triplets=4, steps=range(1))[0]
    cropping = Augmenter(AugmentConfig(crop_px=40), SCALE, seed=0)
    assert StepBatches(samples, cropping, seed=0, batch_triplets=4, steps=range(1))[0].gt.shape == (4, 3, 40, 40)


def test_lq_is_shown_in_its_share_of_the_samples_and_is_as_large_as_gt():
    samples = [dataclasses.replace(s, lq=torch.nn.functional.avg_pool2d(s.gt, 4)) for s in tiny_samples(8)]
    augmenter = Augmenter(AugmentConfig(crop_px=32), SCALE, seed=1)

    def batches(share: float, steps: range = range(40)) -> StepBatches:
        return StepBatches(samples, augmenter, seed=1, batch_triplets=8, steps=steps, lq_share=share)

    assert batches(0.0)[0].lq is None
    given = torch.stack([batches(0.6)[step].lq_given for step in range(40)])
    assert given.float().mean() == pytest.approx(0.6, abs=0.1)  # four standard deviations of 320 draws
    batch = batches(0.6)[3]
    assert batch.lq.shape == batch.gt.shape == (8, 3, 32, 32)
    assert torch.equal(batches(0.6, range(3, 4))[0].lq_given, batch.lq_given)
    assert torch.equal(batches(0.0)[3].syn, batch.syn)  # showing it changes no picture
    # What is shown is the blurred gt of the same place: nearer to it than to any other sample's.
    distances = [[(lq - gt).abs().mean().item() for gt in batch.gt] for lq in batch.lq]
    assert all(min(row) == row[index] for index, row in enumerate(distances))


BACKBONE = "test_convnext.r160_in1k"  # of timm, for tests: 0.3 M weights
DEEP = TargetScale(dataclasses.replace(SCALE.targets, features=BACKBONE, pretrained=False), SCALE.normaliser)


def test_a_label_backbone_runs_once_for_a_batch_and_never_where_samples_are_drawn(monkeypatch):
    opened, seen = [], []

    def open_backbone(name: str, **settings) -> BackboneDistance:
        torch.manual_seed(0)
        opened.append(settings["device"])
        distance = BackboneDistance(name, pretrained=False, device=settings["device"])
        distance.net.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
        return distance

    samples, config = tiny_samples(8), AugmentConfig(new_mask=1.0, crop_px=32)
    monkeypatch.setattr(data.regions.targets, "open_feature_distance", open_backbone)
    augmenter = Augmenter(config, DEEP, seed=1)
    batches = StepBatches(samples, augmenter, seed=1, batch_triplets=8, steps=range(2), lq_share=0.6)
    waiting = batches[1]
    assert (opened, seen) == ([], [])
    batch = waiting.with_maps(augmenter, torch.device("cpu"))
    # Seven are repainted, one is a control: gt, syn and sr of each, all at once.
    assert (opened, seen) == (["cpu"], [21])
    assert batch.lq_given.tolist() == list(waiting.lq_given)
    alone = [augmenter.with_maps([one])[0] for one in waiting.drawn]
    assert len(opened) == 1
    for name in ("gt", "sr", "syn", "degradation_map", "sr_degradation_map"):
        expected = torch.stack([getattr(sample, name) for sample in alone])
        torch.testing.assert_close(getattr(batch, name), expected, rtol=0, atol=1e-4)
    monkeypatch.setattr("data.regions.distances.BATCH_PIXELS", 4 * 48 * 48)
    seen.clear()
    again = waiting.with_maps(augmenter, torch.device("cpu"))
    assert seen == [4, 4, 4, 4, 4, 1]  # no more than memory holds
    torch.testing.assert_close(again.degradation_map, batch.degradation_map, rtol=0, atol=1e-4)


def test_a_model_is_trained_on_maps_that_a_backbone_makes(tmp_path):
    config = tiny_config(tmp_path / "run", stage_iterations=(1, 1, 2))
    samples = tiny_samples(8)
    run = RunFolder.open(tmp_path / "run", config)
    train(config, run, TrainingData(samples[:6], samples[6:], Augmenter(config.augment, DEEP, seed=0)))
    assert run.summary()["pixel_auroc"] > 0
