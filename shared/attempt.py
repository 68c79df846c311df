"""The current attempt: what log lines, permits and vendor calls need to know about the work they are part of.

Set once per trigger with `attempt(...)`; read by telemetry (fields of every line), permits (the lane), http
(correlation id and the moment after which no vendor call may start).
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from enum import StrEnum


class Lane(StrEnum):
    """Whose share of a connection's permits a call uses."""

    RUN = "run"
    EVENT = "event"


@dataclasses.dataclass(frozen=True)
class Attempt:
    """Facts of the work in hand; empty outside a trigger."""

    lane: Lane = Lane.RUN
    ends_at_s: float = float("inf")  # time.monotonic() by which every vendor call must have ended
    run_id: str = ""
    recipe: str = ""
    record_key: str = ""
    correlation_id: str = ""  # passed to vendors where they accept one

    def left_s(self, now_s: Callable[[], float] = time.monotonic) -> float:
        """Return the seconds that are left for vendor calls."""
        return self.ends_at_s - now_s()


def monotonic_s() -> float:
    """Return the clock that `ends_at_s` is on."""
    return time.monotonic()


_CURRENT: ContextVar[Attempt] = ContextVar("attempt", default=Attempt())  # noqa: B039  # frozen


def current() -> Attempt:
    """Return the attempt in hand."""
    return _CURRENT.get()


@contextlib.contextmanager
def attempt(**changes: object) -> Iterator[Attempt]:
    """Work inside an attempt: the one in hand with these facts changed."""
    changed = dataclasses.replace(_CURRENT.get(), **changes)  # type: ignore[arg-type]  # names are checked by replace
    token = _CURRENT.set(changed)
    try:
        yield changed
    finally:
        _CURRENT.reset(token)
