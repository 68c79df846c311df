"""What every client does around a look-up by values: keep URLs short, and believe no row that was not asked for."""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from shared.clients.system import Key, Row, Scalar
from shared.errors import RejectedError


def split_terms(terms: Iterable[tuple[str, int]], most_chars: int, most_terms: int) -> Iterator[list[str]]:
    """Group query terms, each with its length in the URL, so that a group keeps within both bounds.

    Raises RejectedError with code `unsearchable_value` for a term that is too long by itself.
    """
    group: list[str] = []
    chars = 0
    for term, length in terms:
        if length > most_chars:
            raise RejectedError("A value is too long to be searched for.", code="unsearchable_value")
        if group and (chars + length > most_chars or len(group) >= most_terms):
            yield group
            group, chars = [], 0
        group.append(term)
        chars += length
    if group:
        yield group


def page_length(size: int, fill: int) -> int:
    """Return how many records a page of about `size` has so that calls of `fill` records are full: a multiple of `fill`."""
    return max(1, size // fill) * fill


def check_values(by: Sequence[str], values: Sequence[Key]) -> list[Key]:
    """Return the keys to ask for, each once. Raises ValueError for an empty value or a key of the wrong length."""
    keys = list(dict.fromkeys(values))
    for key in keys:
        if len(key) != max(len(by), 1):
            raise ValueError(f"a key of {len(key)} values for {len(by)} fields")
        if any(value is None or (isinstance(value, str) and not value.strip()) for value in key):
            raise ValueError("an empty value is never searched for")
    return keys


def keep_asked(rows: Iterable[Row], by: Sequence[str], keys: Sequence[Key], system: str, connection: str) -> list[Row]:
    """Return the rows that carry a key that was asked for, by their fields, or by their key where `by` is empty.

    Vendors compare text without case, accents and outer spaces: a row that is like a key in that way only is left out.
    Any other row shows that the filter was ignored: raises RejectedError with code `filter_ignored`.
    """
    exact = {tuple(_exact(value) for value in key) for key in keys}
    loose = {tuple(_loose(value) for value in key) for key in keys}
    kept = []
    for row in rows:
        held = tuple(row.fields[name] for name in by) if by else (row.key,)
        if tuple(_exact(value) for value in held) in exact:
            kept.append(row)
        elif tuple(_loose(value) for value in held) not in loose:
            raise RejectedError(
                f"{system} answered a search by {', '.join(by) or 'id'} with a record that does not match it "
                f"({connection}). Check that the integration user may search by these fields.",
                code="filter_ignored",
                connection=connection,
            )
    return kept


def _exact(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value).casefold()


def _loose(value: object) -> str:
    parts = unicodedata.normalize("NFKD", _exact(value))
    return "".join(c for c in parts if not unicodedata.combining(c)).casefold().strip()


def as_text(value: Scalar) -> str:
    """Return a scalar as the text that vendors write for it; times are the vendor's business."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
