"""The one exception whose text is meant for users."""

from __future__ import annotations


class UserError(Exception):
    """Something a user can mend: says what was given, what is known, and what to do."""
