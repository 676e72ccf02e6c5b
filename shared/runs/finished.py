"""Recognises a finished stage by the words of its command alone, before anything slow is imported.

python -m shared.runs.finished configs/base_sr.yaml out=runs/mine/base_sr key=value …   exit code 0 and a line if it has
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared.app.shipped import find_config, is_setting
from shared.files import read_json
from shared.runs.picture_list import looks_unchanged

SUMMARY_FILE = "summary.json"


def command_hash(argv: Sequence[str]) -> str:
    """Returns a fingerprint of a command: its words in their order, and what is written in the config files among them.

    The same words give the same settings, so a finished stage with this fingerprint needs no closer look.
    """
    digest = hashlib.sha256()
    for word in argv:
        config = None if is_setting(word) else find_config(word)
        content = config.read_bytes() if config else b""
        digest.update(f"{len(word)} {word} {len(content)} ".encode(errors="surrogateescape") + content)
    return digest.hexdigest()


def finished_line(summary: dict[str, Any]) -> str:
    """Returns what a stage says when it is asked for again."""
    return f"finished: {summary.get('says', 'by an earlier version')}"


def main(argv: Sequence[str]) -> int:
    folders = [word.removeprefix("out=") for word in argv if word.startswith("out=")]
    path = Path(folders[-1]) / SUMMARY_FILE if folders else None
    if path is None or not path.is_file():
        return 1
    try:
        summary = read_json(path)
    except (OSError, ValueError):
        return 1  # damaged: the stage itself says so
    if summary.get("command") != command_hash(argv):
        return 1  # possibly the same settings in other words: the stage itself compares them
    if not looks_unchanged(path.parent):
        return 1  # pictures may have come, gone or changed: the stage itself looks closer
    print(finished_line(summary))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
