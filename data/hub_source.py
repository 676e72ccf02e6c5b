"""A Hub dataset as a folder: its first pictures are streamed once, byte for byte, and read from disk ever after."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from shared.errors import UserError
from shared.images import write_bytes
from shared.tracking import progress

COMPLETE_FILE = "complete.json"


def stream_images(
    dataset_id: str, *, cache: Path, split: str, column: str, revision: str | None, count: int
) -> tuple[Path, str]:
    """Returns the folder that holds the first `count` pictures of the dataset, and the licence it states.

    What an interrupted call fetched is kept. Raises UserError when the dataset, split or column is not there.
    """
    name = "@".join([dataset_id.strip("/"), revision or "main", split, column, str(count)])
    folder = cache / name.replace("/", "--")
    complete = folder / COMPLETE_FILE
    if complete.is_file():
        return folder, json.loads(complete.read_text())["licence"]
    rows, licence = _open_stream(dataset_id, split=split, column=column, revision=revision)
    fetched = 0
    for index, row in enumerate(progress(rows.take(count), title=f"streaming {dataset_id}", unit="image", total=count)):
        content = row[column]["bytes"]
        if content is None:
            content = Path(row[column]["path"]).read_bytes()
        path = folder / f"{index:07d}{_suffix(content)}"
        if not path.exists():
            write_bytes(path, content)
        fetched += 1
    if not fetched:
        raise UserError(f"hf:{dataset_id} has no rows in split {split}")
    write_bytes(complete, json.dumps({"images": fetched, "licence": licence}).encode())
    return folder, licence


def _open_stream(dataset_id: str, *, split: str, column: str, revision: str | None) -> tuple[Any, str]:
    import datasets  # slow to import, and only this path needs it

    try:
        rows = datasets.load_dataset(dataset_id, split=split, revision=revision, streaming=True)
    except Exception as error:  # no such dataset, split or revision, no network: each has its own exception
        said = " ".join(str(error).split())
        raise UserError(
            f"cannot open hf:{dataset_id} (split {split}): {said}; check the id, the split and the network"
        ) from None
    if rows.features is None or column not in rows.features:
        columns = ", ".join(rows.features or []) or "none"
        raise UserError(f"hf:{dataset_id} has no column {column}; it has {columns}: set source.hub_column")
    licence = rows.info.license or "not stated"
    return rows.select_columns([column]).cast_column(column, datasets.Image(decode=False)), licence


def _suffix(content: bytes) -> str:
    try:
        with Image.open(io.BytesIO(content)) as image:
            return {"JPEG": ".jpg", "MPO": ".jpg", "WEBP": ".webp", "TIFF": ".tif", "BMP": ".bmp"}.get(
                image.format, ".png"
            )
    except Exception:
        return ".png"  # kept under some name, so that the scan names it among the unreadable
