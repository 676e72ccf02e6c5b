"""The evaluation at the end of a run, and whenever it is asked for again: tables, references, and the base's own curve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data.sources.open_source import Split
from rl_finetune.evidence.gain import measure_gain, planes_of, write_gain
from rl_finetune.evidence.gauge import GaugeReading, HackingGauge
from rl_finetune.evidence.held_out import EVALUATION_FILE, REMOVED, Panel, compare_on_held_out
from rl_finetune.evidence.references import otherwise_deployed, reference_restorers
from rl_finetune.loop.config import TrainRlConfig
from rl_finetune.rewards.judge import Judge
from shared.policies.policy_restorer import PolicyRestorer
from shared.restorers.protocol import Restorer


def evaluate_restorers(
    config: TrainRlConfig,
    before: Restorer,
    after: Restorer,
    judge: Judge,
    panel: Panel,
    *,
    base: PolicyRestorer,
    folder: Path,
    split: Split = "test",
) -> dict[str, Any]:
    """Returns the figures of two restorers on pictures that the run `config` did not train on, and writes them.

    `base` is the policy that the reference columns are about. Where both restorers are policies, a gain is claimed only
    if `after` lies beyond `before`'s own curve over steps and η.
    """
    policies = [each for each in (before, after) if isinstance(each, PolicyRestorer)]
    others = otherwise_deployed(*policies, config.sampler) if len(policies) == 2 else {}
    figures = compare_on_held_out(
        config.held_out(),
        before,
        after,
        judge,
        panel,
        references=reference_restorers(base) | others,
        folder=folder,
        images=config.eval_images,
        sampler=base.spec,
        split=split,
    )
    if len(policies) < 2 or not config.curve_images:
        return figures
    planes = planes_of(panel.of_each, panel.refused)
    judged = bool(planes)
    planes = planes or planes_of(panel.of_each, ())  # to be looked at: what is rewarded tells no gain
    gain = measure_gain(
        policies[0].policy,
        policies[1].policy,
        config.held_out().draw(split, min(config.curve_images, config.eval_images)),
        panel.only(list(dict.fromkeys(name for plane in planes for name in plane.metrics))),
        planes=planes,
        deployed=base.spec,
        batch=config.eval_batch,
        seed=config.seed,
        device=panel.device,
        judged=judged,
    )
    write_gain(folder, gain, deployed=base.spec, title=f"{config.task}: before and after RL")
    reading = final_reading(config, panel, folder, beyond_curve=gain.beyond)
    said = f"{figures['table']}\n{gain.line}\ngauge, {reading.line()}"
    return {**figures, "table": said, "curve": gain.as_json(), "gauge": reading.line(), **reading.as_json()}


def final_reading(config: TrainRlConfig, panel: Panel, folder: Path, *, beyond_curve: bool) -> GaugeReading:
    """Returns the gauge's reading of the evaluation in `folder`; learning is only what lies beyond the base's curve.

    It is the last of the run's readings, though on pictures of its own: all of them together spend `gauge.alpha`.
    """
    found = json.loads((folder / EVALUATION_FILE).read_text(encoding="utf-8"))
    gauge = HackingGauge(config.gauge, panel.judges, config.readings)
    gauge.read(found["before"], proxy=panel.proxy, removed=found[REMOVED]["before"])
    return gauge.read(found["after"], proxy=panel.proxy, removed=found[REMOVED]["after"], beyond_curve=beyond_curve)
