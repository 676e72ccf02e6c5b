"""A small server on 127.0.0.1 that answers the Hub's endpoints the client uses to download models and to upload folders."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import huggingface_hub.constants
import pytest
from huggingface_hub import utils


@dataclass
class FakeHub:
    """Repositories in memory, and the faults a test asks for."""

    repos: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)  # repo → revision → path → content
    missing: set[str] = field(default_factory=set)  # listed, but 404 when asked for
    truncated: set[str] = field(default_factory=set)  # the connection ends half-way
    corrupt: set[str] = field(default_factory=set)  # other bytes of the right length
    requests: list[str] = field(default_factory=list)
    uploads: dict[str, bytes] = field(default_factory=dict)  # sha256 → content
    private: dict[str, bool] = field(default_factory=dict)  # of the repositories that were created over HTTP
    refused_commits: int = 0  # how many commits, from the next one on, are answered with an error
    handler: type[BaseHTTPRequestHandler] | None = None  # that answers in place of the honest one

    def add(self, repo: str, files: dict[str, bytes], *, revision: str = "main") -> str:
        """Puts files at a revision and returns their commit."""
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        revisions = self.repos.setdefault(repo, {})
        revisions[revision] = revisions[commit] = files
        return commit

    def __enter__(self) -> FakeHub:
        handler = type("Handler", (self.handler or HubHandler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"


def point_client_at(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets what HF_ENDPOINT sets when the client is imported."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def use_hub(server: FakeHub, monkeypatch: pytest.MonkeyPatch, *, cache: Path) -> None:
    """Points the client at the server, with an empty cache, a token and no waiting between its tries."""
    point_client_at(server.endpoint, monkeypatch)
    monkeypatch.setattr("time.sleep", lambda _: None)  # the client waits up to half a minute between its tries
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    utils.disable_progress_bars()


def folder_files(folder: Path) -> dict[str, bytes]:
    """Returns {relative path: content} of a folder, as `FakeHub.add` takes it."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def is_large(path: str) -> bool:
    return path.endswith(".safetensors")


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class HubHandler(BaseHTTPRequestHandler):
    """One request to the Hub."""

    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        """Keeps the test output quiet."""

    def do_GET(self) -> None:
        path = unquote(self.path.split("?")[0])
        self.hub.requests.append(f"{self.command} {path}")
        if match := re.fullmatch(r"/api/(?:models|datasets)/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._info(match[1], match[2] or "main")
        elif match := re.fullmatch(r"/api/(?:models|datasets)/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?", path):
            self._tree(match[1], match[2], match[3] or "")
        elif match := re.fullmatch(r"(?:/datasets)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(match[1], match[2], match[3])
        else:
            self._error(404, "EntryNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        path = unquote(self.path.split("?")[0])
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.requests.append(f"POST {path}")
        if path == "/api/repos/create":
            request = json.loads(body)
            repo = f"{request.get('organization') or 'user'}/{request['name']}"
            if repo in self.hub.repos:
                self._json({"error": "exists", "url": f"{self.hub.endpoint}/{repo}"}, status=409)
                return
            self.hub.add(repo, {})
            self.hub.private[repo] = request.get("visibility") == "private" or bool(request.get("private"))
            self._json({"url": f"{self.hub.endpoint}/{repo}"})
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif match := re.fullmatch(r"/api/(?:models|datasets)/([^/]+/[^/]+)/branch/(.+)", path):
            self.hub.add(match[1], {}, revision=match[2])
            self._json({})
        elif re.fullmatch(r"/api/(?:models|datasets)/[^/]+/[^/]+/preupload/.+", path):
            files = [
                {"path": f["path"], "uploadMode": "lfs" if is_large(f["path"]) else "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            self._json({"files": files})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            hrefs = [{**o, "actions": {"upload": {"href": f"{self.hub.endpoint}/lfs/{o['oid']}"}}} for o in objects]
            self._json({"transfer": "basic", "objects": hrefs})
        elif match := re.fullmatch(r"/api/(?:models|datasets)/([^/]+/[^/]+)/commit/(.+)", path):
            self._commit(match[1], match[2], body)
        else:
            self._error(404, "EntryNotFound")

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.hub.requests.append(f"PUT {self.path}")
        self.hub.uploads[self.path.rsplit("/", 1)[1]] = content
        self._json({})

    def _files(self, repo: str, revision: str) -> dict[str, bytes] | None:
        if repo not in self.hub.repos:
            self._error(404, "RepoNotFound")
        elif revision not in self.hub.repos[repo]:
            self._error(404, "RevisionNotFound")
        else:
            return self.hub.repos[repo][revision]
        return None

    def _info(self, repo: str, revision: str) -> None:
        files = self._files(repo, revision)
        if files is not None:
            siblings = [{"rfilename": name} for name in files]
            facts = {"sha": self._sha(repo, revision), "private": self.hub.private.get(repo, False)}
            self._json({"id": repo, "modelId": repo, "siblings": siblings, **facts})

    def _sha(self, repo: str, revision: str) -> str:
        revisions = self.hub.repos[repo]
        return next(
            name
            for name, files in revisions.items()
            if re.fullmatch("[0-9a-f]{40}", name) and files is revisions[revision]
        )

    def _tree(self, repo: str, revision: str, folder: str) -> None:
        files = self._files(repo, revision)
        if files is None:
            return
        below = f"{folder}/" if folder else ""
        inside = {name: content for name, content in files.items() if name.startswith(below)}
        if folder and not inside:
            self._error(404, "EntryNotFound")
            return
        whole = "recursive=true" in self.path.lower()
        folders = {below + name.removeprefix(below).split("/")[0] for name in inside if "/" in name.removeprefix(below)}
        rows = [
            {"type": "directory", "path": name, "size": 0, "oid": "0" * 40} for name in sorted(folders) if not whole
        ]
        for name, content in inside.items():
            if whole or "/" not in name.removeprefix(below):
                rows.append(_listed(name, content))
        self._json(rows)

    def _file(self, repo: str, revision: str, name: str) -> None:
        files = self._files(repo, revision)
        if files is None:
            return
        if name not in files or name in self.hub.missing:
            self._error(404, "EntryNotFound")
            return
        content = files[name]
        etag = hashlib.sha256(content).hexdigest() if is_large(name) else git_oid(content)
        start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0, 0])[1])
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", self._sha(repo, revision))
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        content = bytes(byte ^ 1 for byte in content) if name in self.hub.corrupt else content
        if name in self.hub.truncated:
            self.wfile.write(content[start : start + (len(content) - start) // 2])
            self.close_connection = True
            return
        self.wfile.write(content[start:])

    def _commit(self, repo: str, revision: str, body: bytes) -> None:
        if self.hub.refused_commits:
            self.hub.refused_commits -= 1
            self._error(500, "ServerError")
            return
        files = dict(self.hub.repos[repo].get(revision, {}))
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploads[value["oid"]]
        commit = self.hub.add(repo, files, revision=revision)
        self._json({"success": True, "commitOid": commit, "commitUrl": f"{self.hub.endpoint}/{repo}/commit/{commit}"})

    def _json(self, content: object, *, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _error(self, status: int, code: str) -> None:
        body = json.dumps({"error": code}).encode()
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _listed(name: str, content: bytes) -> dict:
    row = {"type": "file", "path": name, "size": len(content), "oid": git_oid(content)}
    if is_large(name):
        row["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return row
