"""Measures a reward model: on held-out pictures, restorers and sources, on swaps by published restorers and on real
triples, beside no-reference baselines and full-reference bounds.

python -m reward_model.evaluate configs/eval_rm.yaml checkpoint=… dataset=… triples=folder restorers=[a.pth,b.pth]
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.store.dataset_sample import Sample
from data.store.reader import load_samples
from data.store.sample_maker import SampleMaker, TargetScale
from reward_model.measuring import tables
from reward_model.measuring.baselines import no_reference_baselines, upper_bounds
from reward_model.measuring.detection import MAX_CLEAN_AREA, best_threshold
from reward_model.measuring.model_card import add_tables
from reward_model.measuring.predict import Scorer, model_scorer, predict
from reward_model.measuring.sample_sets import CropConfig, read_triples, swapped_by_restorer
from reward_model.network.checkpoint import locate_checkpoint, verify_checkpoint
from reward_model.network.model import RewardModel
from shared.app.config import load_config, require_range
from shared.app.devices import open_device
from shared.app.entry import run_command
from shared.app.errors import UserError
from shared.files import write_bytes
from shared.runs.lock import FolderLock
from shared.runs.tracking import progress

SPLITS = ("test", "test_restorer", "test_source")


@dataclass(frozen=True)
class EvaluateRmConfig:
    """Which checkpoint is measured on which sets."""

    checkpoint: str = "runs/default/reward_model/checkpoint"  # a folder, shipped:reward_model, or a Hub repository
    # A finished dataset folder: its test splits, its val for thresholds, its map scale.
    dataset: str = "datasets/default"
    # Folder of the tables; empty: <checkpoint's parent>/evaluation, or runs/evaluation of one that is shipped or on the Hub.
    out: str = ""
    stages: tuple[int, ...] = ()  # stages of the reward model; empty: all of them
    splits: tuple[str, ...] = SPLITS  # splits of the dataset that are measured
    # A folder of <scene>_gt, <scene>_<restorer> and, where known, <scene>_lq, and <scene>_mask with <scene>_syn.
    triples: str = ""
    # Published restorers (.pth, .safetensors) or restorer folders that training never met.
    restorers: tuple[str, ...] = ()
    samples_per_set: int = 400  # samples of a set, at most, spread evenly
    crop_px: int = 128  # side of the crops that triples are cut into
    crops_per_picture: int = 4  # crops of a picture, at most
    # 2 or more: scenes without <scene>_lq get gt shrunk so many times; 0: they are measured without lq.
    triples_lq_scale: int = 0
    # Share of clean validation pictures' pixels that the thresholds may call broken.
    max_clean_area: float = MAX_CLEAN_AREA
    bootstrap_rounds: int = 1000  # bootstrap rounds of the confidence intervals
    seed: int = 0  # seed of the regions drawn on triples, and of the bootstrap
    update_card: bool = True  # put the tables into the checkpoint's model card
    device: str = "cpu"  # cpu | cuda

    def __post_init__(self) -> None:
        require_range(
            samples_per_set=(self.samples_per_set, 1, 10**7),
            crop_px=(self.crop_px, 32, 4096),
            crops_per_picture=(self.crops_per_picture, 1, 10**4),
            triples_lq_scale=(self.triples_lq_scale, 0, 16),
            bootstrap_rounds=(self.bootstrap_rounds, 2, 10**5),
            max_clean_area=(self.max_clean_area, 0, 1),
        )


def main(argv: Sequence[str]) -> None:
    config = load_config(EvaluateRmConfig, argv)
    folder = locate_checkpoint(config.checkpoint)
    own = Path(config.checkpoint).is_dir()  # neither shipped nor in the Hub's cache
    out = Path(config.out) if config.out else (folder.parent if own else Path("runs")) / "evaluation"
    methods = open_methods(config, folder)
    sets, notes = open_sets(config)
    with FolderLock.take(out):
        thresholds = choose_thresholds(config, methods)
        results = measure_methods(config, methods, sets, thresholds)
        write_report(config, folder, results, notes, out=out)
    print(f"{out / 'evaluation.md'} and evaluation.json")


def open_methods(config: EvaluateRmConfig, folder: Path) -> dict[str, Scorer]:
    """Returns every stage of the model, the baselines and the bounds as scorers, by the name they have in the table."""
    device = open_device(config.device)
    swaps = SampleMaker(TargetScale.of(_dataset(config)), device=str(device))
    held = verify_checkpoint(folder)
    methods: dict[str, Scorer] = {}
    for stage in config.stages or held:
        model = RewardModel.from_pretrained(folder, stage=stage).to(device)
        methods[f"RM_{stage}"] = model_scorer(model, device)
        if model.takes_lq:
            methods[f"RM_{stage} with lq"] = model_scorer(model, device, reads_lq=True)
    return {**methods, **no_reference_baselines(), **upper_bounds(swaps)}


def open_sets(config: EvaluateRmConfig) -> tuple[dict[str, Sequence[Sample]], list[str]]:
    """Returns {title: samples} and notes on what was skipped or is not there."""
    dataset = _dataset(config)
    swaps = SampleMaker(TargetScale.of(dataset), device=str(open_device(config.device)))
    sets: dict[str, Sequence[Sample]] = {}
    notes: list[str] = []
    for split in config.splits:
        try:
            sets[split] = _spread(load_samples(dataset, split), config.samples_per_set)
        except UserError as error:
            notes.append(str(error))  # a dataset may have been built without a held-out source
    if not sets and not config.triples:
        asked = ", ".join(config.splits) or "no split"
        raise UserError(
            "; ".join([f"nothing to measure on: asked for {asked} of {dataset} and no triples", *notes[:1]])
        )
    for checkpoint in config.restorers:
        if "test" not in sets:
            raise UserError(f"restorers need the split test of {dataset} to restore; it holds none")
        name = Path(checkpoint).stem
        if [Path(other).stem for other in config.restorers].count(name) > 1:
            name = f"{Path(checkpoint).parent.name}/{name}"  # not the whole path: the card travels
        sets[f"never met: {name}"] = swapped_by_restorer(sets["test"], checkpoint, swaps)
    if config.triples:
        crops = CropConfig(config.crop_px, config.crops_per_picture, config.seed, config.triples_lq_scale)
        triples, skipped = read_triples(config.triples, swaps, crops)
        notes += skipped
        for restorer in sorted({sample.restorer for sample in triples}):
            sets[f"real triples: {restorer}"] = [sample for sample in triples if sample.restorer == restorer]
        sets["real triples"] = triples
    return sets, notes


def choose_thresholds(config: EvaluateRmConfig, methods: dict[str, Scorer]) -> dict[str, float]:
    """Returns each method's map threshold: the best F1 on validation among those that spare clean pictures."""
    validation = _spread(load_samples(_dataset(config), "val"), config.samples_per_set)
    found = {}
    for name, scorer in methods.items():
        predictions = predict(validation, scorer)
        if predictions is not None and predictions.defects is not None:
            real = predictions.defects.select(~predictions.is_control)
            found[name] = best_threshold(real, predictions.clean, max_clean_area=config.max_clean_area)
    return found


def measure_methods(
    config: EvaluateRmConfig,
    methods: dict[str, Scorer],
    sets: dict[str, Sequence[Sample]],
    thresholds: dict[str, float],
) -> dict[str, dict[str, tables.MethodRow]]:
    """Returns {set: {method: figures}}."""
    results: dict[str, dict[str, tables.MethodRow]] = {title: {} for title in sets}
    jobs = [(title, name) for title in sets for name in methods]
    for title, name in progress(jobs, title="evaluation", unit="set"):
        predictions = predict(sets[title], methods[name])
        if predictions is None:  # it reads lq, and the set has none
            continue
        results[title][name] = tables.figures(
            predictions, thresholds.get(name), rounds=config.bootstrap_rounds, seed=config.seed
        )
    return results


def write_report(
    config: EvaluateRmConfig,
    folder: Path,
    results: dict[str, dict[str, tables.MethodRow]],
    notes: list[str],
    *,
    out: Path,
) -> None:
    """Writes evaluation.md and evaluation.json, prints the tables, and updates the checkpoint's own card."""
    texts = {title: tables.markdown(rows) for title, rows in results.items()}
    by_area = {f"{title}, by defect area": tables.markdown_by_area(rows) for title, rows in results.items()}
    sections = [f"## {title}\n\n{text}" for title, text in {**texts, **by_area}.items()]
    sections += ["## Notes\n\n" + "\n".join(f"- {note}" for note in notes)] if notes else []
    figures = {title: {name: tables.as_json(row) for name, row in rows.items()} for title, rows in results.items()}
    page = "\n\n".join(["# Reward model", tables.LEGEND, *sections]) + "\n"
    write_bytes(out / "evaluation.md", page.encode())
    write_bytes(out / "evaluation.json", (json.dumps(figures, indent=2) + "\n").encode())
    print("\n\n".join(f"{title}\n{text}" for title, text in texts.items()))
    if config.update_card and Path(config.checkpoint).is_dir():  # neither shipped nor in the Hub's cache
        add_tables(folder, texts, figures)


def _dataset(config: EvaluateRmConfig) -> Path:
    folder = Path(config.dataset)
    load_samples(folder, "val")  # the clearest error when it is missing or unfinished
    return folder


def _spread(samples: Sequence[Sample], count: int) -> Sequence[Sample]:
    kept = min(count, len(samples))
    return [samples[index * len(samples) // kept] for index in range(kept)]


if __name__ == "__main__":
    run_command(main)
