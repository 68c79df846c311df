"""Messages in Azure queues: ASCII JSON, checked for size, never expiring; the host receives and deletes them,
but for those that an invocation takes along (`take_more`).

A send whose answer was lost cannot be read back. It is repeated, which may put the message there twice: harmless, as a
second copy finds what the first one did.
"""

import dataclasses
import json
import logging
import math
import time
import xml.sax.saxutils
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Generic, TypeVar

from azure.core.exceptions import (
    AzureError,
    ResourceExistsError,
    ServiceResponseError,
    ServiceResponseTimeoutError,
)
from azure.storage.queue import QueueClient, QueueMessage, QueueServiceClient
from pydantic import ValidationError

from shared.errors import ConfigError, MappingError, StateError
from shared.state.messages import EventMessage, ItemModel, ItemsMessage, Message
from shared.state.storage import Operations, SideBySide, code_of, state_error, status_of
from shared.state.together import Together

MAX_BODY_BYTES = 64 * 1024  # https://learn.microsoft.com/rest/api/storageservices/put-message
FITTING_BYTES = 40 * 1024  # of an items message: records travel in it up to here, else their keys alone
MAX_DELAY_S = 7 * 24 * 3600
FOR_EVER = -1
MAX_PROBLEM_CHARS = 1_000
MOST_TAKEN = 32  # by one call
POISON = "-poison"
MOST_EVENTS = 100  # of a message
MOST_EVENTS_BYTES = 48 * 1024  # of a message of several
EVENTS_APART_S = 0.03  # from one message's begin to the next: each is a send, a share of a receipt and a deletion
CONNECT_SHARE = 0.4  # of a bounded send's time; the rest is for the answer

LOG = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)


@dataclasses.dataclass(frozen=True)
class Taken(Generic[M]):
    """A message in hand."""

    message: M
    id: str  # that the queue gave it
    dequeue_count: int = 1
    pop_receipt: str = ""  # empty: the host ends the message, when its invocation ends well

    @property
    def repeated(self) -> bool:
        """Whether an earlier attempt may have worked it."""
        return self.dequeue_count > 1 or self.message.attempt > 1 or bool(self.message.first_id)


class Queues:
    """The queues of a storage account; used by many threads. A queue is created when it is first sent to."""

    def __init__(
        self, service: QueueServiceClient, prefix: str = "", *, side_by_side: SideBySide | None = None
    ) -> None:
        if prefix and not (prefix.replace("-", "").isalnum() and prefix == prefix.lower() and prefix.isascii()):
            raise ConfigError(f"A queue prefix is made of small letters, digits and hyphens, and {prefix!r} is not")
        self._service = service
        self._prefix = prefix
        self._clients: dict[str, QueueClient] = {}
        self._side_by_side = side_by_side or SideBySide()
        self._together = Together(
            self._send_as_one, apart_s=EVENTS_APART_S, most=MOST_EVENTS, most_bytes=MOST_EVENTS_BYTES
        )
        self.operations = Operations()

    def send(self, message: Message, delay_s: float = 0, *, timeout_s: float | None = None) -> None:
        """Send a message that shows up after `delay_s` seconds, seven days at the most.

        With `timeout_s` the send is given up after these seconds, for a caller who cannot wait; the message may be there
        nevertheless. It is repeated only on a kept connection that storage had just closed. Raises StateError when storage
        does not take it, or when it is larger than a queue allows.
        """
        kind, body = type(message).__name__, message.body()
        if (size := sent_bytes(body)) > MAX_BODY_BYTES:
            raise StateError(
                f"An {kind} has {size:,} bytes; a queue takes {MAX_BODY_BYTES:,}", code="message_too_large"
            )
        hidden_s = min(max(0, math.ceil(delay_s)), MAX_DELAY_S)
        bound = {} if timeout_s is None else {"ends_at_s": time.monotonic() + timeout_s}
        self._send(message.QUEUE, body, hidden_s, **bound)

    def send_event(self, event: EventMessage, timeout_s: float) -> None:
        """Send an event within a time, together with those of other threads while storage is busy. Raises StateError."""
        self._together.send(event, timeout_s, sent_bytes(event.body()))

    def _send_as_one(self, events: Sequence[EventMessage], timeout_s: float) -> None:
        self.send(_message_of(events), timeout_s=timeout_s)

    def send_events(self, events: Sequence[EventMessage], delay_s: float) -> None:
        """Send events that wait equally long, several in a message. Raises StateError: some may be sent."""
        self.send_many([*packed([(event, sent_bytes(event.body())) for event in events])], delay_s)

    def send_many(self, messages: Sequence[Message], delay_s: float = 0) -> None:
        """Send messages side by side. Raises the first StateError after all were tried: the others may be sent."""
        self._side_by_side.map(lambda message: self.send(message, delay_s), messages)

    def take_more(self, model: type[M], most: int, lease_s: int) -> "list[Taken[M]]":
        """Take messages that wait behind the one in hand, 32 at the most; each is hidden for `lease_s` and ended by `done`.

        What is not ours is recorded in the log and dropped; what a newer app wrote stays where it is.
        """
        taken: list[Taken[M]] = []
        for entry in self._receive(model.QUEUE, min(MOST_TAKEN, most), lease_s):
            try:
                message = parse(model, str(entry.content))
            except MappingError as exc:
                LOG.error("a message that is not ours was dropped", extra={"queue": model.QUEUE, "code": exc.code})  # noqa: TRY400
                self._delete(model.QUEUE, entry.id, entry.pop_receipt or "")
                continue
            except StateError as exc:
                LOG.warning("a newer app's message was left", extra={"queue": model.QUEUE, "code": exc.code})
                continue
            taken.append(Taken(message, entry.id, entry.dequeue_count or 1, entry.pop_receipt or ""))
        return taken

    def done(self, taken: "Taken[Any]") -> None:
        """End a message that was taken; one that was taken by somebody else since is theirs."""
        self._delete(taken.message.QUEUE, taken.id, taken.pop_receipt)

    def _receive(self, queue: str, count: int, lease_s: int) -> list[QueueMessage]:
        self.operations.add("receive")
        try:
            pages = self._client(queue).receive_messages(max_messages=count, visibility_timeout=lease_s)
            return list(pages)
        except AzureError as exc:
            if code_of(exc) == "QueueNotFound":
                return []
            raise state_error(exc, f"receive from the queue {queue}") from None

    def _delete(self, queue: str, message_id: str, pop_receipt: str) -> None:
        self.operations.add("delete")
        try:
            self._client(queue).delete_message(message_id, pop_receipt)
        except AzureError as exc:
            if status_of(exc) not in (400, 404):  # gone, or taken by somebody else since
                raise state_error(exc, f"end a message of the queue {queue}") from None

    def length(self, queue: str) -> int:
        """Return about how many messages a queue holds, hidden ones too; `poison_of` names its poison queue."""
        self.operations.add("length")
        try:
            return self._client(queue).get_queue_properties().approximate_message_count or 0
        except AzureError as exc:
            if code_of(exc) == "QueueNotFound":
                return 0
            raise state_error(exc, f"look at the queue {queue}") from None

    def peek(self, queue: str, count: int = 1) -> list[str]:
        """Return the texts of the first messages that are not hidden, 32 at the most, leaving them there."""
        self.operations.add("peek")
        try:
            return [str(each.content) for each in self._client(queue).peek_messages(max_messages=min(count, 32))]
        except AzureError as exc:
            if code_of(exc) == "QueueNotFound":
                return []
            raise state_error(exc, f"look at the queue {queue}") from None

    def create_all(self, names: Sequence[str]) -> None:
        """Create the queues that are not there yet."""
        self._side_by_side.map(self._create, names)

    def _send(self, queue: str, body: str, hidden_s: int, ends_at_s: float | None = None) -> None:
        for last in (False, True):
            self.operations.add("send")
            options = _bounds(ends_at_s)
            try:
                self._client(queue).send_message(body, visibility_timeout=hidden_s, time_to_live=FOR_EVER, **options)
            except AzureError as exc:
                if not last and code_of(exc) == "QueueNotFound":
                    self._create(queue, ends_at_s)
                elif last or ends_at_s is None or not _was_dropped(exc):
                    raise state_error(exc, f"send to the queue {queue}") from None
            else:
                return

    def _create(self, queue: str, ends_at_s: float | None = None) -> None:
        self.operations.add("create_queue")
        try:
            self._client(queue).create_queue(**_bounds(ends_at_s))
        except ResourceExistsError:
            return
        except AzureError as exc:
            raise state_error(exc, f"create the queue {queue}") from None

    def _client(self, queue: str) -> QueueClient:
        client = self._clients.get(queue)
        if client is None:
            client = self._clients[queue] = self._service.get_queue_client(self._prefix + queue)
        return client


def _was_dropped(error: AzureError) -> bool:
    """Return whether the connection ended before an answer, at once and not by a time-out."""
    return isinstance(error, ServiceResponseError) and not isinstance(error, ServiceResponseTimeoutError)


def _bounds(ends_at_s: float | None) -> dict[str, Any]:
    """Return the SDK's options of a call that is made once and has ended by a moment of the monotonic clock."""
    if ends_at_s is None:
        return {}
    left_s = ends_at_s - time.monotonic()
    if left_s <= 0:
        raise StateError("Storage did not answer in time")
    return {
        "retry_total": 0,
        "connection_timeout": left_s * CONNECT_SHARE,
        "read_timeout": left_s * (1 - CONNECT_SHARE),
        "timeout": max(1, math.floor(left_s)),  # the service itself gives up, in whole seconds
    }


def poison_of(queue: str) -> str:
    """Return the name of the queue where the host puts what could not be worked."""
    return queue + POISON


def sent_bytes(body: str) -> int:
    """Return how many bytes a text has as it is sent: inside XML."""
    return len(xml.sax.saxutils.escape(body).encode())


def packed(events: Sequence[tuple[EventMessage, int]]) -> Iterator[EventMessage]:
    """Yield events, each with its size in bytes, as few messages of several."""
    piece: list[EventMessage] = []
    piece_bytes = 0
    for event, size in events:
        if piece and (len(piece) == MOST_EVENTS or piece_bytes + size > MOST_EVENTS_BYTES):
            yield _message_of(piece)
            piece, piece_bytes = [], 0
        piece.append(event)
        piece_bytes += size
    if piece:
        yield _message_of(piece)


def _message_of(events: Sequence[EventMessage]) -> EventMessage:
    first, *others = events
    return first.model_copy(update={"others": others})


def fit(message: ItemsMessage) -> ItemsMessage:
    """Return a message that fits: above 40 KiB its records travel as keys alone, the largest first.

    What cannot be made smaller comes back as it is, and `send` says so.
    """
    size = sent_bytes(message.body())
    if size <= FITTING_BYTES:
        return message
    items = list(message.items)
    sizes = [_item_bytes(item) for item in items]
    for index in sorted(range(len(items)), key=lambda index: -sizes[index]):
        if size <= FITTING_BYTES:
            break
        bare = ItemModel(key=items[index].key)
        size -= sizes[index] - _item_bytes(bare)
        items[index] = bare
    return message.model_copy(update={"items": items})


def _item_bytes(item: ItemModel) -> int:
    return sent_bytes(json.dumps(item.model_dump(mode="json"), separators=(",", ":")))


def again(message: M, *, own_id: str, failed: bool, now: datetime, reason: str = "", problem: str = "") -> M:
    """Build the message that carries on a message's work; `own_id` is the id that the queue gave the one in hand.

    Only a failed attempt counts; waiting does not.
    """
    return message.model_copy(
        update={
            "first_id": message.first_id or own_id,
            "attempt": message.attempt + 1 if failed else message.attempt,
            "first_sent_at": message.first_sent_at or now,
            "reason": reason,
            "problem": problem[:MAX_PROBLEM_CHARS],
        }
    )


def parse(model: type[M], text: str | bytes) -> M:
    """Read a message.

    Raises MappingError `not_ours` for what is none of ours, StateError `newer_schema` for what a newer app wrote: that app
    is to read it.
    """
    try:
        values = json.loads(text)
        version = values["schema_version"]
    except (ValueError, TypeError, LookupError, RecursionError):
        raise _not_ours(model, "it is no JSON object with a schema version") from None
    ours = model.model_fields["schema_version"].default
    if isinstance(version, int) and version > ours:
        raise StateError(
            f"An {model.__name__} was written by a newer app (schema version {version}, this app knows {ours}): deploy the "
            "newer app first",
            code="newer_schema",
        )
    try:
        return model.model_validate(values)
    except ValidationError as exc:  # its text shows the message
        where = ", ".join(f"{'.'.join(map(str, error['loc'][:2]))}: {error['type']}" for error in exc.errors()[:3])
        raise _not_ours(model, where) from None


def _not_ours(model: type[Message], why: str) -> MappingError:
    return MappingError(f"A message in the queue {model.QUEUE} cannot be worked: {why}", code="not_ours")
