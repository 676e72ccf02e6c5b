"""Writes one self-contained HTML page of a run: what was run, the evidence, held-out pictures, curves, time and memory.

python -m rl_finetune.report runs/default datasets/default
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rl_finetune.reporting.report_page import report_html
from rl_finetune.reporting.run_facts import read_stages
from shared.app.entry import run_command
from shared.app.words import read_words
from shared.files import write_bytes

REPORT_FILE = "report.html"


@dataclass(frozen=True)
class ReportConfig:
    """Which run is reported."""

    run: str  # the run's folder; the page goes there
    dataset: str = ""  # the folder of its dataset; empty: the dataset is left out


def main(argv: Sequence[str]) -> None:
    config = read_words(ReportConfig, argv, expected="run=<a run's folder>", bare=("run", "dataset"))
    run = Path(config.run)
    stages = read_stages(run, dataset=Path(config.dataset) if config.dataset else None)
    write_bytes(run / REPORT_FILE, report_html(run, stages).encode())
    print()
    for stage in stages:
        seconds = f"{stage.summary.get('seconds', float('nan')):7.0f} s" if stage.status == "finished" else stage.says
        print(f"{stage.name:42} {seconds}")
    for stage in stages:
        if "table" in stage.summary:
            print(f"\n{stage.summary['table']}")
    print(f"\nreport: {run / REPORT_FILE}")


if __name__ == "__main__":
    run_command(main)
