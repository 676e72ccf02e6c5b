"""A Hub dataset as a folder: its first pictures are streamed once, byte for byte, and read from disk from then on."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from shared.app.errors import UserError
from shared.files import write_bytes
from shared.hub import fetch_snapshot  # noqa: F401 (its client refuses what a Hub must not answer)
from shared.hub_settings import require_reachable
from shared.pictures.limits import FORMATS
from shared.runs.tracking import progress

COMPLETE_FILE, STATE_FILE = "complete.json", "state.json"
STATE_EVERY = 20  # pictures between two notes of how far the stream came


def stream_images(
    dataset_id: str, *, cache: Path, split: str, column: str, revision: str | None, count: int
) -> tuple[Path, str]:
    """Returns the folder that holds the first `count` pictures of the dataset, and the licence it states.

    The next call after an interrupted one goes on where it stopped. Raises UserError when the dataset, split or column
    is not there.
    """
    name = "@".join([dataset_id.strip("/"), revision or "main", split, column, str(count)])
    folder = cache / name.replace("/", "--")
    complete = folder / COMPLETE_FILE
    if complete.is_file():
        return folder, json.loads(complete.read_text(encoding="utf-8"))["licence"]
    rows, licence = _open_stream(dataset_id, split=split, column=column, revision=revision)
    fetched = _resume(rows, folder / STATE_FILE)
    stream = islice(_until_broken(rows, dataset_id, column, folder / STATE_FILE, fetched), count - fetched)
    for picture in progress(stream, title=f"streaming {dataset_id}", unit="image", total=count, done=fetched):
        _keep(picture, folder, fetched)
        fetched += 1
    if not fetched:
        raise UserError(f"hf:{dataset_id} has no rows in split {split}")
    write_bytes(complete, json.dumps({"images": fetched, "licence": licence}).encode())
    (folder / STATE_FILE).unlink(missing_ok=True)
    return folder, licence


def _resume(rows: Any, state_file: Path) -> int:
    """Moves the stream to where the last call stopped, and returns how many pictures that call had kept."""
    try:
        noted = json.loads(state_file.read_text(encoding="utf-8"))
        rows.load_state_dict(noted["state"])
        return int(noted["fetched"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0  # none, or another version's: pictures that are already there are not written again


def _until_broken(rows: Any, dataset_id: str, column: str, state_file: Path, fetched: int) -> Iterator[bytes]:
    """Yields the content of each picture; notes the stream's state now and then, and when it breaks."""
    stream = iter(rows)
    state = {"fetched": fetched, "state": rows.state_dict()}
    while True:
        # Around the reading alone: a full disk while writing is another matter.
        try:
            content = _content(next(stream)[column])
        except StopIteration:
            return
        except Exception as error:  # of the transfer, the reader of the files and whatever is between them
            write_bytes(state_file, json.dumps(state).encode())
            said = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"hf:{dataset_id} broke off after {fetched} pictures ({said[:200]}); run the same command again"
            ) from None
        yield content
        fetched += 1
        state = {"fetched": fetched, "state": rows.state_dict()}
        if fetched % STATE_EVERY == 0:
            write_bytes(state_file, json.dumps(state).encode())


def _content(picture: dict[str, Any]) -> bytes:
    """Returns a picture's bytes: a row's own, or those of the file that a repository of loose pictures names."""
    if picture["bytes"] is not None:
        return picture["bytes"]
    import fsspec  # comes with datasets, and knows the Hub's addresses and those inside archives

    with fsspec.open(picture["path"], "rb") as file:
        return file.read()


def _keep(content: bytes, folder: Path, index: int) -> None:
    path = folder / f"{index:07d}{_suffix(content)}"
    if not path.exists():
        write_bytes(path, content)


def _open_stream(dataset_id: str, *, split: str, column: str, revision: str | None) -> tuple[Any, str]:
    import datasets  # slow to import, and only this path needs it

    require_reachable()
    try:
        rows = datasets.load_dataset(dataset_id, split=split, revision=revision, streaming=True)
    except Exception as error:  # no such dataset, split or revision, no network: each has its own exception
        said = " ".join(str(error).split())
        raise UserError(
            f"cannot open hf:{dataset_id} (split {split}): {said}; check the id, the split and the network"
        ) from None
    features = rows.features or {}
    if column not in features:
        columns = ", ".join(features) or "none"
        raise UserError(f"hf:{dataset_id} has no column {column}; it has {columns}: set source.hub_column")
    if not isinstance(features[column], datasets.Image):
        raise UserError(f"hf:{dataset_id}: the column {column} holds no pictures; set source.hub_column")
    licence = rows.info.license or _stated_licence(dataset_id, revision)
    # Undecoded first: of loose pictures there would be pixels left, and no bytes.
    return rows.decode(False).select_columns([column]), licence


def _stated_licence(dataset_id: str, revision: str | None) -> str:
    """Returns the licence in the dataset card's head, which `datasets` does not pass on."""
    from huggingface_hub import DatasetCard, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        card = Path(dataset_id) / "README.md"
        if not Path(dataset_id).is_dir():
            card = Path(hf_hub_download(dataset_id, "README.md", repo_type="dataset", revision=revision))
        stated = DatasetCard(card.read_text(encoding="utf-8")).data.license
    except (OSError, ValueError, HfHubHTTPError, LocalEntryNotFoundError):
        return "not stated"  # no card, or a damaged one
    return ", ".join(stated) if isinstance(stated, list) else stated or "not stated"


def _suffix(content: bytes) -> str:
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return {"JPEG": ".jpg", "MPO": ".jpg", "WEBP": ".webp", "TIFF": ".tif", "BMP": ".bmp"}.get(
                image.format, ".png"
            )
    except Exception:
        return ".png"  # kept under some name, so that the scan names it among the unreadable
