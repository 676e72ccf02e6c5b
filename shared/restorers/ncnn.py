"""Published networks as ncnn pairs (`.param` and `.bin`): read without ncnn, run by spandrel's architectures.

Two architectures: ESRGAN's residual-in-residual dense blocks (RRDB) and Real-ESRGAN's compact network. A `.param` file
lists one layer a line after two header lines, `type name n_in n_out inputs… outputs… key=value…`; the `.bin` file holds
their weights in that order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from shared.app.errors import UserError
from shared.restorers.feed_forward import SpandrelRestorer

PARAM_MAGIC, MOST_PARAM_BYTES = "7767517", 10_000_000
OUT_CHANNELS, KERNEL_SIZE, HAS_BIAS, WEIGHT_COUNT = 0, 1, 5, 6  # keys of a Convolution
FLOAT16_TAG, FLOAT32_TAG = 0x01306B47, 0  # what precedes a convolution's weights
CONVS_PER_DENSE_BLOCK, DENSE_BLOCKS = 5, 3
# After the RRDBs, in spandrel's names.
RRDB_ENDS = ("conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last")


@dataclass(frozen=True)
class NcnnLayer:
    """One layer of a `.param` file with its weights."""

    kind: str  # Convolution or PReLU
    weight: torch.Tensor  # [out, in, k, k] of a convolution, [channels] of a PReLU
    bias: torch.Tensor | None  # [out]


def load_ncnn(param: str | Path) -> SpandrelRestorer:
    """Returns the restorer in a `.param` file and the `.bin` file beside it.

    Raises UserError when the pair is damaged or holds neither an RRDB nor a compact network.
    """
    from spandrel import ModelLoader, UnsupportedModelError  # its registry takes seconds to import

    param = Path(param)
    state = network_state(read_layers(param), param)
    try:
        return SpandrelRestorer(ModelLoader(device="cpu").load_from_state_dict(state))
    except (UnsupportedModelError, RuntimeError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{param} holds no network that spandrel knows ({reason}); give another file") from None


def read_layers(param: Path) -> list[NcnnLayer]:
    """Returns the layers that have weights, in order. Raises UserError when the two files do not fit each other."""
    binary = param.with_suffix(".bin")
    odd = [path for path in (param, binary) if path.exists() and not path.is_file()]
    if odd or (param.is_file() and param.stat().st_size > MOST_PARAM_BYTES):
        raise UserError(f"{(odd or [param])[0]} is no file of an ncnn pair; download the pair again")
    try:
        lines, content = param.read_text(encoding="utf-8").splitlines(), binary.read_bytes()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{param} cannot be read ({error}); expected an ncnn .param file and its .bin beside it"
        ) from None
    if not lines or lines[0].strip() != PARAM_MAGIC:
        raise UserError(f"{param} is no ncnn .param file: its first line is not {PARAM_MAGIC}")
    reader = _Reader(content, binary)
    layers = list(_layers(lines[2:], reader, param))
    reader.require_end()
    return layers


def network_state(layers: list[NcnnLayer], param: Path) -> dict[str, torch.Tensor]:
    """Returns the weights under the names of spandrel's ESRGAN or compact network. Raises UserError for another one."""
    if any(layer.kind == "PReLU" for layer in layers):
        return _named((f"body.{number}" for number in range(len(layers))), layers)
    names = rrdb_names(len(layers))
    if names is None:
        raise UserError(f"{param} holds {len(layers)} convolutions: neither an RRDB network nor a compact one")
    return _named(names, layers)


def rrdb_names(convolutions: int) -> list[str] | None:
    """Returns the names of an RRDB network's convolutions in order, or None when there cannot be so many."""
    per_block = CONVS_PER_DENSE_BLOCK * DENSE_BLOCKS
    blocks, rest = divmod(convolutions - 1 - len(RRDB_ENDS), per_block)
    if rest or blocks < 1:
        return None
    dense = [
        f"body.{block}.rdb{dense}.conv{conv}"
        for block in range(blocks)
        for dense in range(1, DENSE_BLOCKS + 1)
        for conv in range(1, CONVS_PER_DENSE_BLOCK + 1)
    ]
    return ["conv_first", *dense, *RRDB_ENDS]


def _named(names: Iterator[str] | list[str], layers: list[NcnnLayer]) -> dict[str, torch.Tensor]:
    state = {}
    for name, layer in zip(names, layers, strict=True):
        state[f"{name}.weight"] = layer.weight
        if layer.bias is not None:
            state[f"{name}.bias"] = layer.bias
    return state


def _layers(lines: list[str], reader: _Reader, param: Path) -> Iterator[NcnnLayer]:
    for line in filter(None, map(str.strip, lines)):
        kind = line.split()[0]
        settings = {int(key): int(value) for key, value in re.findall(r"\s(\d+)=(\d+)(?=\s|$)", line)}
        if kind == "Convolution":
            try:
                out, side, count = settings[OUT_CHANNELS], settings[KERNEL_SIZE], settings[WEIGHT_COUNT]
                weight = reader.tagged(count).reshape(out, -1, side, side)
            except (KeyError, RuntimeError):
                raise UserError(f"{param}: {line!r} is no convolution of known shape") from None
            yield NcnnLayer(kind, weight, reader.floats(out) if settings.get(HAS_BIAS) else None)
        elif kind == "PReLU":
            yield NcnnLayer(kind, reader.floats(settings.get(OUT_CHANNELS, 1)), None)


class _Reader:
    """Takes weights off the front of a `.bin` file."""

    def __init__(self, content: bytes, path: Path) -> None:
        self.content, self.path, self.at = content, path, 0

    def tagged(self, count: int) -> torch.Tensor:
        """Returns [count] float32 weights, stored as the tag before them says."""
        tag = int.from_bytes(self._take(4), "little")
        if tag == FLOAT32_TAG:
            return self.floats(count)
        if tag != FLOAT16_TAG:
            raise UserError(f"{self.path} holds weights of another kind (tag {tag:#x}); expected float16 or float32")
        weights = np.frombuffer(self._take(2 * count), "<f2").astype(np.float32)
        self._take(-2 * count % 4)  # padded to whole words
        return torch.from_numpy(weights)

    def floats(self, count: int) -> torch.Tensor:
        """Returns [count] float32 values."""
        return torch.from_numpy(np.frombuffer(self._take(4 * count), "<f4").astype(np.float32))

    def require_end(self) -> None:
        """Raises UserError unless everything was read."""
        if self.at != len(self.content):
            raise UserError(f"{self.path} holds {len(self.content)} bytes, but its .param file describes {self.at}")

    def _take(self, size: int) -> bytes:
        taken = self.content[self.at : self.at + size]
        if len(taken) < size:
            raise UserError(f"{self.path} ends after {len(self.content)} bytes, in the middle of its weights")
        self.at += size
        return taken
