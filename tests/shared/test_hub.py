"""Reward-model checkpoints to and from the Hub, over real HTTP against a local server."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from reward_model import download
from reward_model.measuring.model_card import write_model_card
from reward_model.network.checkpoint import push_checkpoint
from reward_model.network.model import RewardModel, RewardModelConfig
from shared.app.errors import UserError
from shared.hub import fetch_snapshot
from shared.hub_settings import require_reachable
from tests.helpers.hub_server import FakeHub, folder_files, point_client_at, use_hub

REPO = "user/reward"
WEIGHTS = "stage_1/model.safetensors"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    for stage in (0, 1):
        RewardModel(RewardModelConfig(decoder_channels=(16,)), stage=stage).save_pretrained(folder)
    write_model_card(folder)
    return folder


NOBODY = "http://127.0.0.1:9"  # a port where no server listens


@pytest.fixture
def hub(tmp_path, monkeypatch, checkpoint):
    with FakeHub() as server:
        use_hub(server, monkeypatch, cache=tmp_path / "cache")
        server.add(REPO, folder_files(checkpoint))
        yield server


def score_of(model: RewardModel) -> float:
    with torch.no_grad():
        return model(torch.full((1, 3, 32, 32), 0.25)).score.item()


def refused(said: str, repo: str = REPO, **asked) -> None:
    with pytest.raises(UserError, match=said) as refusal:
        RewardModel.from_pretrained(repo, **asked)
    assert "\n" not in str(refusal.value)


def test_download_whole_and_use_offline(hub, checkpoint, monkeypatch):
    expected = score_of(RewardModel.from_pretrained(checkpoint))
    assert score_of(RewardModel.from_pretrained(REPO)) == expected
    assert RewardModel.from_pretrained(REPO, stage=0).stage == 0
    fetched = [line for line in hub.requests if line.startswith("GET") and WEIGHTS in line]
    assert len(fetched) == 1  # the second load reads the cache
    point_client_at(NOBODY, monkeypatch)
    assert score_of(RewardModel.from_pretrained(REPO)) == expected


def test_revisions_are_kept_apart(hub, checkpoint):
    torch.manual_seed(1)
    other = RewardModel(RewardModelConfig(decoder_channels=(16,)), stage=1)
    files = dict(hub.repos[REPO]["main"])
    other.push_to_hub("user/other", licence="cc0-1.0", revision="v2")
    commit = hub.add(REPO, {**files, **hub.repos["user/other"]["v2"]}, revision="v2")
    assert score_of(RewardModel.from_pretrained(REPO, revision="v2")) == pytest.approx(score_of(other.eval()), abs=1e-6)
    assert score_of(RewardModel.from_pretrained(REPO, revision=commit)) == pytest.approx(score_of(other), abs=1e-6)
    assert score_of(RewardModel.from_pretrained(REPO)) == score_of(RewardModel.from_pretrained(checkpoint))


def test_wrong_revision_and_wrong_repository(hub):
    refused("user/reward@v9: the repository has no such revision", revision="v9")
    refused("no/such@main: no such repository, or it is private", repo="no/such")


def test_a_file_missing_from_the_hub(hub):
    hub.missing.add(WEIGHTS)
    refused("a file the Hub lists is missing|the Hub answered 404")
    hub.missing.clear()
    RewardModel.from_pretrained(REPO)


def test_a_file_missing_from_the_listing(hub, checkpoint):
    files = dict(hub.repos[REPO]["main"])
    del files[WEIGHTS]
    hub.add(REPO, files)
    refused("stage_1/model.safetensors is missing from the checkpoint")


def test_a_truncated_transfer_is_refused_and_mended_by_another_run(hub, checkpoint):
    hub.truncated.add(WEIGHTS)
    refused("the transfer broke off|came cut")
    hub.truncated.clear()
    assert score_of(RewardModel.from_pretrained(REPO)) == score_of(RewardModel.from_pretrained(checkpoint))


def test_a_cut_that_the_client_itself_finds_is_one_line_and_other_errors_stay_themselves(monkeypatch):
    def found(message: str):
        def download(*_, **__):
            raise OSError(message)

        return download

    monkeypatch.setattr("shared.hub.snapshot_download", found("Consistency check failed: file should be of size 9"))
    refused("a file came cut or changed on the way")
    monkeypatch.setattr("shared.hub.snapshot_download", found("Permission denied"))
    with pytest.raises(OSError, match="Permission denied"):
        fetch_snapshot(REPO)


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_a_wrong_checksum_is_refused_and_not_kept(hub, checkpoint, name):
    hub.corrupt.add(name)
    refused(f"{name} does not have the checksum the Hub lists")
    hub.corrupt.clear()
    assert score_of(RewardModel.from_pretrained(REPO)) == score_of(RewardModel.from_pretrained(checkpoint))


def test_a_cache_cut_by_a_kill_is_not_used_offline(hub, monkeypatch):
    folder = fetch_snapshot(REPO)
    (folder / WEIGHTS).unlink()
    point_client_at(NOBODY, monkeypatch)
    refused("the Hub cannot be reached and the cache holds no whole copy")


def test_no_network_and_nothing_cached(hub, monkeypatch):
    point_client_at(NOBODY, monkeypatch)
    refused("the Hub cannot be reached and the cache holds no whole copy; check the network")


def test_a_repository_of_something_else(hub):
    hub.add("user/novel", {"README.md": b"# a novel"})
    refused("has no config.json; train or fetch one", repo="user/novel")
    hub.add("user/empty", {"image.png": b"x"})
    refused("holds none of", repo="user/empty")


def test_upload_and_back(hub, checkpoint):
    assert push_checkpoint(checkpoint, "user/new", licence="cc-by-4.0", revision="v1") == f"{hub.endpoint}/user/new"
    uploaded = hub.repos["user/new"]["v1"]
    assert uploaded.keys() == hub.repos[REPO]["main"].keys()
    assert hub.private["user/new"]
    card = uploaded.pop("README.md").decode()
    assert card == (checkpoint / "README.md").read_text().replace("---\n", "---\nlicense: cc-by-4.0\n", 1)
    assert all(uploaded[name] == (checkpoint / name).read_bytes() for name in uploaded)
    back = RewardModel.from_pretrained("user/new", revision="v1")
    assert score_of(back) == score_of(RewardModel.from_pretrained(checkpoint))


def test_an_upload_needs_a_licence_and_tells_no_folder_of_the_machine(hub, checkpoint, tmp_path):
    with pytest.raises(UserError, match="what is published in user/new needs a licence"):
        push_checkpoint(checkpoint, "user/new")
    folder = tmp_path / "c"
    shutil.copytree(checkpoint, folder)
    (folder / "train_config.yaml").write_text(f"seed: 0\ndataset: {tmp_path}/photos\n")
    with pytest.raises(UserError, match=r"train_config.yaml, line 2, names a folder of this machine"):
        push_checkpoint(folder, "user/new", licence="cc0-1.0")
    assert "user/new" not in hub.repos


def test_a_damaged_folder_is_not_uploaded(hub, checkpoint, tmp_path):
    for name in hub.repos[REPO]["main"]:
        (tmp_path / "c" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "c" / name).write_bytes((checkpoint / name).read_bytes())
    (tmp_path / "c" / WEIGHTS).write_bytes(b"cut")
    with pytest.raises(UserError, match="it was cut"):
        push_checkpoint(tmp_path / "c", "user/broken", licence="cc0-1.0")
    assert "user/broken" not in hub.repos


def test_upload_without_network(hub, checkpoint, monkeypatch):
    point_client_at(NOBODY, monkeypatch)
    with pytest.raises(UserError, match=r"the Hub cannot be reached .* check the network or HF_ENDPOINT"):
        push_checkpoint(checkpoint, "user/new", licence="cc0-1.0")


def test_download_command_leaves_a_folder_that_stands_alone(hub, tmp_path, checkpoint, capsys):
    download.main([f"repo={REPO}", f"out={tmp_path / 'here'}"])
    assert "stages 0, 1 of user/reward@main" in capsys.readouterr().out
    assert not any(path.is_symlink() for path in (tmp_path / "here").rglob("*"))
    assert json.loads((tmp_path / "here" / "config.json").read_text())["stages"].keys() == {"0", "1"}
    said = json.loads((tmp_path / "here" / "fetched.json").read_text())
    assert (said["repository"], said["revision"], len(said["commit"])) == (REPO, "main", 40)
    assert said["sha256"][WEIGHTS] == hashlib.sha256((checkpoint / WEIGHTS).read_bytes()).hexdigest()
    with pytest.raises(UserError, match="expected repo=user/name"):
        download.main([])
    (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match="is there and is no checkpoint"):
        download.main([f"repo={REPO}", f"out={tmp_path / 'photos'}"])


def test_the_endpoint_comes_from_the_environment(hub, tmp_path):
    code = f"from shared.hub import fetch_snapshot; print(fetch_snapshot({REPO!r}))"
    settings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **settings}, capture_output=True, text=True, check=True
    )
    assert (Path(done.stdout.strip()) / WEIGHTS).is_file()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"HF_ENDPOINT": "localhost:9"}, "HF_ENDPOINT=localhost:9 has no scheme; write https://localhost:9"),
        ({"all_proxy": "socks5h://me:secret@host:1"}, r"^ALL_PROXY=host:1 is a SOCKS proxy.*pip install socksio"),
        ({"HTTPS_PROXY": "SOCKS4://host:1"}, "is a SOCKS proxy"),
        ({"HF_TOKEN": "hf_ü"}, "HF_TOKEN holds letters that no token has"),
    ],
)
def test_settings_with_which_no_request_can_begin_are_one_line(settings, said, monkeypatch):
    monkeypatch.setattr("shared.hub_settings.find_spec", lambda name: None)
    with pytest.raises(UserError, match=said):
        require_reachable(settings)


def test_settings_with_which_one_can_begin_are_taken(monkeypatch):
    require_reachable({"HF_ENDPOINT": "http://mirror", "HTTPS_PROXY": "http://host:1", "HF_TOKEN": "hf_abc\n"})
    monkeypatch.setattr("shared.hub_settings.find_spec", lambda name: True)
    require_reachable({"ALL_PROXY": "socks5://host:1"})
