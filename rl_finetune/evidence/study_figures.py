"""What a study says: gains over the base policy by seed, and how soon one arm reaches another's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rl_finetune.rewards.objective import OBJECTIVE, RewardScale, objective
from shared.app.errors import UserError
from shared.runs.tracking import read_metrics
from shared.vision.metrics import METRICS, PairedDifference, paired_difference

EVALUATION_FILE = "evaluation.json"
CHECK = "check/"


@dataclass(frozen=True)
class RunFigures:
    """One run: what the checks during training and the final evaluation found."""

    iterations: tuple[int, ...]
    curve: tuple[float, ...]  # gain over iteration 0 on the validation pictures, one value per check
    gains: Mapping[str, float]  # measure → mean change from the base policy on the held-out pictures


@dataclass(frozen=True)
class ArmFigures:
    """One arm over S seeds."""

    iterations: tuple[int, ...]
    curves: np.ndarray  # [S, checks]
    gains: Mapping[str, np.ndarray]  # measure → [S]

    @classmethod
    def of(cls, runs: Sequence[RunFigures]) -> ArmFigures:
        """Returns the runs of one arm together. Raises UserError when they were not checked at the same iterations."""
        if len({run.iterations for run in runs}) > 1:
            raise UserError("runs of one arm were checked at different iterations; give every seed the same settings")
        names = runs[0].gains
        return cls(
            iterations=runs[0].iterations,
            curves=np.array([run.curve for run in runs]),
            gains={name: np.array([run.gains[name] for run in runs]) for name in names},
        )

    def mean_curve(self) -> np.ndarray:
        """Returns [checks]: the mean over seeds."""
        return self.curves.mean(axis=0)

    def curve_error(self) -> np.ndarray:
        """Returns [checks]: the standard error of that mean."""
        return self.curves.std(axis=0, ddof=1) / np.sqrt(len(self.curves))


@dataclass(frozen=True)
class ObjectivePart:
    """One reward's say in what `normalise_first` maximises."""

    weight: float  # the reward's share of the objective
    spread: float  # the reward's standard deviation within the base policy's groups


def read_run(folder: Path, *, curve: str, parts: Mapping[str, ObjectivePart]) -> RunFigures:
    """Returns a finished run's figures; with `parts` the measure `objective` is one of them, for the curve as well.

    Raises UserError for a run without checks or evaluation.
    """
    of_objective = curve == OBJECTIVE and bool(parts)
    names = list(parts) if of_objective else [curve]
    # By step: a run that was stopped before its first checkpoint has checked its start twice.
    wanted = {CHECK + name for name in names}
    by_step = {record["step"]: record for record in read_metrics(folder) if wanted <= record.keys()}
    records = [by_step[step] for step in sorted(by_step)]
    if len(records) < 2:
        raise UserError(
            f"{folder} has no curve of {CHECK}{f' and {CHECK}'.join(names)}: name measures that the checks have, and set "
            "check_every below its iterations"
        )
    path = folder / EVALUATION_FILE
    if not path.is_file():
        raise UserError(f"{folder} has no {EVALUATION_FILE}: the run is not finished")
    found = json.loads(path.read_text(encoding="utf-8"))
    before, after = found["before"], found["after"]
    missing = [name for name in parts if name not in before]
    if missing:
        raise UserError(
            f"objective names {', '.join(missing)}, which {folder} did not measure: every arm must reward it"
        )
    weights = {name: part.weight for name, part in parts.items()}
    scales = {name: RewardScale(0.0, part.spread) for name, part in parts.items()}  # of gains, which have no mean
    gains = {name: float(np.mean(after[name]) - np.mean(before[name])) for name in before}
    curves = [{name: record[CHECK + name] - records[0][CHECK + name] for name in names} for record in records]
    return RunFigures(
        iterations=tuple(int(record["step"]) for record in records),
        curve=tuple(objective(c, weights, scales) if of_objective else c[curve] for c in curves),
        gains={**gains, OBJECTIVE: objective(gains, weights, scales)} if parts else gains,
    )


def difference(arm: ArmFigures, reference: ArmFigures, measure: str) -> PairedDifference:
    """Returns the arm's gain minus the reference's, paired by seed: both saw the same pictures and the same noise."""
    return paired_difference(reference.gains[measure].tolist(), arm.gains[measure].tolist())


def iterations_to_reach(arm: ArmFigures, goal: float) -> float:
    """Returns the iteration from which on the arm's mean curve stays at `goal` or above, between checks linearly.

    NaN if it never does, or if the goal is not above 0, where every curve begins. A later dip below the goal resets it: a
    first crossing may be luck.
    """
    xs, ys = np.array(arm.iterations, dtype=float), arm.mean_curve()
    below = np.flatnonzero(ys < goal)
    if goal <= 0.0 or below[-1] == len(ys) - 1:
        return float("nan")
    at = int(below[-1])  # there is one: every curve begins at 0
    share = (goal - ys[at]) / (ys[at + 1] - ys[at])
    return float(xs[at] + share * (xs[at + 1] - xs[at]))


def study_tables(
    figures: Mapping[str, ArmFigures], comparisons: Mapping[str, Sequence[str]], measures: Sequence[str]
) -> str:
    """Returns one markdown table per comparison; its first arm is what the others are compared with.

    Changes are from the base policy on the held-out pictures, mean and standard error over the S seeds of RL: the base
    policy and the reward model are the same in all of them. p is the two-sided paired t-test's over those seeds.
    """
    blocks = []
    for title, members in comparisons.items():
        reference = figures[members[0]]
        goal = float(reference.mean_curve()[-1])
        head = [f"{name} {_arrow(name)}" for name in measures]
        head += [f"{measures[0]} against {members[0]} (p)", "iterations to its gain"]
        seeds = len(reference.curves)
        says = (
            f"mean ± standard error over {seeds} seeds of RL; p: paired t-test over them, two-sided, each arm by itself"
        )
        lines = [f"**{title}** ({says})", "", f"| | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
        for name in members:
            cells = [_mean(figures[name].gains[measure]) for measure in measures]
            against = difference(figures[name], reference, measures[0])
            reached = iterations_to_reach(figures[name], goal)
            cells += [
                "" if name == members[0] else f"{against.mean:+.4f} ± {against.standard_error:.4f} ({against.p:.3f})",
                ("–" if goal <= 0.0 else "never") if np.isnan(reached) else f"{reached:.0f}",
            ]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def written_figures(figures: Mapping[str, ArmFigures]) -> dict[str, dict]:
    """Returns everything as plain lists, for json."""
    return {
        name: {
            "iterations": list(arm.iterations),
            "curves": arm.curves.tolist(),
            "gains": {measure: values.tolist() for measure, values in arm.gains.items()},
        }
        for name, arm in figures.items()
    }


def _arrow(measure: str) -> str:
    return METRICS[measure].arrow if measure in METRICS else "↑"  # a reward


def _mean(values: np.ndarray) -> str:
    return f"{values.mean():+.4f} ± {values.std(ddof=1) / np.sqrt(len(values)):.4f}"
