"""Faces in whole photographs: where they are looked for, how they lie in the aligned picture, and what is pasted back."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut

from rl_finetune import restore
from rl_finetune.restoring.pasted_faces import (
    TEMPLATE,
    FaceWork,
    aligned_side,
    alignment,
    paste_faces,
    place_faces,
    soft_mask,
)
from shared.app.errors import UserError
from shared.vision.face_detector import Face, open_face_detector
from tests.helpers.tiny import save_tiny_policy

CPU = torch.device("cpu")


class Tinted:
    """Returns the aligned face with its red at the top: a face that was pasted is known by it."""

    scale = 1

    def restore(self, lq, *, sample_seeds):
        sr = lq.clone()
        sr[:, 0] = 1.0
        return sr


def turned_face(*, side: float, degrees: float, at: tuple[float, float]) -> Face:
    """Returns a face whose aligned picture has `side` pixels of the photograph, turned, with its middle `at`."""
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return Face(((TEMPLATE - 0.5) * side @ turn.T + at).astype(np.float32), 0.99)


def work(*faces: Face, restorer=None) -> FaceWork:
    return FaceWork(lambda picture: list(faces), restorer or Tinted(), CPU, face_px=64)


def test_a_turned_face_lies_on_the_template():
    face = turned_face(side=80, degrees=25, at=(100, 90))
    assert aligned_side(face.landmarks) == pytest.approx(80, rel=1e-4)
    matrix = alignment(face, 64)
    found = face.landmarks @ matrix[:, :2].T + matrix[:, 2]
    np.testing.assert_allclose(found, TEMPLATE * 64, atol=1e-3)


@pytest.mark.parametrize("scale", [1, 4])
def test_what_is_pasted_fades_into_the_rest_at_its_own_place(scale):
    lq = np.full((120, 160, 3), 60, np.uint8)
    faces = work(turned_face(side=64, degrees=0, at=(80, 60)))
    placed, notes = place_faces(lq, faces)
    sr = np.full((120 * scale, 160 * scale, 3), 60 * 257, np.uint16)
    paste_faces(sr, lq, placed, faces, seed=0)
    assert notes == ["1 face restored"]
    red = sr[..., 0].astype(float) / 257
    # The aligned face reaches from (48, 28) to (112, 92) of lq: red in its middle, nothing outside, half way between.
    assert red[60 * scale, 80 * scale] == pytest.approx(255, abs=1)
    assert red[: 27 * scale].max() == red[:, 113 * scale :].max() == 60
    edge = red[60 * scale, 48 * scale : 56 * scale]
    assert (np.diff(edge) >= 0).all()
    assert 60 < edge[len(edge) // 2] < 255
    assert np.abs(sr[..., 1:].astype(int) - 60 * 257).max() <= 1  # the other channels were as they are


def test_small_large_and_doubtful_faces_are_left_and_said():
    faces = work(
        turned_face(side=600, degrees=0, at=(400, 400)),
        turned_face(side=100, degrees=0, at=(400, 400)),
        turned_face(side=30, degrees=0, at=(100, 100)),
        Face(turned_face(side=100, degrees=0, at=(90, 90)).landmarks, 0.5),
    )
    placed, notes = place_faces(np.zeros((800, 800, 3), np.uint8), faces)
    assert [face.side for face in placed] == [112]  # the next multiple of 16
    assert notes == [
        "1 face restored",
        "1 face larger than 512 px, left as the rest is",
        "1 face smaller than 40 px, left as the rest is",
        "1 face the detector is not sure of, left as the rest is",
    ]
    assert place_faces(np.zeros((90, 90, 3), np.uint8), work()) == ([], ["no face found"])


def test_a_face_at_the_border_stays_in_the_picture():
    lq = np.full((60, 60, 3), 60, np.uint8)
    faces = work(turned_face(side=64, degrees=10, at=(5, 55)))
    sr = np.full((60, 60, 3), 60 * 257, np.uint16)
    paste_faces(sr, lq, place_faces(lq, faces)[0], faces, seed=0)
    assert sr[55, 5, 0] > 250 * 257
    assert sr[0, 59, 0] == 60 * 257


def test_the_mask_is_one_inside_and_falls_to_nothing():
    mask = soft_mask(64)
    assert mask[32, 32] == 1
    assert mask[0].max() < 0.02
    np.testing.assert_array_equal(mask, mask[::-1, ::-1])


def test_a_photographs_face_is_found_restored_and_pasted_back(tmp_path, capsys):
    pytest.importorskip("facenet_pytorch")
    photo = np.full((300, 400, 3), 90, np.uint8)
    photo[40:240, 60:260] = np.asarray(Image.fromarray(astronaut()[:280, 100:380]).resize((200, 200)))
    Image.fromarray(photo).save(tmp_path / "photo.png")
    policy = save_tiny_policy(tmp_path / "policy")
    words = [
        f"in={tmp_path / 'photo.png'}",
        f"out={tmp_path / 'out'}",
        f"face_policy={policy}",
        "steps=1",
        "faces=true",
    ]
    restore.main([*words, "background=kept"])
    assert "(1 face restored)" in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "photo.png") as image:
        found, history = np.asarray(image).astype(int), json.loads(image.text["restore-rl"])
    changed = np.argwhere(np.abs(found - photo).max(axis=2) > 0)
    assert len(changed) > 1000
    # Only around the face, which is in the upper middle of what was pasted in.
    assert changed.min(axis=0).min() > 40
    assert (changed.max(axis=0) < (200, 260)).all()
    assert (history["faces"], history["background"]) == (True, "kept")


def test_without_the_extra_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "facenet_pytorch", None)
    with pytest.raises(UserError, match=r"pip install 'restore-rl\[faces\]'"):
        open_face_detector()


@pytest.mark.parametrize(
    ("words", "said"),
    [(["background=kept"], "nothing to do without faces=true"), (["faces=true", "task=face"], "leave task=face out")],
)
def test_settings_that_contradict_are_one_line(words, said):
    with pytest.raises(UserError, match=said):
        restore.main(["in=.", *words])
