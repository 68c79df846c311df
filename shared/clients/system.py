"""What a system offers: the protocol that every client implements, and the values that pass through it.

`sync/` knows systems only through this module. Field names are the vendor's own, dotted through references and child
types; values are canonical (see Value) and each client does its vendor's formats.

A child type (comments of an incident, members of a group) is a record type named by its path: `incident.journal`. Its
records are read with their parent: the path `journal.text` of an incident makes its row hold, under `journal`, a list
of objects with `id` (the child's key) and `text`, oldest first, all of them or an error. They are written by
`write_rows("incident.journal", …)` with `Write.parent`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol

from shared.errors import SyncError

Scalar = str | int | float | bool | datetime | None
Value = Scalar | list[Any] | dict[str, Any]
"""Text, number, true/false, aware UTC time, None for empty (never ""), list, object. Nothing else."""

Key = tuple[Scalar, ...]
"""Values asked for together: one id, or one value per field."""


class FieldKind(StrEnum):
    """Canonical type of a field."""

    TEXT = "text"
    NUMBER = "number"
    BOOLEAN = "boolean"
    TIME = "time"
    REFERENCE = "reference"  # holds the key of another record
    CHOICE = "choice"
    APPEND = "append"  # writing adds an entry and never replaces one (a journal): not harmless to repeat
    OBJECT = "object"
    LIST = "list"


@dataclasses.dataclass(frozen=True)
class FieldType:
    """What a system says about one of its fields."""

    name: str
    kind: FieldKind = FieldKind.TEXT
    length: int | None = None  # characters that fit; None: no limit known
    choices: tuple[Scalar, ...] = ()  # empty: free, or not known
    writable: bool = True
    searchable: bool = True
    unique: bool = (
        False  # a create with a value that some record has is refused, as `exists_already`, and changes nothing
    )
    refers_to: tuple[str, ...] = ()  # record types that a reference may point to


@dataclasses.dataclass(frozen=True)
class RecordType:
    """What a system says about a kind of record."""

    record: str
    noun: str  # what people call one: "case", "incident"; forms reasons such as case_not_active
    fields: Mapping[str, FieldType]
    only_added: bool = False  # records of this kind are made and never changed or removed (journal entries)


@dataclasses.dataclass(frozen=True)
class Row:
    """One record as a system showed it."""

    key: str  # what a reference to it holds
    fields: Mapping[str, Value]  # exactly the paths that were asked for, each present, flat ("caller_id.email")
    version: str = ""  # orders the record's changes by plain text comparison; "" if the system has none
    changed_at: datetime | None = None  # aware UTC
    label: str = ""  # for people, without personal data: a ticket number
    url: str = ""  # for people, without any key
    closed: bool = False  # the system takes no more changes (target), or the record is over (source)
    inner: Mapping[str, str] = dataclasses.field(default_factory=dict)  # path of a reference -> version of that record
    created_at: datetime | None = None  # aware UTC; None: the system was not asked
    problem: str = (
        ""  # a sentence: what of the record's own facts (its time) could not be read, so that it must not be worked
    )


@dataclasses.dataclass(frozen=True)
class Page:
    """One page of changed records, in the order of change, then key."""

    rows: tuple[Row, ...]
    next: str | None  # opaque; None: this was the last page
    total: int | None = None


@dataclasses.dataclass(frozen=True)
class Test:
    """One line of a condition: the field holds any of these values (None: is empty), or, negated, none of them."""

    any_of: tuple[Scalar, ...]
    negated: bool = False


Condition = Mapping[str, Test]
"""Path to test; all must hold."""


@dataclasses.dataclass(frozen=True)
class Changed:
    """Which records a page lists: changed at or after `since` and before `until` (aware UTC, None: open), and `when`."""

    since: datetime | None
    until: datetime | None
    when: Condition = dataclasses.field(default_factory=dict)


Paths = frozenset[str]
"""All dotted paths that the recipe reads of a record. A reference without a further path is its key."""


@dataclasses.dataclass(frozen=True)
class Write:
    """One record to be written: created when `key` is None, else changed."""

    key: str | None
    fields: Mapping[str, Value] | None  # a field's None empties it; no fields at all: the record is removed
    # the first match rule, for native upserts; of a child that is known by a marker: the marker, as its field holds it
    match: Mapping[str, Value] = dataclasses.field(default_factory=dict)
    parent: str | None = None  # key of the record that a child belongs to


@dataclasses.dataclass(frozen=True)
class Written:
    """What became of a write."""

    key: str
    created: bool
    row: Row | None = None  # the record as the answer shows it, with the fields that were sent; None: not shown


class Permits(Protocol):
    """A connection's concurrency, pauses and daily budget, handed to its client."""

    def hold(self, *, ahead: bool = False) -> AbstractContextManager[None]:
        """Hold one permit during a call; with `ahead` the call goes before those that wait without.

        Raises RateLimitedError when none comes free within a few seconds.
        """

    def expect(self, calls: int) -> None:
        """Tell that so many calls come now, side by side."""

    def pause(self, seconds: float) -> None:
        """Stop every worker's calls to this connection for a while (Retry-After)."""


class System(Protocol):
    """Every client. Methods raise RemoteError and its kinds."""

    transaction_s: (
        float  # the vendor's longest transaction: when it has passed, a lost create has happened or never will
    )

    def describe(self, record: str) -> RecordType:
        """Return what the system says about a record type. Raises RejectedError when it has no such type."""

    def fetch_rows(self, record: str, paths: Paths, by: Sequence[str], values: Sequence[Key]) -> list[Row]:
        """Fetch records by key (`by` empty, one id per Key) or by fields (all of a Key together), however many.

        Rows come in no order and may be fewer or more than the values. Each one carries a value asked for: an answer
        that ignored the question raises RejectedError. An empty value is never asked for (ValueError).
        """

    def url(self, record: str, key: str) -> str:
        """Return the address at which a person sees a record, without any key."""


class Source(System, Protocol):
    """A system that records are read from."""

    def read_clock(self) -> datetime:
        """Return the vendor's current time (its Date header), aware UTC, whole seconds."""

    def fetch_page(
        self, record: str, paths: Paths, changed: Changed, page: str | None, *, in_bulk: bool = False, fill: int = 1
    ) -> Page:
        """Fetch a page of changed records; `page` is the previous page's `next`, None for the first.

        All pages of a listing are asked for alike; those of one in bulk are larger, of `fill` records or a multiple of it.
        Raises RejectedError with code `page_expired` when the vendor no longer knows the page.
        """


class Target(System, Protocol):
    """A system that records are written to."""

    writes_together: int  # records that one call can write

    def write_rows(self, record: str, writes: Sequence[Write]) -> list[Written | SyncError]:
        """Write records; one answer each, in the same order. Never repeats a create or an append by itself.

        Children of one parent are made in the order given. Removing a record that is gone already succeeds.
        """


@dataclasses.dataclass(frozen=True)
class Webhook:
    """A request as the receiver got it."""

    headers: Mapping[str, str]  # lower-case names
    query: Mapping[str, str]
    body: bytes


@dataclasses.dataclass(frozen=True)
class Event:
    """One change that a system told us of; the record is re-read before anything is done with it."""

    record: str
    key: str
    name: str  # the vendor's word: Create, Update, Delete, or a process event's name
    event_id: str  # equal for repeats of the same event


class Sender(Protocol):
    """A system that calls our webhook."""

    def read_events(self, request: Webhook) -> list[Event]:
        """Check key or signature and origin, then read the events.

        Raises AccessError for a bad key or a foreign origin, MappingError for a body that cannot be read.
        """
