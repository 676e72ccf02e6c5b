"""Checkpoint folders that somebody meant harm with: each is loaded, or refused in a line before it takes memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reward_model.measuring.scored import Reading
from reward_model.network.checkpoint import verify_checkpoint
from reward_model.network.model import RewardModel, RewardModelConfig
from shared.diffusion.sampler import SamplerSpec
from shared.policies.load import load_policy, load_restorer
from shared.policies.pixel_unet import PixelUNet, PixelUNetConfig
from shared.policies.policy_folder import read_provenance, save_policy
from shared.restorers.exemplar import ExemplarConfig, ExemplarRestorer
from shared.restorers.feed_forward import FeedForwardConfig, FeedForwardNet, FeedForwardRestorer
from shared.restorers.ncnn import load_ncnn
from shared.restorers.protocol import RestorerSettings
from tests.helpers.campaign import campaign, trial
from tests.helpers.hostile_folders import replaced, with_checksums, write_folder
from tests.helpers.hub_server import folder_files
from tests.helpers.ncnn_pairs import tiny_compact, write_pair

NAME = "checkpoints"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def reward_model(folder) -> dict[str, bytes]:
    whole = folder / "whole_rm"
    for stage in (0, 1):
        RewardModel(RewardModelConfig(decoder_channels=(8,)), stage=stage).save_pretrained(whole)
    (whole / "metrics.json").write_text(
        '{"reference": {"scores": {"1": {"alone": {"clean": [0.1, 0.9], "restored": [0.0, 0.8], "pair_slope": 2.0, '
        '"threshold": 0.5}}}, "detail": {"mean": [1.0, 2.0], "inverse": [[1.0, 0.0], [0.0, 1.0]], "limit": 3.0}}}'
    )
    return folder_files(whole)


@pytest.fixture(scope="module")
def policy(folder) -> dict[str, bytes]:
    architecture = PixelUNetConfig(channels=(8,), norm_groups=4, unshuffle=2, guide="own")
    guide = FeedForwardRestorer(FeedForwardNet(FeedForwardConfig(scale=1, channels=4, blocks=1)))
    save_policy(
        folder / "whole_policy", PixelUNet(architecture, None, guide), SamplerSpec(steps=2), provenance={"a": 1}
    )
    return folder_files(folder / "whole_policy")


@pytest.fixture(scope="module")
def small_restorers(folder) -> dict[str, dict[str, bytes]]:
    FeedForwardRestorer(FeedForwardNet(FeedForwardConfig(channels=4, blocks=1))).save(folder / "whole_net")
    config = ExemplarConfig(scale=1, block_cells=1, context_cells=0)
    ExemplarRestorer(config, torch.rand(5, 3), torch.rand(5, 3, 8, 8)).save(folder / "whole_exemplar")
    (folder / "whole_pair").mkdir()
    write_pair(tiny_compact(), folder / "whole_pair" / "net.param", half=True)
    return {name: folder_files(folder / f"whole_{name}") for name in ("net", "exemplar", "pair")}


def attack(folder: Path, whole: dict[str, bytes], data: st.DataObject, sums: tuple[str, dict[str, Any]] | None) -> Path:
    name, place = data.draw(replaced(whole))
    write_folder(folder / "attacked", whole, name, place)
    if sums is not None and data.draw(st.booleans()):
        with_checksums(folder / "attacked", *sums)
    return folder / "attacked"


def load(folder: Path, *loads: Callable[[], Any]) -> None:
    for each in loads:
        with trial(NAME, folder):
            each()


@campaign(slice_of=15, whole=900)
@given(data=st.data())
def test_reward_models(folder, reward_model, data):
    sums = {f"stage_{stage}/model.safetensors": ("stages", str(stage), "sha256") for stage in (0, 1)}
    attacked = attack(folder, reward_model, data, ("config.json", sums))
    load(
        folder,
        lambda: RewardModel.from_pretrained(attacked),
        lambda: Reading.of(attacked, 1, beside_lq=False),
        lambda: verify_checkpoint(attacked),
    )


@campaign(slice_of=15, whole=900)
@given(data=st.data())
def test_policies(folder, policy, data):
    sums = {name: ("sha256", name) for name in ("model.safetensors", "guide/model.safetensors")}
    attacked = attack(folder, policy, data, ("config.json", sums))
    load(
        folder,
        lambda: load_policy(attacked),
        lambda: load_restorer(str(attacked), RestorerSettings(steps=1)),
        lambda: read_provenance(attacked),
    )


@campaign(slice_of=30, whole=1200)
@given(data=st.data(), name=st.sampled_from(["net", "exemplar", "pair"]))
def test_small_restorers(folder, small_restorers, data, name):
    attacked = attack(folder, small_restorers[name], data, None)

    def restore() -> None:
        restorer = load_ncnn(attacked / "net.param") if name == "pair" else load_restorer(str(attacked))
        assert restorer.restore(torch.full((1, 3, 8, 8), 0.5), sample_seeds=[0]).shape[1] == 3

    load(folder, restore)
