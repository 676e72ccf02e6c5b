"""Tables and histograms of the dataset card, from the small columns of every split."""

from __future__ import annotations

from collections import Counter

import numpy as np

from data.store.plan import short_name

BAR_WIDTH = 40

Columns = dict[str, np.ndarray]  # one split's columns by name, each [rows]


def counts_table(columns: dict[str, Columns]) -> str:
    """Returns the rows of each split, by task, and its controls."""
    lines = ["| Split | rows | sr | face | controls |", "|---|---|---|---|---|"]
    for split, values in columns.items():
        tasks = Counter(values["task"])
        controls = int(values["is_control"].sum())
        lines.append(f"| {split} | {len(values['area'])} | {tasks['sr']} | {tasks['face']} | {controls} |")
    return "\n".join(lines)


def restorer_table(columns: dict[str, Columns]) -> str:
    """Returns each restorer's rows by split and task, the severity of its defects and their correlation with the mask."""
    together = _joined(columns)
    lines = [
        f"| Restorer | {' | '.join(columns)} | of them faces | severity | correlation |",
        "|---" * (len(columns) + 4) + "|",
    ]
    for name in sorted(set(together["restorer"])):
        mine = together["restorer"] == name
        counts = " | ".join(str((values["restorer"] == name).sum()) for values in columns.values())
        faces = (together["task"][mine] == "face").sum()
        lines.append(f"| {name} | {counts} | {faces} | {_swap_means(together, mine)} |")
    return "\n".join(lines)


def mask_table(columns: dict[str, Columns]) -> str:
    """Returns each kind of region with its rows, its area and its defects."""
    together = _joined(columns)
    lines = ["| Region | rows | area | severity | correlation |", "|---|---|---|---|---|"]
    for kind in sorted(set(together["mask_kind"])):
        mine = together["mask_kind"] == kind
        lines.append(f"| {kind} | {mine.sum()} | {together['area'][mine].mean():.3f} | {_swap_means(together, mine)} |")
    return "\n".join(lines)


def control_table(columns: dict[str, Columns]) -> str:
    """Returns the kinds of harmless swaps with their rows, or that there are none."""
    kinds = Counter(_joined(columns)["control"])
    kinds.pop("", None)
    lines = [f"| {kind} | {kinds[kind]} |" for kind in sorted(kinds)]
    return "\n".join(["| Harmless swap | rows |", "|---|---|", *lines]) if lines else "none"


def weights_table(paths: dict[str, str], inputs: dict[str, str]) -> str:
    """Returns every restorer's weights by checksum, with the commit of those from the Hub; `paths` by restorer."""
    lines = ["| Restorer | path | file | sha256 | commit |", "|---|---|---|---|---|"]
    for name, path in paths.items():
        commit = inputs.get(f"restorers.{name}@commit", "–")
        prefix = f"restorers.{name}."
        files = {key.removeprefix(prefix): value for key, value in inputs.items() if key.startswith(prefix)}
        lines += [
            f"| {name} | {short_name(path)} | {file} | {value[:16]} | {commit} |" for file, value in files.items()
        ]
    return "\n".join(lines) if len(lines) > 2 else "none: no restorer has weights"


def histogram(values: np.ndarray, edges: np.ndarray, *, form: str) -> str:
    """Returns the counts between the edges as bars of text; what lies beyond counts in the last one."""
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    longest = max(1, counts.max(initial=0))
    lines = [
        f"{form.format(low)} – {form.format(high)}  {'█' * round(BAR_WIDTH * count / longest):<{BAR_WIDTH}} {count}"
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    return "```\n" + "\n".join(lines) + "\n```"


def _joined(columns: dict[str, Columns]) -> Columns:
    first = next(iter(columns.values()))
    return {name: np.concatenate([values[name] for values in columns.values()]) for name in first}


def _swap_means(values: Columns, mine: np.ndarray) -> str:
    swaps = mine & ~values["is_control"]
    means = [values[name][swaps] for name in ("severity", "map_mask_correlation")]
    return " | ".join(f"{mean.mean():.3f}" if mean.size else "–" for mean in means)
