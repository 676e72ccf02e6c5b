"""The Hugging Face Hub: fetch a repository at a revision whole and verified, reuse it offline, upload files.

The endpoint is huggingface_hub's own setting, HF_ENDPOINT; its cache is HF_HOME.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, set_client_factory, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils._http import default_client_factory

from shared.app.errors import UserError
from shared.hub_settings import require_reachable

PART_BYTES, PART_FILES = 5 * 2**30, 100  # at most so much in one commit of an upload in parts

# The HTTPError of whichever httpx this huggingface_hub is built on: dropped connections, time-outs, cut bodies.
_TransportError: type[Exception] = HfHubHTTPError.__bases__[0]


def _client() -> Any:
    """Returns huggingface_hub's client, which also refuses answers that name a place outside of the cache."""
    client = default_client_factory()
    client.event_hooks["response"].append(_refuse_paths)
    return client


# For everything in this process that asks the Hub, datasets and diffusers among it.
set_client_factory(_client)


def _refuse_paths(response: Any) -> None:
    """Raises UserError for an answer whose checksum or commit is no name: the cache would write to wherever it says.

    huggingface_hub 2.4 joins an ETag to the path of its cache as it comes, and a commit likewise.
    """
    for header in ("ETag", "X-Linked-ETag", "X-Repo-Commit"):
        _require_name(response.headers.get(header, "-").removeprefix("W/").strip('"'), header)
    if "/api/" in response.url.path and "json" in response.headers.get("Content-Type", ""):
        try:
            said = json.loads(response.read())
        except ValueError:
            return  # the client says so
        if isinstance(said, dict) and "siblings" in said:
            _require_name(said.get("sha"), "commit")


def _require_name(text: Any, what: str) -> None:
    if not isinstance(text, str) or not re.fullmatch(r"[\w.+:-]{1,128}", text) or text in (".", ".."):
        raise UserError(
            f"the Hub answered with {str(text)[:40]!r} for a {what}, which is none; use another HF_ENDPOINT"
        )


def fetch_snapshot(repo_id: str, *, revision: str | None = None, patterns: Sequence[str] | None = None) -> Path:
    """Returns the local folder of a model repository at a revision: every file that matches, each with its checksum.

    A snapshot that is already in the cache is used when the Hub cannot be reached. Raises UserError, and leaves no
    damaged file in the cache, when anything is missing, cut, or not what the Hub lists.
    """
    asked = f"{repo_id}@{revision or 'main'}"
    require_reachable()
    try:
        folder = Path(
            snapshot_download(repo_id, revision=revision, allow_patterns=list(patterns) if patterns else None)
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, EntryNotFoundError) as error:
        raise UserError(f"{asked}: {_reason(error)}") from None
    except _TransportError as error:
        raise UserError(
            f"{asked}: the transfer broke off ({type(error).__name__}); run the same command again"
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError, AssertionError) as error:  # as the client reads nonsense
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise UserError(f"{asked}: the Hub's answer makes no sense ({reason}); use another HF_ENDPOINT") from None
    except OSError as error:
        if "onsistency check" not in str(error):
            raise
        raise UserError(f"{asked}: a file came cut or changed on the way; run the same command again") from None
    if not any(path.is_file() for path in folder.rglob("*")):
        raise UserError(f"{asked} holds none of {', '.join(patterns or ['any file'])}; check the repository's name")
    _verify_blobs(folder, asked)
    return folder


def upload_in_parts(
    folder: Path,
    repo_id: str,
    names: Sequence[str],
    *,
    repo_type: str = "model",
    revision: str | None = None,
    private: bool = True,
    message: str,
    part_bytes: int = PART_BYTES,
) -> str:
    """Uploads `names` of a folder in their order, a few gigabytes a commit, and returns the repository's address.

    The repository is made when missing, and so is the branch `revision`. What the repository already holds is not sent
    again, so a broken upload goes on with the part it broke off in.
    """
    api = HfApi()
    with _refusals(repo_id):
        address = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
        if private and api.repo_info(repo_id, repo_type=repo_type).private is False:
            raise UserError(f"{repo_id} exists and is public; push to another name, or say that it may be public")
        if revision is not None:
            api.create_branch(repo_id, repo_type=repo_type, branch=revision, exist_ok=True)
        there = {
            entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id
            for entry in api.list_repo_tree(repo_id, repo_type=repo_type, revision=revision, recursive=True)
            if isinstance(entry, RepoFile)
        }
        missing = [name for name in names if name not in there or there[name] not in _checksums(folder / name)]
        for number, part in enumerate(_parts(folder, missing, part_bytes)):
            api.create_commit(
                repo_id,
                repo_type=repo_type,
                revision=revision,
                operations=[CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in part],
                commit_message=f"{message}, part {number + 1}",
            )
    return str(address)


def _parts(folder: Path, names: Sequence[str], part_bytes: int) -> Iterator[list[str]]:
    part, size = [], 0
    for name in names:
        part.append(name)
        size += (folder / name).stat().st_size
        if size >= part_bytes or len(part) >= PART_FILES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _checksums(path: Path) -> tuple[str, str]:
    """Returns what the Hub may list for a file: the sha256 of a large one, the git object id of a small one."""
    sha256, sha1 = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        while block := file.read(2**20):
            sha256.update(block)
            sha1.update(block)
    return sha256.hexdigest(), sha1.hexdigest()


@contextmanager
def _refusals(repo_id: str) -> Iterator[None]:
    """Turns what the Hub refuses into UserErrors of one line."""
    require_reachable()
    try:
        yield
    except LocalTokenNotFoundError:
        raise UserError("no Hub token found; run `hf auth login`, or set HF_TOKEN") from None
    except (HfHubHTTPError, HFValidationError) as error:
        raise UserError(f"{repo_id}: {_reason(error)}") from None
    except _TransportError as error:
        raise UserError(
            f"{repo_id}: the Hub cannot be reached ({type(error).__name__}); check the network or HF_ENDPOINT"
        ) from None


def _verify_blobs(folder: Path, asked: str) -> None:
    """Raises UserError for the first file whose content does not have the checksum the Hub lists, and removes it.

    The cache names each file's blob by its ETag: the sha256 of a large file, the git object id of a small one.
    """
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or not path.is_symlink():
            continue
        blob = path.resolve()
        if re.fullmatch(r"[0-9a-f]{64}", blob.name):
            with blob.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        elif re.fullmatch(r"[0-9a-f]{40}", blob.name):
            content = blob.read_bytes()
            found = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        else:
            path.unlink()
            raise UserError(
                f"{asked}: the Hub states no checksum for {path.relative_to(folder)}; use another HF_ENDPOINT"
            )
        if found != blob.name:
            blob.unlink()
            path.unlink()
            raise UserError(
                f"{asked}: {path.relative_to(folder)} does not have the checksum the Hub lists ({blob.name[:12]}…, got "
                f"{found[:12]}…); it was removed: run the same command again"
            )


def _reason(error: Exception) -> str:
    """Returns what went wrong and what to do, in one clause each."""
    if isinstance(error, LocalEntryNotFoundError):
        return "the Hub cannot be reached and the cache holds no whole copy; check the network, or give a local folder"
    if isinstance(error, RevisionNotFoundError):
        return "the repository has no such revision; name a branch, tag or commit that it lists"
    if isinstance(error, GatedRepoError):
        return "the repository is gated; ask for access on its page, then `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return "no such repository, or it is private; check user/name, or `hf auth login`"
    if isinstance(error, EntryNotFoundError):
        return "a file the Hub lists is missing from it; ask the repository's owner, or name another revision"
    if isinstance(error, HfHubHTTPError):
        status = getattr(error.response, "status_code", "?")
        return f"the Hub answered {status}; " + (
            "log in with `hf auth login`" if status in (401, 403) else "try again later"
        )
    return str(error).strip().splitlines()[0]
