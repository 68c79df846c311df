"""How a text is recognised that carries the id of what it was made from, whatever its system has done to it since."""

import html
import re

LEAST_ID_CHARS = 8  # a shorter id could stand in any text: it is believed only with the signs around it


def carries(text: str, marker: str) -> bool:
    """Tell whether a text holds a marker (`#4711]`), also where spaces, case or entities were rewritten.

    A long id is recognised without the signs around it too.
    """
    if re.search(_whole(_folded(marker)), _folded(text)):
        return True
    words = _words(marker)
    return len(words) > LEAST_ID_CHARS and words in _words(text)


def _folded(text: str) -> str:
    return " ".join(html.unescape(text).casefold().split())


def _whole(marker: str) -> str:
    """Return a pattern that finds a marker, but not `#4` in `#47`."""
    before = r"(?<!\w)" if marker[:1].isalnum() else ""
    after = r"(?!\w)" if marker[-1:].isalnum() else ""
    return before + re.escape(marker) + after


def _words(text: str) -> str:
    words = re.findall(r"[^\W_]+", _folded(text))
    return f" {' '.join(words)} "
