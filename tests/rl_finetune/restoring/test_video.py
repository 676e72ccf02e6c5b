"""A film: every frame as a picture of its own, the sound copied, nothing written over, mistakes in one line."""

from __future__ import annotations

import json
import math
import struct
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from rl_finetune import restore
from rl_finetune.restoring.video import read_film
from shared.app.errors import UserError

ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="needs the extra video")
SIZE, FRAMES, FPS = (34, 22), 6, 5


def frames_of(path: Path) -> tuple[dict, list[np.ndarray]]:
    """Returns a film's header and its frames [H, W, 3] uint8."""
    header, *frames = ffmpeg.read_frames(str(path))
    width, height = header["size"]
    return header, [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in frames]


def save_film(path: Path, *, sound: bool = True) -> Path:
    """Saves frames of one colour each, brighter from one to the next, and a tone."""
    tone = path.with_suffix(".wav")
    with wave.open(str(tone), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        samples = (int(9000 * math.sin(i / 3)) for i in range(8000 * FRAMES // FPS))
        file.writeframes(b"".join(struct.pack("<h", sample) for sample in samples))
    options = {"audio_path": str(tone), "audio_codec": "aac"} if sound else {}
    writer = ffmpeg.write_frames(str(path), SIZE, fps=FPS, macro_block_size=1, **options)
    writer.send(None)
    for index in range(FRAMES):
        writer.send(np.full((SIZE[1], SIZE[0], 3), 40 + 30 * index, np.uint8).tobytes())
    writer.close()
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("ending", ["mp4", "mov"])
def test_every_frame_is_restored_and_the_sound_is_copied(folder, capsys, ending):
    source = save_film(folder / f"a b;c.{ending}")
    restore.main([f"in={source.name}", "out=out", "policy=bicubic", "scale=1.5", "suffix=_x"])
    made = folder / "out" / f"a b;c_x.{ending}"
    header, frames = frames_of(made)
    assert (header["size"], header["fps"], len(frames)) == ((50, 32), FPS, FRAMES)  # 51 × 33, made even
    assert [round(float(frame.mean())) for frame in frames] == pytest.approx(
        [40 + 30 * i for i in range(FRAMES)], abs=3
    )
    assert header["audio_codec"] == frames_of(source)[0]["audio_codec"]
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(f"{source.name} 6 frames at 5 a second in ")
    assert line.endswith(f"out/a b;c_x.{ending} (its sound copied, 8 bits)")
    assert sorted(path.name for path in (folder / "out").iterdir()) == [made.name]


def test_a_film_without_sound_and_outputs_that_are_there(folder, capsys):
    source = save_film(folder / "a.mp4", sound=False)
    words = ["in=a.mp4", "policy=bicubic", "scale=1"]
    restore.main([*words, "out=new.mp4"])
    assert "without sound" in capsys.readouterr().out
    assert not read_film(folder / "new.mp4").has_sound
    before = source.read_bytes(), (folder / "new.mp4").read_bytes()
    for out, said in (("new.mp4", "exists already"), (".", "would be written over an input")):
        with pytest.raises(UserError, match=said):
            restore.main([*words, f"out={out}"])
    restore.main([*words, "out=new.mp4", "overwrite=skip"])
    assert (source.read_bytes(), (folder / "new.mp4").read_bytes()) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["format=png"], "format is for pictures: leave it out to restore the film a.mp4"),
        (["samples=3"], "samples is for pictures"),
        (["compare=true"], "compare is for pictures"),
        (["out=/proc/x"], "nothing can be written into /proc"),
        (["in=bad.mp4"], "bad.mp4: no film that can be read"),
        (["in=empty.mov"], "empty.mov: no film that can be read"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(folder, words, said):
    save_film(folder / "a.mp4", sound=False)
    (folder / "bad.mp4").write_bytes(b"\0\0\0\x18ftypisom" + json.dumps(list(range(99))).encode())
    (folder / "empty.mov").write_bytes(b"")
    with pytest.raises(UserError, match=said) as error:
        restore.main(["in=a.mp4", "out=out", "policy=bicubic", *words])
    assert "\n" not in str(error.value)
    assert not (folder / "out").exists()


def test_without_the_extra_it_is_one_line(folder, monkeypatch):
    save_film(folder / "a.mp4", sound=False)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(UserError, match=r"needs the extra video: pip install 'restore-rl\[video\]'"):
        restore.main(["in=a.mp4", "out=out", "policy=bicubic"])
