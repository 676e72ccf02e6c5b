"""A Hub dataset as a folder: its first pictures are streamed once, byte for byte, and read from disk ever after."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from shared.app.errors import UserError
from shared.files import write_bytes
from shared.runs.tracking import progress

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
    stream = _until_broken(rows.take(count), dataset_id)
    for row in progress(stream, title=f"streaming {dataset_id}", unit="image", total=count):
        _keep(row[column], folder, fetched)
        fetched += 1
    if not fetched:
        raise UserError(f"hf:{dataset_id} has no rows in split {split}")
    write_bytes(complete, json.dumps({"images": fetched, "licence": licence}).encode())
    return folder, licence


def _until_broken(rows: Iterable[dict[str, Any]], dataset_id: str) -> Iterator[dict[str, Any]]:
    # Around the reading alone: a full disk while writing is another matter.
    stream, fetched = iter(rows), 0
    while True:
        try:
            row = next(stream)
        except StopIteration:
            return
        except Exception as error:  # of the transfer, the reader of the files and whatever is between them
            said = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"hf:{dataset_id} broke off after {fetched} pictures ({said[:200]}); run the same command again"
            ) from None
        yield row
        fetched += 1


def _keep(picture: dict[str, Any], folder: Path, index: int) -> None:
    content = picture["bytes"]
    if content is None:
        content = Path(picture["path"]).read_bytes()
    path = folder / f"{index:07d}{_suffix(content)}"
    if not path.exists():
        write_bytes(path, content)


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
    licence = rows.info.license or _stated_licence(dataset_id, revision)
    return rows.select_columns([column]).cast_column(column, datasets.Image(decode=False)), licence


def _stated_licence(dataset_id: str, revision: str | None) -> str:
    """Returns the licence in the dataset card's head, which `datasets` does not pass on."""
    from huggingface_hub import DatasetCard, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        card = Path(dataset_id) / "README.md"
        if not Path(dataset_id).is_dir():
            card = Path(hf_hub_download(dataset_id, "README.md", repo_type="dataset", revision=revision))
        stated = DatasetCard(card.read_text()).data.license
    except (OSError, ValueError, HfHubHTTPError, LocalEntryNotFoundError):
        return "not stated"  # no card, or a damaged one
    return ", ".join(stated) if isinstance(stated, list) else stated or "not stated"


def _suffix(content: bytes) -> str:
    try:
        with Image.open(io.BytesIO(content)) as image:
            return {"JPEG": ".jpg", "MPO": ".jpg", "WEBP": ".webp", "TIFF": ".tif", "BMP": ".bmp"}.get(
                image.format, ".png"
            )
    except Exception:
        return ".png"  # kept under some name, so that the scan names it among the unreadable
