"""Text from outside, made fit to be shown."""

from __future__ import annotations

import re
from typing import Final

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


def one_line(text: str) -> str:
    """The text without line breaks and control characters (which terminals obey)."""
    return _CONTROL.sub(" ", text).strip()
