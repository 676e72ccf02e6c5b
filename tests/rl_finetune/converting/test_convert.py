"""A restorer in latent diffusion's layout, written on its own, and its converted folder give the same outputs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from rl_finetune import convert
from shared.app.errors import UserError
from shared.policies.load import load_policy, load_restorer
from shared.policies.policy_folder import save_policy
from tests.helpers.ldm_layout import LdmModel, random_ldm

WORDS = ("head_channels=16",)


@pytest.fixture(scope="module")
def ldm() -> LdmModel:
    return random_ldm()


@pytest.fixture(scope="module")
def whole(ldm, tmp_path_factory) -> Path:
    """Returns a checkpoint as DiffBIR v1's and as a trainer saves it: all parts, a pre-restorer, and what belongs to none."""
    path = tmp_path_factory.mktemp("whole") / "face_full_v1.ckpt"
    others = {"preprocess_model.conv_first.1.weight": torch.ones(4, 3, 3, 3), "model_ema.decay": torch.ones([])}
    others["first_stage_model.loss.logvar"] = torch.ones([])
    torch.save({"state_dict": ldm.state_dict() | others, "epoch": 3}, path)
    return path


@pytest.fixture(scope="module")
def converted(whole, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out") / "converted"
    convert.main([f"control={whole}", f"out={out}", *WORDS])
    return out


@torch.no_grad()
def test_the_converted_restorer_predicts_the_same(ldm, converted):
    unet = UNet2DConditionModel.from_pretrained(converted, subfolder="unet")
    control = ControlNetModel.from_pretrained(converted, subfolder="controlnet")
    torch.manual_seed(1)
    x, hint, text = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.randn(2, 7, 32)
    t = torch.tensor([3, 700])
    expected = ldm.model.diffusion_model(x, t, text, ldm.control_model(x, hint, t, text))
    nothing = torch.zeros(2, 3, 8, 8)
    down, mid = control(torch.cat([x, hint], dim=1), t, text, controlnet_cond=nothing, return_dict=False)
    added = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
    torch.testing.assert_close(unet(x, t, text, **added).sample, expected, atol=1e-4, rtol=0)
    assert (unet(x, t, text).sample - expected).abs().max() > 0.1  # the ControlNet's part in it


@torch.no_grad()
def test_the_converted_ends_are_the_same(ldm, converted):
    vae = AutoencoderKL.from_pretrained(converted, subfolder="vae")
    text = CLIPTextModel.from_pretrained(converted, subfolder="text_encoder")
    torch.manual_seed(2)
    images, latent, tokens = torch.rand(1, 3, 16, 16) * 2 - 1, torch.randn(1, 4, 8, 8), torch.randint(0, 99, (2, 7))
    same = {"atol": 1e-4, "rtol": 0}
    torch.testing.assert_close(vae.encode(images).latent_dist.mean, ldm.first_stage_model.encode(images), **same)
    torch.testing.assert_close(vae.decode(latent).sample, ldm.first_stage_model.decode(latent), **same)
    torch.testing.assert_close(text(tokens).last_hidden_state, ldm.cond_stage_model.model(tokens), **same)
    assert vae.config.scaling_factor == 0.18215


def test_what_the_folder_holds(converted, whole):
    parts = {path.name for path in converted.iterdir()}
    assert parts == {
        "unet", "vae", "text_encoder", "controlnet", "scheduler", "pre_restorer.safetensors", "converted.json",
        "config.json",
    }  # fmt: skip
    assert list(json.loads((converted / "converted.json").read_text())["sha256"]) == ["face_full_v1.ckpt"]
    assert list(load_file(converted / "pre_restorer.safetensors")) == ["conv_first.1.weight"]
    scheduler = DDIMScheduler.from_pretrained(converted, subfolder="scheduler")
    # DiffBIR's: sqrt(β) rises along a line from sqrt(0.00085) to sqrt(0.012).
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    torch.testing.assert_close(scheduler.alphas_cumprod, (1 - betas).cumprod(0))
    assert scheduler.config.prediction_type == "epsilon"


def test_a_controlnet_beside_stable_diffusion_as_v2_has_it(ldm, converted, tmp_path, capsys):
    torch.save(ldm.control_model.state_dict(), tmp_path / "v2.pth")  # no prefix
    others = {name: t for name, t in ldm.state_dict().items() if not name.startswith("control_model.")}
    save_file(others, tmp_path / "sd.safetensors")
    words = [f"control={tmp_path}/v2.pth", f"sd={tmp_path}/sd.safetensors", f"out={tmp_path}/v2", *WORDS]
    convert.main([*words, "prediction=v_prediction", "zero_snr=true"])
    assert "v2: unet, vae, text_encoder, controlnet, scheduler" in capsys.readouterr().out
    for part in ("unet", "controlnet"):
        name = f"{part}/diffusion_pytorch_model.safetensors"
        here, there = (load_file(folder / name) for folder in (converted, tmp_path / "v2"))
        assert all(torch.equal(here[key], there[key]) for key in here | there)
    scheduler = DDIMScheduler.from_pretrained(tmp_path / "v2", subfolder="scheduler")
    assert scheduler.config.prediction_type == "v_prediction"
    assert float(scheduler.alphas_cumprod[-1]) < 1e-6


def test_a_controlnet_alone_in_half_the_bytes(ldm, converted, tmp_path):
    torch.save({"state_dict": {f"module.{n}": t for n, t in ldm.control_model.state_dict().items()}}, tmp_path / "a.pt")
    for _ in range(2):  # what this command made is replaced
        convert.main([f"control={tmp_path}/a.pt", f"out={tmp_path}/out", "half=true", *WORDS])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"controlnet", "converted.json"}
    name = "controlnet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "out" / name).stat().st_size < 0.6 * (converted / name).stat().st_size


def test_the_folder_is_a_policy(ldm, converted, whole, tmp_path, monkeypatch):
    """Of a checkpoint that holds all, and of a ControlNet beside Stable Diffusion where that is already a folder."""
    lq = torch.rand(2, 3, 16, 8, generator=torch.Generator().manual_seed(0))
    monkeypatch.chdir(tmp_path)
    torch.save(ldm.control_model.state_dict(), "v2.pth")
    shutil.copytree(converted, "sd")
    shutil.rmtree("sd/controlnet")
    Path("sd/pre_restorer.safetensors").unlink()
    settings = ["pre_restorer=none", "steps=3", "eta=0", *WORDS]
    convert.main([f"control={whole}", "out=all", *settings])
    convert.main(["control=v2.pth", "sd=sd", "out=beside", *settings])
    assert {path.name for path in Path("beside").iterdir()} == {"controlnet", "converted.json", "config.json"}
    pictures = [load_restorer(where).restore(lq, sample_seeds=[1, 2]) for where in ("all", "beside")]
    assert torch.equal(*pictures)
    assert pictures[0].shape == lq.shape
    policy, spec = load_policy("beside")
    assert (policy.kind, spec.steps, spec.eta) == ("latent_controlnet", 3, 0.0)
    save_policy(Path("again"), policy, spec, provenance={})  # as a run saves what it tuned
    assert [path.name for path in Path("again").iterdir()] == ["config.json"]
    assert torch.equal(load_restorer("again").restore(lq, sample_seeds=[1, 2]), pictures[0])


class Code:
    def __reduce__(self):
        return os.system, ("touch ran",)


def refused(said: str, *words: str) -> None:
    with pytest.raises(UserError, match=said) as refusal:
        convert.main(list(words))
    assert "\n" not in str(refusal.value)


def test_a_file_with_code_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"a": torch.ones(1)}, "callbacks": Code()}, "evil.ckpt")
    refused("evil.ckpt holds more than weights, and reading it could run code", "control=evil.ckpt")
    assert not Path("ran").exists()


def test_what_cannot_be_converted_is_one_line(tmp_path, ldm, whole, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused("nowhere.pth is missing", "control=nowhere.pth")
    Path("cut.pth").write_bytes(whole.read_bytes()[:5000])
    refused("cut.pth is no PyTorch file, or it was cut", "control=cut.pth")
    torch.save([1, 2], "list.pth")
    refused("list.pth holds no weights by name", "control=list.pth")
    torch.save({"conv.weight": torch.ones(1)}, "other.pth")
    refused("neither Stable Diffusion nor a ControlNet .* begin with conv.weight", "control=other.pth")
    unet = {name: t for name, t in ldm.state_dict().items() if name.startswith("model.")}
    torch.save(unet, "unet.pth")
    refused("unet.pth holds unet and no ControlNet", "control=unet.pth")
    control = ldm.control_model.state_dict()
    torch.save({name: t for name, t in control.items() if "attn2.to_v" not in name}, "less.pth")
    refused(r"the controlnet is not Stable Diffusion's .* 2 of \d+ tensors differ", "control=less.pth", *WORDS)
    refused("head_channels=48 does not divide", f"control={whole}", "head_channels=48")
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("mine")
    refused("mine is there and was not made by this command", f"control={whole}", "out=mine")
    assert not list(tmp_path.glob("*.part"))
