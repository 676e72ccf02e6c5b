"""Two processes do what one does: the same gradients, the same parameters."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from rl_finetune.loop.config import TrainRlConfig
from rl_finetune.rewards.config import RewardConfig, RewardPart
from shared.app.config import to_yaml
from tests.helpers.process_worker import KINDS, gradients
from tests.helpers.tiny_rl import tiny_rl_config
from tests.helpers.torchrun import launch


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory) -> TrainRlConfig:
    # Another batch shape alone moves the last bits: one group per forward pass makes shapes equal too.
    config = tiny_rl_config(tmp_path_factory.mktemp("processes"))
    return dataclasses.replace(config, microbatch_groups=1, learning_rate=1e-4)


def test_one_and_two_processes_end_in_the_same_parameters(tiny_run, tmp_path):
    results = {}
    for processes in (1, 2):
        out = tmp_path / f"p{processes}"
        config = dataclasses.replace(tiny_run, out=str(out), iterations=3, checkpoint_every=100)
        path = tmp_path / f"{processes}.yaml"
        path.write_text(to_yaml(config))
        assert f"per iteration on {processes} processes" in launch(processes, "rl_finetune.train", str(path))
        results[processes] = load_file(out / "model.safetensors")
    for key, one in results[1].items():
        torch.testing.assert_close(results[2][key], one, atol=1e-6, rtol=1e-6, msg=key)


def test_one_and_two_processes_have_the_same_gradients(tiny_run, tmp_path):
    reward = RewardConfig(parts=[RewardPart("dwt", 0.5), RewardPart("gradient_similarity", 0.5)])
    config = dataclasses.replace(tiny_run, reward=reward)
    path: Path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    launch(2, "tests.helpers.process_worker", str(path), str(tmp_path / "two.safetensors"))
    AcceleratorState._reset_state(reset_partial_state=True)
    alone, together = gradients(config, tmp_path / "alone"), load_file(tmp_path / "two.safetensors")
    assert int(together.pop("processes")) == 2
    assert set(alone) == set(together) == set(KINDS)
    for kind, one in alone.items():
        assert one.abs().max() > 1e-3, kind
        # The reward model judges other batch shapes in two processes, and small gains divide its last bits.
        atol = 5e-6 if kind == "spacetime" else 1e-6
        # Rewards under their own gradient count in spreads of the base policy, and so do these gradients' last bits.
        atol *= max(1.0, float(one.abs().max()))
        torch.testing.assert_close(together[kind], one, atol=atol, rtol=1e-5, msg=kind)
