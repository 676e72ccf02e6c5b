"""The finished dataset as records for training and evaluation; decoded row by row, so that it need not fit into memory."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf.errors import OmegaConfBaseException
from PIL import Image
from torch.utils.data import Dataset

from data.regions.targets import MIXTURE_WEIGHTS, Distances, Normaliser, severity
from data.store.dataset_sample import Sample
from data.store.parquet import DATA_FOLDER, MAPS, NORMALISER_FILE, RAW_MAPS, ParquetRows
from shared.app.config import from_dict
from shared.app.errors import UserError
from shared.runs.run_folder import SUMMARY_FILE
from shared.weights import read_description

_PICTURES = ("gt", "lq", "sr", "syn", "mask", "degradation_map", "sr_degradation_map")
_GREY = ("mask", "degradation_map", "sr_degradation_map", *RAW_MAPS)  # the others are RGB
_KINDS = {"area": float, "severity": float, "is_control": bool, "index": int}  # the other values are text
_VALUES = ("area", "severity", "is_control", "restorer", "mask_kind", "source", "image_id", "index")


# Of decoded rows that a process keeps; the others are decoded each time, so that a large dataset is slower, no more.
CACHE_BYTES = 2**30
MOST_SIDE_PX = 4096  # of a stored picture: the largest crop that a build makes


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
        return str(self._rows.row(index, ["parameters"])["parameters"])

    def column(self, name: str) -> list[Any]:
        """Returns one of the small columns, such as restorer or area."""
        return self._rows.column(name)

    def _levels(self, index: int) -> dict[str, Any]:
        """Returns the row with its pictures as uint8 or uint16 arrays."""
        if index in self._cache:
            return self._cache[index]
        wanted = _PICTURES if self._pixel_weight is None else (*_PICTURES, *RAW_MAPS)
        row = self._rows.row(index, (*wanted, *_VALUES))
        try:
            levels = {name: _decoded(row[name], name) for name in wanted}
            _require_one_size(levels)
            levels |= {name: _value(row[name], name) for name in _VALUES}
        except Exception as error:  # a damaged picture raises what its decoder meets first
            raise UserError(
                f"row {index} of {self._rows.folder} is damaged ({error}); build the dataset again"
            ) from None
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
    normaliser = read_normaliser(folder)
    return SampleDataset(ParquetRows(files[split]), normaliser=normaliser, pixel_weight=pixel_weight, cache=cache)


def read_normaliser(folder: Path) -> Normaliser:
    """Returns the scale of a dataset's folder. Raises UserError where it is missing or damaged."""
    path = folder / NORMALISER_FILE
    try:
        normaliser = from_dict(Normaliser, read_description(path, advice="build the dataset again"))
        quantiles = (normaliser.pixel_quantile, normaliser.feature_quantile, *normaliser.mixture_quantiles)
        if len(normaliser.mixture_quantiles) != len(MIXTURE_WEIGHTS) or not all(0 < q < math.inf for q in quantiles):
            raise ValueError("its quantiles are not those of a scale")
        return normaliser
    except (OSError, OmegaConfBaseException, TypeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} holds no scale ({reason}); build the dataset again") from None


def _decoded(stored: Any, name: str) -> np.ndarray:
    """Returns a stored PNG's levels. Raises ValueError for another format, kind of pixels or a size beyond all crops."""
    with Image.open(io.BytesIO(stored["bytes"]), formats=("PNG",)) as image:
        if max(image.size) > MOST_SIDE_PX:
            raise ValueError(f"{name} is {image.size[0]}×{image.size[1]}, larger than {MOST_SIDE_PX} a side")
        levels = np.asarray(image)
    grey, deep = name in _GREY, name in (*MAPS, *RAW_MAPS)
    if levels.shape[2:] != (() if grey else (3,)) or levels.dtype != (np.uint16 if deep else np.uint8):
        raise ValueError(f"{name} holds {list(levels.shape)} {levels.dtype}")
    return levels


def _require_one_size(levels: dict[str, np.ndarray]) -> None:
    sizes = {name: picture.shape[:2] for name, picture in levels.items() if name != "lq"}
    other = next((name for name, size in sizes.items() if size != sizes["gt"]), None)
    if other:
        raise ValueError(f"{other} is {list(sizes[other])}, but gt {list(sizes['gt'])}")


def _value(value: Any, name: str) -> Any:
    kind = _KINDS.get(name, str)
    if not isinstance(value, kind) or (kind is float and not math.isfinite(value)):
        raise ValueError(f"{name} is {value!r}")
    return value


def _to_unit(levels: np.ndarray) -> np.ndarray:
    return levels.astype(np.float32) / np.float32(np.iinfo(levels.dtype).max)


def _to_tensor(levels: np.ndarray) -> torch.Tensor:
    unit = torch.from_numpy(_to_unit(levels))
    return unit[None] if unit.ndim == 2 else unit.permute(2, 0, 1).contiguous()
