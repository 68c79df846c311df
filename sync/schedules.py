"""Schedules: which start of a timer is due, decided from two times. Pure: the timer trigger asks once a minute."""

import dataclasses
import re
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
EVERY_DAY = frozenset(range(7))
UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclasses.dataclass(frozen=True)
class DailyAt:
    """A local time on certain days of the week."""

    at: time
    zone: ZoneInfo
    days: frozenset[int] = EVERY_DAY  # 0 is Monday


@dataclasses.dataclass(frozen=True)
class Every:
    """A fixed interval, counted from the epoch, so that all workers agree."""

    seconds: int


Schedule = DailyAt | Every


def due(schedule: Schedule, last_fired: datetime, now: datetime) -> datetime | None:
    """Return the latest occurrence after `last_fired` and up to `now`, or None; several missed ones count as one.

    A schedule that has never fired counts from the time of its activation. A local time that the clocks skip fires at
    the same distance after the gap, one that they repeat fires the first time only.
    """
    occurrence = _latest(schedule, now)
    return occurrence if occurrence > last_fired else None


def parse_interval_s(text: str) -> int:
    """Read `5m`, `90s`, `1h`, `1d` as seconds. Raises ValueError."""
    match = re.fullmatch(r"(\d{1,6})\s*([smhd])", text)
    if not match or not int(match[1]):
        raise ValueError(f"`{text}` is not an interval; write a number and s, m, h or d, such as 5m")
    return int(match[1]) * UNITS_S[match[2]]


def parse_days(text: str) -> frozenset[int]:
    """Read `mon-fri`, `sat,sun`, `fri-mon`. Raises ValueError."""
    days: set[int] = set()
    for part in text.lower().replace(" ", "").split(","):
        first, _, last = part.partition("-")
        if first not in DAYS or (last or first) not in DAYS:
            raise ValueError(f"`{text}` are not days of the week; write them like mon-fri or sat,sun")
        start, end = DAYS.index(first), DAYS.index(last or first)
        days |= {(start + step) % 7 for step in range((end - start) % 7 + 1)}
    return frozenset(days)


def parse_time(text: str) -> time:
    """Read `06:30`. Raises ValueError."""
    if not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", text):
        raise ValueError(f"`{text}` is not a time of day; write it in quotes like '06:30'")
    return time.fromisoformat(text)


def parse_zone(text: str) -> ZoneInfo:
    """Read an IANA time zone. Raises ValueError."""
    try:
        return ZoneInfo(text)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # OSError: a name that is a folder of the database
        raise ValueError(f"`{text}` is not a time zone; write it like Europe/Berlin") from None


def _latest(schedule: Schedule, now: datetime) -> datetime:
    if isinstance(schedule, Every):
        return datetime.fromtimestamp(now.timestamp() // schedule.seconds * schedule.seconds, UTC)
    day = now.astimezone(schedule.zone).date() + timedelta(days=1)
    while True:
        occurrence = datetime.combine(day, schedule.at, tzinfo=schedule.zone).astimezone(UTC)
        if day.weekday() in schedule.days and occurrence <= now:
            return occurrence
        day -= timedelta(days=1)
