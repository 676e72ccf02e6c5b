"""Five landmarks of a face, eyes, nose and corners of the mouth, and how far a restoration moves them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from shared.app.errors import UserError
from shared.vision.images import to_array, to_uint8

Detect = Callable[
    [torch.Tensor], torch.Tensor
]  # pictures [B, 3, H, W] → landmarks [B, 5, 2] (x, y), NaN without a face
_MIN_SIDE = 320  # smaller pictures are enlarged: the detector was trained on faces of ten pixels and more, at any blur
_MIN_SCORE = 0.6


def load_landmarks(path: str | Path) -> Detect:
    """Returns a detector of five landmarks from YuNet's .onnx (OpenCV's zoo). Raises UserError when there is none.

    Of several faces the largest counts.
    """
    import cv2  # slow to import, and only faces need it

    if not path or not Path(path).is_file():
        raise UserError(f"landmarks need a face detector: expected YuNet's .onnx, got {str(path) or 'no file'!r}")
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # it warns of what it does without
    try:
        detector = cv2.FaceDetectorYN.create(str(path), "", (_MIN_SIDE, _MIN_SIDE), _MIN_SCORE)
    except cv2.error as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"expected YuNet's .onnx in {path}, but OpenCV does not read it: {reason}") from None
    finally:
        cv2.utils.logging.setLogLevel(level)

    def of_one(picture: torch.Tensor) -> torch.Tensor:
        scale = max(1.0, _MIN_SIDE / min(picture.shape[-2:]))
        if scale > 1.0:
            size = [round(length * scale) for length in picture.shape[-2:]]
            picture = F.interpolate(picture[None], size, mode="bicubic", align_corners=False)[0]
        pixels = to_uint8(to_array(picture))[:, :, ::-1]  # BGR
        detector.setInputSize((pixels.shape[1], pixels.shape[0]))
        faces = detector.detect(np.ascontiguousarray(pixels))[1]
        if faces is None:
            return torch.full((5, 2), torch.nan)
        face = max(faces, key=lambda row: row[2] * row[3])  # x, y, width, height, ten coordinates, score
        return torch.from_numpy(face[4:14].reshape(5, 2) / scale)

    return lambda pictures: torch.stack([of_one(picture) for picture in pictures])


def landmark_distance(sr: torch.Tensor, gt: torch.Tensor, *, detect: Detect) -> torch.Tensor:
    """Returns the mean distance of the five landmarks in units of gt's distance between the eyes, [B].

    NaN where sr or gt has no face that is found: count these: they are not zeros.
    """
    of_sr, of_gt = detect(sr), detect(gt)
    eyes = (of_gt[:, 0] - of_gt[:, 1]).norm(dim=1)
    return (of_sr - of_gt).norm(dim=2).mean(dim=1) / eyes
