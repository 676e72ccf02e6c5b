"""Every yaml in configs/ loads into its stage's schema, as its command would load it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

from data.degradation.ranges import PUBLISHED, ranges_of
from data.degradation.records import SCALES
from data.pool.restorer_pool import RestorerPool
from data.store.config import BuildConfig
from data.train_pool import TrainPoolConfig
from reward_model.evaluate import EvaluateRmConfig
from reward_model.train import TrainConfig
from rl_finetune.loop.config import TrainRlConfig
from rl_finetune.rewards.composite import LRPO_FACE
from rl_finetune.study import StudyConfig
from rl_finetune.supervised.config import PretrainConfig
from shared.app.config import load_config
from shared.app.devices import require_strategy
from shared.app.shipped import shipped_names

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


@pytest.mark.parametrize("name", shipped_names())
def test_a_shipped_config_loads(name):
    path = CONFIGS.parent / name
    (schema,) = [schema for start, schema in SCHEMAS.items() if path.stem.startswith(start)]
    assert isinstance(load_config(schema, [str(path)]), schema)


def test_the_launchers_configs_are_accelerates_and_name_a_strategy_that_works(monkeypatch):
    paths = sorted((CONFIGS / "gpu" / "accelerate").glob("*.yaml"))
    assert [path.name for path in paths] == ["ddp.yaml"]
    for path in paths:
        arguments = launch_command_parser().parse_args(["--config_file", str(path), "-m", "rl_finetune.train"])
        arguments, _, _ = _validate_launch_command(arguments)
        assert (arguments.multi_gpu, arguments.num_processes, arguments.use_fsdp) == (True, 8, False)
        require_strategy(prepare_multi_gpu_env(arguments))


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


@pytest.mark.parametrize("task", ["sr", "face"])
def test_the_shipped_datasets_restorers_are_what_the_stages_before_it_make(task):
    config = load_config(BuildConfig, [str(CONFIGS / "dataset_shipped.yaml")])
    pool = RestorerPool(config.restorers, runs=str(CONFIGS.parent / "checkpoints"))
    names = pool.names(task, held_out=False)
    assert {"l1", "policy_one", "policy", "policy_grainy"} <= set(names)
    for name in names:
        assert pool.load(name, task).scale == SCALES[task], name
