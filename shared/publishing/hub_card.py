"""The card of a policy on the Hub: what it is, three lines that use it, its base, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.app.errors import UserError
from shared.app.shipped import PREFIX, find_checkpoint
from shared.hub import fetch_snapshot
from shared.hub_names import HubName
from shared.publishing.card_head import CARD_FILE, card_head, stated_licence

PICTURES_FILE = "pictures.tsv"
CARD_HEAD: dict[str, Any] = {"pipeline_tag": "image-to-image", "tags": ("image-restoration", "diffusion")}
_TITLES = {1: "Restoration policy of the same size", 4: "×4 super-resolution policy"}


def card_of(folder: Path, config: Mapping[str, Any], name: HubName, *, licence: str, sections: str) -> str:
    """Returns the card as markdown with the Hub's yaml head; `config` is the policy's config.json.

    Ends in `sections`, or in those of the folder's own card where they are empty.
    """
    scale = config.get("policy", {}).get("scale", 1)
    base = base_of(config)
    at = f', revision="{name.revision}"' if name.revision else ""
    return (
        "\n\n".join(
            part
            for part in (
                card_head(
                    licence=licence, base=base[0].repo if base and isinstance(base[0], HubName) else "", **CARD_HEAD
                ),
                f"# {_TITLES.get(scale, f'Restoration policy, ×{scale}')}",
                f"A diffusion restorer (`{config['kind']}`) that {_does(scale)}.",
                "```python\nfrom shared.policies.pretrained import PretrainedPolicy\n"
                f'policy = PretrainedPolicy.from_pretrained("{name.repo}"{at})\n'
                "sr = policy.restore(lq, sample_seeds=[0])  # lq: [1, 3, h, w], RGB in [0, 1]\n```",
                f"```sh\nrestore-rl restore in=old.jpg out=restored policy={HubName(name.repo, name.revision)}\n```",
                _base_section(base),
                (sections or own_sections(folder)).strip(),
            )
            if part
        )
        + "\n"
    )


def base_of(config: Mapping[str, Any]) -> tuple[HubName | str, str] | None:
    """Returns the base that a policy stands on or was tuned from, and its licence; None where it is a run's own."""
    stands_on, tuned_from = config.get("base", {}), str(config.get("provenance", {}).get("base", ""))
    if tuned_from.startswith(PREFIX):
        return tuned_from, _licence_in(Path(find_checkpoint(tuned_from)))
    name = HubName.parse(stands_on.get("repository") or tuned_from)
    if name is None:
        return None
    name = HubName(name.repo, stands_on.get("revision") or name.revision)  # the commit, where it is known
    try:
        return name, _licence_in(fetch_snapshot(name.repo, revision=name.revision, patterns=[CARD_FILE]))
    except UserError:  # not to be reached, or without a card
        return name, _licence_in(Path())


def own_sections(folder: Path) -> str:
    """Returns the sections of a folder's own card, from the first of them on; empty where there are none."""
    card = folder / CARD_FILE
    _, found, rest = card.read_text(encoding="utf-8").partition("\n## ") if card.is_file() else ("", "", "")
    return found + rest


def _does(scale: int) -> str:
    return f"enlarges {scale} times" if scale > 1 else "keeps the size"


def _licence_in(folder: Path) -> str:
    return (stated_licence(folder) if folder != Path() else "") or "not stated: see its page"


def _base_section(base: tuple[HubName | str, str] | None) -> str:
    if base is None:
        return ""
    name, licence = base
    where = (
        f"`{name.repo}`, revision `{name.revision or 'main'}`"
        if isinstance(name, HubName)
        else f"`{name}` of restore-rl"
    )
    return f"## Base\n\n| Repository | Licence |\n|---|---|\n| {where} | {licence} |"
