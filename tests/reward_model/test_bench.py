"""The benchmark of the reward model on a tiny network: every figure there, and consistent with the others."""

from __future__ import annotations

import json

import pytest
import torch
from accelerate import Accelerator

import reward_model.bench
from reward_model.bench import VARIANTS, measure_scoring, measure_training
from reward_model.learning.augment import AugmentConfig, Augmenter
from reward_model.learning.optimizer import OptimConfig
from reward_model.learning.stages import TrainingData
from reward_model.network.model import RewardModelConfig
from reward_model.train import TrainConfig
from shared.app.config import to_yaml
from tests.helpers.reward_samples import SCALE, tiny_samples

RM = TrainConfig(
    stage_iterations=(1, 1, 1),
    model=RewardModelConfig(decoder_channels=(8, 8)),
    augment=AugmentConfig(crop_px=32),
    optim=OptimConfig(batch_triplets=2),
    device="cpu",
)


def training_data() -> TrainingData:
    samples = tiny_samples(4)
    return TrainingData(samples, samples[:2], Augmenter(RM.augment, SCALE, seed=0))


def test_scoring_is_timed_beside_the_encoder(monkeypatch):
    monkeypatch.setattr(reward_model.bench, "SIDE_PX", 64)
    monkeypatch.setattr(reward_model.bench, "PICTURES", 2)
    figures = measure_scoring(RM, VARIANTS[1], torch.device("cpu"))
    # The whole holds the encoder and more.
    assert figures["times_encoder"] > 1
    ratio = figures["encoder_per_second"] / figures["score_and_map_per_second"]
    assert figures["times_encoder"] == pytest.approx(ratio)
    assert figures["peak_mb"] > 0


def test_a_training_step_is_timed_by_part(monkeypatch):
    monkeypatch.setattr(reward_model.bench, "STEPS", 2)
    figures = measure_training(RM, VARIANTS[0], training_data(), Accelerator(cpu=True))
    parts = [figures[part] for part in ("data", "forward", "backward", "optimizer")]
    assert min(parts) > 0
    assert figures["step"] == pytest.approx(sum(parts))
    assert figures["peak_mb"] > 0


def test_the_reward_model_bench_goes_on_where_nothing_compiles(monkeypatch, tmp_path, capsys):
    def no_compiler(module):
        raise RuntimeError("no C++ compiler\nand a long story")

    monkeypatch.setattr(reward_model.bench, "SIDE_PX", 32)
    monkeypatch.setattr(reward_model.bench, "STEPS", 1)
    monkeypatch.setattr(reward_model.bench, "REPEATS", 1)
    monkeypatch.setattr(reward_model.bench, "open_data", lambda config: training_data())
    monkeypatch.setattr(torch, "compile", no_compiler)
    path = tmp_path / "rm.yaml"
    path.write_text(to_yaml(RM))
    reward_model.bench.main([str(path)])
    out = capsys.readouterr().out
    assert "not here: no C++ compiler\n" in out
    figures = json.loads(out.splitlines()[-1])
    assert set(figures["scoring"]) == set(figures["training"]) == {"plain", "channels-last"}
