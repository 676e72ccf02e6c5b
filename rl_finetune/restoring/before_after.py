"""One picture before RL and after it, the best of several samples of each scored: what the demo shows."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from reward_model.measuring.score_page import overlay_strip
from reward_model.network.model import RewardModel
from reward_model.network.tiling import score_picture
from rl_finetune.restoring.tiles import grid_of, restore_levels, tile_count
from shared.pictures.writing import in_bits
from shared.restorers.protocol import Restorer
from shared.seeds import derive_seed


@dataclass(frozen=True)
class ScoredSample:
    """One restoration, and what the reward model says of it."""

    picture: np.ndarray  # [H, W, 3] uint8
    score: float
    worst: float | None  # mean of the worst 1 % of the map; None of a model without maps
    overlay: np.ndarray | None  # [H, W, 3] uint8: the picture in grey, painted where the model sees defects


@dataclass(frozen=True)
class Comparison:
    """Samples of the policy before RL and of the one after it, drawn with the same noise."""

    before: list[ScoredSample]
    after: list[ScoredSample]

    @staticmethod
    def best(samples: list[ScoredSample]) -> int:
        """Returns the index of the sample that the reward model prefers."""
        return max(range(len(samples)), key=lambda i: samples[i].score)


@dataclass(frozen=True)
class BeforeAfter:
    """Two policies and the reward model that judges them."""

    before: Restorer
    after: Restorer
    reward_model: RewardModel
    device: torch.device
    tile_px: int = 512

    def compare(
        self, lq: np.ndarray, *, samples: int, seed: int, on_step: Callable[[float], object] = lambda share: None
    ) -> Comparison:
        """Returns `samples` restorations of lq [h, w, 3] uint8 or uint16 by each policy; `on_step` hears of every tile,
        as the share of the work that is done."""
        size = lq.shape[1::-1]
        tiles = sum(tile_count(size, self.tile_px, grid_of(each)) for each in (self.before, self.after)) * samples
        done = 0

        def on_tile() -> None:
            nonlocal done
            done += 1
            on_step(done / tiles)

        with tempfile.TemporaryDirectory() as scratch:
            found = [
                [self._sample(restorer, lq, k, seed, Path(scratch), on_tile) for k in range(samples)]
                for restorer in (self.before, self.after)
            ]
        return Comparison(*found)

    def _sample(
        self, restorer: Restorer, lq: np.ndarray, k: int, seed: int, scratch: Path, on_tile: Callable[[], object]
    ) -> ScoredSample:
        own = seed if k == 0 else derive_seed(seed, "sample", k)  # as the command restore draws them
        sr = restore_levels(
            restorer, lq, tile_px=self.tile_px, seed=own, device=self.device, scratch=scratch, on_tile=on_tile
        )
        picture = in_bits(np.asarray(sr), 8)
        beside = in_bits(lq, 8) if self.reward_model.takes_lq else None
        said = score_picture(self.reward_model, picture, lq=beside)
        overlay = None
        if said.degradation_map is not None:
            overlay = overlay_strip(picture, said.degradation_map.astype(np.float32) / 65535.0)
        return ScoredSample(picture, said.score, said.worst_share, overlay)
