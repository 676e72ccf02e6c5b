"""The dataset card: README.md with the splits that `load_dataset` reads, and the answers to a reader's first questions."""

from __future__ import annotations

import platform
import zlib
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import OmegaConf

from data.regions.targets import Normaliser
from data.sources.image_source import ImageSource
from data.store.card_tables import (
    Columns,
    control_table,
    counts_table,
    histogram,
    mask_table,
    restorer_table,
    weights_table,
)
from data.store.config import BuildConfig, public_settings
from data.store.parquet import DATA_FOLDER
from data.store.plan import SPLITS, Chunk, short_name
from shared.files import storable, write_bytes

MEASURED = (
    "area",
    "severity",
    "map_mask_correlation",
    "is_control",
    "control",
    "restorer",
    "mask_kind",
    "task",
    "source",
)
LIBRARIES = ("torch", "numpy", "opencv-python-headless", "scikit-image", "albumentations", "pillow", "pyarrow")

NO_LICENCE = "other"  # of a dataset that nobody has published

CARD = """\
---
pretty_name: Region-swapped restorations with degradation maps
license: {licence}
tags: [image-restoration, super-resolution, image-quality-assessment, degradation-map]
configs:
- config_name: default
  version: {version}
  data_files:
{data_files}
---

# Region-swapped restorations with degradation maps

Each row shows a clean picture `gt`, its degraded version `lq`, a restorer's answer `sr`, and `syn`: gt with sr pasted
where `mask` is 1. `degradation_map` says where syn is worse than gt, and by how much. Made by restore-rl's
`python -m data.build`; every row is a function of (seed {seed}, image_id, index, region).

## Rows

{counts}

| Column | Holds |
|---|---|
| gt, lq, sr, syn | RGB, 8 bits |
| mask | 8 bits, feathered; syn equals gt bit for bit where it is 0 |
| degradation_map, sr_degradation_map | targets for syn and for sr, 16 bits: level / 65535; 0 clean, 1 worst |
| pixel_map, feature_map, sr_pixel_map, sr_feature_map | their raw components, 16 bits: level / 65535 × scale; scale 1 for \
pixel, {peak:g} for feature |
| area, severity | mean of mask; mean of degradation_map inside it |
| map_mask_correlation | Pearson's, over the pixels of degradation_map and mask |
| is_control, control | a harmless swap (its kind) whose target is 0 everywhere |
| restorer, mask_kind, task, source, image_id, index, region | where the row comes from |
| parameters | JSON: what was drawn for crop, degradation and edge |

`test_restorer` holds rows of test pictures by restorers that no other split holds: {held_out}. `test_source` holds
pictures of a part of the sources that no other split holds.

## Degradation maps

map = clip((α · pixel / {pixel:.4g} + (1 − α) · feature / {feature:.4g}) / {mixture:.4g}), α = {alpha:g}; the three
numbers are {quantile:g} quantiles inside the masks of the train split, fitted once. Feature distance: {features}.

## Area of the swapped region, share of the picture

{area}

## Severity, mean of the map inside the region (controls left out)

{severity}

## By restorer

{restorers}

## By kind of region

{masks}

Severity and correlation are means over the rows that are no controls; the correlation is that of map and mask.

## Controls

{controls}

## Weights of the restorers

{weights}

## Sources and licences

{licences}

Each picture keeps its source's licence.

## Versions

{versions}

## Config

```yaml
{config}```
"""


def write_dataset_card(
    folder: Path,
    config: BuildConfig,
    sources: list[ImageSource],
    chunks: list[Chunk],
    normaliser: Normaliser,
    *,
    inputs: dict[str, str],
) -> dict[str, int]:
    """Writes README.md from the finished files and returns the rows of each split.

    `inputs` holds the checksums and commits of what the build read.
    """
    columns = {split: _measured(folder, [c for c in chunks if c.split == split]) for split in SPLITS}
    columns = {split: values for split, values in columns.items() if values is not None}
    swaps = np.concatenate([values["severity"][~values["is_control"]] for values in columns.values()])
    areas = np.concatenate([values["area"] for values in columns.values()])
    alpha = config.targets.pixel_weight
    held_out = [name for name, entry in config.restorers.items() if entry.held_out]
    card = CARD.format(
        data_files="\n".join(
            f"  - split: {split}\n    path: {DATA_FOLDER}/{split}-?????-of-?????.parquet" for split in columns
        ),
        version=_content_version(folder, chunks, columns),
        licence=config.push_licence or NO_LICENCE,
        seed=config.seed,
        counts=counts_table(columns),
        peak=normaliser.feature_peak,
        held_out=", ".join(held_out) or "none",
        pixel=normaliser.pixel_quantile,
        feature=normaliser.feature_quantile,
        mixture=normaliser.mixture_quantile(alpha),
        alpha=alpha,
        quantile=config.targets.quantile,
        features=config.targets.features,
        area=histogram(areas, np.geomspace(min(0.001, config.masks.area_min), 1.0, 11), form="{:.3f}"),
        severity=histogram(swaps, np.linspace(0.0, 1.0, 11), form="{:.1f}"),
        restorers=restorer_table(columns),
        masks=mask_table(columns),
        controls=control_table(columns),
        weights=weights_table({name: entry.path for name, entry in config.restorers.items()}, inputs),
        licences="\n".join(
            f"- {short_name(source.name)}: {source.licence}; {len(source.image_ids)} pictures" for source in sources
        ),
        versions=", ".join([f"python {platform.python_version()}", *(f"{name} {version(name)}" for name in LIBRARIES)]),
        config=OmegaConf.to_yaml(public_settings(config)),
    )
    write_bytes(folder / "README.md", storable(card).encode())
    return {split: len(values["area"]) for split, values in columns.items()}


def _measured(folder: Path, chunks: list[Chunk]) -> Columns | None:
    # Only the small columns are read: the pictures stay on disk, however many there are.
    if not chunks:
        return None
    tables = [pq.read_table(folder / DATA_FOLDER / chunk.file_name, columns=list(MEASURED)) for chunk in chunks]
    table = pa.concat_tables(tables)
    return {name: table[name].to_numpy() for name in MEASURED}


def _content_version(folder: Path, chunks: list[Chunk], columns: dict[str, Columns]) -> str:
    # load_dataset keeps one copy per folder name and version: without this, another dataset of that name would be read.
    sizes = np.array([(folder / DATA_FOLDER / chunk.file_name).stat().st_size for chunk in chunks], np.int64)
    checksum = zlib.crc32(sizes.tobytes())
    for values in columns.values():
        for name in ("area", "severity", "map_mask_correlation"):
            checksum = zlib.crc32(values[name].tobytes(), checksum)
    return f"1.0.{checksum}"
