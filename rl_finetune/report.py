"""Writes one self-contained HTML page of a run: how long each stage took, curves, before/after tables and pictures.

python -m rl_finetune.report runs/default datasets/default
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.app.entry import run_command
from shared.app.errors import UserError
from shared.app.words import read_words
from shared.files import write_bytes
from shared.runs.run_folder import SUMMARY_FILE
from shared.runs.tracking import read_metrics

STAGES = {  # folder → what a person calls it, in the order they run
    "base_sr": "supervised ×4 super-resolution policy",
    "base_face": "supervised face policy",
    "pool/sr": "small super-resolution restorers",
    "pool/face": "small face restorers",
    "dataset": "distortion dataset",
    "reward_model": "reward model",
    "rl_sr": "RL, ×4 super-resolution",
    "rl_face": "RL, faces",
}
CURVES = (
    "reward",
    "approx_kl",
    "gradient_norm",
    "curriculum_stage",
    "check/objective",
    "check/reward",
    "check/psnr",
    "check/ssim",
)


@dataclass(frozen=True)
class ReportConfig:
    """Which run is reported."""

    run: str  # the run's folder; the page goes there
    dataset: str = ""  # the folder of its dataset; empty: the dataset is left out


@dataclass(frozen=True)
class Stage:
    """One finished stage of a run."""

    name: str
    folder: Path
    summary: dict[str, Any]


def main(argv: Sequence[str]) -> None:
    config = read_words(ReportConfig, argv, expected="run=<a run's folder>", bare=("run", "dataset"))
    run = Path(config.run)
    stages = stages_of_run(run, dataset=Path(config.dataset) if config.dataset else None)
    write_bytes(run / "report.html", report_page(run, stages).encode())
    print()
    for stage in stages:
        print(f"{stage.name:42} {stage.summary.get('seconds', float('nan')):7.0f} s")
    for stage in stages:
        if "table" in stage.summary:
            print(f"\n{stage.summary['table']}")
    print(f"\nreport: {run / 'report.html'}")


def stages_of_run(run: Path, *, dataset: Path | None) -> list[Stage]:
    """Returns the stages of a run that are finished. Raises UserError when there is none."""
    if not run.is_dir():
        raise UserError(f"expected a run's folder, but {run} is missing; make one with: make train-rl RUN={run}")
    found = []
    for folder, name in STAGES.items():
        place = dataset if folder == "dataset" else run / folder
        if place is not None and (place / SUMMARY_FILE).exists():
            found.append(Stage(name, place, json.loads((place / SUMMARY_FILE).read_text())))
    if not found:
        raise UserError(f"no stage is finished in {run}; make train-rl RUN={run} runs or resumes them")
    return found


def report_page(run: Path, stages: Sequence[Stage]) -> str:
    """Returns the whole page as HTML, pictures included."""
    body = [f"<h1>{html.escape(run.name)}</h1>", _times(stages)]
    for stage in stages:
        parts = [_notes(stage), _rows(stage), _curves(stage), _pictures(stage)]
        if any(parts):
            body.append(f"<section><h2>{html.escape(stage.name)}</h2>{''.join(parts)}</section>")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>restore-rl: {html.escape(run.name)}</title>'
        f"<style>{_STYLE}</style><body>{''.join(body)}</body></html>\n"
    )


def _times(stages: Sequence[Stage]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(s.name)}</td><td>{s.summary.get('seconds', 0):.0f} s</td></tr>" for s in stages
    )
    return f"<table><tr><th>stage</th><th>time</th></tr>{rows}</table>"


def _notes(stage: Stage) -> str:
    lines = [
        f"<p>Reward <code>{html.escape(asked)}</code> needs weights from the Hub; "
        f"<code>{html.escape(used)}</code> stood in for it.</p>"
        for asked, used in stage.summary.get("replacements", {}).items()
    ]
    lines += [
        f"<p><code>{html.escape(name)}</code> was not measured: {html.escape(why)}.</p>"
        for name, why in stage.summary.get("absent", {}).items()
    ]
    if "curve" in stage.summary:
        lines.append(f"<p><strong>{html.escape(stage.summary['curve']['line'])}</strong></p>")
    if distances := stage.summary.get("kernel_distance"):
        said = ", ".join(f"{name} {d['value']:.4f} ± {d['standard_error']:.4f}" for name, d in distances.items())
        lines.append(f"<p>Kernel distance from the truth's pictures, lower is better: {html.escape(said)}.</p>")
    return "".join(lines)


def _rows(stage: Stage) -> str:
    rows = stage.summary.get("rows")
    if not isinstance(rows, list):
        return ""
    columns = list(rows[0].get("references", {})) if rows else []
    titles = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    head = f"<tr><th></th><th>before</th><th>after</th><th>change ± s.e.</th>{titles}<th></th></tr>"
    cells = "".join(
        f'<tr class="{row["verdict"]}"><td>{html.escape(row["name"])} {row["arrow"]}</td>'
        f"<td>{row['before']:.4f}</td><td>{row['after']:.4f}</td>"
        f"<td>{row['change']['mean']:+.4f} ± {row['change']['standard_error']:.4f}</td>"
        + "".join(f"<td>{row['references'][column]:.4f}</td>" for column in columns)
        + f"<td>{row['verdict']}</td></tr>"
        for row in rows
    )
    seconds = stage.summary.get("seconds_per_picture", (0.0, 0.0))
    return (
        f"<p>{stage.summary.get('pictures', '')} held-out pictures, the same noise before and after; better "
        "and worse by a two-sided paired t-test, p < .05 in the row by itself; "
        f"{seconds[0]:.3f} s per picture before, {seconds[1]:.3f} s after.</p><table>{head}{cells}</table>"
    )


def _curves(stage: Stage) -> str:
    records = read_metrics(stage.folder)
    figures = []
    for name in CURVES:
        points = [(record["step"], record[name]) for record in records if name in record]
        if len(points) > 1:
            figures.append(f"<figure><figcaption>{html.escape(name)}</figcaption>{_polyline(points)}</figure>")
    return f'<div class="curves">{"".join(figures)}</div>' if figures else ""


def _polyline(points: Sequence[tuple[float, float]], *, width: int = 320, height: int = 120) -> str:
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = min(ys), max(ys)
    span_x, span_y = max(xs[-1] - xs[0], 1e-9), max(high - low, 1e-9)
    path = " ".join(f"{(x - xs[0]) / span_x * width:.1f},{height - (y - low) / span_y * height:.1f}" for x, y in points)
    return (
        f'<svg viewBox="-4 -4 {width + 8} {height + 8}" width="{width}" height="{height}">'
        f'<polyline points="{path}" fill="none" stroke="#1b6ca8" stroke-width="1.5"/></svg>'
        f"<small>{low:.4g} … {high:.4g} over {xs[0]:g} … {xs[-1]:g}</small>"
    )


def _pictures(stage: Stage) -> str:
    return "".join(
        f'<img alt="{path.stem}" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'
        for path in sorted(stage.folder.glob("*.png"))
    )


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: .2em .8em; text-align: right }
td:first-child, th:first-child { text-align: left } tr { border-bottom: 1px solid #ddd }
tr.better td:last-child { color: #187a2f } tr.worse td:last-child { color: #b3261e }
img { max-width: 100%; margin: 1em 0 } .curves { display: flex; flex-wrap: wrap; gap: 1.5em }
figure { margin: 0 } figcaption { font-weight: 600 } small { display: block; color: #666 }
"""


if __name__ == "__main__":
    run_command(main)
