"""Every yaml in configs/ loads into its stage's schema, as its command would load it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from data.degradation.ranges import PUBLISHED, ranges_of
from data.store.config import BuildConfig
from data.train_pool import TrainPoolConfig
from reward_model.evaluate import EvaluateRmConfig
from reward_model.train import TrainConfig
from rl_finetune.loop.config import TrainRlConfig
from rl_finetune.pretrain import PretrainConfig
from rl_finetune.rewards.composite import LRPO_FACE
from rl_finetune.study import StudyConfig
from shared.app.config import load_config

CONFIGS = Path(__file__).parents[1] / "configs"
SCHEMAS = {
    "base": PretrainConfig,
    "dataset": BuildConfig,
    "eval_rm": EvaluateRmConfig,
    "pool": TrainPoolConfig,
    "study": StudyConfig,
    "train_rl": TrainRlConfig,
    "train_rm": TrainConfig,
}


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_a_shipped_config_loads(path):
    (schema,) = [schema for name, schema in SCHEMAS.items() if path.stem.startswith(name)]
    assert isinstance(load_config(schema, [str(path)]), schema)


@pytest.mark.parametrize("task", ["sr", "face"])
def test_rl_on_a_shipped_policy_restores_what_the_policy_was_trained_on(task):
    rl = load_config(TrainRlConfig, [str(CONFIGS / f"train_rl_{task}_shipped.yaml")])
    base = load_config(PretrainConfig, [str(CONFIGS / f"base_{task}_shipped.yaml")])
    assert (rl.base, rl.task, rl.reward_model) == (f"shipped:base_{task}", base.task, "shipped:reward_model")
    assert replace(rl.pairs, pairs=base.pairs.pairs) == base.pairs
    assert rl.eval_crop_px == base.pairs.crop_px
    assert rl.sampler.steps == base.sampler.steps


@pytest.mark.parametrize("name", ["train_rl_face.yaml", "gpu/train_rl_face.yaml"])
def test_the_faces_reward_is_lrpos(name):
    reward = load_config(TrainRlConfig, [str(CONFIGS / name)]).reward
    assert {part.name: part.weight for part in reward.parts} == LRPO_FACE


def test_the_real_scale_dataset_is_real_scale():
    config = load_config(BuildConfig, [str(CONFIGS / "gpu" / "dataset.yaml")])
    assert config.crop_px == 512
    for task, preset in (("sr", "real_sr"), ("face", "face")):
        assert ranges_of(config.degradation(task)) == PUBLISHED[preset]
    assert "dinov3" in config.targets.features
    assert "sam" in config.masks.kinds
    hub = [entry for entry in config.restorers.values() if entry.path.startswith("hf:")]
    assert len(hub) >= 2
    assert all(len(entry.revision) == 40 for entry in hub)  # a commit: a branch could move between two machines
