"""The base policy's curve and the tuned policy's, as a table and as a picture, a panel for each plane."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rl_finetune.evidence.curve import Curve, Plane, Standing, beyond, sweep
from shared.diffusion.sampler import SamplerSpec
from shared.files import write_bytes
from shared.vision.metrics import paired_difference

TITLE_LETTERS = 80  # that fit a line above one plane
MARKERS = ("o", "^", "s", "D", "v", "P")  # one a number of steps, from the fewest


@dataclass(frozen=True)
class Inks:
    """The colours of a figure."""

    paper: str
    ink: str  # text, axes
    grid: str
    base: str  # the base policy
    tuned: str  # the tuned one, and what is worse
    better: str
    reach: str  # what the base reaches by itself


LIGHT = Inks("#ffffff", "#222222", "#dddddd", "#1b6ca8", "#b3261e", "#187a2f", "#e8f0f7")
DARK = Inks("#1a1f25", "#e3e6ea", "#3b424b", "#74b9ee", "#ff8f85", "#6fcf8a", "#22313e")


def curve_table(base: Curve, tuned: Curve, planes: Sequence[Plane], *, deployed: SamplerSpec) -> str:
    """Returns a markdown table: every sampler's means of both policies, and where the tuned one is beyond the curve.

    The deployed sampler, chosen in advance, has `beyond`'s p; those of the others are corrected for one another.
    """
    deployed = deployed.canonical()
    metrics = list(dict.fromkeys(metric for plane in planes for metric in plane.metrics))
    arrows = {metric: "↑" if plane.sign(metric) > 0 else "↓" for plane in planes for metric in plane.metrics}
    standings = [_standings(base, tuned, plane, deployed=deployed) for plane in planes]
    titles = [
        "sampler",
        *(f"{metric} {arrows[metric]} {which}" for metric in metrics for which in ("base", "tuned")),
        *(f"beyond in {plane.fidelity}, {plane.perception}" for plane in planes),
    ]
    lines = [_row(titles), "|---|" + "--:|" * (2 * len(metrics)) + "---|" * len(planes)]
    for setting in base.values:
        name = f"**{setting.words()}, deployed**" if setting == deployed else setting.words()
        means = [f"{curve.of(setting, metric).mean():.4f}" for metric in metrics for curve in (base, tuned)]
        said = [f"{'yes' if found[setting].beyond else 'no'} ({found[setting].p_words()})" for found in standings]
        lines.append(_row([name, *means, *said]))
    return "\n".join(lines) + "\n"


def draw_curve(
    path: Path, base: Curve, tuned: Curve, *, panels: Mapping[Plane, str], deployed: SamplerSpec, title: str
) -> None:
    """Draws planes beside each other as .svg or .png, better to the right and upwards, each with what is said above it.

    Shaded is what the base reaches by itself: its samplers, the mixtures of two, and whatever is worse. The cross is the
    deployed sampler's, its arms the 95 % interval of the paired change since the base.
    """
    settings = {"svg.hashsalt": "restore-rl", "svg.fonttype": "none", "font.size": 9, "text.color": LIGHT.ink}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(1.7 + 5.5 * len(panels), 4.6), facecolor=LIGHT.paper, layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontsize=9, color=LIGHT.ink)
        row = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (plane, said) in zip(row, panels.items(), strict=True):
            draw_plane(axes, base, tuned, plane, deployed=deployed, said=said)
        row[-1].legend(handles=plane_legend(base), loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
        drawn = io.BytesIO()
        kind = path.suffix.removeprefix(".")
        # Without the date the same figures make the same bytes.
        figure.savefig(drawn, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    write_bytes(path, drawn.getvalue())


def _standings(base: Curve, tuned: Curve, plane: Plane, *, deployed: SamplerSpec) -> dict[SamplerSpec, Standing]:
    others = Curve({setting: values for setting, values in tuned.values.items() if setting != deployed})
    return {
        deployed: beyond(base, tuned, setting=deployed, plane=plane),
        **sweep(base, others, plane=plane),
    }


def frontier(points: np.ndarray) -> np.ndarray:
    """Returns the corners [m, 2], from left to right, of what the points [n, 2] and their mixtures reach, more being
    better in both.

    Between the best in y and the best in x they are the upper hull; a point that is worse in both is none of them.
    """
    corners: list[np.ndarray] = []
    for point in sorted(points, key=lambda p: (p[0], p[1])):
        while corners and corners[-1][1] <= point[1]:
            corners.pop()
        while len(corners) > 1 and _turns_left(corners[-2], corners[-1], point):
            corners.pop()
        corners.append(point)
    return np.array(corners)


def _turns_left(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> bool:
    return bool((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]) >= 0)


def draw_plane(
    axes: Axes, base: Curve, tuned: Curve, plane: Plane, *, deployed: SamplerSpec, said: str, inks: Inks = LIGHT
) -> None:
    """Draws one plane into `axes`, under what is `said` of it."""
    of_base, of_tuned = _points(base, plane), _points(tuned, plane)
    _frame(axes, plane, title=textwrap.fill(said, TITLE_LETTERS), inks=inks)
    _fit(axes, np.array([*of_base.values(), *of_tuned.values()]), plane)
    _shade(axes, np.array(list(of_base.values())), plane, inks)
    for points, colour in ((of_base, inks.base), (of_tuned, inks.tuned)):
        _draw_policy(axes, points, colour, paper=inks.paper)
    _draw_deployed(axes, base, tuned, plane, deployed.canonical(), inks)


def _points(curve: Curve, plane: Plane) -> dict[SamplerSpec, tuple[float, float]]:
    """Returns each sampler's place (perception, fidelity)."""
    return {
        setting: (float(curve.of(setting, plane.perception).mean()), float(curve.of(setting, plane.fidelity).mean()))
        for setting in curve.values
    }


def _frame(axes: Axes, plane: Plane, *, title: str, inks: Inks) -> None:
    axes.set_facecolor(inks.paper)
    axes.set_title(title, loc="left", fontsize=9, color=inks.ink)
    axes.set_xlabel(f"{plane.perception}, better to the right", color=inks.ink)
    axes.set_ylabel(f"{plane.fidelity}, better upwards", color=inks.ink)
    axes.tick_params(colors=inks.ink)
    axes.grid(color=inks.grid, linewidth=0.6)
    axes.set_axisbelow(True)


def _fit(axes: Axes, places: np.ndarray, plane: Plane) -> None:
    """Fits the axes to the points [n, 2], each axis with its better end to the right or on top."""
    low, high = places.min(axis=0), places.max(axis=0)
    margin = 0.08 * np.maximum(high - low, 1e-9)
    for set_limits, i, metric in ((axes.set_xlim, 0, plane.perception), (axes.set_ylim, 1, plane.fidelity)):
        ends = (low[i] - margin[i], high[i] + margin[i])
        set_limits(*(ends if plane.sign(metric) > 0 else ends[::-1]))


def _shade(axes: Axes, places: np.ndarray, plane: Plane, inks: Inks) -> None:
    signs = np.array([plane.sign(plane.perception), plane.sign(plane.fidelity)])
    corners = frontier(places * signs)
    # What is worse than a corner is reached, too: down and to the left, past the ends of the axes.
    worst = np.array([min(np.array(axes.get_xlim()) * signs[0]), min(np.array(axes.get_ylim()) * signs[1])])
    outline = np.array([worst, [worst[0], corners[0][1]], *corners, [corners[-1][0], worst[1]]]) * signs
    axes.fill(*outline.T, color=inks.reach, zorder=0)
    axes.plot(*(corners * signs).T, color=inks.base, linewidth=0.8, linestyle=":", zorder=1)


def _draw_policy(axes: Axes, points: Mapping[SamplerSpec, tuple[float, float]], colour: str, *, paper: str) -> None:
    for eta in sorted({setting.eta for setting in points}):
        path = sorted((s for s in points if s.eta == eta or s.steps == 1), key=lambda s: s.steps)
        axes.plot(*zip(*(points[s] for s in path), strict=True), color=colour, linewidth=0.8, alpha=0.6, zorder=2)
    for setting, place in points.items():
        style = {"marker": _marker(setting, points), "markersize": 6, "zorder": 3, "markeredgecolor": colour}
        axes.plot(*place, color=colour, markerfacecolor=_faded(colour, setting.eta, paper), **style)


def _draw_deployed(axes: Axes, base: Curve, tuned: Curve, plane: Plane, deployed: SamplerSpec, inks: Inks) -> None:
    def arm(metric: str) -> float:
        return paired_difference(base.of(deployed, metric), tuned.of(deployed, metric)).half_width

    x, y = (float(tuned.of(deployed, metric).mean()) for metric in (plane.perception, plane.fidelity))
    start = [float(base.of(deployed, metric).mean()) for metric in (plane.perception, plane.fidelity)]
    axes.errorbar(x, y, xerr=arm(plane.perception), yerr=arm(plane.fidelity), color=inks.ink, linewidth=1, zorder=4)
    axes.annotate("", (x, y), start, arrowprops={"arrowstyle": "->", "color": inks.ink, "linewidth": 1}, zorder=4)


def plane_legend(base: Curve, inks: Inks = LIGHT) -> list[Line2D]:
    """Returns what markers and colours mean."""
    first = {setting.steps: setting for setting in sorted(base.values, key=lambda s: s.steps)}
    etas = sorted({setting.eta for setting in base.values})

    def spot(label: str, marker: str, colour: str, face: str) -> Line2D:
        return Line2D([], [], label=label, marker=marker, color=colour, markerfacecolor=face, linestyle="none")

    return [
        spot("base", "o", inks.base, inks.base),
        spot("tuned", "o", inks.tuned, inks.tuned),
        *(
            spot(f"{n} step{'s' if n > 1 else ''}", _marker(s, base.values), inks.ink, inks.ink)
            for n, s in first.items()
        ),
        *(
            spot("ODE" if eta == 0 else f"SDE η {eta:g}", "o", inks.ink, _faded(inks.ink, eta, inks.paper))
            for eta in etas
        ),
        Line2D([], [], label="deployed: base to tuned", color=inks.ink, linewidth=1),
    ]


def _marker(setting: SamplerSpec, settings: Collection[SamplerSpec]) -> str:
    counts = sorted({each.steps for each in settings})
    return MARKERS[counts.index(setting.steps) % len(MARKERS)]


def _faded(colour: str, eta: float, paper: str) -> tuple[float, float, float]:
    """Returns the colour of a filling: full without noise, the paper's at η = 1."""
    full, empty = (matplotlib.colors.to_rgb(each) for each in (colour, paper))
    return tuple(float(f + (e - f) * eta) for f, e in zip(full, empty, strict=True))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
