"""What the RL stage refuses before it starts, with the reason."""

from __future__ import annotations

import dataclasses

import pytest

from data.degradation.pairs import PairConfig
from rl_finetune.credit.config import AdvantageConfig
from rl_finetune.evidence.gauge import GaugeConfig
from rl_finetune.loop.config import TrainRlConfig
from rl_finetune.methods.likelihood import LikelihoodConfig
from rl_finetune.methods.policy_loss import LossConfig
from shared.app.errors import UserError
from shared.diffusion.sampler import SamplerSpec
from tests.helpers.tiny_rl import open_session, tiny_rl_config


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory) -> TrainRlConfig:
    return tiny_rl_config(tmp_path_factory.mktemp("refusals"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"group_size": 1}, "group_size must be at least 2"),
        ({"sampler": SamplerSpec(steps=1, eta=1.0)}, "the last step is always deterministic"),
        ({"sampler": SamplerSpec(steps=4, eta=0.0)}, "eta must be above 0"),
        ({"groups": 5}, "5 groups and 2 updates"),
        ({"advantage": AdvantageConfig(hard_fraction=0.5)}, "set updates_per_rollout=1"),
        ({"updates_per_rollout": 0}, "updates_per_rollout must lie between 1"),
        ({"checkpoint_every": 0}, "checkpoint_every must lie between 1"),
        ({"microbatch_groups": -1}, "microbatch_groups must lie between 0"),
        ({"microbatch_groups": 1, "microbatch_samples": 2}, "say the same in two ways"),
        ({"eval_batch": 0}, "eval_batch must lie between 1"),
        ({"cpu_threads": 0}, "cpu_threads must lie between 1"),
        ({"learning_rate": -1.0}, "learning_rate must lie between"),
        ({"gradient_clip": -1.0}, "gradient_clip must lie between"),
        ({"check_images": 1}, "check_images must lie between 2"),
        ({"gauge": GaugeConfig(action="rollback")}, "check_every is 0"),
        (
            {"gauge": GaugeConfig(action="raise_gt_weight"), "likelihood": LikelihoodConfig(form="none")},
            "likelihood.form is none",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_with_the_reason(tiny_run, values, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(tiny_run, **values)


@pytest.mark.parametrize(
    "make",
    [
        lambda: AdvantageConfig(clip=-5.0),
        lambda: AdvantageConfig(cell_clip=0.0),
        lambda: LossConfig(max_kl=-1e-3),
        lambda: LossConfig(clip_range_per_element=-0.1),
        lambda: LikelihoodConfig(weight=-0.1),
    ],
)
def test_a_sign_that_would_turn_the_training_round_is_refused(make):
    with pytest.raises(ValueError, match="must lie between"):
        make()


def test_a_base_of_the_other_task_is_refused(tiny_run, tmp_path):
    with pytest.raises(UserError, match=r"task sr enlarges 4 times, but the policy in .*base 1 times"):
        open_session(dataclasses.replace(tiny_run, task="sr"), tmp_path)


def test_pictures_that_do_not_fit_the_latent_grid_are_refused(tiny_run, tmp_path):
    config = dataclasses.replace(tiny_run, pairs=PairConfig(crop_px=36, pairs=16))
    with pytest.raises(UserError, match=r"crop_px must be a multiple of 8.*got 36"):
        open_session(config, tmp_path)
