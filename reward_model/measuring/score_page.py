"""One self-contained HTML page of scored pictures, worst first, each with its map and its worst crops."""

from __future__ import annotations

import base64
import heapq
import html
import io
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from reward_model.measuring.scored import ScoredPicture

MAX_PICTURES = 100  # on the page: the worst ones
_CROP_PX, _CROPS = 96, 3
_SIDE_PX = 256  # of the small pictures
_BLOCK_PX = 24  # places of crops; four blocks are a crop

STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1240px; padding: 0 1rem; color: #1c2128;
  background: #fafafa }
h1 { font-size: 1.5rem; margin-bottom: .2rem } p { color: #57606a; max-width: 60rem }
.row { background: #fff; border: 1px solid #d8dee4; border-radius: 8px; padding: .8rem 1rem; margin: 1rem 0 }
.head { display: flex; gap: .5rem; flex-wrap: wrap; align-items: baseline; margin-bottom: .5rem }
.tag { background: #eef1f4; border-radius: 10px; padding: 0 .6rem } .warn { background: #fff1c2 }
.pictures { display: flex; gap: .6rem; flex-wrap: wrap } figure { margin: 0 }
figcaption { color: #57606a; font-size: 12px; margin-top: 2px } img { border-radius: 3px; display: block }
.crop { width: 192px; image-rendering: pixelated }
"""


@dataclass
class ScorePage:
    """Collects scored pictures and keeps what the page shows of the worst of them, as JPEGs."""

    max_pictures: int = MAX_PICTURES
    count: int = 0
    _worst: list[tuple[float, int, str]] = field(default_factory=list)  # a heap, the best of the kept first

    def add(
        self, row: ScoredPicture, picture: np.ndarray, levels: np.ndarray | None, reference: np.ndarray | None = None
    ) -> None:
        """Takes in a picture, uint8 [H, W, 3], its map in 16 bits, and its full-reference map where there is one."""
        self.count += 1
        entry = (-row.score, -self.count, "")
        if len(self._worst) == self.max_pictures and entry < self._worst[0]:
            return
        entry = (-row.score, -self.count, entry_html(row, picture, levels, reference))
        if len(self._worst) == self.max_pictures:
            heapq.heapreplace(self._worst, entry)
        else:
            heapq.heappush(self._worst, entry)

    def html(self, title: str, *, head: str = "") -> str:
        """Returns the page as text, with what else belongs into its head."""
        rows = "".join(text for _, _, text in sorted(self._worst, reverse=True))
        shown = f"the {len(self._worst)} worst of {self.count}" if len(self._worst) < self.count else f"{self.count}"
        return (
            "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
            f"{head}<title>{html.escape(title)}</title><style>{STYLE}</style><h1>{html.escape(title)}</h1>"
            f"<p>{shown} pictures, lowest score first. A score compares restorations of one scene; percentiles are among "
            "the validation pictures of the reward model's training. The map is painted orange to red where the picture "
            "is broken. Crops are the places where the map is highest.</p>" + rows + "</html>\n"
        )


def entry_html(row: ScoredPicture, picture: np.ndarray, levels: np.ndarray | None, reference: np.ndarray | None) -> str:
    """Returns one picture's part of the page."""
    shown = [("picture", _small(picture), "")]
    if levels is not None:
        step = -(-max(levels.shape) // (4 * _SIDE_PX))  # of a large picture, its overlay is made of every few pixels
        few, some = picture[::step, ::step], levels[::step, ::step].astype(np.float32) / 65535.0
        shown.append(("map", _small(overlay_strip(few, some)), ""))
        if reference is not None:
            shown.append(("map against gt", _small(overlay_strip(few, reference[::step, ::step])), ""))
        for top, left in worst_places(levels):
            place = slice(top, top + _CROP_PX), slice(left, left + _CROP_PX)
            caption = f"{left}, {top}: map {levels[place].mean() / 65535.0:.2f}"
            shown.append((caption, np.ascontiguousarray(picture[place]), "crop"))
    figures = "".join(
        f"<figure><img class='{kind}' alt='{caption}' src='{_url(image)}'><figcaption>{caption}</figcaption></figure>"
        for caption, image, kind in shown
    )
    tags = "".join(f"<span class=tag>{text}</span>" for text in _facts(row))
    unusual = row.detail is not None and row.detail > 1
    warning = "<span class='tag warn'>detail unlike the training's</span>" if unusual else ""
    return (
        f"<div class=row><div class=head><b>{html.escape(row.path)}</b>{tags}{warning}</div>"
        f"<div class=pictures>{figures}</div></div>"
    )


def worst_places(levels: np.ndarray) -> list[tuple[int, int]]:
    """Returns the corners (top, left) of crops with the highest mean of the map, apart from one another."""
    height, width = levels.shape
    if min(height, width) < _CROP_PX:
        return []
    rows, columns = height // _BLOCK_PX, width // _BLOCK_PX
    cut = levels[: rows * _BLOCK_PX, : columns * _BLOCK_PX]
    blocks = cut.reshape(rows, _BLOCK_PX, columns, _BLOCK_PX).mean(axis=(1, 3))
    side = _CROP_PX // _BLOCK_PX
    windows = np.lib.stride_tricks.sliding_window_view(blocks, (side, side)).mean(axis=(2, 3)).copy()
    corners = []
    for _ in range(_CROPS):
        row, column = np.unravel_index(int(windows.argmax()), windows.shape)
        if windows[row, column] < 0:
            break
        corners.append((int(row) * _BLOCK_PX, int(column) * _BLOCK_PX))
        windows[max(row - side + 1, 0) : row + side, max(column - side + 1, 0) : column + side] = -1.0
    return corners


def overlay_strip(picture: np.ndarray, degradation_map: np.ndarray) -> np.ndarray:
    """Returns uint8 [h, w, 3]: grey where the map is 0, through orange to red where it is 1."""
    grey = picture.mean(axis=2, dtype=np.float32, keepdims=True)
    weight = np.clip(degradation_map * 1.5, 0.0, 0.8)[..., None]
    colour = np.stack(
        [np.full_like(degradation_map, 255.0), 200.0 * (1 - degradation_map), 0 * degradation_map], axis=2
    )
    return np.clip(grey * (1 - weight) + colour * weight + 0.5, 0, 255).astype(np.uint8)


def _facts(row: ScoredPicture) -> list[str]:
    facts = [f"score {row.score:.3f}" + (" beside lq" if row.beside_lq else "")]
    if row.above_clean is not None:
        facts.append(f"above {row.above_clean:.0f} % of clean, {row.above_restored:.0f} % of restored pictures")
    if row.broken is not None:
        facts.append(f"{row.broken:.1%} broken")
    if row.worst is not None:
        facts.append(f"worst 1 %: {row.worst:.2f}")
    if row.reference is not None:
        facts.append(f"against gt {row.reference:.3f}")
    return [*facts, f"{row.width}×{row.height}"]


def _small(picture: np.ndarray) -> np.ndarray:
    image = Image.fromarray(picture)
    image.thumbnail((_SIDE_PX, _SIDE_PX), Image.Resampling.BOX)
    return np.asarray(image)


def _url(picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
