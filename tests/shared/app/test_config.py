"""A config file and dotted overrides become one frozen dataclass; mistakes are one line."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import Literal

import pytest

from shared.app.config import flatten, from_dict, load_config, require_range, to_yaml
from shared.app.errors import UserError


@dataclass(frozen=True)
class Inner:
    size_px: int = 8
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Member:
    name: str = "x"


@dataclass(frozen=True)
class Config:
    out: str
    group_size: int = 4
    inner: Inner = field(default_factory=Inner)
    widths: tuple[int, ...] = (1, 2)
    members: dict[str, Member] = field(default_factory=dict)
    revision: str | None = None
    paths: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_range(group_size=(self.group_size, 2, 64))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("out: here\ngroup_size: 8\ninner: {size_px: 16}\n")
    return path


def test_overrides_win_over_the_file_and_the_file_over_defaults(path):
    config = load_config(Config, [str(path), "inner.size_px=32", "inner.kind=b"])
    assert (config.out, config.group_size, config.inner) == ("here", 8, Inner(32, "b"))


def test_a_config_survives_yaml_and_dict(path):
    config = load_config(Config, [str(path)])
    path.write_text(to_yaml(config))
    assert asdict(load_config(Config, [str(path)])) == asdict(config)
    assert asdict(from_dict(Config, asdict(config))) == asdict(config)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["group_sise=3"], "Did you mean: 'group_size'"),
        (["inner.size=3"], "inner.size"),
        (["group_size=many"], "could not be converted to Integer"),
        (["inner.kind=c"], "inner.kind"),
        (["group_size=1"], "group_size must lie between 2 and 64, got 1"),
    ],
)
def test_mistakes_are_one_line(path, words, message):
    with pytest.raises(UserError) as error:
        load_config(Config, [str(path), *words])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_value_and_a_missing_file_are_named(path):
    path.write_text("group_size: 3\n")
    with pytest.raises(UserError, match="out"):
        load_config(Config, [str(path)])
    with pytest.raises(UserError, match=r"no config file nowhere\.yaml"):
        load_config(Config, ["nowhere.yaml"])


def test_broken_yaml_is_refused(path):
    path.write_text("out: [1, 2\n")
    with pytest.raises(UserError, match=r"c\.yaml is not valid yaml"):
        load_config(Config, [str(path)])


def test_an_override_that_is_no_yaml_is_the_one_named(path):
    with pytest.raises(UserError, match=r"^widths=\[1, is not valid yaml"):
        load_config(Config, [str(path), "group_size=2", "widths=[1,"])


@pytest.mark.parametrize(
    "text",
    ["{runs}/x", "my #1 photos", "a: b", "[1", "*", "&a", "no", "1e3", "null", "", "it's", "2026-01-01", "- x", "%"],
)
def test_the_value_of_a_text_field_is_taken_as_it_stands(path, text):
    assert load_config(Config, [str(path), f"out={text}"]).out == text
    path.write_text("{out: x, members: {first: {name: y}}}")
    assert load_config(Config, [str(path), f"members.first.name={text}"]).members["first"].name == text


NAMES = ["2024_01", "007", "1e3", "yes", "2026-01-01", "0x1F", "1:30", ".5", "true"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_a_yaml_file_is_no_number_where_a_text_is_due(path, name):
    path.write_text(f"out: {name}\nrevision: {name}\npaths: [{name}, b]\nmembers: {{{name}: {{name: {name}}}}}\n")
    config = load_config(Config, [str(path)])
    assert (config.out, config.revision, config.paths, config.members) == (
        name,
        name,
        (name, "b"),
        {name: Member(name)},
    )


@pytest.mark.parametrize("name", [*NAMES, "my photos", "a b;c"])
def test_a_list_of_texts_holds_them_as_they_stand(path, name):
    assert load_config(Config, [str(path), f"paths=[{name},b]"]).paths == (name, "b")


@pytest.mark.parametrize("text", ["${x}", "a ${group_size}", r"\${x}", "$x", "'s photos", '"best" of'])
def test_a_text_refers_to_no_other_field_and_survives_being_written(path, text):
    config = load_config(Config, [str(path), f"out={text}", f"members.a.name={text}"])
    assert (config.out, config.members["a"].name) == (text, text)
    path.write_text(to_yaml(config))
    assert load_config(Config, [str(path)]) == config


def test_a_home_is_written_as_a_tilde(path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    path.write_text("{out: ~/a, revision: ~, members: {a: {name: ~/b}}}")
    config = load_config(Config, [str(path), "paths=[~/c,~,d~]"])
    assert (config.out, config.revision, config.members["a"].name) == ("/home/me/a", None, "/home/me/b")
    assert config.paths == ("/home/me/c", "/home/me", "d~")


def test_a_name_that_is_not_utf_8_can_be_written(path):
    config = load_config(Config, [str(path), f"out={os.fsdecode(bytes([0x67, 0xFF]))}"])
    assert b"g\\udcff" in to_yaml(config).encode()


def test_a_config_file_may_have_any_name(tmp_path, path):
    other = path.rename(tmp_path / "a=b #1.yaml")
    assert load_config(Config, [str(other), "group_size=16"]).group_size == 16


def test_a_text_that_may_be_missing_can_be_left_out(path):
    assert load_config(Config, [str(path), "revision=1e3"]).revision == "1e3"
    assert load_config(Config, [str(path), "revision=x", "revision=null"]).revision is None


def test_a_quoted_text_loses_its_quotes(path):
    assert load_config(Config, [str(path), "out='a: b'"]).out == "a: b"
    assert load_config(Config, [str(path), 'out="a"']).out == "a"


@pytest.mark.parametrize("words", [["widths.0=3"], ["widths[0]=3"], ["[=3"]])
def test_a_word_that_is_no_dotted_key_is_one_line(path, words):
    with pytest.raises(UserError) as error:
        load_config(Config, [str(path), *words])
    assert "\n" not in str(error.value)
    assert "c.yaml: " in str(error.value)


@pytest.mark.parametrize("text", ["- out\n", "3\n", "'3'\n"])
def test_anything_but_keys_and_values_is_refused(path, text):
    path.write_text(text)
    with pytest.raises(UserError, match=r"c\.yaml: expected keys and values"):
        load_config(Config, [str(path)])


def test_flatten_names_every_leaf():
    flat = flatten(Config(out="x", members={"first": Member("y")}))
    assert flat == {
        "out": "x",
        "group_size": 4,
        "inner.size_px": 8,
        "inner.kind": "a",
        "widths.0": 1,
        "widths.1": 2,
        "paths": [],
        "members.first.name": "y",
        "revision": None,
    }
