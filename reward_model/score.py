"""Scores pictures and paints where they are broken.

python -m reward_model.score in=picture.png out=folder checkpoint=runs/default/reward_model/checkpoint
python -m reward_model.score in=folder json=true checkpoint=user/name revision=v1
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from reward_model.network.model import RewardModel
from reward_model.network.tiling import HALO_PX, TILE_PX, TiledOutput, score_picture
from shared.app.devices import open_device
from shared.app.entry import run_command
from shared.app.errors import UserError
from shared.app.words import read_words
from shared.vision.images import UnreadableImage, read_image_8bit, write_png
from shared.vision.inputs import input_pictures, output_names

_STRIP_PX = 64  # rows of the overlay made at a time, to bound memory


@dataclass(frozen=True)
class ScoreConfig:
    """Which pictures are scored with which model."""

    inputs: str  # `in`: a picture, a folder, or several of them with commas between
    checkpoint: str = "runs/default/reward_model/checkpoint"  # a folder, or a Hub repository
    revision: str | None = None  # of a Hub repository
    stage: int | None = None  # the last one by default
    out: str = ""  # folder for overlays and maps; empty writes none
    json: bool = False  # one JSON object a line in place of the table
    device: str = "cpu"  # cpu | cuda
    tile_px: int = TILE_PX  # side of the tiles that a large picture is scored in
    halo_px: int = HALO_PX  # how far a tile sees beyond its border


@dataclass(frozen=True)
class ScoredPicture:
    """One line of the table."""

    path: str
    width: int
    height: int
    score: float
    worst: float | None  # mean of the worst 1 % of the map
    mean: float | None  # of the map


def main(argv: Sequence[str]) -> None:
    config = read_words(ScoreConfig, argv, expected="in=<picture or folder>")
    paths = input_pictures(config.inputs)
    model = RewardModel.from_pretrained(config.checkpoint, stage=config.stage, revision=config.revision)
    model.to(open_device(config.device))
    if config.out and model.stage == 0:
        raise UserError("stage 0 has no degradation map to write into out=; name stage=1 or later, or leave it out")
    names = output_names(paths)
    skipped: list[str] = []
    rows: list[ScoredPicture] = []
    for path in paths:
        try:
            picture = read_image_8bit(path)
        except UnreadableImage as error:
            skipped.append(str(error))
            continue
        output = score_one(model, picture, path, config)
        rows.append(summarise(path, picture, output))
        print(json.dumps(vars(rows[-1])) if config.json else table_line(rows[-1], header=len(rows) == 1), flush=True)
        if config.out:
            write_pictures(Path(config.out), names[path], picture, output)
    if not rows:
        raise UserError(f"none of {len(paths)} pictures could be read: {skipped[0]}")
    for line in skipped:
        print(f"skipped {line}", file=sys.stderr)  # the table, or the JSON, has stdout to itself


def score_one(model: RewardModel, picture: np.ndarray, path: Path, config: ScoreConfig) -> TiledOutput:
    """Returns the output for one picture; a refusal names the file."""
    try:
        return score_picture(model, picture, tile_px=config.tile_px, halo_px=config.halo_px)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def summarise(path: Path, picture: np.ndarray, output: TiledOutput) -> ScoredPicture:
    """Returns one picture's line."""
    height, width = picture.shape[:2]
    levels = output.degradation_map
    mean = None if levels is None else float(levels.mean(dtype=np.float64) / 65535.0)
    return ScoredPicture(str(path), width, height, output.score, output.worst_share, mean)


def table_line(row: ScoredPicture, *, header: bool) -> str:
    """Returns the row as text, under its header when it is the first."""
    cells = ["–" if value is None else f"{value:.4f}" for value in (row.score, row.worst, row.mean)]
    line = f"{cells[0]:>9} {cells[1]:>9} {cells[2]:>9} {f'{row.width}×{row.height}':>12}  {row.path}"
    title = f"{'score':>9} {'worst 1 %':>9} {'map mean':>9} {'size':>12}  picture"
    return f"{title}\n{line}" if header else line


def write_pictures(folder: Path, name: str, picture: np.ndarray, output: TiledOutput) -> None:
    """Writes <name>_map.png, 16 bits grey, and <name>_overlay.png, the defects in colour over the greyed picture."""
    levels = output.degradation_map
    write_png(folder / f"{name}_map.png", Image.fromarray(levels))
    overlay = Image.new("RGB", picture.shape[1::-1])
    for top in range(0, len(picture), _STRIP_PX):
        rows = slice(top, top + _STRIP_PX)
        strip = overlay_strip(picture[rows], levels[rows].astype(np.float32) / 65535.0)
        overlay.paste(Image.fromarray(strip), (0, top))
    write_png(folder / f"{name}_overlay.png", overlay)


def overlay_strip(picture: np.ndarray, degradation_map: np.ndarray) -> np.ndarray:
    """Returns uint8 [h, w, 3]: grey where the map is 0, through orange to red where it is 1."""
    grey = picture.mean(axis=2, dtype=np.float32, keepdims=True)
    weight = np.clip(degradation_map * 1.5, 0.0, 0.8)[..., None]
    colour = np.stack(
        [np.full_like(degradation_map, 255.0), 200.0 * (1 - degradation_map), 0 * degradation_map], axis=2
    )
    return np.clip(grey * (1 - weight) + colour * weight + 0.5, 0, 255).astype(np.uint8)


if __name__ == "__main__":
    run_command(main)
