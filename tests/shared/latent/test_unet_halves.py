"""The two halves together are diffusers' own forward pass."""

from __future__ import annotations

import peft
import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel

from shared.app.errors import UserError
from shared.latent.precision import cast_frozen, frozen_dtype
from shared.latent.unet_halves import first_half, first_half_is_frozen, require_plain, second_half
from tests.helpers.tiny_latent import save_tiny_latent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_latent(tmp_path_factory.mktemp("latent"))


@pytest.fixture
def unet(folder) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(folder / "unet").requires_grad_(False)


@pytest.fixture
def seen() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, 4, 8, 4), torch.tensor([900, 3]), torch.randn(2, 7, 16)


@torch.no_grad()
def test_with_a_controlnet_and_without(folder, unet, seen):
    x_t, timesteps, text = seen
    features = first_half(unet, *seen)
    torch.testing.assert_close(second_half(unet, features, text), unet(*seen).sample)
    control = ControlNetModel.from_pretrained(folder / "controlnet")
    nothing = torch.zeros(2, 3, 8, 4)
    skips, middle = control(torch.cat([x_t, x_t], 1), timesteps, text, controlnet_cond=nothing, return_dict=False)
    added = {"down_block_additional_residuals": skips, "mid_block_additional_residual": middle}
    expected = unet(*seen, **added).sample
    torch.testing.assert_close(
        second_half(unet, features, text, added_to_skips=skips, added_to_middle=middle), expected
    )
    assert (expected - unet(*seen).sample).abs().max() > 0.01


@torch.no_grad()
def test_with_a_class_as_an_upscaler_has_of_its_noise(unet, seen):
    torch.manual_seed(0)
    labelled = UNet2DConditionModel.from_config({**unet.config, "num_class_embeds": 10})
    labels = torch.tensor([2, 7])
    ours = second_half(labelled, first_half(labelled, *seen, class_labels=labels), seen[2])
    torch.testing.assert_close(ours, labelled(*seen, class_labels=labels).sample)


def test_adapters_stay_in_float32_beside_frozen_weights_in_half_the_bytes(unet, seen):
    text = seen[2]
    with torch.no_grad():
        whole = unet(*seen).sample
    adapted = peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["to_q"]), unet)
    cast_frozen(adapted, torch.bfloat16)
    assert adapted.dtype == torch.bfloat16
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert len(trained) == 16  # A and B of two attentions in four blocks
    output = second_half(adapted, first_half(adapted, *seen), text)
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, whole, atol=0.05, rtol=0)
    output.square().sum().backward()
    assert all(p.grad.abs().max() > 0 for name, p in trained.items() if "lora_B" in name)
    assert not first_half_is_frozen(adapted)


def test_a_part_that_is_trained_itself_stays_whole(unet):
    unet.conv_out.requires_grad_(True)
    cast_frozen(unet, torch.bfloat16)
    assert {p.dtype for p in unet.parameters()} == {torch.float32}
    assert first_half_is_frozen(unet)
    assert frozen_dtype("auto", torch.device("cpu")) == torch.float32
    assert frozen_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert frozen_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16


def test_another_unet_is_refused(unet):
    unet.register_to_config(addition_embed_type="text_time")
    with pytest.raises(UserError, match="the unet of sdxl has addition_embed_type: text_time; expected one of Stable"):
        require_plain(unet, where="sdxl")
