"""lq as the second input: enlarging it, where it enters, what its absence changes, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from reward_model.network.lq_input import enlarge
from reward_model.network.model import RewardModel, RewardModelConfig
from reward_model.network.tiling import score_picture
from shared.app.errors import UserError
from tests.helpers.reward_models import build, pictures

TAKES_LQ = RewardModelConfig(takes_lq=True)


def awake(config: RewardModelConfig = TAKES_LQ, stage: int | None = None) -> RewardModel:
    """Returns a model whose branch and map heads have left the zeros that they start from."""
    model = build(config, stage)
    torch.nn.init.normal_(model.lq_branch.body[-1].weight, std=0.1)
    torch.nn.init.normal_(model.lq_branch.body[-1].bias, std=0.1)
    for head in model.map_heads:
        torch.nn.init.normal_(head.weight, std=0.3)
    return model


@pytest.mark.parametrize(("small", "large"), [((12, 16), (48, 64)), ((13, 17), (50, 67)), ((20, 20), (20, 20))])
def test_enlarging_is_bicubic_interpolation(small, large):
    lq = pictures(2, *small)
    expected = functional.interpolate(lq, size=large, mode="bicubic", align_corners=False).clamp(0, 1)
    torch.testing.assert_close(enlarge(lq, large), expected, atol=2e-5, rtol=0)


def test_a_window_holds_the_values_of_the_whole_and_repeats_its_edge():
    lq = pictures(1, 13, 17)
    whole = enlarge(lq, (50, 67))
    torch.testing.assert_close(enlarge(lq, (50, 67), window=(16, 48, 32, 64)), whole[..., 16:48, 32:64])
    beyond = enlarge(lq, (50, 67), window=(32, 64, 48, 80))
    padded = functional.pad(whole, (0, 13, 0, 14), mode="replicate")
    torch.testing.assert_close(beyond, padded[..., 32:64, 48:80])


def test_without_lq_the_model_is_the_one_without_the_branch():
    with_branch, images = awake(), pictures()
    plain = build()
    plain.load_state_dict({k: v for k, v in with_branch.state_dict().items() if not k.startswith("lq_branch.")})
    with torch.no_grad():
        expected, found = plain(images), with_branch(images)
        none_given = with_branch(images, images[..., ::2, ::2], lq_given=torch.zeros(2, dtype=torch.bool))
    assert torch.equal(found.score, expected.score)
    assert torch.equal(none_given.degradation_map, expected.degradation_map)


def test_a_fresh_branch_changes_nothing_and_a_trained_one_does():
    images, lq = pictures(), pictures(2, 12, 16, seed=1)
    with torch.no_grad():
        fresh, trained = build(TAKES_LQ), awake()
        assert torch.equal(fresh(images, lq).score, fresh(images).score)
        assert not torch.equal(trained(images, lq).score, trained(images).score)
        assert not torch.equal(trained(images, lq).degradation_map, trained(images).degradation_map)


def test_lq_counts_only_for_the_pictures_it_is_given_for():
    model, images, lq = awake(), pictures(3), pictures(3, 12, 16, seed=1)
    with torch.no_grad():
        mixed = model(images, lq, lq_given=torch.tensor([True, False, True])).score
        expected = torch.stack([model(images, lq).score, model(images).score])
    torch.testing.assert_close(mixed, torch.stack([expected[0, 0], expected[1, 1], expected[0, 2]]))


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_gradients_reach_the_picture_and_the_branch(stage):
    model, images = awake(stage=stage), pictures().requires_grad_()
    model.train()
    model(images, pictures(2, 12, 16, seed=1)).score.sum().backward()
    assert (images.grad.abs().sum(dim=1) > 0).float().mean() > 0.9
    assert all(p.grad.abs().sum() > 0 for name, p in model.lq_branch.named_parameters() if name.endswith("weight"))


@pytest.mark.parametrize("scale", [1, 4])
def test_tiles_agree_with_one_pass_beside_lq(scale):
    model, image = awake(), pictures(1, 530, 700)
    lq = functional.avg_pool2d(image, scale)
    with torch.no_grad():
        whole, alone = model(image, lq), model(image)
    arrays = [x[0].permute(1, 2, 0).numpy() for x in (image, lq)]
    tiled = score_picture(model, arrays[0], lq=arrays[1], tile_px=512, halo_px=192)
    assert tiled.score == pytest.approx(whole.score.item(), abs=2e-5)
    assert abs(whole.score.item() - alone.score.item()) > 1e-4
    difference = np.abs(tiled.degradation_map / 65535.0 - whole.degradation_map[0, 0].numpy())
    assert difference.max() < 2e-4


@pytest.mark.parametrize(
    ("lq", "said"),
    [
        (torch.zeros(1, 3, 12, 16), r"an lq for each picture, \[2, 3\] and its sides, got \[1, 3, 12, 16\]"),
        (torch.zeros(2, 3, 16, 16), "of the picture's proportions, 64×48 px or smaller, got 16×16"),
        (torch.zeros(2, 3, 96, 128), "64×48 px or smaller, got 128×96"),
        (torch.zeros(2, 3, 3, 4), "or smaller, got 4×3"),
        (torch.full((2, 3, 12, 16), 200.0), r"lq values in \[0, 1\], got \[200, 200\]"),
        (torch.full((2, 3, 12, 16), float("nan")), r"lq values in \[0, 1\], got \[nan, nan\]"),
    ],
)
def test_another_lq_is_refused(lq, said):
    with pytest.raises(UserError, match=said):
        build(TAKES_LQ)(pictures(), lq)


def test_a_model_without_the_branch_takes_no_lq():
    with pytest.raises(UserError, match="takes no lq"):
        build()(pictures(), pictures(2, 12, 16))
    with pytest.raises(UserError, match="takes no lq"):
        score_picture(build(), np.zeros((32, 32, 3), np.uint8), lq=np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="takes_lq needs the detail front end"):
        RewardModelConfig(encoder="tu-resnet18", takes_lq=True)


def test_a_checkpoint_from_before_has_no_branch(tmp_path):
    import json

    build().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for key in ("takes_lq", "detail", "encoder_weights"):
        del config["network"][key]
    path.write_text(json.dumps(config))
    model, images = RewardModel.from_pretrained(tmp_path), pictures()
    assert not model.takes_lq
    with torch.no_grad():
        torch.testing.assert_close(model(images).score, build()(images).score, atol=1e-6, rtol=0)
    assert awake().save_pretrained(tmp_path / "new") is None
    assert RewardModel.from_pretrained(tmp_path / "new").takes_lq
