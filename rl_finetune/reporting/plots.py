"""The report's figures: each drawn by matplotlib in both themes, as SVG inside a URL."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rl_finetune.evidence.curve_figure import DARK, LIGHT, Inks, draw_plane, plane_legend
from rl_finetune.evidence.gain import Gain
from shared.diffusion.sampler import SamplerSpec

_SETTINGS = {
    "svg.hashsalt": "restore-rl",  # the same figures make the same bytes
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
CURVE_SIZE, PLANE_SIZE = (4.2, 2.5), (4.6, 5.2)  # inches; at 96 px an inch they fit a phone nearly unscaled


@dataclass(frozen=True)
class Plot:
    """A figure in both themes."""

    light: str  # data URLs
    dark: str
    alt: str  # what it shows, for who cannot see it
    caption: str
    width: int  # px
    height: int


def curve_plot(name: str, points: Sequence[tuple[float, float]], *, unit: str, steps: bool = False) -> Plot:
    """Returns a training curve of (step, value), two points and more; `steps`: the value holds until the next."""
    xs, ys = zip(*points, strict=True)

    def draw(figure: Figure, inks: Inks) -> None:
        axes = _axes(figure, inks)
        few = {"marker": "o", "markersize": 3} if len(xs) <= 30 else {}
        axes.plot(xs, ys, color=inks.base, linewidth=1.4, drawstyle="steps-post" if steps else "default", **few)
        axes.set_xlabel(unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        if steps:
            axes.set_ylim(min(ys) - 0.5, max(ys) + 0.5)
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.ticklabel_format(axis="y", useOffset=False, scilimits=(-3, 5))

    alt = f"{name} by {unit}: {ys[0]:.4g} at {xs[0]:g}, {ys[-1]:.4g} at {xs[-1]:g}, between {min(ys):.4g} and {max(ys):.4g}"
    return _themed(draw, size=CURVE_SIZE, alt=alt, caption=name)


def plane_plot(gain: Gain, place: int, *, deployed: SamplerSpec) -> Plot:
    """Returns the base's and the tuned policy's steps × η curves in one of a gain's planes."""
    standing = gain.standings[place]

    def draw(figure: Figure, inks: Inks) -> None:
        axes = _axes(figure, inks)
        draw_plane(axes, gain.base, gain.tuned, standing.plane, deployed=deployed, said="", inks=inks)
        figure.legend(handles=plane_legend(gain.base, inks), loc="outside lower center", ncols=3, frameon=False)

    plane = standing.plane
    alt = f"{plane.fidelity} against {plane.perception} over steps and η, base and tuned policy. {standing.line()}"
    caption = (
        standing.line()
        if gain.judged
        else f"{plane.fidelity} and {plane.perception}: shown, not judged by: a reward is made of one of them"
    )
    return _themed(draw, size=PLANE_SIZE, alt=alt, caption=caption)


def family_plot(families: Sequence[Mapping[str, Any]]) -> Plot:
    """Returns the gauge's families as bars: each change in units of the smallest that somebody would mind."""
    labels = [f"{of['family']}\n{of['metric']}" for of in families]
    sizes = [of["size"] for of in families]
    units = [abs(of["change"]["mean"] / of["size"]) if of["size"] else 1.0 for of in families]
    arms = [of["half_width"] / unit for of, unit in zip(families, units, strict=True)]

    def draw(figure: Figure, inks: Inks) -> None:
        axes = _axes(figure, inks)
        colours = [inks.tuned if of["worse"] else inks.better if of["up"] else inks.base for of in families]
        axes.barh(labels, sizes, color=colours, height=0.55)
        axes.errorbar(sizes, labels, xerr=arms, fmt="none", ecolor=inks.ink, elinewidth=1, capsize=3)
        axes.axvline(0, color=inks.ink, linewidth=0.8)
        for end in (-1, 1):
            axes.axvline(end, color=inks.ink, linewidth=0.8, linestyle=":")
        axes.invert_yaxis()
        axes.set_xlabel("change, better to the right")

    said = ", ".join(f"{of['family']} {of['size']:+.2f} ({verdict_of(of)})" for of in families)
    return _themed(
        draw,
        size=(4.6, 1.0 + 0.55 * len(families)),
        alt=f"Change since before RL by family, in units of the smallest that somebody would mind: {said}",
        caption="Change since before RL, with its 95 % interval, of the metric that tells most of each family",
    )


def verdict_of(family: Mapping[str, Any]) -> str:
    """Returns what the gauge says of a family, in a word."""
    return "worse" if family["worse"] else "better" if family["up"] else "level"


def _axes(figure: Figure, inks: Inks) -> Axes:
    axes = figure.subplots()
    axes.set_facecolor(inks.paper)
    axes.grid(color=inks.grid, linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def _themed(draw: Callable[[Figure, Inks], None], *, size: tuple[float, float], alt: str, caption: str) -> Plot:
    light, dark = (_svg_url(draw, inks, size) for inks in (LIGHT, DARK))
    return Plot(light, dark, alt, caption, width=round(size[0] * 96), height=round(size[1] * 96))


def _svg_url(draw: Callable[[Figure, Inks], None], inks: Inks, size: tuple[float, float]) -> str:
    of_ink = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    with matplotlib.rc_context({**_SETTINGS, **dict.fromkeys(of_ink, inks.ink)}):
        figure = Figure(figsize=size, facecolor=inks.paper, layout="constrained")
        draw(figure, inks)
        drawn = io.BytesIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(drawn.getvalue()).decode()}"
