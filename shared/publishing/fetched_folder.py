"""What was fetched from the Hub becomes a folder that stands alone, and says where it came from."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from shared.app.errors import UserError
from shared.files import replace_folder, write_bytes

ORIGIN_FILE = "fetched.json"


def put_in_place(snapshot: Path, out: Path, *, repo: str, revision: str | None) -> None:
    """Copies a snapshot of the Hub's cache to `out`, in place of what is there, whole or not at all.

    `fetched.json` beside it holds repository, asked revision, commit, and the sha256 of every file.
    """
    temporary = out.with_name(f"{out.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(snapshot, temporary)  # the cache holds links; a folder is to be whole by itself
    digests = {}
    for path in sorted(path for path in temporary.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            digests[path.relative_to(temporary).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    said = {"repository": repo, "revision": revision or "main", "commit": snapshot.name, "sha256": digests}
    write_bytes(temporary / ORIGIN_FILE, (json.dumps(said, indent=2) + "\n").encode())
    replace_folder(temporary, out)


def require_replaceable(out: Path, repo: str, *, is_ours: bool, what: str) -> None:
    """Raises UserError unless `out` is free or holds `what` alone (`is_ours`), and `repo` is no folder."""
    if out.exists() and (not is_ours or (out / "config.yaml").exists()):
        held = f"holds a run beside its {what}" if is_ours else f"is no {what}"
        raise UserError(f"{out} is there and {held}; choose another folder with out=")
    if Path(repo).is_dir():
        raise UserError(f"expected a Hub repository user/name, but {repo} is a folder; use it as it is")
