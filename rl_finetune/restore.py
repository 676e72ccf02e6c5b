"""Restores a picture, several or a folder of them with a trained policy, at any size.

python -m rl_finetune.restore in=picture.png out=restored
python -m rl_finetune.restore in=photos out=restored policy=runs/default/rl_sr samples=4 color_fix=wavelet format=jpeg

What a file holds is kept: folders, alpha, 16 bits, grey, EXIF. Colours are converted to sRGB. What was done is written
into every picture's metadata. A film (.mp4, .mov) is restored frame by frame, its sound copied.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tqdm import tqdm

from data.degradation.records import SCALES, Task
from rl_finetune.restoring.colours import ColourFix
from rl_finetune.restoring.one_picture import Score, Work, output_size, record_of, restore_picture
from rl_finetune.restoring.outputs import Overwrite, Target, header_size, plan_outputs
from rl_finetune.restoring.pasted_faces import FaceWork
from rl_finetune.restoring.tiles import SMALLEST_TILE_PX, grid_of, require_fit, tile_count
from rl_finetune.restoring.video import film_target, is_film, read_film, restore_film
from shared.app.config import require_range
from shared.app.devices import device_words, open_device
from shared.app.entry import run_command
from shared.app.errors import UserError
from shared.app.shipped import DEFAULT_RUN, choose_checkpoint
from shared.app.terminal import shown
from shared.app.words import read_words
from shared.pictures.inputs import find_inputs
from shared.pictures.reading import UnreadableImage, read_picture
from shared.pictures.writing import Format, TooLarge, require_side
from shared.policies.load import load_restorer
from shared.restorers.protocol import RestorerSettings, on_device
from shared.runs.tracking import progress
from shared.vision.face_detector import open_face_detector

if TYPE_CHECKING:
    import torch
_RECORDED = ("steps", "eta", "samples", "reward_model", "scale", "color_fix", "tile_px", "faces", "background")


@dataclass(frozen=True)
class RestoreConfig:
    """What is restored with what, and how it is written."""

    inputs: str  # `in`: a picture, a folder, or several of them with commas between; or one film, .mp4 or .mov
    out: str = "restored"  # folder of the restored pictures, in which folder trees are kept; or a file for one picture
    suffix: str = ""  # of the restored pictures' names, such as _restored
    format: Format | None = None  # of the files; null: png, or what out= ends in; JPEG puts what has alpha on white
    bits: int | None = None  # of a PNG's channels, 8 or 16; null: as many as the input has
    quality: int = 95  # of JPEG and WebP; WebP at 100 is lossless
    overwrite: Overwrite = "refuse"  # of outputs that exist already; inputs are never written over
    compare: bool = False  # writes <name>_compare as well: the input, enlarged, and the restoration side by side
    # An RL run, a base policy, a published feed-forward checkpoint, or shipped:rl_sr; empty: that of `run`.
    policy: str = ""
    run: str = DEFAULT_RUN  # the run whose tuned policy is used; where the default run has none, a shipped one is
    task: Task = "sr"  # what that tuned policy, or a built-in restorer, is for: sr (×4) | face (same size)
    steps: int | None = None  # of the sampler; null: as many as the policy was saved with
    eta: float | None = None  # DDIM stochasticity, 0 to 1; null: what the policy was saved with
    samples: int = 1  # restorations of each picture, of which the reward model picks the best
    reward_model: str = ""  # that picks among samples: a folder or a Hub repository; empty: the run's own
    scale: float | None = None  # of the result against the input, by resizing (Lanczos); null: the policy's own
    # Gives a restoration the up-sampled input's colours: its coarse wavelet levels, or its mean and spread.
    color_fix: ColourFix = "none"
    # Finds the faces of a photograph and restores each by a face policy; needs the extra `faces`.
    faces: bool = False
    # What is around the faces: by the policy, or as it is, at its own size.
    background: Literal["restored", "kept"] = "restored"
    face_policy: str = ""  # that restores them; empty: the tuned face policy of `run`, or a shipped one
    face_px: int = 128  # smaller aligned faces are enlarged to this side: the shipped policies have learnt from such
    tile_px: int = 512  # side of lq tiles; larger ones need more memory
    seed: int = 0  # of the sampler's noise
    device: str = "auto"  # auto (the GPU where there is one) | cpu | cuda | cuda:1 | mps

    def __post_init__(self) -> None:
        require_range(tile_px=(self.tile_px, SMALLEST_TILE_PX, 1_000_000), samples=(self.samples, 1, 1000))
        require_range(quality=(self.quality, 1, 100))
        if self.steps is not None:
            require_range(steps=(self.steps, 1, 1000))
        if self.eta is not None:
            require_range(eta=(self.eta, 0, 1))
        require_range(face_px=(self.face_px, 32, 1024))
        if self.background == "kept" and not self.faces:
            raise ValueError("background=kept leaves nothing to do without faces=true")
        if self.faces and self.task == "face":
            raise ValueError("faces=true is for whole photographs: leave task=face out, which is for one aligned face")
        if self.scale is not None:
            require_range(scale=(self.scale, 0.05, 16))
        if is_film(self.inputs):
            refused = {"format": self.format, "bits": self.bits, "compare": self.compare, "samples": self.samples > 1}
            if given := [name for name, value in refused.items() if value]:
                raise ValueError(f"{given[0]} is for pictures: leave it out to restore the film {self.inputs}")
        if "/" in self.suffix:
            raise ValueError(f"suffix is part of a file's name and holds no /, got {self.suffix}")
        if self.bits not in (None, 8, 16):
            raise ValueError(f"bits must be 8 or 16, got {self.bits}")
        if self.bits == 16 and self.format in ("jpeg", "webp"):
            raise ValueError(f"bits=16 needs format=png, got {self.format}")


def main(argv: Sequence[str]) -> None:
    config = read_words(RestoreConfig, argv, expected="in=<picture or folder>")
    if is_film(config.inputs):
        restore_one_film(config)
        return
    inputs = find_inputs(config.inputs, apart_from=Path(config.out))
    plan = plan_outputs(
        inputs,
        config.out,
        form=config.format,
        suffix=config.suffix,
        overwrite=config.overwrite,
        compare=config.compare,
    )
    for line in [*inputs.left_out, *plan.left_out]:
        print(line)
    if not plan.targets:
        return
    work = open_work(config, plan.format)
    skipped = restore_all(plan.targets, work)
    for line in skipped:
        print(f"skipped {line}")
    if len(skipped) == len(plan.targets):
        raise UserError(f"none of {len(plan.targets)} pictures could be restored: {skipped[0]}")


def open_work(config: RestoreConfig, form: Format) -> Work:
    """Returns what is done to every picture. Raises UserError where a policy, a reward model or an extra is missing."""
    device = open_device(config.device)
    faces = open_faces(config, device) if config.faces else None
    policy = "bicubic" if config.background == "kept" else config.policy or policy_of_run(config.run, config.task)
    scale = 1 if config.background == "kept" else SCALES[config.task]
    settings = RestorerSettings(scale=scale, steps=config.steps, eta=config.eta)
    restorer = on_device(load_restorer(policy, settings), device)
    score = open_score(config, device) if config.samples > 1 or config.reward_model else None
    print(f"device: {device_words(device)}", flush=True)
    return Work(
        restorer=restorer,
        device=device,
        seed=config.seed,
        tile_px=config.tile_px,
        samples=config.samples,
        score=score,
        colour_fix=config.color_fix,
        scale=config.scale,
        format=form,
        bits=config.bits,
        quality=config.quality,
        faces=faces,
        record=record_of(policy, {name: getattr(config, name) for name in _RECORDED}),
    )


def restore_one_film(config: RestoreConfig) -> None:
    """Restores a film frame by frame and prints a line for it."""
    path = film_target(Path(config.inputs), config.out, suffix=config.suffix, overwrite=config.overwrite)
    if path is None:
        print("skipped 1 film whose output exists already")
        return
    film = read_film(Path(config.inputs))
    work, began = open_work(config, "png"), time.perf_counter()
    with progress(None, title="restoring", unit="frame", total=film.frames) as bar:
        frames = restore_film(film, path, work, bar.update)
    sound = "its sound copied" if film.has_sound else "without sound"
    seconds = time.perf_counter() - began
    print(
        f"{shown(film.path)} {frames} frames at {film.fps:g} a second in {seconds:.1f} s: {shown(path)} ({sound}, 8 bits)"
    )


def restore_all(targets: Sequence[Target], work: Work) -> list[str]:
    """Restores every picture and prints a line for each; returns a line for each that could not be."""
    skipped, tiles, grid = [], {}, grid_of(work.restorer)
    for target in targets:
        try:
            size = header_size(target.source)
            width, height = output_size(size, work)
            require_side(target.compare or target.path, (width * (2 if target.compare else 1), height), work.format)
            require_fit(size, work.restorer.scale, target.path.parent, copies=min(2, work.samples))
            tiles[target] = tile_count(size, work.tile_px, grid) * work.samples
        except (UnreadableImage, UserError) as error:
            skipped.append(str(error))
    # In a log file the bar's own line would come again with every picture's.
    say = tqdm.write if sys.stderr.isatty() else partial(print, flush=True)
    with progress(None, title="restoring", unit="tile", total=sum(tiles.values())) as bar:
        for target in tiles:
            began = time.perf_counter()
            try:
                picture = read_picture(target.source)
                done = restore_picture(picture, target, work, bar.update)
            except (UnreadableImage, TooLarge) as error:
                skipped.append(str(error))
                continue
            height, width = picture.levels.shape[:2]
            size, seconds = f"{width}×{height} → {done.size[0]}×{done.size[1]}", time.perf_counter() - began
            notes = "; ".join([*picture.notes, *done.notes])
            scores = ", ".join(f"{value:.4f}" + "*" * (i == done.best) for i, value in enumerate(done.scores))
            say(
                f"{shown(target.source)} {size} in {seconds:.1f} s: {shown(target.path)}"
                + (f"; scores {scores}" if scores else "")
                + (f" ({notes})" if notes else "")
            )
    return skipped


def open_faces(config: RestoreConfig, device: torch.device) -> FaceWork:
    """Returns what finds and restores faces. Raises UserError where the extra or the policy is missing."""
    find = open_face_detector()
    where = config.face_policy or policy_of_run(config.run, "face")
    restorer = load_restorer(where, RestorerSettings(scale=1, steps=config.steps, eta=config.eta))
    if restorer.scale != 1:
        raise UserError(
            f"face_policy={where} enlarges by {restorer.scale}; faces need a policy of the same size in and out"
        )
    return FaceWork(find, on_device(restorer, device), device, config.face_px)


def open_score(config: RestoreConfig, device: torch.device) -> Score:
    """Returns what scores restorations with the reward model. Raises UserError where there is none."""
    from reward_model.network.checkpoint import locate_checkpoint  # the reward model's encoders take seconds to import
    from reward_model.network.model import RewardModel
    from reward_model.network.tiling import score_picture

    advice = "name one with reward_model=, train one with make train-rm, or take samples=1"
    where = config.reward_model
    if not where:
        choice = choose_checkpoint(config.run, "reward_model/checkpoint", "reward_model", advice=advice)
        print(f"reward model: {choice.says}")
        where = choice.where
    model = RewardModel.from_pretrained(locate_checkpoint(where)).to(device).eval()
    return lambda sr, lq: score_picture(model, sr, lq=lq if model.takes_lq else None).score


def policy_of_run(run: str, task: Task) -> str:
    """Returns the run's tuned policy, or a shipped one where the default run has none, and says which."""
    advice = f"train one with make train-rl TASK={task}, or name one with policy= (POLICY= of make)"
    choice = choose_checkpoint(run, f"rl_{task}", f"rl_{task}", f"base_{task}", advice=advice)
    print(f"policy: {choice.says}")
    return choice.where


if __name__ == "__main__":
    run_command(main)
