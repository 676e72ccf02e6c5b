"""Policies on the Hub: found by name at a revision, verified, and what is sent where one is published."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.app.errors import UserError
from shared.app.shipped import PREFIX, find_checkpoint
from shared.hub import fetch_snapshot
from shared.hub_names import HUB_PREFIX, HubName
from shared.policies.adapters import KINDS, policy_class
from shared.policies.interface import Origin
from shared.policies.policy_folder import CONFIG_FILE, read_policy_config, require_checksums
from shared.publishing.card_head import CARD_FILE
from shared.publishing.hub_card import PICTURES_FILE, card_of
from shared.publishing.portable_settings import portable
from shared.publishing.publication import Publication
from shared.restorers.interpolation import BUILT_IN
from shared.restorers.pre_restorer import NONE, OWN, STAGES
from shared.restorers.protocol import PIPELINE_INDEX
from shared.restorers.published import WHEEL_NETWORKS
from shared.weights import read_description

SETTINGS_FILE = "train_config.yaml"
_WHOLE = (CONFIG_FILE, "*.safetensors", "*/*.json", CARD_FILE, PICTURES_FILE, SETTINGS_FILE)


def locate_policy(where: str | Path, *, revision: str | None = None) -> Path:
    """Returns the folder of a policy: a local one as it is, shipped:<name>, or hf:owner/name@revision, fetched whole.

    Raises UserError for a repository that holds no policy, and for whatever is missing from it or damaged.
    """
    name = HubName.parse(str(where), revision=revision)
    if name is None:
        if revision is not None:
            raise UserError(f"revision={revision} belongs to a policy hf:owner/name, but {where} is none; leave it out")
        return Path(find_checkpoint(str(where)))
    folder = None if name.file else fetch_policy(name)
    if folder is None:
        raise UserError(f"expected a policy's repository, but {name} holds none ({', '.join(KINDS)}); name another")
    return folder


def fetch_policy(name: HubName) -> Path | None:
    """Returns the local copy of a policy's repository, or None where it holds something else, of which nothing is fetched."""
    index = fetch_snapshot(name.repo, revision=name.revision, patterns=[CONFIG_FILE, PIPELINE_INDEX])
    if not (index / CONFIG_FILE).is_file():
        return None
    kind = read_description(index / CONFIG_FILE, advice="name another revision").get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        return None
    return fetch_snapshot(name.repo, revision=name.revision, patterns=_WHOLE)


def holds_policy(folder: Path) -> bool:
    """Whether a folder says of itself that it is a policy's, whole or not."""
    try:
        policy_class(read_policy_config(folder).get("kind"), where=str(folder))
    except UserError:
        return False
    return True


def publication_of_policy(
    folder: Path,
    repo_id: str,
    *,
    licence: str,
    revision: str | None = None,
    sections: str = "",
    texts: Mapping[str, str] | None = None,
) -> Publication:
    """Returns what is sent of the policy in `folder`: its weights as they lie, and texts free of this machine's places.

    The card ends in `sections`, or, where they are empty, in those of the folder's own card. Raises UserError where
    weights are missing or not those that were saved, and where the policy stands on a restorer of this machine alone.
    """
    config = read_policy_config(folder)
    policy_class(config.get("kind"), where=str(folder))
    require_checksums(folder, config)
    require_travelling(origin_in(config), folder)
    weights = list(config.get("sha256", {}))
    beside = {path for name in weights for path in (folder / name).parent.glob("*.json") if path.parent != folder}
    described = {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in sorted(beside)}
    kept = {
        name: (folder / name).read_text(encoding="utf-8")
        for name in (PICTURES_FILE, SETTINGS_FILE)
        if (folder / name).is_file()
    }
    said = json.dumps(portable(config), indent=2) + "\n"
    card = card_of(folder, config, HubName(repo_id, revision), licence=licence, sections=sections)
    return Publication(
        {name: folder / name for name in weights},
        {**described, **kept, **(texts or {}), CARD_FILE: card, CONFIG_FILE: said},
    )


def origin_in(config: Mapping[str, Any]) -> Origin:
    """Returns what a policy's config.json says of its kind's settings and of its base's repository."""
    return Origin(config.get("policy", {}), **config.get("base", {}))


def require_travelling(origin: Origin, folder: Path) -> None:
    """Raises UserError where the policy in `folder` needs a network that would not be there on another machine."""
    for stage in (*STAGES, "controlnet"):
        where = origin.architecture.get(stage) or NONE  # empty: the base's own
        if where not in (NONE, OWN, *WHEEL_NETWORKS, *BUILT_IN) and not where.startswith((HUB_PREFIX, PREFIX)):
            raise UserError(
                f"the policy in {folder} has the {stage} {where}, which does not ship with it: train one with its own"
            )
    if origin.repository and not origin.repository.startswith(HUB_PREFIX):
        raise UserError(
            f"the policy in {folder} is tuned from {origin.repository}, which is on this machine alone: put the base on the "
            f"Hub first, and name it {HUB_PREFIX}owner/name"
        )
