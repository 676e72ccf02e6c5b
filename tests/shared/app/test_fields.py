"""A config's fields are read from its text alone, and say what the class itself says."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

import pytest

from shared.app.config import load_config
from shared.app.errors import UserError
from shared.app.fields import fields_of
from shared.app.outline import Absent, Outline
from shared.app.shipped import find_config, nearest_config, shipped_names
from shared.app.usage import Command, print_help
from tests.helpers import config_example

EXAMPLE = "tests.helpers.config_example"
CONFIGS = {  # by the beginning of their names
    "base": "rl_finetune.pretrain",
    "dataset": "data.build",
    "eval_rm": "reward_model.evaluate",
    "pool": "data.train_pool",
    "study": "rl_finetune.study",
    "train_rl": "rl_finetune.train",
    "train_rm": "reward_model.train",
}


@pytest.fixture(scope="module")
def outline() -> Outline:
    return Outline(EXAMPLE)


@pytest.fixture(scope="module")
def fields(outline):
    return {field.key: field for field in fields_of(outline.get("Config"))}


def test_every_field_is_there_nested_ones_dotted(fields):
    assert list(fields) == [
        "in",
        "steps",
        "rate",
        "kind",
        "widths",
        "limit",
        "names",
        "inner",
        "inner.side_px",
        "inner.on",
        "parts",
        "parts[].name",
        "members",
        "members.<name>.name",
    ]


@pytest.mark.parametrize(
    ("key", "kind", "default", "meaning"),
    [
        ("in", "text", "", "a picture"),
        ("steps", "int, from 1", "8", "how many"),
        ("rate", "float, from 0 to 1", "0.001", "above the field, in two lines beside it"),
        ("kind", "a | b", "a", ""),
        ("widths", "list of int", "[1,2]", "one a level"),
        (
            "limit",
            "float or null",
            "null",
            "so long a comment beside the field that the formatter gives it lines of its own, between brackets",
        ),
        ("names", "{name: list of text}", "{}", ""),
        ("inner", "", "", "What is inside; of the example"),
        ("inner.side_px", "int, from 2 to 64", "16", "of a square"),
        ("inner.on", "true | false", "true", ""),
        ("parts", "list of {…}", "1 of them", ""),
        ("members.<name>.name", "text", "", "what it is called"),
    ],
)
def test_a_field_says_type_range_default_and_meaning(fields, key, kind, default, meaning):
    field = fields[key]
    assert (field.kind, field.default, field.meaning) == (kind, default, meaning)


def test_an_invariant_that_needs_no_library_is_checked(outline, tmp_path):
    (tmp_path / "c.yaml").write_text("inputs: x\n")
    with pytest.raises(UserError, match="steps must be even, got 3"):
        load_config(outline.get("Config"), [str(tmp_path / "c.yaml"), "steps=3"])
    with pytest.raises(UserError, match=r"inner\.side_px|side_px must lie between 2 and 64, got 1"):
        load_config(outline.get("Config"), [str(tmp_path / "c.yaml"), "inner.side_px=1"])


def test_an_invariant_that_needs_one_is_left_to_the_command(outline):
    assert outline.get("Heavy")(side_px=-1).side_px == -1
    with pytest.raises(ValueError, match="side_px"):
        config_example.Heavy(side_px=-1)


def test_what_needs_a_library_is_absent(outline):
    for name in ("net", "with_net", "nothing"):
        with pytest.raises(Absent):
            outline.get(name)


@pytest.mark.parametrize("name", shipped_names())
def test_a_shipped_config_means_the_same_to_the_outline(name):
    (module,) = [module for start, module in CONFIGS.items() if Path(name).stem.startswith(start)]
    schema = Command.of(module).schema
    real = getattr(importlib.import_module(module), schema.__name__)
    assert schema is not real
    assert dataclasses.asdict(load_config(schema, [name])) == dataclasses.asdict(load_config(real, [name]))


def test_a_config_is_found_where_it_is_named_and_among_the_shipped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = Path(__file__).parents[3] / "configs"
    assert find_config("configs/train_rm.yaml") == find_config("train_rm.yaml") == shipped / "train_rm.yaml"
    assert find_config("gpu/train_rm.yaml") == shipped / "gpu" / "train_rm.yaml"
    assert find_config("nowhere.yaml") is None
    assert find_config("../pyproject.toml") is None
    assert find_config("/configs/train_rm.yaml") is None
    (tmp_path / "train_rm.yaml").write_text("")
    assert find_config("train_rm.yaml") == Path("train_rm.yaml")
    assert nearest_config("configs/train_mr.yaml") == "configs/train_rm.yaml"
    assert nearest_config("holiday.yaml") is None


def test_help_shows_the_values_of_the_config_that_is_named(capsys):
    print_help("rl_finetune.train", ["configs/train_rl_face.yaml"])
    printed = capsys.readouterr().out
    assert "with the values of configs/train_rl_face.yaml" in printed
    assert "  curriculum.stages=[3] " in printed
    print_help("rl_finetune.train", [])
    assert "  curriculum.stages=[0,1,2,3] " in capsys.readouterr().out
