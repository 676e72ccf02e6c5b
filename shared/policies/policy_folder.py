"""A policy's folder: config.json, which says what it is, and the weights beside it with their checksums."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.app.errors import UserError
from shared.app.shipped import find_checkpoint
from shared.diffusion.sampler import SamplerSpec
from shared.files import write_bytes, written_whole
from shared.lora import save_adapters
from shared.policies.interface import DiffusionPolicy
from shared.weights import read_description, require_no_pointer

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
AGAIN = "train or download it again"


def save_policy(
    folder: Path, policy: DiffusionPolicy, spec: SamplerSpec, *, provenance: dict[str, Any], half: bool = False
) -> None:
    """Saves a policy: its weights (float16 where `half`), then `config.json`, each file whole.

    Of one that began as a repository's model, what was trained: parts in diffusers' folders, and adapters in the file that
    its `load_lora_weights` reads.

    `config.json` holds kind, architecture, the sampler spec, the provenance, where the base's weights are if they are not
    in the folder, and the sha256 of every file of weights.
    """
    weights, origin = policy.save_weights(folder, half=half), policy.origin()
    if origin.repository:  # the adapters of parts that are in no file as a whole
        others = {name: p for name, p in policy.parts().items() if not any(w.startswith(f"{name}/") for w in weights)}
        weights = [*weights, *save_adapters(others, folder, half=half)]
    config = {
        "kind": policy.kind,
        "policy": dict(origin.architecture),
        **({"base": {"repository": origin.repository, "revision": origin.revision}} if origin.repository else {}),
        "sampler": dataclasses.asdict(spec),
        "provenance": provenance,
        "sha256": {name: _sha256(folder / name) for name in weights},
    }
    write_bytes(folder / CONFIG_FILE, (json.dumps(config, indent=2) + "\n").encode())


def copy_saved_policy(source: Path, folder: Path, *, provenance: Mapping[str, Any] | None = None) -> None:
    """Copies the policy saved in `source` into another folder, its weights as they lie, each file whole.

    `provenance` is added to its own.
    """
    config = read_policy_config(source)
    weights = [source / name for name in config["sha256"]]
    described = {path for file in weights if file.parent != source for path in file.parent.glob("*.json")}
    for path in (*weights, *sorted(described)):
        with written_whole(folder / path.relative_to(source)) as temporary:
            shutil.copyfile(path, temporary)
    config["provenance"] = {**config.get("provenance", {}), **(provenance or {})}
    write_bytes(folder / CONFIG_FILE, (json.dumps(config, indent=2) + "\n").encode())


def refer_to(folder: Path, stages: Mapping[str, str]) -> None:
    """Lets the policy saved in `folder` find some of its own restorers elsewhere, {role: where}: they leave its folder."""
    if not stages:
        return
    config = read_policy_config(folder)
    config["policy"] |= stages
    own = {name: digest for name, digest in config["sha256"].items() if Path(name).parts[0] not in stages}
    write_bytes(folder / CONFIG_FILE, (json.dumps(config | {"sha256": own}, indent=2) + "\n").encode())
    for stage in stages:
        shutil.rmtree(folder / stage)


def read_policy_config(folder: Path) -> dict[str, Any]:
    """Returns what the restorer in `folder` says of itself. Raises UserError where it says nothing, or is damaged."""
    try:
        return read_description(folder / CONFIG_FILE, advice=AGAIN)
    except FileNotFoundError:
        raise UserError(f"no {CONFIG_FILE} in {folder}: it is no finished restorer; train it first") from None


def read_provenance(folder: str | Path) -> dict[str, Any]:
    """Returns what the policy saved in `folder` says of where it comes from. Raises UserError when there is none."""
    return read_policy_config(Path(find_checkpoint(str(folder)))).get("provenance", {})


def require_checksums(folder: Path, config: dict[str, Any]) -> None:
    """Raises UserError unless every file that a policy's config lists lies in its folder and is the one that was saved."""
    listed = config.get("sha256", {})
    if not isinstance(listed, dict) or not all(_lies_within(name) for name in listed):
        raise UserError(f"{folder / CONFIG_FILE} lists checksums of files that a policy has not; {AGAIN}")
    for name, digest in listed.items():
        require_no_pointer(folder / name)
        if not (folder / name).is_file() or _sha256(folder / name) != digest:
            raise UserError(
                f"{folder / name} is not the file that was saved (sha256 {str(digest)[:12]}…): fetch it again"
            )


def _lies_within(name: str) -> bool:
    """Whether a listed file is weights in the policy's own folder."""
    path = Path(name)
    return path.suffix == ".safetensors" and not path.is_absolute() and ".." not in path.parts


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
