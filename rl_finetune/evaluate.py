"""Measures a tuned policy again, against the one it came from: more held-out pictures, another seed, other steps.

python -m rl_finetune.evaluate run=runs/default/rl_sr images=100 seed=1 steps=20
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from data.degradation.pairs import SUBJECTS
from data.degradation.records import SCALES
from data.sources.open_source import picture_lists
from data.sources.splits import Split
from rl_finetune.loop.config import TrainRlConfig
from rl_finetune.loop.final_evaluation import evaluate_restorers
from rl_finetune.loop.session import base_restorer, open_judge, panel_of, scales_of
from shared.app.config import from_dict, load_config
from shared.app.devices import open_device
from shared.app.entry import run_command
from shared.app.errors import UserError
from shared.app.words import read_words
from shared.diffusion.sampler import SamplerSpec
from shared.policies.load import load_restorer
from shared.policies.policy_restorer import PolicyRestorer
from shared.restorers.protocol import Restorer, RestorerSettings, on_device
from shared.runs.lock import FolderLock
from shared.runs.run_folder import CONFIG_FILE, RunFolder
from shared.runs.same_settings import where_it_is_now


@dataclass(frozen=True)
class EvaluateRlConfig:
    """What is measured against what; whatever is not said is as it was at the end of the run."""

    run: str  # an RL run's folder: its pictures, degradation and reward
    policy: str | None = None  # what is measured: the run's own policy, or any other restorer
    # What it is measured against: the policy that RL started from, or any other restorer: bicubic, a folder, a checkpoint
    # file, a diffusers pipeline hf:owner/name.
    against: str | None = None
    out: str | None = None  # folder of the tables and pictures; run/eval by default
    pictures: str | None = None  # other pictures than the run's: a folder | hf:owner/dataset; nine tenths are `test`
    split: Split = "test"  # which split of the pictures is measured
    images: int | None = None  # how many pictures
    crop_px: int | None = None  # side of the measured pictures' gt
    steps: int | None = None  # network passes; if changed, every step is stochastic, not only those that RL trained
    eta: float | None = None  # DDIM stochasticity, 0 to 1
    seed: int | None = None  # seed of crops, degradation and the sampler's noise; the split stays
    # Where pictures of the run came, went or changed since, and so may those that are kept for testing: stop | go_on.
    if_changed: Literal["stop", "go_on"] = "stop"
    device: str = "cpu"  # cpu | cuda


def main(argv: Sequence[str]) -> None:
    config = read_words(EvaluateRlConfig, argv, expected="run=<an RL run's folder>")
    try:
        rl, sampler = settings_of(config)
    except ValueError as error:
        raise UserError(str(error)) from None
    torch.set_num_threads(rl.cpu_threads)
    device = open_device(config.device)
    if config.pictures is None:
        require_same_pictures(config, rl)
    folder = Path(config.out or f"{config.run}/eval")
    with FolderLock.take(folder):
        figures = measure_again(config, rl, sampler, device, folder)
    print(f"{figures['table']}\npictures and values in {folder}")


def measure_again(
    config: EvaluateRlConfig, rl: TrainRlConfig, sampler: SamplerSpec, device: torch.device, folder: Path
) -> dict[str, Any]:
    """Returns the figures of both restorers, and writes tables and pictures into the folder."""
    before, after = (
        open_restorer(where, sampler, scale=SCALES[rl.task], device=device)
        for where in (config.against or rl.base, config.policy or config.run)
    )
    judge = open_judge(rl, device)
    # The unit of the objective is the run's own, whatever pictures are measured on.
    panel = panel_of(rl, judge, scales_of(rl, judge, base_restorer(rl, rl.sampler, device)))
    base = base_restorer(rl, sampler, device)
    rl = on_pictures(rl, config.pictures)
    return evaluate_restorers(rl, before, after, judge, panel, base=base, folder=folder, split=config.split)


def require_same_pictures(config: EvaluateRlConfig, rl: TrainRlConfig) -> None:
    """Raises UserError unless the run's pictures are those it was trained on, or others were accepted."""
    now = picture_lists(rl.source, SUBJECTS[rl.task], min_side_px=rl.pairs.crop_px)
    told = dataclasses.replace(rl, source=dataclasses.replace(rl.source, if_changed=config.if_changed))
    RunFolder(Path(config.run)).require_same_pictures(now, told, told="if_changed=go_on")


def settings_of(config: EvaluateRlConfig) -> tuple[TrainRlConfig, SamplerSpec]:
    """Returns the run's settings and sampler with what was asked for in their place.

    Raises UserError when there is no run, ValueError for a value out of range.
    """
    path = Path(config.run) / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"expected an RL run's folder, but {config.run} has no {CONFIG_FILE}; make train-rl makes one")
    written = load_config(TrainRlConfig, [str(path)])
    rl = from_dict(TrainRlConfig, where_it_is_now(dataclasses.asdict(written), Path(config.run), written.out))
    asked = {"eval_images": config.images, "eval_crop_px": config.crop_px, "seed": config.seed}
    sampler = rl.deployed
    if config.steps is not None or config.eta is not None:
        eta = sampler.eta if config.eta is None else config.eta
        steps = sampler.steps if config.steps is None else config.steps
        sampler = SamplerSpec(steps=steps, eta=eta, noise=sampler.noise)
    return dataclasses.replace(rl, **{name: value for name, value in asked.items() if value is not None}), sampler


def on_pictures(rl: TrainRlConfig, pictures: str | None) -> TrainRlConfig:
    """Returns the run's settings with other pictures; none of them was trained on, so nearly all may be measured on."""
    if pictures is None:
        return rl
    source = dataclasses.replace(rl.source, images=pictures, faces=pictures, val_fraction=0.05, test_fraction=0.9)
    return dataclasses.replace(rl, source=source)


def open_restorer(where: str, sampler: SamplerSpec, *, scale: int, device: torch.device) -> Restorer:
    """Returns the restorer in `where`, whatever `load_restorer` reads.

    A diffusion policy restores with `sampler`, whatever it was saved with. Raises UserError for one of another scale.
    """
    restorer = on_device(load_restorer(where, RestorerSettings(scale=scale)), device)
    if restorer.scale != scale:
        raise UserError(f"{where} enlarges {restorer.scale} times, but this run's task {scale} times; name another")
    return PolicyRestorer(restorer.policy, sampler) if isinstance(restorer, PolicyRestorer) else restorer


if __name__ == "__main__":
    run_command(main)
