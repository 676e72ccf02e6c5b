"""Words of a command as a person types them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from shared.app.words import read_words


@dataclass(frozen=True)
class Settings:
    inputs: str
    suffix: str = ""
    count: int = 1


@pytest.mark.parametrize(
    "text", ["2024_01", "007", "1e3", "yes", "null", "[a]", "{a: 1}", "'a'", "#1", "a: b", "$HOME", "${b}", r"\${a}"]
)  # fmt: skip
def test_text_is_taken_as_it_stands(text):
    read = read_words(Settings, [f"in={text}", f"suffix={text}", "count=2"], expected="in=<picture>")
    assert (read.inputs, read.suffix, read.count) == (text, text, 2)


def test_a_home_is_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    read = read_words(Settings, ["in=~/a.png", "suffix=~no such person"], expected="in=<picture>")
    assert (read.inputs, read.suffix) == (f"{tmp_path}/a.png", "~no such person")
    (tmp_path / "~").mkdir()
    assert read_words(Settings, ["in=~"], expected="in=<picture>").inputs == "~"
