"""Faces in whole photographs: found, aligned, restored by the face policy, and pasted back under a mask that fades."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from shared.pictures.writing import in_bits
from shared.restorers.protocol import Restorer
from shared.seeds import derive_seed
from shared.vision.face_detector import Face, FindFaces
from shared.vision.images import pad_to_multiple, to_tensor, to_unit

# Where eyes, nose and corners of the mouth lie in an aligned face of side 1: FFHQ's framing, which face restorers share.
TEMPLATE = np.array(
    [(0.3769, 0.4686), (0.6229, 0.4691), (0.5012, 0.6133), (0.3931, 0.7254), (0.6115, 0.7249)], np.float32
)
SMALLEST_PX, LARGEST_PX = 40, 512  # side of an aligned face in the photograph, in its own pixels
_SURE = 0.9  # least confidence of the detector
_FADE = 0.12  # width of the mask's soft edge, of the aligned face's side
_MULTIPLE = 16
_TOP = 65535


@dataclass(frozen=True)
class FaceWork:
    """How faces are found and restored."""

    find: FindFaces
    restorer: Restorer  # of aligned faces, same size in and out
    device: torch.device
    face_px: int  # smaller aligned faces are enlarged to this side: the policy has learnt from such


@dataclass(frozen=True)
class PlacedFace:
    """A face that is restored, and where it lies."""

    to_aligned: np.ndarray  # [2, 3] float64: from pixels of the photograph to the aligned face of `side`
    side: int  # of the aligned face that the policy sees


def place_faces(picture: np.ndarray, work: FaceWork) -> tuple[list[PlacedFace], list[str]]:
    """Returns the faces of a picture [H, W, 3] that are to be restored, and notes on them and on those left alone."""
    placed, left = [], Counter[str]()
    for face in work.find(in_bits(picture, 8)):
        own = aligned_side(face.landmarks)
        if face.confidence < _SURE:
            left["the detector is not sure of"] += 1
        elif own < SMALLEST_PX:
            left[f"smaller than {SMALLEST_PX} px"] += 1
        elif own > LARGEST_PX:
            left[f"larger than {LARGEST_PX} px"] += 1
        else:
            side = -(-max(work.face_px, round(own)) // _MULTIPLE) * _MULTIPLE
            placed.append(PlacedFace(alignment(face, side), side))
    notes = [_count(len(placed), "restored")] if placed or left else ["no face found"]
    return placed, [*notes, *(_count(count, f"{why}, left as the rest is") for why, count in left.items())]


def aligned_side(landmarks: np.ndarray) -> float:
    """Returns the side of the aligned face in pixels of the photograph."""
    return 1.0 / float(np.linalg.norm(_similarity(landmarks, TEMPLATE)[:, 0]))


def alignment(face: Face, side: int) -> np.ndarray:
    """Returns [2, 3]: the rotation, scale and shift that carry a face's landmarks to the template of `side` pixels."""
    return _similarity(face.landmarks, TEMPLATE * side)


def _similarity(points: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns [2, 3], the similarity with the least squared error (Umeyama without reflection, in complex numbers)."""
    p, q = (array.astype(np.float64) @ np.array([1, 1j]) for array in (points, targets))
    a = np.vdot(p - p.mean(), q - q.mean()) / np.vdot(p - p.mean(), p - p.mean())
    b = q.mean() - a * p.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


@torch.no_grad()
def paste_faces(sr: np.ndarray, lq: np.ndarray, faces: Sequence[PlacedFace], work: FaceWork, *, seed: int) -> None:
    """Restores faces of lq [h, w, 3] and lays them into sr [s·h, s·w, 3] uint16, in place; larger faces come last."""
    for number, face in enumerate(reversed(faces)):
        crop = cv2.warpAffine(
            to_unit(lq),
            face.to_aligned,
            (face.side, face.side),
            flags=cv2.INTER_CUBIC,
            borderMode=cv2.BORDER_REFLECT_101,
        )
        batch = pad_to_multiple(to_tensor(np.clip(crop, 0, 1))[None].to(work.device), _MULTIPLE)
        restored = work.restorer.restore(batch, sample_seeds=[derive_seed(seed, "face", number)])
        _paste(sr, restored[0].float().clamp(0, 1).cpu().numpy().transpose(1, 2, 0), face, len(sr) / len(lq))


def _paste(sr: np.ndarray, restored: np.ndarray, face: PlacedFace, scale: float) -> None:
    # Pixels' centres: x of sr is (x + ½) / scale − ½ of lq.
    to_lq = np.array([[1 / scale, 0, 0.5 / scale - 0.5], [0, 1 / scale, 0.5 / scale - 0.5], [0, 0, 1]])
    to_aligned = (np.vstack([face.to_aligned, (0, 0, 1)]) @ to_lq)[:2]
    corners = np.array([(0, 0), (face.side, 0), (0, face.side), (face.side, face.side)], np.float64)
    reached = cv2.transform(corners[None], cv2.invertAffineTransform(to_aligned))[0]
    left, top = np.maximum(np.floor(reached.min(axis=0)).astype(int), 0)
    right, bottom = np.minimum(np.ceil(reached.max(axis=0)).astype(int) + 1, sr.shape[1::-1])
    if left >= right or top >= bottom:
        return
    inside = to_aligned.copy()
    inside[:, 2] += to_aligned[:, :2] @ np.array([left, top])  # coordinates within the window alone
    size, flags = (int(right - left), int(bottom - top)), cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    colours = np.clip(cv2.warpAffine(restored, inside, size, flags=flags, borderMode=cv2.BORDER_REPLICATE), 0, 1)
    weight = cv2.warpAffine(soft_mask(face.side), inside, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)[
        ..., None
    ]
    window = sr[top:bottom, left:right]
    window[:] = (window + (colours * _TOP - window) * weight + 0.5).astype(np.uint16)


def soft_mask(side: int) -> np.ndarray:
    """Returns [side, side] float32: 1 inside, falling smoothly to 0 at the edge."""
    near = np.minimum(np.arange(side) + 0.5, side - 0.5 - np.arange(side)) / (_FADE * side)
    ramp = np.clip(near, 0, 1)
    smooth = (ramp * ramp * (3 - 2 * ramp)).astype(np.float32)
    return smooth[:, None] * smooth


def _count(number: int, said: str) -> str:
    return f"{number} {'face' if number == 1 else 'faces'} {said}"
