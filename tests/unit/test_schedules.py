"""Schedules: which start of a timer is due."""

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sync.schedules import DailyAt, Every, due, parse_days, parse_interval_s, parse_time, parse_zone

BERLIN = ZoneInfo("Europe/Berlin")
AT_0630 = DailyAt(time(6, 30), BERLIN)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("last", "now", "expected"),
    [
        ("2026-03-17T05:30", "2026-03-18T05:29", None),
        ("2026-03-17T05:30", "2026-03-18T05:30", "2026-03-18T05:30"),
        ("2026-03-18T05:30", "2026-03-18T05:31", None),
        ("2026-03-10T05:30", "2026-03-18T09:00", "2026-03-18T05:30"),
        ("2026-03-18T08:00", "2026-03-18T09:00", None),
        ("2026-03-29T04:30", "2026-03-30T04:30", "2026-03-30T04:30"),
    ],
    ids=["too early", "on time", "done", "a week missed", "activated later", "summer time"],
)
def test_a_daily_start_is_due_once(last, now, expected):
    """A local time is due once a day; several missed ones are caught up by one."""
    result = due(AT_0630, utc(last), utc(now))

    assert result == (utc(expected) if expected else None)


def test_days_are_local_days():
    """A Monday in the zone counts, although it is still Sunday in UTC."""
    schedule = DailyAt(time(0, 30), ZoneInfo("Asia/Tokyo"), parse_days("mon-fri"))

    result = due(schedule, utc("2026-03-13T16:00"), utc("2026-03-15T15:30"))

    assert result == utc("2026-03-15T15:30")


def test_a_weekend_is_left_out():
    """Between Friday and Monday nothing is due."""
    schedule = DailyAt(time(6, 30), BERLIN, parse_days("mon-fri"))

    result = due(schedule, utc("2026-03-13T05:30"), utc("2026-03-15T23:00"))

    assert result is None


@pytest.mark.parametrize("day", ["2026-03-29", "2026-10-25"], ids=["skipped", "repeated"])
def test_a_local_time_that_the_clocks_skip_or_repeat_fires_once(day):
    """Half past two, skipped in spring and repeated in autumn, gives exactly one start that day."""
    schedule = DailyAt(time(2, 30), BERLIN)
    minutes = [utc(day) - timedelta(hours=1) + timedelta(minutes=minute) for minute in range(24 * 60)]

    fired, last = [], utc(day) - timedelta(hours=12)
    for now in minutes:
        occurrence = due(schedule, last, now)
        if occurrence:
            fired.append(occurrence)
            last = occurrence

    assert len(fired) == 1


@given(
    minute=st.integers(0, 24 * 60 - 1),
    zone=st.sampled_from(["Europe/Berlin", "America/New_York", "Africa/Cairo", "Australia/Lord_Howe", "UTC"]),
    start=st.integers(1_700_000_000, 1_900_000_000).map(lambda seconds: datetime.fromtimestamp(seconds, UTC)),
)
def test_every_local_day_has_one_occurrence(minute, zone, start):
    """Asked once a quarter of an hour for a week, a daily time fires once per local day."""
    schedule = DailyAt(time(minute // 60, minute % 60), ZoneInfo(zone))

    days, last = [], start
    for step in range(7 * 96):
        occurrence = due(schedule, last, start + timedelta(minutes=15 * step))
        if occurrence:
            days.append(occurrence.astimezone(schedule.zone).date())
            last = occurrence

    assert len(days) == len(set(days))
    assert 6 <= len(days) <= 8


def test_an_interval_counts_from_the_epoch():
    """All workers agree on the occurrences of an interval, and missed ones are one."""
    schedule = Every(300)

    first = due(schedule, utc("2026-03-18T09:01"), utc("2026-03-18T09:17"))
    again = due(schedule, first, utc("2026-03-18T09:19"))

    assert first == utc("2026-03-18T09:15")
    assert again is None


@pytest.mark.parametrize(
    ("parse", "text", "expected"),
    [
        (parse_interval_s, "5m", 300),
        (parse_interval_s, "1d", 86400),
        (parse_days, "mon-fri", frozenset(range(5))),
        (parse_days, "fri-mon", frozenset({4, 5, 6, 0})),
        (parse_days, "Sat, sun", frozenset({5, 6})),
        (parse_time, "06:30", time(6, 30)),
        (parse_zone, "Europe/Berlin", BERLIN),
    ],
)
def test_words_of_a_schedule(parse, text, expected):
    """Intervals, days, times and zones are read as people write them."""
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (parse_interval_s, "5"),
        (parse_interval_s, "0m"),
        (parse_days, "mon-xyz"),
        (parse_days, ""),
        (parse_time, "6:30"),
        (parse_time, "24:00"),
        (parse_zone, "Europe"),
        (parse_zone, "../etc/passwd"),
        (parse_zone, "Mars/Olympus"),
    ],
)
def test_bad_words_of_a_schedule_are_refused(parse, text):
    """What cannot be read says so in a sentence."""
    with pytest.raises(ValueError, match=r"is not|are not"):
        parse(text)
