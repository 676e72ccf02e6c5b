"""Scores pictures, says how to read the scores, and paints where they are broken.

python -m reward_model.score in=picture.png out=folder
python -m reward_model.score in=folder lq=folder gt=folder json=true checkpoint=user/name revision=v1
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from reward_model.measuring.companions import open_companions
from reward_model.measuring.score_page import ScorePage, overlay_strip
from reward_model.measuring.scored import Reading, ScoredPicture, compare_pair, warnings_of
from reward_model.network.checkpoint import locate_checkpoint
from reward_model.network.model import RewardModel
from reward_model.network.tiling import HALO_PX, TILE_PX, score_picture
from shared.app.devices import open_device
from shared.app.entry import run_command
from shared.app.errors import UserError
from shared.app.shipped import DEFAULT_RUN, choose_checkpoint
from shared.app.terminal import shown
from shared.app.words import read_words
from shared.files import require_writable, storable, write_bytes
from shared.pictures.inputs import FoundInputs, find_inputs
from shared.pictures.marks import MARK, is_marked, page_mark, require_own
from shared.pictures.reading import UnreadableImage
from shared.vision.images import read_image_8bit, write_png

PAGE, KINDS, MARK_OF_SCORE = "index.html", ("map", "overlay", "reference"), "score"
_STRIP_PX = 64  # rows of the overlay made at a time, to bound memory


@dataclass(frozen=True)
class ScoreConfig:
    """Which pictures are scored with which model."""

    inputs: str  # `in`: a picture, a folder, or several of them with commas between
    # What the pictures were restored from: a picture for all of them, or a folder with one of the same name each.
    lq: str = ""
    # The truth: a picture for all of them, or a folder with one of the same name each; adds a full-reference map.
    gt: str = ""
    checkpoint: str = ""  # a folder, shipped:reward_model, or a Hub repository; empty: that of `run`
    run: str = DEFAULT_RUN  # the run whose reward model is used; where the default run has none, the shipped one is
    revision: str | None = None  # branch, tag or commit of the Hub repository
    stage: int | None = None  # stage of the reward model; the last one by default
    out: str = ""  # folder for maps, overlays and the page of the worst; empty writes none
    json: bool = False  # one JSON object a line in place of the table
    device: str = "cpu"  # cpu | cuda
    tile_px: int = TILE_PX  # side of the tiles that a large picture is scored in
    halo_px: int = HALO_PX  # how far a tile sees beyond its border


@dataclass(frozen=True)
class Found:
    """A scored picture with what was made of it."""

    row: ScoredPicture
    path: Path
    picture: np.ndarray  # uint8 [H, W, 3]
    levels: np.ndarray | None  # the map, [H, W] uint16
    reference: np.ndarray | None  # the map against gt, [H, W] float32 in [0, 1]


def main(argv: Sequence[str]) -> None:
    config = read_words(ScoreConfig, argv, expected="in=<picture or folder>")
    inputs = find_inputs(config.inputs, apart_from=Path(config.out) if config.out else None)
    paths, own = own_outputs_apart(inputs, config)
    folder = locate_checkpoint(config.checkpoint or reward_model_of_run(config.run), revision=config.revision)
    model = RewardModel.from_pretrained(folder, stage=config.stage).to(open_device(config.device))
    if config.out and model.stage == 0:
        raise UserError("stage 0 has no degradation map to write into out=; name stage=1 or later, or leave it out")
    reading = Reading.of(folder, model.stage, beside_lq=bool(config.lq))
    page, skipped, rows = ScorePage(), [], []
    for found in score_all(model, paths, inputs.places, config, reading, skipped):
        rows.append(found.row)
        print(json.dumps(vars(found.row)) if config.json else table_line(found.row, header=len(rows) == 1), flush=True)
        if config.out:
            write_pictures(Path(config.out), inputs.names[found.path], found)
            page.add(found.row, found.picture, found.levels, found.reference)
    if not rows:
        raise UserError(f"none of {len(paths)} pictures could be scored: {skipped[0]}")
    warnings = [line for row in rows for line in warnings_of(row)]
    for line in [*inputs.left_out, *own, *(f"skipped {line}" for line in skipped), *warnings]:
        print(line, file=sys.stderr)  # the table, or the JSON, has stdout to itself
    if len(rows) == 2 and not config.json and (rows[0].width, rows[0].height) == (rows[1].width, rows[1].height):
        print(compare_pair(*rows, reading))
    if config.out:
        write_bytes(
            Path(config.out) / PAGE,
            storable(page.html(f"{config.inputs}, scored", head=page_mark(MARK_OF_SCORE))).encode(),
        )


def reward_model_of_run(run: str) -> str:
    """Returns the run's reward model, or the shipped one where the default run has none, and says which."""
    advice = "train one with make train-rm, fetch one with make download-rm, or name one with checkpoint="
    choice = choose_checkpoint(run, "reward_model/checkpoint", "reward_model", advice=advice)
    print(f"reward model: {choice.says}", file=sys.stderr)
    return choice.where


def own_outputs_apart(inputs: FoundInputs, config: ScoreConfig) -> tuple[list[Path], list[str]]:
    """Returns the pictures without those that this command wrote for others of them, and a line that says so.

    Raises UserError where a map, an overlay or the page would be written over a file of a person's.
    """
    if not config.out:
        return inputs.paths, []
    require_writable(config.out)
    made = {
        os.path.realpath(Path(config.out, f"{name}_{kind}.png")) for name in inputs.names.values() for kind in KINDS
    }
    kept = [path for path in inputs.paths if os.path.realpath(path) not in made or not is_marked(path, MARK_OF_SCORE)]
    kinds = KINDS if config.gt else KINDS[:-1]
    planned = [Path(config.out, f"{inputs.names[path]}_{kind}.png") for path in kept for kind in kinds]
    require_own([*planned, Path(config.out, PAGE)], MARK_OF_SCORE)
    own = len(inputs.paths) - len(kept)
    return kept, [f"left out {own} pictures that this command wrote into {shown(config.out)} before"] if own else []


def score_all(
    model: RewardModel,
    paths: Sequence[Path],
    places: Mapping[Path, Path],
    config: ScoreConfig,
    reading: Reading,
    skipped: list[str],
) -> Iterator[Found]:
    """Yields every picture that can be scored; of the others `skipped` gets a line that names the file and says why."""
    companions = open_companions(config.lq, config.gt)
    for path in paths:
        try:
            picture = read_image_8bit(path)
            beside = {kind: read_image_8bit(of.of(places[path])) for kind, of in companions.items()}
            lq, gt = beside.get("lq"), beside.get("gt")
            output = score_picture(model, picture, lq=lq, tile_px=config.tile_px, halo_px=config.halo_px)
            reference = None if gt is None else reading.full_reference_map(picture, gt)
        except UnreadableImage as error:
            skipped.append(str(error))
            continue
        except UserError as error:
            skipped.append(f"{path}: {error}")
            continue
        row = reading.summarise(path, picture, output, beside_lq=lq is not None, reference=reference)
        yield Found(row, path, picture, output.degradation_map, reference)


COLUMNS = (  # title, width, field, how it is printed
    ("score", 9, "score", "{:.4f}"),
    ("broken", 8, "broken", "{:.1%}"),
    ("worst 1 %", 9, "worst", "{:.4f}"),
    ("map mean", 9, "mean", "{:.4f}"),
    ("> clean", 8, "above_clean", "{:.0f} %"),
    ("> restored", 10, "above_restored", "{:.0f} %"),
    ("vs gt", 7, "reference", "{:.4f}"),
)


def table_line(row: ScoredPicture, *, header: bool) -> str:
    """Returns the row as text, under its header when it is the first."""
    columns = [column for column in COLUMNS if column[2] != "reference" or row.reference is not None]
    values = [(getattr(row, name), width, form) for _, width, name, form in columns]
    cells = [f"{'–' if value is None else form.format(value):>{width}}" for value, width, form in values]
    line = " ".join([*cells, f"{f'{row.width}×{row.height}':>12}", f" {shown(row.path)}"])
    title = " ".join([*(f"{name:>{width}}" for name, width, _, _ in columns), f"{'size':>12}", " picture"])
    return f"{title}\n{line}" if header else line


def write_pictures(folder: Path, name: str, found: Found) -> None:
    """Writes <name>_map.png, 16 bits grey, and <name>_overlay.png, the defects in colour over the greyed picture; with
    a gt also <name>_reference.png, the full-reference map.
    """
    text = {MARK: MARK_OF_SCORE}
    write_png(folder / f"{name}_map.png", Image.fromarray(found.levels), text=text)
    if found.reference is not None:
        reference = (found.reference * 65535.0 + 0.5).astype(np.uint16)
        write_png(folder / f"{name}_reference.png", Image.fromarray(reference), text=text)
    overlay = Image.new("RGB", found.picture.shape[1::-1])
    for top in range(0, len(found.picture), _STRIP_PX):
        rows = slice(top, top + _STRIP_PX)
        strip = overlay_strip(found.picture[rows], found.levels[rows].astype(np.float32) / 65535.0)
        overlay.paste(Image.fromarray(strip), (0, top))
    write_png(folder / f"{name}_overlay.png", overlay, text=text)


if __name__ == "__main__":
    run_command(main)
