"""Learning curves as SVG: one panel per comparison, every arm's mean over seeds with a band of one standard error."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import numpy as np

from rl_finetune.evidence.study_figures import ArmFigures

PANEL_W, PANEL_H, LEGEND_W, GAP, COLUMNS = 300, 190, 170, 46, 2
COLOURS = ("#1b6ca8", "#b3261e", "#187a2f", "#8a5cb8", "#c77700", "#444444")  # told apart in print, too


def panels_svg(figures: Mapping[str, ArmFigures], comparisons: Mapping[str, Sequence[str]], *, title: str) -> str:
    """Returns the picture as text. Every panel has a scale of its own: one arm that falls would flatten all the others."""
    width, height = PANEL_W + LEGEND_W + GAP, PANEL_H + GAP
    columns = min(COLUMNS, len(comparisons))
    rows = -(-len(comparisons) // columns)
    body = [
        f'<g transform="translate({GAP + column * width},{GAP * 0.7 + row * height})">'
        + _panel(name, {member: figures[member] for member in members}, title)
        + "</g>"
        for (row, column), (name, members) in zip(
            ((i // columns, i % columns) for i in range(len(comparisons))), comparisons.items(), strict=True
        )
    ]
    size = f"{GAP + columns * width} {rows * height + GAP}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" font-family="system-ui, sans-serif" '
        f'font-size="11"><rect width="100%" height="100%" fill="white"/>{"".join(body)}</svg>\n'
    )


def _panel(name: str, arms: Mapping[str, ArmFigures], title: str) -> str:
    last = max(arm.iterations[-1] for arm in arms.values())
    low, high = _bounds(list(arms.values()))

    def path(xs: Sequence[float], ys: Sequence[float]) -> str:
        points = zip(xs, ys, strict=True)
        return " ".join(f"{x / last * PANEL_W:.1f},{(high - y) / (high - low) * PANEL_H:.1f}" for x, y in points)

    parts = [
        f'<text x="0" y="-8" font-weight="600">{html.escape(name)}</text>',
        f'<rect width="{PANEL_W}" height="{PANEL_H}" fill="none" stroke="#bbb"/>',
        f'<polyline points="{path([0, last], [0, 0])}" stroke="#bbb" stroke-dasharray="3 3"/>',
        f'<text x="{PANEL_W}" y="{PANEL_H + 14}" text-anchor="end">{last} iterations</text>',
        f'<text x="0" y="{PANEL_H + 14}">gain in {html.escape(title)}</text>',
    ]
    for value in (low, high):
        y = (high - value) / (high - low) * PANEL_H
        parts.append(f'<text x="-4" y="{y + 4:.0f}" text-anchor="end">{value:+.3f}</text>')
    for number, (arm_name, arm) in enumerate(arms.items()):
        colour, mean, error = COLOURS[number % len(COLOURS)], arm.mean_curve(), arm.curve_error()
        band = path([*arm.iterations, *arm.iterations[::-1]], np.concatenate([mean + error, (mean - error)[::-1]]))
        parts += [
            f'<polygon points="{band}" fill="{colour}" opacity="0.12"/>',
            f'<polyline points="{path(arm.iterations, mean)}" fill="none" stroke="{colour}" stroke-width="1.8"/>',
            f'<text x="{PANEL_W + 10}" y="{14 + 15 * number}" fill="{colour}">{html.escape(arm_name)}</text>',
        ]
    return "".join(parts)


def _bounds(arms: Sequence[ArmFigures]) -> tuple[float, float]:
    """Returns the lowest and highest value to be drawn, with a margin."""
    low = min(float((arm.mean_curve() - arm.curve_error()).min()) for arm in arms)
    high = max(float((arm.mean_curve() + arm.curve_error()).max()) for arm in arms)
    margin = 0.05 * max(high - low, 1e-9)
    return low - margin, high + margin
