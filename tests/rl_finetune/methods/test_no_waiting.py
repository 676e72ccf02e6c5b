"""Inside a step of the rollout and of the update, nothing waits for the device; a reward call and a ratio check wait once."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from reward_model.network.model import RewardModel
from rl_finetune.loop.groups import draw, groups_of
from rl_finetune.loop.iteration import iterate
from rl_finetune.methods import policy_gradient
from rl_finetune.methods.policy_loss import assert_first_step_ratio
from rl_finetune.methods.rollout import rollout
from shared.diffusion.sampler import SamplerSpec
from tests.helpers.tiny import save_tiny_reward_model
from tests.helpers.tiny_rl import flat, open_session, tiny_rl_config
from tests.helpers.waiting import Waiting, waits_of


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    folder = tmp_path_factory.mktemp("waiting")
    config = tiny_rl_config(folder)
    config = dataclasses.replace(config, sampler=dataclasses.replace(config.sampler, noise="device"))
    return open_session(config, folder / "out")


def test_reads_are_seen():
    assert waits_of(lambda: torch.ones(2).sum().item()) == 1
    assert waits_of(lambda: torch.ones(2).tolist()) == 1


def test_a_rollout_waits_for_nothing(session):
    pairs, seeds = groups_of(session, 0)
    policy = session.learner.policy

    def run() -> None:
        rollout(
            policy, policy.predict, pairs, session.config.sampler, group_size=3, sample_seeds=seeds, microbatch=6,
            trained=(0, 1),
        )  # fmt: skip

    run()  # tables come to the device once
    with Waiting() as waiting:
        run()
    assert waiting.seen == []


def test_an_iteration_learns_with_noise_from_the_device_and_its_ratios_are_1(session):
    before = flat(session)
    figures = iterate(session, 0)  # raises where re-scoring differs from the rollout
    assert figures["clip_fraction"] >= 0
    assert not torch.equal(flat(session), before)


def test_an_updates_passes_wait_for_nothing(session, monkeypatch):
    real, seen = policy_gradient._pass_losses, []

    def watched(*arguments):
        with Waiting() as waiting:
            losses = real(*arguments)
        seen.append(waiting.seen)
        return losses

    monkeypatch.setattr(policy_gradient, "_pass_losses", watched)
    iterate(session, 1)
    assert len(seen) > 1
    assert not any(seen)


def test_batches_draw_the_same(session):
    whole = draw(session, 1)
    halves = draw(dataclasses.replace(session, config=dataclasses.replace(session.config, microbatch_groups=1)), 1)
    torch.testing.assert_close(halves.x0, whole.x0, rtol=0, atol=1e-5)


def test_a_ratio_check_and_a_reward_model_call_wait_once(session, tmp_path):
    assert waits_of(lambda: assert_first_step_ratio(torch.ones(4, 2, 2))) == 1
    with pytest.raises(RuntimeError, match="the ratio must be 1 within"):
        assert_first_step_ratio(torch.full((4, 2, 2), 1.1))
    model = RewardModel.from_pretrained(save_tiny_reward_model(tmp_path / "rm"), stage=1)
    with torch.no_grad():
        assert waits_of(lambda: model(torch.full((2, 3, 32, 32), 0.5))) == 1


def test_saved_and_loaded_a_sampler_keeps_where_it_draws():
    assert SamplerSpec(noise="device").deployed("ode") == SamplerSpec(eta=0.0, noise="device")
    with pytest.raises(TypeError):
        SamplerSpec(where="device")
