"""DiffusionNFT in the training loop: its gradient is autograd's, the reward rises, and a run resumes exactly."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from safetensors.torch import load_file

from rl_finetune.credit.config import AdvantageConfig
from rl_finetune.evidence.gauge import GaugeConfig
from rl_finetune.loop.config import TrainRlConfig
from rl_finetune.loop.groups import draw
from rl_finetune.loop.iteration import iterate, nft_plan
from rl_finetune.loop.session import Session
from rl_finetune.loop.trainable import LoraConfig
from rl_finetune.methods.nft import NftPlan, nft_update, stratified_levels
from rl_finetune.methods.nft_loss import NftConfig, nft_loss, optimality
from rl_finetune.methods.trajectory import Rollout
from rl_finetune.rewards.config import RewardConfig, RewardPart
from shared.app.errors import UserError
from shared.diffusion.sampler import SamplerSpec
from shared.policies.load import load_policy
from shared.seeds import derive_seed, gaussian
from tests.helpers.tiny_rl import flat, flat_gradient, killed_and_resumed, open_session, tiny_rl_config


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory) -> TrainRlConfig:
    config = tiny_rl_config(tmp_path_factory.mktemp("nft"))
    fidelity = RewardConfig(parts=[RewardPart("psnr", 1.0)], maps=[RewardPart("absolute_error", 1.0)])
    return dataclasses.replace(config, method="nft", reward=fidelity)


def advantages_of(drawn: Rollout) -> torch.Tensor:
    shape = (len(drawn.group_ids), drawn.group_size, *drawn.x0.shape[-2:])
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def gradient(session: Session, drawn: Rollout, advantages: torch.Tensor, **changes) -> torch.Tensor:
    """Returns the gradient of one update over all groups, and leaves the policy as it was."""
    before = {name: p.detach().clone() for name, p in session.learner.policy.named_parameters()}
    plan = dataclasses.replace(nft_plan(session, 0), **{"updates": 1, "gradient_clip": 1e9, **changes})
    nft_update(session.learner, drawn, advantages, torch.ones(len(drawn.group_ids)), session.old.predict, plan)
    with torch.no_grad():
        for name, parameter in session.learner.policy.named_parameters():
            parameter.copy_(before[name])
    return flat_gradient(session).clone()


def test_the_update_is_autograd_of_the_loss_on_noised_latents(tiny_run, tmp_path):
    nft = NftConfig(beta=0.6, advantage_range=3.0, supervised_weight=0.2)
    session = open_session(dataclasses.replace(tiny_run, nft=nft), tmp_path)
    drawn, policy = draw(session, 0), session.learner.policy
    assert drawn.steps == ()
    with torch.no_grad():  # the policy has gone on from the one that drew
        for parameter in policy.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    advantages, plan = advantages_of(drawn), nft_plan(session, 0)
    ours = gradient(session, drawn, advantages)
    x0, condition = drawn.x0, policy.condition(drawn.each_sample(drawn.lq))
    times = torch.tensor([t for i in drawn.group_ids for t in stratified_levels(i, 3, plan)])
    noise = gaussian([derive_seed(plan.seed, "noise", i, g) for i in drawn.group_ids for g in range(3)], x0.shape[1:])
    alpha, sigma = (
        table[times].float().view(-1, 1, 1, 1) for table in (policy.schedule.alphas, policy.schedule.sigmas)
    )
    x_t = alpha * x0 + sigma * noise
    # This policy predicts v; the old policy is the base, which drew.
    base = load_policy(tiny_run.base)[0]
    pred, old = (alpha * x_t - sigma * each.predict(x_t, times, condition) for each in (policy, base))
    r = optimality(advantages.flatten(0, 1), advantage_range=3.0)
    supervised = (pred - policy.encode(drawn.each_sample(drawn.gt), condition)).square().mean()
    loss = 5.0 * nft_loss(pred, old, x0, r, beta=0.6, weighting="self_normalised").mean() + 0.2 * supervised
    theirs = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(policy.parameters()))])
    assert theirs.abs().max() > 1e-3
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
    low = dataclasses.replace(nft, supervised_weight=1e6, supervised_band="low")
    whole = dataclasses.replace(nft, supervised_weight=1e6)
    norms = [gradient(session, drawn, advantages, config=config).norm() for config in (low, whole)]
    assert 0 < norms[0] < norms[1]


@pytest.mark.parametrize("samples", [3, 9, 4, 1])
def test_slices_change_no_gradient(tiny_run, tmp_path, samples):
    session = open_session(tiny_run, tmp_path)
    drawn = draw(session, 0)
    supervised = dataclasses.replace(session.config.nft, supervised_weight=1.0)
    whole = gradient(session, drawn, advantages_of(drawn), config=supervised)
    sliced = gradient(session, drawn, advantages_of(drawn), config=supervised, samples_per_pass=samples)
    assert whole.abs().max() > 1e-3
    torch.testing.assert_close(sliced, whole, atol=1e-6, rtol=1e-4)


def test_without_advantages_the_old_policy_stays(tiny_run, tmp_path):
    session = open_session(tiny_run, tmp_path)
    drawn = draw(session, 0)
    assert gradient(session, drawn, torch.zeros(4, 3, 1, 1)).abs().max() < 1e-7


def test_members_are_spread_evenly_over_the_levels():
    plan = NftPlan(1, 0, 1.0, NftConfig(), [999, 749, 499, 249], seed=5)
    of_groups = [stratified_levels(i, 8, plan) for i in range(20)]
    assert all(sorted(levels) == sorted([999, 749, 499, 249] * 2) for levels in of_groups)
    assert len({tuple(levels) for levels in of_groups}) > 10
    every = [t for i in range(200) for t in stratified_levels(i, 3, dataclasses.replace(plan, levels=range(1000)))]
    assert min(every) < 20
    assert max(every) > 980
    assert sum(every) / len(every) == pytest.approx(499.5, abs=40)


@pytest.mark.parametrize("levels", ["sampler", "all"])
def test_the_policy_draws_as_it_is_deployed_and_the_old_one_follows(tiny_run, tmp_path, levels):
    # Without noise in its steps, and even in a single step, where no log-prob could be trained.
    nft = NftConfig(levels=levels, old_decay=0.75)
    config = dataclasses.replace(tiny_run, sampler=SamplerSpec(steps=1, eta=0.0), nft=nft)
    session = open_session(config, tmp_path)
    start = flat(session).clone()

    def old() -> torch.Tensor:
        return torch.cat([session.old.values[name].flatten() for name, _ in session.learner.policy.named_parameters()])

    iterate(session, 0)
    after_one = flat(session).clone()
    assert not torch.equal(start, after_one)
    assert torch.equal(old(), after_one)
    iterate(session, 1)
    torch.testing.assert_close(old(), 0.75 * after_one + 0.25 * flat(session))


def test_the_reward_rises(tiny_run, tmp_path):
    config = dataclasses.replace(
        tiny_run,
        group_size=6,
        advantage=AdvantageConfig(credit="spatial", spatial_weight=1.0, radius=0),
        nft=NftConfig(old_decay=0.0),
        learning_rate=1e-2,
    )
    session = open_session(config, tmp_path)
    rewards = [iterate(session, i)["reward"] for i in range(12)]
    # The same sixteen pictures come again every four iterations. Restorations of so much noise hardly differ: the policy
    # gradient gains .09 dB from sixteen iterations.
    assert sum(rewards[-4:]) / 4 > sum(rewards[:4]) / 4 + 0.03


@pytest.mark.parametrize("trainable", ["full", "lora"])
def test_a_whole_run_saves_a_policy_and_resumes_exactly(tiny_run, tmp_path, monkeypatch, trainable):
    config = dataclasses.replace(
        tiny_run,
        trainable=trainable,
        lora=LoraConfig(rank=4),
        checkpoint_every=1,
        iterations=3,
        check_every=2,
        check_images=2,
    )
    _, resumed, _ = killed_and_resumed(config, tmp_path, monkeypatch, dies_at=2)
    assert resumed.old.updates == 3
    ours = load_file(tmp_path / "whole" / "model.safetensors")
    assert not torch.equal(ours["unet.conv_in.weight"], load_policy(config.base)[0].unet.conv_in.weight)


def test_bf16_keeps_latents_in_float32(tiny_run, tmp_path):
    session = open_session(tiny_run, tmp_path, mixed_precision="bf16")
    assert all(math.isfinite(value) for value in iterate(session, 0).values())
    assert draw(session, 1).x0.dtype == torch.float32


def test_a_nan_restoration_stops_with_the_sample_named(tiny_run, tmp_path):
    session = open_session(tiny_run, tmp_path)
    session.old.values["unet.conv_out.bias"].fill_(float("nan"))
    with pytest.raises(UserError, match=r"the restoration itself is nan for sample 0 \(picture \d+, member 0\)"):
        iterate(session, 0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"group_size": 1}, "group_size must be at least 2"),
        (
            {"advantage": AdvantageConfig(credit="spacetime")},
            "advantage.credit must be scalar or spatial, got spacetime",
        ),
        ({"advantage": AdvantageConfig(hard_fraction=0.5)}, "set updates_per_rollout=1"),
        ({"gauge": GaugeConfig(action="raise_gt_weight")}, "nft.supervised_weight is 0"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_the_reason(tiny_run, values, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(tiny_run, **values)


def test_impossible_numbers_are_refused():
    for values in ({"beta": 0.0}, {"advantage_range": 0.0}, {"old_decay": 1.5}, {"supervised_weight": -1.0}):
        with pytest.raises(ValueError, match="must lie between"):
            NftConfig(**values)
