"""The model card: what the checkpoint is, how to use it, and every figure that was measured on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from reward_model.network.checkpoint import CARD_HEAD, METRICS_FILE, TRAINING_FILE, read_config
from shared.files import write_bytes
from shared.publishing.card_head import CARD_FILE, card_head, stated_licence

_VALIDATION = ("pixel_auroc", "sr_below_syn", "syn_below_gt", "triplet")


def write_model_card(folder: Path, *, licence: str = "") -> None:
    """Writes README.md from config.json, the training config and metrics.json of a checkpoint folder.

    An empty licence keeps the one that the folder's card states already, if any.
    """
    licence = licence or stated_licence(folder)
    write_bytes(folder / CARD_FILE, card_text(folder, licence=licence).encode())


def card_text(folder: Path, *, licence: str = "") -> str:
    """Returns the card as markdown, with the Hub's yaml header, under the licence that a person has named."""
    config = read_config(folder)
    network, stages = config["network"], sorted(map(int, config["stages"]))
    takes_lq = bool(network.get("takes_lq"))
    metrics = (
        json.loads((folder / METRICS_FILE).read_text(encoding="utf-8")) if (folder / METRICS_FILE).exists() else {}
    )
    training = folder / TRAINING_FILE
    trained_on = OmegaConf.load(training).get("dataset", "") if training.exists() else ""
    sections = [
        card_head(licence=licence, **CARD_HEAD),
        "# Reward model for image restoration",
        "Scores a restored picture (higher is better) and paints where it is broken (0 clean, 1 worst), without a "
        "reference. Trained on region swaps: a clean picture with a restorer's output pasted into a masked region.",
        "```python\nfrom reward_model.network.model import RewardModel\n\n"
        f'model = RewardModel.from_pretrained("this folder or repository", stage={stages[-1]})\n'
        f"output = model(images{', lq' * takes_lq})  # [B, 3, H, W], RGB in [0, 1]"
        + ("; lq, what they were restored from, may be left out" if takes_lq else "")
        + "\noutput.score, output.degradation_map\n```",
        f"Encoder `{network['encoder']}`, decoder `{network['decoder']}`, score head `{network['head']}`. Stages: "
        f"{', '.join(f'RM_{stage}' for stage in stages)}; RM_0 only scores, later ones map ever finer."
        + (f" Trained on `{Path(trained_on).name}`." if trained_on else ""),
    ]
    if "validation" in metrics:
        sections += ["## On validation", _validation_table(metrics["validation"])]
    for title, table in metrics.get("tables", {}).items():
        sections += [f"## {title}", table]
    sections += [
        "## Limits",
        "It knows the restorers, degradations and sizes it was trained on, and carries over to others only as far as "
        "the tables say. A score compares restorations of one picture; between different pictures it says little. "
        "A policy trained long enough against any reward model learns to please it: watch full-reference measures too.",
    ]
    return "\n\n".join(sections) + "\n"


def add_tables(folder: Path, tables: dict[str, str], figures: dict[str, Any]) -> None:
    """Puts an evaluation's tables and figures into metrics.json and writes the card anew."""
    path = folder / METRICS_FILE
    metrics = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    metrics["tables"] = {**metrics.get("tables", {}), **tables}
    metrics["evaluation"] = {**metrics.get("evaluation", {}), **figures}
    write_bytes(path, (json.dumps(metrics, indent=2) + "\n").encode())
    write_model_card(folder)


def _validation_table(figures: dict[str, dict[str, float]]) -> str:
    rows = []
    for stage, of in sorted(figures.items(), key=lambda item: int(item[0])):
        for prefix, title in (("", f"RM_{stage}"), ("lq/", f"RM_{stage} with lq")):
            cells = [f"{of[prefix + name]:.3f}" if prefix + name in of else "–" for name in _VALIDATION]
            if any(prefix + name in of for name in _VALIDATION):
                rows.append(f"| {title} | " + " | ".join(cells) + " |")
    header = "| stage | pixel AUROC | SR < syn | syn < GT | triplet |\n|---|---|---|---|---|"
    return "\n".join([header, *rows])
