"""Windows: which span of changes a run covers."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sync.windows import Window, WindowKind, bounds, build_window, parse_window, start_of_day

BERLIN = ZoneInfo("Europe/Berlin")
NOW = datetime(2026, 3, 18, 9, 30, tzinfo=UTC)  # a Wednesday
ZONES = st.sampled_from(
    ["UTC", "Europe/Berlin", "America/New_York", "Africa/Cairo", "Asia/Beirut", "Australia/Lord_Howe", "Asia/Kolkata"]
)
MOMENTS = st.integers(1_420_200_000, 2_050_000_000).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "since", "until"),
    [
        ("yesterday", "2026-03-16T23:00", "2026-03-17T23:00"),
        ("today", "2026-03-17T23:00", "2026-03-18T09:30"),
        ("last_week", "2026-03-08T23:00", "2026-03-15T23:00"),
        ("last_month", "2026-01-31T23:00", "2026-02-28T23:00"),
        ("last_days:3", "2026-03-14T23:00", "2026-03-18T09:30"),
        ("from=2026-03-01 to=2026-03-02", "2026-02-28T23:00", "2026-03-02T23:00"),
        ("from=2026-03-01T06:30:00Z", "2026-03-01T06:30", "2026-03-18T09:30"),
        ("from=2026-03-01T06:30:00+02:00 to=2026-03-02T00:00:00Z", "2026-03-01T04:30", "2026-03-02T00:00"),
    ],
)
def test_bounds_are_explicit_utc_of_the_zones_days(text, since, until):
    """Days, weeks and months begin at midnight of the zone; weeks run from Monday to Sunday."""
    window = parse_window(text)

    result = bounds(window, NOW, BERLIN)

    assert result == (utc(since), utc(until))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("all", (None, NOW)), ("since_last_run", (None, NOW)), ("ids=b,a", (None, None)), ("to=2026-03-19", (None, NOW))],
)
def test_open_windows_have_no_lower_bound(text, expected):
    """`all`, `since_last_run` and ids leave the lower bound to the caller, and nothing reaches beyond now."""
    window = parse_window(text)

    result = bounds(window, NOW, BERLIN)

    assert result == expected


@pytest.mark.parametrize(
    ("day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25), ("2026-06-01", 24)], ids=["spring", "autumn", "plain"]
)
def test_a_day_on_which_the_clocks_change_is_whole(day, hours):
    """A day has 23 or 25 hours when the clocks change."""
    now = datetime.combine(date.fromisoformat(day) + timedelta(days=1), datetime.min.time(), BERLIN)

    since, until = bounds(parse_window("yesterday"), now.astimezone(UTC), BERLIN)

    assert until - since == timedelta(hours=hours)


def test_last_week_over_the_new_year():
    """The week before the first days of January lies in the old year."""
    now = utc("2027-01-02T12:00")

    since, until = bounds(parse_window("last_week"), now, ZoneInfo("UTC"))

    assert (since, until) == (utc("2026-12-21T00:00"), utc("2026-12-28T00:00"))


@given(now=MOMENTS, zone=ZONES)
def test_yesterday_ends_where_today_begins(now, zone):
    """Windows of neighbouring days neither overlap nor leave a gap, whatever the clocks do."""
    info = ZoneInfo(zone)

    yesterday = bounds(parse_window("yesterday"), now, info)
    today = bounds(parse_window("today"), now, info)

    assert yesterday[0] < yesterday[1] == today[0] <= now
    assert today[0].astimezone(info).date() == now.astimezone(info).date()
    assert (today[0] - timedelta(microseconds=1)).astimezone(info).date() < now.astimezone(info).date()


@given(
    window=st.one_of(
        st.sampled_from(["today", "all", "last_days:7", "since_last_run"]).map(parse_window),
        st.lists(st.text("abc-123", min_size=1), min_size=1).map(lambda ids: build_window({"ids": ",".join(ids)})),
        st.dates(date(2020, 1, 1), date(2030, 1, 1)).map(lambda day: Window(WindowKind.SPAN, since=day)),
        MOMENTS.map(lambda moment: Window(WindowKind.SPAN, until=moment)),
    )
)
def test_the_text_of_a_window_reads_back_as_the_window(window):
    """Equal windows have equal texts, and a text means one window."""
    text = str(window)

    assert parse_window(text) == window


def test_ids_and_times_have_one_form():
    """The order of ids and the offset of a time make no other window."""
    ids = build_window({"ids": "b, a,b"})
    span = build_window({"from": "2026-03-01T02:00:00+02:00"})

    assert str(ids) == "ids=a,b"
    assert str(span) == "from=2026-03-01T00:00:00Z"


def test_a_plus_that_a_browser_made_a_space_is_understood():
    """An unescaped `+` in an address arrives as a space."""
    window = build_window({"from": "2026-03-01T02:00:00 02:00"})

    assert window.since == utc("2026-03-01T00:00")


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"window": "yesterdy"},
        {"window": "today", "ids": "a"},
        {"window": "last_days:0"},
        {"window": "last_days:99999"},
        {"ids": " , "},
        {"ids": "a", "from": "2026-03-01"},
        {"from": "01.03.2026"},
        {"from": "2026-02-30"},
        {"from": "2026-03-01T06:30:00"},
        {"from": "2026-03-02", "to": "2026-03-01"},
        {"from": "0001-01-01"},
        {"from": "0001-01-01T00:00:00+05:00"},
        {"from": "1899-12-31"},
        {"to": "9999-12-31"},
        {"from": "2026-03-01", "to": "9999-12-31T23:59:59-05:00"},
        {"window": "today tomorrow"},
    ],
    ids=str,
)
def test_what_is_not_a_window_is_refused_with_a_sentence(parameters):
    """A window that cannot be read never becomes another one."""
    with pytest.raises(ValueError, match=r"allowed|date|days|zone|before|years"):
        build_window(parameters)


def test_start_of_a_day_whose_midnight_the_clocks_skip():
    """Where the clocks go from 24:00 to 01:00, the day begins at one."""
    cairo = ZoneInfo("Africa/Cairo")

    start = start_of_day(date(2026, 4, 24), cairo)

    assert start.astimezone(cairo).hour == 1
    assert (start - timedelta(seconds=1)).astimezone(cairo).date() == date(2026, 4, 23)
