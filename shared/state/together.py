"""Group commit of webhook events: those that come while a send is under way, or shortly after it began, go as one message.

A caller is answered when the message that holds its event is in the queue. When idle an event goes at once and alone; the
more come and the longer a send takes, the more share a message, so a busy storage is asked less and not more: each message is
a send, a share of a receipt and a deletion. Only a message that is full does not wait: callers never come faster than they
are answered because a single send takes long.
"""

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from shared.errors import StateError, SyncError
from shared.state.rows import EventMessage

MOST_EVENTS = 100  # of a message
MOST_BYTES = 48 * 1024  # of a message of several
APART_S = 0.03  # from one send's begin to the next


def packed(events: Sequence[tuple[EventMessage, int]]) -> Iterator[EventMessage]:
    """Yield events, each with its size in bytes, as few messages of several."""
    piece: list[EventMessage] = []
    piece_bytes = 0
    for event, size in events:
        if piece and (len(piece) == MOST_EVENTS or piece_bytes + size > MOST_BYTES):
            yield _message_of(piece)
            piece, piece_bytes = [], 0
        piece.append(event)
        piece_bytes += size
    if piece:
        yield _message_of(piece)


def _message_of(events: Sequence[EventMessage]) -> EventMessage:
    first, *others = events
    return first.model_copy(update={"others": others})


@dataclasses.dataclass(eq=False)
class _Waiting:
    """An event whose caller waits."""

    event: EventMessage
    size: int
    ends_at_s: float  # when its caller gives up
    ended: bool = False
    error: SyncError | None = None


class SentTogether:
    """Sends events of many threads; `send(message, timeout_s)` sends a message."""

    def __init__(
        self,
        send: Callable[[EventMessage, float], None],
        apart_s: float = APART_S,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._send, self._now_s, self._under_way = send, now_s, 0
        self._apart_s, self._next_at_s = apart_s, 0.0
        self._changed = threading.Condition()
        self._waiting: list[_Waiting] = []

    def waiting(self) -> int:
        """Return how many events wait for a send to begin."""
        with self._changed:
            return len(self._waiting)

    def send(self, event: EventMessage, size: int, timeout_s: float) -> None:
        """Return when the event is in the queue. Raises StateError when it is not, or not in time.

        When a send may begin, the caller with the most time left sends, and takes along those that have waited longest: they
        are answered within their own time, and a send has time enough.
        """
        own = _Waiting(event, size, self._now_s() + timeout_s)
        together: list[_Waiting] = []
        with self._changed:
            self._waiting.append(own)
            if self._is_full():
                self._changed.notify_all()
            self._await_turn(own)
            if own not in self._waiting:  # another caller has taken it along
                self._changed.wait_for(lambda: own.ended, max(0.0, own.ends_at_s - self._now_s()))
            elif self._is_next(own, self._now_s()):
                together = self._take(own)
            else:
                self._waiting.remove(own)
        if together:
            self._send_all(together, own.ends_at_s - self._now_s())
        if not own.ended:
            raise StateError("Storage did not answer in time")
        if own.error is not None:
            raise own.error

    def _await_turn(self, own: _Waiting) -> None:
        while own in self._waiting:
            now_s = self._now_s()  # one look for all: a send that may begin between two would be begun by nobody
            if self._is_next(own, now_s) or now_s >= own.ends_at_s:
                return
            too_early = not self._under_way and now_s < self._next_at_s
            self._changed.wait(min(own.ends_at_s, self._next_at_s if too_early else own.ends_at_s) - now_s)

    def _is_next(self, own: _Waiting, now_s: float) -> bool:
        may_send = self._is_full() or (not self._under_way and now_s >= self._next_at_s)
        return may_send and own is max(self._waiting, key=lambda each: each.ends_at_s)

    def _is_full(self) -> bool:
        return len(self._waiting) >= MOST_EVENTS or sum(each.size for each in self._waiting) >= MOST_BYTES

    def _take(self, own: _Waiting) -> list[_Waiting]:
        self._under_way += 1
        self._next_at_s = self._now_s() + self._apart_s
        together, size = [own], own.size
        for each in self._waiting:
            if len(together) == MOST_EVENTS:
                break
            if each is not own and size + each.size <= MOST_BYTES:
                together.append(each)
                size += each.size
        self._waiting = [each for each in self._waiting if each not in together]
        return together

    def _send_all(self, together: list[_Waiting], timeout_s: float) -> None:
        error: SyncError | None = StateError("The send was given up")
        try:
            self._send(_message_of([each.event for each in together]), timeout_s)
            error = None
        except SyncError as exc:
            error = exc
        finally:
            with self._changed:
                self._under_way -= 1
                for each in together:
                    each.error, each.ended = error, True  # in this order: its caller may look without the lock
                self._changed.notify_all()
