"""Converts a DiffBIR or LRPO checkpoint to a diffusers folder that is also a policy.

python -m rl_finetune.convert control=v2.pth sd=v2-1_512-ema-pruned.safetensors out=converted/diffbir_v2 scale=4
python -m rl_finetune.convert control=face_full_v1.ckpt out=converted/diffbir_v1_face        # holds the whole model
python -m rl_finetune.convert control=lrpo.pth sd=hf:owner/name@revision out=converted/lrpo  # Stable Diffusion stays there

Files are read as weights alone: one that holds code is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rl_finetune.converting.ldm_checkpoint import Tensors, read_parts
from shared.app.config import require_range
from shared.app.entry import run_command
from shared.app.errors import UserError
from shared.app.words import read_words
from shared.diffusion.sampler import SamplerSpec
from shared.files import personal_path, replace_folder, write_bytes
from shared.policies.policy_folder import CONFIG_FILE
from shared.restorers.pre_restorer import OWN
from shared.restorers.protocol import HUB_PREFIX

CONVERTED_FILE = "converted.json"  # which files the folder was made from


@dataclass(frozen=True)
class ConvertConfig:
    """Which checkpoint becomes which folder."""

    control: str  # the ControlNet's file (.pth, .pt, .ckpt, .safetensors); it may hold the whole model
    # Stable Diffusion's file, where `control` holds the ControlNet alone, or where it stays, as a diffusers folder:
    # hf:owner/name@revision or a folder. Empty: only what `control` holds.
    sd: str = ""
    out: str = "converted/restorer"  # the folder, with a sub-folder for each part; replaced where it was made by this
    # What the UNet predicts: epsilon | v_prediction (DiffBIR v2.1)
    prediction: Literal["epsilon", "v_prediction"] = "epsilon"
    zero_snr: bool = False  # the noise schedule ends in noise alone (DiffBIR v2.1)
    head_channels: int = 64  # width of the UNet's attention heads; 64 in every Stable Diffusion 2
    half: bool = False  # weights in float16, half the bytes
    scale: int = 1  # side of sr / side of lq: 4 for sr, 1 for face
    # What restores lq first: a restorer's folder or file, none (bicubic), or own, the one in `control`; empty: own, if any.
    pre_restorer: str = ""
    steps: int = 50  # network passes a picture, unless a command names others
    eta: float = 1.0  # noise of every step, likewise: 0 none, 1 as DiffBIR draws

    def __post_init__(self) -> None:
        require_range(head_channels=(self.head_channels, 1, 1024), scale=(self.scale, 1, 8))
        require_range(steps=(self.steps, 1, 1000), eta=(self.eta, 0, 1))

    @property
    def sd_stays(self) -> bool:
        """Whether Stable Diffusion is a diffusers folder, which needs no converting."""
        return self.sd.startswith(HUB_PREFIX) or (bool(self.sd) and personal_path(self.sd).is_dir())

    def files(self) -> list[str]:
        """Returns the checkpoints that are read."""
        return [self.control, *([self.sd] if self.sd and not self.sd_stays else [])]


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
        files = {Path(each).name: checksum(Path(each)) for each in config.files()}
        write_bytes(temporary / CONVERTED_FILE, (json.dumps({"sha256": files}, indent=2) + "\n").encode())
        if config.sd_stays or "unet" in written:
            said = policy_config(config, files)
            write_bytes(temporary / CONFIG_FILE, (json.dumps(said, indent=2) + "\n").encode())
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
    return (read_parts(config.sd) if config.sd in config.files()[1:] else {}) | parts


def policy_config(config: ConvertConfig, files: dict[str, str]) -> dict[str, Any]:
    """Returns the content of the config.json that makes a policy of the folder."""
    settings = {"scale": config.scale, "pre_restorer": config.pre_restorer}
    return {
        "kind": "latent_controlnet",
        "policy": settings | ({"controlnet": OWN} if config.sd_stays else {}),
        **({"base": {"repository": config.sd}} if config.sd_stays else {}),
        "sampler": dataclasses.asdict(SamplerSpec(steps=config.steps, eta=config.eta)),
        "provenance": {"converted": files},
    }


def checksum(path: Path) -> str:
    """Returns the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    run_command(main)
