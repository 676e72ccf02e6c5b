"""Joint augmentation: gt, sr, syn, mask and both maps change together; new targets are on the dataset's scale."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from data.regions.targets import MIXTURE_WEIGHTS, Normaliser, TargetConfig, TargetMaker, dilated
from data.store.dataset_sample import Sample
from data.store.sample_maker import SampleMaker, TargetScale
from reward_model.learning.augment import AugmentConfig, Augmenter
from shared.vision.images import to_array
from tests.helpers.reward_samples import SCALE, tiny_sample

PICTURES = ("gt", "lq", "sr", "syn", "mask", "degradation_map", "sr_degradation_map")
WHOLE = (slice(None), slice(None))
UNMASKED = tuple(name for name in PICTURES if name != "mask")
NOTHING = AugmentConfig(flip=0, rescale=0, simulated=0, mixed=0, new_mask=0, colour=0)
REPAINTS = {  # what each of them changes
    "rescale": ("gt", "lq", "sr", "mask"),
    "colour": ("gt", "lq", "sr"),
    "simulated": ("sr",),
    "mixed": ("sr",),
    "new_mask": ("mask",),
}
# No number here is a default: a map on any other scale differs.
OTHER_SCALE = TargetScale(
    TargetConfig(pixel_weight=0.3, dilate_px=4), Normaliser(0.08, 0.5, 1.0, (1.5,) * len(MIXTURE_WEIGHTS))
)


def only(*, scale: TargetScale = SCALE, **changes) -> Augmenter:
    return Augmenter(dataclasses.replace(NOTHING, **changes), scale, seed=0)


def numbered(height: int = 64, width: int = 64, **changes) -> Sample:
    """Returns a sample whose pictures, mask and maps all hold every pixel's own number, 64 · row + column, in 4096ths."""
    numbers = (torch.arange(height)[:, None] * 64 + torch.arange(width)) / 4096
    planes = {name: numbers.expand(3 if name in ("gt", "lq", "sr", "syn") else 1, -1, -1) for name in PICTURES}
    return dataclasses.replace(tiny_sample(0), **{**planes, **changes})


def placed(sample: Sample, carrying: tuple[str, ...] = PICTURES) -> tuple[tuple[int, int], tuple[int, ...]]:
    """Returns (the corner that was cut out, how it was turned) of a `numbered` sample whose pictures still agree."""
    height, width = sample.gt.shape[-2:]
    for name in carrying:
        assert torch.equal(getattr(sample, name), sample.gt[: len(getattr(sample, name))]), name
    numbers = (sample.gt[0] * 4096).long()
    rows, columns = numbers // 64, numbers % 64
    # Row and column as functions of the place: a corner, plus a step for each pixel down and each pixel to the right.
    down, right = torch.arange(height)[:, None], torch.arange(width)[None]
    turn = tuple(int(p[place] - p[0, 0]) for p in (rows, columns) for place in ((1, 0), (0, 1)))
    assert torch.equal(rows, rows[0, 0] + turn[0] * down + turn[1] * right)
    assert torch.equal(columns, columns[0, 0] + turn[2] * down + turn[3] * right)
    return (int(rows.min()), int(columns.min())), turn


def drawn(augmenter: Augmenter, sample: Sample, count: int) -> list[Sample]:
    return [augmenter(sample, step=index // 4, place=index % 4) for index in range(count)]


def test_pictures_mask_and_maps_are_cut_and_turned_together():
    corners, turns = zip(*map(placed, drawn(only(flip=0.5, crop_px=32), numbered(), 160)), strict=True)
    assert len(set(turns)) == 8  # all eight symmetries of a square
    assert all(len(set(side)) > 10 for side in zip(*corners, strict=True))
    assert {placed(sample) for sample in drawn(only(), numbered(), 20)} == {((0, 0), (1, 0, 0, 1))}


def test_pictures_that_are_not_square_keep_their_shape():
    samples = drawn(only(flip=0.5), numbered(32, 48), 80)
    assert {tuple(sample.mask.shape) for sample in samples} == {(1, 32, 48)}
    # As it is, mirrored, half a turn, and both.
    assert {placed(sample)[1] for sample in samples} == {(a, 0, 0, d) for a in (1, -1) for d in (1, -1)}


def test_a_control_is_cut_and_turned_and_never_repainted():
    everything = AugmentConfig(flip=1, rescale=1, simulated=1, mixed=1, new_mask=1, colour=1, crop_px=32)
    control = numbered(is_control=True)
    places = {placed(sample) for sample in drawn(Augmenter(everything, SCALE, seed=0), control, 40)}
    assert len(places) > 20
    swap = drawn(Augmenter(everything, SCALE, seed=0), dataclasses.replace(control, is_control=False), 1)[0]
    assert not torch.equal(swap.gt, swap.syn)  # a swap is


def test_crops_lie_around_the_mask():
    mask = torch.zeros(1, 64, 64)
    mask[0, 5, 40] = mask[0, 60, 2] = 1.0
    samples = drawn(only(crop_px=32), numbered(mask=mask), 120)
    # Never a crop without one of the two. Around row 5, column 40: 32 rows from at most 5, columns from 9; around the
    # other, rows from 29, columns from at most 2.
    assert all(sample.mask.sum() == 1 for sample in samples)
    corners = {placed(sample, UNMASKED)[0] for sample in samples}
    first = {corner for corner in corners if corner[0] <= 5 and 9 <= corner[1] <= 32}
    second = {corner for corner in corners if 29 <= corner[0] <= 32 and corner[1] <= 2}
    assert first | second == corners
    assert {top for top, _ in first} == set(range(6))  # the pixel lies anywhere in the crop
    assert len({left for _, left in first}) > 12
    assert second


def test_crops_of_a_picture_without_a_defect_lie_anywhere():
    samples = drawn(only(crop_px=32), numbered(40, 64, mask=torch.full((1, 40, 64), 0.25)), 200)
    assert {tuple(sample.gt.shape) for sample in samples} == {(3, 32, 32)}
    tops, lefts = zip(*(placed(sample, UNMASKED)[0] for sample in samples), strict=True)
    assert set(tops) == set(range(9))  # 40 − 32 = 8 is the last
    assert (min(lefts), max(lefts)) == (0, 32)
    assert torch.equal(only(crop_px=64)(numbered(40, 40), step=0, place=0).gt, numbered(40, 40).gt)  # too small to cut


def test_a_sample_is_a_function_of_seed_step_and_place():
    sample, config = tiny_sample(0), AugmentConfig(simulated=0.8, new_mask=0.8, rescale=0.5, colour=0.5, crop_px=32)
    augmenter, again = (Augmenter(config, SCALE, seed=7) for _ in range(2))
    first = {(step, place): augmenter(sample, step=step, place=place) for step in range(4) for place in range(3)}
    torch.manual_seed(5)
    for step, place in reversed(first):
        same = again(sample, step=step, place=place)
        assert all(torch.equal(getattr(same, name), getattr(first[step, place], name)) for name in PICTURES)
    everywhere = [made.sr for made in (*first.values(), Augmenter(config, SCALE, seed=8)(sample, step=0, place=0))]
    assert len({one.numpy().tobytes() for one in everywhere}) == 13


@pytest.mark.parametrize("is_control", [False, True])
def test_chances_of_nothing_leave_a_sample_as_it_is_stored(is_control):
    stored = tiny_sample(2, is_control=is_control)
    for sample in drawn(only(), stored, 8):
        for field in dataclasses.fields(Sample):
            kept, was = getattr(sample, field.name), getattr(stored, field.name)
            assert torch.equal(kept, was) if isinstance(was, torch.Tensor) else kept == was


@pytest.mark.parametrize("change", REPAINTS)
def test_a_repainted_sample_is_a_swap_on_the_datasets_scale(change):
    maker = TargetMaker(OTHER_SCALE.targets)
    stored = SampleMaker(OTHER_SCALE).swap(
        tiny_sample(0),
        *(to_array(getattr(tiny_sample(0), name)) for name in ("gt", "sr")),
        tiny_sample(0).mask[0].numpy(),
    )
    changed = set()
    for sample in drawn(only(scale=OTHER_SCALE, **{change: 1.0}), stored, 6):
        gt, sr, syn = (to_array(getattr(sample, name)) for name in ("gt", "sr", "syn"))
        mask, found, found_sr = (getattr(sample, name)[0].numpy() for name in PICTURES[4:])
        assert np.array_equal(syn[mask == 0], gt[mask == 0])
        np.testing.assert_allclose(syn[mask == 1], sr[mask == 1], atol=1e-6)
        assert not found[dilated(mask, 4) == 0].any()
        assert found[mask == 1].mean() > 0
        for picture, its_map, near in ((syn, found, mask), (sr, found_sr, None)):
            raw = maker.distances(*reversed(maker.describe([gt], [picture])), mask=near)
            # (0.3 · pixel / 0.08 + 0.7 · feature / 0.5) / 1.5
            expected = np.clip((0.3 / 0.08 * raw.pixel + 0.7 / 0.5 * raw.feature) / 1.5, 0, 1)
            np.testing.assert_allclose(its_map, expected, atol=1e-5)
        assert sample.area == pytest.approx(mask.mean())
        assert sample.severity == pytest.approx((found * mask).sum() / mask.sum(), rel=1e-5)
        changed |= {n for n in ("gt", "lq", "sr", "mask") if not torch.equal(getattr(sample, n), getattr(stored, n))}
    assert changed == set(REPAINTS[change])


def test_a_mixed_sample_is_the_pools_on_one_side_only():
    stored = tiny_sample(0)
    kept = [(s.sr == stored.sr).all(dim=0).float().mean().item() for s in drawn(only(mixed=1.0), stored, 20)]
    # The other side is 30 to 70 % of the picture; a soft edge, and where the simulated one happens to agree.
    assert 0.2 < min(kept) < 0.5 < max(kept) < 0.95
    # Simulated wins over mixed.
    both, alone = (drawn(only(mixed=mixed, simulated=1.0), stored, 8) for mixed in (1.0, 0.0))
    assert all(torch.equal(first.sr, second.sr) for first, second in zip(both, alone, strict=True))


def test_a_simulated_restorer_goes_on_from_the_pools_output_as_often_as_from_gt():
    stored = tiny_sample(0)
    white = dataclasses.replace(stored, sr=torch.ones_like(stored.sr))
    made = [s.sr.mean().item() - stored.gt.mean().item() for s in drawn(only(simulated=1.0), white, 60)]
    # gt's mean is about .45, so what began with white stands out, unless a faint version of it was asked for.
    assert 0.3 < np.mean([difference > 0.15 for difference in made]) < 0.7


def test_colour_is_one_curve_for_both_pictures():
    gt = tiny_sample(0).gt
    sample = dataclasses.replace(tiny_sample(0), sr=gt.flip(-1, -2))
    for changed in drawn(only(colour=1.0), sample, 8):
        # The same values in other places: the curve maps them to the same values.
        assert torch.equal(changed.sr, changed.gt.flip(-1, -2))
        assert (changed.gt - gt).abs().mean() > 0.005


def test_rescaling_enlarges_and_shrinks_the_whole_triple():
    # A ramp to the right in red, downwards in green; sr and mask show the same.
    ramps = torch.stack(
        [torch.arange(64.0).expand(48, 64), torch.arange(48.0)[:, None].expand(48, 64), torch.zeros(48, 64)]
    )
    ramps = ramps * 3 / 255
    sample = numbered(48, 64, gt=ramps, sr=ramps, syn=ramps, mask=ramps[:1])
    factors = []
    for scaled in drawn(only(rescale=1.0), sample, 40):
        assert torch.equal(scaled.gt, scaled.sr)
        assert (scaled.mask - scaled.gt[:1]).abs().max() < 1 / 255
        assert scaled.gt.shape == ramps.shape
        # Shrunk by at most 1.6, the first 24 rows and columns are still the picture's own: 3 levels a pixel, over f.
        slopes = [
            np.polyfit(np.arange(4, 24), line[4:24].numpy() * 255, 1)[0]
            for line in (scaled.gt[0, 9], scaled.gt[1, :, 9])
        ]
        assert slopes[0] == pytest.approx(slopes[1], rel=0.05)
        factors.append(3 / slopes[0])
    assert 1 / 1.65 < min(factors) < 0.75
    assert 1.3 < max(factors) < 1.65


def test_a_chance_is_how_often():
    sample = tiny_sample(0, side_px=32)
    changed = [not torch.equal(made.gt, sample.gt) for made in drawn(only(colour=0.3), sample, 300)]
    assert np.mean(changed) == pytest.approx(0.3, abs=0.08)  # three standard deviations of 300 draws


def test_settings_that_cannot_be_are_refused():
    for wrong, said in (
        ({"colour": 1.5}, "colour"),
        ({"rescale_max": 0.5}, "rescale_max"),
        ({"crop_px": 16}, "at least 32"),
    ):
        with pytest.raises(ValueError, match=said):
            AugmentConfig(**wrong)


def grainy_sample(side_px: int = 192) -> Sample:
    noise = 0.01 * torch.randn(3, side_px, side_px, generator=torch.Generator().manual_seed(3))
    sample = tiny_sample(0, side_px=side_px)
    levels = ((sample.gt + noise).clamp(0, 1) * 255).round() / 255
    return dataclasses.replace(sample, gt=levels, lq=levels.flip(-1))


def test_maps_are_made_of_the_crop_alone_and_are_those_of_the_whole_picture(monkeypatch):
    scale = TargetScale(dataclasses.replace(OTHER_SCALE.targets, forgive_lost_grain=True), OTHER_SCALE.normaliser)
    config = AugmentConfig(rescale=0.5, simulated=0.5, mixed=0.5, new_mask=0.5, colour=0.5, crop_px=32)
    augmenter, sample, described = Augmenter(config, scale, seed=0), grainy_sample(), []
    describe = TargetMaker.describe

    def counted(self, truths, others=(), **how):
        described.extend(len(picture) * len(picture[0]) for picture in (*truths, *others))
        return describe(self, truths, others, **how)

    monkeypatch.setattr(TargetMaker, "describe", counted)
    cut = drawn(augmenter, sample, 12)
    # 32 px, 40 around them, on a grid of 4: at most 116² of 192² pixels.
    assert max(described) <= 116**2
    monkeypatch.setattr("reward_model.learning.augment.with_context", lambda crop, shape, _: (WHOLE, crop))
    whole = drawn(augmenter, sample, 12)
    assert max(described) == 192**2
    for first, second in zip(cut, whole, strict=True):
        for name in PICTURES:
            torch.testing.assert_close(getattr(first, name), getattr(second, name), rtol=0, atol=2e-6)


def test_nothing_of_the_rest_of_the_picture_is_kept_for_a_drawn_crop():
    config = AugmentConfig(new_mask=0.5, crop_px=32)
    for place in range(8):
        one = Augmenter(config, SCALE, seed=0).draw(grainy_sample(), step=0, place=place)
        sample = one.sample or one.swap.like
        sizes = [getattr(sample, name).untyped_storage().nbytes() for name in PICTURES]
        assert max(sizes) <= 4 * 3 * (32**2 if one.swap is None else 116**2)
