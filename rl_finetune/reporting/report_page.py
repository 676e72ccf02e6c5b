"""The report as one HTML page with nothing outside it: facts and figures in, the template filled."""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from rl_finetune.evidence.gain import FIGURE_FILE, read_gain
from rl_finetune.evidence.gallery import GRID_FILE
from rl_finetune.reporting.picture_cards import PictureCard, picture_cards, sortable
from rl_finetune.reporting.plots import Plot, curve_plot, family_plot, plane_plot, verdict_of
from rl_finetune.reporting.run_facts import RL_STAGES, StageFacts, missing_stages
from rl_finetune.rewards.objective import OBJECTIVE

# Curves that are drawn where a stage has logged them: first what is maximised, then whether the training is well.
TRAINING = ("reward", "curriculum_stage", "loss", "approx_kl", "gradient_norm", "zero_variance_groups")
CHECKS = (OBJECTIVE, "psnr", "ssim", "lpips_alex", "dists", "gradient_distance", "detail_correlation", "shared_tile")
MOST_CURVES = 12  # of a stage that is not RL
MOST_POINTS = 400  # of a curve: more are not seen


@dataclass(frozen=True)
class TaskEvidence:
    """What is shown of one RL stage."""

    stage: StageFacts
    verdicts: list[str]
    cards: list[PictureCard]
    sort_by: list[str]
    grid: str  # where there are no cards: the run's own grid of pictures, as a data URL
    planes: list[Plot]
    curve_picture: str  # where the curve's values are not there: its picture, as a data URL
    families: Plot | None
    training: list[Plot]
    checks: list[Plot]
    curriculum: list[str]  # stage of the reward model: which iterations


def report_html(run: Path, stages: Sequence[StageFacts]) -> str:
    """Returns the whole page, pictures, figures, style and script included."""
    evidence = [_evidence(stage) for stage in stages if stage.key in RL_STAGES and stage.begun]
    others = [(stage, _curves(stage)) for stage in stages if stage.key not in RL_STAGES and stage.begun]
    return _template().render(
        run=run.name or run.resolve().name,
        stages=stages,
        begun=[stage for stage in stages if stage.begun],
        missing=missing_stages(stages),
        evidence=evidence,
        others=others,
        machines=_machines(stages),
        verdict_of=verdict_of,
        seconds=_seconds,
        memory=_memory,
    )


@cache
def _template() -> Template:
    loader = PackageLoader("rl_finetune.reporting", ".")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html")


def _evidence(stage: StageFacts) -> TaskEvidence:
    found, cards = read_gain(stage.folder), picture_cards(stage)
    planes = (
        [plane_plot(found[0], place, deployed=found[1]) for place in range(len(found[0].standings))] if found else []
    )
    families = stage.summary.get("families")
    return TaskEvidence(
        stage,
        _verdicts(stage),
        cards,
        sortable(cards),
        "" if cards else _png_url(stage.folder / GRID_FILE),
        planes,
        "" if planes else _png_url(stage.folder / FIGURE_FILE),
        family_plot(families) if families else None,
        _named_curves(stage, [(name, name) for name in TRAINING]),
        _named_curves(stage, [(f"check/{name}", f"{name} on validation pictures") for name in CHECKS]),
        _curriculum(stage),
    )


def _verdicts(stage: StageFacts) -> list[str]:
    """Returns what may be said of an RL stage, in a sentence each."""
    if stage.status != "finished":
        return [f"{stage.says}. Verdicts come with the final evaluation."]
    said = []
    if curve := stage.summary.get("curve"):
        said.append(curve["line"])
    if gauge := stage.summary.get("gauge"):
        said.append(f"Gauge for cheating, {gauge}")
    return said or ["Neither the curve nor the gauge was read at the end of this run."]


def _curriculum(stage: StageFacts) -> list[str]:
    """Returns how long each stage of the reward model was trained on, from the log."""
    spans: dict[int, list[int]] = defaultdict(list)
    for record in stage.records:
        if "curriculum_stage" in record:
            spans[int(record["curriculum_stage"])].append(int(record["step"]))
    asked = (stage.config.get("curriculum") or {}).get("stages", [])
    return [
        f"RM_{k}: iterations {min(spans[k])} to {max(spans[k])}" if k in spans else f"RM_{k}: not reached"
        for k in dict.fromkeys([*asked, *spans])
    ]


def _named_curves(stage: StageFacts, wanted: Sequence[tuple[str, str]]) -> list[Plot]:
    unit = "iteration" if stage.key in RL_STAGES else "step"
    plots = []
    for name, title in wanted:
        points = [(record["step"], record[name]) for record in stage.records if name in record]
        if len(points) > 1:
            every = -(-len(points) // MOST_POINTS)
            thinned = points[::every] if (len(points) - 1) % every == 0 else [*points[::every], points[-1]]
            plots.append(curve_plot(title, thinned, unit=unit, steps=name == "curriculum_stage"))
    return plots


def _curves(stage: StageFacts) -> list[Plot]:
    names = dict.fromkeys(name for record in stage.records for name in record)
    wanted = [name for name in names if name != "step" and not name.startswith("seconds")]
    return _named_curves(stage, [(name, name) for name in wanted[:MOST_CURVES]])


def _machines(stages: Sequence[StageFacts]) -> list[tuple[Mapping[str, Any], list[str]]]:
    """Returns what made the stages, each circumstance once, with the stages it made."""
    found: list[tuple[Mapping[str, Any], list[str]]] = []
    for stage in stages:
        for start in stage.starts[-1:]:
            same = {key: start.get(key) for key in ("commit", "versions", "machine", "threads", "processes")}
            known = next((names for made, names in found if made == same), None)
            if known is None:
                found.append((same, [stage.name]))
            else:
                known.append(stage.name)
    return found


def _seconds(value: float | None) -> str:
    if value is None:
        return "not noted"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"


def _memory(peak: Mapping[str, float] | None) -> str:
    if not peak:
        return "not noted"
    return f"{peak['process'] / 1024:.2f} GB" + (f", {peak['gpu'] / 1024:.2f} GB on the GPU" if "gpu" in peak else "")


def _png_url(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}" if path.is_file() else ""
