"""One rollout's update: what each part of the loss contributes, and what must not change its gradient."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from rl_finetune.credit.config import AdvantageConfig
from rl_finetune.loop.config import TrainRlConfig
from rl_finetune.loop.groups import draw
from rl_finetune.loop.iteration import iterate
from rl_finetune.loop.session import Session
from rl_finetune.methods.likelihood import LikelihoodConfig, in_band, posterior_likelihood_loss
from rl_finetune.methods.policy_gradient import UpdatePlan, supervised_share, update
from rl_finetune.methods.policy_loss import LossConfig
from rl_finetune.methods.trajectory import Rollout
from rl_finetune.rewards.config import RewardConfig, RewardPart
from shared.app.errors import UserError
from shared.diffusion.transition import transition_towards
from shared.vision.detail import high_band
from shared.vision.similarity import psnr
from tests.helpers.tiny_rl import credit as credit_in
from tests.helpers.tiny_rl import flat_gradient, judge, open_session, tiny_rl_config


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory) -> TrainRlConfig:
    return tiny_rl_config(tmp_path_factory.mktemp("update"))


def gradient(session: Session, drawn: Rollout, advantages: torch.Tensor | None = None, **plan) -> torch.Tensor:
    """Returns the gradient of one update over all groups, without clipping, and leaves the policy as it was."""
    before = {name: p.detach().clone() for name, p in session.learner.policy.named_parameters()}
    config = session.config
    settings = {"updates": 1, "samples_per_pass": 0, "gradient_clip": 1e9, "loss": config.loss, "seed": 0}
    values = advantages if advantages is not None else some_advantages(drawn)
    plan = UpdatePlan(**{**settings, "likelihood": config.likelihood, **plan})
    update(session.learner, drawn, values, torch.ones(len(drawn.group_ids)), plan)
    found = flat_gradient(session).clone()
    with torch.no_grad():
        for name, parameter in session.learner.policy.named_parameters():
            parameter.copy_(before[name])
    return found


def some_advantages(drawn: Rollout) -> torch.Tensor:
    shape = (len(drawn.group_ids), drawn.group_size, len(drawn.steps), *drawn.steps[0].x_t.shape[-2:])
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert theirs.abs().max() > 1e-4
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["ppo_clip", "kl_trust_region"])
# Groups of 3: slices of 4 and 5 cut through them, and 5 leaves a remainder.
@pytest.mark.parametrize(("steps_per_pass", "samples"), [(2, 0), (3, 0), (2, 3), (1, 9), (1, 1), (2, 4), (1, 5)])
def test_batching_steps_or_samples_changes_no_gradient(tiny_run, tmp_path, kind, steps_per_pass, samples):
    likelihood = LikelihoodConfig(form="marginal", weight=0.5, last_steps=2)
    loss = LossConfig(kind=kind, reference_kl=0.3)
    config = dataclasses.replace(tiny_run, likelihood=likelihood, loss=loss, updates_per_rollout=1)
    session = open_session(config, tmp_path)
    whole = gradient(session, draw(session, 0))
    # The rollout must have run in the update's slices; the tolerance of the first ratio holds for the batched pass too.
    drawn = draw(dataclasses.replace(session, config=dataclasses.replace(config, microbatch_samples=samples)), 0)
    assert_same(gradient(session, drawn, samples_per_pass=samples, steps_per_pass=steps_per_pass), whole)


def test_every_step_and_group_counts_once_whatever_the_slices(tiny_run, tmp_path):
    session = open_session(tiny_run, tmp_path)
    drawn = draw(session, 0)
    whole = gradient(session, drawn)
    values = some_advantages(drawn)
    parts = []
    for k in range(len(drawn.steps)):
        masked = torch.zeros_like(values)
        masked[:, :, k] = values[:, :, k]
        parts.append(gradient(session, drawn, masked, likelihood=LikelihoodConfig(form="none")))
    zero = gradient(session, drawn, torch.zeros_like(values))
    assert_same(sum(parts) + zero, whole)


def test_the_likelihood_reaches_its_last_steps_and_no_others(tiny_run, tmp_path):
    session = open_session(tiny_run, tmp_path)
    drawn = draw(session, 0)
    none = torch.zeros_like(some_advantages(drawn))
    whole, last = (
        gradient(session, drawn, none, likelihood=LikelihoodConfig(weight=1.0, last_steps=count)) for count in (3, 1)
    )
    # The step before the last alone: a rollout that ends there.
    early = dataclasses.replace(drawn, steps=drawn.steps[:2])
    rest = gradient(session, early, none[:, :, :2], likelihood=LikelihoodConfig(weight=1.0, last_steps=9))
    # Means over 3 and over 2 steps.
    assert_same(whole, last + rest * 2 / 3)


def test_difficulty_shares_the_loss_between_reward_and_truth(tiny_run, tmp_path):
    session = open_session(tiny_run, tmp_path)
    drawn = draw(session, 0)
    quality = psnr(drawn.sr, drawn.each_sample(drawn.gt)).view(4, 3).mean(1)
    low, high = float(quality.min()), float(quality.max())
    values = some_advantages(drawn)
    plain = LikelihoodConfig(weight=0.5)

    def shared(hard: float, easy: float) -> LikelihoodConfig:
        return dataclasses.replace(plain, difficulty=True, hard_db=hard, easy_db=easy)

    # All far: the policy's loss alone. All near: the likelihood alone. Half way: half of each.
    policy_alone = gradient(session, drawn, values, likelihood=LikelihoodConfig(form="none"))
    likelihood_alone = gradient(session, drawn, torch.zeros_like(values), likelihood=plain)
    assert_same(gradient(session, drawn, values, likelihood=shared(high + 1, high + 2)), policy_alone)
    assert_same(gradient(session, drawn, values, likelihood=shared(low - 2, low - 1)), likelihood_alone)
    wide = shared(float(quality.mean()) - 1e6, float(quality.mean()) + 1e6)
    torch.testing.assert_close(supervised_share(drawn, wide), torch.full((4,), 0.5), atol=1e-4, rtol=0)
    half = gradient(session, drawn, values, likelihood=wide)
    torch.testing.assert_close(half, 0.5 * (policy_alone + likelihood_alone), atol=1e-5, rtol=1e-3)
    # A group counts by its members' mean.
    share = supervised_share(drawn, shared(low, high))
    torch.testing.assert_close(share, (quality - low) / (high - low), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hard_db": 30.0, "easy_db": 30.0}, "hard_db must lie below easy_db"),
        ({"difficulty": True, "form": "none"}, "form must not be none"),
    ],
)
def test_impossible_likelihoods_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        LikelihoodConfig(**values)


def test_an_optimizer_that_accumulates_in_secret_is_noticed(tiny_run, tmp_path, monkeypatch):
    session = open_session(tiny_run, tmp_path)
    iterate(session, 0)
    optimizer = session.learner.optimizer
    make, asked = optimizer.step, []

    def every_other(*args, **kwargs):
        asked.append(1)
        return make(*args, **kwargs) if len(asked) % 2 else None

    monkeypatch.setattr(optimizer, "step", every_other)
    with pytest.raises(RuntimeError, match="1 optimizer step was to be made, but the optimizer counts 0"):
        iterate(session, 1)


def test_hard_samples_alone_are_trained(tiny_run, tmp_path):
    session = open_session(tiny_run, tmp_path)
    drawn = draw(session, 0)
    judgement = judge(session, drawn)
    advantage = AdvantageConfig(hard_fraction=0.5)
    credit = credit_in(session, drawn, judgement, advantage)
    worst = judgement.total.mean(1).argsort()[:2].sort().values.tolist()
    # The two worst of four groups, at twice the weight: the loss keeps its size.
    assert credit.weights.tolist() == [2.0 if i in worst else 0.0 for i in range(4)]
    plan = UpdatePlan(1, 0, 1e9, session.config.loss, LikelihoodConfig(form="none"), 0)
    update(session.learner, drawn, credit.advantages, credit.weights, plan)
    selected = flat_gradient(session).clone()
    changed = credit.advantages.clone()
    for group in set(range(4)) - set(worst):
        changed[group] += 1.0
    other = open_session(tiny_run, tmp_path / "other")
    update(other.learner, draw(other, 0), changed, credit.weights, plan)
    assert torch.equal(flat_gradient(other), selected)


def test_a_reward_that_breaks_on_one_member_stops_with_its_name_and_the_sample(tiny_run, tmp_path):
    reward = RewardConfig(parts=[RewardPart("psnr", 0.5), RewardPart("fgr_score", 0.5)])
    session = open_session(dataclasses.replace(tiny_run, reward=reward), tmp_path)
    composite = session.judge.final
    model = composite.toolbox.given["reward_model"]
    seen = []

    def broken(images: torch.Tensor):
        output = model(images)
        seen.append(len(images))
        output.score[7] = float("nan")  # the third group's second member
        return output

    object.__setattr__(composite, "toolbox", composite.toolbox.giving(reward_model=broken))
    with pytest.raises(UserError, match=r"reward 'fgr_score' is nan for sample 7 \(picture \d+, member 1\)"):
        iterate(session, 0)
    assert seen == [12]


@pytest.mark.parametrize("band", ["whole", "low"])
def test_the_likelihood_is_of_the_distance_in_its_band(tiny_run, tmp_path, band):
    session = open_session(tiny_run, tmp_path)
    drawn, policy = draw(session, 0), session.learner.policy
    likelihood = LikelihoodConfig(form="posterior", band=band, weight=1.0, last_steps=1)
    plan = UpdatePlan(1, 0, 1e9, tiny_run.loss, likelihood, 0)
    step = drawn.steps[-1]
    towards = transition_towards(
        policy.schedule, drawn.each_sample(policy.encode(drawn.gt, drawn.condition)), step.x_t, step.times
    )
    distance = F.pixel_shuffle(towards.mean - step.mean, 4)
    if band == "low":
        distance = distance - high_band(distance)
    by_hand = 0.5 * (distance / step.std).square().mean()
    figures = update(session.learner, drawn, torch.zeros(4, 3, 3, 1, 1), torch.ones(4), plan)
    # The mean over three trained steps, of which the last has the term.
    assert figures["loss"] == pytest.approx(by_hand.item() / 3, rel=1e-4)


def test_fine_detail_has_no_gradient_in_the_low_band(tiny_run, tmp_path):
    policy = open_session(tiny_run, tmp_path).learner.policy
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    fine = 0.3 * ((-1.0) ** (x + y)).expand(2, 3, 32, 32)  # of 1/2 a cycle per pixel
    mean = F.pixel_unshuffle(fine, 4).requires_grad_()
    banded = in_band(policy, "low")
    loss = posterior_likelihood_loss(banded(torch.zeros_like(mean)), banded(mean), 0.3).sum()
    gradient = F.pixel_shuffle(torch.autograd.grad(loss, mean)[0], 4)[..., 6:-6, 6:-6]
    whole = posterior_likelihood_loss(torch.zeros_like(mean), mean, 0.3).sum()
    reference = F.pixel_shuffle(torch.autograd.grad(whole, mean)[0], 4)[..., 6:-6, 6:-6]
    assert gradient.abs().max() < 1e-4 * reference.abs().max()
