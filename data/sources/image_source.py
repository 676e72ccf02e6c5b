"""The interface of every source of clean pictures, with a bounded cache of decoded ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from typing import Literal

import numpy as np

from shared.runs.picture_list import PictureList

Subject = Literal["photos", "faces"]


class ImageSource(ABC):
    """Clean pictures by id, each decoded once before use so that none can fail halfway through a long run."""

    name: str
    subject: Subject
    licence: str
    image_ids: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = ()

    def __init__(self, *, name: str, subject: Subject, licence: str, memory_mb: int) -> None:
        self.name, self.subject, self.licence = name, subject, licence
        self._memory_bytes, self._held_bytes = memory_mb * 2**20, 0
        self._held: OrderedDict[str, np.ndarray] = OrderedDict()

    @abstractmethod
    def decode(self, image_id: str) -> np.ndarray:
        """Returns the picture as [H, W, 3] float32 in [0, 1], decoded anew."""

    def listed(self) -> PictureList:
        """Returns which pictures these are, with checksums of those that are read; the others are drawn from their names."""
        return PictureList(self.name, {image_id: [0, ""] for image_id in self.image_ids})

    def load(self, image_id: str) -> np.ndarray:
        """Returns the picture as [H, W, 3] float32 in [0, 1], read-only; the latest ones stay in memory."""
        if image_id in self._held:
            self._held.move_to_end(image_id)
            return self._held[image_id]
        image = self.decode(image_id)
        image.flags.writeable = False
        self._held[image_id] = image
        self._held_bytes += image.nbytes
        while self._held_bytes > self._memory_bytes:
            _, dropped = self._held.popitem(last=False)
            self._held_bytes -= dropped.nbytes
        return image

    def report_skipped(self) -> str:
        """Returns one line that names the pictures left out and the reasons, or an empty string."""
        if not self.skipped:
            return ""
        named = "; ".join(f"{path} ({reason})" for path, reason in self.skipped[:5])
        more = f"; and {len(self.skipped) - 5} more" if len(self.skipped) > 5 else ""
        total = len(self.skipped) + len(self.image_ids)
        return f"{self.name}: skipped {len(self.skipped)} of {total} pictures: {named}{more}"
