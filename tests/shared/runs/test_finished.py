"""A finished stage is known by its command's words alone, and by nothing less."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import pytest

from shared.runs import finished
from shared.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Config:
    out: str = "x"
    steps: int = 3
    workers: int = 1


@pytest.fixture
def words(tmp_path, capsys) -> list[str]:
    """The command of a stage that has just finished."""
    (tmp_path / "c.yaml").write_text("steps: 3\n")
    words = [str(tmp_path / "c.yaml"), f"out={tmp_path / 'run'}", "steps=3"]
    run = RunFolder.begin(tmp_path / "run", Config(), words, free_keys=())
    run.make(Config())
    (run.path / "state.old").mkdir()
    run.finish({"seconds": 1.0}, says="stage: 1 s")
    assert capsys.readouterr().out == "stage: 1 s\n"
    assert not (run.path / "state.old").exists()
    return words


def test_the_same_command_again_says_what_it_said(words, capsys):
    assert finished.main(words) == 0
    assert capsys.readouterr().out == "finished: stage: 1 s\n"


def test_every_other_command_is_left_to_the_stage(words, tmp_path, capsys):
    config, out, override = words
    for other in ([config, out], [config, out, "steps=4"], [config, override], [config, out, override, "seed=1"]):
        assert finished.main(other) == 1
    (tmp_path / "c.yaml").write_text("steps: 4\n")
    assert finished.main(words) == 1
    (tmp_path / "c.yaml").write_text("steps: 3\n")
    assert finished.main(words) == 0
    (tmp_path / "run" / "summary.json").unlink()
    assert finished.main(words) == 1
    assert capsys.readouterr().out.count("finished") == 1


def test_words_do_not_run_into_each_other():
    assert finished.command_hash(["a", "b"]) != finished.command_hash(["a b"])


def test_the_stage_itself_knows_another_spelling(words, tmp_path, capsys):
    assert RunFolder.begin(tmp_path / "run", Config(workers=2), [], free_keys=("workers",)) is None
    assert capsys.readouterr().out == "finished: stage: 1 s\n"


def test_the_look_loads_no_library():
    script = (
        "import shared.runs.finished, sys; print(*{'torch', 'numpy', 'omegaconf', 'accelerate'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
