"""Group commit: what threads have for storage while a send is under way, or shortly after it began, goes as one send.

A caller is answered when the send that holds its part has ended. When idle a part goes at once and alone; the more come and
the longer a send takes, the more share one, so a busy storage is asked less and not more. What is full does not wait, nor
does anybody for a send that hangs: callers never come faster than they are answered because a single send takes long.
"""

import contextlib
import dataclasses
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from shared.errors import StateError, SyncError

STUCK_S = 1.0  # a send that takes longer holds up nobody else

P = TypeVar("P")


@dataclasses.dataclass(eq=False)
class _Waiting(Generic[P]):
    """A part whose caller waits."""

    part: P
    size: int
    ends_at_s: float  # when its caller gives up
    began_s: float = 0.0  # of the send that its caller makes
    ended: bool = False
    error: SyncError | None = None


class Together(Generic[P]):
    """Sends parts of many threads; `send(parts, timeout_s)` sends some of them, all or none.

    From one send's begin to the next pass `apart_s` seconds, unless `most` parts or `most_bytes` wait, or all that come.
    """

    def __init__(
        self,
        send: Callable[[Sequence[P], float], None],
        *,
        apart_s: float,
        most: int,
        most_bytes: float = math.inf,
        stuck_s: float = STUCK_S,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._send, self._now_s = send, now_s
        self._began_s: list[float] = []  # the sends under way
        self._most, self._most_bytes = most, most_bytes
        self._apart_s, self._stuck_s, self._next_at_s = apart_s, stuck_s, 0.0
        self._changed = threading.Condition()
        self._waiting: list[_Waiting[P]] = []
        self._coming = 0

    def waiting(self) -> int:
        """Return how many parts wait for a send to begin."""
        with self._changed:
            return len(self._waiting)

    @contextlib.contextmanager
    def coming(self) -> Iterator[None]:
        """Announce a caller: when all who are announced wait, there is nobody to wait for."""
        with self._changed:
            self._coming += 1
        try:
            yield
        finally:
            with self._changed:
                self._coming -= 1
                self._changed.notify_all()

    def send(self, part: P, timeout_s: float, size: int = 0) -> None:
        """Return when the part is stored. Raises StateError when it is not, or not in time.

        When a send may begin, the caller with the most time left sends, and takes along those that have waited longest: they
        are answered within their own time, and a send has time enough.
        """
        own = _Waiting(part, size, self._now_s() + timeout_s)
        together: list[_Waiting[P]] = []
        with self._changed:
            self._waiting.append(own)
            if self._is_full() or self._are_all_here():
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

    def _await_turn(self, own: _Waiting[P]) -> None:
        while own in self._waiting:
            now_s = self._now_s()  # one look for all: a send that may begin between two would be begun by nobody
            if self._is_next(own, now_s) or now_s >= own.ends_at_s:
                return
            turn_at_s = self._turn_at_s()
            self._changed.wait(min(own.ends_at_s, turn_at_s if now_s < turn_at_s else own.ends_at_s) - now_s)

    def _is_next(self, own: _Waiting[P], now_s: float) -> bool:
        idle = now_s >= self._free_at_s()
        may_send = self._is_full() or now_s >= self._turn_at_s() or (idle and self._are_all_here())
        return may_send and own is max(self._waiting, key=lambda each: each.ends_at_s)

    def _turn_at_s(self) -> float:
        return max(self._next_at_s, self._free_at_s())

    def _free_at_s(self) -> float:
        """Return when no send is under way that is to be waited for, as far as is known."""
        return max(self._began_s, default=-math.inf) + self._stuck_s

    def _are_all_here(self) -> bool:
        return 0 < self._coming <= len(self._waiting)

    def _is_full(self) -> bool:
        return len(self._waiting) >= self._most or sum(each.size for each in self._waiting) >= self._most_bytes

    def _take(self, own: _Waiting[P]) -> list[_Waiting[P]]:
        own.began_s = self._now_s()
        self._began_s.append(own.began_s)
        self._next_at_s = own.began_s + self._apart_s
        together, size = [own], own.size
        for each in self._waiting:
            if len(together) == self._most:
                break
            if each is not own and size + each.size <= self._most_bytes:
                together.append(each)
                size += each.size
        self._waiting = [each for each in self._waiting if each not in together]
        return together

    def _send_all(self, together: list[_Waiting[P]], timeout_s: float) -> None:
        error: SyncError | None = StateError("The send was given up")
        try:
            self._send([each.part for each in together], timeout_s)
            error = None
        except SyncError as exc:
            error = exc
        finally:
            with self._changed:
                self._began_s.remove(together[0].began_s)
                for each in together:
                    each.error, each.ended = error, True  # in this order: its caller may look without the lock
                self._changed.notify_all()
