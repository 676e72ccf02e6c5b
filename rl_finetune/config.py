"""Every setting of the RL stage; configs/train_rl_*.yaml explains and sets them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from data.pairs import PairConfig
from data.records import Task
from data.sources import SourceConfig
from rl_finetune.curriculum import CurriculumConfig
from rl_finetune.hacking_gauge import GaugeConfig
from rl_finetune.rewards.registry import ToolSettings
from shared.config import require_range
from shared.diffusion.sampler import SamplerSpec

FREE_KEYS = ("workers", "checkpoint_every", "cpu_threads", "source.cache_folder", "source.memory_mb")


@dataclass(frozen=True)
class RewardPart:
    """One named reward and its share."""

    name: str
    weight: float


@dataclass(frozen=True)
class RewardConfig:
    """The composite reward: what RL maximises."""

    parts: list[RewardPart] = field(default_factory=lambda: [RewardPart("fgr_score", 0.5), RewardPart("fgr_map", 0.5)])
    order: Literal["sum_first", "normalise_first"] = "normalise_first"
    networks: Literal["embedded", "hub"] = "embedded"  # embedded: substitutes for rewards whose weights need the Hub
    map: str = "fgr_map"  # the degradation map that spatial credit is taken from
    tools: ToolSettings = field(default_factory=ToolSettings)

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("reward.parts must name at least one reward")
        names = [part.name for part in self.parts]
        if len(set(names)) < len(names):
            raise ValueError(f"reward.parts names a reward twice: {', '.join(names)}")


@dataclass(frozen=True)
class AdvantageConfig:
    """How rewards become credit."""

    credit: Literal["scalar", "spatial", "temporal", "spacetime"] = "spatial"
    spatial_weight: float = 0.7  # share of the map in spatial and spacetime credit; 0 is the scalar algorithm
    std: Literal["group", "batch", "pooled", "none"] = "pooled"
    cell_std: Literal["cell", "group", "pooled", "none"] = "pooled"
    radius: int = 1  # latent cells around a cell whose quality its noise is credited with
    trace_decay: float = 1.0
    clip: float = 5.0  # of a picture's advantage, in standard deviations
    cell_clip: float = 10.0  # of a cell's: a tighter one cuts exactly the broken cells (docs/equations.md)
    noise_level_weights: bool = True
    hard_fraction: float = 1.0  # train on this worst-restored share of the groups

    def __post_init__(self) -> None:
        require_range(spatial_weight=(self.spatial_weight, 0, 1), trace_decay=(self.trace_decay, 0, 1))
        require_range(hard_fraction=(self.hard_fraction, 0.01, 1), radius=(self.radius, 0, 64))


@dataclass(frozen=True)
class LossConfig:
    """What one update minimises."""

    kind: Literal["ppo_clip", "kl_trust_region"] = "kl_trust_region"
    clip_range_per_element: float = 0.0128  # PPO: divided by √(elements of a cell); LRPO's 1e-4 at 4×64×64
    max_kl: float = 1e-3  # trust region: nats per latent element and step
    reference_kl: float = 0.0  # weight of the KL to the frozen base policy


@dataclass(frozen=True)
class LikelihoodConfig:
    """The ground-truth-guided term."""

    form: Literal["none", "marginal", "posterior"] = "posterior"
    weight: float = 0.001
    last_steps: int = 5  # of the trained steps


@dataclass(frozen=True)
class TrainRlConfig:
    """One RL run; see configs/train_rl_sr.yaml and configs/train_rl_face.yaml."""

    out: str = "runs/default/rl_sr"
    task: Task = "sr"
    base: str = "runs/default/base_sr"
    reward_model: str = "runs/default/reward_model/checkpoint"  # folder or Hub repository
    reward_revision: str | None = None
    source: SourceConfig = field(default_factory=SourceConfig)
    pairs: PairConfig = field(default_factory=PairConfig)
    sampler: SamplerSpec = field(default_factory=SamplerSpec)
    reward: RewardConfig = field(default_factory=RewardConfig)
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    likelihood: LikelihoodConfig = field(default_factory=LikelihoodConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    gauge: GaugeConfig = field(default_factory=GaugeConfig)
    iterations: int = 60
    groups: int = 6  # degraded pictures per iteration, over all processes
    group_size: int = 8  # restorations of each
    updates_per_rollout: int = 2  # optimizer steps an iteration makes, each on its own share of the groups
    microbatch_groups: int = 0  # groups per forward pass; 0: all of an update's
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    gradient_clip: float = 1.0
    ema_decay: float = 0.9
    mixed_precision: str = "no"
    eval_images: int = 32  # distinct held-out pictures of the final table
    eval_crop_px: int = 64
    eval_batch: int = 16
    check_every: int = 0  # iterations between checks on validation pictures, read by the hacking gauge; 0: never
    check_images: int = 16
    checkpoint_every: int = 10
    workers: int = 0
    cpu_threads: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        require_range(iterations=(self.iterations, 1, 1e9), groups=(self.groups, 1, 1e6))
        require_range(eval_images=(self.eval_images, 2, 1e6), ema_decay=(self.ema_decay, 0, 1))
        if self.group_size < 2:
            raise ValueError(
                f"group_size must be at least 2 (there is nothing to compare in one), got {self.group_size}"
            )
        if self.groups % self.updates_per_rollout:
            raise ValueError(
                f"groups must divide into updates_per_rollout equal shares, got {self.groups} groups and "
                f"{self.updates_per_rollout} updates"
            )
        if self.sampler.eta == 0.0 or self.sampler.window == 0:
            raise ValueError(
                "a deterministic sampler has no log-prob to train: sampler.eta must be above 0 and sampler.window not "
                f"0, got eta {self.sampler.eta:g} and window {self.sampler.window}"
            )
        if self.sampler.steps == 1:
            raise ValueError("sampler.steps is 1, and the last step is always deterministic: nothing can be trained")
