"""What may leave this machine: settings without its places, and texts in which none of them stands."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.app.errors import UserError


def portable(value: Any) -> Any:
    """Returns settings with places outside the working folder, such as /home/me/photos, cut to their last name."""
    match value:
        case dict():
            return {key: portable(inner) for key, inner in value.items()}
        case list() | tuple():
            return [portable(inner) for inner in value]
        case str() if value.startswith(("/", "~", "..")):
            return Path(value).name
    return value


def require_no_places(texts: Mapping[str, str]) -> None:
    """Raises UserError for the first of {name: text} in which a folder of this machine stands."""
    places = {Path.home(), Path.cwd(), Path(tempfile.gettempdir())}
    forms = {str(form) for place in places for form in (place, place.resolve()) if len(form.parts) > 1}
    pattern = re.compile(rf"(?<![\w./~-])(?:{'|'.join(map(re.escape, sorted(forms, key=len, reverse=True)))})(?=/|\b)")
    for name, text in texts.items():
        if found := pattern.search(text):
            line = text.count("\n", 0, found.start()) + 1
            raise UserError(f"{name}, line {line}, names a folder of this machine; take it out before it is published")
