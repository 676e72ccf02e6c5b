"""The card of a shipped checkpoint: what it is, what it was measured to do, what it learnt from, how it was made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rl_finetune.evidence.held_out import EVALUATION_FILE
from rl_finetune.shipping.making import Making
from rl_finetune.shipping.manifest import Learnt
from shared.policies.interface import Origin
from shared.publishing.card_head import card_head
from shared.publishing.hub_card import CARD_HEAD, PICTURES_FILE
from shared.restorers.interpolation import BUILT_IN
from shared.restorers.pre_restorer import NONE, OWN, STAGES
from shared.restorers.published import WHEEL, WHEEL_NETWORKS

TITLES = {"sr": "×4 super-resolution", "face": "Face restoration"}


def policy_text(name: str, run: Path, *, licence: str, origin: Origin, making: Making, learnt: Learnt) -> str:
    """Returns the card of a policy as markdown, with the Hub's yaml header."""
    task = making.settings["task"]
    tuned = "reward_model" in making.settings
    how = "tuned with reinforcement learning" if tuned else "supervised"
    sections = [
        card_head(licence=licence, **CARD_HEAD),
        f"# {TITLES[task]} policy, {how}",
        f"{_kind_of(origin)} that {'enlarges 4 times' if task == 'sr' else 'keeps the size'}, in float16.",
        f"```sh\nrestore-rl restore in=old.jpg out=restored policy=shipped:{name}\n```",
        run_sections(run, origin=origin, making=making, learnt=learnt),
    ]
    return "\n\n".join(sections) + "\n"


def run_sections(run: Path, *, origin: Origin, making: Making, learnt: Learnt) -> str:
    """Returns what a card says of the run behind a policy: figures, what it relies on, pictures, making, limits."""
    return "\n\n".join(
        [
            *_measured(run),
            "## Relies on",
            _relies_on(origin, making.settings),
            pictures_text(learnt),
            making_text(making),
            "## Limits",
            "It invents detail: what it shows need not have been there. It knows the degradations of its settings and carries "
            "over to others only as far as the tables say.",
        ]
    )


def pictures_text(learnt: Learnt) -> str:
    """Returns the section on the pictures that the run drew from."""
    lines = ["## Pictures it learnt from", ""]
    if learnt.attributions:
        counts = [f"| {source} | {licence} | {count} |" for source, licence, count in learnt.counts()]
        lines += ["| Source | Licence | Pictures |", "|---|---|---|", *counts, ""]
        lines += [
            f"{len(learnt.attributions)} pictures, each in `{PICTURES_FILE}`; its settings keep some for measuring.",
            "",
        ]
    lines += [f"- {line}" for line in learnt.others]
    return "\n".join(lines).rstrip()


def making_text(making: Making) -> str:
    """Returns the section on how the checkpoint was made."""
    time = "unknown" if making.seconds is None else f"{making.seconds / 60:.0f} min"
    rows = {
        "Settings": "`train_config.yaml`",
        "Code": f"commit {making.commit}",
        "Versions": making.versions,
        "Hardware": making.hardware,
        "Made from, by SHA-256": "; ".join(making.contents) or "not noted",
        "Training time": time,
    }
    return "\n".join(
        ["## Making", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    )


def _measured(run: Path) -> list[str]:
    """Returns the tables of the run's own evaluation, and of the one that was made again, as they were printed."""
    found = []
    ends = (run / "summary.json", run / EVALUATION_FILE)
    for title, files in (
        ("Measured at the end of the run", ends),
        ("Measured again", [run / "eval" / EVALUATION_FILE]),
    ):
        figures = next(
            (
                said
                for path in files
                if path.is_file() and "table" in (said := json.loads(path.read_text(encoding="utf-8")))
            ),
            {},
        )
        if "table" in figures:
            found += [f"## {title}", f"```\n{figures['table']}\n```"]
    return found


def _kind_of(origin: Origin) -> str:
    return (
        "What was trained of a latent-diffusion restorer" if origin.repository else "A small pixel-diffusion restorer"
    )


def _relies_on(origin: Origin, settings: dict[str, Any]) -> str:
    lines = []
    if origin.repository:
        at = f" at {origin.revision}" if origin.revision else ""
        lines.append(f"- the untrained weights: `{origin.repository}`{at}, under the licence that stands there")
    for stage in STAGES:
        where, role = origin.architecture.get(stage, NONE), stage.replace("_", "-")
        if where == OWN:
            lines.append(f"- its own {role}, in `{stage}/`")
        elif where in WHEEL_NETWORKS:
            lines.append(f"- {role}: Real-ESRGAN's `{where}` (BSD-3), from the package `{WHEEL}`")
        elif where not in (NONE, *BUILT_IN):
            lines.append(f"- {role}: `{where}`")
    if "reward_model" in settings:
        lines.append("- in training alone, the base policy and the reward model that are named in its settings")
    return "\n".join(lines) or "Nothing else."
