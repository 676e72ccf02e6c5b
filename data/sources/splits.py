"""Which split a picture is in, and which pictures of a source no stage trains on: functions of the ids alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

from shared.app.errors import UserError
from shared.seeds import derive_seed

Split = Literal["train", "val", "test"]
AUTO, NONE = "auto", "none"
# Photographs that are texture from edge to edge: the part of the embedded source least like the rest.
EMBEDDED_TEXTURES = ("scikit-image/brick.png", "scikit-image/grass.png", "scikit-image/gravel.png")


def split_image_ids(
    image_ids: Sequence[str], *, seed: int, val_fraction: float, test_fraction: float, held_out: str = NONE
) -> dict[Split, tuple[str, ...]]:
    """Returns the ids of each split in a mixed order, a function of the seed and the set of ids alone.

    Sizes are the fractions rounded, at least one picture each, less the pictures that are held out: those leave the
    others where they were. Raises UserError below three pictures.
    """
    splits = get_args(Split)
    if len(image_ids) < len(splits):
        raise UserError(
            f"expected at least {len(splits)} pictures, to train, to validate and to test on; got {len(image_ids)}"
        )
    ranked = sorted(set(image_ids), key=lambda image_id: (derive_seed(seed, "split", image_id), image_id))
    test = max(1, round(len(ranked) * test_fraction))
    val = max(1, round(len(ranked) * val_fraction))
    test = min(test, len(ranked) - 2)
    val = min(val, len(ranked) - test - 1)
    cut = {"test": ranked[:test], "val": ranked[test : test + val], "train": ranked[test + val :]}
    away = held_out_ids(image_ids, held_out)
    return {split: tuple(image_id for image_id in ids if image_id not in away) for split, ids in cut.items()}


def held_out_ids(image_ids: Sequence[str], held_out: str) -> frozenset[str]:
    """Returns the ids of the part that is held out: none, the one of that name, or the smallest for `auto`."""
    if held_out == NONE:
        return frozenset()
    if held_out != AUTO:
        chosen: tuple[str, ...] = (held_out,)
    elif set(EMBEDDED_TEXTURES) <= set(image_ids):
        chosen = EMBEDDED_TEXTURES
    else:
        # The smallest part that still has a few pictures to test on; never more than half of what there is.
        parts = count_parts(image_ids)
        fitting = [(count, part) for part, count in parts.items() if part and 4 <= count <= len(image_ids) / 2]
        chosen = (min(fitting)[1],) if fitting else ()
    return frozenset(i for i in image_ids if i in chosen or i.startswith(tuple(f"{part}/" for part in chosen)))


def count_parts(image_ids: Iterable[str]) -> Counter[str]:
    """Returns how many pictures each part of a source has."""
    return Counter(part_of(image_id) for image_id in image_ids)


def part_of(image_id: str) -> str:
    """Returns the part of its source that a picture is from: the first folder of its id, or an empty name."""
    return image_id.split("/", 1)[0] if "/" in image_id else ""
