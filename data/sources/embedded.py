"""Pictures that need no download: photographs that scikit-image ships, dead-leaves scenes, procedural portraits."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from data.procedural.portraits import portrait
from data.procedural.scenes import dead_leaves
from data.sources.image_source import ImageSource, Subject
from shared.runs.picture_list import PictureList
from shared.vision.images import read_image

# Part of the wheel: nothing is fetched. Left out: drawings, a blurred clock, the second view of a stereo pair.
PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "cell.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "page.png",
    "retina.jpg",
    "rocket.jpg",
    "text.png",
)
SCENE_SIDE_PX, PORTRAIT_SIDE_PX = 192, 128


class EmbeddedSource(ImageSource):
    """For `photos` scikit-image's photographs first, then dead leaves, up to `count`; for `faces` portraits."""

    def __init__(self, subject: Subject, *, count: int, seed: int, min_side_px: int, memory_mb: int) -> None:
        licence = (
            "procedural, Apache-2.0 as this repository"
            if subject == "faces"
            else "scikit-image's sample photographs, free of copyright restrictions; dead leaves Apache-2.0"
        )
        super().__init__(name=f"embedded-{subject}", subject=subject, licence=licence, memory_mb=memory_mb)
        self.seed = seed
        self.side_px = max(min_side_px, SCENE_SIDE_PX if subject == "photos" else PORTRAIT_SIDE_PX)
        if subject == "faces":
            self.image_ids = tuple(f"portrait/{index:05d}" for index in range(count))
        else:
            shipped = _shipped_photographs(min_side_px)[:count]
            self.image_ids = (
                *(f"scikit-image/{path.name}" for path in shipped),
                *(f"dead-leaves/{index:05d}" for index in range(count - len(shipped))),
            )

    def decode(self, image_id: str) -> np.ndarray:
        family, _, name = image_id.partition("/")
        if family == "scikit-image":
            return read_image(_shipped_folder() / name)
        draw = portrait if family == "portrait" else dead_leaves
        return draw(self.seed, int(name), side_px=self.side_px)

    def listed(self) -> PictureList:
        listed = super().listed()
        for image_id in self.image_ids:
            family, _, name = image_id.partition("/")
            if family == "scikit-image":
                content = (_shipped_folder() / name).read_bytes()
                listed.files[image_id] = [len(content), hashlib.sha256(content).hexdigest()]
        return listed


def _shipped_folder() -> Path:
    import skimage  # slow to import, and a folder of pictures does not need it

    return Path(skimage.__file__).parent / "data"


def _shipped_photographs(min_side_px: int) -> list[Path]:
    from PIL import Image

    paths = [_shipped_folder() / name for name in PHOTOGRAPHS]
    return [path for path in paths if path.is_file() and min(Image.open(path).size) >= min_side_px]
