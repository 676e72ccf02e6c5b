"""Where a defect goes: random regions and regions of the picture itself, of a chosen area, with feathered edges.

Every random kind draws a field over the picture and keeps its lowest values, so the region has the asked area exactly;
superpixels and SAM regions follow the picture's own edges and come as near to the area as their pieces allow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

from shared.app.config import require_range
from shared.app.errors import UserError
from shared.vision.images import to_uint8

SAM = "sam"


@dataclass(frozen=True)
class MaskConfig:
    """How regions are drawn."""

    # Kinds of region, drawn with equal chance; also "sam".
    kinds: tuple[str, ...] = ("strokes", "blobs", "polygons", "superpixels")
    area_min: float = 0.005  # least share of the picture that a region covers; drawn log-uniformly
    area_max: float = 0.4  # greatest share of the picture that a region covers
    feather_min_px: float = 1.0  # least width of the soft edge, centred on the region's border
    feather_max_px: float = 6.0  # greatest width of the soft edge
    sam_model: str = "facebook/sam-vit-base"  # Hub id, used by the kind "sam" alone

    def __post_init__(self) -> None:
        require_range(
            area_min=(self.area_min, 1e-4, self.area_max),
            area_max=(self.area_max, self.area_min, 0.95),
            feather_min_px=(self.feather_min_px, 0.0, self.feather_max_px),
            feather_max_px=(self.feather_max_px, self.feather_min_px, 64.0),
        )
        unknown = set(self.kinds) - REGIONS.keys()
        if unknown or not self.kinds:
            raise ValueError(
                f"masks.kinds must be some of {', '.join(REGIONS)}, got {', '.join(sorted(unknown)) or 'none'}"
            )


@dataclass(frozen=True)
class Mask:
    """One region of a picture and how it was drawn."""

    values: np.ndarray  # [H, W] float32 in [0, 1]; 0 outside, 1 in the core
    kind: str
    feather_px: float


def draw_mask(gt: np.ndarray, config: MaskConfig, rng: np.random.Generator, *, device: str = "cpu") -> Mask:
    """Returns one feathered region of `gt`, [H, W, 3] in [0, 1], drawn from `rng` alone; never empty.

    `device` is SAM's.
    """
    kind = config.kinds[int(rng.integers(len(config.kinds)))]
    area = math.exp(rng.uniform(math.log(config.area_min), math.log(config.area_max)))
    feather_px = rng.uniform(config.feather_min_px, config.feather_max_px)
    of_sam = {"model": config.sam_model, "device": device} if kind == SAM else {}
    region = REGIONS[kind](gt, area, rng, **of_sam)
    return Mask(feather(region, feather_px), kind, feather_px)


def feather(region: np.ndarray, width_px: float) -> np.ndarray:
    """Returns the [H, W] bool region with a soft edge as float32: exactly 1 in the core, exactly 0 away from it.

    The edge is a smooth step across the border, `width_px` wide but never wider than the region is thick, so that a
    thin stroke still reaches 1.
    """
    if region.all():
        return np.ones(region.shape, np.float32)
    inside, outside = distance_transform_edt(region), distance_transform_edt(~region)
    half_width = min(width_px / 2, float(inside.max()) - 0.5)
    if half_width <= 0:
        return region.astype(np.float32)
    # Pixel centres lie half a pixel from the border that runs between them.
    signed = np.where(region, inside - 0.5, 0.5 - outside)
    ramp = np.clip((signed + half_width) / (2 * half_width), 0.0, 1.0)
    return (ramp * ramp * (3 - 2 * ramp)).astype(np.float32)


def strokes(gt: np.ndarray, area: float, rng: np.random.Generator) -> np.ndarray:
    """Returns one to three curved brush strokes, [H, W] bool."""
    height, width = gt.shape[:2]
    canvas = np.ones((height, width), np.uint8)
    for _ in range(int(rng.integers(1, 4))):
        position = rng.uniform((0, 0), (width, height))
        heading, bend = rng.uniform(0, 2 * math.pi), rng.normal(0, 0.35)
        points = [position]
        for _ in range(int(rng.integers(4, 14))):
            heading += bend + rng.normal(0, 0.35)
            position = position + 0.07 * (height + width) / 2 * np.array([math.cos(heading), math.sin(heading)])
            points.append(position)
        cv2.polylines(canvas, [np.round(points).astype(np.int32)], False, 0)
    # Not OpenCV's transform: its last bit depends on where the picture lies in memory.
    return _lowest(distance_transform_edt(canvas), area)


def blobs(gt: np.ndarray, area: float, rng: np.random.Generator) -> np.ndarray:
    """Returns one soft-outlined blob, sometimes with islands around it, [H, W] bool."""
    height, width = gt.shape[:2]
    radius_px = math.sqrt(area * height * width / math.pi)
    noise = rng.standard_normal((height, width)).astype(np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), max(1.0, radius_px * rng.uniform(0.25, 0.6)))
    centre_y, centre_x = rng.uniform(0, height), rng.uniform(0, width)
    rows, columns = np.ogrid[:height, :width]
    distance = np.hypot(rows - centre_y, columns - centre_x) / radius_px
    return _lowest(distance + rng.uniform(0.2, 0.8) * noise / noise.std(), area)


def polygons(gt: np.ndarray, area: float, rng: np.random.Generator) -> np.ndarray:
    """Returns one straight-edged star-shaped polygon of 3 to 9 corners, [H, W] bool."""
    height, width = gt.shape[:2]
    corners = int(rng.integers(3, 10))
    # One corner in each equal sector keeps every turn below a half circle.
    angles = (np.arange(corners) + rng.uniform(0.1, 0.9, corners)) * 2 * math.pi / corners
    reach = rng.uniform(0.5, 1.0, corners)
    stretch = rng.uniform(0.5, 1.0)
    outline = np.stack([reach * np.cos(angles), stretch * reach * np.sin(angles)], axis=1)
    centre = rng.uniform((0.1 * width, 0.1 * height), (0.9 * width, 0.9 * height))
    return _lowest(_polygon_gauge(outline, centre, (height, width)), area)


def superpixels(gt: np.ndarray, area: float, rng: np.random.Generator) -> np.ndarray:
    """Returns neighbouring SLIC superpixels grown from a random one until they fill the area, [H, W] bool."""
    from skimage.segmentation import slic  # half a second to import, and other kinds do without it

    count = int(np.clip(round(int(rng.integers(1, 5)) / area), 8, gt.shape[0] * gt.shape[1] // 16))
    labels = slic(gt, n_segments=count, compactness=10.0, max_num_iter=3, start_label=0, enforce_connectivity=True)
    order = _nearest_pieces(labels, int(rng.integers(labels.size)))
    shares = np.bincount(labels.ravel())[order].cumsum() / labels.size
    nearest = int(np.argmin(np.abs(np.log(shares / area))))
    if shares[nearest] > 1.25 * area:  # a flat picture has no pieces that small
        return blobs(gt, area, rng)
    return np.isin(labels, order[: 1 + nearest])


def sam_region(
    gt: np.ndarray, area: float, rng: np.random.Generator, *, model: str = MaskConfig.sam_model, device: str = "cpu"
) -> np.ndarray:
    """Returns the segment, among the ten nearest in area that Segment Anything finds, that `rng` picks, [H, W] bool."""
    from PIL import Image

    found = _sam_pipeline(model, device)(Image.fromarray(to_uint8(gt)))["masks"]
    segments = [torch.as_tensor(mask).cpu().numpy().astype(bool) for mask in found]
    segments = [segment for segment in segments if segment.any()]
    if not segments:  # a flat picture has no parts
        return blobs(gt, area, rng)
    nearest = sorted(segments, key=lambda segment: abs(math.log(segment.mean() / area)))[:10]
    return nearest[int(rng.integers(len(nearest)))]


REGIONS: dict[str, Callable[..., np.ndarray]] = {
    "strokes": strokes,
    "blobs": blobs,
    "polygons": polygons,
    "superpixels": superpixels,
    SAM: sam_region,
}


@cache
def _sam_pipeline(model: str, device: str):
    try:
        from transformers import pipeline  # optional, and slow to import

        return pipeline("mask-generation", model=model, device=device)
    except ImportError:
        raise UserError("masks.kinds names sam, which needs transformers: pip install 'restore-rl[clip]'") from None
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"could not load SAM from {model} ({reason}); set masks.sam_model, or drop sam") from None


def _lowest(field: np.ndarray, area: float) -> np.ndarray:
    # The region of exactly round(area · pixels) pixels, at least one, where the field is lowest; ties in reading order.
    count = max(1, round(area * field.size))
    region = np.zeros(field.size, bool)
    region[np.argsort(field, axis=None, kind="stable")[:count]] = True
    return region.reshape(field.shape)


def _polygon_gauge(outline: np.ndarray, centre: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    # How far the outline must be blown up around its centre to touch each pixel: 1 on the polygon, less inside.
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float64)
    dx, dy = columns - centre[0], rows - centre[1]
    gauge = np.full(shape, np.inf)
    for (ax, ay), (bx, by) in zip(outline, np.roll(outline, -1, axis=0), strict=True):
        # The pixel is u·a + v·b; within the sector of this edge both are at least 0, and u + v is the gauge.
        determinant = ax * by - ay * bx
        u, v = (dx * by - dy * bx) / determinant, (ax * dy - ay * dx) / determinant
        gauge = np.where((u >= -1e-9) & (v >= -1e-9), np.minimum(gauge, u + v), gauge)
    return gauge


def _nearest_pieces(labels: np.ndarray, seed_pixel: int) -> np.ndarray:
    # Labels ordered by how near their centre lies to the seed pixel's own piece, which comes first.
    rows, columns = np.indices(labels.shape)
    sizes = np.maximum(np.bincount(labels.ravel()), 1)
    centre_y = np.bincount(labels.ravel(), rows.ravel()) / sizes
    centre_x = np.bincount(labels.ravel(), columns.ravel()) / sizes
    first = labels.ravel()[seed_pixel]
    return np.argsort(np.hypot(centre_y - centre_y[first], centre_x - centre_x[first]), kind="stable")
