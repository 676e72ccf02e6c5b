"""A terminal that is not UTF-8 gets plain characters."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shared.app.terminal import plain_where_needed


@pytest.mark.parametrize(
    ("encoding", "text", "shown"),
    [
        ("ascii", "64×48 → 256×192 …", "64x48 -> 256x192 ..."),
        ("ascii", "σ ≥ 1 ± 2", "sigma >= 1 +- 2"),
        ("ascii", "写真", "\\u5199\\u771f"),
        ("latin-1", "64×48 → é", "64×48 -> é"),
        ("utf-8", "64×48 → é 写真", "64×48 → é 写真"),
        ("utf-8", "gr\udcfcn", "gr\\udcfcn"),
    ],
)
def test_what_an_encoding_lacks_is_written_plainly(encoding, text, shown):
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding=encoding)
    plain_where_needed(stream)
    stream.write(text)
    stream.flush()
    assert buffer.getvalue().decode(encoding) == shown


def test_help_is_printed_on_any_terminal():
    root = Path(__file__).parents[3]
    command = [sys.executable, "-m", "rl_finetune.cli", "restore", "--help"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, env=environment, check=True, cwd=root)
    assert b"(x4)" in done.stdout
    done.stdout.decode("ascii")


@pytest.mark.parametrize("setting", [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_a_terminal_of_the_c_locale_gets_ascii_and_files_are_read_as_utf_8(setting):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    words = [sys.executable, "-m", "rl_finetune.cli", "restore", "--help"]
    done = subprocess.run(
        words, cwd=Path(__file__).parents[3], env=environment | setting, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"sr (x4)" in done.stdout
    assert done.stdout.isascii()
