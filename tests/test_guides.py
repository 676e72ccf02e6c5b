"""The README's guides: every block of code is run as it stands, with sizes overridden by words that come after its own."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image
from spandrel.architectures.Compact import Compact

from rl_finetune import cli, train
from tests.helpers.ldm_layout import random_ldm
from tests.helpers.tiny import save_pictures, save_tiny_policy, save_tiny_reward_model

README = (Path(__file__).parent.parent / "README.md").read_text()
SECTION = README.partition("[start:guides]")[2].partition("[end:guides]")[0]
TINY = [
    "iterations=1",
    "groups=2",
    "pairs.crop_px=32",
    "pairs.pairs=4",
    "eval_images=2",
    "eval_crop_px=32",
    "curve_images=0",
    "check_every=0",
    "sampler.steps=2",
    "source.test_fraction=0.4",
    "source.val_fraction=0.2",
    "cpu_threads=1",
]


def blocks(title: str) -> list[tuple[str, str]]:
    """Returns (language, code) of a guide's blocks."""
    (text,) = [part for part in re.split(r"^### ", SECTION, flags=re.MULTILINE) if part.startswith(title)]
    return re.findall(r"```(\w+)\n(.*?)```", text, flags=re.DOTALL)


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> dict[str, list[str]]:
    """Returns {command: words that make it small}, in a folder with photographs and a network of one's own."""
    monkeypatch.chdir(tmp_path)
    save_pictures(tmp_path / "photos", 12, side_px=64)
    model = f"reward_model={save_tiny_reward_model(tmp_path / 'parts' / 'rm')}"
    base = f"base={save_tiny_policy(tmp_path / 'parts' / 'base', 'sr')}"
    cache = f"source.cache_folder={tmp_path / 'cache'}"
    network = Compact(num_in_ch=3, num_out_ch=3, num_feat=8, num_conv=1, upscale=4)
    torch.save(network.state_dict(), tmp_path / "my_network.pth")
    return {
        "train-rl": [*TINY, base, model, cache],
        "evaluate": ["images=2", "crop_px=32"],
    }


def run_shell(code: str, tiny: dict[str, list[str]]) -> None:
    for line in code.splitlines():
        program, *words = shlex.split(line, comments=True)
        assert program == "restore-rl"
        given = {word.partition("=")[0] for word in tiny.get(words[0], [])}
        kept = [word for word in words if word.partition("=")[0] not in given]
        cli.main([*kept, *tiny.get(words[0], [])])


def test_every_guide_has_code_and_is_short():
    titles = re.findall(r"^### (.*)$", SECTION, flags=re.MULTILINE)
    assert [title for title in titles if not blocks(title)] == []
    assert all(len(code.splitlines()) <= 15 for title in titles for _, code in blocks(title))


def test_your_own_photographs_and_your_own_restorer(tiny, tmp_path):
    ((_, code),) = blocks("Your own photographs")
    run_shell(code, tiny)
    assert (tmp_path / "runs" / "mine" / "report.html").is_file()
    assert len(list((tmp_path / "restored").glob("*.png"))) == 12
    (_, shell), (_, python) = blocks("Your own restorer")
    for path in (tmp_path / "restored").glob("*.png"):
        path.unlink()
    run_shell(shell, tiny)
    assert (tmp_path / "scored" / "index.html").is_file()
    assert "my_network.pth" in Image.open(tmp_path / "restored" / "000.png").text["restore-rl"]
    assert (tmp_path / "runs" / "mine" / "rl_sr" / "eval").is_dir()
    names: dict[str, torch.Tensor] = {}
    exec(python, names)
    assert names["sr"].shape == (1, 3, 96, 128)


def test_your_own_latent_model(tiny, tmp_path):
    ((_, code),) = blocks("Your own latent model")
    save_pictures(tmp_path / "faces", 12)
    torch.save({"state_dict": random_ldm().state_dict()}, tmp_path / "face_full_v1.ckpt")
    weights = ["reward.networks=embedded", "reward.tools.allow_download=false", "metrics.allow_download=false"]
    sizes = [
        *TINY,
        "group_size=2",
        "microbatch_samples=2",
        "lora.rank=2",
        "likelihood.last_steps=1",
        'mixed_precision="no"',
    ]
    run_shell(
        code,
        {
            "convert": ["head_channels=16"],
            "train-rl": [
                *sizes,
                *weights,
                *(word for word in tiny["train-rl"] if word.startswith(("reward_", "source.ca"))),
            ],
            "restore": ["steps=2"],
        },
    )
    assert len(list((tmp_path / "restored").glob("*.png"))) == 12


def test_your_own_reward(tiny, tmp_path, monkeypatch):
    ((_, code),) = blocks("Your own reward")
    real = train.main
    monkeypatch.setattr(train, "main", lambda words: real([*words, *tiny["train-rl"], "source.images=photos"]))
    exec(code, {})
    assert "same_saturation" in (tmp_path / "runs" / "colours" / "rl_sr" / "evaluation.json").read_text()
