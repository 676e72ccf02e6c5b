"""Published upscalers and Stable Diffusion 3 in the loop of RL, and the features that a frozen U-Net is asked for once."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from rl_finetune import train as rl
from rl_finetune.convert import ConvertConfig, policy_config
from rl_finetune.loop.config import TrainRlConfig
from rl_finetune.loop.iteration import iterate
from rl_finetune.loop.lora_layers import LoraConfig
from shared.files import write_bytes
from shared.lora import LORA_FILE
from shared.policies.load import load_policy
from tests.helpers.tiny_flow import save_tiny_flow
from tests.helpers.tiny_latent import save_tiny_latent
from tests.helpers.tiny_pipelines import save_latent_diffusion, save_stable_diffusion
from tests.helpers.tiny_rl import open_session, tiny_rl_config

WEIGHTS = "diffusion_pytorch_model.safetensors"
RUNS = {
    "Stable Diffusion's upscaler": (save_stable_diffusion, "sr", "lora", LORA_FILE),
    "latent diffusion's upscaler": (save_latent_diffusion, "sr", "unet", f"unet/{WEIGHTS}"),
    "a flow with lq beside x_t": (lambda folder: save_tiny_flow(folder, controlnet=False), "face", "lora", LORA_FILE),
    "a flow with a ControlNet": (
        lambda folder: save_tiny_flow(folder, controlnet=True),
        "face",
        "controlnet",
        f"controlnet/{WEIGHTS}",
    ),
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> TrainRlConfig:
    config = tiny_rl_config(tmp_path_factory.mktemp("rl"))
    source = dataclasses.replace(config.source, images=config.source.faces)
    few = {"groups": 2, "updates_per_rollout": 1, "iterations": 3, "eval_images": 2, "warmup_iterations": 0}
    lora = LoraConfig(rank=2, targets=("*to_q", "*to_v"))
    return dataclasses.replace(config, source=source, lora=lora, learning_rate=1e-2, **few)


@pytest.mark.parametrize("name", RUNS)
def test_three_iterations_and_what_they_leave(settings, tmp_path, name):
    save, task, trainable, saved = RUNS[name]
    base = save(tmp_path / "base")
    session = open_session(
        dataclasses.replace(settings, task=task, base=str(base), trainable=trainable), tmp_path / "run"
    )
    rl.train(session)
    assert set(json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))["sha256"]) == {saved}
    policy, again, before = session.learner.policy, load_policy(tmp_path / "run")[0], load_policy(base)[0]
    lq = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    x_t, timesteps = torch.randn(2, *policy.latent_shape(lq)), policy.schedule.batch_at(600, 2, "cpu")
    with torch.no_grad(), session.average.put_in():
        tuned, loaded, untuned = (each(x_t, timesteps, each.condition(lq)) for each in (policy, again, before))
    torch.testing.assert_close(loaded, tuned, atol=1e-5, rtol=1e-5)
    assert (tuned - untuned).abs().max() > 1e-4


def test_what_is_kept_of_the_rollout_changes_no_update_and_saves_the_first_half(settings, tmp_path):
    base = save_tiny_latent(tmp_path / "base")
    said = policy_config(ConvertConfig(control="tiny.ckpt", pre_restorer="none"), {})
    write_bytes(base / "config.json", json.dumps(said).encode())
    values, runs = [], []
    for keep in (False, True):
        config = dataclasses.replace(settings, base=str(base), trainable="controlnet", keep_frozen=keep)
        session = open_session(config, tmp_path / str(keep))
        count = {"encoder": 0, "decoder": 0}
        unet = session.learner.policy.unet
        unet.mid_block.register_forward_hook(lambda *_, c=count: c.update(encoder=c["encoder"] + 1))
        unet.conv_out.register_forward_hook(lambda *_, c=count: c.update(decoder=c["decoder"] + 1))
        iterate(session, 0)
        values.append(session.average.values)
        runs.append(count)
    for name, value in values[0].items():
        torch.testing.assert_close(values[1][name], value, atol=1e-5, rtol=1e-5)
    # 4 steps of the rollout and 3 that are trained: without what is kept, the encoder runs in both.
    assert runs == [{"encoder": 7, "decoder": 7}, {"encoder": 4, "decoder": 7}]
