"""Marketo's codes, row by row: what a failed call and a skipped record mean."""

from datetime import UTC, datetime
from typing import Any

import pytest

from shared.clients.http import Answer, Meaning
from shared.clients.marketo_errors import CODES, read_answer, read_code, read_skipped, seconds_to_reset

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


def envelope(code: Any, message: str = "") -> Answer:
    return Answer(
        200, {}, b"{}", {"requestId": "a#1", "success": False, "errors": [{"code": code, "message": message}]}
    )


@pytest.mark.parametrize(
    ("codes", "meaning"),
    [
        ("500 502 604 611 713 719", Meaning.LOST),
        ("608 614 1014 1016 1019 1029", Meaning.NOT_DONE),
        ("606 607 615", Meaning.LIMITED),
        ("601 602", Meaning.TOKEN_REFUSED),
        ("600 603 616 703 1018", Meaning.NO_ACCESS),
        ("605 609 610 612 613 701 702 704 709 710 711 718", Meaning.REJECTED),
        ("1001 1002 1003 1004 1006 1007 1008 1009 1010 1011 1013 1021 1022 1036 1080", Meaning.REJECTED),
        ("1005 1017", Meaning.EXISTS),
    ],
)
def test_call_that_failed_is_read_by_its_code(codes: str, meaning: Meaning) -> None:
    """Every code of the vendor's table, inside HTTP 200."""
    for code in codes.split():
        reading = read_answer(envelope(code))

        assert reading is not None
        assert reading.meaning is meaning, code
        assert code in reading.reason


@pytest.mark.parametrize("code", sorted(CODES))
def test_skipped_record_is_surely_not_written(code: str) -> None:
    """What would be lost for a call is not done for a record: it comes back alone."""
    reading = read_skipped({"status": "skipped", "reasons": [{"code": code, "message": "x"}]}, "lead")

    assert reading.meaning in (Meaning.NOT_DONE, Meaning.REJECTED, Meaning.EXISTS, Meaning.NO_ACCESS)


@pytest.mark.parametrize(
    ("code", "record", "expected"),
    [
        ("1004", "lead", "target_missing"),
        ("1005", "lead", "exists_already"),
        ("1006", "lead", "unknown_field"),
        ("1007", "lead", "ambiguous_match"),
        ("1013", "lead", "company_missing"),
        ("1013", "company", "target_missing"),
        ("1017", "company", "exists_already"),
        ("1021", "lead", "company_fields_refused"),
    ],
)
def test_skipped_record_has_a_reason_for_people(code: str, record: str, expected: str) -> None:
    """The codes that the engine acts on."""
    item = {"status": "skipped", "reasons": [{"code": code, "message": ""}]}

    assert read_skipped(item, record).code == expected


def test_only_names_of_sent_fields_are_taken_from_the_vendors_text() -> None:
    """Its messages repeat values."""
    item = {"status": "skipped", "reasons": [{"code": "1001", "message": "Invalid value 'Ada' for field 'leadScore'"}]}

    reason = read_skipped(item, "lead", {"leadScore": 1, "email": 2}).reason

    assert "leadScore" in reason
    assert "Ada" not in reason


@pytest.mark.parametrize("item", [{}, {"reasons": None}, {"reasons": []}, {"reasons": ["x"]}, {"reasons": [{"code": None}]}, {"reasons": [{"code": 1003}]}, {"reasons": [{"code": "x'y"}]}])  # fmt: skip
def test_odd_reasons_are_a_rejection(item: dict[str, Any]) -> None:
    """A record that was skipped without a known reason fails with what is known."""
    assert read_skipped(item, "lead").meaning is Meaning.REJECTED


@pytest.mark.parametrize(
    ("answer", "meaning"),
    [
        (Answer(200, {}, b"{}", {"success": True, "result": []}), None),
        (Answer(200, {}, b"[]", []), Meaning.LOST),
        (Answer(200, {}, b"{}", {"result": []}), Meaning.LOST),
        (Answer(200, {}, b"{}", {"success": "true"}), Meaning.LOST),
        (Answer(200, {}, b"{}", {"success": False}), Meaning.LOST),
        (Answer(200, {}, b"{}", {"success": False, "errors": "no"}), Meaning.LOST),
        (Answer(503, {}, b"", None), None),
        (Answer(413, {}, b"", None), Meaning.REJECTED),
        (Answer(414, {}, b"", None), Meaning.REJECTED),
        (Answer(500, {}, b"{}", {"success": False, "errors": [{"code": "606"}]}), Meaning.LIMITED),
    ],
)
def test_answers_are_believed_only_when_they_say_success(answer: Answer, meaning: Meaning | None) -> None:
    """None leaves it to HTTP."""
    reading = read_answer(answer)

    assert (reading.meaning if reading else None) is meaning


def test_too_many_results_are_told_by_their_text() -> None:
    """1003 is both a bad value and a question that finds too much."""
    assert read_code("1003", "Too many results match the filter").code == "too_many_results"
    assert read_code("1003", "Invalid value").code == "invalid_value"


@pytest.mark.parametrize(
    ("now", "hours"),
    [
        (datetime(2026, 1, 10, 12, tzinfo=UTC), 18),  # winter: 06:00 UTC
        (datetime(2026, 7, 10, 12, tzinfo=UTC), 17),  # summer: 05:00 UTC …
        (datetime(2026, 7, 10, 5, 0, 30, tzinfo=UTC), 1 - 30 / 3600),  # … and if that did not help, 06:00 UTC
        (datetime(2026, 7, 10, 6, tzinfo=UTC), 23),
    ],
)
def test_daily_quota_is_waited_for_until_a_minute_after_midnight(now: datetime, hours: float) -> None:
    """The vendor says "12:00AM CST"; whether summer time counts is not said, so both midnights are tried."""
    assert seconds_to_reset(now) == pytest.approx(hours * 3600 + 60)
    assert read_code("607", now=now).pause_s == seconds_to_reset(now)
