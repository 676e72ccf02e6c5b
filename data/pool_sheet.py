"""Draws a sheet of the same pictures restored by every member of the pool: the artifacts that the dataset will hold.

python -m data.pool_sheet configs/dataset.yaml runs=runs/mine          # writes runs/mine/pool_sr.png, pool_face.png
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from data.degradation.records import Task
from data.store.config import BuildConfig
from data.store.plan import pair_counter
from data.store.rows import RowMaker, to_float
from shared.app.config import load_config
from shared.app.entry import run_command
from shared.seeds import derive_seed
from shared.vision.images import picture_grid, save_image, to_tensor

PICTURES = 6


def main(argv: Sequence[str]) -> None:
    config = load_config(BuildConfig, argv)
    maker = RowMaker(config)
    for task in maker.plan.image_ids["test"]:
        path = Path(config.runs) / f"pool_{task}.png"
        save_image(path, restorer_sheet(maker, task, pictures=PICTURES))
        print(f"{path}: {PICTURES} test pictures through {len(members(maker, task))} restorers")


def members(maker: RowMaker, task: Task) -> list[str]:
    """Returns every restorer that does `task`, the held-out ones last."""
    return [*maker.pool.names(task, held_out=False), *maker.pool.names(task, held_out=True)]


def restorer_sheet(maker: RowMaker, task: Task, *, pictures: int, cell_px: int = 160) -> torch.Tensor:
    """Returns [3, H, W]: a row for each test picture, with lq, gt and every pool member's restoration."""
    names, dataset = members(maker, task), maker.pair_dataset("test", task)
    rows = []
    for number in range(pictures):
        gt, lq = (to_tensor(to_float(levels)) for levels in dataset.levels(pair_counter("test", number))[:2])
        shown = F.interpolate(lq[None], size=gt.shape[-2:], mode="nearest")[0]
        seeds = [derive_seed(maker.config.seed, "sheet", number)]
        restored = [maker.pool.restore(name, task, lq[None], sample_seeds=seeds)[0] for name in names]
        rows.append([shown, gt, *restored])
    return picture_grid(rows, ["lq", "gt", *names], cell_px=cell_px)


if __name__ == "__main__":
    run_command(main)
