"""Text from outside, made fit to be shown."""

from __future__ import annotations

import re
import traceback
from pathlib import Path
from typing import Final

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_LIBRARIES: Final = frozenset({"site-packages", "dist-packages"})


def one_line(text: str) -> str:
    """The text without line breaks and control characters (which terminals obey)."""
    return _CONTROL.sub(" ", text).strip()


def told(error: Exception) -> str:
    """An error that nobody expected, with the last line of code that is not of a library."""
    lines = traceback.extract_tb(error.__traceback__)
    own = [line for line in lines if not _LIBRARIES.intersection(Path(line.filename).parts)]
    last = (own or lines)[-1]
    return f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"
