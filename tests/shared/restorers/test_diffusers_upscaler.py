"""Diffusion upscalers from diffusers, tiny and real: from a folder and over HTTP, any size, each picture its seed's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from data.pool.restorer_pool import RestorerEntry, RestorerPool
from shared.app.errors import UserError
from shared.policies.load import load_restorer
from shared.restorers.protocol import RestorerSettings
from tests.helpers.hub_server import FakeHub, folder_files, point_client_at, use_hub
from tests.helpers.tiny_pipelines import save_latent_diffusion, save_stable_diffusion

SAVED = {"latent": save_latent_diffusion, "stable": save_stable_diffusion}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {kind: save(tmp_path_factory.mktemp(kind)) for kind, save in SAVED.items()}


@pytest.fixture
def hub(tmp_path, monkeypatch, folders):
    with FakeHub() as server:
        use_hub(server, monkeypatch, cache=tmp_path / "cache")
        for kind, folder in folders.items():
            copies = {"unet/diffusion_pytorch_model.fp16.safetensors": b"a copy", "whole.safetensors": b"another"}
            server.add(f"user/{kind}", folder_files(folder) | copies | {"unet/diffusion_pytorch_model.bin": b"pickle"})
        yield server


@pytest.mark.parametrize("kind", SAVED)
def test_any_size_and_every_picture_its_own_seed(folders, kind):
    restorer = load_restorer(str(folders[kind]), RestorerSettings(steps=2, eta=1.0))
    assert restorer.scale == 4
    lq = torch.rand(2, 3, 9, 14, generator=torch.Generator().manual_seed(0))
    state = torch.random.get_rng_state()
    sr = restorer.restore(lq, sample_seeds=[5, 6])
    assert torch.equal(torch.random.get_rng_state(), state)  # nothing was drawn from the global generator
    assert sr.shape == (2, 3, 36, 56)
    assert sr.dtype == torch.float32
    assert 0 <= sr.min() < sr.max() <= 1
    assert torch.equal(restorer.restore(lq[1:], sample_seeds=[6])[0], sr[1])
    assert not torch.equal(restorer.restore(lq[1:], sample_seeds=[7])[0], sr[1])


@pytest.mark.parametrize("kind", SAVED)
def test_it_is_the_pipeline_itself(folders, kind):
    # A side that needs no padding, called as a person would call the pipeline.
    restorer = load_restorer(str(folders[kind]), RestorerSettings(steps=3))
    lq, generator = torch.rand(1, 3, 8, 16), torch.Generator().manual_seed(3)
    if kind == "stable":
        expected = restorer.pipeline("", lq, 3, 1.0, generator=generator, output_type="pt").images
    else:
        expected = restorer.pipeline(lq * 2 - 1, 1, 3, generator=generator, output_type="pt").images
    assert torch.equal(restorer.restore(lq, sample_seeds=[3]), expected.clamp(0, 1))


def test_steps_eta_prompt_and_guidance_change_the_picture(folders):
    lq = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    pictures = [
        load_restorer(str(folders["stable"]), RestorerSettings(**{"steps": 2, **changes})).restore(lq, sample_seeds=[1])
        for changes in ({}, {"steps": 3}, {"eta": 1.0}, {"prompt": "sharp"}, {"prompt": "sharp", "guidance": 8.0})
    ]
    for number, picture in enumerate(pictures):
        assert not any(torch.equal(picture, other) for other in pictures[:number])


@pytest.mark.parametrize("kind", SAVED)
def test_a_hub_id_is_a_member_of_the_pool(hub, folders, kind, monkeypatch):
    entry = RestorerEntry(path=f"hf:user/{kind}", task="sr", steps=2, revision="main")
    pool = RestorerPool({"upscaler": entry})
    files = {file.name: file.path for file in pool.files()}
    decoder = "vae" if kind == "stable" else "vqvae"
    assert {f"upscaler.sr.{part}/diffusion_pytorch_model.safetensors" for part in ("unet", decoder)} <= files.keys()
    fetched = "\n".join(line for line in hub.requests if line.startswith("GET") and "resolve" in line)
    assert "fp16" not in fetched
    assert "whole" not in fetched
    assert ".bin" not in fetched  # weights that could run code are never asked for
    lq = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    sr = pool.restore("upscaler", "sr", lq, sample_seeds=[4])
    assert torch.equal(sr, load_restorer(str(folders[kind]), RestorerSettings(steps=2)).restore(lq, sample_seeds=[4]))
    point_client_at("http://127.0.0.1:9", monkeypatch)  # from now on no server listens: the cache does
    assert torch.equal(RestorerPool({"upscaler": entry}).restore("upscaler", "sr", lq, sample_seeds=[4]), sr)


def test_weights_kept_in_half_precision_alone(hub, folders):
    # As the published latent-diffusion upscaler does: its full-precision weights are a pickle.
    files = folder_files(folders["latent"])
    half = {name.replace(".safetensors", ".fp16.safetensors"): content for name, content in files.items()}
    hub.add("user/half", half)
    with pytest.raises(UserError, match=r"hf:user/half does not load .*with variant=fp16"):
        load_restorer("hf:user/half")
    lq = torch.rand(1, 3, 8, 8)
    sr = load_restorer("hf:user/half", RestorerSettings(variant="fp16", steps=1)).restore(lq, sample_seeds=[0])
    assert torch.equal(
        sr, load_restorer(str(folders["latent"]), RestorerSettings(steps=1)).restore(lq, sample_seeds=[0])
    )


def test_a_hub_id_that_cannot_serve_is_one_line(hub, folders, monkeypatch):
    index = json.loads((folders["stable"] / "model_index.json").read_text())
    hub.add("user/painter", {"model_index.json": json.dumps(index | {"_class_name": "FluxPipeline"}).encode()})
    hub.add("user/network", {"config.json": b"{}"})
    hub.add("user/cut", folder_files(folders["latent"]))
    hub.truncated.add("vqvae/diffusion_pytorch_model.safetensors")
    for asked, said in {
        "hf:user/nothing": "user/nothing@main: no such repository",
        "hf:user/painter": "hf:user/painter is a FluxPipeline, no upscaler; expected a StableDiffusionUpscalePipeline",
        "hf:user/network": "hf:user/network holds no diffusers pipeline: its model_index.json is missing",
        "hf:user/cut": "user/cut@main: .* run the same command again",
    }.items():
        pool = RestorerPool({"upscaler": RestorerEntry(path=asked, task="sr")})
        with pytest.raises(UserError, match=f"^restorers.upscaler: {said}") as caught:
            pool.files()
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"restorers\.upscaler: user/latent@v9: the repository has no such revision"):
        RestorerPool({"upscaler": RestorerEntry(path="hf:user/latent", revision="v9")}).files()
    point_client_at("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(UserError, match=r"restorers.upscaler: user/stable@main: the Hub cannot be reached"):
        RestorerPool({"upscaler": RestorerEntry(path="hf:user/stable")}).files()


def test_a_damaged_folder_is_one_line(folders, tmp_path):
    broken = shutil.copytree(folders["latent"], tmp_path / "broken")
    (broken / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"broken does not load .*expected safetensors weights") as caught:
        load_restorer(str(broken))
    assert "\n" not in str(caught.value)
    (broken / "model_index.json").write_text("{cut")
    with pytest.raises(UserError, match="holds no diffusers pipeline"):
        load_restorer(str(broken))


def test_what_does_not_go_together_is_refused(folders):
    with pytest.raises(ValueError, match="revision=v1 belongs to a restorer hf:owner/name"):
        RestorerEntry(path="bicubic", revision="v1")
    with pytest.raises(UserError, match="LDMSuperResolutionPipeline takes no prompt, got 'sharp'"):
        load_restorer(str(folders["latent"]), RestorerSettings(prompt="sharp"))


def test_values_that_are_not_finite_stop_the_build(folders):
    restorer = load_restorer(str(folders["latent"]), RestorerSettings(steps=1))
    torch.nn.init.constant_(restorer.pipeline.vqvae.decoder.conv_out.bias, float("nan"))
    with pytest.raises(UserError, match="values that are not finite"):
        restorer.restore(torch.rand(1, 3, 8, 8), sample_seeds=[0])
