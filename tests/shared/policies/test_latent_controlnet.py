"""Stable Diffusion with DiffBIR's ControlNet as a policy, against diffusers' own networks and scheduler on the same weights."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel

from shared.app.errors import UserError
from shared.diffusion.sampler import pure_noise
from shared.policies.latent_controlnet import LatentControlNet
from shared.seeds import derive_seed, gaussian
from tests.helpers import latent_policies
from tests.helpers.hub_server import FakeHub, folder_files, use_hub
from tests.helpers.latent_policies import SEEDS, STEPS, drawn
from tests.helpers.tiny_latent import CELL_PX, MULTIPLE, save_tiny_latent, save_tiny_pre_restorer

SAME = {"atol": 1e-4, "rtol": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny_latent(tmp_path_factory.mktemp("latent") / "model")


opened = partial(latent_policies.opened, LatentControlNet)


@pytest.fixture(scope="module")
def policy(folder) -> LatentControlNet:
    return opened(folder)


@pytest.fixture(scope="module")
def lq() -> torch.Tensor:
    return torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def drawn_by_diffusers(folder: Path, lq: torch.Tensor, eta: float, guidance: float = 1.0) -> torch.Tensor:
    """Returns the latents of diffusers' loop over its own networks, from the same noise."""
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    control = ControlNetModel.from_pretrained(folder / "controlnet")
    vae = AutoencoderKL.from_pretrained(folder / "vae")
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
    ids = [encoder.config.bos_token_id, encoder.config.eos_token_id, 0, 0, 0, 0, 0]
    text = encoder(torch.tensor([ids])).last_hidden_state.expand(2, -1, -1)
    hint = vae.encode(lq * 2 - 1).latent_dist.mean * vae.config.scaling_factor
    scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
    scheduler.set_timesteps(STEPS)
    x = pure_noise(SEEDS, (4, 4, 6))
    for j, t in enumerate(scheduler.timesteps):
        seen, nothing = torch.cat([x, hint], dim=1), torch.zeros(2, 3, 4, 6)
        down, middle = control(seen, t, text, controlnet_cond=nothing, return_dict=False)
        added = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        output = unet(x, t, text, **added).sample
        last = j == STEPS - 1  # nothing could take its noise out again: it draws none here
        z = gaussian([derive_seed(s, "step", j) for s in SEEDS], x.shape[1:])
        x = scheduler.step(output, t, x, eta=0.0 if last else eta, variance_noise=z).prev_sample
    return x


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(("prediction", "zero_snr"), [("epsilon", False), ("v_prediction", True)])
def test_it_draws_what_diffusers_draws(tmp_path, lq, eta, prediction, zero_snr):
    folder = save_tiny_latent(tmp_path, prediction=prediction, zero_snr=zero_snr)
    ours, theirs = drawn(opened(folder), lq, eta), drawn_by_diffusers(folder, lq, eta)
    torch.testing.assert_close(ours, theirs, **SAME)
    assert (ours - drawn_by_diffusers(folder, 1 - lq, eta)).abs().max() > 1e-3  # the hint's part in it


def test_a_picture_does_not_depend_on_its_batch(policy, lq):
    together = drawn(policy, lq, 1.0)
    alone = torch.cat([drawn(policy, lq[i : i + 1], 1.0, SEEDS[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_ends_are_the_autoencoders(folder, policy, lq):
    vae = AutoencoderKL.from_pretrained(folder / "vae")
    condition = policy.condition(lq)
    x0 = policy.encode(lq, condition)
    torch.testing.assert_close(x0, vae.encode(lq * 2 - 1).latent_dist.mean * 0.18215, **SAME)
    torch.testing.assert_close(condition["hint"], x0)  # the first stage of a face is lq itself
    sr = policy.decode(x0, condition)
    torch.testing.assert_close(sr, vae.decode(x0 / 0.18215).sample / 2 + 0.5, **SAME)
    assert sr.shape == lq.shape
    assert policy.latent_shape(lq) == tuple(x0.shape[1:])
    assert (policy.multiple, policy.cell_px, policy.scale) == (MULTIPLE, CELL_PX, 1)


def test_recomputing_and_slicing_change_no_gradient(policy, folder, lq):
    sliced = opened(folder, pictures_at_once=1)
    gradients = []
    for each, recompute in ((policy, False), (policy, True), (sliced, False)):
        x0 = torch.randn(2, 4, 4, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
        each.decode(x0, {}, recompute=recompute).square().sum().backward()
        gradients.append(x0.grad)
    assert gradients[0].abs().max() > 0.01
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_tiny_autoencoder_has_its_own_scale(tmp_path, lq):
    folder = save_tiny_latent(tmp_path, tiny_vae=True)
    policy, vae = opened(folder), AutoencoderTiny.from_pretrained(folder / "vae")
    x0 = policy.encode(lq, {})
    torch.testing.assert_close(x0, vae.encode(lq * 2 - 1).latents, **SAME)
    torch.testing.assert_close(policy.decode(x0, {}), vae.decode(x0).sample / 2 + 0.5, **SAME)
    assert policy.cell_px == CELL_PX


def test_frozen_parts_take_half_the_bytes_beside_one_that_is_trained(folder, policy, lq):
    half = opened(folder, frozen_dtype="bfloat16")
    half.controlnet.requires_grad_(True)
    half.cast_frozen(torch.device("cpu"))
    kinds = {name: {p.dtype for p in part.parameters()} for name, part in half.parts().items()}
    assert kinds == {"unet": {torch.bfloat16}, "controlnet": {torch.float32}, "vae": {torch.float32}}
    condition, x, t = half.condition(lq), torch.randn(2, 4, 4, 6), torch.tensor([5, 900])
    output = half(x, t, condition)
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, policy(x, t, condition), atol=0.05, rtol=0.05)
    output.square().mean().backward()
    assert half.controlnet.conv_in.weight.grad.abs().max() > 0
    assert half.save_weights(folder.parent / "half") == []  # what was cast is not taken for tuned


def test_what_an_earlier_run_trained_is_not_rounded_away(folder, tmp_path):
    earlier = opened(folder)
    with torch.no_grad():
        earlier.unet.conv_in.weight[0, 0, 0, 0] += 1e-4
    earlier.save_weights(tmp_path)
    again = opened(folder, tmp_path, frozen_dtype="bfloat16")
    again.requires_grad_(False)
    again.cast_frozen(torch.device("cpu"))
    kinds = {name: {p.dtype for p in part.parameters()} for name, part in again.parts().items()}
    assert kinds == {"unet": {torch.float32}, "controlnet": {torch.bfloat16}, "vae": {torch.float32}}
    assert torch.equal(again.unet.conv_in.weight, earlier.unet.conv_in.weight)


def test_an_empty_prompt_without_a_tokenizer_needs_clips_own_tokens(tmp_path):
    folder = save_tiny_latent(tmp_path)
    described = folder / "text_encoder" / "config.json"
    fields = json.loads(described.read_text(encoding="utf-8"))
    described.write_text(json.dumps({**fields, "eos_token_id": 2}), encoding="utf-8")  # as published configs have it
    with pytest.raises(UserError, match="does not name CLIP's tokens"):
        opened(folder)


def test_guidance_leads_away_from_the_negative_prompt(tmp_path, lq):
    folder = save_tiny_latent(tmp_path, tokenizer=True)
    plain, negative = opened(folder, prompt="sharp"), opened(folder, prompt="blurred")
    guided = opened(folder, prompt="sharp", negative_prompt="blurred", guidance=3.0)
    condition, x, t = plain.condition(lq), torch.randn(2, 4, 4, 6), torch.tensor([5, 900])
    with torch.no_grad():
        towards, away = plain(x, t, condition), negative(x, t, condition)
        torch.testing.assert_close(guided(x, t, condition), away + 3 * (towards - away), **SAME)
        assert (towards - away).abs().max() > 1e-3
        kept = guided.frozen(x, t, condition)
        torch.testing.assert_close(guided(x, t, {**condition, **kept}), guided(x, t, condition))


def test_a_first_stage_enlarges_or_sees_the_enlarged(folder, tmp_path, lq):
    for own_scale in (1, 4):
        file = save_tiny_pre_restorer(tmp_path / f"{own_scale}.safetensors", scale=own_scale)
        policy = opened(folder, scale=4, pre_restorer=str(file))
        start = policy.condition(lq)["start"]
        assert start.shape == (2, 3, 64, 96)
        bicubic = opened(folder, scale=4).condition(lq)["start"]
        assert 1e-4 < (start - bicubic).abs().mean() < 0.2
    assert policy.multiple == MULTIPLE // 4
    file = save_tiny_pre_restorer(tmp_path / "2.safetensors", scale=2)
    with pytest.raises(UserError, match="enlarges 2 times, but the policy 4 times: name one for ×4"):
        opened(folder, scale=4, pre_restorer=str(file))


def test_the_first_stage_of_the_models_own_folder(tmp_path, lq):
    folder = save_tiny_latent(tmp_path)
    with pytest.raises(UserError, match=r"holds no pre_restorer\.safetensors; name a pre_restorer, or none"):
        opened(folder, pre_restorer="own")
    save_tiny_pre_restorer(folder / "pre_restorer.safetensors")
    assert not torch.equal(opened(folder).condition(lq)["start"], lq)
    assert torch.equal(opened(folder, pre_restorer="none").condition(lq)["start"], lq)


def test_what_was_tuned_is_saved_as_diffusers_reads_it(folder, tmp_path, lq):
    tuned = opened(folder)
    assert tuned.save_weights(tmp_path) == []
    with torch.no_grad():
        tuned.controlnet.conv_in.weight.mul_(1.5)
    assert tuned.save_weights(tmp_path) == ["controlnet/diffusion_pytorch_model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["controlnet"]
    origin = tuned.origin()
    again = opened(origin.repository, tmp_path, **origin.architecture)
    assert torch.equal(drawn(again, lq, 0.0), drawn(tuned, lq, 0.0))
    shutil.copytree(folder, tmp_path / "whole")
    shutil.copytree(tmp_path / "controlnet", tmp_path / "whole" / "controlnet", dirs_exist_ok=True)
    theirs = drawn_by_diffusers(tmp_path / "whole", lq, 0.0)
    torch.testing.assert_close(drawn(tuned, lq, 0.0), theirs, **SAME)
    assert (theirs - drawn_by_diffusers(folder, lq, 0.0)).abs().max() > 1e-3


def test_stable_diffusion_on_the_hub_beside_a_controlnet_on_disk(folder, tmp_path, monkeypatch, lq):
    whole = save_tiny_latent(tmp_path / "sd", tokenizer=True, pipeline="StableDiffusionPipeline")
    shutil.move(whole / "controlnet", tmp_path / "control" / "controlnet")
    (whole / "safety_checker").mkdir()
    (whole / "safety_checker" / "model.safetensors").write_bytes(b"large")
    with FakeHub() as hub:
        commit = hub.add("me/sd", folder_files(whole), revision="v2")
        use_hub(hub, monkeypatch, cache=tmp_path / "cache")
        policy = opened("hf:me/sd@v2", controlnet=str(tmp_path / "control"))
        assert torch.equal(drawn(policy, lq, 0.0), drawn(opened(folder), lq, 0.0))
        assert (policy.origin().repository, policy.origin().revision) == ("hf:me/sd", commit)
        assert not any("safety_checker/model" in request for request in hub.requests)
        with pytest.raises(UserError, match="no such revision"):
            opened("hf:me/sd@v3", controlnet=str(tmp_path / "control"))


def test_what_is_no_such_model_is_one_line(folder, tmp_path):
    def refused(said: str, where: Path | str, **settings) -> None:
        with pytest.raises(UserError, match=said) as refusal:
            opened(where, **settings)
        assert "\n" not in str(refusal.value)

    def copied(name: str) -> Path:
        return Path(shutil.copytree(folder, tmp_path / name))

    refused("nowhere is no folder; expected a diffusers folder, or hf:owner/name@revision", "nowhere")
    refused("expected hf:owner/name or hf:owner/name@revision, got hf:sd", "hf:sd")
    other = copied("flux")
    (other / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    refused("flux is a FluxPipeline; expected a StableDiffusionPipeline or a StableDiff", other)
    shutil.rmtree(copied("no_vae") / "vae")
    refused("no_vae has no vae; its parts are controlnet, scheduler, text_encoder, unet", tmp_path / "no_vae")
    pickled = copied("pickled") / "unet"
    (pickled / "diffusion_pytorch_model.safetensors").rename(pickled / "diffusion_pytorch_model.bin")
    refused("the unet of .*pickled does not load .*expected safetensors", tmp_path / "pickled")
    cut = copied("cut") / "vae" / "diffusion_pytorch_model.safetensors"
    cut.write_bytes(cut.read_bytes()[:1000])
    refused("the vae of .*cut does not load", tmp_path / "cut")
    refused("has no tokenizer, so that it reads no prompt", folder, prompt="sharp")

    picture_hint = copied("picture")
    shutil.rmtree(picture_hint / "controlnet")
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    ControlNetModel.from_unet(unet).save_pretrained(picture_hint / "controlnet")
    refused("the controlnet of .*picture sees 4 channels; expected 8, x_t and the latent", picture_hint)
