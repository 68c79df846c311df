"""The faults of the sweep: what happens to one outgoing call, and which calls each of them makes sense for."""

import dataclasses
from enum import StrEnum

STORAGE = frozenset({"queue", "table"})
LOGIN = "login"
MAIL = "mail"


class Effect(StrEnum):
    """What becomes of a struck request on its way."""

    REFUSE = "refuse"  # nobody listens
    RESET_BEFORE = "reset_before"  # cut before the request is looked at
    RESET_AFTER = "reset_after"  # takes effect, then cut
    SILENT_AFTER = "silent_after"  # takes effect, and no answer ever comes
    LATE = "late"  # no answer comes, and it takes effect only after our time-out
    HANG = "hang"  # no answer comes, and it never takes effect
    STATUS = "status"  # answered with a status, without effect
    STATUS_AFTER = "status_after"  # takes effect, and a gateway answers with a status
    CUT = "cut"  # takes effect; the connection ends in the middle of the body
    SHORT = "short"  # takes effect; half of the body, well framed
    HTML = "html"  # takes effect; 200 with a web page
    EXPIRE = "expire"  # every token that was given out is void from here on
    KILL_BEFORE = "kill_before"  # the process ends before the request leaves
    KILL_AFTER = "kill_after"  # the process ends when the answer arrives


@dataclasses.dataclass(frozen=True)
class Fault:
    """One column of the matrix."""

    name: str
    effect: Effect
    status: int = 0
    retry_after_s: int | None = None
    lasting: bool = False  # strikes the same call again until the attempt gives up
    waits: bool = False  # no answer ever comes: costs a time-out

    def fits(self, channel: str) -> bool:
        """Tell whether the fault makes sense for a channel's calls."""
        if channel == MAIL:
            return self.name in MAIL_FAULTS
        if self.effect is Effect.EXPIRE:
            return channel not in STORAGE and channel != LOGIN
        return True


FAULTS = (
    Fault("refused", Effect.REFUSE),
    Fault("refused, lasting", Effect.REFUSE, lasting=True),
    Fault("reset before", Effect.RESET_BEFORE),
    Fault("reset after", Effect.RESET_AFTER),
    Fault("reset after, lasting", Effect.RESET_AFTER, lasting=True),
    Fault("answer lost", Effect.SILENT_AFTER, waits=True),
    Fault("late effect", Effect.LATE, waits=True),
    Fault("hangs", Effect.HANG, waits=True),
    Fault("429", Effect.STATUS, 429),
    Fault("429 Retry-After", Effect.STATUS, 429, retry_after_s=20),
    Fault("500", Effect.STATUS, 500),
    Fault("502", Effect.STATUS, 502),
    Fault("503", Effect.STATUS, 503),
    Fault("503, lasting", Effect.STATUS, 503, lasting=True),
    Fault("502 after effect", Effect.STATUS_AFTER, 502),
    Fault("cut body", Effect.CUT),
    Fault("short body", Effect.SHORT),
    Fault("HTML with 200", Effect.HTML),
    Fault("token expired", Effect.EXPIRE),
    Fault("killed before", Effect.KILL_BEFORE),
    Fault("killed after", Effect.KILL_AFTER),
)
MAIL_FAULTS = frozenset({"refused", "answer lost", "hangs", "503", "killed before", "killed after"})
BY_NAME = {fault.name: fault for fault in FAULTS}
