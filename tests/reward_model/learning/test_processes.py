"""The reward model's command in two real processes with loaders of their own, killed with SIGKILL between stages."""

from __future__ import annotations

import time

from reward_model.network.checkpoint import verify_checkpoint
from reward_model.network.model import RewardModel
from shared.runs.tracking import read_metrics
from tests.helpers.torchrun import kill_all, launch, start

pytest_plugins = ["tests.helpers.small_dataset"]

YAML = """\
dataset: {dataset}
out: {out}
workers: 1
validation_samples: 2
stage_iterations: [2, 6]
model: {{ decoder_channels: [8] }}
augment: {{ crop_px: 0 }}
optim: {{ batch_triplets: 4, validate_every: 2, save_every: 1 }}
"""


def test_two_processes_killed_between_stages_finish(dataset, tmp_path):
    out, config = tmp_path / "run", tmp_path / "rm.yaml"
    config.write_text(YAML.format(dataset=dataset, out=out))
    launcher = start(2, "reward_model.train", str(config))
    try:
        deadline = time.monotonic() + 300
        while not (out / "stages" / "stage_0" / "model.safetensors").exists():
            assert launcher.poll() is None, launcher.stderr.read()[-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        kill_all(launcher)
    assert not (out / "checkpoint").exists()
    launch(2, "reward_model.train", str(config))
    assert verify_checkpoint(out / "checkpoint") == [0, 1]
    assert RewardModel.from_pretrained(out / "checkpoint").stage == 1
    assert [record["step"] for record in read_metrics(out)] == list(range(1, 9))  # one process writes, each step once
