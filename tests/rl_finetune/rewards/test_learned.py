"""Rewards whose networks come from the Hub or a file: CLIP, face recognisers, pyiqa; all offline here."""

from __future__ import annotations

import sys
import types

import pytest
import torch
import torch.nn.functional as F

from rl_finetune.rewards.composite import Composite
from rl_finetune.rewards.face_network import MobileFaceNet
from rl_finetune.rewards.faces import crop_face, load_identity
from rl_finetune.rewards.registry import Toolbox, ToolSettings
from shared.app.errors import UserError
from shared.vision.clip import ClipSimilarity, load_clip_similarity

DRAW = torch.Generator().manual_seed(0)
GT = F.interpolate(torch.rand(4, 3, 12, 12, generator=DRAW), (48, 48), mode="bicubic").clamp(0, 1)
SR = (GT + 0.05 * torch.randn(GT.shape, generator=DRAW)).clamp(0, 1)
LQ = F.avg_pool2d(GT, 4)


def _tiny_clip():
    from transformers import CLIPConfig, CLIPModel

    shared = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**shared, "image_size": 32, "patch_size": 8}
    text = {**shared, "vocab_size": 514, "max_position_embeddings": 77, "bos_token_id": 512, "eos_token_id": 513}
    torch.manual_seed(0)
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()


def test_clip_similarity_is_transformers_own():
    model = _tiny_clip()
    pixels = torch.rand(2, 3, 32, 32)
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    tokens = torch.tensor([[512, 5, 6, 513], [512, 7, 8, 513]])
    with torch.no_grad():
        out = model(input_ids=tokens, pixel_values=(pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1))
        similarity = ClipSimilarity(model, 5.0 * out.text_embeds)(pixels)
    torch.testing.assert_close(similarity, out.image_embeds @ out.text_embeds.T, atol=1e-5, rtol=0)
    # Any size is brought to the network's, centred, and gradients reach the picture.
    picture = torch.rand(2, 3, 50, 41, requires_grad=True)
    ClipSimilarity(model, out.text_embeds)(picture).sum().backward()
    assert picture.grad.abs().sum().item() > 0.0


def test_clip_loads_from_a_folder_and_scores_as_clipiqa(tmp_path):
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizerFast

    _tiny_clip().save_pretrained(tmp_path)
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizerFast(vocab={word: i for i, word in enumerate(words)}, merges=[]).save_pretrained(tmp_path)
    settings = ToolSettings(clipiqa_model=str(tmp_path), face_preference_model=str(tmp_path))
    composite = Composite.build({"clipiqa": 0.5, "face_preference": 0.5}, Toolbox(settings), parts="hub")
    values = composite(SR, GT, LQ).values
    similarity = load_clip_similarity(
        str(tmp_path), ("Good photo.", "Bad photo."), device=torch.device("cpu"), allow_download=False
    )(SR)
    expected = 1 / (1 + torch.exp(100 * (similarity[:, 1] - similarity[:, 0])))
    torch.testing.assert_close(values["clipiqa"], expected, atol=1e-4, rtol=0)
    assert (values["face_preference"].abs() <= 1.0).all()


def test_identity_from_a_file_of_weights(tmp_path):
    torch.manual_seed(0)
    network = MobileFaceNet().eval()
    assert sum(p.numel() for p in network.parameters()) == 999_552
    path = tmp_path / "face.ckpt"
    torch.save({"epoch": 3, "net_state_dict": network.state_dict()}, path)
    composite = Composite.build({"identity": 1.0}, Toolbox(ToolSettings(identity_model=str(path))))
    torch.testing.assert_close(composite(GT, GT, LQ).total, torch.ones(4), atol=1e-5, rtol=0)
    assert (composite(SR, GT, LQ).total < 1.0).all()
    torch.save({"other": torch.ones(1)}, path)
    with pytest.raises(UserError, match="expected MobileFaceNet's weights"):
        load_identity(str(path), device=torch.device("cpu"), allow_download=False)


def test_the_face_crop_puts_ffhq_eyes_where_recognisers_look():
    # FFHQ's eyes at 512 px are at (193, 240) and (319, 240): white spots there must land near the recogniser's
    # (38.3, 51.7) and (73.5, 51.5) of 112×112, which is 8 columns less in the 96 wide crop.
    picture = torch.zeros(1, 3, 512, 512)
    for x in (193, 319):
        picture[..., 236:244, x - 4 : x + 4] = 1.0
    crop = crop_face(picture, width=96)
    assert crop.shape == (1, 3, 112, 96)
    bright = crop[0, 0] / crop[0, 0].sum()
    y = (bright.sum(1) * (torch.arange(112) + 0.5)).sum()
    left, right = bright[:, :48], bright[:, 48:]
    assert y.item() == pytest.approx(51.6, abs=1.5)
    assert (left.sum(0) * (torch.arange(48) + 0.5)).sum().item() / left.sum().item() == pytest.approx(30.3, abs=1.5)
    assert (right.sum(0) * (torch.arange(48) + 48.5)).sum().item() / right.sum().item() == pytest.approx(65.5, abs=1.5)
    # And the crop of the same face at another size is the same crop.
    small = crop_face(F.interpolate(GT, (256, 256), mode="bilinear"), width=96)
    large = crop_face(F.interpolate(GT, (1024, 1024), mode="bilinear"), width=96)
    torch.testing.assert_close(small, large, atol=0.03, rtol=0)
    # Seven pixels of 1024 fall to one of the crop: their mean is taken, which leaves a seventh of white noise's .29.
    assert crop_face(torch.rand(1, 3, 1024, 1024, generator=DRAW), width=96).std().item() < 0.06


def test_pyiqa_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(UserError, match="need the package pyiqa"):
        Composite.build({"pyiqa:musiq": 1.0}, Toolbox())
    stand_in = types.ModuleType("pyiqa")
    stand_in.list_models = lambda: ["musiq", "dists"]

    def create_metric(name, device):
        def metric(*pictures):
            return sum(p.mean((1, 2, 3)) for p in pictures)[:, None]

        metric.metric_mode, metric.lower_better = ("FR", True) if name == "dists" else ("NR", False)
        return metric

    stand_in.create_metric = create_metric
    monkeypatch.setitem(sys.modules, "pyiqa", stand_in)
    values = Composite.build({"pyiqa:musiq": 1.0, "pyiqa:dists": 1.0}, Toolbox())(SR, GT, LQ).values
    torch.testing.assert_close(values["pyiqa:musiq"], SR.mean((1, 2, 3)))
    torch.testing.assert_close(values["pyiqa:dists"], -(SR.mean((1, 2, 3)) + GT.mean((1, 2, 3))))
    with pytest.raises(UserError, match="no metric called 'musik'"):
        Composite.build({"pyiqa:musik": 1.0}, Toolbox())


def test_features_of_a_published_encoder_from_a_file(tmp_path):
    import timm
    from safetensors.torch import save_file

    with pytest.raises(UserError, match=r"name their safetensors file in reward\.tools\.feature_weights"):
        Composite.build({"encoder_features": 1.0}, Toolbox())
    torch.manual_seed(0)
    encoder = timm.create_model("mobilenetv3_small_050", pretrained=False)
    save_file(encoder.state_dict(), tmp_path / "encoder.safetensors")
    settings = ToolSettings(
        feature_encoder="tu-mobilenetv3_small_050", feature_weights=str(tmp_path / "encoder.safetensors")
    )
    composite = Composite.build({"encoder_features": 1.0}, Toolbox(settings))
    torch.testing.assert_close(composite(GT, GT, LQ).total, torch.ones(4), atol=1e-5, rtol=0)
    near, far = composite(GT + 0.2 * (SR - GT), GT, LQ).total, composite(SR, GT, LQ).total
    assert ((far < near) & (near < 1.0)).all()
    composite.require_gradient(GT, LQ)
    # One that begins at a quarter of the picture: its missing level counts for nothing.
    save_file(timm.create_model("convnext_atto", pretrained=False).state_dict(), tmp_path / "other.safetensors")
    settings = ToolSettings(feature_encoder="tu-convnext_atto", feature_weights=str(tmp_path / "other.safetensors"))
    composite = Composite.build({"encoder_features": 1.0}, Toolbox(settings))
    torch.testing.assert_close(composite(GT, GT, LQ).total, torch.ones(4), atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="is not in the registry"):
        Composite.build({"encoder_features": 1.0}, Toolbox(ToolSettings(feature_encoder="tu-hf-hub:a/b")))
