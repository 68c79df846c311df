"""Every message that Concord sends, as a documented model with a schema version.

A message may carry a record, in canonical values.
"""

import json
from datetime import UTC, date, datetime
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, PlainSerializer, WrapValidator

from shared.clients.system import Row, Value

# -- canonical values ----------------------------------------------------------------------------------------------


def _dump_value(value: Value) -> Any:
    if isinstance(value, datetime):
        return {"$time": value.astimezone(UTC).isoformat()}
    if isinstance(value, list):
        return [_dump_value(entry) for entry in value]
    if isinstance(value, dict):
        return {name: _dump_value(entry) for name, entry in value.items()}
    return value


def _load_value(value: Any) -> Value:
    if isinstance(value, list):
        return [_load_value(entry) for entry in value]
    if isinstance(value, dict):
        if set(value) == {"$time"}:
            return datetime.fromisoformat(value["$time"])
        return {name: _load_value(entry) for name, entry in value.items()}
    return value  # type: ignore[no-any-return]  # JSON scalars


Canonical = Annotated[Any, PlainSerializer(_dump_value), WrapValidator(lambda value, _: _load_value(value))]
"""A canonical value that survives JSON: times travel as {"$time": …}."""


class RowModel(BaseModel):
    """A Row inside a message."""

    model_config = ConfigDict(frozen=True)

    key: str
    fields: dict[str, Canonical]
    version: str = ""
    changed_at: datetime | None = None
    created_at: datetime | None = None
    label: str = ""
    url: str = ""
    closed: bool = False
    inner: dict[str, str] = {}

    @classmethod
    def of(cls, row: Row) -> "RowModel":
        """Wrap a Row."""
        return cls(**{name: getattr(row, name) for name in cls.model_fields})

    def row(self) -> Row:
        """Unwrap the Row."""
        return Row(**{name: getattr(self, name) for name in type(self).model_fields})


# -- messages -----------------------------------------------------------------------------------------------------


class Message(BaseModel):
    """A queue message: ASCII JSON.

    `first_id` is the id of the message that first carried this work: the owner of its claims. Empty until the work is
    sent again, because the queue gives the id.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    QUEUE: ClassVar[str]

    schema_version: int = 1
    first_id: str = ""
    attempt: int = 1  # failed attempts before this one, plus one; waiting does not count
    first_sent_at: datetime | None = None  # of the work, bounds its total wait
    reason: str = ""  # code of what went wrong last time
    problem: str = ""  # its sentence

    def body(self) -> str:
        """Return the message's text."""
        return json.dumps(self.model_dump(mode="json"), ensure_ascii=True, separators=(",", ":"))


class Prepared(BaseModel):
    """What the page found out for one record, so that the item needs one vendor call. Trusted on a first attempt only."""

    model_config = ConfigDict(frozen=True)

    at: datetime
    link: dict[str, Any] | None = None  # LinkRow as JSON, with its etag
    linked: bool = False  # whether `link` was looked up at all
    references: dict[str, dict[str, Any]] = {}  # target field -> what its `find` came to
    target: RowModel | None = None  # the linked or matched target record
    matched: bool = False  # whether the match rules were asked; with `target` None: nothing matches
    matched_by: str = ""  # the rule that found `target`


class ItemModel(BaseModel):
    """One record of an ItemsMessage: in full, or its key alone."""

    model_config = ConfigDict(frozen=True)

    key: str
    row: RowModel | None = None
    prepared: Prepared | None = None


class PageMessage(Message):
    """List one page of a run and send its records on."""

    QUEUE: ClassVar[str] = "pages"

    run_id: str
    page: int = 0
    link: str = ""  # the previous page's next link
    release: bool = False  # the page is listed; its held records may go
    next_sent: bool = False  # the next page's message was sent before this one went back


class ItemsMessage(Message):
    """Work these records of a run's page."""

    QUEUE: ClassVar[str] = "items"

    run_id: str
    page: int
    items: list[ItemModel]


class EventMessage(Message):
    """Work one webhook event, and those that were sent along with it."""

    QUEUE: ClassVar[str] = "events"

    schema_version: int = 2  # since `others`, which an older app would overlook
    recipe: str
    record: str  # connection.record
    key: str
    name: str
    event_id: str
    received_at: datetime
    row: RowModel | None = None  # as it was sent, where the answer to its create was lost: it is looked up by that
    others: list["EventMessage"] = []  # came while an earlier send was under way; they hold no others


class RunMessage(Message):
    """See whether a run has all its results, and end it if so."""

    QUEUE: ClassVar[str] = "runs"

    run_id: str
    turn: int = 0  # of the run's row when this was sent: a message of an earlier turn was replaced by a later one


class SummaryMessage(Message):
    """Send a run's summary, or a recipe's digest of a day."""

    QUEUE: ClassVar[str] = "summaries"

    run_id: str = ""
    recipe: str = ""  # of a digest
    day: date | None = None  # of a digest


MESSAGES: tuple[type[Message], ...] = (PageMessage, ItemsMessage, EventMessage, RunMessage, SummaryMessage)
