"""The one exception that a person's mistake raises; shared.app.entry turns it into one line and exit code 2."""

from __future__ import annotations


class UserError(Exception):
    """A mistake the person at the keyboard can mend: says what was expected, what came, and what to do."""
