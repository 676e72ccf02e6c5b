"""Did RL gain anything that the base policy's own sampler could not have given? Both policies over steps and η."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.degradation.records import PairBatch
from rl_finetune.evidence.curve import Curve, Plane, Standing, beyond, curve_settings, measure_curve
from rl_finetune.evidence.curve_figure import curve_table, draw_curve
from rl_finetune.evidence.measure import Measure
from shared.diffusion.sampler import SamplerSpec
from shared.files import write_bytes
from shared.policies.interface import DiffusionPolicy
from shared.policies.policy_restorer import PolicyRestorer
from shared.vision.metrics import METRICS

TABLE_FILE, FIGURE_FILE, VALUES_FILE = "curve.md", "curve.png", "curve.json"
UNTOLD = "No gain can be told: every metric of fidelity or of perception is missing or rewarded"
# In each order the first that is measured and that no reward contains.
FIDELITY = ("psnr", "ssim", "ms_ssim")
# A gain in perception must show in both; without either, the first of the substitutes stands in, and that is said.
PERCEPTION = ("lpips_alex", "dists")
SUBSTITUTES = ("lpips_vgg", "gradient_distance", "detail_correlation")


@dataclass(frozen=True)
class Gain:
    """Where the tuned policy stands beside the base policy's curve, in each plane."""

    base: Curve
    tuned: Curve
    standings: tuple[Standing, ...]  # of the deployed sampler, one a plane
    pictures: int
    judged: bool = True  # False: the planes hold a metric that is rewarded, and are there to be looked at

    @property
    def beyond(self) -> bool:
        """Whether the tuned policy has gained something that the base policy's sampler could not have given."""
        return self.judged and self.standing.beyond

    @property
    def standing(self) -> Standing:
        """The plane in which it is least clear: a gain must show in all of them, so its p is the claim's."""
        return max(self.standings, key=lambda standing: standing.p)

    @property
    def line(self) -> str:
        """Returns what may be said of the run, in one line."""
        if not self.judged:
            return UNTOLD
        said = "A gain" if self.standing.beyond else "No gain"
        return f"{said}: {'; '.join(s.line() for s in self.standings)}, {self.pictures} pictures{self._stand_in()}"

    def _stand_in(self) -> str:
        judged = {standing.plane.perception for standing in self.standings}
        missing = [name for name in PERCEPTION if name not in judged]
        if not missing:
            return ""
        also = "" if judged & set(PERCEPTION) else f": {', '.join(judged)} stands in, and sees less"
        return f"; {' and '.join(missing)} not measured, or rewarded{also}"

    def as_json(self) -> dict[str, Any]:
        """Returns the verdict and every sampler's means."""
        means = {
            name: {spec.words(): {m: float(v.mean()) for m, v in own.items()} for spec, own in curve.values.items()}
            for name, curve in (("base", self.base), ("tuned", self.tuned))
        }
        return {
            "beyond": self.beyond,
            "judged": self.judged,
            "p": self.standing.p,
            "line": self.line,
            "planes": [{"metrics": list(s.plane.metrics), "beyond": s.beyond, "p": s.p} for s in self.standings],
            "pictures": self.pictures,
            "means": means,
        }


def measure_gain(
    base: DiffusionPolicy,
    tuned: DiffusionPolicy,
    pairs: PairBatch,
    measures: Sequence[Measure],
    *,
    planes: Sequence[Plane],
    deployed: SamplerSpec,
    batch: int,
    seed: int,
    device: str,
    judged: bool = True,
) -> Gain:
    """Returns both policies' curves on `pairs` and whether the tuned one, as deployed, lies beyond the base's."""
    curves = [
        measure_curve(
            lambda spec, policy=policy: PolicyRestorer(policy, spec),
            pairs,
            measures,
            batch=batch,
            seed=seed,
            settings=curve_settings(deployed),
            device=device,
        )
        for policy in (base, tuned)
    ]
    return gain_of(*curves, planes=planes, deployed=deployed, judged=judged)


def gain_of(base: Curve, tuned: Curve, *, planes: Sequence[Plane], deployed: SamplerSpec, judged: bool) -> Gain:
    """Returns where the tuned policy stands in each plane."""
    standings = tuple(beyond(base, tuned, setting=deployed, plane=plane) for plane in planes)
    return Gain(base, tuned, standings, len(base.of(deployed, planes[0].fidelity)), judged)


def planes_of(measured: Collection[str], rewarded: Collection[str]) -> tuple[Plane, ...]:
    """Returns the planes of fidelity and perception that a run is judged in; none where every metric of one is missing
    or `rewarded`: no reward is judged by itself.
    """

    def free(names: Sequence[str]) -> list[str]:
        return [name for name in names if name in measured and name not in rewarded]

    return tuple(
        plane_of(fidelity, perception)
        for fidelity in free(FIDELITY)[:1]
        for perception in free(PERCEPTION) or free(SUBSTITUTES)[:1]
    )


def plane_of(fidelity: str, perception: str) -> Plane:
    """Returns the plane of two metrics by name."""
    return Plane(fidelity, perception, {name: METRICS[name].higher_is_better for name in (fidelity, perception)})


def write_gain(folder: Path, gain: Gain, *, deployed: SamplerSpec, title: str) -> None:
    """Writes the table, the figure and every picture's values of a gain."""
    panels = {standing.plane: standing.line() if gain.judged else UNTOLD for standing in gain.standings}
    table = curve_table(gain.base, gain.tuned, list(panels), deployed=deployed)
    write_bytes(folder / TABLE_FILE, f"{gain.line}\n\n{table}".encode())
    draw_curve(folder / FIGURE_FILE, gain.base, gain.tuned, panels=panels, deployed=deployed, title=title)
    content = {
        "deployed": asdict(deployed),
        "judged": gain.judged,
        "planes": [standing.plane.metrics for standing in gain.standings],
        "base": gain.base.as_json(),
        "tuned": gain.tuned.as_json(),
    }
    write_bytes(folder / VALUES_FILE, json.dumps(content).encode())


def read_gain(folder: Path) -> tuple[Gain, SamplerSpec] | None:
    """Returns the gain that `write_gain` wrote, and the deployed sampler; None where there is none."""
    path = folder / VALUES_FILE
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    base, tuned = (Curve.from_json(found[name]) for name in ("base", "tuned"))
    deployed = SamplerSpec(**found["deployed"])
    planes = [plane_of(*metrics) for metrics in found["planes"]]
    return gain_of(base, tuned, planes=planes, deployed=deployed, judged=found["judged"]), deployed
