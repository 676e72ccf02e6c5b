"""Which metrics a machine can measure: those without weights always, the others where they are, and why not elsewhere."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from shared.app.errors import UserError
from shared.vision import available
from shared.vision.available import MetricWeights, open_metrics
from shared.vision.metrics import METRICS
from tests.helpers.scenes import noisy, scene

GT = scene(5)
WITHOUT_WEIGHTS = {name for name, metric in METRICS.items() if metric.function is not None}


@pytest.fixture(autouse=True)
def bare_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "pyiqa", None)


def test_a_bare_machine_measures_every_family_and_says_what_is_missing():
    metrics = open_metrics(MetricWeights())
    assert set(metrics.of_each) | set(metrics.of_all) == WITHOUT_WEIGHTS
    assert set(metrics.absent) == {"lpips_alex", "lpips_vgg", "dists", "niqe", "musiq"}
    assert "alexnet-owt-7be5be79.pth" in metrics.absent["lpips_alex"]
    assert "pip install 'restore-rl[iqa]'" in metrics.absent["niqe"]
    assert "landmarks need a face detector" in open_metrics(MetricWeights(), faces=True).absent["landmark_distance"]


def test_measuring_in_batches_changes_nothing():
    metrics = open_metrics(MetricWeights())
    sr = noisy(GT, 0.05)
    whole, halved = metrics.measure(sr, GT), metrics.measure(sr, GT, batch=2)
    assert set(whole) == WITHOUT_WEIGHTS
    for name, values in whole.items():
        assert values.shape == (5,)
        torch.testing.assert_close(values, halved[name], atol=1e-5, rtol=1e-5)


def test_weights_that_are_named_and_missing_stop_the_run(tmp_path):
    with pytest.raises(UserError, match="alexnet_features"):
        open_metrics(MetricWeights(perceptual=str(tmp_path)))
    with pytest.raises(UserError, match=r"expected YuNet's \.onnx, got .*no\.onnx"):
        open_metrics(MetricWeights(landmarks="no.onnx"), faces=True)


def test_weights_that_can_be_had_are_measured(monkeypatch):
    monkeypatch.setattr(available, "load_lpips", lambda net, **_: lambda sr, gt: (sr - gt).mean((1, 2, 3)))
    monkeypatch.setattr(available, "load_landmarks", lambda path: lambda pictures: torch.ones(len(pictures), 5, 2))
    metrics = open_metrics(MetricWeights(), faces=True)
    assert {"lpips_alex", "lpips_vgg", "landmark_distance"} <= set(metrics.of_each)
    assert set(metrics.absent) == {"dists", "niqe", "musiq"}
    torch.testing.assert_close(metrics.measure(GT + 0.5, GT)["lpips_alex"], torch.full((5,), 0.5))


def test_no_reference_metrics_come_from_pyiqa_where_it_is_and_may_fetch(monkeypatch):
    class Constant(torch.nn.Module):
        def forward(self, sr):
            return sr.mean((1, 2, 3))[:, None]

    def create_metric(name):
        if name == "musiq":
            raise OSError("no route to host\nand more")
        return Constant()

    monkeypatch.setitem(sys.modules, "pyiqa", SimpleNamespace(create_metric=create_metric))
    monkeypatch.setattr(available, "load_lpips", lambda net, **_: lambda sr, gt: None)
    monkeypatch.setattr(available, "load_dists", lambda **_: lambda sr, gt: None)
    assert "no download is allowed" in open_metrics(MetricWeights()).absent["niqe"]
    metrics = open_metrics(MetricWeights(allow_download=True))
    torch.testing.assert_close(metrics.of_each["niqe"](GT, GT), GT.mean((1, 2, 3)))
    assert metrics.absent["musiq"] == "pyiqa could not load it (no route to host)"
