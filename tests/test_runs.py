"""Runs of every stage: one process a folder, no pickle left, moved, asked for more, and told when their pictures change."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import data.build
import data.train_pool
import reward_model.evaluate
import reward_model.train
import rl_finetune.evaluate
import rl_finetune.pretrain
import rl_finetune.train
from data.degradation.pairs import PairConfig
from data.sources.open_source import SourceConfig
from rl_finetune.loop.config import TrainRlConfig
from rl_finetune.supervised.config import PretrainConfig
from shared.app.config import to_yaml
from shared.app.errors import UserError
from shared.runs import finished, lock, run_folder
from shared.runs.lock import LOCK_FILE
from tests.helpers.lock_holder import held_elsewhere
from tests.helpers.places import CONFIGS
from tests.helpers.pool_networks import UNCHECKED
from tests.helpers.run_files import open_every_file
from tests.helpers.tiny import save_pictures, tiny_policy
from tests.helpers.tiny_rl import tiny_rl_config

pytest_plugins = ["tests.helpers.small_dataset"]

TINY_POOL = [
    "source.embedded_images=6",
    "sr_pairs.pairs=8",
    "sr_pairs.crop_px=32",
    "channels=8",
    "blocks=1",
    "critic_channels=4",
    "exemplars=100",
    "l1_iterations=2",
    "batch_size=2",
    "cpu_threads=1",
    "checkpoint_every=2",
    *UNCHECKED,
]


def rl(config: TrainRlConfig, *words: str) -> list[str]:
    """Runs the RL command with a config of its own; returns its words."""
    path = Path(config.out).with_suffix(".yaml")
    path.write_text(to_yaml(config))
    rl_finetune.train.main(argv := [str(path), f"out={config.out}", *words])
    return argv


def base(folder: Path, **changes) -> PretrainConfig:
    config = PretrainConfig(
        task="face",
        out=str(folder / "base"),
        source=SourceConfig(faces=str(folder / "faces"), cache_folder=str(folder / "cache")),
        pairs=PairConfig(crop_px=32, pairs=8),
        policy=dataclasses.replace(tiny_policy("face").config),
        iterations=2,
        batch_size=2,
        checkpoint_every=1,
    )
    save_pictures(folder / "faces", 8)
    (folder / "base.yaml").write_text(to_yaml(dataclasses.replace(config, **changes)))
    return config


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> TrainRlConfig:
    """A finished RL run of two iterations, with all that it started from."""
    config = tiny_rl_config(tmp_path_factory.mktemp("runs"))
    config = dataclasses.replace(
        config, iterations=2, decay_share=0.0, warmup_iterations=1, check_images=2, eval_images=2
    )
    rl(config)
    return config


@pytest.fixture
def run(whole, tmp_path) -> TrainRlConfig:
    """A copy of it in a folder of its own, where everything that it started from lies beside it."""
    return copied(whole, tmp_path / "copy")


def copied(config: TrainRlConfig, folder: Path) -> TrainRlConfig:
    root = Path(config.out).parent
    shutil.copytree(root, folder)
    here: Callable[[str], str] = lambda place: str(folder / Path(place).relative_to(root))  # noqa: E731
    source = dataclasses.replace(
        config.source, faces=here(config.source.faces), cache_folder=here(config.source.cache_folder)
    )
    moved = {name: here(getattr(config, name)) for name in ("out", "base", "reward_model")}
    return dataclasses.replace(config, source=source, **moved)


def weights(out: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(out) / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# One run, one folder.


def commands(whole: TrainRlConfig, here: Path, dataset: Path, out: Path) -> dict[str, tuple[Callable, list[str]]]:
    """Returns every stage that writes into `out`, with words that would do."""
    base(here.parent)
    rl_words = [str(Path(whole.out).with_suffix(".yaml")), f"out={out}"]
    checkpoint = whole.reward_model
    return {
        "pool": (data.train_pool.main, [str(CONFIGS / "pool.yaml"), f"out={out}", *TINY_POOL]),
        "build": (data.build.main, [str(here / "dataset.yaml"), f"out={out}", "workers=1"]),
        "train-rm": (reward_model.train.main, [str(CONFIGS / "train_rm.yaml"), f"out={out}", f"dataset={dataset}"]),
        "base": (rl_finetune.pretrain.main, [str(here.parent / "base.yaml"), f"out={out}"]),
        "rl": (rl_finetune.train.main, rl_words),
        "evaluate": (rl_finetune.evaluate.main, [f"run={whole.out}", f"out={out}"]),
        "eval-rm": (
            reward_model.evaluate.main,
            [str(CONFIGS / "eval_rm.yaml"), f"checkpoint={checkpoint}", f"dataset={dataset}", f"out={out}"],
        ),
    }


@pytest.mark.parametrize("early", [True, False])
def test_a_second_process_is_refused_at_every_stage(whole, here, dataset, tmp_path, monkeypatch, early):
    monkeypatch.setattr(lock, "_PATIENCE_SECONDS", 0.1)
    if not early:  # both begin at once, and neither sees the other's lock before it takes its own
        monkeypatch.setattr(run_folder, "refuse_if_held", lambda folder: None)
    with held_elsewhere(tmp_path / "out") as process:
        for name, (main, words) in commands(whole, here, dataset, tmp_path / "out").items():
            with pytest.raises(UserError, match=rf"is in use by process {process.pid} on"):
                main(words)
            assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK_FILE], name


def test_a_run_leaves_no_lock(whole):
    assert not list(Path(whole.out).rglob(f"{LOCK_FILE}*"))


# No pickle.


def test_every_file_of_a_run_opens_without_unpickling(whole, here, dataset, tmp_path):
    data.train_pool.main([str(CONFIGS / "pool.yaml"), f"out={tmp_path / 'pool'}", *TINY_POOL, "gan_iterations=2"])
    base(tmp_path)
    rl_finetune.pretrain.main([str(tmp_path / "base.yaml")])
    for folder in (Path(whole.out), tmp_path / "pool", tmp_path / "base"):
        assert {"state/progress.json", "provenance.json", "pictures.json"} <= open_every_file(folder)
    assert "pictures.json" in open_every_file(dataset)


# A run that moves.


def test_a_moved_run_is_finished_and_can_be_measured(run, capsys):
    assert rl(run)
    assert capsys.readouterr().out.startswith("finished: RL face")
    written = (Path(run.out) / "config.yaml").read_text()
    assert run.out not in written  # nothing is written into a finished run
    rl_finetune.evaluate.main([f"run={run.out}", "images=2"])
    assert (Path(run.out) / "eval" / "evaluation.json").exists()


def test_a_moved_run_goes_on_where_it_is(whole, run, capsys, monkeypatch):
    Path(run.out, "summary.json").unlink()  # interrupted at the very end
    moved = dataclasses.replace(run, base=str(Path(run.base).parent / "." / "base"))  # another spelling
    monkeypatch.chdir(Path(run.out).parent)
    moved = dataclasses.replace(moved, reward_model="rm", out="out")
    path = Path("rl.yaml")
    path.write_text(to_yaml(moved))
    rl_finetune.train.main([str(path)])
    assert "policy and pictures in out" in capsys.readouterr().out
    assert same(weights(run.out), weights(whole.out))
    assert "out: out\n" in Path("out", "config.yaml").read_text()


def test_another_base_in_the_same_place_is_noticed(run, monkeypatch):
    from shared.diffusion.sampler import SamplerSpec
    from shared.policies.policy_folder import save_policy

    Path(run.out, "summary.json").unlink()
    save_policy(Path(run.base), tiny_policy("face", seed=1), SamplerSpec(steps=4, eta=0.5), provenance={})
    with pytest.raises(UserError, match=r"begun with other contents of base \(config.json, model.safetensors\)"):
        rl(run)


def test_another_place_is_another_run(run, tmp_path):
    shutil.copytree(run.base, tmp_path / "elsewhere")
    with pytest.raises(UserError, match="made by another config: base is"):
        rl(dataclasses.replace(run, base=str(tmp_path / "elsewhere")))


# A run that goes on.


def test_a_run_asked_for_more_ends_as_one_that_asked_at_once(whole, run, tmp_path, capsys):
    at_once = dataclasses.replace(whole, out=str(Path(whole.out).parent / "at_once"), iterations=3)
    rl(at_once)
    capsys.readouterr()
    rl(dataclasses.replace(run, iterations=3, checkpoint_every=1))
    said = capsys.readouterr().out
    assert "goes on after 2 of 3 iterations; 2 were asked for before; it ends as a run does that asks for 3 at" in said
    assert same(weights(run.out), weights(at_once.out))
    for name in ("policy", "optimizer", "average", "session"):
        ours, theirs = (Path(out) / "state" / f"{name}.safetensors" for out in (run.out, at_once.out))
        assert ours.read_bytes() == theirs.read_bytes(), name
    assert "iterations: 3" in (Path(run.out) / "config.yaml").read_text()
    first, second = json.loads((Path(run.out) / "provenance.json").read_text())["sessions"]
    assert "goes_on" not in first
    assert second["goes_on"].startswith("goes on after 2 of 3 iterations")


def test_killed_on_the_way_to_more_it_goes_on_without_a_word(run, monkeypatch, capsys):
    longer = dataclasses.replace(run, iterations=4, checkpoint_every=1)
    iterate, made = rl_finetune.train.iterate, []

    def dying(session, iteration):
        if made:
            raise KeyboardInterrupt
        made.append(iteration)
        return iterate(session, iteration)

    with monkeypatch.context() as patch:
        patch.setattr(rl_finetune.train, "iterate", dying)
        with pytest.raises(KeyboardInterrupt):
            rl(longer)
    assert made == [2]
    assert not (Path(run.out) / "summary.json").exists()
    with pytest.raises(UserError, match="iterations is 4 there and 2 here"):
        rl(run)
    capsys.readouterr()
    rl(longer)
    assert "goes on" not in capsys.readouterr().out


def test_a_schedule_that_depends_on_the_total_is_said(run, capsys):
    base(Path(run.out).parent)
    words = [str(Path(run.out).parent / "base.yaml"), f"out={Path(run.out).parent / 'own'}"]
    rl_finetune.pretrain.main([*words, "iterations=6", "warmup_iterations=0"])
    rl_finetune.pretrain.main([*words, "iterations=9", "warmup_iterations=0"])
    said = capsys.readouterr().out
    # The rate falls over the last third: in a run of 6 from iteration 5 on, in one of 9 from iteration 7 on.
    assert "goes on after 6 of 9 iterations" in said
    assert "does not end as a run that asks for 9 at once: iterations 6 to 6 were made at another learning rate" in said
    policy = weights(Path(run.out).parent / "own")
    assert json.loads((Path(run.out).parent / "own" / "config.json").read_text())["provenance"] == {"iterations": 9}
    assert all(tensor.isfinite().all() for tensor in policy.values())


def test_the_pool_goes_on_too(tmp_path, capsys):
    words = [str(CONFIGS / "pool.yaml"), *TINY_POOL]
    data.train_pool.main([*words, f"out={tmp_path / 'one'}", "gan_iterations=1"])
    data.train_pool.main([*words, f"out={tmp_path / 'one'}", "gan_iterations=3", "workers=0", "checkpoint_every=1"])
    data.train_pool.main([*words, f"out={tmp_path / 'two'}", "gan_iterations=3"])
    # The GAN's rate falls over its last half, at most over its last step where there are one or two: the first of three
    # and the only one of one are made at its peak, the last of three is not, and of five it is.
    assert "goes on after 3 of 5 iterations; 3 were asked for before; it ends as a run" in capsys.readouterr().out
    assert same(weights(tmp_path / "one" / "gan"), weights(tmp_path / "two" / "gan"))
    data.train_pool.main([*words, f"out={tmp_path / 'two'}", "gan_iterations=5"])
    assert "iterations 5 to 5 were made at another learning rate" in capsys.readouterr().out
    assert same(weights(tmp_path / "one" / "l1"), weights(tmp_path / "two" / "l1"))


def test_without_its_state_a_finished_run_cannot_go_on(run):
    shutil.rmtree(Path(run.out) / "state")
    with pytest.raises(UserError, match="cannot go on to iterations=3: it was finished, and its folder `state` is not"):
        rl(dataclasses.replace(run, iterations=3))


def test_killed_after_its_last_state_a_run_only_finishes(run, whole, monkeypatch):
    for name in ("summary.json", "model.safetensors", "config.json"):
        Path(run.out, name).unlink()
    monkeypatch.setattr(rl_finetune.train, "iterate", lambda *_: pytest.fail("an iteration is made again"))
    rl(run)
    assert same(weights(run.out), weights(whole.out))


# Pictures that came, went or changed.


def repainted(config: TrainRlConfig, name: str) -> None:
    """Turns a picture upside down, so that its size stays."""
    from PIL import Image

    path = Path(config.source.faces) / name
    Image.open(path).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(path)


@pytest.mark.parametrize("is_finished", [True, False])
def test_other_pictures_stop_a_run_unless_it_is_told(run, capsys, is_finished):
    if not is_finished:
        Path(run.out, "summary.json").unlink()
    faces = Path(run.source.faces)
    repainted(run, "003.png")
    (faces / "004.png").unlink()
    shutil.copy(faces / "005.png", faces / "new.png")
    assert not run_folder.looks_unchanged(Path(run.out), [run.source.faces])
    said = r"1 of the faces came \(new.png\), 1 of the faces went \(004.png\), 1 of the faces changed \(003.png\)"
    with pytest.raises(UserError, match=rf"begun with other pictures: {said}.*source.if_changed=go_on"):
        rl(run)
    with pytest.raises(UserError, match=r"begun with other pictures.*or go on with these: if_changed=go_on"):
        rl_finetune.evaluate.main([f"run={run.out}"])
    told = dataclasses.replace(run, source=dataclasses.replace(run.source, if_changed="go_on"))
    capsys.readouterr()
    rl(told)
    assert "was begun with other pictures: 1 of the faces came" in capsys.readouterr().out
    if not is_finished:  # it has taken them in
        rl(run)


def test_the_same_pictures_with_another_date_are_the_same(run, capsys):
    rl(run)
    for path in Path(run.source.faces).iterdir():
        path.write_bytes(path.read_bytes())
    assert not run_folder.looks_unchanged(Path(run.out), [run.source.faces])  # a closer look is needed
    rl(run)
    assert capsys.readouterr().out.count("finished: ") == 2
    assert run_folder.looks_unchanged(Path(run.out), [run.source.faces])


def test_a_finished_run_is_known_by_its_words_while_its_pictures_look_the_same(whole, tmp_path):
    words = [str(Path(whole.out).with_suffix(".yaml")), f"out={whole.out}"]
    assert finished.main(words) == 0
    picture = Path(whole.source.faces) / "002.png"
    before = picture.stat()
    os.utime(picture)
    assert finished.main(words) == 1
    os.utime(picture, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert finished.main(words) == 0


def test_provenance_says_what_a_run_was_made_with(whole, dataset):
    found = json.loads((Path(whole.out) / "provenance.json").read_text())
    assert found["seeds"] == {"source.seed": 0, "seed": 0}
    assert found["pictures"]["faces"]["count"] == 12
    assert {"model.safetensors", "config.json"} == set(found["inputs"]["base"]["files"])
    assert len(found["inputs"]["reward_model"]["sha256"]) == 64
    (session,) = found["sessions"]
    assert session["command"][1] == f"out={whole.out}"
    assert session["threads"] == 1
    assert session["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert {"cpu", "cores", "memory_gb", "gpus", "instructions", "mkl", "system"} == set(session["machine"])
    assert {"photos", "faces"} == set(json.loads((dataset / "provenance.json").read_text())["pictures"])
