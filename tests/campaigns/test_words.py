"""Configs and command lines that nobody meant: each is read, or refused in one line, before anything is written."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout, suppress
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from rl_finetune import cli
from shared.app import launch
from shared.app.config import flatten, load_config, to_yaml
from shared.app.entry import run_command
from shared.app.errors import UserError
from shared.app.usage import Command
from shared.runs.run_folder import RunFolder
from tests.helpers.campaign import campaign, trial
from tests.helpers.damage import damaged
from tests.helpers.places import CONFIGS

COMMANDS = {name: Command.of(module) for name, module in cli.COMMANDS.items()}
CONFIGURED = {name: command for name, command in COMMANDS.items() if command.shipped_config}
SHIPPED = {name: (CONFIGS.parent / command.shipped_config).read_text() for name, command in CONFIGURED.items()}
KEYS = {name: sorted(flatten(yaml.safe_load(text))) for name, text in SHIPPED.items()}

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
ODD = st.sampled_from(
    ["", "null", "~", "-1", "1e400", ".nan", ".inf", "0x10", "1_000", "[", "]", "{}", "[1,[2,{a: b}]]", "{a: {a: {}}}",
     "${seed}", "${oc.env:HOME}", "${oc.decode:1}", "${", "???", "!!python/object/apply:os.system [id]", "&a [*a]",
     "'", '"', "../../x", "/dev/zero", "\0", "é\u202e", "9" * 400, "a=b", "=", "..", "[" * 300, "yes", "2026-01-01",
     "hf:", "hf:../../x", "shipped:", "shipped:../x", "shipped:base_sr/../../..", "true", "1:30"]
)  # fmt: skip
SCALAR = st.one_of(ODD, TEXT, st.integers().map(str), st.floats().map(str))
ANY_KEY = st.one_of(
    st.sampled_from(sorted({key for keys in KEYS.values() for key in keys})),
    st.sampled_from(
        ["in", "out", "seed", "run", "json", "a.b.c", "", ".", "..", "a..b", "a[0]", "a[", "[0]", "__class__"]
    ),
    TEXT,
)
WORD = st.one_of(
    st.builds("{}={}".format, ANY_KEY, SCALAR), SCALAR, ODD, st.sampled_from(["--help", "--json", "-h", "--"])
)
VALUE = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT, ODD),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT | ODD, inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("configs")


def read(name: str, content: bytes, folder: Path, *words: str) -> None:
    """Reads a config and, where it is taken, what a run folder makes of it: the same config."""
    path = folder / "config.yaml"
    path.write_bytes(content)
    with trial("configs", folder):
        config = COMMANDS[name].check([str(path), *words])
        written = to_yaml(config)
        path.write_text(written)
        again = OmegaConf.to_container(OmegaConf.load(path))
        assert repr(flatten(again)) == repr(flatten(OmegaConf.to_container(OmegaConf.create(written))))
        RunFolder.check(folder / "absent", config)


def test_a_refusal_that_names_memory_is_not_one_for_want_of_it(folder):
    with trial("configs", folder):
        raise UserError("Invalid value '[]'; object_type=MemoryConfig")
    with pytest.raises(AssertionError, match="bytes were asked for"), trial("configs", folder):
        raise UserError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")


@campaign(slice_of=12, whole=700)
@given(data=st.data(), name=st.sampled_from(sorted(SHIPPED)))
def test_configs_with_one_value_of_another_kind(folder, data, name):
    content = yaml.safe_load(SHIPPED[name])
    for key in data.draw(st.lists(st.sampled_from(KEYS[name]), min_size=1, max_size=3)):
        *above, last = key.split(".")
        node = content
        for part in above:
            node = node[int(part)] if isinstance(node, list) else node.get(part) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node[last] = data.draw(VALUE)
        elif isinstance(node, list):
            node[int(last)] = data.draw(VALUE)
    read(name, yaml.safe_dump(content).encode(), folder)


@campaign(slice_of=12, whole=700)
@given(name=st.sampled_from(sorted(SHIPPED)), data=st.data())
def test_damaged_configs(folder, name, data):
    read(name, data.draw(damaged(SHIPPED[name].encode())), folder)


LAUGHS = "".join(f"{c}: &{c} [{', '.join(['*' + p] * 9)}]\n" for p, c in pairwise("abcdefghi"))
BOMBS = [
    "a: &a [x, x, x, x, x, x, x, x, x]\n" + LAUGHS,
    "[" * 5000,
    "a: " * 3000,
    "- " * 4000 + "x",
    "seed: " + "9" * 5000,
    "? " * 3000,
    "seed: ${seed}",
    "out: ${oc.env:HOME}",
    "seed: !!python/object/apply:os.system ['touch pwned']",
    "%TAG ! tag:yaml.org,2002:python/\n---\nseed: !object/apply:os.abort []",
    "<<: {seed: 3}\n",
    "seed: 1\nseed: 2\n",
    "--- 1\n--- 2\n",
    "\ufeffseed: 1",
]  # fmt: skip


@campaign(slice_of=20, whole=300)
@given(
    name=st.sampled_from(sorted(SHIPPED)),
    text=st.sampled_from(BOMBS) | st.text(max_size=60) | VALUE.map(yaml.safe_dump),
)
def test_configs_of_nothing_and_bombs(folder, name, text):
    read(name, text.encode("utf-8", "surrogatepass"), folder)


def answer(words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a command line up to the point where the command's own module would be imported."""

    class Stage:
        @staticmethod
        def main(argv):
            assert isinstance(argv, list)

    said = io.StringIO()
    with monkeypatch.context() as patch, trial("command lines", folder, refusals=(SystemExit,)):
        patch.chdir(folder)
        patch.setattr(cli, "import_module", lambda name: Stage)
        patch.setattr(launch, "main", lambda argv: None)
        patch.setattr("shared.app.entry.plain_where_needed", lambda: None)
        with redirect_stderr(said), redirect_stdout(io.StringIO()):
            run_command(cli.main, words, own_help=True)
    line = said.getvalue()
    assert line == "" or (line.startswith("error: ") and line.count("\n") == 1), line


LINE = st.tuples(
    st.one_of(st.sampled_from([*COMMANDS, "launch", "launch 2", "--help", "--words"]), SCALAR),
    st.lists(WORD, max_size=4),
)


@campaign(slice_of=60, whole=4000)
@given(line=LINE)
def test_command_lines(folder, monkeypatch_session, line):
    command, words = line
    shipped = [CONFIGURED[command].shipped_config] if command in CONFIGURED else []
    answer([*command.split(" "), *shipped, *words], folder, monkeypatch_session)


@campaign(slice_of=20, whole=1500)
@given(command=st.sampled_from([*COMMANDS, "launch 2 train-rl"]), text=st.lists(WORD, max_size=3).map(" ".join) | TEXT)
def test_words_given_in_one_string(folder, monkeypatch_session, command, text):
    answer([*command.split(" "), "--words", text], folder, monkeypatch_session)


@pytest.fixture(scope="module")
def monkeypatch_session():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def test_a_config_that_names_a_program_is_not_run(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for text in BOMBS:
        (folder / "config.yaml").write_text(text)
        with suppress(UserError):
            load_config(COMMANDS["train-rl"].schema, [str(folder / "config.yaml")])
    assert not (folder / "pwned").exists()
