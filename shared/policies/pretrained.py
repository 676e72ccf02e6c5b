"""A policy with its sampler, as a person uses it in three lines: from a folder or the Hub, and back."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Self

from shared.diffusion.sampler import SamplerSpec
from shared.hub_names import HUB_PREFIX
from shared.policies.interface import DiffusionPolicy
from shared.policies.load import load_policy
from shared.policies.policy_folder import read_policy_config, save_policy
from shared.policies.policy_hub import locate_policy, publication_of_policy
from shared.policies.policy_restorer import PolicyRestorer


class PretrainedPolicy(PolicyRestorer):
    """A restorer that is a diffusion policy; `policy` is the network, `spec` its sampler."""

    def __init__(self, policy: DiffusionPolicy, spec: SamplerSpec, *, provenance: dict[str, Any] | None = None) -> None:
        super().__init__(policy, spec)
        self.provenance = provenance or {}

    @classmethod
    def from_pretrained(cls, where: str | Path, *, revision: str | None = None) -> Self:
        """Returns the policy in a folder, shipped:<name>, or in a Hub repository, owner/name, at a revision.

        Raises UserError where there is none, or it is not whole.
        """
        name = str(where)
        if name.count("/") == 1 and not name.startswith((HUB_PREFIX, ".", "/", "~")) and not Path(name).is_dir():
            name = HUB_PREFIX + name
        folder = locate_policy(name, revision=revision)
        policy, spec = load_policy(folder)
        return cls(policy, spec, provenance=read_policy_config(folder).get("provenance"))

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes weights and config.json into a folder, from which `from_pretrained` reads."""
        save_policy(Path(folder), self.policy, self.spec, provenance=self.provenance)

    def push_to_hub(self, repo_id: str, *, licence: str, revision: str | None = None, private: bool = True) -> str:
        """Publishes the policy with a card and returns the repository's address. Raises UserError when the Hub refuses."""
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return publication_of_policy(Path(folder), repo_id, licence=licence, revision=revision).publish(
                repo_id, licence=licence, revision=revision, private=private, message="Upload a restore-rl policy"
            )
