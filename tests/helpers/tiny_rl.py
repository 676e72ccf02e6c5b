"""The smallest true RL run: a policy, a reward model and pictures on disk, and a session on them in a second."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from data.degradation.pairs import PairConfig
from data.sources.open_source import SourceConfig
from rl_finetune import train
from rl_finetune.credit.assign import Credit, assign_credit
from rl_finetune.credit.config import AdvantageConfig
from rl_finetune.loop.config import TrainRlConfig
from rl_finetune.loop.groups import subjects_of
from rl_finetune.loop.session import Session
from rl_finetune.methods.trajectory import Rollout
from rl_finetune.rewards.config import RewardConfig, RewardPart
from rl_finetune.rewards.judge import Judgement
from shared.diffusion.sampler import SamplerSpec
from shared.policies.policy_folder import read_policy_config
from shared.runs.run_folder import RunFolder
from tests.helpers.tiny import save_pictures, save_tiny_policy, save_tiny_reward_model


def tiny_rl_config(folder: Path) -> TrainRlConfig:
    """Returns a run of four iterations; what it needs is saved in `folder`."""
    return TrainRlConfig(
        out=str(folder / "out"),
        task="face",
        base=str(save_tiny_policy(folder / "base")),
        reward_model=str(save_tiny_reward_model(folder / "rm")),
        source=SourceConfig(
            faces=str(save_pictures(folder / "faces", 12)),
            test_fraction=0.4,
            val_fraction=0.2,
            cache_folder=str(folder / "cache"),
        ),
        pairs=PairConfig(crop_px=32, pairs=16),
        sampler=SamplerSpec(steps=4, eta=0.7),
        reward=RewardConfig(parts=[RewardPart("fgr_score", 0.5), RewardPart("fgr_worst_spot", 0.5)]),
        iterations=4,
        groups=4,
        group_size=3,
        updates_per_rollout=2,
        learning_rate=1e-3,
        checkpoint_every=2,
        eval_images=4,
        eval_crop_px=32,
        curve_images=0,
        cpu_threads=1,
    )


def open_session(config: TrainRlConfig, out: Path, *, mixed_precision: str = "no") -> Session:
    """Returns a session in the run folder `out`, on an accelerator of its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    config = dataclasses.replace(config, out=str(out), mixed_precision=mixed_precision)
    return Session.open(config, RunFolder.open(out, config), Accelerator(cpu=True, mixed_precision=mixed_precision))


def killed_and_resumed(
    config: TrainRlConfig, folder: Path, monkeypatch: pytest.MonkeyPatch, *, dies_at: int = 3
) -> tuple[Session, Session, list[int]]:
    """Trains twice, in `whole` and in `halved`, which is killed in one iteration and resumed; compares the policies.

    Returns both sessions, and the iterations that the second began.
    """
    whole = open_session(config, folder / "whole")
    train.train(whole)
    real, calls = train.iterate, []

    def dying_step(session: Session, iteration: int) -> dict[str, float]:
        calls.append(iteration)
        if len(calls) == dies_at + 1:
            raise KeyboardInterrupt
        return real(session, iteration)

    with monkeypatch.context() as patch:
        patch.setattr(train, "iterate", dying_step)
        with pytest.raises(KeyboardInterrupt):
            train.train(open_session(config, folder / "halved"))
        resumed = open_session(config, folder / "halved")
        train.train(resumed)
    ours, theirs = (read_policy_config(folder / name) for name in ("whole", "halved"))
    assert ours["sha256"] == theirs["sha256"] != {}
    return whole, resumed, calls


def judge(session: Session, drawn: Rollout) -> Judgement:
    """Returns what the session's rewards say of a rollout."""
    return session.judge.judge(subjects_of(drawn), session.curriculum)


def credit(session: Session, drawn: Rollout, judgement: Judgement, advantage: AdvantageConfig) -> Credit:
    """Returns the credit of a rollout in one process."""
    return assign_credit(judgement, drawn.step_stds, advantage, gather=lambda values: values, process=0)


def flat(session: Session) -> torch.Tensor:
    """Returns all of the policy's parameters in one row."""
    return torch.cat([p.detach().flatten() for p in session.learner.policy.parameters()])


def flat_gradient(session: Session) -> torch.Tensor:
    """Returns the trained parameters' gradients in one row."""
    return torch.cat([p.grad.flatten() for p in session.learner.policy.parameters() if p.requires_grad])
