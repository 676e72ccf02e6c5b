"""The yaml head of a model or dataset card, which the Hub reads: licence, task, tags, what a model was made from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

CARD_FILE = "README.md"


def card_head(*, licence: str, pipeline_tag: str, tags: Sequence[str], base: str = "") -> str:
    """Returns a model card's head; an empty licence and an empty base (owner/name on the Hub) are left out."""
    lines = [
        *([f"license: {licence}"] if licence else []),
        *([f"base_model: {base}"] if base else []),
        "library_name: restore-rl",
        f"pipeline_tag: {pipeline_tag}",
        f"tags: [{', '.join(tags)}]",
    ]
    return "\n".join(["---", *lines, "---"])


def stated_licence(folder: Path) -> str:
    """Returns the licence in the head of the folder's card; empty where there is no card or it states none."""
    card = folder / CARD_FILE
    found = re.search(r"^license: (\S+)$", card.read_text(encoding="utf-8"), re.MULTILINE) if card.is_file() else None
    return found.group(1) if found else ""


def with_licence(card: str, licence: str) -> str:
    """Returns the card with this licence in its head, which it gets where it has none."""
    line = f"license: {licence}"
    if not card.startswith("---\n"):
        return f"---\n{line}\n---\n\n{card}"
    head, _, body = card.removeprefix("---\n").partition("\n---")
    kept = [each for each in head.splitlines() if not each.startswith("license:")]
    place = next((i for i, each in enumerate(head.splitlines()) if each.startswith("license:")), 0)
    return "\n".join(["---", *kept[:place], line, *kept[place:]]) + f"\n---{body}"
