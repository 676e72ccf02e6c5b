"""What `make score` says of a picture: score, map and broken area, and how to read them against validation."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf.errors import OmegaConfBaseException

from data.regions.targets import Normaliser, TargetConfig
from data.store.sample_maker import SampleMaker, TargetScale
from reward_model.measuring.reference import (
    DetailReference,
    ScoreReference,
    detail_statistics,
    reference_from_json,
)
from reward_model.network.checkpoint import METRICS_FILE
from reward_model.network.tiling import TiledOutput
from shared.app.config import from_dict
from shared.app.errors import UserError
from shared.weights import read_description

_TILE_PX = 1024  # a full-reference map is made tile by tile


@dataclass(frozen=True)
class ScoredPicture:
    """One line of the table."""

    path: str
    width: int
    height: int
    score: float
    beside_lq: bool  # whether lq was given
    broken: float | None  # share of the map from the calibrated threshold on
    worst: float | None  # mean of the worst 1 % of the map: the number that RL's fgr_worst_spot is 1 minus
    mean: float | None  # of the map
    above_clean: float | None  # per cent of validation's truths that score lower
    above_restored: float | None  # the same of its restorations
    detail: float | None  # distance of its detail from the training's, above 1 it is unusual
    reference: float | None = None  # mean of the full-reference map, where gt was given


@dataclass(frozen=True)
class Reading:
    """What a checkpoint knows for reading its scores; None each where an older one holds none."""

    scores: ScoreReference | None
    detail: DetailReference | None
    targets: TargetScale | None

    @classmethod
    def of(cls, folder: Path, stage: int, *, beside_lq: bool) -> Reading:
        """Returns the reading of a checkpoint folder's stage."""
        path, advice = folder / METRICS_FILE, "fetch or train the checkpoint again"
        if not path.exists():
            return cls(None, None, None)
        stored = read_description(path, advice=advice)
        try:
            scores, detail = reference_from_json(stored.get("reference"), stage, beside_lq=beside_lq)
            return cls(scores, detail, targets_from_json(stored.get("targets")))
        except (OmegaConfBaseException, AttributeError, KeyError, TypeError, ValueError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"{path} says nothing to read scores by ({reason}); {advice}") from None

    def summarise(
        self, path: Path, picture: np.ndarray, output: TiledOutput, *, beside_lq: bool, reference: np.ndarray | None
    ) -> ScoredPicture:
        """Returns one picture's line; `picture` is uint8 [H, W, 3], `reference` its full-reference map."""
        height, width = picture.shape[:2]
        levels, threshold = output.degradation_map, self.scores.threshold if self.scores else None
        clean, restored = self.scores.percentiles(output.score) if self.scores else (None, None)
        broken = None
        if levels is not None and threshold is not None:
            broken = float((levels >= round(threshold * 65535.0)).mean(dtype=np.float64))
        return ScoredPicture(
            path=str(path),
            width=width,
            height=height,
            score=output.score,
            beside_lq=beside_lq,
            broken=broken,
            worst=output.worst_share,
            mean=None if levels is None else float(levels.mean(dtype=np.float64) / 65535.0),
            above_clean=clean,
            above_restored=restored,
            detail=self.detail.distance(detail_statistics(picture)) if self.detail else None,
            reference=None if reference is None else float(reference.mean(dtype=np.float64)),
        )

    def full_reference_map(self, picture: np.ndarray, gt: np.ndarray) -> np.ndarray:
        """Returns [H, W] in [0, 1] of uint8 pictures: as the training's targets were made, or the distance in pixels
        where the checkpoint does not know how. Raises UserError where the sizes differ.
        """
        if picture.shape != gt.shape:
            raise UserError(f"gt is {gt.shape[1]}×{gt.shape[0]} px, the picture {picture.shape[1]}×{picture.shape[0]}")
        maker = SampleMaker(self.targets) if self.targets else None
        found = np.empty(picture.shape[:2], np.float32)
        for top in range(0, picture.shape[0], _TILE_PX):
            for left in range(0, picture.shape[1], _TILE_PX):
                place = slice(top, top + _TILE_PX), slice(left, left + _TILE_PX)
                x, y = (np.ascontiguousarray(p[place]).astype(np.float32) / 255.0 for p in (picture, gt))
                found[place] = np.abs(x - y).mean(axis=2) if maker is None else maker.reference_map(x, y)
        return found


def targets_to_json(scale: TargetScale) -> dict[str, Any]:
    """Returns the scale of the training's targets as plain values; the inverse is `targets_from_json`."""
    return {"targets": asdict(scale.targets), "normaliser": asdict(scale.normaliser)}


def targets_from_json(values: dict[str, Any] | None) -> TargetScale | None:
    """Returns the stored scale, or None where there is none."""
    if not values:
        return None
    return TargetScale(from_dict(TargetConfig, values["targets"]), from_dict(Normaliser, values["normaliser"]))


def compare_pair(first: ScoredPicture, second: ScoredPicture, reading: Reading) -> str:
    """Returns a sentence on which of two pictures scores higher, and what such a difference has meant on validation."""
    better, worse = (first, second) if first.score >= second.score else (second, first)
    difference = better.score - worse.score
    said = f"{better.path} scores {difference:.4f} higher than {worse.path}"
    if reading.scores is None:
        return said
    chance = reading.scores.chance_better(difference)
    return f"{said}; of two validation pictures of one scene that far apart, the higher one is better in {chance:.0%} of cases"


def warnings_of(row: ScoredPicture) -> list[str]:
    """Returns what to know before trusting a line."""
    if row.detail is None or row.detail <= 1:
        return []
    return [
        f"{row.path}: its detail is {row.detail:.1f} times as far from the training's pictures as nearly all of theirs; "
        "score and map may mean little here"
    ]
