"""A restorer without a network: finds blocks of known pictures (exemplars) that look like lq, and adds their detail.

The detail is as sharp and natural as a photograph's, but often belongs to something else: the mistake that large
generative restorers make, at the cost of one matrix product. Example-based super-resolution after Freeman,
Jones and Pasztor (2002).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from omegaconf.errors import OmegaConfBaseException
from safetensors.torch import save

from shared.app.config import from_dict, require_range
from shared.app.errors import UserError
from shared.files import write_bytes
from shared.weights import read_description, tensors_in

CONFIG_FILE, TENSORS_FILE = "config.json", "model.safetensors"
_AGAIN = "make them again"


@dataclass(frozen=True)
class ExemplarConfig:
    """How pictures are cut into blocks."""

    scale: int = 4  # side of sr / side of lq: 4 for sr, 1 for face
    cell_px: int = 4  # blocks are compared by the mean colours of cells of this many sr pixels
    block_cells: int = 3  # side of the block that is laid down
    context_cells: int = 1  # compared around it on each side
    margin_px: int = 2  # neighbouring blocks fade into each other over twice this
    nearest: int = 3  # one of so many best matches is taken
    contrast_floor: float = 0.06  # blocks flatter than this do not have their noise blown up to match

    def __post_init__(self) -> None:
        require_range(scale=(self.scale, 1, 8), cell_px=(self.cell_px, 1, 64))
        require_range(block_cells=(self.block_cells, 1, 16), context_cells=(self.context_cells, 0, 8))
        require_range(nearest=(self.nearest, 1, 64), margin_px=(self.margin_px, 0, self.block_px // 2))
        if self.cell_px % self.scale:
            raise ValueError(f"cell_px must be a multiple of scale {self.scale}, got {self.cell_px}")

    @property
    def block_px(self) -> int:
        return self.block_cells * self.cell_px


def upsampled(lq: torch.Tensor, scale: int) -> torch.Tensor:
    """Returns what detail is added to, [B, 3, scale·h, scale·w]."""
    return lq if scale == 1 else F.interpolate(lq, scale_factor=scale, mode="bicubic", align_corners=False).clamp(0, 1)


def block_keys(lq: torch.Tensor, config: ExemplarConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns ([B, N, D] what the blocks look like, [B, N] their contrast), blocks in reading order.

    A key is the block's cells and those around it, less their mean colour, over their contrast.
    """
    cells = F.avg_pool2d(lq, config.cell_px // config.scale) if config.cell_px > config.scale else lq
    border, side = config.context_cells, config.block_cells + 2 * config.context_cells
    patches = F.unfold(F.pad(cells, (border,) * 4, mode="replicate"), side, stride=config.block_cells)
    patches = patches.transpose(1, 2).unflatten(2, (3, -1))  # [B, N, 3, side²]
    patches = patches - patches.mean(dim=3, keepdim=True)
    contrast = patches.pow(2).mean(dim=(2, 3)).sqrt() + config.contrast_floor
    return (patches / contrast[..., None, None]).flatten(2), contrast


def block_details(gt: torch.Tensor, lq: torch.Tensor, config: ExemplarConfig) -> torch.Tensor:
    """Returns gt less the up-sampled lq around every block, [B, N, 3, P, P], P = block + two margins."""
    margin, side = config.margin_px, config.block_px + 2 * config.margin_px
    missing = F.pad(gt - upsampled(lq, config.scale), (margin,) * 4, mode="replicate")
    return F.unfold(missing, side, stride=config.block_px).transpose(1, 2).unflatten(2, (3, side, side))


def require_blocks(config: ExemplarConfig, keys: torch.Tensor, details: torch.Tensor) -> None:
    """Raises ValueError unless these are the keys [K, D] and details [K, 3, P, P] of such blocks, enough to pick from."""
    side = config.block_px + 2 * config.margin_px
    wanted = (3 * (config.block_cells + 2 * config.context_cells) ** 2,), (3, side, side)
    if keys.ndim < 2 or (keys.shape[1:], details.shape[1:]) != wanted or len(keys) != len(details):
        raise ValueError(f"keys {list(keys.shape)} and details {list(details.shape)} are not of blocks as described")
    if len(keys) < config.nearest:
        raise ValueError(f"{len(keys)} blocks, expected at least the {config.nearest} that are picked from")


class ExemplarRestorer:
    """Blocks of known pictures as a Restorer, with its folder on disk."""

    def __init__(self, config: ExemplarConfig, keys: torch.Tensor, details: torch.Tensor) -> None:
        self.config = config
        self.keys = keys  # [K, D] as block_keys gives them
        self.details = details  # [K, 3, P, P] over their block's contrast
        self.scale = config.scale

    @classmethod
    def from_folder(cls, folder: str | Path) -> ExemplarRestorer:
        """Returns the restorer that `save` wrote. Raises UserError when the folder holds none."""
        folder = Path(folder)
        try:
            config = from_dict(ExemplarConfig, read_description(folder / CONFIG_FILE, advice=_AGAIN)["exemplars"])
            tensors = tensors_in(folder / TENSORS_FILE, advice=_AGAIN)
            keys, details = tensors["keys"].float(), tensors["details"].float()
            require_blocks(config, keys, details)
            return cls(config, keys, details)
        except FileNotFoundError as error:
            raise UserError(f"no {Path(error.filename).name} in {folder}: it is no finished restorer") from None
        except (OmegaConfBaseException, KeyError, TypeError, ValueError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"{folder} holds no exemplars ({reason}); {_AGAIN}") from None

    def save(self, folder: str | Path) -> None:
        """Writes `model.safetensors`, then `config.json`, each whole."""
        tensors = {"keys": self.keys.half().contiguous(), "details": self.details.half().contiguous()}
        write_bytes(Path(folder) / TENSORS_FILE, save(tensors))
        content = {"kind": "exemplar", "exemplars": dataclasses.asdict(self.config)}
        write_bytes(Path(folder) / CONFIG_FILE, (json.dumps(content, indent=2) + "\n").encode())

    @torch.no_grad()
    def restore(self, lq: torch.Tensor, *, sample_seeds: Sequence[int]) -> torch.Tensor:
        """Returns sr [B, 3, scale·h, scale·w] in [0, 1]; each seed picks among the nearest blocks of its picture."""
        height, width = (side * self.scale for side in lq.shape[-2:])
        block_lq_px = self.config.block_px // self.scale
        pad_h, pad_w = -lq.shape[-2] % block_lq_px, -lq.shape[-1] % block_lq_px
        padded = F.pad(lq, (0, pad_w, 0, pad_h), mode="replicate")
        restored = [self._restore_one(one[None], int(s)) for one, s in zip(padded, sample_seeds, strict=True)]
        return torch.cat(restored)[..., :height, :width]

    def _restore_one(self, lq: torch.Tensor, seed: int) -> torch.Tensor:
        keys, contrast = block_keys(lq, self.config)
        known = self.keys.to(lq.device)
        distance = known.pow(2).sum(dim=1) - 2 * keys[0] @ known.T  # less |key|², the same for every exemplar
        best = distance.topk(self.config.nearest, largest=False).indices
        picks = torch.randint(self.config.nearest, (len(best), 1), generator=torch.Generator().manual_seed(seed))
        chosen = best.gather(1, picks.to(lq.device))[:, 0]
        detail = self.details.to(lq.device)[chosen] * contrast[0][:, None, None, None]
        base = upsampled(lq, self.scale)
        return (base + self._lay(detail, base.shape[-2:])).clamp(0, 1)

    def _lay(self, blocks: torch.Tensor, size: torch.Size) -> torch.Tensor:
        # Overlapping blocks [N, 3, P, P] fade into each other: every pixel is their mean by a window that falls off.
        margin, side = self.config.margin_px, blocks.shape[-1]
        ramp = (torch.arange(side, device=blocks.device) + 0.5) / (2 * margin) if margin else torch.ones(side)
        edge = torch.minimum(ramp, ramp.flip(0)).clamp(max=1)
        window = edge[:, None] * edge
        fold = torch.nn.Fold((size[0] + 2 * margin, size[1] + 2 * margin), side, stride=self.config.block_px)
        laid = fold((blocks * window).flatten(1).T[None])
        weight = fold(window.flatten()[None, :, None].expand(1, -1, len(blocks)))
        return (laid / weight)[..., margin : margin + size[0], margin : margin + size[1]]
