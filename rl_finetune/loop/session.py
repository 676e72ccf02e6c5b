"""Everything one RL run holds while it runs: the policy and what trains it, what judges it, and where it stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from data.degradation.pairs import PairDataset, pairs_for_task
from data.degradation.records import SCALES
from rl_finetune.evidence.gauge import HackingGauge
from rl_finetune.evidence.held_out import Panel, objective_scales, open_panel
from rl_finetune.loop.config import TrainRlConfig
from rl_finetune.loop.trainable import checkpoint_gradients, make_trainable
from rl_finetune.loop.weight_average import RestorerWith, TrainedState, WeightAverage, Weights
from rl_finetune.methods.learner import Learner
from rl_finetune.rewards.base_policy_rewards import BaseRewards
from rl_finetune.rewards.curriculum import CurriculumState, from_plain, to_plain
from rl_finetune.rewards.judge import Judge
from rl_finetune.rewards.objective import StageScales
from shared.app.errors import UserError
from shared.diffusion.sampler import SamplerSpec
from shared.policies.interface import DiffusionPolicy
from shared.policies.load import load_policy
from shared.policies.policy_folder import copy_saved_policy, save_policy
from shared.policies.policy_restorer import PolicyRestorer
from shared.restorers.protocol import Restorer
from shared.runs.checkpoints import Stateful
from shared.runs.run_folder import RunFolder


@dataclass
class Session:
    """One RL run."""

    config: TrainRlConfig
    run: RunFolder
    learner: Learner
    judge: Judge
    pairs: PairDataset
    initial: Weights  # what the policy began with
    average: WeightAverage
    panel: Panel
    gauge: HackingGauge
    scales: dict[int, StageScales]  # of every stage's rewards, on the base policy
    base_rewards: BaseRewards
    old: WeightAverage | None = None  # nft: the policy that draws, and softly follows the one that is trained
    curriculum: CurriculumState = field(default_factory=CurriculumState)
    rolled_back: bool = False  # whether the gauge stopped the run: the last good policy is what it leaves

    @classmethod
    def open(cls, config: TrainRlConfig, run: RunFolder, accelerator: Accelerator) -> Session:
        """Returns a session with every network loaded; whatever is missing stops here, before anything is trained."""
        policy, _ = load_policy(config.base, settings=config.base_settings)
        _require_fitting_sizes(config, policy)
        parameters = make_trainable(policy.train(), config.trainable, config.lora, seed=config.seed)
        checkpoint_gradients(policy, config.recompute_parts)
        optimizer = torch.optim.AdamW(
            parameters, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.99)
        )
        model, optimizer = accelerator.prepare(policy, optimizer)
        policy = accelerator.unwrap_model(model)
        policy.cast_frozen(accelerator.device)
        initial = Weights(policy)
        reference = initial.predict if config.loss.reference_kl else None
        learner = Learner(accelerator, policy, model, optimizer, reference)
        judge = open_judge(config, accelerator.device)
        # Too few held-out pictures would otherwise be noticed only after all the training.
        config.held_out().draw("test", config.eval_images)
        pairs = pairs_for_task(config.source, config.pairs, task=config.task, split="train", seed=config.seed)
        if config.method in ("refl", "draft"):
            judge.require_gradient(pairs[0].gt[None], pairs[0].lq[None])
        base = RestorerWith(initial, config.sampler)
        scales = scales_of(config, judge, base)
        panel = panel_of(config, judge, scales)
        gauge = HackingGauge(config.gauge, panel.judges, config.readings)
        average = WeightAverage(policy, config.ema_decay)
        old = WeightAverage(policy, config.nft.old_decay) if config.method == "nft" else None
        base_rewards = BaseRewards(base, judge, scales, seed=config.seed)
        return cls(config, run, learner, judge, pairs, initial, average, panel, gauge, scales, base_rewards, old)

    @property
    def good(self) -> Path:
        """The folder of the last policy that passed the gauge."""
        return self.run.path / "good"

    def restorer(self) -> RestorerWith:
        """Returns the averaged policy as it is deployed."""
        return RestorerWith(self.average, self.config.deployed)

    def save(self, folder: Path, iterations: int) -> None:
        """Saves the averaged policy, or the last good one where the gauge has stopped the run."""
        if self.rolled_back:
            copy_saved_policy(self.good, folder)
            return
        with self.average.put_in():
            provenance = self.provenance(iterations)
            save_policy(folder, self.learner.policy, self.config.deployed, provenance=provenance)

    def provenance(self, iterations: int) -> dict[str, Any]:
        """Returns what a saved policy says of where it comes from."""
        names = ("base", "reward_model", "method", "trainable")
        return {**{name: getattr(self.config, name) for name in names}, "iterations": iterations}

    def states(self) -> dict[str, Stateful]:
        """Returns everything that a resumed run goes on from, by name."""
        learner = self.learner
        policy = TrainedState(learner.policy)
        states = {"policy": policy, "optimizer": learner.optimizer, "average": self.average, "session": self}
        return states | ({"old": self.old} if self.old else {})

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed run needs besides weights and optimizer."""
        return {"curriculum": to_plain(self.curriculum), "gauge": self.gauge.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from where `state_dict` was taken."""
        self.curriculum = from_plain(state["curriculum"])
        self.gauge.load_state_dict(state["gauge"])


def base_restorer(config: TrainRlConfig, sampler: SamplerSpec, device: torch.device) -> PolicyRestorer:
    """Returns the policy that a run starts from."""
    policy, _ = load_policy(config.base, settings=config.base_settings)
    return PolicyRestorer(policy.to(device), sampler)


def open_judge(config: TrainRlConfig, device: torch.device) -> Judge:
    """Returns the run's rewards, every network loaded."""
    return Judge(
        config.reward,
        config.curriculum,
        checkpoint=config.reward_model,
        revision=config.reward_revision,
        device=device,
        with_maps=config.by_advantage and config.advantage.in_space,
    )


def scales_of(config: TrainRlConfig, judge: Judge, base: Restorer) -> dict[int, StageScales]:
    """Returns every stage's scales on the run's own pictures; `base` is the policy it starts from, as RL samples it."""
    return objective_scales(judge, base, config.source, config.pairs, config.task)


def panel_of(config: TrainRlConfig, judge: Judge, scales: dict[int, StageScales]) -> Panel:
    """Returns what the run is measured by: the last stage's reward among it."""
    return open_panel(
        judge,
        scales=scales[config.curriculum.stages[-1]].parts if config.reward.order == "normalise_first" else {},
        task=config.task,
        identity_weights=config.identity_weights,
        weights=config.metrics,
    )


def _require_fitting_sizes(config: TrainRlConfig, policy: DiffusionPolicy) -> None:
    if policy.scale != SCALES[config.task]:
        raise UserError(
            f"task {config.task} enlarges {SCALES[config.task]} times, but the policy in {config.base} {policy.scale} "
            "times: name the other task, or another base"
        )
    block_px = policy.multiple * policy.scale
    if config.pairs.crop_px % block_px or config.eval_crop_px % policy.scale:
        raise UserError(
            f"pairs.crop_px must be a multiple of {block_px}, the block of pixels the policy in {config.base} works "
            f"on, and eval_crop_px of {policy.scale}, got {config.pairs.crop_px} and {config.eval_crop_px}"
        )
