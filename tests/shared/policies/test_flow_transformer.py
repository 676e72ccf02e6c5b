"""Stable Diffusion 3 as a policy, against diffusers' own pipeline on the same weights."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusion3ControlNetPipeline, StableDiffusion3Pipeline

from shared.app.errors import UserError
from shared.diffusion.sampler import pure_noise
from shared.policies.flow_transformer import FlowTransformer
from shared.seeds import derive_seed, gaussian
from tests.helpers import latent_policies
from tests.helpers.latent_policies import SEEDS, STEPS, restored
from tests.helpers.tiny_flow import CELL_PX, MULTIPLE, save_tiny_flow

NOT_THERE = dict.fromkeys(("text_encoder_3", "tokenizer_3", "image_encoder", "feature_extractor"))
SAME = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("flow")
    return {
        "concat": save_tiny_flow(root / "concat", controlnet=False),
        "controlnet": save_tiny_flow(root / "controlnet", controlnet=True),
        "shifted": save_tiny_flow(root / "shifted", controlnet=True, shifted=True, shift=1.0),
    }


@pytest.fixture(scope="module")
def lq() -> torch.Tensor:
    return torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))


opened = partial(latent_policies.opened, FlowTransformer)


def restored_by_diffusers(folder: Path, lq: torch.Tensor, **settings) -> torch.Tensor:
    pipeline = StableDiffusion3ControlNetPipeline.from_pretrained(folder, **NOT_THERE)
    pipeline.set_progress_bar_config(disable=True)
    encode = pipeline.vae.encode

    def mean_of(x: torch.Tensor):
        mean = encode(x).latent_dist.mean
        return SimpleNamespace(latent_dist=SimpleNamespace(sample=lambda: mean))

    pipeline.vae.encode = mean_of
    words = {"prompt": ["", ""], "guidance_scale": 1.0, **settings}
    return pipeline(
        control_image=lq * 2 - 1,
        height=16,
        width=24,
        latents=pure_noise(SEEDS, (4, 4, 6)),
        num_inference_steps=STEPS,
        output_type="pt",
        **words,
    ).images


@pytest.mark.parametrize("layout", ["controlnet", "shifted"])
def test_it_draws_what_the_pipeline_draws(folders, lq, layout):
    ours, theirs = restored(opened(folders[layout]), lq), restored_by_diffusers(folders[layout], lq)
    torch.testing.assert_close(ours.clamp(0, 1), theirs, **SAME)
    assert (theirs - restored_by_diffusers(folders[layout], 1 - lq)).abs().max() > 1e-4


def test_guidance_is_the_pipelines(folders, lq):
    policy = opened(folders["controlnet"], prompt="a", negative_prompt="b", guidance=3.0)
    words = {"prompt": ["a", "a"], "negative_prompt": ["b", "b"], "guidance_scale": 3.0}
    torch.testing.assert_close(
        restored(policy, lq).clamp(0, 1), restored_by_diffusers(folders["controlnet"], lq, **words), **SAME
    )


@pytest.mark.parametrize("eta", [0.0, 1.0])
@torch.no_grad()
def test_lq_beside_x_t_through_diffusers_transformer(folders, lq, eta):
    policy = opened(folders["concat"])
    pipeline = StableDiffusion3Pipeline.from_pretrained(folders["concat"], **NOT_THERE)
    scheduler, vae = pipeline.scheduler, pipeline.vae
    scheduler.set_timesteps(STEPS)
    tokens, _, pooled, _ = pipeline.encode_prompt("", "", "", do_classifier_free_guidance=False)
    hint = (vae.encode(lq * 2 - 1).latent_dist.mean - 0.0609) * 1.5305
    x = pure_noise(SEEDS, (4, 4, 6))
    for j, (t, sigma, after) in enumerate(
        zip(scheduler.timesteps, scheduler.sigmas[:-1], scheduler.sigmas[1:], strict=True)
    ):
        seen = torch.cat([x, hint], dim=1)
        flow = pipeline.transformer(
            seen, tokens.expand(2, -1, -1), pooled.expand(2, -1), t.expand(2), return_dict=False
        )[0]
        if eta == 0.0:
            x = scheduler.step(flow, t, x).prev_sample
            continue
        # α = 1 − σ; the noise that a step adds, η = 1: σ_s·√(1 − (α_t·σ_s / (α_s·σ_t))²)
        std = after * (1 - ((1 - sigma) * after / ((1 - after) * sigma)) ** 2).sqrt()
        z = gaussian([derive_seed(s, "step", j) for s in SEEDS], x.shape[1:])
        x = (1 - after) * (x - sigma * flow) + (after**2 - std**2).sqrt() * (x + (1 - sigma) * flow) + std * z
    theirs = vae.decode(x / 1.5305 + 0.0609).sample / 2 + 0.5
    torch.testing.assert_close(restored(policy, lq, eta), theirs, **SAME)


@pytest.mark.parametrize("layout", ["concat", "controlnet"])
def test_a_picture_does_not_depend_on_its_batch(folders, lq, layout):
    policy = opened(folders[layout])
    assert (policy.multiple, policy.cell_px) == (MULTIPLE, CELL_PX)
    alone = torch.cat([restored(policy, lq[i : i + 1], 1.0, SEEDS[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(restored(policy, lq, 1.0), alone, atol=1e-5, rtol=1e-5)


def test_what_was_tuned_is_the_pipelines_too(folders, lq, tmp_path):
    tuned = opened(folders["controlnet"])
    with torch.no_grad():
        tuned.controlnet.pos_embed_input.proj.weight.mul_(3)
    assert tuned.save_weights(tmp_path / "tuned") == ["controlnet/diffusion_pytorch_model.safetensors"]
    again = FlowTransformer.load(tuned.origin(), tmp_path / "tuned", open_stage=lambda *_: None)
    assert torch.equal(restored(again, lq), restored(tuned, lq))
    shutil.copytree(folders["controlnet"], tmp_path / "whole")
    shutil.copytree(tmp_path / "tuned" / "controlnet", tmp_path / "whole" / "controlnet", dirs_exist_ok=True)
    theirs = restored_by_diffusers(tmp_path / "whole", lq)
    torch.testing.assert_close(restored(tuned, lq).clamp(0, 1), theirs, **SAME)
    assert (theirs - restored_by_diffusers(folders["controlnet"], lq)).abs().max() > 1e-4


def test_a_controlnet_beside_stable_diffusion_3(folders, lq, tmp_path):
    alone = Path(shutil.copytree(folders["controlnet"], tmp_path / "alone"))
    shutil.move(alone / "controlnet", tmp_path / "control" / "controlnet")
    (alone / "model_index.json").write_bytes((folders["concat"] / "model_index.json").read_bytes())
    beside = opened(alone, controlnet=str(tmp_path / "control"))
    assert torch.equal(restored(beside, lq), restored(opened(folders["controlnet"]), lq))
    with pytest.raises(UserError, match="sees 4 channels and has no controlnet; expected 8, x_t and lq's latent, or"):
        opened(alone)


def test_what_does_not_fit_is_one_line(folders, lq):
    policy = opened(folders["concat"])
    with pytest.raises(UserError, match="positions for pictures of 128 px, got 192×8; restore in tiles"):
        policy.condition(torch.zeros(1, 3, 8, 192))
