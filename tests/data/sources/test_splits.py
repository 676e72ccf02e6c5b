"""Splits follow from the ids alone; a part that is held out leaves every split and moves nothing else."""

from __future__ import annotations

import pytest

from data.degradation.pairs import PairConfig, pairs_for_task
from data.sources.open_source import SourceConfig
from data.sources.splits import EMBEDDED_TEXTURES, held_out_ids, split_image_ids
from shared.app.errors import UserError

FRACTIONS = {"seed": 0, "val_fraction": 0.1, "test_fraction": 0.25}


def test_splits_follow_from_seed_and_ids_alone():
    ids = tuple(f"{i}.png" for i in range(40))
    splits = split_image_ids(ids, **FRACTIONS)
    # 40 · 0.25 = 10 and 40 · 0.1 = 4; the rest, 26, trains.
    assert {name: len(members) for name, members in splits.items()} == {"test": 10, "val": 4, "train": 26}
    assert sorted(sum(splits.values(), ())) == sorted(ids)
    assert split_image_ids(ids[::-1], **FRACTIONS) == splits
    assert split_image_ids(ids, **FRACTIONS | {"seed": 1}) != splits
    # One more picture moves none of the others from training to testing or back, except at the cut itself.
    more = split_image_ids((*ids, "new.png"), **FRACTIONS)
    assert len(set(splits["test"]) ^ set(more["test"])) <= 2


def test_small_sets_have_a_picture_in_every_split():
    splits = split_image_ids(("a", "b", "c"), seed=0, val_fraction=0.0, test_fraction=0.9)
    assert [len(splits[name]) for name in ("train", "val", "test")] == [1, 1, 1]
    with pytest.raises(UserError, match="at least 3 pictures"):
        split_image_ids(("a", "b"), **FRACTIONS)
    with pytest.raises(ValueError, match="below 1"):
        SourceConfig(val_fraction=0.5, test_fraction=0.5)


def test_a_part_held_out_leaves_the_others_where_they_were():
    ids = (*(f"lake/{i}.png" for i in range(30)), *(f"town/{i}.png" for i in range(10)))
    whole, without = (split_image_ids(ids, **FRACTIONS, held_out=part) for part in ("none", "town"))
    for split, members in whole.items():
        assert without[split] == tuple(i for i in members if i.startswith("lake/"))


def test_the_smallest_part_is_held_out_for_auto():
    lake, town, few = (tuple(f"{part}/{i}.png" for i in range(n)) for part, n in (("lake", 9), ("town", 5), ("few", 3)))
    assert held_out_ids((*lake, *town, *few), "auto") == set(town)  # three pictures are too few to test on
    assert held_out_ids((*few, "alone.png"), "auto") == set()
    assert held_out_ids(("portrait/1", *EMBEDDED_TEXTURES, "dead-leaves/1"), "auto") == set(EMBEDDED_TEXTURES)
    assert held_out_ids((*lake, *town), "none") == set()


def test_every_stage_leaves_a_held_out_part_alone():
    config = SourceConfig(embedded_images=60, held_out="scikit-image")
    for split in ("train", "val", "test"):
        pairs = pairs_for_task(config, PairConfig(pairs=4), task="sr", split=split, seed=0)
        assert not any(image_id.startswith("scikit-image/") for image_id in pairs.image_ids)
    with pytest.raises(UserError, match=r"source\.held_out 'portrait' leaves no picture of embedded-faces for train"):
        pairs_for_task(SourceConfig(held_out="portrait"), PairConfig(pairs=4), task="face", split="train", seed=0)
