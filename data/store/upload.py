"""Pushes a finished dataset to the Hub: its files, its card with the licence that was asked for, and no local path."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

from omegaconf import OmegaConf

from data.store.config import BuildConfig, public_settings
from data.store.parquet import DATA_FOLDER, INPUTS_FILE, NORMALISER_FILE
from shared.files import link_or_copy, storable, write_bytes
from shared.hub import upload_in_parts
from shared.runs.run_folder import CONFIG_FILE, SUMMARY_FILE

CARD_FILE = "README.md"


def push_dataset(config: BuildConfig) -> str:
    """Pushes the dataset in `config.out` to `config.push` and returns its address.

    An interrupted push goes on where it stopped. The card comes last, so that a repository with one is whole. Raises
    UserError when the Hub refuses.
    """
    folder = Path(config.out)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".push-") as staging:
        names = stage(folder, Path(staging), config)
        return upload_in_parts(
            Path(staging),
            config.push,
            names,
            repo_type="dataset",
            private=config.push_private,
            message="Upload a restore-rl dataset",
        )


def stage(folder: Path, staging: Path, config: BuildConfig) -> list[str]:
    """Fills `staging` with links to what is pushed as it is, and with copies free of local paths; returns the names."""
    names = [f"{DATA_FOLDER}/{path.name}" for path in sorted((folder / DATA_FOLDER).glob("*.parquet"))]
    names += [NORMALISER_FILE, INPUTS_FILE]
    for name in names:
        link_or_copy(folder / name, staging / name)
    summary = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
    written = {
        CONFIG_FILE: OmegaConf.to_yaml(public_settings(config)),
        # With it, a copy of the dataset is known to be whole.
        SUMMARY_FILE: json.dumps({"says": "downloaded", "rows": summary["rows"]}, indent=2) + "\n",
        CARD_FILE: with_licence((folder / CARD_FILE).read_text(encoding="utf-8"), config.push_licence),
    }
    for name, text in written.items():
        write_bytes(staging / name, storable(text).encode())
    return [*names, *written]


def with_licence(card: str, licence: str) -> str:
    """Returns the card with this licence in its head."""
    return re.sub(r"^license: .*$", lambda _: f"license: {licence}", card, count=1, flags=re.MULTILINE)
