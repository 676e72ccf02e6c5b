"""Opens every file that a run leaves, each as what its name says, and none by unpickling."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet
import yaml
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader


def _lines(path: Path) -> None:
    for line in path.read_text().splitlines():
        json.loads(line)


OPENERS = {
    ".safetensors": load_file,
    ".json": lambda path: json.loads(path.read_text()),
    ".jsonl": _lines,
    ".yaml": lambda path: yaml.safe_load(path.read_text()),
    ".md": Path.read_text,
    ".png": lambda path: Image.open(path).load(),
    ".parquet": pyarrow.parquet.read_table,
}


def open_every_file(folder: Path) -> set[str]:
    """Returns the names of the files below `folder`, each of which has been opened; fails for one of another kind."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    assert found
    for path in found:
        if path.name.startswith("events.out.tfevents"):
            list(RawEventFileLoader(str(path)).Load())
        else:
            OPENERS[path.suffix](path)
        assert not path.read_bytes().startswith((b"PK\x03\x04", b"\x80")), f"{path} looks like a pickle"
    return {path.relative_to(folder).as_posix() for path in found}
