"""Marketo's writes as calls: up to 300 records, below 1 MB, none twice, and a bad record found without spoiling the rest."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from shared.errors import AccessError, RateLimitedError, SyncError

MOST_RECORDS = 300  # of one call: values to look up, rows of a page, records to write
MOST_BODY_BYTES = 900_000  # of the vendor's 1 MB
SPLITS = 16  # of refused calls in a batch, to find the record that spoils one


@dataclasses.dataclass(frozen=True)
class Entry:
    """One write as its call carries it."""

    index: int  # among the writes
    body: Mapping[str, Any]
    key: str | None  # None: to be created
    identity: str  # what may stand in a call only once
    by: str  # the field that finds the record

    @property
    def size(self) -> int:
        """Return its bytes in the body."""
        return len(json.dumps(self.body)) + 2


@dataclasses.dataclass(frozen=True)
class Batch:
    """The records of one call."""

    create: bool
    by: str
    entries: tuple[Entry, ...]

    def halves(self) -> "tuple[Batch, Batch]":
        """Return the batch as two calls."""
        middle = len(self.entries) // 2
        return (
            dataclasses.replace(self, entries=self.entries[:middle]),
            dataclasses.replace(self, entries=self.entries[middle:]),
        )


class Course:
    """How a batch of writes goes: what ends it, and how many calls may still be spent on narrowing a refusal down."""

    def __init__(self) -> None:
        self._end: SyncError | None = None
        self._splits = SPLITS

    def check(self) -> None:
        """Raise what the connection met before, if it concerns every further call."""
        if self._end is not None:
            raise self._end

    def note(self, error: SyncError) -> None:
        """End the batch when the connection has to rest or is at fault."""
        if isinstance(error, RateLimitedError | AccessError):
            self._end = error

    def may_split(self) -> bool:
        """Take one split if there is one left."""
        self._splits -= 1
        return self._splits >= 0


def split(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Cut entries into calls by number, by size, and so that none holds a record twice."""
    part: list[Entry] = []
    held: set[str] = set()
    size = 0
    for entry in entries:
        full = len(part) >= MOST_RECORDS or size + entry.size > MOST_BODY_BYTES or entry.identity in held
        if part and full:
            yield part
            part, held, size = [], set(), 0
        part.append(entry)
        held.add(entry.identity)
        size += entry.size
    if part:
        yield part
