"""Rows ↔ parquet files: the columns of the dataset, and a writer whose bytes depend on the rows alone."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, Value

from data.plan import Chunk
from shared.images import encode_png, encode_png16, write_bytes

# In the dataset's folder; the build log is gone once it is finished.
DATA_FOLDER, LOG_FOLDER, NORMALISER_FILE, INPUTS_FILE = "data", "build_log", "normaliser.json", "inputs.json"
PICTURES = ("gt", "lq", "sr", "syn", "mask")  # 8-bit PNG
MAPS = ("degradation_map", "sr_degradation_map")  # 16-bit PNG: level / 65535
RAW_MAPS = ("pixel_map", "feature_map", "sr_pixel_map", "sr_feature_map")  # 16-bit PNG: peak · level / 65535
# One pair's rows share these: a dictionary stores the bytes once.
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
    """Returns the name of the file that says what a chunk cost."""
    return f"{LOG_FOLDER}/{chunk.file_name.removesuffix('.parquet')}.json"


def encode_columns(pictures: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Returns each picture or map as the struct that an Image column holds; 16 bits for float maps, 8 for the rest."""
    encoded = {}
    for name, picture in pictures.items():
        content = encode_png16(picture) if name in (*MAPS, *RAW_MAPS) else encode_png(picture / np.float32(255.0))
        encoded[name] = {"bytes": content, "path": None}
    return encoded


def write_shard(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes the rows as one parquet file, whole or not at all, the same bytes for the same rows."""
    columns = {name: [row[name] for row in rows] for name in FEATURES}
    table = pa.table(columns, schema=FEATURES.arrow_schema)
    buffer = io.BytesIO()
    pq.write_table(
        table,
        buffer,
        row_group_size=len(rows),
        compression="none",  # PNG does not shrink further
        use_dictionary=[f"{name}.bytes" for name in SHARED_BY_PAIR],
        dictionary_pagesize_limit=2**30,
    )
    write_bytes(path, buffer.getvalue())


def to_json(parameters: dict[str, Any]) -> str:
    """Returns the drawn parameters as one line of JSON, the same for the same values."""
    return json.dumps(parameters, sort_keys=True, default=_plain)


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is no JSON")
