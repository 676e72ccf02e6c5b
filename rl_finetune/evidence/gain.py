"""Did RL gain anything that the base policy's own sampler could not have given? Both policies over steps and η."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.degradation.records import PairBatch
from rl_finetune.evidence.curve import Curve, Plane, Standing, beyond, curve_settings, measure_curve
from rl_finetune.evidence.curve_figure import curve_table, draw_curve
from rl_finetune.evidence.measure import Measure
from shared.diffusion.sampler import SamplerSpec
from shared.files import write_bytes
from shared.restorers.pixel_unet import PixelUNet, PixelUNetRestorer
from shared.vision.metrics import METRICS

TABLE_FILE, FIGURE_FILE = "curve.md", "curve.png"
# The first of each that is measured and that no reward contains.
FIDELITY = ("psnr", "ssim", "ms_ssim")
PERCEPTION = ("lpips_alex", "dists", "lpips_vgg", "gradient_distance", "detail_correlation")


@dataclass(frozen=True)
class Gain:
    """Where the tuned policy stands beside the base policy's curve."""

    base: Curve
    tuned: Curve
    plane: Plane
    standing: Standing  # of the deployed sampler
    pictures: int

    @property
    def line(self) -> str:
        """Returns what may be said of the run, in one line."""
        said = "A gain" if self.standing.beyond else "No gain"
        return f"{said}: {self.standing.line()}, {self.pictures} pictures"

    def as_json(self) -> dict[str, Any]:
        """Returns the verdict and every sampler's means."""
        means = {
            name: {spec.words(): {m: float(v.mean()) for m, v in own.items()} for spec, own in curve.values.items()}
            for name, curve in (("base", self.base), ("tuned", self.tuned))
        }
        return {
            "beyond": self.standing.beyond,
            "p": self.standing.p,
            "line": self.line,
            "plane": list(self.plane.metrics),
            "pictures": self.pictures,
            "means": means,
        }


def measure_gain(
    base: PixelUNet,
    tuned: PixelUNet,
    pairs: PairBatch,
    measures: Sequence[Measure],
    *,
    deployed: SamplerSpec,
    rewarded: Collection[str],
    batch: int,
    seed: int,
    device: str,
) -> Gain:
    """Returns both policies' curves on `pairs` and whether the tuned one, as deployed, lies beyond the base's.

    `rewarded` names the panel's metrics that a reward contains: they do not judge.
    """
    curves = [
        measure_curve(
            lambda spec, policy=policy: PixelUNetRestorer(policy, spec),
            pairs,
            measures,
            batch=batch,
            seed=seed,
            settings=curve_settings(deployed),
            device=device,
        )
        for policy in (base, tuned)
    ]
    plane = plane_of(next(iter(curves[0].values.values())), rewarded)
    standing = beyond(*curves, setting=deployed, plane=plane)
    return Gain(*curves, plane, standing, len(pairs.indices))


def plane_of(measured: Collection[str], rewarded: Collection[str]) -> Plane:
    """Returns the plane of fidelity and perception that a run is judged in."""
    fidelity, perception = (
        next((name for name in names if name in measured and name not in rewarded), names[0])
        for names in (FIDELITY, PERCEPTION)
    )
    return Plane(fidelity, perception, {name: METRICS[name].higher_is_better for name in (fidelity, perception)})


def write_gain(folder: Path, gain: Gain, *, deployed: SamplerSpec, title: str) -> None:
    """Writes the table and the figure of a gain."""
    table = curve_table(gain.base, gain.tuned, [gain.plane], deployed=deployed)
    write_bytes(folder / TABLE_FILE, f"{gain.line}\n\n{table}".encode())
    draw_curve(
        folder / FIGURE_FILE,
        gain.base,
        gain.tuned,
        plane=gain.plane,
        deployed=deployed,
        title=title,
        subtitle=gain.standing.line(),
    )
