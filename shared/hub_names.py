"""How a person names what lies on the Hub: hf:owner/name, hf:owner/name@revision, and one file in it, hf:owner/name/file."""

from __future__ import annotations

import re
from dataclasses import dataclass

from shared.app.errors import UserError

HUB_PREFIX = "hf:"
_FILE = r"[^\s@]+\.(?:safetensors|pth|pt|ckpt|bin|param|onnx)"
_NAME = re.compile(rf"{HUB_PREFIX}([^/@\s]+/[^/@\s]+)(?:@([^\s]*?))?(?:/({_FILE}))?")


@dataclass(frozen=True)
class HubName:
    """A repository on the Hub, at a revision, and a file in it where one is named."""

    repo: str  # owner/name
    revision: str | None = None  # branch, tag or commit; None: main as it is now
    file: str = ""

    @classmethod
    def parse(cls, where: str, *, revision: str | None = None) -> HubName | None:
        """Returns what `where` names, or None where it does not begin with hf:.

        `revision` is what was named beside it. Raises UserError for two different revisions, and for another form.
        """
        if not where.startswith(HUB_PREFIX):
            return None
        found = _NAME.fullmatch(where)
        if found is None or found[2] == "":
            raise UserError(f"expected {HUB_PREFIX}owner/name or {HUB_PREFIX}owner/name@revision, got {where}")
        if revision and found[2] and revision != found[2]:
            raise UserError(f"{where} names another revision than revision={revision}; leave one of them out")
        return cls(found[1], found[2] or revision, found[3] or "")

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return f"{HUB_PREFIX}{self.repo}{at}" + (f"/{self.file}" if self.file else "")
