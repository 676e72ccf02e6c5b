"""Settings from key=value words alone, for commands that need no yaml."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf.errors import OmegaConfBaseException

from shared.app.config import Schema, at_home, from_dict
from shared.app.errors import UserError


def read_words(
    schema: type[Schema], argv: Sequence[str], *, expected: str, bare: Sequence[str] = (), optional: bool = False
) -> Schema:
    """Returns `schema` filled from key=value words; the word `in` goes to its field `inputs`, empty values to defaults.

    `expected` names the word that must be there, as a person would write it: in=<picture or folder>; an `optional` one
    is an example alone. Words without a key
    fill the fields in `bare`, in that order. Raises UserError where the expected word is absent, and for a word of
    another form, an unknown key (with the nearest one), a wrong type, a broken invariant.
    """
    values: dict[str, str] = {}
    unnamed = iter(bare)
    for word in argv:
        if word.startswith("--") and "=" not in word:  # --json says json=true
            word = f"{word[2:].replace('-', '_')}=true"
        key, separator, value = word.partition("=")
        if not separator:
            key, value = next(unnamed, ""), word
            if not key:
                raise UserError(f"expected key=value words such as {expected}, got {word}")
        if value:
            values["inputs" if key == "in" else key] = value
    required = expected.partition("=")[0]
    if not optional and ("inputs" if required == "in" else required) not in values:
        raise UserError(f"expected {expected}, but nothing was named")
    try:
        return at_home(from_dict(schema, values))
    except OmegaConfBaseException as error:
        raise UserError(str(error).strip().splitlines()[0]) from None
    except ValueError as error:
        raise UserError(str(error)) from None
