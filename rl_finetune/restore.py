"""Restores a picture or a folder of them with a trained or shipped policy, at any size.

python -m rl_finetune.restore in=picture.png out=restored
python -m rl_finetune.restore in=folder out=restored task=face policy=runs/mine/rl_face
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from data.degradation.records import Task
from shared.app.config import require_range
from shared.app.devices import open_device
from shared.app.entry import run_command
from shared.app.errors import UserError
from shared.app.shipped import DEFAULT_RUN, choose_checkpoint
from shared.app.words import read_words
from shared.restorers.load import load_restorer
from shared.restorers.protocol import Restorer, on_device
from shared.seeds import derive_seed
from shared.vision.images import UnreadableImage, read_image, save_image, to_tensor
from shared.vision.inputs import input_pictures, output_names

# Beyond the reach of the network: what lies further away cannot change a pixel by more than rounding.
OVERLAP_PX = 32


@dataclass(frozen=True)
class RestoreConfig:
    """What is restored with what."""

    inputs: str  # `in`: a picture, a folder, or several of them with commas between
    out: str = "restored"  # folder of the restored pictures
    # An RL run, a base policy, a published feed-forward checkpoint, or shipped:rl_sr; empty: that of `run`.
    policy: str = ""
    run: str = DEFAULT_RUN  # the run whose tuned policy is used; where the default run has none, a shipped one is
    task: Task = "sr"  # the task of that tuned policy: sr (×4) | face (same size)
    steps: int | None = None  # the policy's own sampler by default
    eta: float | None = None  # likewise; DDIM stochasticity, 0 to 1
    tile_px: int = 512  # side of lq tiles; larger needs more memory
    seed: int = 0  # of the sampler's noise
    device: str = "cpu"  # cpu | cuda

    def __post_init__(self) -> None:
        require_range(tile_px=(self.tile_px, 2 * OVERLAP_PX + 16, 1_000_000))


def main(argv: Sequence[str]) -> None:
    config = read_words(RestoreConfig, argv, expected="in=<picture or folder>")
    paths = input_pictures(config.inputs)
    device = open_device(config.device)
    policy = config.policy or policy_of_run(config.run, config.task)
    restorer = on_device(load_restorer(policy, steps=config.steps, eta=config.eta), device)
    names, skipped, done = output_names(paths), [], 0
    for path in paths:
        try:
            lq = to_tensor(read_image(path))[None]
        except UnreadableImage as error:
            skipped.append(str(error))
            continue
        began = time.perf_counter()
        sr = restore_tiled(restorer, lq.to(device), tile_px=config.tile_px, seed=config.seed)
        target = Path(config.out) / f"{names[path]}.png"
        save_image(target, sr[0].cpu())
        done += 1
        size = f"{lq.shape[-1]}×{lq.shape[-2]} → {sr.shape[-1]}×{sr.shape[-2]}"
        print(f"{path} {size} in {time.perf_counter() - began:.1f} s: {target}", flush=True)
    for line in skipped:
        print(f"skipped {line}")
    if not done:
        raise UserError(f"none of {len(paths)} pictures could be read: {skipped[0]}")


def policy_of_run(run: str, task: Task) -> str:
    """Returns the run's tuned policy, or a shipped one where the default run has none, and says which."""
    advice = f"train one with make train-rl TASK={task}, or name one with policy= (POLICY= of make)"
    choice = choose_checkpoint(run, f"rl_{task}", f"rl_{task}", f"base_{task}", advice=advice)
    print(f"policy: {choice.says}")
    return choice.where


def restore_tiled(restorer: Restorer, lq: torch.Tensor, *, tile_px: int, seed: int) -> torch.Tensor:
    """Returns sr [1, 3, scale·h, scale·w] of lq [1, 3, h, w]; large pictures tile by tile, blended where they overlap.

    Tiles draw noise of their own, so the overlap is a linear cross-fade between two plausible restorations.
    """
    height, width = lq.shape[-2:]
    if max(height, width) <= tile_px:
        return restorer.restore(lq, sample_seeds=[derive_seed(seed, "restore", 0, 0)])
    scale = restorer.scale
    total = lq.new_zeros(1, 3, height * scale, width * scale)
    weight = lq.new_zeros(1, 1, height * scale, width * scale)
    for top in _starts(height, tile_px):
        for left in _starts(width, tile_px):
            tile = lq[..., top : top + tile_px, left : left + tile_px]
            sr = restorer.restore(tile, sample_seeds=[derive_seed(seed, "restore", top, left)])
            fade = (_fade(sr.shape[-2], scale)[:, None] * _fade(sr.shape[-1], scale)[None, :]).to(sr.device)
            place = (
                ...,
                slice(top * scale, top * scale + sr.shape[-2]),
                slice(left * scale, left * scale + sr.shape[-1]),
            )
            total[place] += sr * fade
            weight[place] += fade
    return total / weight


def _starts(length: int, tile_px: int) -> list[int]:
    if length <= tile_px:
        return [0]
    return [*range(0, length - tile_px, tile_px - OVERLAP_PX), length - tile_px]


def _fade(length: int, scale: int) -> torch.Tensor:
    """Returns weights [length] that rise and fall linearly over the overlap."""
    ramp = (torch.arange(length) + 1.0) / (OVERLAP_PX * scale)
    return torch.minimum(ramp, ramp.flip(0)).clamp(max=1.0)


if __name__ == "__main__":
    run_command(main)
