"""Rewards: the registry's answers, each reward's value where it is known, and the composite that joins them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from reward_model.network.model import RewardModel
from rl_finetune.rewards.composite import LRPO_FACE, Composite, resolve
from rl_finetune.rewards.config import RewardConfig, RewardPart
from rl_finetune.rewards.fidelity import low_band
from rl_finetune.rewards.learned import JudgedOnce
from rl_finetune.rewards.registry import Toolbox, ToolSettings, bind, find_map, find_reward, reward_names
from shared.app.errors import UserError
from shared.app.shipped import find_checkpoint
from shared.vision.detail import low_pass
from tests.helpers.cheats import CHEATS, base_policy, photographs, upsampled

DRAW = torch.Generator().manual_seed(0)
GT = F.interpolate(torch.rand(4, 3, 12, 12, generator=DRAW), (48, 48), mode="bicubic").clamp(0, 1)
SR = (GT + 0.05 * torch.randn(GT.shape, generator=DRAW)).clamp(0, 1)
LQ = F.avg_pool2d(GT, 4)


class Judgement:
    """A reward model's answer: the score is minus the mean brightness, the map is the red channel."""

    def __init__(self, images: torch.Tensor) -> None:
        self.score = -images.mean((1, 2, 3))
        self.degradation_map = images[:, :1]

    def require_map(self) -> torch.Tensor:
        return self.degradation_map


class CountingModel:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, images: torch.Tensor) -> Judgement:
        self.calls += 1
        return Judgement(images)


def build(weights: dict[str, float], **options) -> Composite:
    return Composite.build(weights, Toolbox(given={"reward_model": Judgement}), **options)


def test_names_that_must_be_known():
    expected = {"fgr_score", "fgr_worst_spot", "psnr", "ssim", "dwt", "lpips", "clipiqa", "face_preference", "identity"}
    assert expected <= set(reward_names())
    for name in reward_names():
        low, high = find_reward(name).value_range
        assert low < high
        substitute = find_reward(name).substitute
        assert substitute is None or not find_reward(substitute).substitute


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="no reward called 'fgr_socre'; did you mean 'fgr_score'"):
        find_reward("fgr_socre")
    with pytest.raises(UserError, match="no degradation map called 'fgr_mp'; did you mean 'fgr_map'"):
        find_map("fgr_mp")
    with pytest.raises(UserError, match=r"no reward called 'zzz'; known are .*clipiqa, detail, dwt"):
        find_reward("zzz")


@pytest.mark.parametrize("name", ["psnr", "ssim", "dwt", "gradient_similarity", "detail"])
def test_fidelity_rewards_are_highest_at_the_truth_and_within_their_range(name):
    entry = find_reward(name)
    reward = bind(entry, Toolbox())
    perfect, near, far = (reward(sr, GT, LQ) for sr in (GT, SR, 1 - GT))
    assert perfect.shape == (4,)
    assert ((perfect > near) & (near > far)).all()
    low, high = entry.value_range
    for value in (perfect, near, far):
        assert ((value >= low) & (value <= high + 1e-6)).all()


def test_low_band_by_hand():
    # Filters sum to 1, three levels have gain 1·2·2: a constant comes out four times as large, on every fourth pixel.
    band = low_band(torch.full((1, 3, 30, 41), 0.3))
    assert band.shape == (1, 3, 8, 11)
    torch.testing.assert_close(band, torch.full_like(band, 1.2), atol=1e-5, rtol=0)
    # exp(−15 · 4 · .01)
    value = bind(find_reward("dwt"), Toolbox())(GT * 0.5 + 0.01, GT * 0.5, LQ)
    torch.testing.assert_close(value, torch.full((4,), math.exp(-0.6)), atol=1e-4, rtol=0)


def test_low_band_passes_slow_waves_and_stops_fast_ones():
    position = torch.arange(256.0)

    def gain(period: float) -> float:
        wave = torch.sin(2 * math.pi * position / period).expand(1, 1, 256, 256)
        return float(low_band(wave)[..., 16:48].square().mean().sqrt() / wave.square().mean().sqrt())

    # Three octaves: half of the band edge's power is at a period of 16 pixels.
    assert gain(128.0) == pytest.approx(4.0, rel=0.02)
    assert gain(32.0) == pytest.approx(4.0, rel=0.05)
    assert gain(16.0) == pytest.approx(4.0 / math.sqrt(2), rel=0.1)
    assert gain(6.0) < 0.2


def test_low_band_is_the_dual_trees():
    # L1 of the low band of dtcwt 0.14's Transform2d(near_sym_a, qshift_a) at 3 levels, for this very difference:
    # its two trees, sampled every 4 pixels.
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    difference = 0.1 * torch.sin(rows / 7.0) * torch.cos(columns / 11.0) + 0.05 * torch.sin(rows * columns / 90.0)
    assert low_band(difference[None, None]).abs().mean().item() == pytest.approx(0.17938, rel=0.02)


def test_reward_model_rewards_and_map():
    toolbox = Toolbox(given={"reward_model": Judgement})
    torch.testing.assert_close(bind(find_reward("fgr_score"), toolbox)(SR, GT, LQ), -SR.mean((1, 2, 3)))
    expected = 1 - SR[:, :1].flatten(1).sort(1, descending=True).values[:, :23].mean(1)  # 1 % of 2304: 23
    torch.testing.assert_close(bind(find_reward("fgr_worst_spot"), toolbox)(SR, GT, LQ), expected)
    assert torch.equal(bind(find_map("fgr_map"), toolbox)(SR, GT, LQ), SR[:, :1])
    with pytest.raises(UserError, match="needs reward_model, and none was given"):
        bind(find_reward("fgr_score"), Toolbox())


def test_the_old_name_of_a_reward_is_still_read():
    config = RewardConfig(parts=[RewardPart("fgr_map", 0.4), RewardPart("dwt", 0.6)])
    assert config.parts == [RewardPart("fgr_worst_spot", 0.4), RewardPart("dwt", 0.6)]
    assert config.maps == [RewardPart("fgr_map", 1.0)]
    with pytest.raises(ValueError, match="names a reward twice: fgr_worst_spot, fgr_worst_spot"):
        RewardConfig(parts=[RewardPart("fgr_map", 1.0), RewardPart("fgr_worst_spot", 1.0)])


def test_maps_of_the_truth():
    toolbox = Toolbox()
    difference = torch.zeros_like(GT)
    difference[:, 0, 4, 7] = 0.3
    error = bind(find_map("absolute_error"), toolbox)(GT + difference, GT, LQ)
    assert error.shape == (4, 1, 48, 48)
    assert error[0, 0, 4, 7].item() == pytest.approx(0.1, abs=1e-6)
    assert error.sum().item() == pytest.approx(0.4, abs=1e-4)
    for name in ("gradient_distance", "low_band_error", "detail_error"):
        where = bind(find_map(name), toolbox)(SR, GT, LQ)
        assert where.shape == (4, 1, 48, 48)
        assert ((where >= 0) & (where <= 1)).all()
        assert bind(find_map(name), toolbox)(GT, GT, LQ).max().item() < 1e-5


def test_score_and_map_cost_one_pass_a_batch():
    model = CountingModel()
    toolbox = Toolbox(given={"reward_model": model})
    composite = Composite.build({"fgr_score": 0.5, "fgr_worst_spot": 0.5}, toolbox, maps=["fgr_map"], images_per_call=2)
    values = composite(SR, GT, LQ)
    assert model.calls == 2
    assert torch.equal(values.degradation_maps["fgr_map"], SR[:, :1])
    judged = JudgedOnce(model)
    assert judged(SR) is judged(SR)
    assert judged(GT) is not judged(SR)


def test_a_reward_model_that_takes_lq_is_always_given_it():
    class BesideLq(CountingModel):
        takes_lq = True

        def __call__(self, images: torch.Tensor, lq: torch.Tensor) -> Judgement:
            self.calls += 1
            return Judgement(images * lq.mean((2, 3), keepdim=True))

    model = BesideLq()
    toolbox = Toolbox(given={"reward_model": model})
    expected = -(SR * LQ.mean((2, 3), keepdim=True)).mean((1, 2, 3))
    composite = Composite.build({"fgr_score": 1.0, "fgr_worst_spot": 1.0}, toolbox, maps=["fgr_map"], images_per_call=2)
    values = composite(SR, GT, LQ)
    torch.testing.assert_close(values.values["fgr_score"], expected)
    assert torch.equal(values.degradation_maps["fgr_map"], (SR * LQ.mean((2, 3), keepdim=True))[:, :1])
    assert model.calls == 2  # score and map of a batch still cost one pass
    composite.require_gradient(GT, LQ)


def test_composite_is_the_weighted_sum_and_does_not_depend_on_the_batching():
    composite = build({"psnr": 0.25, "ssim": 2.0})
    values = composite(SR, GT, LQ)
    torch.testing.assert_close(values.total, 0.25 * values.values["psnr"] + 2.0 * values.values["ssim"])
    torch.testing.assert_close(build({"psnr": 0.25, "ssim": 2.0}, images_per_call=3)(SR, GT, LQ).total, values.total)


def test_pictures_are_clamped():
    composite = build({"psnr": 1.0})
    outside = torch.where(GT > 0.9, GT + 3.0, GT)
    torch.testing.assert_close(composite(outside, GT, LQ).total, composite(outside.clamp(0, 1), GT, LQ).total)


def test_maps_come_by_name_in_batches_too():
    maps = build({"psnr": 1.0}, maps=["fgr_map", "absolute_error"], images_per_call=1)(SR, GT, LQ).degradation_maps
    assert list(maps) == ["fgr_map", "absolute_error"]
    torch.testing.assert_close(maps["fgr_map"], SR[:, :1])
    torch.testing.assert_close(maps["absolute_error"], (SR - GT).abs().mean(1, keepdim=True))


def test_a_value_that_is_not_finite_stops_with_reward_and_sample():
    class Broken(Judgement):
        def __init__(self, images: torch.Tensor) -> None:
            super().__init__(images)
            self.score = self.score.clone()
            self.score[2] = math.nan

    composite = Composite.build({"psnr": 0.5, "fgr_score": 0.5}, Toolbox(given={"reward_model": Broken}))
    with pytest.raises(UserError, match=r"reward 'fgr_score' is nan for sample 2 \(cat\) and 1 of 4 samples"):
        composite(SR, GT, LQ, sample_ids=["ant", "bee", "cat", "dog"])
    picture = SR.clone()
    picture[1, 0, 0, 0] = math.inf
    with pytest.raises(UserError, match="the restoration itself is inf for sample 1"):
        build({"psnr": 1.0})(picture, GT, LQ)


def test_lrpo_composite_and_its_embedded_substitutes():
    assert LRPO_FACE == {"face_preference": 0.3, "lpips": 0.3, "clipiqa": 0.1, "dwt": 0.3}
    composite = build(LRPO_FACE)
    assert composite.weights == {"fgr_worst_spot": 0.3, "gradient_similarity": 0.3, "fgr_score": 0.1, "dwt": 0.3}
    assert composite.replacements == {
        "face_preference": "fgr_worst_spot",
        "lpips": "gradient_similarity",
        "clipiqa": "fgr_score",
    }
    assert set(composite(SR, GT, LQ).values) == set(composite.weights)
    assert resolve(LRPO_FACE, "hub") == (dict(LRPO_FACE), {})


def test_a_substitute_also_asked_for_gets_both_weights():
    weights, replacements = resolve({"clipiqa": 0.25, "fgr_score": 0.5}, "embedded")
    assert weights == {"fgr_score": 0.75}
    assert replacements == {"clipiqa": "fgr_score"}


@pytest.mark.parametrize("weights", [{}, {"psnr": 0.0}, {"psnr": -1.0}, {"psnr": math.nan}])
def test_weights_must_be_positive(weights):
    with pytest.raises(UserError, match="weights above 0"):
        resolve(weights, "embedded")


def test_tools_are_asked_for_before_the_run_starts(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match="LPIPS needs the weights"):
        build({"lpips": 1.0}, parts="hub")
    with pytest.raises(UserError, match="needs a face recogniser"):
        build({"identity": 1.0})
    settings = ToolSettings(clipiqa_model=str(tmp_path / "absent"))
    with pytest.raises(UserError, match="expected the CLIP network"):
        Composite.build({"clipiqa": 1.0}, Toolbox(settings), parts="hub")


def test_features_of_the_shipped_reward_model_agree_with_the_truth_alone():
    model = RewardModel.from_pretrained(find_checkpoint("shipped:reward_model")).requires_grad_(False)
    gt = photographs(4)
    up, soft = upsampled(gt), low_pass(gt, 1.2)
    composite = Composite.build(
        {"fgr_features": 1.0}, Toolbox(given={"reward_model": model}), maps=["fgr_feature_error"]
    )

    def agreement(sr: torch.Tensor) -> torch.Tensor:
        return composite(sr, gt, gt).total

    torch.testing.assert_close(agreement(gt), torch.ones(4), atol=1e-5, rtol=0)
    # What a reward under its own gradient finds first pays nowhere: a pattern, or grain that fills up missing energy.
    for start in (gt, soft, up):
        assert (agreement(start + 0.3 * (gt - start)) >= agreement(start)).all()
        for name in ("chequerboard 2", "diagonal hatch 1.5", "grain 4", "blur 1.2"):
            assert agreement(CHEATS[name].apply(start, up)).mean() < agreement(start).mean()
    for levels in (2.0, 5.0, 10.0, 20.0):
        assert (agreement(base_policy(low_pass(gt, 3.0), seed=2, levels=levels)) < agreement(low_pass(gt, 3.0))).all()
    # The map says where: one blurred corner.
    corner = gt.clone()
    corner[..., :48, :48] = low_pass(gt, 3.0)[..., :48, :48]
    where = composite(corner, gt, gt).degradation_maps["fgr_feature_error"]
    assert where[..., :40, :40].mean() > 5 * where[..., 64:, 64:].mean()
    composite.require_gradient(gt, gt)
