"""Published upscalers as policies draw what their own diffusers pipelines draw on the same weights."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers.pipelines.latent_diffusion import pipeline_latent_diffusion_superresolution as plain_module

from shared.app.errors import UserError
from shared.diffusion.sampler import pure_noise
from shared.policies.latent_concat import PLAIN, STABLE, LatentConcat
from shared.seeds import derive_seed, gaussian
from tests.helpers import latent_policies
from tests.helpers.latent_policies import SEEDS, STEPS, restored
from tests.helpers.tiny_pipelines import save_latent_diffusion, save_stable_diffusion

SAME = {"atol": 1e-4, "rtol": 1e-4}
LAYOUTS = (STABLE, PLAIN)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("upscalers")
    return {STABLE: save_stable_diffusion(root / "stable"), PLAIN: save_latent_diffusion(root / "plain")}


@pytest.fixture(scope="module")
def lq() -> torch.Tensor:
    return torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))


opened = partial(latent_policies.opened, LatentConcat)


def restored_by_diffusers(folder: Path, lq: torch.Tensor, eta: float, monkeypatch, **settings) -> torch.Tensor:
    """Returns what the pipeline itself makes, every draw of it replaced by the policy's."""
    stable = (folder / "vae").is_dir()
    name = STABLE if stable else PLAIN
    pipeline = getattr(diffusers, name).from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = GivenNoise.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.scheduler.eta = eta
    start = pure_noise(SEEDS, (3, 8, 12))
    if not stable:
        monkeypatch.setattr(plain_module, "randn_tensor", lambda *_, **__: start)
        return pipeline(lq * 2 - 1, num_inference_steps=STEPS, output_type="pt").images
    add_noise = pipeline.low_res_scheduler.add_noise
    pipeline.low_res_scheduler.add_noise = lambda x, _, t: add_noise(x, gaussian([0, 0], x.shape[1:]), t)
    settings = {"guidance_scale": 1.0, "prompt": ["", ""], **settings}
    return pipeline(image=lq, latents=start, num_inference_steps=STEPS, output_type="pt", **settings).images


class GivenNoise(diffusers.DDIMScheduler):
    """Draws the policy's noise, and none in the last step."""

    eta = 0.0

    def step(self, model_output, timestep, sample, **_):
        j = self.timesteps.tolist().index(int(timestep))
        noise = gaussian([derive_seed(s, "step", j) for s in SEEDS], sample.shape[1:])
        eta = self.eta if j < len(self.timesteps) - 1 else 0.0
        result = super().step(model_output, timestep, sample, eta=eta, variance_noise=noise)
        return (result.prev_sample,) if _.get("return_dict") is False else result


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_draws_what_the_pipeline_draws(folders, lq, layout, eta, monkeypatch):
    ours = restored(opened(folders[layout]), lq, eta)
    theirs = restored_by_diffusers(folders[layout], lq, eta, monkeypatch)
    torch.testing.assert_close(ours.clamp(0, 1), theirs, **SAME)
    assert ours.shape == (2, 3, 32, 48)
    assert (ours - restored(opened(folders[layout]), 1 - lq, eta)).abs().max() > 1e-3


def test_guidance_and_noise_level_are_the_pipelines(folders, lq, monkeypatch):
    policy = opened(folders[STABLE], prompt="a", negative_prompt="b", guidance=3.0, noise_level=200)
    words = {"prompt": ["a", "a"], "negative_prompt": ["b", "b"], "guidance_scale": 3.0, "noise_level": 200}
    theirs = restored_by_diffusers(folders[STABLE], lq, 0.0, monkeypatch, **words)
    torch.testing.assert_close(restored(policy, lq, 0.0).clamp(0, 1), theirs, **SAME)
    assert (theirs - restored(opened(folders[STABLE]), lq, 0.0)).abs().max() > 1e-3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_picture_does_not_depend_on_its_batch(folders, lq, layout):
    policy = opened(folders[layout])
    alone = torch.cat([restored(policy, lq[i : i + 1], 1.0, SEEDS[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(restored(policy, lq, 1.0), alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_ends_and_their_gradient(folders, layout):
    policy = opened(folders[layout])
    gt = torch.rand(2, 3, 32, 16)
    x0 = policy.encode(gt, {})
    assert x0.shape == (2, *policy.latent_shape(torch.zeros(2, 3, 8, 4)))
    assert (policy.scale, policy.cell_px, policy.multiple) == (4, 4, 2)
    gradients = []
    for recompute in (False, True):
        x = x0.clone().requires_grad_()
        policy.decode(x, {}, recompute=recompute).square().sum().backward()
        gradients.append(x.grad)
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_was_tuned_is_the_pipelines_too(folders, lq, layout, tmp_path, monkeypatch):
    tuned = opened(folders[layout])
    with torch.no_grad():
        tuned.unet.conv_in.weight.mul_(1.5)
    assert tuned.save_weights(tmp_path / "tuned") == ["unet/diffusion_pytorch_model.safetensors"]
    again = LatentConcat.load(tuned.origin(), tmp_path / "tuned", open_stage=lambda *_: None)
    assert torch.equal(restored(again, lq, 0.0), restored(tuned, lq, 0.0))
    shutil.copytree(folders[layout], tmp_path / "whole")
    shutil.copytree(tmp_path / "tuned" / "unet", tmp_path / "whole" / "unet", dirs_exist_ok=True)
    theirs = restored_by_diffusers(tmp_path / "whole", lq, 0.0, monkeypatch)
    torch.testing.assert_close(restored(tuned, lq, 0.0).clamp(0, 1), theirs, **SAME)


def test_what_is_no_upscaler_is_one_line(folders, tmp_path):
    with pytest.raises(UserError, match="plain reads no text: leave prompt empty and guidance at 1"):
        opened(folders[PLAIN], prompt="sharp")
    other = Path(shutil.copytree(folders[STABLE], tmp_path / "other"))
    (other / "model_index.json").unlink()
    with pytest.raises(UserError, match=r"other has no model_index\.json that says which upscaler"):
        opened(other)
    swapped = Path(shutil.copytree(folders[STABLE], tmp_path / "swapped"))
    shutil.rmtree(swapped / "unet")
    shutil.copytree(folders[PLAIN] / "unet", swapped / "unet")
    with pytest.raises(UserError, match=r"the unet of .*swapped is a UNet2DModel; expected UNet2DConditionModel"):
        opened(swapped)
