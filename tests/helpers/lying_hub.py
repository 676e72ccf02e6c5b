"""A Hub that lies: about lengths, checksums, commits and names, that redirects elsewhere or in circles, that stalls."""

from __future__ import annotations

import json
import time
from typing import ClassVar

from tests.helpers.hub_server import HubHandler

# What each lie is told about: how a listing names a file, what a file's headers say, or how its bytes come.
NAMES = {
    "name above": "../../../outside.safetensors",
    "absolute name": "/tmp/outside-of-the-cache.safetensors",
    "name with a way back": "stage_1/../../../../outside/model.safetensors",
    "name with a backslash": "..\\..\\outside.safetensors",
    "name with a zero": "model\0.safetensors",
    "long name": "x" * 300 + ".safetensors",
    "name of a folder": "stage_1/",
    "empty name": "",
    "name that is a number": 7,
    "name that is nothing": None,
}
HEADERS = {
    "etag above": {"ETag": '"../../../outside"'},
    "absolute etag": {"ETag": '"/tmp/outside-of-the-cache"'},
    "etag of nothing": {"ETag": '""'},
    "etag that is no checksum": {"ETag": '"harmless"'},
    "etag of another file": {"ETag": '"' + "a" * 64 + '"'},
    "weak etag": {"ETag": 'W/"abc"'},
    "no etag": {"ETag": None},
    "commit above": {"X-Repo-Commit": "../../../outside"},
    "no commit": {"X-Repo-Commit": None},
    "linked etag above": {"X-Linked-Etag": '"../../outside"'},
    "linked size": {"X-Linked-Size": "1"},
    "huge linked size": {"X-Linked-Size": str(10**15)},
    "huge length": {"Content-Length": str(10**15)},
    "short length": {"Content-Length": "3"},
    "negative length": {"Content-Length": "-5"},
    "length in words": {"Content-Length": "many"},
    "encoding": {"Content-Encoding": "gzip"},
}
BODIES = ("redirect in a circle", "redirect elsewhere", "redirect to a file", "redirect to nothing", "stall", "other bytes",
          "half", "twice", "nothing", "web page", "server error", "slow")  # fmt: skip
LISTINGS = ("listing is no json", "listing is a list", "listing of numbers", "listing without files", "commit is a path",
            "commit is nothing", "listing of 50000", "listing in a circle")  # fmt: skip
LIES = (*NAMES, *HEADERS, *BODIES, *LISTINGS)


class LyingHandler(HubHandler):
    """Answers as the Hub does, but for one lie."""

    lie: ClassVar[str] = ""
    about: ClassVar[str] = ".safetensors"  # how the files end that are lied about
    stall_s: ClassVar[float] = 2.0

    def do_GET(self) -> None:
        try:
            super().do_GET()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client has had enough

    do_HEAD = do_GET

    def send_header(self, keyword: str, value: str) -> None:
        said = HEADERS.get(self.lie, {}) if self._lied_about() else {}
        value = said.get(keyword, value)
        if value is not None:
            super().send_header(keyword, value)

    def end_headers(self) -> None:
        for keyword, value in HEADERS.get(self.lie, {}).items():
            if keyword.startswith(("X-Linked", "Content-Encoding")) and self._lied_about():
                super().send_header(keyword, value)
        super().end_headers()

    def _lied_about(self) -> bool:
        return "/resolve/" in self.path and self.path.split("?")[0].endswith(self.about)

    def _info(self, repo: str, revision: str) -> None:
        files = self._files(repo, revision)
        if files is None:
            return
        siblings = [{"rfilename": name} for name in files]
        found = {"id": repo, "modelId": repo, "siblings": siblings, "sha": self._sha(repo, revision), "private": False}
        if self.lie in NAMES:
            siblings.append({"rfilename": NAMES[self.lie]})
            self.hub.repos[repo][revision].setdefault(str(NAMES[self.lie]), b"evil")
        match self.lie:
            case "listing is no json":
                self._body(b"<html>", kind="application/json")
                return
            case "listing is a list":
                found = [found]
            case "listing of numbers":
                found["siblings"] = [1, 2]
            case "listing without files":
                found.pop("siblings")
            case "commit is a path":
                found["sha"] = "../../../outside"
            case "commit is nothing":
                found["sha"] = None
            case "listing of 50000":
                siblings += [{"rfilename": f"other/{number}.bin"} for number in range(50_000)]
            case "listing in a circle":
                self._redirect(self.path)
                return
        self._body(json.dumps(found).encode(), kind="application/json")

    def _tree(self, repo: str, revision: str, folder: str) -> None:
        if self.lie == "listing is no json":
            self._body(b"<html>", kind="application/json")
        elif self.lie == "listing is a list" or self.lie == "listing without files":
            self._json({"error": 1})
        elif self.lie == "listing of numbers":
            self._json([1, 2])
        elif self.lie == "listing in a circle":
            self._redirect(self.path)
        elif self.lie in NAMES:
            self._json([{"type": "file", "path": NAMES[self.lie], "size": 4, "oid": "0" * 40}])
        else:
            super()._tree(repo, revision, folder)

    def _file(self, repo: str, revision: str, name: str) -> None:
        files = self._files(repo, revision)
        if files is None:
            return
        if not self._lied_about() or self.lie not in BODIES:
            super()._file(repo, revision, name)
            return
        content = files.get(name, b"")
        match self.lie:
            case "redirect in a circle":
                self._redirect(self.path)
            case "redirect elsewhere":
                self._redirect("http://127.0.0.1:9/elsewhere.safetensors")
            case "redirect to a file":
                self._redirect("file:///etc/passwd")
            case "redirect to nothing":
                self._redirect("")
            case "server error":
                self._error(500, "ServerError")
            case _ if self.command == "HEAD":
                super()._file(repo, revision, name)
            case "web page":
                self._body(b"<html>log in</html>", kind="text/html")
            case "nothing":
                self._body(b"", kind="application/octet-stream")
            case "half" | "stall":
                self._begin(content)
                self.wfile.write(content[: len(content) // 2])
                self.wfile.flush()
                if self.lie == "stall":
                    time.monotonic()
                    _pause(self.stall_s)
                self.close_connection = True
            case "slow":
                self._begin(content)
                for start in range(0, len(content), 1 + len(content) // 20):
                    self.wfile.write(content[start : start + 1 + len(content) // 20])
                    self.wfile.flush()
                    _pause(0.01)
            case "twice":
                self._begin(content)
                self.wfile.write(content + content)
                self.close_connection = True
            case "other bytes":
                self._begin(content)
                self.wfile.write(bytes(len(content)))

    def _begin(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        super().end_headers()

    def _body(self, content: bytes, *, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _redirect(self, where: str) -> None:
        self.send_response(302)
        self.send_header("Location", where)
        self.send_header("Content-Length", "0")
        super().end_headers()


_pause = time.sleep  # the tests replace time.sleep, so that the client does not wait between its tries
