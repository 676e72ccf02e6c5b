"""The RL loop on tiny networks: ratios, identities, resuming, processes, degenerate groups."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from reward_model.network.model import RewardOutput
from rl_finetune import train as rl
from rl_finetune.credit.config import AdvantageConfig
from rl_finetune.loop.config import TrainRlConfig
from rl_finetune.loop.groups import draw, local_positions
from rl_finetune.methods.likelihood import LikelihoodConfig
from rl_finetune.methods.policy_gradient import UpdatePlan, update
from rl_finetune.methods.policy_loss import LossConfig
from rl_finetune.methods.window import WindowConfig
from rl_finetune.rewards.composite import LRPO_FACE
from rl_finetune.rewards.config import RewardConfig, RewardPart
from rl_finetune.rewards.curriculum import CurriculumConfig
from shared.app.errors import UserError
from shared.diffusion.sampler import SamplerSpec
from shared.diffusion.transition import transition
from shared.policies.load import load_policy
from tests.helpers.tiny_rl import flat, judge, killed_and_resumed, open_session, tiny_rl_config


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory) -> TrainRlConfig:
    return tiny_rl_config(tmp_path_factory.mktemp("rl"))


def test_an_iteration_moves_the_policy_and_states_its_steps(tiny_run, tmp_path):
    session = open_session(tiny_run, tmp_path)
    before = flat(session).clone()
    figures = rl.iterate(session, 0)
    assert not torch.equal(before, flat(session))
    # AdamW's own counter: two optimizer steps for one rollout, as the config states.
    states = session.learner.optimizer.state_dict()["state"].values()
    assert {int(s["step"]) for s in states} == {2}
    assert figures["zero_variance_groups"] == 0


def test_rollout_keeps_only_the_trained_steps(tiny_run, tmp_path):
    spec = SamplerSpec(steps=6, eta=0.7, window_start=1, window=2)
    session = open_session(dataclasses.replace(tiny_run, sampler=spec), tmp_path)
    drawn = draw(session, 0)
    assert [step.j for step in drawn.steps] == [1, 2]
    assert drawn.sr.shape == (12, 3, 32, 32)
    assert drawn.predictions == ()
    # One lq per group, every member another restoration of it.
    assert drawn.lq.shape[0] == 4
    assert (drawn.sr[0] - drawn.sr[1]).abs().max() > 0


def test_an_update_without_advantage_or_likelihood_has_no_gradient(tiny_run, tmp_path):
    config = dataclasses.replace(tiny_run, likelihood=LikelihoodConfig(form="none"))
    session = open_session(config, tmp_path)
    drawn = draw(session, 0)
    plan = UpdatePlan(1, 0, 1.0, config.loss, config.likelihood, 0)
    figures = update(session.learner, drawn, torch.zeros(4, 3, 3, 1, 1), torch.ones(4), plan)
    assert figures["gradient_norm"] == 0.0


def test_scoring_with_other_weights_than_drew_is_refused(tiny_run, tmp_path):
    session = open_session(tiny_run, tmp_path)
    drawn = draw(session, 0)
    with torch.no_grad():
        session.learner.policy.unet.conv_out.weight.mul_(1.5)
    plan = UpdatePlan(1, 0, 1.0, tiny_run.loss, tiny_run.likelihood, 0)
    with pytest.raises(RuntimeError, match="ratio must be 1 within 1e-05"):
        update(session.learner, drawn, torch.ones(4, 3, 3, 1, 1), torch.ones(4), plan)


@pytest.mark.parametrize("credit", ["scalar", "spatial", "temporal", "spacetime"])
@pytest.mark.parametrize("kind", ["ppo_clip", "kl_trust_region"])
def test_every_credit_and_loss_trains(tiny_run, tmp_path, credit, kind):
    # Without a likelihood term: it would move the policy by itself.
    none = LikelihoodConfig(form="none")
    advantage = AdvantageConfig(credit=credit)
    config = dataclasses.replace(tiny_run, advantage=advantage, loss=LossConfig(kind=kind), likelihood=none)
    session = open_session(config, tmp_path)
    before = flat(session).clone()
    rl.iterate(session, 0)
    assert torch.isfinite(flat(session)).all()
    assert not torch.equal(before, flat(session))


def test_spatial_weight_zero_is_the_scalar_algorithm_bit_for_bit(tiny_run, tmp_path):
    runs = []
    for name, advantage in (
        ("scalar", AdvantageConfig(credit="scalar")),
        ("spatial", AdvantageConfig(credit="spatial", spatial_weight=0.0)),
    ):
        session = open_session(dataclasses.replace(tiny_run, advantage=advantage), tmp_path / name)
        rl.iterate(session, 0)
        runs.append(flat(session))
    assert torch.equal(*runs)


def test_credit_in_time_runs_from_before_the_first_trained_step_to_the_final_picture(tiny_run, tmp_path):
    config = dataclasses.replace(
        tiny_run,
        advantage=AdvantageConfig(credit="spacetime"),
        sampler=SamplerSpec(steps=5, eta=0.7, window_start=1, window=2),
    )
    session = open_session(config, tmp_path)
    drawn = draw(session, 0)
    assert len(drawn.predictions) == len(drawn.steps) == 2
    # Before step 1 of the plan: what the network predicts from the x_t recorded there.
    first = drawn.steps[0]
    lq = drawn.each_sample(drawn.lq)
    policy = session.learner.policy
    with torch.no_grad():
        output = policy.predict(first.x_t, torch.full((12,), first.times.t), policy.condition(lq))
    x0 = transition(policy.schedule, output, first.x_t, first.times).x0_pred
    torch.testing.assert_close(
        drawn.predictions[0], policy.decode(x0, policy.condition(lq)).clamp(0, 1), atol=1e-5, rtol=1e-5
    )
    judgement = judge(session, drawn)
    final = session.judge.final(drawn.sr, drawn.each_sample(drawn.gt), lq)
    before = session.judge.final(drawn.predictions[0], drawn.each_sample(drawn.gt), lq)
    for name in ("fgr_score", "fgr_worst_spot"):
        by_step = judgement.rewards[name]
        assert by_step.shape == (4, 3, 3)
        torch.testing.assert_close(by_step[..., -1].flatten(), final.values[name])
        torch.testing.assert_close(by_step[..., 0].flatten(), before.values[name])
    assert judgement.maps["fgr_map"].shape == (4, 3, 3, 8, 8)


@pytest.mark.parametrize("form", ["marginal", "posterior"])
def test_likelihood_alone_pulls_towards_the_truth(tiny_run, tmp_path, form):
    config = dataclasses.replace(tiny_run, likelihood=LikelihoodConfig(form=form, weight=1.0, last_steps=3))
    session = open_session(config, tmp_path)
    drawn = draw(session, 0)
    plan = UpdatePlan(1, 0, 1e9, config.loss, config.likelihood, 0)
    errors = []
    for _ in range(8):
        errors.append((drawn.sr - drawn.each_sample(drawn.gt)).square().mean().item())
        update(session.learner, drawn, torch.zeros(4, 3, 3, 1, 1), torch.ones(4), plan)
        drawn = draw(session, 0)  # the same pictures and seeds, drawn by the updated policy
    assert errors == sorted(errors, reverse=True)


class ConstantRewardModel:
    """Likes every picture alike."""

    def __call__(self, images: torch.Tensor) -> RewardOutput:
        return RewardOutput(torch.full((len(images),), 0.3), torch.zeros(len(images), 1, *images.shape[-2:]))


def test_all_equal_rewards_leave_the_policy_where_it_is(tiny_run, tmp_path):
    config = dataclasses.replace(
        tiny_run, advantage=AdvantageConfig(credit="scalar"), likelihood=LikelihoodConfig(form="none")
    )
    session = open_session(config, tmp_path)
    for composite in session.judge.composites.values():
        object.__setattr__(composite, "toolbox", composite.toolbox.giving(reward_model=ConstantRewardModel()))
    before = flat(session).clone()
    figures = rl.iterate(session, 0)
    assert figures["zero_variance_groups"] == 4
    assert torch.equal(before, flat(session))


def test_a_nan_restoration_stops_with_the_sample_named(tiny_run, tmp_path):
    session = open_session(tiny_run, tmp_path)
    drawn = draw(session, 0)
    drawn.sr[5, 0, 3, 3] = float("nan")  # of three members a group
    with pytest.raises(UserError, match=rf"the restoration itself.*picture {drawn.group_ids[1]}, member 2"):
        judge(session, drawn)


def test_curriculum_hands_over_within_a_run(tiny_run, tmp_path):
    curriculum = CurriculumConfig(
        stages=(0, 2, 3), budget_iterations=1, min_iterations=1, plateau_window=4, ramp_iterations=1
    )
    session = open_session(dataclasses.replace(tiny_run, curriculum=curriculum), tmp_path)
    stages = [rl.iterate(session, i)["curriculum_stage"] for i in range(5)]
    assert stages == [0, 0, 2, 2, 3]  # an iteration of stage 0, one of the ramp, and so on


def test_resuming_ends_in_the_same_weights_as_never_stopping(tiny_run, tmp_path, monkeypatch):
    # The curriculum changes stage and the gauge reads on both sides of the kill.
    curriculum = CurriculumConfig(stages=(1, 3), budget_iterations=1, min_iterations=1, ramp_iterations=2)
    config = dataclasses.replace(tiny_run, curriculum=curriculum, check_every=1, check_images=2)
    whole, resumed, calls = killed_and_resumed(config, tmp_path, monkeypatch)
    # Killed in iteration 3: the checkpoint after two iterations is what was left.
    assert calls == [0, 1, 2, 3, 2, 3]
    assert resumed.state_dict() == whole.state_dict()


def test_bf16_keeps_latents_in_float32_and_the_ratio_at_one(tiny_run, tmp_path):
    session = open_session(tiny_run, tmp_path, mixed_precision="bf16")
    figures = rl.iterate(session, 0)  # asserts the ratio
    assert torch.isfinite(torch.tensor(figures["reward"]))
    assert all(step.x_t.dtype == torch.float32 for step in draw(session, 1).steps)


def test_held_out_pictures_need_not_fit_the_latent_grid(tiny_run, tmp_path):
    config = dataclasses.replace(tiny_run, eval_crop_px=36)  # the policy works on blocks of 8
    session = open_session(config, tmp_path)
    session.save(tmp_path, 0)
    summary = rl.compare_with_base(session)
    assert summary["pictures"] == 4
    assert all(row["change"]["mean"] == 0.0 for row in summary["rows"])


def test_a_gain_is_said_only_beyond_the_bases_own_curve(tiny_run, tmp_path):
    config = dataclasses.replace(tiny_run, curve_images=3, sampler=SamplerSpec(steps=4, eta=0.5))
    session = open_session(config, tmp_path)
    session.save(tmp_path, 0)
    summary = rl.compare_with_base(session)
    # The policy is the base itself: it lies on the curve, not beyond it.
    assert not summary["curve"]["beyond"]
    assert summary["table"].splitlines()[-2] == summary["curve"]["line"]
    assert summary["gauge"].startswith("level: proxy +0.0 se")  # nothing changed, and nothing is beyond the curve
    assert summary["curve"]["line"].startswith("No gain: 4 steps, SDE η 0.5: not beyond the base's curve in psnr")
    assert summary["curve"]["means"]["base"] == summary["curve"]["means"]["tuned"]
    assert len(summary["curve"]["means"]["base"]) == 10  # one step, and 2, 4 and 8 with three η each
    assert (tmp_path / "curve.png").stat().st_size > 1000
    assert "4 steps, SDE η 0.5, deployed" in (tmp_path / "curve.md").read_text()


def test_a_policy_is_saved_and_measured_as_it_is_deployed(tiny_run, tmp_path):
    config = dataclasses.replace(tiny_run, iterations=1, deploy="ode", window=WindowConfig("random", steps=1))
    session = open_session(config, tmp_path)
    rl.train(session)
    assert load_policy(tmp_path)[1] == SamplerSpec(steps=4, eta=0.0)
    found = rl.compare_with_base(session)
    # Trained by stochastic steps, used without noise: the table shows both.
    assert {"before, SDE", "after, SDE"} <= found["rows"][0]["references"].keys()


def test_groups_that_do_not_divide_between_processes_are_refused(tiny_run):
    with pytest.raises(UserError, match="must divide evenly between processes, got 3"):
        rl.require_divisible(tiny_run, 3)


def test_processes_share_the_same_groups(tiny_run):
    alone = local_positions(tiny_run, 5, 0, 1)
    together = local_positions(tiny_run, 5, 0, 2) + local_positions(tiny_run, 5, 1, 2)
    assert sorted(alone) == sorted(together) == [20, 21, 22, 23]
    # Update 0 is made of groups 20 and 21 in both cases, one on each process.
    assert local_positions(tiny_run, 5, 0, 2) == [20, 22]


def test_the_rate_warms_up_and_falls(tiny_run, tmp_path, monkeypatch):
    config = dataclasses.replace(tiny_run, warmup_iterations=2, decay_share=0.5)
    session, rates = open_session(config, tmp_path), []

    def iterate(session, iteration):
        rates.append(session.learner.optimizer.param_groups[0]["lr"])
        return {"reward": 0.0}

    monkeypatch.setattr(rl, "iterate", iterate)
    rl.train(session)
    assert rates == pytest.approx([0.5e-3, 1e-3, 1e-3, 0.5e-3])


LRPO_FACE_PARTS = [RewardPart(name, weight) for name, weight in LRPO_FACE.items()]


def test_the_gauge_reads_no_metric_that_a_substitute_rewards(tiny_run, tmp_path):
    session = open_session(dataclasses.replace(tiny_run, reward=RewardConfig(parts=LRPO_FACE_PARTS)), tmp_path)
    assert session.judge.final.replacements["lpips"] == "gradient_similarity"
    assert "gradient_distance" not in session.gauge.measured
    assert {"psnr", "ssim", "detail_energy", "shared_tile"} <= set(session.gauge.measured)


def test_a_curriculum_from_stage_0_leaves_a_substitutes_map_out(tiny_run, tmp_path):
    curriculum = CurriculumConfig(stages=(0, 1), budget_iterations=5)
    reward = RewardConfig(parts=LRPO_FACE_PARTS)
    session = open_session(dataclasses.replace(tiny_run, reward=reward, curriculum=curriculum), tmp_path)
    # face_preference becomes fgr_worst_spot, which RM_0 has not; its score and the fidelity parts stay.
    assert set(session.judge.composites[0].weights) == {"gradient_similarity", "fgr_score", "dwt"}
    assert set(session.judge.composites[1].weights) == {"fgr_worst_spot", "gradient_similarity", "fgr_score", "dwt"}
    assert session.judge.composites[0].replacements["face_preference"] == "fgr_worst_spot"
    assert math.isfinite(rl.iterate(session, 0)["reward"])
