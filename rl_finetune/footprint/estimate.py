"""The memory of an RL run on one process, by part, and the largest pass that a card holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from rl_finetune.footprint.passes import PerSample, PolicyPasses, passes_of
from rl_finetune.footprint.tracked_bytes import TrackedBytes
from rl_finetune.loop.config import TrainRlConfig
from rl_finetune.loop.trainable import checkpoint_gradients, make_trainable
from rl_finetune.methods.window import stochastic_range
from rl_finetune.rewards.composite import Composite
from shared.policies.interface import DiffusionPolicy

RESERVED = 0.08  # of a card: CUDA's own context, and what its allocator cannot hand out in pieces
_FLOAT, _LATENTS_OF_A_LOSS = 4, 12  # bytes; tensors as large as a latent that a transition and its log-prob keep


@dataclass(frozen=True)
class Rewards:
    """What the networks that judge hold."""

    weights: float = 0.0
    judging: PerSample = field(default_factory=lambda: PerSample(0.0, 0.0))
    pictures_at_once: int = 16


@dataclass(frozen=True)
class Footprint:
    """Bytes by part of one process; a pass is of `samples` at once."""

    weights: float  # of the policy, frozen and trained
    gradients: float
    optimizer: float
    averages: float  # the trained weights' average, where they began, and for nft the policy that draws
    rewards: float  # their networks
    exchange: float  # what DistributedDataParallel sums gradients in
    drawn: float  # what the rollout keeps until its update is over
    drawing: float  # the rollout's passes beside that
    decoding: float
    judging: float
    updating: float  # activations

    @property
    def always(self) -> float:
        """What is there in every phase."""
        return self.weights + self.gradients + self.optimizer + self.averages + self.rewards + self.exchange

    @property
    def peak(self) -> float:
        """The most that is held at once: phases come one after the other."""
        return self.always + self.drawn + max(self.drawing, self.decoding, self.judging, self.updating)


@dataclass(frozen=True)
class Costs:
    """What a footprint is computed from: a policy and rewards, measured once, for any setting of batches."""

    config: TrainRlConfig
    passes: PolicyPasses
    rewards: Rewards
    weights: float
    trained: float
    scale: int

    @classmethod
    def of(cls, config: TrainRlConfig, policy: DiffusionPolicy, rewards: Rewards, *, device: str) -> Costs:
        """Returns the costs of a run's policy, on whatever device; `policy` is made trainable as the run does it."""
        parameters = make_trainable(policy, config.trainable, config.lora, seed=config.seed)
        checkpoint_gradients(policy, config.recompute_parts)
        policy.cast_frozen(torch.device(device))
        precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.mixed_precision)
        lq_hw = (config.pairs.crop_px // policy.scale,) * 2
        passes = passes_of(policy, lq_hw, device=device, autocast=precision)
        weights = sum(t.nbytes for t in (*policy.parameters(), *policy.buffers()))
        return cls(config, passes, rewards, weights, sum(p.nbytes for p in parameters), policy.scale)

    def samples_of_an_update(self, processes: int) -> int:
        """Returns how many samples of one process an optimizer step learns from."""
        return max(1, self.config.groups // processes // self.config.updates_per_rollout) * self.config.group_size

    def footprint(self, *, processes: int = 1, in_pass: int | None = None) -> Footprint:
        """Returns the bytes of one of `processes`, with `in_pass` samples in a pass in place of the config's own."""
        config, passes = self.config, self.passes
        groups = max(1, config.groups // processes)
        per_update = self.samples_of_an_update(processes)
        in_pass = min(per_update, in_pass or config.samples_per_pass or per_update)
        samples, latent = groups * config.group_size, _FLOAT * torch.Size(passes.latent).numel()
        picture = _FLOAT * 3 * config.pairs.crop_px**2
        small = picture / self.scale**2
        steps = trained_steps(config)
        kept_step = 3 * latent + latent / passes.latent[0]
        kept = samples * (steps * kept_step + latent + picture) + groups * (picture + small + passes.condition_bytes)
        rescored = in_pass * min(config.steps_per_pass, max(1, steps))
        beside = rescored * (passes.condition_bytes + _LATENTS_OF_A_LOSS * latent)
        # Slices are put together at the end: for a moment all of it is there twice.
        together = samples * (steps * kept_step + latent + picture)
        conditions = samples * (passes.condition_bytes + small)
        return Footprint(
            weights=self.weights,
            gradients=self.trained,
            optimizer=2 * self.trained,
            averages=(3 if config.method == "nft" else 2) * self.trained,
            rewards=self.rewards.weights,
            exchange=self.trained if processes > 1 else 0.0,
            drawn=kept,
            drawing=conditions + max(together, passes.draw.at(in_pass) + 4 * in_pass * latent),
            decoding=conditions + passes.decode.at(in_pass),
            judging=samples * (picture + small) + self.rewards.judging.at(min(samples, self.rewards.pictures_at_once)),
            updating=passes.update.at(rescored) + beside,
        )

    def largest_pass(self, card_bytes: float, *, processes: int = 1) -> int:
        """Returns the most samples in a pass that fit on a card; 0 where not even one does."""
        room = card_bytes * (1 - RESERVED)
        counts = range(1, self.samples_of_an_update(processes) + 1)
        return max((n for n in counts if self.footprint(processes=processes, in_pass=n).peak <= room), default=0)


def trained_steps(config: TrainRlConfig) -> int:
    """Returns how many steps of each restoration a rollout keeps."""
    if config.method != "policy_gradient":
        return 0
    return len(stochastic_range(config.sampler)) if config.window.kind == "declared" else config.window.steps


def rewards_of(composites: Sequence[Composite], *, crop_px: int, scale: int) -> Rewards:
    """Returns what judging pictures of `crop_px` holds, measured on the CPU with one and two of them."""
    networks = {id(t): t.nbytes for c in composites for m in _modules(c) for t in (*m.parameters(), *m.buffers())}
    peaks = []
    for count in (1, 2):
        gt = torch.full((count, 3, crop_px, crop_px), 0.5)
        lq = torch.full((count, 3, crop_px // scale, crop_px // scale), 0.5)
        with torch.no_grad(), TrackedBytes() as tracked:
            composites[-1](gt * 0.9, gt, lq)
        peaks.append(tracked.peak)
    each = peaks[1] - peaks[0]
    at_once = composites[-1].images_per_call or 16
    return Rewards(sum(networks.values()), PerSample(max(0.0, peaks[0] - each), each), at_once)


def _modules(composite: Composite) -> list[torch.nn.Module]:
    return [network for tool in composite.toolbox.tools() for network in _networks_in(tool)]


def _networks_in(tool: object) -> list[torch.nn.Module]:
    """Returns the networks that a reward's tool is, or holds."""
    held = [tool, *getattr(tool, "__dict__", {}).values()]
    return held[:1] if isinstance(tool, torch.nn.Module) else [m for m in held if isinstance(m, torch.nn.Module)]
