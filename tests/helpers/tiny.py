"""The smallest true policy, reward model and pictures: real code paths, a fraction of a second each."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from data.degradation.records import Task
from reward_model.network.architecture import RewardModelConfig
from reward_model.network.model import RewardModel
from shared.diffusion.sampler import SamplerSpec
from shared.policies.pixel_unet import PixelUNet, PixelUNetConfig
from shared.policies.policy_folder import save_policy
from shared.seeds import numpy_rng
from shared.vision.images import to_uint8


def tiny_policy(task: Task = "face", *, seed: int = 0) -> PixelUNet:
    """Returns a policy of a few thousand weights whose output is not zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        policy = PixelUNet(PixelUNetConfig(scale=4 if task == "sr" else 1, channels=(8, 16), norm_groups=4))
        torch.nn.init.normal_(policy.unet.conv_out.weight, std=0.05)
    return policy


def save_tiny_policy(folder: Path, task: Task = "face") -> Path:
    """Saves a tiny base policy as the supervised stage would."""
    save_policy(folder, tiny_policy(task), SamplerSpec(steps=4, eta=0.5), provenance={})
    return folder


def save_tiny_reward_model(folder: Path) -> Path:
    """Saves an untrained reward model with every stage."""
    config = RewardModelConfig(decoder_channels=(8, 8, 8))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for stage in range(config.stages + 1):
            RewardModel(config, stage=stage).save_pretrained(folder)
    return folder


def save_pictures(folder: Path, count: int, *, side_px: int = 48) -> Path:
    """Saves `count` smooth colourful pictures as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        coarse = torch.from_numpy(numpy_rng(0, "picture", i).random((1, 3, 6, 6))).float()
        picture = torch.nn.functional.interpolate(coarse, size=(side_px, side_px), mode="bicubic").clamp(0, 1)[0]
        Image.fromarray(to_uint8(picture.permute(1, 2, 0).numpy())).save(folder / f"{i:03}.png")
    return folder
