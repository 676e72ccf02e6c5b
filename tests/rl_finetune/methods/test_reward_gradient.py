"""Reward feedback in the training loop: the gradient is autograd's, the reward rises, and what has no gradient is named."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rl_finetune.loop.config import TrainRlConfig
from rl_finetune.loop.groups import groups_of
from rl_finetune.loop.iteration import iterate
from rl_finetune.loop.session import Session
from rl_finetune.loop.trainable import LoraConfig
from rl_finetune.methods.reward_gradient import RewardGradientPlan, reward_gradient_update
from rl_finetune.methods.reward_gradient_loss import RewardGradientConfig
from rl_finetune.rewards.config import RewardConfig, RewardPart
from rl_finetune.rewards.curriculum import CurriculumConfig, CurriculumState
from rl_finetune.rewards.judge import DifferentiableReward
from rl_finetune.rewards.registry import _REWARDS, reward
from shared.app.errors import UserError
from shared.diffusion.sampler import SamplerSpec, sample
from shared.policies.load import load_policy
from shared.vision.similarity import psnr
from tests.helpers.tiny_rl import flat, flat_gradient, killed_and_resumed, open_session, tiny_rl_config


@pytest.fixture(scope="module")
def feedback_run(tmp_path_factory) -> TrainRlConfig:
    config = tiny_rl_config(tmp_path_factory.mktemp("feedback"))
    fidelity = RewardConfig(parts=[RewardPart("dwt", 0.5), RewardPart("gradient_similarity", 0.5)])
    return dataclasses.replace(config, method="draft", group_size=2, reward=fidelity)


def pulled_by_psnr(sr: torch.Tensor, gt: torch.Tensor, lq: torch.Tensor, ids: list[str]) -> torch.Tensor:
    return psnr(sr, gt)


def feedback_gradient(session: Session, method: str, feedback: RewardGradientConfig, **plan) -> torch.Tensor:
    """Returns the gradient of one update over all groups, and leaves the policy as it was."""
    before = {name: p.detach().clone() for name, p in session.learner.policy.named_parameters()}
    batch, seeds = groups_of(session, 0)
    settings = {"updates": 1, "samples_per_pass": 0, "gradient_clip": 1e9, "seed": 0, **plan}
    reward_gradient_update(
        session.learner,
        batch,
        session.config.sampler,
        RewardGradientPlan(method=method, config=feedback, **settings),
        pulled_by_psnr,
        group_size=session.config.group_size,
        sample_seeds=seeds,
    )
    with torch.no_grad():
        for name, parameter in session.learner.policy.named_parameters():
            parameter.copy_(before[name])
    return flat_gradient(session).clone()


def test_draft_through_every_step_is_autograd_through_the_whole_chain(feedback_run, tmp_path):
    session = open_session(feedback_run, tmp_path)
    ours = feedback_gradient(session, "draft", RewardGradientConfig(last_steps=4, supervised_weight=0.3))
    batch, seeds = groups_of(session, 0)
    policy = session.learner.policy
    gt, lq = (x.repeat_interleave(2, dim=0) for x in (batch.gt, batch.lq))
    x0 = sample(
        lambda x, t: policy.predict(x, t, policy.condition(lq)),
        policy.schedule,
        feedback_run.sampler,
        sample_seeds=seeds,
        latent_shape=policy.latent_shape(lq),
    )
    supervised = (x0 - policy.encode(gt, policy.condition(lq))).square().mean((1, 2, 3))
    loss = (-psnr(policy.decode(x0, policy.condition(lq)), gt) + 0.3 * supervised).mean()
    theirs = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(policy.parameters()))])
    assert theirs.abs().max() > 1e-2
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    # Fewer steps are another gradient: the chain is really cut.
    short = feedback_gradient(session, "draft", RewardGradientConfig(last_steps=1, supervised_weight=0.3))
    assert (short - theirs).norm() > 0.05 * theirs.norm()


def test_refl_is_autograd_of_one_late_prediction(feedback_run, tmp_path):
    session = open_session(feedback_run, tmp_path)
    ours = feedback_gradient(session, "refl", RewardGradientConfig(last_steps=1, supervised_weight=0.3))
    batch, seeds = groups_of(session, 0)
    policy, spec = session.learner.policy, feedback_run.sampler
    gt, lq = (x.repeat_interleave(2, dim=0) for x in (batch.gt, batch.lq))
    condition, records = policy.condition(lq), []
    with torch.no_grad():
        sample(
            lambda x, t: policy.predict(x, t, condition),
            policy.schedule,
            spec,
            sample_seeds=seeds,
            latent_shape=policy.latent_shape(lq),
            on_step=records.append,
        )
    last = records[-1]
    # This policy predicts v; x̂_0 = α·x_t − σ·v at the level that x_t really has.
    alpha, sigma = (float(table[last.times.t]) for table in (policy.schedule.alphas, policy.schedule.sigmas))
    x0 = alpha * last.x_t - sigma * policy.predict(last.x_t, torch.full((8,), last.times.t), condition)
    supervised = (x0 - policy.encode(gt, policy.condition(lq))).square().mean((1, 2, 3))
    loss = (-psnr(policy.decode(x0, policy.condition(lq)), gt) + 0.3 * supervised).mean()
    theirs = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(policy.parameters()))])
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def test_the_supervised_band_reaches_the_loss(feedback_run, tmp_path):
    session = open_session(feedback_run, tmp_path)
    whole, low = (
        feedback_gradient(session, "draft", RewardGradientConfig(supervised_weight=1e6, supervised_band=band))
        for band in ("whole", "low")
    )
    assert 0 < low.norm() < whole.norm()


def test_refl_draws_its_step_from_the_last_ones(feedback_run, tmp_path):
    session = open_session(feedback_run, tmp_path)
    gradients = {}
    for seed in range(12):
        found = feedback_gradient(session, "refl", RewardGradientConfig(last_steps=2), seed=seed)
        gradients.setdefault(round(float(found.norm()), 6), found)
    assert len(gradients) == 2


@pytest.mark.parametrize("plan", [{"samples_per_pass": 3}, {"samples_per_pass": 9}, {"samples_per_pass": 4}])
@pytest.mark.parametrize("recompute", [False, True])
def test_slices_and_recomputing_change_no_gradient(feedback_run, tmp_path, plan, recompute):
    session = open_session(feedback_run, tmp_path)
    whole = feedback_gradient(session, "draft", RewardGradientConfig(last_steps=3, supervised_weight=1.0))
    again = feedback_gradient(
        session, "draft", RewardGradientConfig(last_steps=3, supervised_weight=1.0, recompute=recompute), **plan
    )
    torch.testing.assert_close(again, whole, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("trainable", ["full", "lora"])
@pytest.mark.parametrize("method", ["refl", "draft"])
def test_the_reward_rises(feedback_run, tmp_path, method, trainable):
    config = dataclasses.replace(
        feedback_run,
        method=method,
        trainable=trainable,
        lora=LoraConfig(rank=4),
        learning_rate=3e-3,
        reward_gradient=RewardGradientConfig(last_steps=2, supervised_weight=0.1),
    )
    session = open_session(config, tmp_path)
    rewards = [iterate(session, i)["reward"] for i in range(16)]
    assert sum(rewards[-4:]) / 4 > sum(rewards[:4]) / 4 + 0.01


def test_a_whole_run_saves_a_policy_and_resumes_exactly(feedback_run, tmp_path, monkeypatch):
    config = dataclasses.replace(feedback_run, trainable="lora", check_every=2, check_images=2)
    killed_and_resumed(config, tmp_path, monkeypatch)
    assert not torch.equal(
        load_policy(tmp_path / "whole")[0].unet.conv_in.weight, load_policy(config.base)[0].unet.conv_in.weight
    )


@pytest.mark.parametrize("order", ["sum_first", "normalise_first"])
def test_a_blend_is_by_hand_and_differentiable(feedback_run, tmp_path, order):
    # Ramp 1 of 2: shares 2/3 and 1/3, each stage in spreads of the base policy's groups.
    curriculum = CurriculumConfig(stages=(0, 3), min_iterations=1, plateau_window=4, ramp_iterations=2)
    reward_config = RewardConfig(parts=[RewardPart("fgr_score", 2.0)], order=order)
    session = open_session(dataclasses.replace(feedback_run, curriculum=curriculum, reward=reward_config), tmp_path)
    blended = DifferentiableReward(session.judge, CurriculumState(ramp=1), session.scales)
    sr, gt = torch.rand(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = blended(sr.requires_grad_(), gt, gt, list("abcd"))
    by_stage = {}
    for stage in (0, 3):
        score, scale = session.judge.composites[stage](sr, gt, gt).values["fgr_score"], session.scales[stage]
        by_stage[stage] = (score - scale.parts["fgr_score"].mean) / scale.parts["fgr_score"].spread
    torch.testing.assert_close(found, 2 / 3 * by_stage[0] + 1 / 3 * by_stage[3], atol=1e-4, rtol=1e-4)
    assert torch.autograd.grad(found.sum(), sr)[0].abs().max() > 0
    assert blended.of_stage(3).total.shape == (4,)


def test_normalised_rewards_add_in_units_of_their_spread(feedback_run, tmp_path):
    parts = [RewardPart("psnr", 3.0), RewardPart("ssim", 1.0)]
    config = dataclasses.replace(feedback_run, reward=RewardConfig(parts=parts))
    session = open_session(config, tmp_path)
    reward = DifferentiableReward(session.judge, session.curriculum, session.scales)
    sr, gt = torch.rand(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = reward(sr.requires_grad_(), gt, gt, list("abcd"))
    values = session.judge.final(sr, gt, gt).values
    own = session.scales[session.config.curriculum.stages[-1]].parts
    by_hand = [(values[name] - own[name].mean) / own[name].spread for name in ("psnr", "ssim")]
    torch.testing.assert_close(found, 0.75 * by_hand[0] + 0.25 * by_hand[1])
    # Summed first, the decibels rule: the raw sum in units of its own spread.
    summed = dataclasses.replace(config, reward=RewardConfig(parts=parts, order="sum_first"))
    session = open_session(summed, tmp_path / "summed")
    raw = DifferentiableReward(session.judge, session.curriculum, session.scales)(sr, gt, gt, list("abcd"))
    total = session.scales[session.config.curriculum.stages[-1]].total
    by_hand = (3.0 * values["psnr"] + values["ssim"] - total.mean) / total.spread
    torch.testing.assert_close(raw, by_hand, atol=1e-3, rtol=1e-4)


def test_the_hand_over_sees_the_gain_above_the_base_policy(feedback_run, tmp_path):
    curriculum = CurriculumConfig(stages=(0, 3), budget_iterations=50, min_iterations=40, plateau_window=4)
    parts = RewardConfig(parts=[RewardPart("fgr_score", 1.0)])
    config = dataclasses.replace(feedback_run, curriculum=curriculum, reward=parts, learning_rate=1e-12)
    session = open_session(config, tmp_path)
    for i in range(3):
        iterate(session, i)
    # The policy does not move: all that is left is its noise against the base's on the same pictures.
    batch, _ = groups_of(session, 0)
    earned = session.base_rewards.earned(0, batch.indices, batch.gt, batch.lq)
    assert earned.shape == (len(batch.indices),)
    # In spreads within the base policy's groups: about as far as one restoration lies from another.
    assert max(abs(gain) for gain in session.curriculum.history) < 2.0
    again = session.base_rewards.earned(0, batch.indices[::-1], batch.gt.flip(0), batch.lq.flip(0))
    assert torch.equal(earned, again.flip(0))


def test_the_curriculum_hands_over(feedback_run, tmp_path):
    curriculum = CurriculumConfig(
        stages=(0, 3), budget_iterations=1, min_iterations=1, plateau_window=4, ramp_iterations=2
    )
    parts = RewardConfig(parts=[RewardPart("fgr_score", 1.0)])
    session = open_session(dataclasses.replace(feedback_run, curriculum=curriculum, reward=parts), tmp_path)
    assert [iterate(session, i)["curriculum_stage"] for i in range(4)] == [0, 0, 0, 3]


def test_a_ceiling_leaves_good_pictures_alone(feedback_run, tmp_path):
    session = open_session(feedback_run, tmp_path)
    feedback = RewardGradientConfig(last_steps=2, supervised_weight=0.0, reward_ceiling=-1e6)
    assert feedback_gradient(session, "draft", feedback).abs().max() == 0.0


@pytest.fixture
def rounded_reward():
    @reward("rounded", value_range=(0.0, 1.0))
    def rounded(sr, gt, lq):
        return sr.mul(255).round().mean((1, 2, 3)) / 255

    @reward("detached", value_range=(0.0, 1.0))
    def detached(sr, gt, lq):
        return sr.detach().mean((1, 2, 3))

    yield
    del _REWARDS["rounded"], _REWARDS["detached"]


@pytest.mark.parametrize("name", ["rounded", "detached"])
def test_a_reward_without_gradient_is_refused_by_name(feedback_run, tmp_path, rounded_reward, name):
    config = dataclasses.replace(
        feedback_run, reward=RewardConfig(parts=[RewardPart("psnr", 0.5), RewardPart(name, 0.5)])
    )
    with pytest.raises(UserError, match=f"'{name}' has none; leave it out of reward.parts") as error:
        open_session(config, tmp_path)
    assert "\n" not in str(error.value)


def test_feedback_may_be_deterministic_and_alone_but_not_longer_than_its_chain(feedback_run, tmp_path):
    config = dataclasses.replace(
        feedback_run,
        group_size=1,
        sampler=SamplerSpec(steps=1, eta=0.0),
        reward_gradient=RewardGradientConfig(last_steps=1),
    )
    session = open_session(config, tmp_path)
    before = flat(session)
    iterate(session, 0)
    assert not torch.equal(before, flat(session))
    with pytest.raises(ValueError, match=r"reward_gradient.last_steps is 5, but sampler.steps only 4"):
        dataclasses.replace(feedback_run, reward_gradient=RewardGradientConfig(last_steps=5))
