"""How far a restoration moves the landmarks of a face: arithmetic with a stand-in, and YuNet where it is named."""

from __future__ import annotations

import os

import pytest
import skimage.data
import torch

from shared.app.errors import UserError
from shared.vision.landmarks import landmark_distance, load_landmarks

DETECTOR = "RESTORE_RL_YUNET"  # names YuNet's .onnx
PLACES = torch.tensor([[20.0, 30.0], [60.0, 30.0], [40.0, 50.0], [25.0, 70.0], [55.0, 70.0]])


def test_distance_is_in_units_of_the_eyes_and_a_missing_face_is_no_zero():
    gt = torch.zeros(4, 3, 8, 8)
    sr = torch.tensor([0.0, 4.0, torch.nan, 0.0]).view(4, 1, 1, 1).expand(4, 3, 8, 8)

    def detect(pictures: torch.Tensor) -> torch.Tensor:
        # The eyes are 40 px apart; a picture's value moves every landmark that far to the right.
        shift = torch.stack([pictures[:, 0, 0, 0], torch.zeros(len(pictures))], dim=1)
        return PLACES + shift[:, None]

    # 4 px of 40 are a tenth.
    distance = landmark_distance(sr, gt, detect=detect)
    torch.testing.assert_close(distance, torch.tensor([0.0, 0.1, torch.nan, 0.0]), equal_nan=True)


def test_what_is_no_detector_is_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="got 'no file'"):
        load_landmarks("")
    path = tmp_path / "face.onnx"
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="OpenCV does not read it") as error:
        load_landmarks(path)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(DETECTOR not in os.environ, reason=f"{DETECTOR} names no detector")
def test_yunet_finds_the_face_at_any_size_and_none_where_there_is_none():
    detect = load_landmarks(os.environ[DETECTOR])
    picture = torch.from_numpy(skimage.data.astronaut()[:256, 96:352]).permute(2, 0, 1)[None].float() / 255
    found = detect(picture)[0]
    small = detect(torch.nn.functional.interpolate(picture, scale_factor=0.5, mode="area"))[0]
    torch.testing.assert_close(2 * small, found, atol=5.0, rtol=0)
    assert 20 < (found[1] - found[0]).norm().item() < 60
    empty = torch.cat([picture[:, :, :64, :64], torch.full((1, 3, 64, 64), 0.5)])
    assert detect(empty[1:]).isnan().all()
    assert landmark_distance(picture, picture, detect=detect).item() == 0.0
