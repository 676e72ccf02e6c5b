"""Sample sets beyond the dataset's splits: swaps by restorers that training never met, and real triples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from data.regions.masks import MaskConfig, draw_mask
from data.store.dataset_sample import Sample
from data.store.sample_maker import SampleMaker
from reward_model.network.lq_input import enlarge, require_lq
from shared.app.errors import UserError
from shared.pictures.inputs import find_images
from shared.pictures.reading import UnreadableImage
from shared.policies.load import load_restorer
from shared.seeds import derive_seed, numpy_rng
from shared.vision.images import on_8_bits, read_image, to_array, to_tensor

_NOT_RESTORED = ("gt", "lq", "mask", "syn")


def swapped_by_restorer(samples: Sequence[Sample], checkpoint: str, swaps: SampleMaker) -> list[Sample]:
    """Returns the samples with another restorer's output of the same lq in the same regions; controls are left out.

    Raises UserError when the restorer's scale fits none of them.
    """
    restorer, name = load_restorer(checkpoint), Path(checkpoint).stem
    made = []
    for sample in samples:
        fits = sample.lq.shape[-1] * restorer.scale == sample.gt.shape[-1]
        if sample.is_control or not fits:
            continue
        seed = derive_seed(0, "restorer", sample.image_id, sample.index)
        sr = on_8_bits(to_array(restorer.restore(sample.lq[None], sample_seeds=[seed])[0]))
        swapped = swaps.swap(sample, to_array(sample.gt), sr, to_array(sample.mask)[..., 0])
        made.append(_named(swapped, restorer=name))
    if not made:
        raise UserError(f"{checkpoint} enlarges {restorer.scale} times, and no sample's lq asks for that")
    return made


@dataclass(frozen=True)
class CropConfig:
    """How pictures are cut into samples."""

    crop_px: int
    crops_per_picture: int  # crops of a picture, at most
    seed: int  # of the regions that are drawn
    lq_scale: int = 0  # 2 or more: scenes without an lq get gt shrunk so many times, bicubically; 0: they have none


def read_triples(folder: str | Path, swaps: SampleMaker, crops: CropConfig) -> tuple[list[Sample], list[str]]:
    """Returns (samples, what was skipped and why) of real restorations beside their truth.

    Files are named `<scene>_gt`, `<scene>_<restorer>`, and where known `<scene>_lq`, and `<scene>_mask` (white: defect)
    with `<scene>_syn`; without those two, regions are drawn here and swapped. Samples without an lq have an empty one.
    Raises UserError when no pair of gt and restoration is found.
    """
    scenes = _scenes(find_images(folder))
    samples: list[Sample] = []
    skipped: list[str] = []
    for scene, files in sorted(scenes.items()):
        for kind in sorted(files.keys() - set(_NOT_RESTORED)):
            try:
                pictures = _aligned(files, kind, lq_scale=crops.lq_scale)
                if min(pictures["gt"].shape[:2]) < crops.crop_px:
                    raise UnreadableImage(f"{files['gt'].name}: smaller than crop_px = {crops.crop_px}")
            except UnreadableImage as error:
                skipped.append(str(error))
                continue
            name = str(scene.relative_to(folder))
            samples += _crops(pictures, name, kind, swaps, crops)
    if not samples:
        why = f" ({skipped[0]})" if skipped else ""
        raise UserError(
            f"no triples in {folder}{why}; expected <scene>_gt and <scene>_<restorer> pictures of one size, at least "
            f"{crops.crop_px} px, and <scene>_mask with <scene>_syn where known"
        )
    return samples, skipped


def _scenes(paths: Sequence[Path]) -> dict[Path, dict[str, Path]]:
    """Returns {scene: {gt, a restorer's name, mask …: file}}; a restorer's name may have underscores in it, as scenes."""
    scenes = {path.parent / path.stem.removesuffix("_gt"): {"gt": path} for path in paths if path.stem.endswith("_gt")}
    for path in paths:
        stem = path.parent / path.stem
        owners = [scene for scene in scenes if str(stem).startswith(f"{scene}_")]
        if owners:
            scene = max(owners, key=lambda owner: len(str(owner)))
            scenes[scene][str(stem)[len(str(scene)) + 1 :]] = path
    return scenes


def _aligned(files: dict[str, Path], kind: str, *, lq_scale: int) -> dict[str, np.ndarray]:
    """Returns the scene's pictures, all of gt's size, lq enlarged. Raises UnreadableImage where one does not fit."""
    pictures = {"gt": read_image(files["gt"]), "sr": read_image(files[kind])}
    if "mask" in files and "syn" in files:
        pictures |= {"mask": read_image(files["mask"])[..., 0], "syn": read_image(files["syn"])}
    shapes = {name: picture.shape[:2] for name, picture in pictures.items()}
    if len(set(shapes.values())) > 1:
        raise UnreadableImage(f"{files[kind].name}: sizes differ ({', '.join(f'{n} {s}' for n, s in shapes.items())})")
    gt = to_tensor(pictures["gt"])[None]
    if "lq" in files:
        lq = to_tensor(read_image(files["lq"]))[None]
        try:
            require_lq(lq, gt)
        except UserError as error:
            raise UnreadableImage(f"{files['lq'].name}: {error}") from None
    elif lq_scale:
        size = [max(side // lq_scale, 4) for side in gt.shape[-2:]]
        lq = functional.interpolate(gt, size=size, mode="bicubic", antialias=True).clamp(0, 1)
        lq = (lq * 255).round() / 255
    else:
        return pictures
    return pictures | {"lq": to_array(enlarge(lq, tuple(gt.shape[-2:]))[0])}


def _crops(
    pictures: dict[str, np.ndarray], scene: str, kind: str, swaps: SampleMaker, crops: CropConfig
) -> list[Sample]:
    """Returns crops on a grid, spread evenly over the picture."""
    height, width = pictures["gt"].shape[:2]
    crop_px, count = crops.crop_px, crops.crops_per_picture
    corners = [(y, x) for y in range(0, height - crop_px + 1, crop_px) for x in range(0, width - crop_px + 1, crop_px)]
    if "mask" in pictures:  # where the defect is known, a crop beside it has nothing to be found
        mask = pictures["mask"] > 0.5
        corners = [(y, x) for y, x in corners if mask[y : y + crop_px, x : x + crop_px].any()]
    chosen = [corners[i * len(corners) // min(count, len(corners))] for i in range(min(count, len(corners)))]
    made = []
    for index, (top, left) in enumerate(chosen):
        cut = {name: p[top : top + crop_px, left : left + crop_px] for name, p in pictures.items()}
        gt, sr = np.ascontiguousarray(cut["gt"]), np.ascontiguousarray(cut["sr"])
        rng = numpy_rng(crops.seed, "triples", scene, kind, index)
        mask = np.ascontiguousarray(cut["mask"]) if "mask" in cut else draw_mask(gt, MaskConfig(), rng).values
        lq = to_tensor(np.ascontiguousarray(cut["lq"])) if "lq" in cut else torch.zeros(3, 0, 0)
        sample = swaps.swap(_blank(gt, lq, scene, kind, index), gt, sr, mask)
        made.append(_named(sample, restorer=kind, syn=cut.get("syn")))
    return made


def _blank(gt: np.ndarray, lq: torch.Tensor, scene: str, kind: str, index: int) -> Sample:
    picture, plane = to_tensor(gt), torch.zeros(1, *gt.shape[:2])
    return Sample(
        gt=picture,
        lq=lq,
        sr=picture,
        syn=picture,
        mask=plane,
        degradation_map=plane,
        sr_degradation_map=plane,
        area=0.0,
        severity=0.0,
        is_control=False,
        restorer=kind,
        mask_kind="drawn",
        source="triples",
        image_id=scene,
        index=index,
    )


def _named(sample: Sample, *, restorer: str, syn: np.ndarray | None = None) -> Sample:
    return replace(sample, restorer=restorer, syn=sample.syn if syn is None else to_tensor(np.ascontiguousarray(syn)))
