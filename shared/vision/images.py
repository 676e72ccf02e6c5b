"""Pictures as arrays and tensors: RGB float32 in [0, 1], and what is drawn of them; shared/pictures reads the files."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from shared.files import write_bytes, written_whole
from shared.pictures.reading import decode, read_picture

# zlib's run-length strategy: after PNG's filters a photograph holds no longer matches, and looking for them takes time.
PNG_OPTIONS = {"compress_level": 1, "compress_type": 3}


def read_image(path: str | Path) -> np.ndarray:
    """Returns the picture as [H, W, 3] float32 RGB in [0, 1], upright, on white; see `read_picture`.

    Raises UnreadableImage when it does not decode.
    """
    return to_unit(read_picture(path).on_white())


def read_image_8bit(path: str | Path) -> np.ndarray:
    """Returns the picture as [H, W, 3] uint8, upright, on white: a quarter of `read_image`'s memory.

    Raises UnreadableImage when it does not decode.
    """
    levels = read_picture(path).on_white()
    return levels if levels.dtype == np.uint8 else to_uint8(to_unit(levels))


def to_rgb(image: Image.Image) -> np.ndarray:
    """Returns an open Pillow image as [H, W, 3] float32 in [0, 1], on white."""
    return to_unit(decode(image).on_white())


def to_unit(levels: np.ndarray) -> np.ndarray:
    """Returns float32 values in [0, 1] of uint8 or uint16 levels."""
    return np.divide(levels, np.float32(np.iinfo(levels.dtype).max), dtype=np.float32)


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """Returns [3, H, W] float32 from [H, W, 3] float32."""
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


def to_array(tensor: torch.Tensor) -> np.ndarray:
    """Returns [H, W, 3] float32 from [3, H, W]; the inverse of `to_tensor`."""
    return np.ascontiguousarray(tensor.detach().cpu().float().numpy().transpose(1, 2, 0))


def to_uint8(array: np.ndarray) -> np.ndarray:
    """Returns uint8 from float values in [0, 1], rounded to the nearest level."""
    return (np.clip(array, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def on_8_bits(picture: np.ndarray) -> np.ndarray:
    """Returns the picture on 8-bit levels, as files hold it."""
    return np.round(np.clip(picture, 0.0, 1.0) * 255.0).astype(np.float32) / np.float32(255.0)


def encode_png(array: np.ndarray) -> bytes:
    """Returns a PNG at 8 bits of [H, W, 3] or [H, W] float values in [0, 1], or of uint8 levels as they are."""
    buffer = io.BytesIO()
    Image.fromarray(array if array.dtype == np.uint8 else to_uint8(array)).save(buffer, format="PNG", **PNG_OPTIONS)
    return buffer.getvalue()


def encode_png16(array: np.ndarray) -> bytes:
    """Returns a grey PNG at 16 bits, steps of 1/65535, of [H, W] float values in [0, 1], or of uint16 levels as they are."""
    buffer = io.BytesIO()
    levels = array if array.dtype == np.uint16 else (np.clip(array, 0.0, 1.0) * 65535.0 + 0.5).astype(np.uint16)
    Image.fromarray(levels).save(buffer, format="PNG", **PNG_OPTIONS)
    return buffer.getvalue()


def write_png(path: str | Path, image: Image.Image, *, text: Mapping[str, str] | None = None) -> None:
    """Writes a Pillow image as PNG, with texts in it, whole or not at all, straight to the disk: a large one is 200 MB as
    bytes.
    """
    said = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        said.add_text(key, value)
    with written_whole(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=said, **PNG_OPTIONS)


def save_image(path: str | Path, tensor: torch.Tensor) -> None:
    """Saves [3, H, W] in [0, 1] as an 8-bit PNG."""
    write_bytes(path, encode_png(to_array(tensor)))


def paint_map(degradation_map: torch.Tensor) -> torch.Tensor:
    """Returns [3, H, W] colours for a [1, H, W] map in [0, 1]: black clean, through red and orange, to white worst."""
    m = degradation_map.detach().cpu().float().clamp(0, 1)
    return torch.cat([(m * 2.5).clamp(0, 1), (m * 2.5 - 1).clamp(0, 1), (m * 5 - 4).clamp(0, 1)])


def picture_grid(rows: Sequence[Sequence[torch.Tensor]], titles: Sequence[str], *, cell_px: int = 128) -> torch.Tensor:
    """Returns [3, H, W]: rows of pictures [3, h, w] under their column titles, every picture scaled to `cell_px` high.

    Nearest-neighbour scaling, so that what is seen are the pixels themselves.
    """
    gap, header = 4, 16
    width = len(titles) * (cell_px + gap) + gap
    canvas = Image.new("RGB", (width, header + len(rows) * (cell_px + gap) + gap), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default()
    for column, title in enumerate(titles):
        draw.text((gap + column * (cell_px + gap), 2), title, fill="black", font=font)
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            tile = Image.fromarray(to_uint8(to_array(picture)))
            scale = cell_px / max(tile.size)
            tile = tile.resize((round(tile.width * scale), round(tile.height * scale)), Image.Resampling.NEAREST)
            canvas.paste(tile, (gap + column * (cell_px + gap), header + gap + row * (cell_px + gap)))
    return to_tensor(np.asarray(canvas, dtype=np.float32) / 255.0)


def pad_to_multiple(image: torch.Tensor, multiple: int) -> torch.Tensor:
    """Returns [B, C, H', W'] with sides rounded up to a multiple, padded at bottom and right by repeating the edge.

    Crop the result's [..., :H, :W] to undo it.
    """
    height, width = image.shape[-2:]
    pad_h, pad_w = -height % multiple, -width % multiple
    return torch.nn.functional.pad(image, (0, pad_w, 0, pad_h), mode="replicate") if pad_h or pad_w else image
