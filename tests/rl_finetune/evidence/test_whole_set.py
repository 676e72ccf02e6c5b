"""The kernel distance of whole sets: where it is measured, and that it is of the right pictures."""

from __future__ import annotations

import pytest
import torch

from rl_finetune.evidence import whole_set
from rl_finetune.evidence.references import TRUTH
from rl_finetune.evidence.whole_set import KERNEL_DISTANCE, WholeSet
from shared.app.errors import UserError
from shared.vision.available import MetricWeights
from shared.vision.distribution import kernel_distance

CPU = torch.device("cpu")


def flat(pictures: torch.Tensor) -> torch.Tensor:
    return pictures.flatten(1)


def open_set(monkeypatch, images: int) -> WholeSet:
    monkeypatch.setattr(whole_set, "load_describe", lambda **given: flat)
    return WholeSet.open(MetricWeights(), images=images, batch=64, device=CPU)


def test_every_column_is_compared_with_the_truth(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    truth, near = (torch.rand(500, 3, 2, 2, generator=generator) for _ in range(2))
    whole = open_set(monkeypatch, 500)
    for title, pictures in {"before": near, TRUTH: truth, "after": near * 0.5}.items():
        whole.add(title, pictures)
    found = whole.distances()
    assert set(found) == {"before", "after"}
    assert found["before"] == kernel_distance(flat(near), flat(truth))
    assert found["after"].value > found["before"].value + 5 * found["after"].standard_error
    assert f"before {found['before'].value:.4f} ± {found['before'].standard_error:.4f}, after" in whole.lines()
    assert whole.as_json()["after"]["value"] == found["after"].value


def test_fewer_than_500_pictures_are_not_described(monkeypatch):
    whole = open_set(monkeypatch, 499)
    whole.add(TRUTH, torch.rand(2, 3, 4, 4))
    assert (whole.distances(), whole.lines()) == ({}, "")
    assert whole.absent == {KERNEL_DISTANCE: "it needs 500 pictures and more, and 499 are measured"}


def test_weights_that_are_named_must_be_there(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="kernel distance needs the weights of its vgg backbone"):
        WholeSet.open(MetricWeights(perceptual=str(tmp_path)), images=500, batch=4, device=CPU)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    absent = WholeSet.open(MetricWeights(), images=500, batch=4, device=CPU).absent
    assert "needs the weights of its vgg backbone" in absent[KERNEL_DISTANCE]
