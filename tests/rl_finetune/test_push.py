"""Policies to and from the Hub, over real HTTP against a local server."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from data.pool.restorer_pool import RestorerEntry, RestorerPool
from rl_finetune import download, push, restore
from rl_finetune.loop.config import TrainRlConfig
from rl_finetune.loop.lora_layers import LoraConfig
from rl_finetune.loop.session import base_restorer
from rl_finetune.loop.trainable import make_trainable
from shared.app.errors import UserError
from shared.diffusion.sampler import SamplerSpec
from shared.hub_names import HubName
from shared.policies.load import load_policy, load_restorer
from shared.policies.pixel_unet import PixelUNet, PixelUNetConfig
from shared.policies.policy_folder import save_policy
from shared.policies.pretrained import PretrainedPolicy
from shared.restorers.protocol import RestorerSettings
from shared.runs.provenance import changed_inputs, fingerprint
from shared.runs.run_folder import RunFolder
from tests.helpers.hub_server import FakeHub, folder_files, use_hub
from tests.helpers.tiny import save_pictures, save_tiny_policy, save_tiny_reward_model, tiny_policy
from tests.helpers.tiny_latent import save_tiny_latent

REPO, WEIGHTS = "user/policy", "model.safetensors"
LICENCE = "licence=cc-by-4.0"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with FakeHub() as server:
        use_hub(server, monkeypatch, cache=tmp_path / "cache")
        yield server


def finished_run(folder: Path, *, photos: Path) -> Path:
    """Saves what an RL run leaves behind, as it stands in a person's folders."""
    config = TrainRlConfig(out=str(folder), task="face", base="shipped:base_face")
    config = dataclasses.replace(config, source=dataclasses.replace(config.source, faces=str(photos)))
    run = RunFolder(folder)
    run.make(config)
    provenance = {"base": "shipped:base_face", "reward_model": str(folder.parent / "rm"), "method": "nft"}
    save_policy(folder, tiny_policy(), SamplerSpec(steps=2, eta=0.5), provenance=provenance)
    run.write_json("evaluation.json", {"table": "psnr ↑  23.0 24.0", "image_ids": ["a secret name"]})
    run.finish({"seconds": 60.0}, says=f"RL face in {folder}")
    return folder


def restored(where: str | Path, **asked) -> torch.Tensor:
    lq = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    return load_restorer(str(where), RestorerSettings(**asked)).restore(lq, sample_seeds=[0])


def test_push_and_download_give_the_same_bytes_and_the_same_picture(hub, tmp_path, capsys):
    run = finished_run(tmp_path / "runs" / "rl_face", photos=save_pictures(tmp_path / "faces", 2))
    push.main([f"folder={run}", f"repo={REPO}", LICENCE, "pictures=faces of my own, CC0", "hardware=a laptop"])
    assert "private where it is new, under the licence cc-by-4.0" in capsys.readouterr().out
    assert hub.private[REPO]
    download.main([f"repo={REPO}", f"out={tmp_path / 'here'}"])
    assert f"pixel_unet, ×1, 2 steps, SDE η 0.5, of {REPO}@main (commit " in capsys.readouterr().out
    assert (tmp_path / "here" / WEIGHTS).read_bytes() == (run / WEIGHTS).read_bytes()
    assert torch.equal(restored(tmp_path / "here"), restored(run))
    said = json.loads((tmp_path / "here" / "fetched.json").read_text())
    assert said["repository"] == REPO
    assert hub.repos[REPO][said["commit"]]
    assert said["sha256"][WEIGHTS] == hashlib.sha256((run / WEIGHTS).read_bytes()).hexdigest()


def test_nothing_of_the_machine_is_sent(hub, tmp_path):
    run = finished_run(tmp_path / "runs" / "rl_face", photos=save_pictures(tmp_path / "faces", 2))
    push.main([f"folder={run}", f"repo={REPO}", LICENCE, "pictures=my own"])
    sent = hub.repos[REPO]["main"]
    assert sent.keys() == {"config.json", WEIGHTS, "README.md", "train_config.yaml"}
    for content in sent.values():
        assert not any(place.encode() in content for place in (str(tmp_path), str(Path.home()), "secret name"))
    assert json.loads(sent["config.json"])["provenance"]["reward_model"] == "rm"
    config = json.loads((run / "config.json").read_text())
    config["provenance"]["note"] = f"see {tmp_path}/notes.txt"
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config.json, line \d+, names a folder of this machine"):
        push.main([f"folder={run}", "repo=user/other", LICENCE, "pictures=my own"])
    assert "user/other" not in hub.repos


def test_the_card_has_figures_base_licence_and_pictures(hub, tmp_path):
    photos = save_pictures(tmp_path / "faces", 2)
    run = finished_run(tmp_path / "runs" / "rl_face", photos=photos)
    words = [f"folder={run}", f"repo={REPO}", LICENCE, "revision=v2"]
    with pytest.raises(UserError, match=r"have no source and licence.*; or say in pictures="):
        push.main(words)
    rows = [["path", "source", "licence"], *([f"faces/{i:03}.png", "a museum", "CC0"] for i in range(2))]
    (tmp_path / "MANIFEST.tsv").write_text("\n".join("\t".join(row) for row in rows) + "\n")
    push.main([*words, "manifest=MANIFEST.tsv"])
    sent = hub.repos[REPO]["v2"]
    card = sent["README.md"].decode()
    assert card.startswith("---\nlicense: cc-by-4.0\nlibrary_name: restore-rl\npipeline_tag: image-to-image\n")
    assert f'PretrainedPolicy.from_pretrained("{REPO}", revision="v2")' in card
    assert f"policy=hf:{REPO}@v2" in card
    assert "| `shipped:base_face` of restore-rl | cc-by-sa-4.0 |" in card
    assert "psnr ↑  23.0 24.0" in card
    assert "| a museum | CC0 | 2 |" in card
    assert sent["pictures.tsv"].decode().count("a museum") == 2
    # Pushed again from what was fetched, the card keeps its sections.
    download.main([f"repo={REPO}", "revision=v2", "out=fetched"])
    push.main(["folder=fetched", "repo=user/copy", LICENCE, "public=true"])
    again = hub.repos["user/copy"]["main"]
    assert "psnr ↑  23.0 24.0" in again["README.md"].decode()
    assert again["pictures.tsv"] == sent["pictures.tsv"]
    assert not hub.private["user/copy"]


def test_a_base_on_the_hub_is_named_with_its_licence(hub, tmp_path):
    hub.add("user/base", {"README.md": b"---\nlicense: mit\n---\n", **folder_files(save_tiny_policy(tmp_path / "b"))})
    save_policy(tmp_path / "t", tiny_policy(), SamplerSpec(steps=2), provenance={"base": "hf:user/base@main"})
    PretrainedPolicy.from_pretrained(tmp_path / "t").push_to_hub(REPO, licence="cc0-1.0")
    card = hub.repos[REPO]["main"]["README.md"].decode()
    assert "base_model: user/base\n" in card
    assert "| `user/base`, revision `main` | mit |" in card


def test_of_a_latent_policy_what_was_trained_is_sent_and_its_base_named(hub, tmp_path):
    files = folder_files(
        save_tiny_latent(tmp_path / "base", tokenizer=True, pipeline="StableDiffusionControlNetPipeline")
    )
    commit = hub.add("user/diffbir", {"README.md": b"---\nlicense: openrail\n---\n", **files})
    policy, _ = load_policy("hf:user/diffbir")
    for part in make_trainable(policy, "lora", LoraConfig(rank=2, targets=("controlnet.*to_q",)), seed=0):
        torch.nn.init.normal_(part, std=0.1)
    save_policy(tmp_path / "tuned", policy, SamplerSpec(steps=2), provenance={"base": "hf:user/diffbir"})
    push.main([f"folder={tmp_path / 'tuned'}", f"repo={REPO}", LICENCE])
    sent = hub.repos[REPO]["main"]
    assert sum(map(len, sent.values())) < sum(map(len, files.values())) / 10
    card = sent["README.md"].decode()
    assert "base_model: user/diffbir\n" in card
    assert f"| `user/diffbir`, revision `{commit}` | openrail |" in card
    assert torch.equal(restored(f"hf:{REPO}"), restored(tmp_path / "tuned"))


def test_a_policy_on_the_hub_is_named_wherever_a_policy_is(hub, tmp_path, capsys):
    commit = hub.add(REPO, folder_files(save_tiny_policy(tmp_path / "v1")), revision="v1")
    save_policy(tmp_path / "v2", tiny_policy(seed=1), SamplerSpec(steps=2), provenance={})
    hub.add(REPO, folder_files(tmp_path / "v2"))
    there = f"hf:{REPO}@v1"
    expected = restored(tmp_path / "v1")
    assert torch.equal(restored(there), expected)
    assert torch.equal(restored(f"hf:{REPO}", revision="v1"), expected)
    assert torch.equal(restored(f"hf:{REPO}@{commit}"), expected)
    assert not torch.equal(restored(f"hf:{REPO}"), expected)
    policy, spec = load_policy(there)
    assert (policy.kind, spec) == ("pixel_unet", SamplerSpec(steps=4, eta=0.5))
    config = TrainRlConfig(base=there, task="face")
    assert base_restorer(config, spec, torch.device("cpu")).scale == 1
    pool = RestorerPool({"tuned": RestorerEntry(path=there, task="face")})
    assert [(file.name, file.commit) for file in pool.files()] == [("tuned.face.model.safetensors", commit)]
    save_pictures(tmp_path / "in", 1, side_px=16)
    restore.main(["in=in", "out=out", f"policy={there}", "device=cpu"])
    assert (tmp_path / "out" / "000.png").is_file()


def test_a_run_notices_that_its_base_on_the_hub_has_moved(hub, tmp_path):
    hub.add(REPO, folder_files(save_tiny_policy(tmp_path / "v1")))
    before = fingerprint(f"hf:{REPO}")
    assert before["files"].keys() == {"config.json"}
    assert changed_inputs({"base": before}, {"base": fingerprint(f"hf:{REPO}@main")}) == []
    save_policy(tmp_path / "v2", tiny_policy(seed=1), SamplerSpec(steps=2), provenance={})
    hub.add(REPO, folder_files(tmp_path / "v2"))
    assert changed_inputs({"base": before}, {"base": fingerprint(f"hf:{REPO}")}) == ["base (config.json)"]


def test_save_and_load_by_hand(tmp_path):
    save_tiny_policy(tmp_path / "a")
    policy = PretrainedPolicy.from_pretrained(tmp_path / "a")
    policy.save_pretrained(tmp_path / "b")
    assert folder_files(tmp_path / "a") == folder_files(tmp_path / "b")
    with pytest.raises(UserError, match="revision=v1 belongs to a policy hf:owner/name"):
        PretrainedPolicy.from_pretrained(tmp_path / "a", revision="v1")


def test_a_push_goes_on_where_it_broke_off_and_keeps_private_from_public(hub, tmp_path):
    folder = save_tiny_policy(tmp_path / "p")
    hub.refused_commits = 10
    with pytest.raises(UserError, match="the Hub answered 500"):
        push.main([f"folder={folder}", f"repo={REPO}", LICENCE])
    hub.refused_commits = 0
    push.main([f"folder={folder}", f"repo={REPO}", LICENCE])
    before = len([line for line in hub.requests if "/commit/" in line])
    push.main([f"folder={folder}", f"repo={REPO}", LICENCE])
    assert len([line for line in hub.requests if "/commit/" in line]) == before  # all of it is there
    hub.add("user/open", {})
    with pytest.raises(UserError, match="user/open exists and is public; push to another name"):
        push.main([f"folder={folder}", "repo=user/open", LICENCE])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "expected repo=user/name on the Hub, got nothing"),
        (["repo=user/x"], "expected licence=<the licence of the weights>"),
        (["repo=x", LICENCE], "expected repo=user/name on the Hub, got x"),
    ],
)
def test_a_push_that_cannot_begin_is_one_line(hub, tmp_path, words, said):
    folder = save_tiny_policy(tmp_path / "p")
    with pytest.raises(UserError, match=said):
        push.main([f"folder={folder}", *words])
    assert hub.requests == []


def test_a_policy_that_stands_on_a_file_of_this_machine_is_not_sent(hub, tmp_path):
    config = PixelUNetConfig(channels=(8, 16), norm_groups=4)
    policy = PixelUNet(config)
    policy.config = dataclasses.replace(config, pre_restorer="runs/mine/pool/net.pth")
    save_policy(tmp_path / "p", policy, SamplerSpec(steps=2), provenance={})
    with pytest.raises(UserError, match=r"has the pre_restorer runs/mine/pool/net.pth, which does not ship with it"):
        push.main([f"folder={tmp_path / 'p'}", f"repo={REPO}", LICENCE])
    assert REPO not in hub.repos


def test_what_is_no_policy_is_one_line(hub, tmp_path):
    hub.add("user/novel", {"README.md": b"# a novel", "config.json": b"{}"})
    for name, said in {
        "hf:user/novel": r"expected a policy's repository, but hf:user/novel holds none \(pixel_unet",
        "hf:user/novel@v9": "user/novel@v9: the repository has no such revision",
        "hf:no/such": "no/such@main: no such repository, or it is private",
        "hf:../../etc": r"got hf:../../etc|no such repository",
        "hf:user/name@": "expected hf:owner/name or hf:owner/name@revision, got hf:user/name@",
    }.items():
        with pytest.raises(UserError, match=said) as refusal:
            load_policy(name)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("listed", ["../outside.safetensors", "/tmp/outside.safetensors", "guide/../../x.safetensors"])
def test_a_repository_that_names_files_outside_is_refused(hub, tmp_path, listed):
    files = folder_files(save_tiny_policy(tmp_path / "p"))
    config = json.loads(files["config.json"])
    config["sha256"][listed] = "0" * 64
    hub.add(REPO, {**files, "config.json": json.dumps(config).encode()})
    with pytest.raises(UserError, match="lists checksums of files that a policy has not"):
        load_policy(f"hf:{REPO}")


def test_damage_on_the_way_is_refused_and_not_kept(hub, tmp_path):
    files = folder_files(save_tiny_policy(tmp_path / "p"))
    hub.add(REPO, files)
    hub.corrupt.add(WEIGHTS)
    with pytest.raises(UserError, match="does not have the checksum the Hub lists"):
        load_policy(f"hf:{REPO}")
    hub.corrupt.clear()
    load_policy(f"hf:{REPO}")
    save_policy(tmp_path / "q", tiny_policy(seed=1), SamplerSpec(steps=4), provenance={})
    other = folder_files(tmp_path / "q")
    hub.add(REPO, {**files, WEIGHTS: other[WEIGHTS]}, revision="mixed")
    with pytest.raises(UserError, match="is not the file that was saved"):
        load_policy(f"hf:{REPO}@mixed")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 5\n"


def test_a_pointer_in_place_of_weights_says_git_lfs_pull(hub, tmp_path):
    folder = save_tiny_policy(tmp_path / "p")
    (folder / WEIGHTS).write_bytes(POINTER)
    with pytest.raises(UserError, match=r"model.safetensors is a Git LFS pointer, not the weights: run `git lfs pull`"):
        load_policy(folder)
    with pytest.raises(UserError, match="git lfs pull"):
        push.main([f"folder={folder}", f"repo={REPO}", LICENCE])
    hub.add(REPO, folder_files(folder))
    with pytest.raises(UserError, match="git lfs pull"):
        load_policy(f"hf:{REPO}")
    (tmp_path / "net.pth").write_bytes(POINTER)
    with pytest.raises(UserError, match=r"net.pth is a Git LFS pointer, not the weights: run `git lfs pull`"):
        load_restorer(str(tmp_path / "net.pth"))


def test_a_reward_model_is_pushed_by_the_same_command(hub, tmp_path):
    folder = save_tiny_reward_model(tmp_path / "rm")
    push.main([f"folder={folder}", "repo=user/rm", LICENCE])
    assert hub.private["user/rm"]
    assert hub.repos["user/rm"]["main"]["README.md"].startswith(b"---\nlicense: cc-by-4.0\n")
    (folder / "stage_1" / WEIGHTS).write_bytes(POINTER)
    with pytest.raises(UserError, match="git lfs pull"):
        push.main([f"folder={folder}", "repo=user/rm", LICENCE])


def test_a_download_replaces_nothing_but_a_policy(hub, tmp_path):
    hub.add(REPO, folder_files(save_tiny_policy(tmp_path / "p")))
    (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match="photos is there and is no policy; choose another folder with out="):
        download.main([f"repo={REPO}", "out=photos"])
    run = finished_run(tmp_path / "runs" / "rl_face", photos=save_pictures(tmp_path / "faces", 2))
    with pytest.raises(UserError, match="is there and holds a run beside its policy"):
        download.main([f"repo={REPO}", f"out={run}"])
    shutil.copytree(save_tiny_reward_model(tmp_path / "rm"), tmp_path / "copy")
    with pytest.raises(UserError, match="copy is there and is no policy"):
        download.main([f"repo={REPO}", "out=copy"])
    with pytest.raises(UserError, match="is a folder; use it as it is"):
        download.main(["repo=p", "out=new"])
    with pytest.raises(UserError, match="expected a Hub repository user/name, got policy"):
        download.main(["repo=policy", "out=new"])
    download.main([f"repo=hf:{REPO}", "out=new"])
    download.main([f"repo={REPO}", "out=new"])  # a policy is replaced


@pytest.mark.parametrize(
    ("text", "repo", "revision", "file"),
    [
        ("hf:a/b", "a/b", None, ""),
        ("hf:a/b@v1.0", "a/b", "v1.0", ""),
        ("hf:a/b@refs/pr/1", "a/b", "refs/pr/1", ""),
        ("hf:a/b/x4/net.safetensors", "a/b", None, "x4/net.safetensors"),
        ("hf:a/b@v1/x4/net.safetensors", "a/b", "v1", "x4/net.safetensors"),
    ],
)
def test_names_on_the_hub_are_read_and_written(text, repo, revision, file):
    assert HubName.parse(text) == HubName(repo, revision, file)
    assert str(HubName(repo, revision, file)) == text
    with pytest.raises(UserError, match="names another revision than revision=v9"):
        HubName.parse(f"hf:{repo}@v1", revision="v9")
