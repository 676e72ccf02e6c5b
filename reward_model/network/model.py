"""The reward model: how good a picture is, and where it is broken. Stage 0 only scores; stage k maps with k decoder
blocks, each finer than the one before."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from omegaconf.errors import OmegaConfBaseException
from torch import nn
from torch.nn import functional

from reward_model.network.architecture import RewardModelConfig, build_decoder, build_network, upsample
from reward_model.network.checkpoint import push_checkpoint, read_checkpoint, write_stage
from reward_model.network.encoder import normalisation
from reward_model.network.lq_input import LqBranch, enlarge, require_lq
from reward_model.network.score_head import HEADS, map_statistics, weighted_mean
from shared.app.config import from_dict
from shared.app.errors import UserError
from shared.vision.images import pad_to_multiple

MIN_SIDE_PX = 16
_RANGE_SLACK = 1e-3


@dataclass(frozen=True)
class RewardOutput:
    """The model's prediction for B pictures."""

    score: torch.Tensor  # [B], higher is better
    degradation_map: torch.Tensor | None  # [B, 1, H, W] in [0, 1], 1 worst; None at stage 0

    def require_map(self) -> torch.Tensor:
        """Returns the map. Raises UserError at stage 0, which has none."""
        if self.degradation_map is None:
            raise UserError("stage 0 of the reward model has no degradation map; load stage=1 or later for one")
        return self.degradation_map


@dataclass(frozen=True)
class ScoreInputs:
    """What the score is computed from, on the padded picture; tiles of it can be cropped and summed."""

    features: torch.Tensor  # [B, C, h, w], f_N at the deepest stride
    native_map: torch.Tensor | None  # [B, 1, h', w'] in [0, 1], at the last block's stride


class RewardModel(nn.Module):
    """Returns a RewardOutput for RGB pictures [B, 3, H, W] in [0, 1] of any size from 16 px, differentiable in them.

    Given the lq that they were restored from as well, a model that takes it judges them beside it.
    """

    def __init__(self, config: RewardModelConfig, *, stage: int | None = None) -> None:
        """Builds RM_stage, the last by default. Raises UserError for an encoder or decoder that smp refuses."""
        super().__init__()
        stage = config.stages if stage is None else stage
        if not 0 <= stage <= config.stages:
            raise UserError(f"expected a stage from 0 to {config.stages} for this network, got {stage}")
        if not config.mean:
            published = config.pretrained or bool(config.encoder_weights)
            mean, std = normalisation(config.encoder, pretrained=published)
            config = replace(config, mean=mean, std=std)
        self.stage = stage
        network = build_network(config)
        self.encoder = network.encoder
        self.deep_stride = 2**config.encoder_depth
        channels = self.encoder.out_channels[-1]
        self.decoder, self.map_heads, self.map_stride = build_decoder(network, config, stage)
        self.score_head = HEADS[config.head](channels, with_map=stage > 0)
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, 3, 1, 1), persistent=False)
        # Whatever the weights started from, they are now the model's own, and every stage of a checkpoint is one network.
        self.config = replace(config, pretrained=False, encoder_weights="")
        if config.takes_lq:
            self.lq_branch = LqBranch(self.encoder.detail_channels)

    @property
    def takes_lq(self) -> bool:
        """Whether the model reads lq where it is given."""
        return self.config.takes_lq

    def forward(
        self, images: torch.Tensor, lq: torch.Tensor | None = None, lq_given: torch.Tensor | None = None
    ) -> RewardOutput:
        """`lq` [B, 3, h, w] is what the pictures were restored from, at any scale; `lq_given` [B] bool says for which
        of them it counts, None for all. Raises UserError for lq where the model takes none.
        """
        if not torch.compiler.is_compiling():
            require_pictures(images)
        height, width = images.shape[-2:]
        padded = pad_to_multiple(images, self.deep_stride)
        enlarged = None
        if lq is not None:
            self.require_takes_lq()
            if not torch.compiler.is_compiling():
                require_lq(lq, images)
            enlarged = enlarge(lq, (height, width), window=(0, padded.shape[-2], 0, padded.shape[-1]))
        inputs = self.score_inputs(padded, enlarged, lq_given)
        weight = valid_share(padded, height, width, self.deep_stride)
        pooled = weighted_mean(inputs.features, weight)
        if inputs.native_map is None:
            return RewardOutput(self.score(pooled, None, None), None)
        gated = inputs.features * to_grid(inputs.native_map, inputs.features)
        native = inputs.native_map[..., : -(-height // self.map_stride), : -(-width // self.map_stride)]
        score = self.score(pooled, weighted_mean(gated, weight), map_statistics(native))
        full = upsample(inputs.native_map, self.map_stride)[..., :height, :width]
        return RewardOutput(score, full.float())

    def score(
        self, pooled: torch.Tensor, pooled_by_map: torch.Tensor | None, statistics: torch.Tensor | None
    ) -> torch.Tensor:
        """Returns the score [B] of averages over a picture, in float32: ranks hang on its third digit."""
        with torch.autocast(pooled.device.type, enabled=False):
            return self.score_head(pooled, pooled_by_map, statistics)

    def score_inputs(
        self, padded: torch.Tensor, enlarged: torch.Tensor | None = None, lq_given: torch.Tensor | None = None
    ) -> ScoreInputs:
        """Returns features and native map of pictures whose sides are multiples of the deepest stride.

        `enlarged` is their lq at their own size.
        """
        images = (on_levels(padded) - self.mean) / self.std
        if enlarged is None:
            features = self.encoder(images)
        else:
            stem = self.encoder.stem(images)
            added = self.lq_branch(images, stem, (enlarged - self.mean) / self.std, lq_given)
            features = self.encoder(images, stem=stem, added=added)
        deepest = features[-1].float()
        if self.stage == 0:
            return ScoreInputs(deepest, None)
        return ScoreInputs(deepest, torch.sigmoid(self._map_logits(features).float()))

    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Returns the encoder's features of pictures [B, 3, H, W], finest level first; sides are padded to its stride."""
        padded = pad_to_multiple(images, self.deep_stride)
        return self.encoder((on_levels(padded) - self.mean) / self.std)[1:]

    def _map_logits(self, features: list[torch.Tensor]) -> torch.Tensor:
        if not isinstance(self.decoder, nn.ModuleList):
            return self.map_heads[0](self.decoder(features))
        hidden, logits = features[-1], None
        for level, (block, head) in enumerate(zip(self.decoder, self.map_heads, strict=True), start=1):
            skip = features[-1 - level] if level < self.config.encoder_depth else None
            target = features[-1 - level].shape[-2:]
            hidden = block(hidden, *target, skip_connection=skip)
            # Each stage adds detail to the coarser map. Its head starts at 0, so a warm start changes nothing at first.
            finer = head(hidden)
            logits = finer if logits is None else upsample(logits, 2) + finer
        return logits

    def require_takes_lq(self) -> None:
        """Raises UserError for a model that was trained without lq."""
        if not self.takes_lq:
            raise UserError("this reward model takes no lq; leave it out, or train one with model.takes_lq=true")

    def warm_start(self, earlier: RewardModel) -> None:
        """Copies every weight of the stage before. The new block keeps its fresh weights and leaves the map as it was."""
        mine = self.state_dict()
        self.load_state_dict({**mine, **{k: v for k, v in earlier.state_dict().items() if k in mine}})

    @classmethod
    def from_pretrained(
        cls, folder_or_repo: str | Path, *, stage: int | None = None, revision: str | None = None
    ) -> RewardModel:
        """Returns RM_stage (the last one by default) of a checkpoint folder or Hub repository, ready for inference.

        Raises UserError for a missing or damaged checkpoint, a stage it does not hold, and weights of another network.
        """
        fields, stage, weights = read_checkpoint(folder_or_repo, stage=stage, revision=revision)
        try:
            # The weights come from the checkpoint: fetching the encoder's published ones as well would be for nothing.
            config = from_dict(RewardModelConfig, {**fields, "pretrained": False, "encoder_weights": ""})
        except (OmegaConfBaseException, TypeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{folder_or_repo}: its config.json describes no reward model of ours: {reason}") from None
        with torch.device("meta"):  # the description may ask for more than the file holds, and than there is memory
            own = {name: tuple(tensor.shape) for name, tensor in cls(config, stage=stage).state_dict().items()}
        came = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        if own != came:
            differing = sorted(name for name in own.keys() | came.keys() if own.get(name) != came.get(name))
            raise UserError(
                f"{folder_or_repo}: stage {stage} does not fit its config.json ({config.encoder}, {config.decoder}): "
                f"{len(differing)} tensors differ, first {differing[0]}; fetch a checkpoint whose files belong together"
            )
        model = cls(config, stage=stage)
        model.load_state_dict(weights)
        return model.to(memory_format=torch.channels_last).eval()  # measured a tenth faster on CPUs

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes this stage into a checkpoint folder; other stages of the same network there are kept."""
        write_stage(Path(folder), asdict(self.config), self.stage, self.state_dict())

    def push_to_hub(self, repo_id: str, *, licence: str, revision: str | None = None, private: bool = True) -> str:
        """Publishes this stage alone and returns the repository's address; `push_checkpoint` publishes a whole folder."""
        with tempfile.TemporaryDirectory() as temporary:
            self.save_pretrained(temporary)
            return push_checkpoint(Path(temporary), repo_id, licence=licence, revision=revision, private=private)


def on_levels(images: torch.Tensor) -> torch.Tensor:
    """Returns the pictures rounded to 8-bit levels, with the gradient of the unrounded ones.

    Training pictures come from 8-bit files. Without the rounding, a restorer's float output differs from all of them in
    its faintest detail and is scored as clean whatever it shows.
    """
    return images + ((images * 255.0).round() / 255.0 - images).detach()


def require_pictures(images: torch.Tensor) -> None:
    """Raises UserError unless `images` are finite RGB pictures [B, 3, H, W] in [0, 1] of at least 16 px a side."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise UserError(f"expected RGB pictures [B, 3, H, W], got a tensor of shape {list(images.shape)}")
    if min(images.shape[-2:]) < MIN_SIDE_PX:
        raise UserError(
            f"expected pictures of at least {MIN_SIDE_PX}×{MIN_SIDE_PX} px, got "
            f"{images.shape[-1]}×{images.shape[-2]}; score the picture they were cut from"
        )
    if not images.is_floating_point():
        raise UserError(f"expected float pictures in [0, 1], got {images.dtype}; convert and divide by 255")
    low, high = torch.stack(images.detach().aminmax()).tolist()  # one look at the device
    if not (low == low and high == high and abs(low) != float("inf") and abs(high) != float("inf")):
        raise UserError("expected finite pixel values, got NaN or infinity; check the step that made this picture")
    if low < -_RANGE_SLACK or high > 1 + _RANGE_SLACK:
        advice = "divide by 255" if high > 2 else "clamp it"
        raise UserError(f"expected pixel values in [0, 1], got [{low:.3g}, {high:.3g}]; {advice}")


def valid_share(padded: torch.Tensor, height: int, width: int, stride: int) -> torch.Tensor:
    """Returns [1, 1, H'/stride, W'/stride]: the share of each cell inside the unpadded height × width picture."""

    def along(size: int, valid: int) -> torch.Tensor:
        starts = torch.arange(0, size, stride, device=padded.device)
        return ((valid - starts).clamp(0, stride) / stride).to(padded.dtype)

    rows, columns = along(padded.shape[-2], height), along(padded.shape[-1], width)
    return (rows[:, None] * columns[None, :])[None, None]


def to_grid(degradation_map: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Returns the map averaged to the features' grid, [B, 1, h, w]."""
    return functional.interpolate(degradation_map, size=features.shape[-2:], mode="area").to(features.dtype)
