"""Pushes a finished dataset to the Hub: its files, its card with the licence that was asked for, and no local path."""

from __future__ import annotations

import json
from pathlib import Path

from omegaconf import OmegaConf

from data.store.config import BuildConfig, public_settings
from data.store.parquet import DATA_FOLDER, INPUTS_FILE, NORMALISER_FILE
from shared.publishing.card_head import CARD_FILE, with_licence
from shared.publishing.publication import Publication
from shared.runs.run_folder import CONFIG_FILE, SUMMARY_FILE


def push_dataset(config: BuildConfig) -> str:
    """Pushes the dataset in `config.out` to `config.push` and returns its address.

    An interrupted push goes on where it stopped. The card comes last, so that a repository with one is whole. Raises
    UserError when the Hub refuses.
    """
    folder = Path(config.out)
    return publication_of_dataset(folder, config).publish(
        config.push,
        licence=config.push_licence,
        private=config.push_private,
        message="Upload a restore-rl dataset",
        beside=folder,
    )


def publication_of_dataset(folder: Path, config: BuildConfig) -> Publication:
    """Returns what is pushed: parquet files as they are, and settings and card free of local paths."""
    names = [f"{DATA_FOLDER}/{path.name}" for path in sorted((folder / DATA_FOLDER).glob("*.parquet"))]
    names += [NORMALISER_FILE, INPUTS_FILE]
    summary = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
    texts = {
        CONFIG_FILE: OmegaConf.to_yaml(public_settings(config)),
        # With it, a copy of the dataset is known to be whole.
        SUMMARY_FILE: json.dumps({"says": "downloaded", "rows": summary["rows"]}, indent=2) + "\n",
        CARD_FILE: with_licence((folder / CARD_FILE).read_text(encoding="utf-8"), config.push_licence),
    }
    return Publication({name: folder / name for name in names}, texts, kind="dataset")
