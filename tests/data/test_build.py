"""The whole build on a handful of small pictures: the same bytes however it is run, and refusals that name the key."""

from __future__ import annotations

import shutil
import subprocess
import sys

import huggingface_hub
import pytest
import torch
from datasets import load_dataset

from data.build import main as build
from data.store.reader import load_samples
from shared.app.errors import UserError
from shared.restorers.feed_forward import FeedForwardConfig, FeedForwardNet, FeedForwardRestorer
from tests.helpers.hub_server import FakeHub
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
        (["held_out_source=river"], "'river' holds no picture; the parts are lake, town"),
        (["restorers.net.path=nowhere"], r"restorers\.net: .* nowhere is missing"),
        (["restorers.net.pth=x"], "Did you mean: 'path'"),
        ([f"merge=[{here}/photos]"], "is no dataset folder"),
    ):
        with pytest.raises(UserError, match=message):
            run_build(here, "mistakes", *overrides)
        assert not (here / "mistakes").exists()  # the mended command finds nothing in its way


def test_shards_of_another_build_are_not_merged(here, dataset):
    other = run_build(here, "other", "seed=1", "shard=1/3")
    with pytest.raises(UserError, match="seed is 1 there and 0 here"):
        run_build(here, "mixed", f"merge=[{other}]")


def test_push_uploads_the_finished_folder(here, dataset, monkeypatch, capsys):
    with FakeHub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        run_build(here, "whole", "push=user/swaps")  # finished: nothing is built again
        files = hub.repos["user/swaps"]["main"]
    assert "pushed" in capsys.readouterr().out
    assert files["README.md"] == (dataset / "README.md").read_bytes()
    assert {name for name in files if name.endswith(".parquet")} == {
        f"data/{path.name}" for path in (dataset / "data").iterdir()
    }
