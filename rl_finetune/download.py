"""Fetches a policy from the Hub, verified, into a folder that stands alone.

python -m rl_finetune.download repo=user/name revision=main out=runs/downloaded/policy
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.app.entry import run_command
from shared.app.errors import UserError
from shared.app.words import read_words
from shared.hub_names import HUB_PREFIX
from shared.policies.load import load_policy
from shared.policies.policy_hub import holds_policy, locate_policy
from shared.publishing.fetched_folder import put_in_place, require_replaceable


@dataclass(frozen=True)
class DownloadPolicyConfig:
    """Which policy is fetched, and where to."""

    repo: str  # user/name on the Hub
    revision: str | None = None  # branch, tag or commit
    out: str = "runs/downloaded/policy"  # the folder that will hold the policy; nothing but a policy's is replaced


def main(argv: Sequence[str]) -> None:
    config = read_words(DownloadPolicyConfig, argv, expected="repo=user/name")
    out, repo = Path(config.out), config.repo.removeprefix(HUB_PREFIX)
    require_replaceable(out, repo, is_ours=holds_policy(out), what="policy")
    if repo.count("/") != 1 or repo.startswith((".", "/", "~")):
        raise UserError(f"expected a Hub repository user/name, got {config.repo}")
    snapshot = locate_policy(HUB_PREFIX + repo, revision=config.revision)
    policy, spec = load_policy(snapshot)
    put_in_place(snapshot, out, repo=repo, revision=config.revision)
    print(
        f"{out}: {policy.kind}, ×{policy.scale}, {spec.words()}, of {repo}@{config.revision or 'main'} "
        f"(commit {snapshot.name[:12]})"
    )


if __name__ == "__main__":
    run_command(main)
