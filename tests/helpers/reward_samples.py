"""Tiny samples for the reward-model tests: noise-textured pictures whose defects are blurred regions."""

from __future__ import annotations

import numpy as np
import torch

from data.regions.masks import MaskConfig, draw_mask
from data.regions.targets import MIXTURE_WEIGHTS, Normaliser, TargetConfig
from data.store.dataset_sample import Sample
from data.store.sample_maker import SampleMaker, TargetScale
from shared.seeds import numpy_rng
from shared.vision.images import on_8_bits, to_tensor

SCALE = TargetScale(TargetConfig(), Normaliser(0.05, 0.4, 1.0, (1.0,) * len(MIXTURE_WEIGHTS)))


def tiny_sample(index: int, *, side_px: int = 48, is_control: bool = False) -> Sample:
    """Returns a picture of smooth colour and fine grain; sr has lost the grain."""
    rng = numpy_rng(0, "tiny", index)
    rows, columns = np.mgrid[:side_px, :side_px].astype(np.float32) / side_px
    ramp = np.stack([rows, columns, 1 - rows], axis=2) * 0.5 + 0.2
    gt = on_8_bits(ramp + rng.normal(0, 0.08, (side_px, side_px, 1)).astype(np.float32))
    sr = on_8_bits(ramp)
    mask = draw_mask(gt, MaskConfig(kinds=("blobs",), area_min=0.15, area_max=0.3), rng).values
    plane = torch.zeros(1, side_px, side_px)
    blank = Sample(
        gt=to_tensor(gt),
        lq=to_tensor(gt),
        sr=to_tensor(sr),
        syn=to_tensor(gt),
        mask=torch.from_numpy(mask)[None],
        degradation_map=plane,
        sr_degradation_map=plane + 1,
        area=float(mask.mean()),
        severity=0.0,
        is_control=is_control,
        restorer="blur",
        mask_kind="blobs",
        source="noise",
        image_id=f"picture-{index // 2}",
        index=index,
    )
    return blank if is_control else SampleMaker(SCALE).swap(blank, gt, sr, mask)


def tiny_samples(count: int, *, side_px: int = 48) -> list[Sample]:
    """Returns `count` samples, every eighth one a control."""
    return [tiny_sample(index, side_px=side_px, is_control=index % 8 == 7) for index in range(count)]
