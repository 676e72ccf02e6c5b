"""What is published on the Hub, and how: nothing but the files that are named, private, under a licence that was named.

Datasets, reward models and policies all go this way.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from shared.app.errors import UserError
from shared.files import link_or_copy, storable, write_bytes
from shared.hub import upload_in_parts
from shared.publishing.portable_settings import require_no_places


@dataclass(frozen=True)
class Publication:
    """The content of a repository: files as they lie on disk, and texts that are written for it.

    Texts come after files, in their order. The last one is the card or the list of the others, so that a repository that
    has it is whole.
    """

    files: Mapping[str, Path]  # {name in the repository: where it is}
    texts: Mapping[str, str] = field(default_factory=dict)  # {name in the repository: content}
    kind: Literal["model", "dataset"] = "model"

    def publish(
        self,
        repo_id: str,
        *,
        licence: str,
        message: str,
        private: bool = True,
        revision: str | None = None,
        beside: Path | None = None,
    ) -> str:
        """Uploads the content and returns the repository's address.

        A broken upload goes on where it stopped. `revision`: a branch, made when missing. `beside`: a folder on the
        files' own disk, where links to them may lie for a while. Raises UserError without a licence, for a text in which
        a folder of this machine stands, for a public repository that was to be private, and when the Hub refuses.
        """
        if not licence:
            raise UserError(
                f"what is published in {repo_id} needs a licence: name it as the Hub spells it, such as apache-2.0, "
                "cc-by-4.0 or other; it must allow for those of its base and its pictures"
            )
        require_no_places(self.texts)
        with tempfile.TemporaryDirectory(dir=beside, prefix=".push-") as folder:
            for name, path in self.files.items():
                link_or_copy(path, Path(folder) / name)
            for name, text in self.texts.items():
                write_bytes(Path(folder) / name, storable(text).encode())
            return upload_in_parts(
                Path(folder),
                repo_id,
                [*self.files, *self.texts],
                repo_type=self.kind,
                revision=revision,
                private=private,
                message=message,
            )
