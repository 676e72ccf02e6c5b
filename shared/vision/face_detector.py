"""Every face in a picture with its five landmarks, by MTCNN (1604.02878) as facenet-pytorch carries it in its wheel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from shared.app.errors import UserError

EXTRA = "faces"
_LONGEST_SIDE = (
    2048  # larger pictures are shrunk for the search: what then is too small to be found is small in them, too
)
_SMALLEST_PX = 20  # faces below it are not looked for


@dataclass(frozen=True)
class Face:
    """A face that was found."""

    landmarks: (
        np.ndarray
    )  # [5, 2] float32 (x, y) in pixels: left eye, right eye, nose, left and right corner of the mouth
    confidence: float  # of the detector, in [0, 1]


FindFaces = Callable[[np.ndarray], list[Face]]  # picture [H, W, 3] uint8 → its faces, the largest first


def open_face_detector() -> FindFaces:
    """Returns the detector. Raises UserError where the extra `faces` is not installed.

    facenet-pytorch and its weights are under the MIT licence; the weights were learnt from WIDER FACE and CelebA.
    """
    try:
        from facenet_pytorch import MTCNN  # an extra, and seconds to import
    except ImportError:
        raise UserError(
            f"faces in whole photographs need a detector: pip install 'restore-rl[{EXTRA}]', or take faces=false"
        ) from None
    detector = MTCNN(keep_all=True, min_face_size=_SMALLEST_PX, device="cpu")

    def find(picture: np.ndarray) -> list[Face]:
        factor = max(1.0, max(picture.shape[:2]) / _LONGEST_SIDE)
        if factor > 1.0:
            size = tuple(max(1, round(side / factor)) for side in picture.shape[1::-1])
            picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        if min(picture.shape[:2]) < _SMALLEST_PX:
            return []
        _, confidences, landmarks = detector.detect(picture, landmarks=True)
        if landmarks is None:
            return []
        points = np.asarray(list(landmarks), np.float32) * factor
        faces = [Face(one, float(sure)) for one, sure in zip(points, confidences, strict=True)]
        return sorted(faces, key=lambda face: -float(np.ptp(face.landmarks, axis=0).max()))

    return find
