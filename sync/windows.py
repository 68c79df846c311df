"""Windows: which span of changes a run covers, in words that people write and as explicit UTC bounds.

The vendor's own relative functions are never used: they follow the calling user's time zone and week.
"""

import dataclasses
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo

FORMS = (
    "yesterday, today, last_week, last_month, last_days:N, from=DATE to=DATE (dates or ISO times), ids=A,B, all, "
    "since_last_run"
)
MAX_DAYS = 3660
FIRST_YEAR, LAST_YEAR = 1900, 2999  # storage takes no time before 1601, and 9999-12-31 has no next day


class WindowKind(StrEnum):
    """The word of a window."""

    YESTERDAY = "yesterday"
    TODAY = "today"
    LAST_WEEK = "last_week"
    LAST_MONTH = "last_month"
    LAST_DAYS = "last_days"
    SPAN = "span"
    IDS = "ids"
    ALL = "all"
    SINCE_LAST_RUN = "since_last_run"


PLAIN_KINDS = tuple(kind for kind in WindowKind if kind not in {WindowKind.LAST_DAYS, WindowKind.SPAN, WindowKind.IDS})


@dataclasses.dataclass(frozen=True)
class Window:
    """A window as asked for; equal windows have equal texts."""

    kind: WindowKind
    days: int = 0  # of last_days
    since: date | datetime | None = None  # of a span: a date in the run's zone, or an aware UTC time
    until: date | datetime | None = None  # of a span: a date is included whole, a time is not
    ids: tuple[str, ...] = ()  # sorted, each once

    def __str__(self) -> str:
        match self.kind:
            case WindowKind.LAST_DAYS:
                return f"last_days:{self.days}"
            case WindowKind.IDS:
                return f"ids={','.join(self.ids)}"
            case WindowKind.SPAN:
                ends = (("from", self.since), ("to", self.until))
                return " ".join(f"{word}={_moment_text(moment)}" for word, moment in ends if moment is not None)
            case _:
                return self.kind.value


def parse_window(text: str) -> Window:
    """Read a window from its text. Raises ValueError with the allowed forms."""
    words = text.split()
    if len(words) == 1 and words[0] in PLAIN_KINDS:
        return Window(WindowKind(words[0]))
    if len(words) == 1 and (match := re.fullmatch(r"last_days[:=](\d{1,4})", words[0])):
        return _last_days(int(match[1]))
    parts = dict(word.split("=", 1) for word in words if "=" in word)
    if len(parts) == len(words) and parts.keys() <= {"from", "to", "ids"}:
        return build_window(parts)
    raise ValueError(f"`{text}` is not a window; allowed are {FORMS}")


def build_window(parameters: Mapping[str, str]) -> Window:
    """Read a window from the `window`, `from`, `to` and `ids` of a request; they do not mix, but `from` with `to`.

    Raises ValueError with the allowed forms.
    """
    given = {name: parameters[name].strip() for name in ("window", "from", "to", "ids") if parameters.get(name)}
    if given.keys() == {"window"}:
        return parse_window(given["window"])
    if given.keys() == {"ids"}:
        ids = sorted({word.strip() for word in given["ids"].split(",")} - {""})
        if ids:
            return Window(WindowKind.IDS, ids=tuple(ids))
    elif given and given.keys() <= {"from", "to"}:
        return _span(given.get("from"), given.get("to"))
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} do not go together; allowed are {FORMS}")
    raise ValueError(f"{', '.join(given) or 'the window'} is empty; allowed are {FORMS}")


def bounds(window: Window, now: datetime, zone: ZoneInfo) -> tuple[datetime | None, datetime | None]:
    """Return since (inclusive) and until (exclusive), aware UTC; days begin and end in `zone`.

    `since` is None where the window has no lower bound of its own: all, since_last_run (the cursor gives it), ids
    (whose bounds are both None). `until` is never later than `now`.
    """
    if window.kind is WindowKind.IDS:
        return None, None
    if window.kind is WindowKind.SPAN:
        until = _instant(window.until, zone, ends=True) if window.until else now
        return _instant(window.since, zone) if window.since else None, min(until, now)
    today = now.astimezone(zone).date()
    monday = today - timedelta(days=today.weekday())
    month = today.replace(day=1)
    days: dict[WindowKind, tuple[date | None, date | None]] = {
        WindowKind.YESTERDAY: (today - timedelta(days=1), today),
        WindowKind.TODAY: (today, None),
        WindowKind.LAST_WEEK: (monday - timedelta(days=7), monday),
        WindowKind.LAST_MONTH: ((month - timedelta(days=1)).replace(day=1), month),
        WindowKind.LAST_DAYS: (today - timedelta(days=window.days), None),
    }
    first, end = days.get(window.kind, (None, None))
    return start_of_day(first, zone) if first else None, start_of_day(end, zone) if end else now


def start_of_day(day: date, zone: ZoneInfo) -> datetime:
    """Return the first instant of a local day as UTC, also where the clocks skip midnight."""
    return datetime.combine(day, time.min, tzinfo=zone).astimezone(UTC)


def _last_days(days: int) -> Window:
    if not 1 <= days <= MAX_DAYS:
        raise ValueError(f"last_days takes 1 to {MAX_DAYS} days, not {days}")
    return Window(WindowKind.LAST_DAYS, days=days)


def _span(since: str | None, until: str | None) -> Window:
    window = Window(
        WindowKind.SPAN,
        since=parse_moment(since) if since else None,
        until=parse_moment(until) if until else None,
    )
    if window.since and window.until:
        first, end = _instant(window.since, ZoneInfo("UTC")), _instant(window.until, ZoneInfo("UTC"), ends=True)
        if first >= end:
            raise ValueError(f"`{window}` ends before it begins")
    return window


def parse_moment(text: str) -> date | datetime:
    """Read a date, or an ISO time as aware UTC. Raises ValueError; a time without zone is refused."""
    moment: date | datetime
    try:
        if re.fullmatch(r"\d{4}-\d\d-\d\d", text):
            moment = date.fromisoformat(text)
        else:  # a `+` that a browser's address line turned into a space is put back
            moment = datetime.fromisoformat(re.sub(r" (\d\d:\d\d)$", r"+\1", text))
    except ValueError:
        raise ValueError(f"`{text}` is neither a date (2026-03-01) nor an ISO time (2026-03-01T06:30:00Z)") from None
    if not FIRST_YEAR <= moment.year <= LAST_YEAR:
        raise ValueError(f"`{text}` is not in the years {FIRST_YEAR} to {LAST_YEAR}; window=all has no bounds")
    if not isinstance(moment, datetime):
        return moment
    if moment.tzinfo is None:
        raise ValueError(f"the time `{text}` has no zone; write Z or an offset after it (2026-03-01T06:30:00Z)")
    return moment.astimezone(UTC)


def _instant(moment: date | datetime, zone: ZoneInfo, *, ends: bool = False) -> datetime:
    if isinstance(moment, datetime):
        return moment
    return start_of_day(moment + timedelta(days=1) if ends else moment, zone)


def _moment_text(moment: date | datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
