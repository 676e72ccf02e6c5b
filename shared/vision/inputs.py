"""Pictures named on a command line, and names for what is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shared.app.errors import UserError
from shared.vision.images import find_images


def input_pictures(inputs: str) -> list[Path]:
    """Returns the pictures that `in` names: one, a folder searched, or several with commas between.

    Raises UserError for what is missing.
    """
    words = [inputs] if Path(inputs).exists() else [word for word in inputs.split(",") if word]
    paths: list[Path] = []
    for word in words:
        path = Path(word)
        if not path.exists():
            raise UserError(f"expected a picture or a folder, but {path} is missing")
        paths += [path] if path.is_file() else find_images(path)
    return paths


def output_names(paths: Sequence[Path]) -> dict[Path, str]:
    """Returns a stem for each picture's outputs; a second one of the same stem gets a number."""
    taken: dict[str, int] = {}
    names = {}
    for path in paths:
        taken[path.stem] = taken.get(path.stem, 0) + 1
        names[path] = path.stem if taken[path.stem] == 1 else f"{path.stem}-{taken[path.stem]}"
    return names
