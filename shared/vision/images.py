"""Pictures on disk ↔ RGB float32 in [0, 1]; the only place that knows about file formats, rotation and bit depth."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from shared.app.errors import UserError
from shared.files import write_bytes, written_whole

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
# zlib's run-length strategy: after PNG's filters a photograph holds no longer matches, and looking for them takes time.
PNG_OPTIONS = {"compress_level": 1, "compress_type": 3}
# Pillow's own limit warns about decompression bombs at 89 megapixels; panoramas are legitimate here.
Image.MAX_IMAGE_PIXELS = 400_000_000


class UnreadableImage(Exception):
    """A file that could not be decoded: callers skip it, count it, and name it at the end."""


def find_images(folder: str | Path) -> list[Path]:
    """Returns every picture below `folder`, sorted by path. Raises UserError when there is no folder or no picture."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"expected a folder of pictures, but {folder} is {'a file' if folder.exists() else 'missing'}")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    if not paths:
        raise UserError(f"no pictures in {folder}; expected files ending in {' '.join(IMAGE_SUFFIXES)}")
    return paths


def read_image(path: str | Path) -> np.ndarray:
    """Returns the picture as [H, W, 3] float32 RGB in [0, 1], upright. Raises UnreadableImage when it does not decode."""
    try:
        with Image.open(path) as image:
            return to_rgb(ImageOps.exif_transpose(image))
    except UnreadableImage:
        raise
    except Exception as error:  # Pillow raises a dozen kinds, by format
        raise UnreadableImage(f"{path}: {str(error) or type(error).__name__}") from None


def read_image_8bit(path: str | Path) -> np.ndarray:
    """Returns the picture as [H, W, 3] uint8, upright: a quarter of `read_image`'s memory, for very large pictures.

    Raises UnreadableImage when it does not decode.
    """
    try:
        with Image.open(path) as image:
            ImageOps.exif_transpose(image, in_place=True)
            plain = image.mode in ("RGB", "L", "P", "YCbCr", "CMYK") and "transparency" not in image.info
            if not plain:
                return to_uint8(to_rgb(image))
            # Pillow converts RGB to RGB by copying: 400 MB at 100 megapixels.
            return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except UnreadableImage:
        raise
    except Exception as error:  # Pillow raises a dozen kinds, by format
        raise UnreadableImage(f"{path}: {str(error) or type(error).__name__}") from None


def to_rgb(image: Image.Image) -> np.ndarray:
    """Returns any Pillow image as [H, W, 3] float32 in [0, 1]: alpha on white, grey repeated, 16 bit kept, CMYK mixed."""
    if image.mode.startswith("I;16"):
        grey = np.asarray(image, dtype=np.float32) / 65535.0
    elif image.mode in ("I", "F"):
        # No declared range: 32-bit integers hold 16-bit greys in every camera and scanner file met so far.
        values = np.asarray(image, dtype=np.float32)
        if not np.isfinite(values).all():
            raise UnreadableImage("holds values that are not finite")
        peak = float(values.max(initial=0.0))
        grey = values / (65535.0 if peak > 255 else 255.0 if peak > 1 else 1.0)
    else:
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            rgba = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        return np.asarray(image.convert("RGB"), dtype=np.float32) / 255.0
    return np.repeat(np.clip(grey, 0.0, 1.0)[..., None], 3, axis=2)


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


def write_png(path: str | Path, image: Image.Image) -> None:
    """Writes a Pillow image as PNG, whole or not at all, straight to the disk: a large one is 200 MB as bytes."""
    with written_whole(path) as temporary:
        image.save(temporary, format="PNG", **PNG_OPTIONS)


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
