"""The finished dataset as records for training and evaluation; decoded row by row, so that it need not fit into memory."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from data.regions.targets import Distances, Normaliser, severity
from data.store.dataset_sample import Sample
from data.store.parquet import DATA_FOLDER, NORMALISER_FILE, RAW_MAPS, ParquetRows
from shared.app.config import from_dict
from shared.app.errors import UserError
from shared.runs.run_folder import SUMMARY_FILE

_PICTURES = ("gt", "lq", "sr", "syn", "mask", "degradation_map", "sr_degradation_map")
_VALUES = ("area", "severity", "is_control", "restorer", "mask_kind", "source", "image_id", "index")


# Of decoded rows that a process keeps; the others are decoded each time, so that a large dataset is slower, no more.
CACHE_BYTES = 2**30


class SampleDataset(Dataset):
    """One split as `Sample`s."""

    def __init__(self, rows: ParquetRows, *, normaliser: Normaliser, pixel_weight: float | None, cache: bool) -> None:
        self._rows = rows
        self._normaliser, self._pixel_weight = normaliser, pixel_weight
        self._cache: dict[int, dict[str, Any]] = {}
        self._cache_bytes_left = CACHE_BYTES if cache else 0

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        row = self._levels(index)
        tensors = {name: _to_tensor(row[name]) for name in _PICTURES}
        if self._pixel_weight is None:
            return Sample(**tensors, **{name: row[name] for name in _VALUES})
        remixed = self._remixed(row)
        values = {name: row[name] for name in _VALUES}
        values["severity"] = severity(remixed["degradation_map"].numpy(), tensors["mask"].numpy())
        return Sample(**tensors | remixed, **values)

    def parameters(self, index: int) -> str:
        """Returns what was drawn for the row, as JSON."""
        return self._rows.row(index, ["parameters"])["parameters"]

    def column(self, name: str) -> list[Any]:
        """Returns one of the small columns, such as restorer or area."""
        return self._rows.column(name)

    def _levels(self, index: int) -> dict[str, Any]:
        """Returns the row with its pictures as uint8 or uint16 arrays."""
        if index in self._cache:
            return self._cache[index]
        wanted = _PICTURES if self._pixel_weight is None else (*_PICTURES, *RAW_MAPS)
        row = self._rows.row(index, (*wanted, *_VALUES))
        levels = {name: np.asarray(Image.open(io.BytesIO(row[name]["bytes"]))) for name in wanted}
        levels |= {name: row[name] for name in _VALUES}
        size = sum(levels[name].nbytes for name in wanted)
        if size <= self._cache_bytes_left:
            self._cache[index] = levels
            self._cache_bytes_left -= size
        return levels

    def _remixed(self, row: dict[str, Any]) -> dict[str, torch.Tensor]:
        maps = {}
        for prefix in ("", "sr_"):
            pixel, feature = (_to_unit(row[f"{prefix}{kind}_map"]) for kind in ("pixel", "feature"))
            mixed = self._normaliser.degradation_map(
                Distances(pixel, feature * self._normaliser.feature_peak), pixel_weight=self._pixel_weight
            )
            harmless = row["is_control"] and not prefix
            maps[f"{prefix}degradation_map"] = torch.from_numpy(np.zeros_like(mixed) if harmless else mixed)[None]
        return maps


def load_samples(
    folder: str | Path, split: str, *, pixel_weight: float | None = None, cache: bool = False
) -> SampleDataset:
    """Returns one split of a finished dataset.

    `pixel_weight` mixes the maps anew from their stored components with another α; None takes them as built. `cache`
    keeps decoded rows in memory, a gigabyte of them at most. Raises UserError when there is no such finished split.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no dataset folder {folder}; build it with: make dataset")
    if not (folder / SUMMARY_FILE).exists():
        raise UserError(f"{folder} holds no finished dataset; finish it with the command that began it")
    files: dict[str, list[Path]] = {}
    for path in sorted((folder / DATA_FOLDER).glob("*.parquet")):
        files.setdefault(path.name.split("-")[0], []).append(path)
    if split not in files:
        raise UserError(f"no split {split!r} in {folder}; it holds {', '.join(sorted(files))}")
    normaliser = from_dict(Normaliser, json.loads((folder / NORMALISER_FILE).read_text()))
    return SampleDataset(ParquetRows(files[split]), normaliser=normaliser, pixel_weight=pixel_weight, cache=cache)


def _to_unit(levels: np.ndarray) -> np.ndarray:
    return levels.astype(np.float32) / np.float32(np.iinfo(levels.dtype).max)


def _to_tensor(levels: np.ndarray) -> torch.Tensor:
    unit = torch.from_numpy(_to_unit(levels))
    return unit[None] if unit.ndim == 2 else unit.permute(2, 0, 1).contiguous()
