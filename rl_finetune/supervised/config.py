"""The settings of a supervised training of a base policy."""

from __future__ import annotations

from dataclasses import dataclass, field

from data.degradation.pairs import PairConfig
from data.degradation.records import SCALES, Task
from data.sources.open_source import SourceConfig
from rl_finetune.supervised.first_stage import StageConfig
from rl_finetune.supervised.step import OwnStepsConfig
from shared.app.config import require_range
from shared.diffusion.sampler import SamplerSpec
from shared.policies.pixel_unet import PixelUNetConfig
from shared.restorers.pre_restorer import OWN


@dataclass(frozen=True)
class PretrainConfig:
    """One supervised base policy; configs/base_sr.yaml explains every field."""

    out: str = "runs/default/base_sr"  # the run's folder, which holds the policy at the end
    task: Task = "sr"  # sr: ×4 super-resolution; face: restoration at the same size
    source: SourceConfig = field(default_factory=SourceConfig)
    pairs: PairConfig = field(default_factory=PairConfig)
    pre_restorer: StageConfig = field(default_factory=StageConfig)  # used where policy.pre_restorer is own
    policy: PixelUNetConfig = field(default_factory=PixelUNetConfig)
    # How many of the pairs, the first ones, the policy is trained on where one of its stages is a published restorer, which
    # draws each of them once; 0: all.
    stage_pairs: int = 0
    own_steps: OwnStepsConfig = field(default_factory=OwnStepsConfig)
    # The noise over the residual, as standard deviations: with less of it a small network draws less grain (ResShift's κ).
    noise_scale: float = 1.0
    window_px: int = 0  # side of the window of each pair that a step sees; 0: all of it
    sampler: SamplerSpec = field(default_factory=SamplerSpec)
    iterations: int = 1000  # optimizer steps
    batch_size: int = 32  # pairs per process and step
    learning_rate: float = 1e-3  # peak learning rate
    warmup_iterations: int = 50  # iterations over which the learning rate rises to its peak
    weight_decay: float = 0.01  # weight decay of AdamW
    gradient_clip: float = 1.0  # largest norm of the gradient
    ema_decay: float = 0.995  # decay of the weights' moving average, which is what is saved
    # Also save the policy after this iteration, in out/early: an under-trained restorer; 0: never.
    early_iteration: int = 0
    half: bool = False  # weights are saved as float16, half the bytes
    mixed_precision: str = "no"  # no | bf16 | fp16
    checkpoint_every: int = 200  # iterations between resumable states; a kill loses at most this much work
    log_every: int = 20  # iterations between lines of metrics.jsonl
    tracking: str = "tensorboard"  # trackers that Accelerate knows, commas between: tensorboard,wandb; or none
    workers: int = 0  # processes that prepare pairs; 0: the training process itself
    cpu_threads: int = 2  # PyTorch's threads
    seed: int = 0  # seed of weights, pairs and noise

    def __post_init__(self) -> None:
        require_range(iterations=(self.iterations, 1, 1e9), batch_size=(self.batch_size, 1, 1e6))
        require_range(learning_rate=(self.learning_rate, 1e-8, 1), ema_decay=(self.ema_decay, 0, 1))
        require_range(noise_scale=(self.noise_scale, 0.01, 10))
        expected = SCALES[self.task]
        if self.policy.scale != expected:
            raise ValueError(f"task {self.task} needs policy.scale {expected}, got {self.policy.scale}")
        if self.policy.pre_restorer == OWN and self.pre_restorer.network.scale != expected:
            scale = self.pre_restorer.network.scale
            raise ValueError(f"task {self.task} needs pre_restorer.network.scale {expected}, got {scale}")
        if self.policy.guide == OWN:
            raise ValueError("no guide is trained here: policy.guide names a restorer's folder or file")
        for name, side in (("pairs.crop_px", self.pairs.crop_px), ("window_px", self.window_px)):
            if side % self.multiple_px:
                raise ValueError(f"{name} must be a multiple of {self.multiple_px}, got {side}")
        if self.window_px > self.pairs.crop_px:
            raise ValueError(f"window_px must not exceed pairs.crop_px {self.pairs.crop_px}, got {self.window_px}")
        require_range(stage_pairs=(self.stage_pairs, 0, 1e9))
        if self.own_steps.share and self.sampler.steps < 2:
            raise ValueError("own_steps.share trains the steps after the first: it needs sampler.steps of 2 or more")

    @property
    def multiple_px(self) -> int:
        """Sides of gt must be a multiple of this."""
        return self.policy.unshuffle * 2 ** (len(self.policy.channels) - 1)
