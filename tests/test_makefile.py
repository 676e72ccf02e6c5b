"""What a person gives to make reaches the command as it was typed, and no shell runs any of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from string import Formatter

import pytest

ROOT = Path(__file__).parent.parent
NASTY = [
    "two words",
    "a&b;touch pwned",
    "it's",
    'say "so"',
    "$HOME $x $$",
    "$(shell touch pwned)",
    "$(touch pwned)",
    "`touch pwned`",
    "a|touch pwned>pwned",
    "*",
    "#1",
    "back\\slash",
    "~",
    "größer, 大",
]
ALL = " ".join(NASTY)
# target, and the words that its variables must become
TARGETS = {
    "restore": ["in={IN}", "out={OUT}", "policy={POLICY}", "run={RUN}", "task=sr"],
    "score": ["in={IN}", "run={RUN}", "lq={LQ}", "gt={GT}"],
    "base-policies": ["out={RUN}/base_sr", "out={RUN}/base_face", "source.images={IMAGES}", "source.faces={FACES}"],
    "rl-sr": ["launch", "{PROCESSES}", "{CONFIG}", "--words", "{ARGS}", "out={RUN}/rl_sr", "base={RUN}/base_sr"],
    "dataset": ["out={DATASET}", "runs={RUN}", "{BASE_ARGS}", "{POOL_ARGS}", "{DATASET_ARGS}", "{ARGS}", "{CONFIG}"],
    "train-rm": ["out={RUN}/reward_model", "dataset={DATASET}", "{RM_ARGS}", "{CONFIG}"],
    "pool": ["out={RUN}/pool/sr", "out={RUN}/pool/face", "{CONFIG}", "{POOL_ARGS}", "{ARGS}"],
    "report": ["run={RUN}", "dataset={DATASET}", "{ARGS}"],
    "browse": ["folder={DATASET}"],
    "eval": ["run={RUN}/rl_sr", "run={RUN}/rl_face", "against={AGAINST}", "{ARGS}"],
    "eval-rm": ["triples={TRIPLES}", "restorers={RESTORERS}", "dataset={DATASET}", "{ARGS}", "{CONFIG}"],
    "download-rm": ["repo={REPO}", "revision={REVISION}", "out={OUT}"],
    "download-policy": ["repo={REPO}", "revision={REVISION}", "out={OUT}"],
    "bench": ["runs={RUN}", "dataset={DATASET}", "base={RUN}/base_sr", "source.images={IMAGES}", "{ARGS}"],
    "bench-dataset": ["runs={RUN}", "{CONFIG}"],
    "bench-rm": ["dataset={DATASET}", "{CONFIG}"],
    "bench-rl": ["base={RUN}/base_sr", "{CONFIG}"],
}


@pytest.fixture
def make(tmp_path):
    """Runs a target with a Python that only writes down the words it was given; returns them all."""
    seen, show = tmp_path / "seen", tmp_path / "show"
    show.write_text(
        f"#!{sys.executable} -S\nimport json, sys\nopen({str(seen)!r}, 'a').write(json.dumps(sys.argv[1:]) + chr(10))\n"
    )
    show.chmod(0o755)

    def run(*words: str) -> list[str]:
        options = ["-f", str(ROOT / "Makefile"), "-o", ".venv/.ready", f"PY={show}"]
        done = subprocess.run(["make", *options, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return [word for line in seen.read_text().splitlines() for word in json.loads(line)]

    return run


@pytest.mark.parametrize("text", NASTY)
def test_a_value_arrives_as_it_was_typed(make, tmp_path, text):
    assert {f"in={text}", f"run={text}"} <= set(make("restore", f"IN={text}", f"RUN={text}"))
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(("target", "expected"), TARGETS.items(), ids=TARGETS.keys())
def test_every_value_of_every_target_arrives(make, tmp_path, target, expected):
    names = {name for word in expected for _, name, _, _ in Formatter().parse(word) if name}
    values = {name: f"{name} {ALL}" for name in names}
    words = make(target, *(f"{name}={value}" for name, value in values.items()))
    assert [word for word in expected if word.format(**values) not in words] == []
    assert not (tmp_path / "pwned").exists()


def test_a_datasets_folder_is_named_as_its_run(make):
    assert "dataset=datasets/-it's $(mine)" in make("report", "RUN=some runs/-it's $(mine)")


def test_a_value_from_the_environment_arrives_as_well(make, tmp_path, monkeypatch):
    monkeypatch.setenv("IN", ALL)
    assert f"in={ALL}" in make("restore")
    assert not (tmp_path / "pwned").exists()


EVERYTHING = ("base_sr", "base_face", "reward_model")
MADE = ["base_sr", "base_face", "dataset", "train_rm", "train_rl_sr", "train_rl_face"]
SCRATCH = ["base-policies", "base-policies", "train-pool", "train-pool", "dataset", "train-rm"]


def ship(folder: Path, *names: str) -> None:
    for name in names:
        (folder / "checkpoints" / name).mkdir(parents=True)
        (folder / "checkpoints" / name / "config.json").write_text("{}")


def begin(folder: Path, name: str, text: str = "") -> None:
    (folder / "runs" / "mine" / name).mkdir(parents=True, exist_ok=True)
    (folder / "runs" / "mine" / name / "config.yaml").write_text(text)


def commands(words: list[str]) -> list[str]:
    return [words[i + 2] for i, word in enumerate(words) if word == "-m"]


def test_rl_starts_from_what_ships(make, tmp_path):
    ship(tmp_path, *EVERYTHING)
    words = make("train-rl", "RUN=runs/mine")
    assert commands(words) == ["train-rl", "train-rl", "report"]
    for task in ("sr", "face"):
        assert {f"configs/train_rl_{task}_shipped.yaml", f"base=shipped:base_{task}"} <= set(words)
    assert words.count("reward_model=shipped:reward_model") == 2
    assert "base=shipped:base_sr" in make("bench-rl", "RUN=runs/mine")


@pytest.mark.parametrize("missing", EVERYTHING)
def test_rl_trains_every_stage_where_something_it_needs_does_not_ship(make, tmp_path, missing):
    ship(tmp_path, *(name for name in EVERYTHING if name != missing))
    words = make("train-rl", "RUN=runs/mine")
    assert commands(words) == [*SCRATCH, "train-rl", "train-rl", "report"]
    assert {"configs/train_rl_sr.yaml", "base=runs/mine/base_sr", "base=runs/mine/base_face"} <= set(words)
    assert words.count("reward_model=runs/mine/reward_model/checkpoint") == 2


def test_one_task_needs_only_its_own_base(make, tmp_path):
    ship(tmp_path, "base_face", "reward_model")
    assert commands(make("train-rl", "TASK=face")) == ["train-rl", "report"]


def test_from_scratch_trains_every_stage(make, tmp_path):
    ship(tmp_path, *EVERYTHING)
    words = make("train-rl", "RUN=runs/mine", "FROM=scratch")
    assert commands(words) == [*SCRATCH, "train-rl", "train-rl", "report"]
    assert not any("shipped" in word for word in words)


@pytest.mark.parametrize("begun", ["base_sr", "pool/sr", "reward_model"])
def test_a_run_begun_from_scratch_goes_on_from_scratch(make, tmp_path, begun):
    ship(tmp_path, *EVERYTHING)
    begin(tmp_path, begun)
    assert commands(make("train-rl", "RUN=runs/mine"))[:6] == SCRATCH


def test_a_run_begun_from_what_ships_goes_on_from_it(make, tmp_path):
    ship(tmp_path, *EVERYTHING)
    begin(tmp_path, "rl_sr", "task: sr\nbase: shipped:base_sr\n")
    begin(tmp_path, "base_sr")  # trained later, for something else
    assert commands(make("train-rl", "RUN=runs/mine")) == ["train-rl", "train-rl", "report"]
    command = ["make", "-f", str(ROOT / "Makefile"), "--dry-run", "train-rl", "RUN=runs/mine", "FROM=scratch"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "runs/mine was begun from the shipped checkpoints; leave FROM=scratch out to go on" in done.stderr


def test_a_downloaded_reward_model_takes_the_shipped_ones_place(make, tmp_path):
    ship(tmp_path, "base_sr", "base_face")
    (tmp_path / "runs" / "mine" / "reward_model" / "checkpoint").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "reward_model" / "checkpoint" / "config.json").write_text("{}")
    words = make("train-rl", "RUN=runs/mine")
    assert commands(words) == ["train-rl", "train-rl", "report"]
    assert {"base=shipped:base_sr", "reward_model=runs/mine/reward_model/checkpoint"} <= set(words)


GIVEN = {"SHIPPED_IMAGES": "my photos", "SHIPPED_FACES": "it's faces", "MANIFEST": "of $(both).tsv", "LICENCE": "mit"}


def test_checkpoints_are_trained_and_shipped(make, tmp_path):
    words = make("checkpoints", *(f"{name}={text}" for name, text in GIVEN.items()), "STAGES=2,3", "ARGS=seed=1")
    # Without a pool: the dataset's restorers are the base policies and published networks.
    stages = ["base-policies", "base-policies", "dataset", "train-rm", "train-rl", "train-rl"]
    assert commands(words) == [*stages, *["ship"] * 5]
    for name in ("base_sr", "base_face", "reward_model", "rl_sr", "rl_face"):
        assert {f"run=runs/shipped/{name}", f"out=checkpoints/{name}", f"out=runs/shipped/{name}"} <= set(words)
    assert words.count("manifest=of $(both).tsv") == words.count("licence=mit") == 5
    assert words.count("source.images=my photos") == words.count("source.faces=it's faces") == 5
    assert {"stages=2,3", "seed=1", "base=runs/shipped/base_face"} <= set(words)
    configs = [word for word in words if word.startswith("configs/")]
    assert configs == [f"configs/{name}_shipped.yaml" for name in MADE]
    assert all((ROOT / config).is_file() for config in configs)
    words = make("checkpoints", *(f"{name}={text}" for name, text in GIVEN.items()), "RUN=runs/mine")
    assert {"run=runs/mine/rl_sr", "stages=3"} <= set(words)


@pytest.mark.parametrize("missing", GIVEN)
def test_nothing_is_trained_for_checkpoints_without_licences(tmp_path, missing):
    given = [f"{name}={text}" for name, text in GIVEN.items() if name != missing]
    command = ["make", "-f", str(ROOT / "Makefile"), "-o", ".venv/.ready", "PY=false", "checkpoints", *given]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"{missing}= is missing" in done.stderr


def test_words_for_pytest_are_taken_apart_without_a_shell(tmp_path):
    # ARGS is for pytest alone: the tests call make themselves.
    head = "import os\n\nassert 'ARGS' not in os.environ\n\n\n"
    (tmp_path / "test_one.py").write_text(f"{head}def test_first():\n    pass\n\n\ndef test_second():\n    pass\n")
    words = f"{tmp_path} -p no:cacheprovider -k 'test_first and not touch' --collect-only -q"
    command = ["make", "-o", ".venv/.ready", f"PY={sys.executable}", "test", f"ARGS={words}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "test_one.py::test_first" in done.stdout
    assert "test_second" not in done.stdout


def test_a_config_is_for_the_stage_and_the_task_that_were_asked_for(make):
    words = make("base-policies", "TASK=face", "CONFIG=mine.yaml", "ARGS=seed=1")
    assert words[2:4] == ["base-policies", "mine.yaml"]
    assert {"out=runs/default/base_face", "seed=1"} <= set(words)
    assert not {"configs/base_face.yaml", "out=runs/default/base_sr"} & set(words)
    words = make("bench", "BENCH=rm", "CONFIG=mine.yaml")
    assert words[words.index("bench-rm") + 1] == "mine.yaml"
    # The stages before it keep their own, and with two tasks nobody can tell whose it is.
    words = make("dataset", "CONFIG=mine.yaml")
    configs = {"configs/base_sr.yaml", "configs/base_face.yaml", "configs/pool.yaml", "mine.yaml"}
    assert {word for word in words if word.endswith(".yaml")} >= configs
    for target in ("base-policies", "train-rl"):
        done = subprocess.run(
            ["make", "-f", str(ROOT / "Makefile"), target, "CONFIG=x.yaml"], capture_output=True, text=True, check=False
        )
        assert (done.returncode, "CONFIG is for one task: add TASK=sr or TASK=face" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("variable", "text"), [("TASK", "sr;touch pwned"), ("TASK", "faces"), ("FROM", "nothing"), ("BENCH", "rm $(x)")]
)
def test_a_task_that_is_none_is_refused(tmp_path, variable, text):
    command = ["make", "-f", str(ROOT / "Makefile"), "--dry-run", "eval", f"{variable}={text}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"{variable} takes " in done.stderr
    assert not (tmp_path / "pwned").exists()
