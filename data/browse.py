"""Writes one self-contained HTML page of random rows of a dataset: pictures, mask, target map as overlay, stored parameters.

python -m data.browse datasets/mine out=page.html rows=40 split=test
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from data.store.dataset_sample import Sample
from data.store.plan import SPLITS
from data.store.reader import SampleDataset, load_samples
from shared.app.config import require_range
from shared.app.entry import run_command
from shared.app.words import read_words
from shared.files import storable, write_bytes
from shared.seeds import numpy_rng
from shared.vision.images import encode_png, paint_map, to_array

STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1240px; padding: 0 1rem; color: #1c2128;
  background: #fafafa }
h1 { font-size: 1.5rem; margin-bottom: .2rem } p { color: #57606a; max-width: 60rem }
.row { background: #fff; border: 1px solid #d8dee4; border-radius: 8px; padding: .8rem 1rem; margin: 1rem 0 }
.head { display: flex; gap: .5rem; flex-wrap: wrap; align-items: baseline; margin-bottom: .5rem }
.head b { font-size: 1rem } .tag { background: #eef1f4; border-radius: 10px; padding: 0 .6rem }
.control { background: #dafbe1 } .id { color: #57606a; margin-left: auto; font-family: monospace; font-size: 12px }
.pictures { display: grid; grid-template-columns: repeat(8, 1fr); gap: .5rem }
figure { margin: 0 } figcaption { color: #57606a; font-size: 12px; margin-top: 2px }
img { width: 100%; aspect-ratio: 1; image-rendering: pixelated; border-radius: 3px; display: block }
details { margin-top: .5rem; color: #57606a } summary { cursor: pointer; font-size: 12px }
pre { font-size: 11px; white-space: pre-wrap; overflow-wrap: anywhere; margin: .4rem 0 0 }
@media (max-width: 800px) { .pictures { grid-template-columns: repeat(4, 1fr) } }
"""


@dataclass(frozen=True)
class BrowseConfig:
    """What the page shows."""

    folder: str  # the dataset's folder
    out: str = ""  # the page's file; empty: browse.html in the dataset's folder
    split: str = "test"  # which split: train | val | test | test_restorer | test_source
    rows: int = 32  # how many rows are shown
    seed: int = 0  # seed of the choice of rows

    def __post_init__(self) -> None:
        require_range(rows=(self.rows, 1, 1000))
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {self.split!r}")


def main(argv: Sequence[str]) -> None:
    config = read_words(BrowseConfig, argv, expected="folder=<a dataset's folder>", bare=("folder",))
    samples = load_samples(config.folder, config.split)
    path = Path(config.out or Path(config.folder) / "browse.html")
    write_bytes(path, storable(browse_page(samples, config)).encode())
    print(f"{path}: {min(config.rows, len(samples))} of {len(samples)} rows of {config.split}; open it in a browser")


def browse_page(samples: SampleDataset, config: BrowseConfig) -> str:
    """Returns the page as HTML text, with every picture inside."""
    order = numpy_rng(config.seed, "browse", config.split).permutation(len(samples))[: config.rows]
    rows = [row_html(samples[int(index)], samples.parameters(int(index))) for index in order]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{html.escape(config.folder)}: {config.split}</title><style>{STYLE}</style>"
        f"<h1>{html.escape(config.folder)}</h1>"
        f"<p>{len(rows)} of {len(samples)} rows of <b>{config.split}</b>, drawn at random. syn is gt with sr (or, in a "
        "control, a harmless variant of gt) pasted where the mask is white. Maps run from black (clean) through red and "
        "orange to white (worst); the overlay paints syn's map onto syn.</p>" + "".join(rows) + "</html>\n"
    )


def row_html(sample: Sample, parameters: str) -> str:
    """Returns one row: its facts, its pictures, its stored parameters."""
    side = sample.gt.shape[-2:]
    pictures = {
        "lq": F.interpolate(sample.lq[None], size=side, mode="nearest")[0],
        "gt": sample.gt,
        "sr": sample.sr,
        "mask": sample.mask.expand(3, -1, -1),
        "syn": sample.syn,
        "map of syn": paint_map(sample.degradation_map),
        "overlay": overlay(sample.syn, sample.degradation_map),
        "map of sr": paint_map(sample.sr_degradation_map),
    }
    figures = "".join(
        f"<figure><img alt='{name}' src='{data_url(picture)}'><figcaption>{name}</figcaption></figure>"
        for name, picture in pictures.items()
    )
    kind = "<span class='tag control'>control: target 0</span>" if sample.is_control else ""
    drawn = html.escape(json.dumps(json.loads(parameters), indent=1))
    return (
        f"<div class=row><div class=head><b>{html.escape(sample.restorer)}</b>"
        f"<span class=tag>{html.escape(sample.mask_kind)}</span><span class=tag>area {100 * sample.area:.1f} %</span>"
        f"<span class=tag>severity {sample.severity:.2f}</span>{kind}"
        f"<span class=id>{html.escape(sample.source)} · {html.escape(sample.image_id)} · {sample.index}</span></div>"
        f"<div class=pictures>{figures}</div><details><summary>parameters</summary><pre>{drawn}</pre></details></div>"
    )


def overlay(picture: torch.Tensor, degradation_map: torch.Tensor) -> torch.Tensor:
    """Returns [3, H, W]: the picture in grey, red to yellow where the map is above 0."""
    grey = picture.mean(dim=0, keepdim=True).expand(3, -1, -1)
    weight = (degradation_map * 2).clamp(0, 0.8)
    return grey * (1 - weight) + paint_map(degradation_map.clamp(0.3, 0.8)) * weight


def data_url(picture: torch.Tensor) -> str:
    """Returns [3, H, W] as a PNG inside a URL."""
    content = encode_png(np.asarray(to_array(picture)))
    return "data:image/png;base64," + base64.b64encode(content).decode()


if __name__ == "__main__":
    run_command(main)
