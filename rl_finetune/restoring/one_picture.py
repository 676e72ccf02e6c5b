"""One picture from its file to its restoration's: read, restored once or several times, its colours fixed, written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rl_finetune.restoring.colours import ColourFix, colour_fixed
from rl_finetune.restoring.outputs import Target
from rl_finetune.restoring.pasted_faces import FaceWork, paste_faces, place_faces
from rl_finetune.restoring.tiles import SMALLEST_TILE_PX, restore_levels
from shared.pictures.reading import DecodedPicture
from shared.pictures.resampling import BICUBIC, LANCZOS, Rows, filled_under, resized, resized_rows
from shared.pictures.writing import STRIP_ROWS, FileSettings, Format, in_bits, write_picture
from shared.restorers.protocol import Restorer
from shared.seeds import derive_seed

# score(restored [H, W, 3] uint8, lq [h, w, 3] uint8) → higher is better
Score = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class Work:
    """What is done to every picture."""

    restorer: Restorer
    device: torch.device
    seed: int
    tile_px: int
    samples: int
    score: Score | None  # picks among samples
    colour_fix: ColourFix
    scale: float | None
    format: Format
    bits: int | None  # as the input has, where the format can
    quality: int
    faces: FaceWork | None  # restores the faces of whole photographs
    record: dict[str, Any]  # what is the same for all pictures of what is written into their files


@dataclass(frozen=True)
class Done:
    """What came of one picture."""

    size: tuple[int, int]  # width, height of the restoration
    scores: list[float]  # of all samples, where they were scored
    best: int
    notes: list[str]


def output_size(size: tuple[int, int], work: Work) -> tuple[int, int]:
    """Returns (width, height) of what is written for a picture of `size`."""
    scale = work.scale or work.restorer.scale
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def restore_picture(picture: DecodedPicture, target: Target, work: Work, on_tile: Callable[[], object]) -> Done:
    """Restores a picture and writes it, and beside it both side by side where the target says so."""
    lq = picture.levels if picture.alpha is None else filled_under(picture.levels, picture.alpha)
    notes: list[str] = []
    rows, height, scores, best = _best_of(lq, target.path.parent, work, on_tile, notes)
    size = output_size(lq.shape[1::-1], work)

    def strips(part: slice) -> tuple[np.ndarray, np.ndarray | None]:
        alpha = None if picture.alpha is None else resized(picture.alpha, size, rows=part)
        return resized_rows(rows, height, size, part, resample=LANCZOS), alpha

    record = {
        **work.record,
        "input": target.source.name,
        "read": list(picture.notes),
        "seed": work.seed,
        **({"scores": scores, "sample": best} if scores else {}),
    }
    settings = FileSettings(
        format=work.format,
        bits=(work.bits or picture.bits) if work.format == "png" else 8,
        quality=work.quality,
        grey=picture.grey,
        alpha=picture.alpha is not None,
        exif=picture.exif,
        history=json.dumps(record),
    )
    if picture.alpha is not None and work.format == "jpeg":
        notes.append("on white: JPEG holds no alpha")
    if picture.bits == 16 and settings.bits == 8:
        notes.append("at 8 bits")
    write_picture(target.path, strips, size=size, settings=settings)
    if target.compare is not None:
        _write_comparison(target.compare, lq, strips, size, settings)
    return Done(size, scores, best, notes)


def restored_frame(lq: np.ndarray, scratch: Path, work: Work) -> np.ndarray:
    """Returns a film's frame [h, w, 3] uint8 restored, at 8 bits and at the size of `output_size`."""
    rows, height, _, _ = _best_of(lq, scratch, work, lambda: None, [])
    size = output_size(lq.shape[1::-1], work)
    return in_bits(resized_rows(rows, height, size, slice(0, size[1]), resample=LANCZOS), 8)


def record_of(policy: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what is written into every file: the program, the policy, and those of the settings that were given."""
    try:
        program = f"restore-rl {version('restore-rl')}"
    except PackageNotFoundError:
        program = "restore-rl"
    named = "/".join(Path(policy).parts[-2:])  # the folders above are a person's own business
    given = {name: value for name, value in settings.items() if value not in (None, "", "none", False)}
    return {"program": program, "policy": named, **given}


def _best_of(
    lq: np.ndarray, scratch: Path, work: Work, on_tile: Callable[[], object], notes: list[str]
) -> tuple[Rows, int, list[float], int]:
    """Returns the rows of the best sample with its colours fixed, its height, all scores and the best one's index."""
    best, kept, scores, height = 0, None, [], 0
    faces, said = place_faces(lq, work.faces) if work.faces is not None else ([], [])
    notes += said
    for index in range(work.samples):
        seed = work.seed if index == 0 else derive_seed(work.seed, "sample", index)
        sr = _restored(lq, seed, scratch, work, on_tile, notes)
        if work.faces is not None:
            paste_faces(sr, lq, faces, work.faces, seed=seed)
        rows, height = colour_fixed(sr, lq, work.colour_fix), len(sr)
        if work.score is not None:
            scores.append(work.score(_whole_8_bit(rows, sr.shape), in_bits(lq, 8)))
        if kept is None or (scores and scores[-1] > scores[best]):
            best, kept = index, rows
    return kept, height, scores, best


def _restored(
    lq: np.ndarray, seed: int, scratch: Path, work: Work, on_tile: Callable[[], object], notes: list[str]
) -> np.ndarray:
    """Returns sr [H, W, 3] uint16; tiles are halved until they fit into a GPU's memory."""
    tile_px = work.tile_px
    while True:
        try:
            return restore_levels(
                work.restorer, lq, tile_px=tile_px, seed=seed, device=work.device, scratch=scratch, on_tile=on_tile
            )
        except torch.OutOfMemoryError:
            tile_px = min(tile_px, max(lq.shape[:2])) // 2
            if tile_px < SMALLEST_TILE_PX:
                raise
            torch.cuda.empty_cache()
            notes.append(f"in tiles of {tile_px} px: larger ones did not fit into the GPU's memory")


def _whole_8_bit(rows: Rows, shape: tuple[int, ...]) -> np.ndarray:
    whole = np.empty(shape, np.uint8)
    for top in range(0, shape[0], STRIP_ROWS):
        part = slice(top, min(top + STRIP_ROWS, shape[0]))
        whole[part] = in_bits(rows(part), 8)
    return whole


def _write_comparison(
    path: Path,
    lq: np.ndarray,
    strips: Callable[[slice], tuple[np.ndarray, np.ndarray | None]],
    size: tuple[int, int],
    settings: FileSettings,
) -> None:
    """Writes the input, enlarged by bicubic resizing, and the restoration side by side, without alpha."""

    def pair(part: slice) -> tuple[np.ndarray, None]:
        before = resized(lq, size, rows=part, resample=BICUBIC)
        return np.concatenate([in_bits(before, settings.bits), in_bits(strips(part)[0], settings.bits)], axis=1), None

    shown = FileSettings(
        settings.format, settings.bits, settings.quality, settings.grey, exif=settings.exif, history=settings.history
    )
    write_picture(path, pair, size=(2 * size[0], size[1]), settings=shown)
