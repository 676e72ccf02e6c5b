"""Converts a DiffBIR or LRPO checkpoint, in the layout of latent diffusion, to a diffusers folder.

python -m rl_finetune.convert control=v2.pth sd=v2-1_512-ema-pruned.safetensors out=converted/diffbir_v2
python -m rl_finetune.convert control=face_full_v1.ckpt out=converted/diffbir_v1_face        # holds the whole model
python -m rl_finetune.convert control=lrpo.pth out=converted/lrpo                            # the ControlNet alone

Files are read as weights alone: one that holds code is refused.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rl_finetune.converting.ldm_checkpoint import Tensors, read_parts
from shared.app.config import require_range
from shared.app.entry import run_command
from shared.app.errors import UserError
from shared.app.words import read_words
from shared.files import replace_folder, write_bytes

CONVERTED_FILE = "converted.json"  # which files the folder was made from


@dataclass(frozen=True)
class ConvertConfig:
    """Which checkpoint becomes which folder."""

    control: str  # the ControlNet's file (.pth, .pt, .ckpt, .safetensors); it may hold the whole model
    sd: str = (
        ""  # Stable Diffusion's file, where `control` holds the ControlNet alone; empty: only what `control` holds
    )
    out: str = "converted/restorer"  # the folder, with a sub-folder for each part; replaced where it was made by this
    # What the UNet predicts: epsilon | v_prediction (DiffBIR v2.1)
    prediction: Literal["epsilon", "v_prediction"] = "epsilon"
    zero_snr: bool = False  # the noise schedule ends in noise alone (DiffBIR v2.1)
    head_channels: int = 64  # width of the UNet's attention heads; 64 in every Stable Diffusion 2
    half: bool = False  # weights in float16, half the bytes

    def __post_init__(self) -> None:
        require_range(head_channels=(self.head_channels, 1, 1024))


def main(argv: Sequence[str]) -> None:
    config = read_words(ConvertConfig, argv, expected="control=<a checkpoint's file>")
    out = Path(config.out)
    if out.exists() and not (out / CONVERTED_FILE).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there and was not made by this command; choose another folder with out=")
    parts = parts_of(config)
    from rl_finetune.converting.diffusers_folder import scheduler_of, write_parts  # diffusers takes seconds to import

    temporary = out.with_name(f"{out.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        written = write_parts(temporary, parts, head_channels=config.head_channels, half=config.half)
        if "unet" in written:
            scheduler_of(config.prediction, config.zero_snr).save_pretrained(temporary / "scheduler")
            written.append("scheduler")
        files = {Path(each).name: checksum(Path(each)) for each in (config.control, config.sd) if each}
        write_bytes(temporary / CONVERTED_FILE, (json.dumps({"sha256": files}, indent=2) + "\n").encode())
        replace_folder(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"{out}: {', '.join(written)}")


def parts_of(config: ConvertConfig) -> dict[str, Tensors]:
    """Returns every part's tensors; those of `control` come first. Raises UserError where there is no ControlNet."""
    parts = read_parts(config.control)
    if "controlnet" not in parts:
        raise UserError(
            f"{config.control} holds {', '.join(parts)} and no ControlNet: name the restorer's own file with control=, "
            "and Stable Diffusion's with sd="
        )
    return (read_parts(config.sd) if config.sd else {}) | parts


def checksum(path: Path) -> str:
    """Returns the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    run_command(main)
