"""Encoders that start from a file, with the detail front end beside them, and names that are refused."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from safetensors.torch import save_file
from segmentation_models_pytorch.encoders import get_encoder

from reward_model.network.encoder import EncoderWithDetail
from reward_model.network.model import RewardModel, RewardModelConfig
from shared.app.errors import UserError
from tests.helpers.reward_models import build, pictures

FIVE = {"encoder_depth": 5, "decoder_channels": (32, 24, 16)}


def published(name: str) -> torch.nn.Module:
    torch.manual_seed(7)
    return timm.create_model(name) if "." not in name else get_encoder(name.strip("."), weights=None)


def saved(tmp_path, tensors, name="weights.safetensors") -> str:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / name)
    return str(tmp_path / name)


@pytest.mark.parametrize("prefix", ["", "module.", "encoder."])
@pytest.mark.parametrize("detail", [0, 16])
def test_smps_encoder_starts_from_the_file(tmp_path, prefix, detail):
    torch.manual_seed(7)
    source = get_encoder("mobilenet_v2", weights=None).state_dict()
    extra = {"classifier.1.weight": torch.zeros(10, 10)}  # the head that an encoder has no use for
    file = saved(tmp_path, {prefix + key: tensor for key, tensor in (source | extra).items()})
    model = RewardModel(RewardModelConfig(encoder="mobilenet_v2", encoder_weights=file, detail=detail, **FIVE))
    encoder = model.encoder.published if detail else model.encoder
    assert all(torch.equal(tensor, encoder.state_dict()[key]) for key, tensor in source.items())
    assert model.config.encoder_weights == ""  # the weights are the checkpoint's from now on
    assert model.config.mean == (0.485, 0.456, 0.406)
    assert model(pictures()).degradation_map.shape == (2, 1, 48, 64)


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto", "tf_efficientnet_lite0"])
def test_timms_encoder_starts_from_the_file(tmp_path, name):
    torch.manual_seed(7)
    source = timm.create_model(name).state_dict()
    file = saved(tmp_path, source)
    model = RewardModel(RewardModelConfig(encoder=f"tu-{name}", encoder_weights=file, detail=16, **FIVE))
    own = {key.replace("_", "."): tensor for key, tensor in model.encoder.published.model.state_dict().items()}
    there = {key.replace("_", "."): tensor for key, tensor in source.items()}
    shared = own.keys() & there.keys()
    assert len(shared) > 0.9 * len(own)
    assert all(torch.equal(own[key], there[key]) for key in shared)


@pytest.mark.parametrize("encoder", ["mobilenet_v2", "tu-resnet10t"])
def test_another_networks_file_is_refused(tmp_path, encoder):
    file = saved(tmp_path, timm.create_model("tf_efficientnet_lite0").state_dict())
    with pytest.raises(UserError, match=f"weights.safetensors holds no weights of {encoder}"):
        RewardModel(RewardModelConfig(encoder=encoder, encoder_weights=file, **FIVE))


def test_a_missing_file_and_a_file_of_another_kind_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"of an encoder in a safetensors file, but nowhere\.safetensors is missing"):
        RewardModel(RewardModelConfig(encoder="mobilenet_v2", encoder_weights="nowhere.safetensors", **FIVE))
    (tmp_path / "a.pth").write_bytes(b"a pickle, say")
    with pytest.raises(UserError, match="is no safetensors file"):
        RewardModel(RewardModelConfig(encoder="mobilenet_v2", encoder_weights=str(tmp_path / "a.pth"), **FIVE))


def test_the_front_end_stands_beside_the_published_encoder():
    config = RewardModelConfig(encoder="tu-convnext_atto", detail=16, takes_lq=True, **FIVE)
    model = build(config)
    assert isinstance(model.encoder, EncoderWithDetail)
    # The published encoder has nothing at stride 2; the pyramid's widths are 16, 24, 32, 40, 48.
    plain = RewardModel(RewardModelConfig(encoder="tu-convnext_atto", **FIVE)).encoder.out_channels
    expected = [3, *(own + beside for own, beside in zip(plain[1:], (16, 24, 32, 40, 48), strict=True))]
    assert model.encoder.out_channels == expected
    torch.nn.init.normal_(model.lq_branch.body[-1].weight)
    images = pictures()
    with torch.no_grad():
        assert not torch.equal(model(images, images[..., ::4, ::4]).score, model(images).score)


def test_a_checkpoint_of_such_an_encoder_is_loaded_without_the_file(tmp_path):
    torch.manual_seed(7)
    file = saved(tmp_path, get_encoder("mobilenet_v2", weights=None).state_dict())
    config = RewardModelConfig(encoder="mobilenet_v2", encoder_weights=file, detail=16, **FIVE)
    model = build(config)
    model.save_pretrained(tmp_path / "checkpoint")
    assert str(tmp_path) not in (tmp_path / "checkpoint" / "config.json").read_text()
    (tmp_path / "weights.safetensors").unlink()
    images = pictures()
    with torch.no_grad():
        loaded = RewardModel.from_pretrained(tmp_path / "checkpoint")(images).score
        torch.testing.assert_close(loaded, model(images).score, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "name", ["tu-hf-hub:someone/model", "tu-hf_hub:a/b", "tu-local-dir:/etc", "tu-nothing", "none"]
)
def test_a_config_names_encoders_of_the_registry_alone(tmp_path, name, monkeypatch):
    build().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["network"]["encoder"] = name
    path.write_text(json.dumps(config))
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("it was built"))
    with pytest.raises(UserError, match="not in the registry"):
        RewardModel.from_pretrained(tmp_path)


def test_weights_come_from_the_hub_or_from_a_file():
    with pytest.raises(ValueError, match="choose one"):
        RewardModelConfig(encoder="mobilenet_v2", pretrained=True, encoder_weights="a.safetensors")
    with pytest.raises(ValueError, match="detail must lie between 0 and 1024, 0 for embedded encoders, got 8"):
        RewardModelConfig(detail=8)
