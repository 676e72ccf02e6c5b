"""Rows ↔ parquet files: the columns of the dataset, and a writer whose bytes depend on the rows alone."""

from __future__ import annotations

import io
import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, Value

from data.store.plan import Chunk
from shared.app.errors import UserError
from shared.files import write_bytes
from shared.vision.images import encode_png, encode_png16

# In the dataset's folder; the build log is removed once the dataset is finished.
DATA_FOLDER, LOG_FOLDER, NORMALISER_FILE, INPUTS_FILE = "data", "build_log", "normaliser.json", "inputs.json"
PICTURES = ("gt", "lq", "sr", "syn", "mask")  # 8-bit PNG
MAPS = ("degradation_map", "sr_degradation_map")  # 16-bit PNG: level / 65535
RAW_MAPS = ("pixel_map", "feature_map", "sr_pixel_map", "sr_feature_map")  # 16-bit PNG: peak · level / 65535
# One pair's rows share these: a dictionary stores their bytes once.
SHARED_BY_PAIR = ("gt", "lq", "sr", "sr_degradation_map", "sr_pixel_map", "sr_feature_map")

FEATURES = Features(
    {
        **{name: Image() for name in (*PICTURES, *MAPS, *RAW_MAPS)},
        "area": Value("float32"),
        "severity": Value("float32"),
        "map_mask_correlation": Value("float32"),
        "is_control": Value("bool"),
        "control": Value("string"),
        "restorer": Value("string"),
        "mask_kind": Value("string"),
        "task": Value("string"),
        "source": Value("string"),
        "image_id": Value("string"),
        "index": Value("int64"),
        "region": Value("int32"),
        "parameters": Value("string"),
    }
)


def log_name(chunk: Chunk) -> str:
    """Returns the name of the file with a chunk's timings."""
    return f"{LOG_FOLDER}/{chunk.file_name.removesuffix('.parquet')}.json"


def encode_columns(pictures: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Returns each picture or map as the struct that an Image column holds; 16 bits for float maps, 8 for the rest."""
    encoded = {}
    for name, picture in pictures.items():
        content = encode_png16(picture) if name in (*MAPS, *RAW_MAPS) else encode_png(picture / np.float32(255.0))
        encoded[name] = {"bytes": content, "path": None}
    return encoded


def write_rows(path: Path, rows: list[dict[str, Any]], *, rows_per_pair: int) -> None:
    """Writes the rows as one parquet file, whole or not at all, the same bytes for the same rows.

    A row group holds the rows of one pair: a reader fetches one without the others, and shared pictures lie there once.
    """
    columns = {name: [row[name] for row in rows] for name in FEATURES}
    table = pa.table(columns, schema=FEATURES.arrow_schema)
    buffer = io.BytesIO()
    pq.write_table(
        table,
        buffer,
        row_group_size=rows_per_pair,
        compression="none",  # PNG does not shrink further
        use_dictionary=[f"{name}.bytes" for name in SHARED_BY_PAIR],
        dictionary_pagesize_limit=2**30,
    )
    write_bytes(path, buffer.getvalue())


class ParquetRows:
    """The rows of several parquet files by number, read from disk one row group at a time; cheap to pickle."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        # Where each row group begins among all rows, and which file and group it is.
        self._starts, self._groups = [0], []
        for file, path in enumerate(self.paths):
            with refused_where_damaged(path):
                metadata = pq.read_metadata(path)
            for group in range(metadata.num_row_groups):
                self._groups.append((file, group))
                self._starts.append(self._starts[-1] + metadata.row_group(group).num_rows)

    @property
    def folder(self) -> Path:
        """The folder of the files."""
        return self.paths[0].parent

    def __len__(self) -> int:
        return self._starts[-1]

    def row(self, index: int, columns: Sequence[str]) -> dict[str, Any]:
        """Returns one row's values, pictures undecoded as {"bytes", "path"}."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect_right(self._starts, index) - 1
        file, group = self._groups[number]
        with refused_where_damaged(self.paths[file]):
            rows = _open(self.paths[file]).read_row_group(group, columns=list(columns), use_threads=False)
            row = rows.slice(index - self._starts[number], 1).to_pylist()[0]
        if absent := sorted(set(columns) - row.keys()):
            raise UserError(f"{self.paths[file]} has no column {', '.join(absent)}; build the dataset again")
        return row

    def column(self, name: str) -> list[Any]:
        """Returns one column of all rows; meant for the small ones."""
        values = []
        for path in self.paths:
            with refused_where_damaged(path):
                values += pq.read_table(path, columns=[name])[name].to_pylist()
        return values


@contextmanager
def refused_where_damaged(path: Path) -> Iterator[None]:
    """Turns what pyarrow raises for a file that is cut, damaged or no parquet into a UserError; likewise a pipe."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is no plain file; remove it and build the dataset again")
    try:
        yield
    except (pa.ArrowException, OSError, KeyError, ValueError, IndexError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path} is damaged ({reason}); remove it and build the dataset again") from None


@lru_cache(maxsize=64)
def _open(path: Path) -> pq.ParquetFile:
    # Open files cannot be passed to another process, so each has its own.
    return pq.ParquetFile(path, memory_map=True)


def to_json(parameters: dict[str, Any]) -> str:
    """Returns the drawn parameters as one line of JSON, the same for the same values."""
    return json.dumps(parameters, sort_keys=True, default=_plain)


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is no JSON")
