"""What the small commands share: key=value words instead of a yaml, pictures in, names for pictures out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from omegaconf.errors import OmegaConfBaseException

from shared.config import from_dict
from shared.errors import UserError
from shared.images import find_images

Schema = TypeVar("Schema")


def read_words(schema: type[Schema], argv: Sequence[str], *, expected: str) -> Schema:
    """Returns `schema` filled from key=value words; the word `in` goes to its field `inputs`, empty values to defaults.

    `expected` names the word that must be there, as a person would write it: in=<picture or folder>. Raises UserError
    for its absence, a word of another form, a key there is not (with the nearest), a wrong type, a broken invariant.
    """
    values: dict[str, str] = {}
    for word in argv:
        if word.startswith("--") and "=" not in word:  # --json says json=true
            word = f"{word[2:].replace('-', '_')}=true"
        key, separator, value = word.partition("=")
        if not separator:
            raise UserError(f"expected key=value words such as in=picture.png, got {word}")
        if value:
            values["inputs" if key == "in" else key] = value
    required = expected.partition("=")[0]
    if ("inputs" if required == "in" else required) not in values:
        raise UserError(f"expected {expected}, but nothing was named")
    try:
        return from_dict(schema, values)
    except OmegaConfBaseException as error:
        raise UserError(str(error).strip().splitlines()[0]) from None
    except ValueError as error:
        raise UserError(str(error)) from None


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
