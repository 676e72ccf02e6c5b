"""LRPO on the layout of DiffBIR's face restorer, from the shipped config with only its sizes and places changed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file

from rl_finetune import evaluate
from rl_finetune import train as rl
from rl_finetune.convert import ConvertConfig, policy_config
from rl_finetune.loop.config import TrainRlConfig
from rl_finetune.loop.iteration import iterate
from shared.app.config import load_config, to_yaml
from shared.app.errors import UserError
from shared.lora import LORA_FILE
from shared.policies.interface import DiffusionPolicy
from shared.policies.load import load_policy
from shared.policies.policy_folder import copy_saved_policy, read_provenance
from tests.helpers.tiny import save_pictures, save_tiny_reward_model
from tests.helpers.tiny_latent import LATENT_CHANNELS, TEXT_CHANNELS, WORDS, save_tiny_latent
from tests.helpers.tiny_rl import killed_and_resumed, open_session
from tests.helpers.torchrun import launch

SIZES = {
    "pairs.crop_px": 32,
    "pairs.pairs": 16,
    "sampler.steps": 4,
    "lora.rank": 2,
    "groups": 2,
    "group_size": 3,
    "microbatch_samples": 2,
    "iterations": 3,
    "eval_images": 2,
    "eval_crop_px": 32,
    "curve_images": 0,
    "check_every": 0,
    "checkpoint_every": 2,
    "source.val_fraction": 0.2,
    "source.test_fraction": 0.4,
    "cpu_threads": 1,
    "likelihood.last_steps": 2,
    # Three iterations are to show.
    "learning_rate": 1e-2,
    "warmup_iterations": 0,
    # Weights that are not here.
    "reward.networks": "embedded",
    "reward.tools.allow_download": "false",
    "metrics.allow_download": "false",
    "mixed_precision": '"no"',
}


@pytest.fixture(scope="module")
def shipped(tmp_path_factory) -> TrainRlConfig:
    folder = tmp_path_factory.mktemp("latent")
    base = save_tiny_latent(folder / "converted")
    converted = policy_config(ConvertConfig(control="tiny.ckpt", steps=4), {})
    (base / "config.json").write_text(json.dumps(converted))
    places = {
        "base": base,
        "reward_model": save_tiny_reward_model(folder / "rm"),
        "source.faces": save_pictures(folder / "faces", 12),
        "source.cache_folder": folder / "cache",
    }
    words = [f"{name}={value}" for name, value in {**SIZES, **places}.items()]
    return load_config(TrainRlConfig, ["configs/gpu/train_rl_face_diffbir.yaml", *words])


@pytest.fixture(scope="module")
def tuned(shipped, tmp_path_factory) -> Path:
    """Returns the folder of a run; a second one, killed in the third iteration and resumed, wrote the same bytes."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        whole, _, calls = killed_and_resumed(shipped, folder, patch, dies_at=2)
    assert calls == [0, 1, 2, 2]
    rl.compare_with_base(whole)
    return folder / "whole"


def draws(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns latents, times and pictures."""
    generator = torch.Generator().manual_seed(seed)
    x_t = torch.randn(2, LATENT_CHANNELS, 8, 8, generator=generator)
    return x_t, torch.tensor([20, 700]), torch.rand(2, 3, 32, 32, generator=generator)


@torch.no_grad()
def output(policy: DiffusionPolicy) -> torch.Tensor:
    x_t, times, lq = draws()
    return policy.predict(x_t, times, policy.condition(lq))


def test_only_adapters_are_trained_and_saved_and_they_are_loaded_again(shipped, tuned):
    assert sorted(path.name for path in tuned.glob("*.safetensors")) == [LORA_FILE]
    assert not list(tuned.glob("*/diffusion_pytorch_model.safetensors"))
    names = set(load_file(tuned / LORA_FILE))
    assert {name.split(".")[0] for name in names} == {"unet", "controlnet"}
    assert not any(name.startswith(("unet.down", "unet.mid", "unet.conv")) for name in names)
    said = json.loads((tuned / "config.json").read_text())
    assert (said["base"]["repository"], said["kind"]) == (shipped.base, "latent_controlnet")
    policy, spec = load_policy(tuned)
    assert spec == shipped.sampler
    assert (output(policy) - output(load_policy(shipped.base)[0])).abs().max() > 1e-4


@torch.no_grad()
def test_the_adapters_run_in_plain_diffusers(shipped, tuned):
    base = Path(shipped.base)
    unet, controlnet = (kind.from_pretrained(base / part) for kind, part in PARTS)
    policy, _ = load_policy(tuned)
    before = plain_output(unet, controlnet, policy)
    text = torch.randn(1, WORDS, TEXT_CHANNELS, generator=torch.Generator().manual_seed(1))
    pipeline = StableDiffusionPipeline(
        vae=policy.vae,
        text_encoder=None,
        tokenizer=None,
        unet=unet,
        scheduler=DDIMScheduler.from_pretrained(base / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    settings = {"prompt_embeds": text, "guidance_scale": 1.0, "num_inference_steps": 3, "output_type": "pt"}
    pictures = [pipeline(latents=draws()[0][:1], **settings).images]
    pipeline.load_lora_weights(tuned)
    pictures.append(pipeline(latents=draws()[0][:1], **settings).images)
    assert (pictures[1] - pictures[0]).abs().max() > 1e-4
    controlnet.load_lora_adapter(tuned, prefix="controlnet", weight_name=LORA_FILE)
    after = plain_output(unet, controlnet, policy)
    torch.testing.assert_close(after, output(policy), atol=1e-5, rtol=1e-5)
    assert (after - before).abs().max() > 1e-4


PARTS = ((UNet2DConditionModel, "unet"), (ControlNetModel, "controlnet"))


def plain_output(unet, controlnet, policy: DiffusionPolicy) -> torch.Tensor:
    """Returns what diffusers' own classes make of DiffBIR's hint."""
    x_t, times, lq = draws()
    text = policy.texts[0].expand(2, -1, -1)
    seen = torch.cat([x_t, policy.condition(lq)["hint"]], dim=1)
    added, middle = controlnet(seen, times, text, controlnet_cond=torch.zeros(2, 3, 8, 8), return_dict=False)
    residuals = {"down_block_additional_residuals": added, "mid_block_additional_residual": middle}
    return unet(x_t, times, text, **residuals).sample


def test_it_can_be_evaluated_again_and_tuned_further(shipped, tuned, tmp_path, capsys):
    evaluate.main([f"run={tuned}", "images=2", f"out={tmp_path / 'eval'}"])
    assert "2 held-out pictures, 4 steps, SDE η 1" in capsys.readouterr().out
    further = dataclasses.replace(shipped, base=str(tuned), iterations=1)
    session = open_session(further, tmp_path / "further")
    before = output(load_policy(tuned)[0])
    torch.testing.assert_close(output(session.learner.policy), before, atol=1e-5, rtol=1e-5)
    rl.train(session)
    # A part that was tuned before is no longer its repository's: it is saved whole, with what is new.
    again, _ = load_policy(tmp_path / "further")
    with session.average.put_in():
        torch.testing.assert_close(output(again), output(session.learner.policy), atol=1e-5, rtol=1e-5)


def test_a_part_is_trained_and_saved_alone(shipped, tmp_path):
    config = dataclasses.replace(shipped, trainable="controlnet", iterations=1, learning_rate=1e-3)
    session = open_session(config, tmp_path)
    rl.train(session)
    (saved,) = tmp_path.glob("*/diffusion_pytorch_model.safetensors")
    assert saved.parent.name == "controlnet"
    assert not (tmp_path / LORA_FILE).exists()
    found = ControlNetModel.from_pretrained(saved.parent).state_dict()
    values = {name.removeprefix("controlnet."): value for name, value in session.average.values.items()}
    assert all(torch.equal(found[name], value) for name, value in values.items())
    copy_saved_policy(tmp_path, tmp_path / "copy", provenance={"note": "a"})
    assert torch.equal(output(load_policy(tmp_path / "copy")[0]), output(load_policy(tmp_path)[0]))
    assert read_provenance(tmp_path / "copy") == {**read_provenance(tmp_path), "note": "a"}
    # DiffBIR's ControlNet has no hint in pixels: what embeds one here stays without effect.
    embedding = {name for name in found if name.startswith("controlnet_cond_embedding.")}
    assert embedding
    assert not embedding & set(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"trainable": "vae"},
            r"expected full, lora or a part \(unet, controlnet\), got 'vae', which no gradient reaches",
        ),
        ({"trainable": "unet2"}, "expected full, lora or a part"),
        ({"recompute_parts": ("text_encoder",)}, "recompute_parts: expected parts among unet, controlnet"),
        ({"task": "sr"}, "task sr enlarges 4 times, but the policy in .* 1 times"),
        ({"base_settings": {"guidance": 2.0}}, "says itself what it is: leave base_settings out"),
    ],
)
def test_a_wrong_setting_is_one_line(shipped, tmp_path, change, message):
    with pytest.raises(UserError, match=message) as caught:
        open_session(dataclasses.replace(shipped, **change), tmp_path)
    assert "\n" not in str(caught.value)


def test_targets_in_the_vae_are_one_line(shipped, tmp_path):
    lora = dataclasses.replace(shipped.lora, targets=("vae.*",))
    with pytest.raises(UserError, match=r"'vae\.\*' matches layers of the vae alone, which no gradient reaches"):
        open_session(dataclasses.replace(shipped, lora=lora), tmp_path)


def test_slices_of_samples_and_recomputing_change_no_update(shipped, tmp_path):
    values = []
    for change in ({"microbatch_samples": 0, "recompute_parts": ()}, {"microbatch_samples": 1}):
        session = open_session(dataclasses.replace(shipped, **change), tmp_path / str(len(values)))
        iterate(session, 0)
        values.append(session.average.values)
    for name, value in values[0].items():
        torch.testing.assert_close(values[1][name], value, atol=1e-6, rtol=1e-4)


def test_two_processes_make_the_same_update_as_one(shipped, tmp_path):
    config = dataclasses.replace(shipped, iterations=1, microbatch_samples=1, out=str(tmp_path / "two"))
    rl.train(open_session(config, tmp_path / "one"))
    (tmp_path / "two.yaml").write_text(to_yaml(config))
    launch(2, "rl_finetune.train", str(tmp_path / "two.yaml"))
    one, two = (load_file(tmp_path / name / LORA_FILE) for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-6, rtol=1e-4, msg=name)
