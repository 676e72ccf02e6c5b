"""The console script: every command of every room, help and refusals in under a second, the same work as python -m."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from rl_finetune import cli
from shared.app.errors import UserError
from shared.app.fields import fields_of
from shared.app.usage import Command

ROOT = Path(__file__).parents[2]
ROOMS = ("data", "reward_model", "rl_finetune")


def test_every_command_of_every_room_is_there():
    files = [
        path for room in ROOMS for path in (ROOT / room).glob("*.py") if path.name not in ("__init__.py", "cli.py")
    ]
    assert sorted(cli.COMMANDS.values()) == sorted(f"{path.parent.name}.{path.stem}" for path in files)


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_lists_every_command_in_a_line(capsys, words):
    cli.main(words)
    lines = capsys.readouterr().out.splitlines()
    for name in [*cli.COMMANDS, "launch"]:
        (line,) = [line for line in lines if line.startswith(f"  {name} ")]
        assert 30 < len(line) < 120, line


@pytest.mark.parametrize("columns", ["60", "140"])
@pytest.mark.parametrize(("name", "module"), cli.COMMANDS.items())
def test_help_of_a_command_names_every_field(capsys, monkeypatch, name, module, columns):
    monkeypatch.setenv("COLUMNS", columns)
    cli.main([name, "--help"])
    printed = capsys.readouterr().out
    assert f"restore-rl {name} " in printed
    assert f"python -m {module}" not in printed
    fields = Command.of(module).schema.__annotations__
    assert all(
        f"\n  {'in' if field == 'inputs' else field}=" in printed or f"\n{field}: " in printed for field in fields
    )


@pytest.mark.parametrize("module", cli.COMMANDS.values())
def test_every_field_says_what_it_means(module):
    fields = fields_of(Command.of(module).schema)
    assert [field.key for field in fields if not field.meaning] == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["eval"], "no command eval; did you mean eval-rm or evaluate?"),
        (["zzz"], "no command zzz; restore-rl --help lists them"),
        (["train-rl", "configs/train_rl_sr.yaml", "group_sise=3"], "Did you mean one of: 'group_size'"),
        (["train-rl", "configs/train_rl_sr.yaml", "sampler.eta=0"], "sampler.eta must be above 0"),
        (["dataset", "configs/datset.yaml"], "did you mean configs/dataset.yaml?"),
        (["dataset", "configs/dataset.yaml", "crop_px=100"], "crop_px must be a multiple of 32, got 100"),
        (["train-rm", "seed=1"], "such as configs/train_rm.yaml seed=1, got seed=1"),
        (["train-rm"], "such as configs/train_rm.yaml seed=1, got nothing"),
        (["score", "out=x"], "expected in=<picture or folder>"),
        (["restore", "in=x", "tile_px=3"], "tile_px must lie between"),
        (["restore", "--words", "in='x"], "expected words with closed quotes"),
        (["launch", "two", "train-rl"], "expected launch <processes> <command>"),
        (["launch", "2", "train"], "no command train; did you mean"),
        (["restore", "in=gone.png"], "expected a picture or a folder, but gone.png is missing"),
        (["score", "in=gone.png,here.png"], "expected a picture or a folder, but gone.png is missing"),
    ],
)
def test_mistakes_are_found_before_anything_is_imported(monkeypatch, words, message):
    monkeypatch.setattr(cli, "import_module", lambda module: pytest.fail(f"imported {module}"))
    with pytest.raises(UserError) as error:
        cli.main(words)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "words", [["--help"], ["train-rl", "--help"], ["train-rl", "train_rl_sr.yaml", "no=1"], ["restore", "in=gone.png"]]
)
def test_neither_help_nor_a_mistake_loads_a_library(words):
    script = f"""
import sys
from rl_finetune.cli import main
try:
    main({words!r})
except Exception:
    pass
print("loaded:", *{{"torch", "numpy", "accelerate", "PIL", "datasets"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "loaded:"


def test_a_command_is_its_modules_main(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two words").mkdir()
    done = []
    monkeypatch.setattr(
        cli, "import_module", lambda name: SimpleNamespace(main=lambda words: done.append((name, words)))
    )
    cli.main(["score", "--words", "'in=two words' out=x", "stage=1"])
    assert done == [("reward_model.score", ["in=two words", "out=x", "stage=1"])]


def test_python_m_prints_the_same_help(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    cli.main(["download-rm", "--help"])
    by_name = capsys.readouterr().out
    command = [sys.executable, "-m", "reward_model.download", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == by_name.replace("restore-rl download-rm", "python -m reward_model.download")


def test_a_finished_stage_says_so_at_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, "import_module", lambda module: pytest.fail(f"imported {module}"))
    words = ["configs/train_rm.yaml", f"out={tmp_path}"]
    (tmp_path / "summary.json").write_text(
        f'{{"says": "reward model: 1 s", "command": "{cli.finished.command_hash(words)}"}}'
    )
    cli.main(["train-rm", *words])
    assert capsys.readouterr().out == "finished: reward model: 1 s\n"


def test_launch_starts_the_module_in_processes(monkeypatch):
    started = []
    monkeypatch.setattr("shared.app.launch.main", started.append)
    cli.main(["launch", "2", "train-rl", "configs/train_rl_sr.yaml", "groups=8"])
    assert started == [["2", "rl_finetune.train", "configs/train_rl_sr.yaml", "groups=8"]]
