"""The checkpoint folder: config.json with a checksum for every stage's weights, stage_k/model.safetensors, the resolved
training config, metrics.json and a model card. No pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from shared.app.errors import UserError
from shared.app.shipped import find_checkpoint
from shared.files import write_bytes
from shared.hub import fetch_snapshot
from shared.publishing.card_head import CARD_FILE, card_head, stated_licence, with_licence
from shared.publishing.publication import Publication
from shared.weights import read_description, require_no_pointer, tensors_in

CONFIG_FILE, METRICS_FILE, TRAINING_FILE = "config.json", "metrics.json", "train_config.yaml"
CARD_HEAD = {
    "pipeline_tag": "image-classification",
    "tags": ("image-restoration", "reward-model", "image-quality-assessment"),
}
_TEXTS = (".json", ".yaml", ".md", ".tsv")
_FORMAT = 1


def stage_file(stage: int) -> str:
    """Returns the path of a stage's weights inside the folder."""
    return f"stage_{stage}/model.safetensors"


def write_stage(folder: Path, network: Mapping[str, Any], stage: int, weights: Mapping[str, torch.Tensor]) -> None:
    """Writes one stage's weights, then lists them in config.json. Raises UserError for a folder of another network.

    The list comes last: weights that it does not name, or names with another checksum, are never read.
    """
    network = json.loads(json.dumps(network))
    config = {"format": _FORMAT, "network": network, "stages": {}}
    if (folder / CONFIG_FILE).exists():
        config = read_config(folder)
        if config["network"] != network:
            keys = sorted(key for key in network if config["network"].get(key) != network[key])
            raise UserError(f"{folder} holds another network ({', '.join(keys)} differ); choose an empty folder")
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()})
    write_bytes(folder / stage_file(stage), content)
    config["stages"][str(stage)] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    config["stages"] = dict(sorted(config["stages"].items(), key=lambda item: int(item[0])))
    write_bytes(folder / CONFIG_FILE, (json.dumps(config, indent=2) + "\n").encode())


def unlist_stage(folder: Path, stage: int) -> None:
    """Takes a stage off the list in config.json: its weights are no longer read."""
    config = read_config(folder)
    del config["stages"][str(stage)]
    write_bytes(folder / CONFIG_FILE, (json.dumps(config, indent=2) + "\n").encode())


def read_config(folder: Path) -> dict[str, Any]:
    """Returns config.json. Raises UserError when it is missing, cut, or not a reward model's."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"expected a reward-model checkpoint, but {folder} has no {CONFIG_FILE}; train or fetch one")
    try:
        config = read_description(path, advice="fetch or train it again")
        if config["format"] != _FORMAT:
            raise UserError(f"{path} has format {config['format']}, this version reads {_FORMAT}; update restore-rl")
        if not isinstance(config["network"], dict):
            raise ValueError("network")
        for name, listed in config["stages"].items():
            kinds = {"bytes": int, "sha256": str}
            if not (name.isascii() and name.isdigit() and str(int(name)) == name and isinstance(listed, dict)):
                raise ValueError("stages")
            if not all(isinstance(listed[key], kind) for key, kind in kinds.items() if key in listed):
                raise ValueError(f"stage {name}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is cut or not a reward model's ({error}); fetch or train it again") from None
    return config


def read_checkpoint(
    folder_or_repo: str | Path, *, stage: int | None, revision: str | None
) -> tuple[dict[str, Any], int, dict[str, torch.Tensor]]:
    """Returns (network fields, stage, weights) of a folder or of a Hub repository at a revision.

    Raises UserError for whatever is missing or does not match its checksum: a half checkpoint is never used.
    """
    folder = locate_checkpoint(folder_or_repo, revision=revision)
    config = read_config(folder)
    held = sorted(int(name) for name in config["stages"])
    if not held:
        raise UserError(f"{folder} lists no stages in its {CONFIG_FILE}; train or fetch the checkpoint again")
    stage = held[-1] if stage is None else stage
    if stage not in held:
        raise UserError(f"{folder_or_repo} holds stages {', '.join(map(str, held))}, not stage {stage}")
    path = folder / stage_file(stage)
    verify_file(path, config["stages"][str(stage)])
    return config["network"], stage, tensors_in(path, advice="fetch or train the checkpoint again")


def verify_file(path: Path, expected: Mapping[str, Any]) -> None:
    """Raises UserError unless the file is there with the size and sha256 that config.json lists, where it lists them."""
    if not path.is_file():
        raise UserError(f"{path} is missing from the checkpoint; fetch or train it again")
    require_no_pointer(path)
    size = path.stat().st_size
    if size != expected.get("bytes", size):
        raise UserError(f"{path} has {size} bytes, expected {expected['bytes']}; it was cut: fetch or train it again")
    if "sha256" not in expected:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected["sha256"]:
        raise UserError(
            f"{path} has sha256 {found[:12]}…, expected {expected['sha256'][:12]}…; it is damaged: fetch it again"
        )


def locate_checkpoint(folder_or_repo: str | Path, *, revision: str | None = None) -> Path:
    """Returns a local folder as it is, the shipped checkpoint shipped:<name>, or the Hub repository of that name,
    downloaded whole or taken from the cache.
    """
    folder = Path(find_checkpoint(str(folder_or_repo)))
    if folder.is_dir():
        if revision is not None:
            raise UserError(f"revision={revision} belongs to a Hub repository, but {folder} is a folder; leave it out")
        return folder
    name = str(folder_or_repo)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(f"expected a checkpoint folder or a Hub repository user/name, but there is no folder {name}")
    return fetch_snapshot(
        name, revision=revision, patterns=[CONFIG_FILE, "stage_*/model.safetensors", "*.json", "*.yaml", "*.md"]
    )


def verify_checkpoint(folder: Path) -> list[int]:
    """Returns the stages of a folder after checking every one of them against its checksum."""
    config = read_config(folder)
    for name, expected in config["stages"].items():
        verify_file(folder / stage_file(int(name)), expected)
    return sorted(int(name) for name in config["stages"])


def push_checkpoint(
    folder: Path, repo_id: str, *, licence: str = "", revision: str | None = None, private: bool = True
) -> str:
    """Publishes a checkpoint folder on the Hub, after checking that it is whole, and returns the repository's address.

    An empty licence is the one that the folder's card states. Raises UserError where neither states one.
    """
    stages, licence = verify_checkpoint(folder), licence or stated_licence(folder)
    texts = {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.iterdir()) if path.suffix in _TEXTS}
    card = (
        texts.pop(CARD_FILE, None)
        or card_head(licence=licence, **CARD_HEAD) + "\n\n# Reward model for image restoration\n"
    )
    texts |= {CARD_FILE: with_licence(card, licence), CONFIG_FILE: texts.pop(CONFIG_FILE)}
    files = {stage_file(stage): folder / stage_file(stage) for stage in stages}
    return Publication(files, texts).publish(
        repo_id, licence=licence, revision=revision, private=private, message="Upload a restore-rl reward model"
    )
