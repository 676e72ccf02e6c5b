"""Every setting of the RL stage; configs/train_rl_*.yaml explains those it sets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from data.degradation.pairs import PairConfig
from data.degradation.records import Task
from data.sources.open_source import FREE_SOURCE_KEYS, SourceConfig
from rl_finetune.credit.config import AdvantageConfig
from rl_finetune.evidence.gauge import GaugeConfig
from rl_finetune.evidence.held_out import HeldOut
from rl_finetune.loop.lora_layers import LoraConfig
from rl_finetune.methods.likelihood import LikelihoodConfig
from rl_finetune.methods.nft_loss import NftConfig
from rl_finetune.methods.policy_loss import LossConfig
from rl_finetune.methods.reward_gradient_loss import RewardGradientConfig
from rl_finetune.methods.window import WindowConfig, stochastic_range
from rl_finetune.rewards.config import RewardConfig
from rl_finetune.rewards.curriculum import CurriculumConfig
from shared.app.config import require_range
from shared.diffusion.sampler import Deployment, SamplerSpec
from shared.vision.available import MetricWeights

FREE_KEYS = ("checkpoint_every", "tracking", "cpu_threads", *FREE_SOURCE_KEYS)


@dataclass(frozen=True)
class TrainRlConfig:
    """One RL run; see configs/train_rl_sr.yaml and configs/train_rl_face.yaml."""

    out: str = "runs/default/rl_sr"  # the run's folder, which holds the tuned policy at the end
    task: Task = "sr"  # sr: ×4 super-resolution; face: restoration at the same size
    # The policy to start from: a folder, shipped:base_sr, hf:owner/name@revision, or a published pipeline of diffusers.
    base: str = "runs/default/base_sr"
    # Settings of a base that is a published pipeline, by the names of its kind: {pre_restorer: …, controlnet: …, guidance: …}
    base_settings: dict[str, Any] = field(default_factory=dict)
    reward_model: str = "runs/default/reward_model/checkpoint"  # a folder, shipped:reward_model, or a Hub repository
    reward_revision: str | None = None  # branch, tag or commit of the reward model's Hub repository
    source: SourceConfig = field(default_factory=SourceConfig)
    pairs: PairConfig = field(default_factory=PairConfig)
    sampler: SamplerSpec = field(default_factory=SamplerSpec)
    # nft regresses to what was drawn, by how good it was; refl and draft follow the reward's own gradient.
    method: Literal["policy_gradient", "nft", "refl", "draft"] = "policy_gradient"
    # full | lora (low-rank adapters) | the name of one of the policy's parts, such as controlnet
    trainable: str = "full"
    lora: LoraConfig = field(default_factory=LoraConfig)  # read where trainable is lora
    window: WindowConfig = field(default_factory=WindowConfig)  # read by method policy_gradient alone
    nft: NftConfig = field(default_factory=NftConfig)  # read by method nft alone
    # Read by methods refl and draft alone.
    reward_gradient: RewardGradientConfig = field(default_factory=RewardGradientConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)  # read by methods policy_gradient and nft
    loss: LossConfig = field(default_factory=LossConfig)  # read by method policy_gradient alone
    likelihood: LikelihoodConfig = field(default_factory=LikelihoodConfig)  # read by method policy_gradient alone
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    gauge: GaugeConfig = field(default_factory=GaugeConfig)
    metrics: MetricWeights = field(default_factory=MetricWeights)
    iterations: int = 60  # iterations, each with one rollout
    groups: int = 6  # degraded pictures per iteration, over all processes
    group_size: int = 8  # restorations of each degraded picture
    updates_per_rollout: int = 2  # optimizer steps an iteration makes, each on its own share of the groups
    microbatch_groups: int = 0  # groups per forward pass; 0: all of an update's
    # Samples per forward pass, of whatever groups, for cards on which a group does not fit; 0: by microbatch_groups.
    microbatch_samples: int = 0
    # Parts whose activations the backward pass computes again: less memory, the same gradient. [unet, controlnet]
    recompute_parts: tuple[str, ...] = ()
    steps_per_pass: int = 1  # trained steps re-scored in one forward pass
    # Whether the update takes from the rollout what no trained weight reaches, such as a frozen U-Net's encoder beside a
    # ControlNet: the same gradient for less time and more memory (SD 2.1 at 512 px in bf16: 14 MB a sample and step).
    keep_frozen: bool = False
    learning_rate: float = 1e-4  # peak learning rate
    # Iterations over which the learning rate rises: Adam's first steps are as long as its rate, whatever the gradient's
    # noise, and at the full rate they break the policy.
    warmup_iterations: int = 5
    # Share of the iterations, at the end, over which the learning rate falls to 0 along a line.
    decay_share: float = 0.3
    weight_decay: float = 0.0  # weight decay of AdamW
    gradient_clip: float = 1.0  # largest norm of the gradient
    ema_decay: float = 0.9  # decay of the weights' moving average, which is what is saved
    # Precision of the policy's forward pass; log-probs are always float32.
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    # How the policy is saved, evaluated and used: with the sampler as it is, or ode: without noise.
    deploy: Deployment = "sde"
    eval_images: int = 32  # distinct held-out pictures of the final table
    # Held-out pictures, at most, on which both policies are measured over steps and eta; 0: no curve.
    curve_images: int = 16
    eval_crop_px: int = 64  # side of the held-out pictures' gt
    eval_batch: int = 16  # held-out pictures restored at once
    identity_weights: str = ""  # a face recogniser's weights: reports whether faces stay who they are
    check_every: int = 0  # iterations between checks on validation pictures, read by the hacking gauge; 0: never
    check_images: int = 16  # validation pictures of a check
    checkpoint_every: int = 10  # iterations between resumable states; a kill loses at most this much work
    tracking: str = "tensorboard"  # trackers that Accelerate knows, commas between: tensorboard,wandb; or none
    cpu_threads: int = 2  # PyTorch's threads
    seed: int = 0  # seed of pairs, noise and windows

    @property
    def deployed(self) -> SamplerSpec:
        """Returns the sampler that the policy is saved, evaluated and used with."""
        return self.sampler.deployed(self.deploy)

    @property
    def readings(self) -> int:
        """Returns how often the hacking gauge is read, the baseline not counted: at every check, and at the end."""
        return 1 + (self.iterations // self.check_every if self.check_every else 0)

    @property
    def samples_per_pass(self) -> int:
        """Returns how many samples a forward pass takes; 0: all of an update's."""
        return self.microbatch_samples or self.microbatch_groups * self.group_size

    @property
    def by_advantage(self) -> bool:
        """Whether the method learns from comparing the members of a group."""
        return self.method in ("policy_gradient", "nft")

    def held_out(self) -> HeldOut:
        """Returns which pictures the run is measured on."""
        return HeldOut(
            source=self.source,
            pairs=self.pairs,
            task=self.task,
            crop_px=self.eval_crop_px,
            batch=self.eval_batch,
            seed=self.seed,
        )

    def __post_init__(self) -> None:
        require_range(iterations=(self.iterations, 1, 1e9), groups=(self.groups, 1, 1e6))
        require_range(eval_images=(self.eval_images, 2, 1e6), ema_decay=(self.ema_decay, 0, 1))
        require_range(group_size=(self.group_size, 1, 1e6), steps_per_pass=(self.steps_per_pass, 1, 1000))
        require_range(warmup_iterations=(self.warmup_iterations, 0, 1e9), decay_share=(self.decay_share, 0, 1))
        require_range(learning_rate=(self.learning_rate, 1e-12, 10), weight_decay=(self.weight_decay, 0, 10))
        require_range(gradient_clip=(self.gradient_clip, 1e-9, 1e12), cpu_threads=(self.cpu_threads, 1, 1024))
        require_range(updates_per_rollout=(self.updates_per_rollout, 1, 1e6), eval_batch=(self.eval_batch, 1, 1e6))
        require_range(check_every=(self.check_every, 0, 1e9), check_images=(self.check_images, 2, 1e6))
        require_range(
            checkpoint_every=(self.checkpoint_every, 1, 1e9), microbatch_groups=(self.microbatch_groups, 0, 1e6)
        )
        require_range(microbatch_samples=(self.microbatch_samples, 0, 1e6))
        if self.microbatch_groups and self.microbatch_samples:
            raise ValueError("microbatch_groups and microbatch_samples say the same in two ways: set one of them")
        if self.groups % self.updates_per_rollout:
            raise ValueError(
                f"groups must divide into updates_per_rollout equal shares, got {self.groups} groups and "
                f"{self.updates_per_rollout} updates"
            )
        if self.curve_images == 1 or self.curve_images < 0:
            raise ValueError(f"curve_images must be 0 (no curve) or at least 2, got {self.curve_images}")
        if self.identity_weights and self.task != "face":
            raise ValueError(f"identity_weights is for task face, got task {self.task}")
        if self.gauge.action == "rollback" and not self.check_every:
            raise ValueError("gauge.action is rollback, but check_every is 0: the gauge is never read")
        if self.gauge.action == "raise_gt_weight":
            self._require_gt_weight()
        if self.by_advantage:
            self._require_groups()
        if self.method == "policy_gradient":
            self._require_something_to_train()
        elif self.method != "nft" and self.reward_gradient.last_steps > self.sampler.steps:
            raise ValueError(
                f"reward_gradient.last_steps is {self.reward_gradient.last_steps}, but sampler.steps only {self.sampler.steps}"
            )

    def _require_gt_weight(self) -> None:
        if self.method == "policy_gradient":
            if self.likelihood.form == "none" or not self.likelihood.weight:
                raise ValueError("gauge.action is raise_gt_weight, but likelihood.form is none or its weight 0")
            return
        name = "nft" if self.method == "nft" else "reward_gradient"
        if not getattr(self, name).supervised_weight:
            raise ValueError(f"gauge.action is raise_gt_weight, but {name}.supervised_weight is 0")

    def _require_groups(self) -> None:
        if self.group_size < 2:
            raise ValueError(
                f"group_size must be at least 2 (there is nothing to compare in one), got {self.group_size}"
            )
        if self.advantage.hard_fraction < 1.0 and self.updates_per_rollout > 1:
            raise ValueError(
                "the worst-restored groups are chosen from a whole rollout, and an optimizer step may be left without "
                "any: with advantage.hard_fraction below 1 set updates_per_rollout=1"
            )
        if self.method == "nft" and self.advantage.in_time:
            raise ValueError(
                "nft does not train steps, so none can be credited: advantage.credit must be scalar or spatial, got "
                f"{self.advantage.credit}"
            )

    def _require_something_to_train(self) -> None:
        if self.sampler.eta == 0.0 or self.sampler.window == 0:
            raise ValueError(
                "a deterministic sampler has no log-prob to train: sampler.eta must be above 0 and sampler.window not "
                f"0, got eta {self.sampler.eta:g} and window {self.sampler.window}"
            )
        if self.sampler.steps == 1:
            raise ValueError("sampler.steps is 1, and the last step is always deterministic: nothing can be trained")
        stochastic = stochastic_range(self.sampler)
        if not stochastic:
            raise ValueError(
                "sampler.window holds the last step alone, which is always deterministic: begin it earlier"
            )
        if self.window.kind != "declared" and self.window.steps > len(stochastic):
            raise ValueError(
                f"window.steps is {self.window.steps}, but the sampler declares only {len(stochastic)} stochastic steps "
                f"(the last of {self.sampler.steps} never adds noise)"
            )
