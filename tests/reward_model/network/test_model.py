"""The reward model: shapes, gradients, stages, heads, encoders by name, and what it refuses."""

from __future__ import annotations

import pytest
import timm
import torch

from reward_model.network.encoder import normalisation
from reward_model.network.model import RewardModel, RewardModelConfig, ScoreInputs, on_levels, require_pictures
from reward_model.network.score_head import PenaltyHead, map_statistics, worst_mean
from shared.app.errors import UserError
from tests.helpers.reward_models import SMALL, build, pictures


@pytest.mark.parametrize("head", ["paper", "penalty"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("size", [(16, 16), (37, 50), (96, 64)])
def test_shapes_ranges_and_gradients(head, stage, size):
    images = pictures(2, *size).requires_grad_()
    model = build(RewardModelConfig(head=head), stage)
    output = model(images)
    assert output.score.shape == (2,)
    if stage == 0:
        assert output.degradation_map is None
        with pytest.raises(UserError, match="stage 0 of the reward model has no degradation map"):
            output.require_map()
    else:
        assert output.require_map().shape == (2, 1, *size)
        assert 0 <= output.degradation_map.min() <= output.degradation_map.max() <= 1
    # ReFL needs the gradient in the picture, at every pixel.
    output.score.sum().backward()
    assert torch.isfinite(images.grad).all()
    assert (images.grad.abs().sum(dim=1) > 0).float().mean() > 0.9


def test_a_score_does_not_depend_on_its_batch():
    model, images = build(), pictures(7, 50, 41)
    with torch.no_grad():
        together = model(images)
        for index in range(7):
            alone = model(images[index : index + 1])
            assert alone.score.item() == pytest.approx(together.score[index].item(), abs=1e-5)
            torch.testing.assert_close(alone.degradation_map[0], together.degradation_map[index], atol=1e-5, rtol=0)


class Seen(torch.nn.Module):
    """A score head that keeps what it was given."""

    def forward(self, pooled, pooled_by_map, statistics):
        self.pooled, self.pooled_by_map, self.statistics = pooled, pooled_by_map, statistics
        return pooled.sum(dim=1)


def test_padding_does_not_enter_the_score(monkeypatch):
    # 33×64 is padded to 48×64: cells of 16 px, of whose last row 1/16 is picture; the map's grid of 2 px has 17 rows of
    # picture and 7 of padding. In the padding the stand-in network returns 9 for 1, and a map of 1 for 0.
    model = build()
    features, native = torch.ones(1, 2, 3, 4), torch.zeros(1, 1, 24, 32)
    features[:, :, 2], native[:, :, 17:] = 9.0, 1.0
    monkeypatch.setattr(model, "score_inputs", lambda padded, *_: ScoreInputs(features, native))
    model.score_head = Seen()
    output = model(pictures(1, 33, 64))
    # (1 + 1 + 9/16) / (2 + 1/16) = 41/33
    torch.testing.assert_close(model.score_head.pooled, torch.full((1, 2), 41 / 33))
    assert torch.equal(model.score_head.statistics, torch.zeros(1, 5))
    # The last cell's map is 7 rows of 1 in 8: 9 · 7/8 · 1/16 over the same 33/16.
    torch.testing.assert_close(model.score_head.pooled_by_map, torch.full((1, 2), 9 * 7 / 8 / 33))
    assert torch.equal(output.degradation_map, torch.zeros(1, 1, 33, 64))


def test_each_later_stage_is_finer_and_starts_as_the_one_before():
    images = pictures()
    earlier = build(stage=0)
    strides = []
    for stage in (1, 2, 3):
        later = build(stage=stage, seed=stage)
        later.warm_start(earlier)
        strides.append(later.map_stride)
        if stage > 1:
            with torch.no_grad():
                before, after = earlier(images).degradation_map, later(images).degradation_map
            # The new head is 0: the same logits, up-sampled before the sigmoid instead of after it.
            assert (before - after).abs().max() < 0.01
        for name, weight in earlier.state_dict().items():
            assert torch.equal(later.state_dict()[name], weight)
        earlier = later
    assert strides == [8, 4, 2]


def test_penalty_is_never_negative_and_nothing_for_a_clean_map():
    torch.manual_seed(0)
    head = PenaltyHead(16, with_map=True)
    pooled = torch.randn(64, 16) * 5
    maps = torch.rand(64, 1, 12, 12)
    assert (head.penalty(pooled, pooled * maps.mean(dim=(1, 2, 3))[:, None], map_statistics(maps)) >= 0).all()
    nothing = map_statistics(torch.zeros(64, 1, 12, 12))
    assert torch.equal(nothing, torch.zeros(64, 5))
    clean = head(pooled, torch.zeros_like(pooled), nothing)
    torch.testing.assert_close(clean, head(pooled, None, None), rtol=0, atol=0)


def test_the_paper_head_gives_every_clean_picture_one_score():
    # The published form's weak point, kept for comparison: M = 0 leaves MLP(0).
    from reward_model.network.score_head import PaperHead

    torch.manual_seed(0)
    head = PaperHead(16, with_map=True)
    scores = head(torch.randn(8, 16), torch.zeros(8, 16), None)
    assert torch.equal(scores, scores[:1].expand(8))


def test_map_statistics_by_hand():
    # 10×10 with one pixel at 1 and one at .5: mean .015, worst 1 % is the one pixel, worst 10 % is 1.5 / 10.
    m = torch.zeros(1, 1, 10, 10)
    m[0, 0, 3, 4], m[0, 0, 8, 8] = 1.0, 0.5
    mean, root, worst1, worst10, block = map_statistics(m)[0].tolist()
    assert mean == pytest.approx(0.015, abs=1e-7)
    assert root == pytest.approx((0.015 + 1e-4) ** 0.5 - 0.01, abs=1e-6)
    assert worst1 == pytest.approx(1.0)
    assert worst10 == pytest.approx(0.15)
    # Blocks of 8×8 from the corner: the first holds 1 in 64 pixels, the last, 2×2, holds .5 in 4.
    assert block == pytest.approx(0.125)
    assert worst_mean(m, 0.02).item() == pytest.approx(0.75)


@pytest.mark.parametrize("encoder", ["tu-resnet18", "tu-convnext_atto", "tu-resnet50_clip.openai"])
def test_encoders_from_timm(encoder):
    config = RewardModelConfig(encoder=encoder, encoder_depth=5, decoder_channels=(32, 24, 16, 16))
    if "convnext" in encoder:  # its stem has stride 4: four levels, smp fills the missing one
        config = RewardModelConfig(encoder=encoder, encoder_depth=5, decoder_channels=(32, 24, 16))
    model = RewardModel(config).eval()
    with torch.no_grad():
        output = model(pictures(1, 70, 90))
    assert output.degradation_map.shape == (1, 1, 70, 90)
    settings = timm.get_pretrained_cfg(encoder.removeprefix("tu-"))
    assert model.config.mean == tuple(settings.mean)
    assert normalisation(encoder, pretrained=False) == (tuple(settings.mean), tuple(settings.std))


@pytest.mark.parametrize("decoder", ["upernet", "fpn", "linknet", "unetplusplus"])
def test_decoders_from_smp_have_one_stage(decoder):
    config = RewardModelConfig(encoder="tu-resnet18", encoder_depth=5, decoder=decoder, decoder_channels=())
    assert config.stages == 1
    with torch.no_grad():
        assert RewardModel(config).eval()(pictures(1, 64, 96)).degradation_map.shape == (1, 1, 64, 96)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.full((1, 3, 32, 32), float("nan")), "finite pixel values, got NaN or infinity"),
        (torch.full((1, 3, 32, 32), float("inf")), "finite pixel values"),
        (torch.full((1, 3, 32, 32), 200.0), r"in \[0, 1\], got \[200, 200\]; divide by 255"),
        (torch.full((1, 3, 32, 32), -0.5), r"got \[-0.5, -0.5\]; clamp it"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "float pictures in .*got torch.uint8"),
        (torch.zeros(1, 4, 32, 32), r"\[B, 3, H, W\], got a tensor of shape \[1, 4, 32, 32\]"),
        (torch.zeros(3, 32, 32), r"got a tensor of shape \[3, 32, 32\]"),
        (torch.zeros(1, 3, 1, 1), "at least 16×16 px, got 1×1"),
        (torch.zeros(1, 3, 15, 200), "at least 16×16 px, got 200×15"),
    ],
)
def test_bad_pictures_are_refused_in_one_line(images, said):
    with pytest.raises(UserError, match=said) as refusal:
        build()(images)
    assert "\n" not in str(refusal.value)


def test_rounding_outside_the_range_is_no_mistake():
    require_pictures(torch.tensor([-1e-4, 1 + 1e-4, 0.5]).view(1, 3, 1, 1).expand(1, 3, 16, 16))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"encoder": "no-such-encoder"}, "no-such-encoder"),
        ({"encoder": "tu-no_such_model"}, "timm"),
        ({"decoder": "no-such-decoder", "decoder_channels": ()}, "no-such-decoder"),
    ],
)
def test_unknown_networks_are_refused(change, said):
    with pytest.raises(UserError, match=said):
        RewardModel(RewardModelConfig(**change))


def test_bad_configs_are_refused():
    with pytest.raises(ValueError, match="decoder_channels must hold"):
        RewardModelConfig(decoder_channels=())
    with pytest.raises(ValueError, match="decoder_channels belong to unet"):
        RewardModelConfig(decoder="fpn")
    with pytest.raises(UserError, match="a stage from 0 to 3 for this network, got 4"):
        RewardModel(SMALL, stage=4)


def test_a_float_picture_scores_as_the_file_it_would_become():
    model = RewardModel(RewardModelConfig(decoder_channels=(8, 8, 8))).eval()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    saved = (images * 255).round() / 255
    with torch.no_grad():
        ours, theirs = model(images), model(saved)
    # Not bitwise: x + (round(x) - x) is rounded once more.
    torch.testing.assert_close(ours.score, theirs.score, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.degradation_map, theirs.degradation_map, atol=1e-5, rtol=1e-5)
    assert not torch.equal(images, saved)


def test_rounding_to_levels_passes_the_gradient_through():
    images = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    on_levels(images).sum().backward()
    assert torch.equal(images.grad, torch.ones_like(images))
