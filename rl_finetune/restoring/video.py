"""A film restored frame by frame: every frame by the same path as a picture and with the same noise, its sound copied."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rl_finetune.restoring.one_picture import Work, output_size, restored_frame
from rl_finetune.restoring.outputs import Overwrite
from shared.app.errors import UserError
from shared.files import require_writable, written_whole

CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov"}  # ending → ffmpeg's name of the container
_CRF = "16"  # x264's constant rate factor: 18 is called visually lossless
_FINEST_GRID = 2  # pixels that share a colour in yuv420p, the form that every player shows


@dataclass(frozen=True)
class Film:
    """What a film's header says of it."""

    path: Path
    size: tuple[int, int]  # width, height, as shown: turned upright
    fps: float
    frames: int  # as its length and rate promise
    has_sound: bool


def is_film(inputs: str) -> bool:
    """Whether `in` names one file that ends as a film."""
    return Path(inputs).suffix.lower() in CONTAINERS and Path(inputs).is_file()


def open_ffmpeg() -> Any:
    """Returns the module imageio_ffmpeg. Raises UserError where the extra is not installed."""
    try:
        import imageio_ffmpeg
    except ImportError:
        raise UserError("restoring a film needs the extra video: pip install 'restore-rl[video]'") from None
    return imageio_ffmpeg


def film_target(source: Path, out: str, *, suffix: str, overwrite: Overwrite) -> Path | None:
    """Returns where the restored film goes: the file `out`, or one of the source's name in that folder.

    None where it is there and is to be skipped. Raises UserError where it may not be written.
    """
    where = Path(out)
    named = where.suffix.lower() in CONTAINERS and not where.is_dir()
    path = where if named else where / f"{source.stem}{suffix}{source.suffix.lower()}"
    if not named and where.exists() and not where.is_dir():
        raise UserError(f"out={out} is a file; name a folder, or a file ending in {' or '.join(CONTAINERS)}")
    require_writable(path.parent)
    if path.exists() and os.path.samefile(path, source):
        raise UserError(f"{path} would be written over an input; name another out=, or a suffix=")
    if os.path.lexists(path) and overwrite != "replace":
        if overwrite == "skip":
            return None
        raise UserError(
            f"{path} exists already: name another out= or suffix=, or take overwrite=skip or overwrite=replace"
        )
    return path


def read_film(path: Path) -> Film:
    """Returns what a film's header says. Raises UserError for a file that is none, or is damaged."""
    with closing(_frames(path, [])) as frames:
        told = next(frames)
    fps, seconds = float(told["fps"]), float(told["duration"])
    if fps <= 0:
        raise UserError(f"{path} does not say how many frames it has a second")
    return Film(path, told["size"], fps, math.ceil(fps * seconds), bool(told.get("audio_codec")))


def restore_film(film: Film, path: Path, work: Work, on_frame: Callable[[], object]) -> int:
    """Restores every frame with the same seed, copies the sound, writes the film whole or not at all; returns how many
    frames it has. Sides are made even by leaving out a last row or column, as yuv420p needs.
    """
    width, height = film.size
    size = tuple(side // _FINEST_GRID * _FINEST_GRID for side in output_size(film.size, work))
    history = json.dumps({**work.record, "input": film.path.name, "seed": work.seed})
    sound = {"audio_path": str(film.path), "audio_codec": "copy"} if film.has_sound else {}
    container = CONTAINERS[path.suffix.lower()]
    count = 0
    with written_whole(path) as temporary:
        writer = open_ffmpeg().write_frames(
            str(temporary),
            size,
            fps=film.fps,
            codec="libx264",
            quality=None,
            macro_block_size=1,
            ffmpeg_log_level="error",
            output_params=["-crf", _CRF, "-f", container, "-metadata", f"comment={history}"],
            **sound,
        )
        with closing(writer), closing(_frames(film.path, ["-r", f"{film.fps:g}"])) as frames:
            writer.send(None)
            next(frames)  # the header again
            for frame in frames:
                lq = np.frombuffer(frame, np.uint8).reshape(height, width, 3)
                sr = restored_frame(lq, path.parent, work)[: size[1], : size[0]]
                try:
                    writer.send(np.ascontiguousarray(sr).tobytes())
                except OSError as error:
                    raise UserError(f"{path} could not be written: {_last_line(error)}") from None
                count += 1
                on_frame()
        if not count or not temporary.exists() or not temporary.stat().st_size:
            raise UserError(f"{film.path} holds no frame that could be read")
    return count


def _frames(path: Path, options: list[str]) -> Iterator[Any]:
    """Yields the header, then every frame's bytes. Raises UserError as `read_film` does."""
    reader = open_ffmpeg().read_frames(str(path), output_params=options)
    try:
        yield from reader
    except (OSError, RuntimeError, IndexError) as error:
        raise UserError(f"{path}: no film that can be read ({_last_line(error)})") from None
    finally:
        reader.close()


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
