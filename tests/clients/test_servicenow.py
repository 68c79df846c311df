"""The ServiceNow client against its simulator: what it reads, writes and refuses to believe."""

import contextvars
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import responses

from sandbox.servicenow_access import ApiUser
from sandbox.simulator import FaultKind
from shared import attempt
from shared.clients import servicenow, system
from shared.clients.auth import BasicAuth
from shared.clients.http import Answer, Meaning
from shared.clients.system import Changed, FieldKind, Row, Write, Written
from shared.errors import (
    AccessError,
    AmbiguousWriteError,
    MappingError,
    RateLimitedError,
    RejectedError,
    RemoteError,
    TransientError,
)
from tests.clients.connections import NOW, ServiceNowBench, connect, servicenow_bench

START = NOW - timedelta(hours=1)
INCIDENTS = "/api/now/table/incident"


@pytest.fixture
def bench() -> Iterator[ServiceNowBench]:
    """Serve an instance that holds nothing but its API users."""
    with servicenow_bench() as bench:
        yield bench


def look_up(
    bench: ServiceNowBench, field: str, *values: Any, record: str = "incident", also: str = "number"
) -> list[Row]:
    return bench.client.fetch_rows(record, frozenset({field, also}), (field,), [(value,) for value in values])


def list_all(bench: ServiceNowBench, record: str = "incident", changed: Changed | None = None) -> tuple[list[Row], int]:
    """Follow all pages; return rows and how many pages there were."""
    rows, page, pages = [], None, 0
    while True:
        found = bench.client.fetch_page(record, frozenset({"sys_id"}), changed or Changed(None, None), page)
        rows += found.rows
        pages, page = pages + 1, found.next
        if page is None:
            return rows, pages


def create(bench: ServiceNowBench, **fields: Any) -> Any:
    return bench.client.write_rows("incident", [Write(None, {"short_description": "Printer", **fields})])[0]


@pytest.mark.parametrize("bad", [0, 2, 4], ids=["first", "in between", "last"])
def test_record_whose_time_is_none_is_listed_with_its_problem(bad: int) -> None:
    """One record's unreadable time neither ends a listing nor hides or doubles its neighbours."""
    with servicenow_bench(page_size=2) as bench:
        keys = [bench.sim.insert("incident", at=START + timedelta(minutes=number)) for number in range(5)]
        bench.sim.tables["incident"][keys[bad]]["sys_updated_on"] = f"2026-03-10 {8 + bad}h"

        rows, _ = list_all(bench)

        assert {row.key for row in rows} == set(keys)
        assert [row.key for row in rows if row.problem] == [keys[bad]]
        assert len([row for row in rows if not row.problem]) == 4


# -- describing -----------------------------------------------------------------------------------------------------------


def test_describe_tells_types_choices_and_what_can_be_written(bench: ServiceNowBench) -> None:
    """Columns come from the table and its parents, the nearest list of choices holds."""
    fields = bench.client.describe("incident").fields

    assert fields["caller_id"].refers_to == ("sys_user",)
    assert set(fields["state"].choices) == {1, 2, 3, 6, 7, 8}
    assert (fields["state"].kind, fields["short_description"].length) == (FieldKind.CHOICE, 160)
    assert (fields["work_notes"].kind, fields["work_notes"].searchable) == (FieldKind.APPEND, False)
    assert (fields["opened_at"].kind, fields["opened_at"].writable) == (FieldKind.TIME, True)
    assert not fields["sys_created_on"].writable


def test_describe_asks_once(bench: ServiceNowBench) -> None:
    """A table is described once per process."""
    first = bench.client.describe("incident")
    calls = len(bench.sim.journal)

    assert bench.client.describe("incident") is first
    assert len(bench.sim.journal) == calls


@pytest.mark.parametrize("hidden", ["sys_dictionary", "sys_db_object", "sys_choice"])
def test_describe_without_rights_names_the_missing_role(hidden: str) -> None:
    """Tables that describe tables need a role of their own."""
    with servicenow_bench(auth=BasicAuth("limited", "pw")) as bench:
        user = ApiUser("limited", "pw")
        user.read = user.read - {hidden}
        bench.sim.add_user(user)

        with pytest.raises(AccessError) as caught:
            bench.client.describe("incident")

    assert hidden in caught.value.message
    assert "personalize_dictionary" in caught.value.message


def test_unknown_table_and_field_are_refused_before_they_are_ignored(bench: ServiceNowBench) -> None:
    """The vendor drops unknown names silently; so none is sent."""
    for record, field, code in (("nothing", "number", "unknown_record_type"), ("incident", "nope", "unknown_field"), ("incident", "caller_id.nope", "unknown_field"), ("incident", "number.x", "unknown_field")):  # fmt: skip
        with pytest.raises(RejectedError) as caught:
            bench.client.fetch_rows(record, frozenset({field}), (), [("a" * 32,)])

        assert caught.value.code == code


# -- looking up -----------------------------------------------------------------------------------------------------------


def test_rows_hold_canonical_values(bench: ServiceNowBench) -> None:
    """Text becomes numbers, flags and times by the dictionary's types; empty is None, a reference is its id."""
    user = bench.sim.insert("sys_user", user_name="ada", email="Ada@acme.example", last_name="Quill")
    sys_id = bench.sim.insert(
        "incident", short_description="Printer", caller_id=user, urgency="2", opened_at="2026-03-01 08:00:00"
    )
    paths = frozenset(
        {
            "caller_id",
            "caller_id.email",
            "assigned_to",
            "assigned_to.email",
            "urgency",
            "active",
            "opened_at",
            "watch_list",
        }
    )

    (row,) = bench.client.fetch_rows("incident", paths, (), [(sys_id,)])

    assert row.fields == {
        "caller_id": user,
        "caller_id.email": "Ada@acme.example",
        "assigned_to": None,
        "assigned_to.email": None,
        "urgency": 2,
        "active": True,
        "opened_at": datetime(2026, 3, 1, 8, tzinfo=UTC),
        "watch_list": None,
    }
    assert row.changed_at == NOW
    assert row.label.startswith("INC")
    assert row.url.endswith(f"/nav_to.do?uri=incident.do%3Fsys_id%3D{sys_id}")


@pytest.mark.parametrize("title", ["x^ORactive=true", "50% off, a,b & more", "O'Brien = <b>", "a^", "größer"])
def test_value_with_query_signs_finds_its_own_record_only(bench: ServiceNowBench, title: str) -> None:
    """Signs of the query language in a value find what holds them."""
    sys_id = bench.sim.insert("incident", short_description=title)
    bench.sim.insert("incident", short_description="another")

    rows = look_up(bench, "short_description", title)

    assert [row.key for row in rows] == [sys_id]


def test_look_up_ignores_case_as_the_vendor_does(bench: ServiceNowBench) -> None:
    """An e-mail address in other case is the same."""
    bench.sim.insert("sys_user", user_name="ada", email="Ada@Acme.example", last_name="Quill")

    assert len(look_up(bench, "email", "ada@acme.EXAMPLE", record="sys_user", also="user_name")) == 1


def test_many_values_are_asked_for_in_few_calls(bench: ServiceNowBench) -> None:
    """A page's users are one or two calls, and every row comes once."""
    for i in range(150):
        bench.sim.insert("sys_user", user_name=f"u{i}", email=f"person.number{i}@customer.example", last_name="x")
    bench.client.describe("sys_user")
    calls = len(bench.sim.journal)

    rows = look_up(bench, "email", *(f"person.number{i}@customer.example" for i in range(150)), record="sys_user", also="active")  # fmt: skip

    assert len({row.key for row in rows}) == len(rows) == 150
    assert len(bench.sim.journal) - calls <= 2


def test_look_up_reads_on_where_rights_hide_rows() -> None:
    """Pages shortened by rights, even empty ones, do not end a look-up."""
    with servicenow_bench(auth=BasicAuth("limited", "pw"), lookup_size=3) as bench:
        bench.sim.add_user(ApiUser("limited", "pw", visible_rows={"incident": "urgency=1"}))
        shown = {
            bench.sim.insert("incident", short_description="same", urgency="1" if i in (0, 9) else "3")
            for i in range(10)
        }

        rows = look_up(bench, "short_description", "same", also="urgency")

        visible = {key for key in shown if bench.sim.tables["incident"][key]["urgency"] == "1"}
        assert {row.key for row in rows} == visible


def test_several_fields_are_looked_up_together(bench: ServiceNowBench) -> None:
    """Rows that match one key's first field and another key's second do not count."""
    wanted = bench.sim.insert("incident", short_description="a", correlation_display="1")
    bench.sim.insert("incident", short_description="a", correlation_display="2")
    both = ("short_description", "correlation_display")

    rows = bench.client.fetch_rows("incident", frozenset(both), both, [("a", "1"), ("b", "2")])

    assert [row.key for row in rows] == [wanted]


def test_journal_entries_are_read_by_their_record(bench: ServiceNowBench) -> None:
    """Comments and work notes stand in a table that knows no updates."""
    sys_id = bench.sim.insert("incident", short_description="x", work_notes="first")
    paths = frozenset({"element", "element_id", "value", "sys_created_on"})

    rows = bench.client.fetch_rows("sys_journal_field", paths, ("element_id",), [(sys_id,)])

    assert [(row.fields["element"], row.fields["value"]) for row in rows] == [("work_notes", "first")]


def test_answer_that_ignored_the_question_is_refused() -> None:
    """A filter on a field that the user may not search matches everything; nothing of it is believed."""
    with responses.RequestsMock() as stub:
        client = stubbed(stub)
        stub.get(
            "https://sn.example/api/now/table/sys_user",
            json={
                "result": [
                    {"sys_id": "a" * 32, "email": "someone@else.example", "sys_updated_on": "2026-03-01 00:00:00"}
                ]
            },
        )

        with pytest.raises(RejectedError) as caught:
            client.fetch_rows("sys_user", frozenset({"email"}), ("email",), [("ada@acme.example",)])

    assert caught.value.code == "filter_ignored"
    assert "acme" not in str(caught.value)


def test_row_that_is_only_like_the_value_is_left_out() -> None:
    """Databases compare without accents; a name with one is another name, and no reason to doubt the filter."""
    with responses.RequestsMock() as stub:
        client = stubbed(stub)
        stub.get(
            "https://sn.example/api/now/table/sys_user",
            json={"result": [{"sys_id": c * 32, "email": e, "sys_updated_on": ""} for c, e in (("a", "jose@x.example"), ("b", "JOSÉ@x.example"))]},
        )  # fmt: skip

        rows = client.fetch_rows("sys_user", frozenset({"email"}), ("email",), [("jose@x.example",)])

    assert [row.key for row in rows] == ["a" * 32]


def test_unreadable_field_is_not_an_empty_field() -> None:
    """A field that the answer leaves out must not clear anything in the target."""
    with servicenow_bench(auth=BasicAuth("limited", "pw")) as bench:
        bench.sim.add_user(ApiUser("limited", "pw", unreadable={"incident": frozenset({"description"}), "sys_user": frozenset({"email"})}))  # fmt: skip
        user = bench.sim.insert("sys_user", user_name="ada", email="ada@acme.example", last_name="Q")
        sys_id = bench.sim.insert("incident", short_description="x", caller_id=user)

        for path in ("description", "caller_id.email"):
            with pytest.raises(AccessError) as caught:
                bench.client.fetch_rows("incident", frozenset({path}), (), [(sys_id,)])

            assert caught.value.code == "field_unreadable"
            assert path in caught.value.message


@pytest.mark.parametrize("value", ["", None, "  "])
def test_empty_value_is_never_asked_for(bench: ServiceNowBench, value: str | None) -> None:
    """It would find a record without one."""
    with pytest.raises(ValueError, match="empty"):
        look_up(bench, "email", value, record="sys_user", also="user_name")


@pytest.mark.parametrize(
    ("state", "active", "closed"),
    [("1", "true", False), ("6", "true", False), ("6", "false", False), ("7", "false", True), ("8", "true", True), ("2", "false", True)],
)  # fmt: skip
def test_closed_says_whether_an_incident_takes_changes(state: str, active: str, closed: bool) -> None:
    """Resolved can still be reopened; closed, cancelled and inactive ones are over."""
    with responses.RequestsMock() as stub:
        client = stubbed(stub, "incident")
        row = {"sys_id": "a" * 32, "state": state, "active": active, "sys_updated_on": "2026-03-01 00:00:00"}
        stub.get(f"https://sn.example{INCIDENTS}", json={"result": [row]})

        (found,) = client.fetch_rows("incident", frozenset({"state"}), (), [("a" * 32,)])

    assert found.closed is closed


def test_inactive_user_is_closed(bench: ServiceNowBench) -> None:
    """Who has left is found, and is told from who is there."""
    for name, active in (("ada", "true"), ("bob", "false")):
        bench.sim.insert("sys_user", user_name=name, last_name="Q", source="s", active=active)

    rows = look_up(bench, "source", "s", record="sys_user", also="user_name")

    assert {row.fields["user_name"]: row.closed for row in rows} == {"ada": False, "bob": True}


# -- listing --------------------------------------------------------------------------------------------------------------


def test_pages_list_each_record_once_in_order_of_change() -> None:
    """Many records of one second, more pages than one."""
    with servicenow_bench(page_size=3, switches={"shuffle_ties": True}) as bench:
        for i in range(11):
            bench.sim.insert("incident", short_description=str(i), at=START + timedelta(seconds=i // 4))

        rows, pages = list_all(bench)

        assert len({row.key for row in rows}) == len(rows) == 11
        assert [row.changed_at for row in rows] == sorted(row.changed_at for row in rows if row.changed_at)
        assert pages == 4


def test_record_that_changes_while_pages_are_read_loses_no_other() -> None:
    """A change moves a record to the end; offsets would then skip its neighbour."""
    with servicenow_bench(page_size=2) as bench:
        keys = [
            bench.sim.insert("incident", short_description=str(i), at=START + timedelta(seconds=i)) for i in range(6)
        ]
        first = bench.client.fetch_page("incident", frozenset({"sys_id"}), Changed(START, None), None)
        bench.sim.update("incident", keys[0], short_description="again")

        seen = [row.key for row in first.rows]
        page = first.next
        while page is not None:
            found = bench.client.fetch_page("incident", frozenset({"sys_id"}), Changed(START, None), page)
            seen, page = seen + [row.key for row in found.rows], found.next

        assert set(seen) == set(keys)
        assert first.total == 6


def test_pages_hidden_by_rights_do_not_end_the_listing() -> None:
    """Whole pages of hidden rows are passed; the visible ones behind them are listed."""
    with servicenow_bench(auth=BasicAuth("limited", "pw"), page_size=2) as bench:
        bench.sim.add_user(ApiUser("limited", "pw", visible_rows={"incident": "urgency=1"}))
        visible = [
            key
            for i in range(12)
            for urgency in ["1" if i in (0, 7, 11) else "3"]
            for key in [bench.sim.insert("incident", short_description=str(i), urgency=urgency, at=START + timedelta(seconds=i // 3))]
            if urgency == "1"
        ]  # fmt: skip

        rows, _ = list_all(bench)

        assert sorted(row.key for row in rows) == sorted(visible)


def test_window_and_condition_hold_on_every_page() -> None:
    """Bounds are inclusive below, exclusive above, rounded up to the vendor's seconds; so is the condition everywhere."""
    with servicenow_bench(page_size=2) as bench:
        keys = [
            bench.sim.insert("incident", short_description=str(i), urgency="1" if i % 3 else "3", at=START + timedelta(seconds=i))
            for i in range(10)
        ]  # fmt: skip
        changed = Changed(
            START + timedelta(seconds=1, microseconds=1), START + timedelta(seconds=9), {"urgency": system.Test((1,))}
        )

        rows, _ = list_all(bench, changed=changed)

        assert [row.key for row in rows] == [keys[i] for i in (2, 4, 5, 7, 8)]


def test_page_that_is_not_ours_is_refused(bench: ServiceNowBench) -> None:
    """A page's text comes back through a queue; nothing in it reaches a query unread."""
    for page in ("x", "[]", '["2026-03-01 00:00:00^NQactive=true", "a", 0]', '["", "", -1, 2]', "null"):
        with pytest.raises(RejectedError) as caught:
            bench.client.fetch_page("incident", frozenset({"number"}), Changed(None, None), page)

        assert caught.value.code == "page_expired"


def test_clock_is_the_vendors(bench: ServiceNowBench) -> None:
    """The Date header, whole seconds, aware UTC."""
    assert bench.client.read_clock() == NOW


# -- writing --------------------------------------------------------------------------------------------------------------


def test_created_record_comes_back_with_what_was_sent(bench: ServiceNowBench) -> None:
    """The answer holds the sent fields as the vendor keeps them, and says who dropped what."""
    fields = {"urgency": 2, "opened_at": datetime(2026, 3, 1, 8, tzinfo=UTC), "active": True, "priority": 5, "correlation_id": None}  # fmt: skip

    written = create(bench, **fields)

    assert isinstance(written, Written)
    assert written.created
    assert written.row is not None
    assert written.row.fields["urgency"] == 2
    assert written.row.fields["opened_at"] == fields["opened_at"]
    assert written.row.fields["priority"] != 5  # computed: what was sent is overwritten
    assert bench.sim.tables["incident"][written.key]["opened_at"] == "2026-03-01 08:00:00"
    body = json.loads(bench.sim.requests("POST", "table/incident")[0].body)
    assert body["active"] == "true"
    assert body["correlation_id"] == ""


def test_changed_record_keeps_what_was_not_sent(bench: ServiceNowBench) -> None:
    """A change sends only its fields; None empties one."""
    key = bench.sim.insert("incident", short_description="x", correlation_id="c", description="d")

    (written,) = bench.client.write_rows("incident", [Write(key, {"correlation_id": None, "short_description": "y"})])

    row = bench.sim.tables["incident"][key]
    assert isinstance(written, Written)
    assert not written.created
    assert (row["correlation_id"], row["short_description"], row["description"]) == ("", "y", "d")


def test_unwritable_field_is_seen_to_be_dropped() -> None:
    """The vendor says 200 and keeps the old value; the answer shows it."""
    with servicenow_bench(auth=BasicAuth("limited", "pw")) as bench:
        bench.sim.add_user(ApiUser("limited", "pw", unwritable={"incident": frozenset({"description"})}))

        written = create(bench, description="secret plan")

        assert isinstance(written, Written)
        assert written.row is not None
        assert written.row.fields["description"] is None


def test_one_bad_record_does_not_touch_its_neighbours(bench: ServiceNowBench) -> None:
    """Every write has its own answer, in order."""
    key = bench.sim.insert("incident", short_description="x")
    writes = [
        Write(None, {"short_description": "a"}),
        Write(None, {"nope": "a"}),
        Write("f" * 32, {"short_description": "gone"}),
        Write(key, {"state": 6}),
        Write(None, {}),
        Write("not an id", {"short_description": "b"}),
        Write(None, {"short_description": {"an": "object"}}),
        Write(None, {"short_description": "z"}),
    ]

    answers = bench.client.write_rows("incident", writes)

    assert isinstance(answers[0], Written)
    assert isinstance(answers[7], Written)
    assert [(type(a), a.code) for a in answers[1:7]] == [  # type: ignore[union-attr]
        (RejectedError, "unknown_field"),
        (RejectedError, "target_missing"),
        (RejectedError, "data_policy"),
        (MappingError, "nothing_to_write"),
        (RejectedError, "target_missing"),
        (MappingError, "unwritable_value"),
    ]


def test_writes_go_side_by_side_and_in_order(bench: ServiceNowBench) -> None:
    """A batch uses as many calls at once as it may, within the attempt it belongs to."""
    bench.client = servicenow.ServiceNow(bench.http, parallel=4)
    bench.sim.latency_s = 0.05

    with attempt.attempt(correlation_id="c"):
        answers = bench.client.write_rows("incident", [Write(None, {"short_description": f"n{i}"}) for i in range(12)])

    titles = [bench.sim.tables["incident"][answer.key]["short_description"] for answer in answers]  # type: ignore[union-attr]
    assert titles == [f"n{i}" for i in range(12)]
    assert 1 < bench.permits.most_held <= 4


def test_threads_work_within_the_callers_attempt(bench: ServiceNowBench) -> None:
    """The deadline holds in every thread of a batch."""
    bench.client = servicenow.ServiceNow(bench.http, parallel=2)
    bench.client.describe("incident")

    def work() -> list[Any]:
        with attempt.attempt(ends_at_s=0.0):
            return bench.client.write_rows("incident", [Write(None, {"short_description": "x"})] * 3)

    answers = contextvars.copy_context().run(work)

    assert [getattr(answer, "code", None) for answer in answers] == ["no_time_left"] * 3
    assert bench.sim.requests("POST", "table/incident") == []


def test_batch_stops_when_the_vendor_asks_to_wait(bench: ServiceNowBench) -> None:
    """After a 429 the rest of the batch is put back without asking again."""
    bench.client.describe("incident")
    bench.sim.add_fault(FaultKind.STATUS, method="POST", path=INCIDENTS, status=429, headers={"Retry-After": "30"})

    answers = bench.client.write_rows("incident", [Write(None, {"short_description": "x"})] * 3)

    assert [type(answer) for answer in answers] == [RateLimitedError] * 3
    assert [answer.retry_after_s for answer in answers if isinstance(answer, RateLimitedError)] == [30.0] * 3
    assert bench.permits.pauses == [30.0]
    assert len(bench.sim.requests("POST", "table/incident")) == 1


FAULTS: list[tuple[str, FaultKind, dict[str, Any], type[RemoteError]]] = [
    ("cut before", FaultKind.REFUSE, {}, AmbiguousWriteError),
    ("cut after", FaultKind.RESET_AFTER, {}, AmbiguousWriteError),
    ("truncated", FaultKind.TRUNCATED, {}, AmbiguousWriteError),
    ("html", FaultKind.HTML, {}, AmbiguousWriteError),
    ("500", FaultKind.STATUS, {"status": 500}, AmbiguousWriteError),
    ("503 after", FaultKind.STATUS_AFTER, {"status": 503}, AmbiguousWriteError),
    ("202", FaultKind.STATUS, {"status": 202, "body": ""}, AmbiguousWriteError),
    ("200 with error", FaultKind.STATUS, {"status": 200, "body": '{"error": {"message": "Transaction cancelled: maximum execution time exceeded"}, "result": {}}'}, AmbiguousWriteError),
    ("200 without record", FaultKind.STATUS, {"status": 201, "body": '{"result": {}}'}, AmbiguousWriteError),
    ("429", FaultKind.STATUS, {"status": 429}, RateLimitedError),
    ("400", FaultKind.STATUS, {"status": 400}, RejectedError),
    ("403", FaultKind.STATUS, {"status": 403}, AccessError),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind", "facts", "error"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_create_that_failed_is_told_by_what_may_have_happened(
    bench: ServiceNowBench, name: str, kind: FaultKind, facts: dict[str, Any], error: type[RemoteError]
) -> None:
    """Whatever may have taken effect is ambiguous, and is sent once."""
    bench.sim.add_fault(kind, method="POST", path=INCIDENTS, **facts)

    answer = create(bench)

    assert type(answer) is error
    assert len(bench.sim.requests("POST", "table/incident")) == 1


@pytest.mark.parametrize("kind", [FaultKind.REFUSE, FaultKind.RESET_AFTER, FaultKind.TRUNCATED, FaultKind.HTML])
def test_change_survives_a_passing_fault(bench: ServiceNowBench, kind: FaultKind) -> None:
    """A change without journal fields is harmless to repeat, and is repeated at once."""
    key = bench.sim.insert("incident", short_description="x")
    bench.sim.add_fault(kind, method="PATCH")

    (answer,) = bench.client.write_rows("incident", [Write(key, {"short_description": "y"})])

    assert isinstance(answer, Written)
    assert bench.sim.tables["incident"][key]["short_description"] == "y"


def test_change_with_a_journal_entry_is_never_repeated(bench: ServiceNowBench) -> None:
    """A second attempt would add the note again."""
    key = bench.sim.insert("incident", short_description="x")
    bench.sim.add_fault(FaultKind.RESET_AFTER, method="PATCH")

    (answer,) = bench.client.write_rows("incident", [Write(key, {"work_notes": "once"})])

    assert type(answer) is AmbiguousWriteError
    assert len(bench.sim.rows("sys_journal_field", element_id=key)) == 1


def test_hanging_create_is_ambiguous() -> None:
    """No answer within the time-out."""
    with servicenow_bench(read_s=0.3) as bench:
        bench.client.describe("incident")
        bench.sim.add_fault(FaultKind.HANG, method="POST", path=INCIDENTS, seconds=1.0)

        answer = create(bench)

        assert type(answer) is AmbiguousWriteError
        assert answer.code == "no_answer"


def test_unique_key_means_the_record_exists(bench: ServiceNowBench) -> None:
    """A create that meets its own twin is looked up; a change that meets another's key is refused."""
    bench.sim.insert("sys_user", user_name="ada", last_name="Q")
    other = bench.sim.insert("sys_user", user_name="bob", last_name="Q")

    answers = bench.client.write_rows(
        "sys_user", [Write(None, {"user_name": "ada", "last_name": "Q"}), Write(other, {"user_name": "ada"})]
    )

    assert [(type(a), a.code) for a in answers] == [  # type: ignore[union-attr]
        (AmbiguousWriteError, "exists_already"),
        (RejectedError, "exists_already"),
    ]
    assert all("ada" not in str(a) for a in answers)


@pytest.mark.parametrize(
    ("message", "detail", "meaning", "code"),
    [
        ("Operation Failed", "Data Policy Exception: The following fields are mandatory: Close notes", Meaning.REJECTED, "data_policy"),
        ("Operation Failed", "Operation against file 'incident' was aborted by Business Rule 'State order'", Meaning.REJECTED, "business_rule"),
        ("Operation Failed", "ACL Exception Insert Failed due to security constraints", Meaning.NO_ACCESS, ""),
        ("User Not Authorized", "Failed API level ACL Validation", Meaning.NO_ACCESS, ""),
        ("Insufficient rights to query records", "Fields present in the query", Meaning.NO_ACCESS, ""),
        ("Operation Failed", "Unique Key violation detected by database (Duplicate entry 'a')", Meaning.EXISTS, "exists_already"),
    ],
)  # fmt: skip
def test_forbidden_is_read_by_its_text(message: str, detail: str, meaning: Meaning, code: str) -> None:
    """403 means a record's fault or the connection's; only the text tells."""
    reading = servicenow.read_answer(Answer(403, {}, b"{}", {"error": {"message": message, "detail": detail}}))

    assert reading is not None
    assert (reading.meaning, reading.code) == (meaning, code)


@pytest.mark.parametrize(
    "data", [{"error": None}, {"error": "text"}, {"error": []}, [], None, {"error": {"detail": 5}}]
)
def test_odd_error_bodies_are_read_without_surprise(data: Any) -> None:
    """Error bodies come in many forms."""
    for status in (200, 400, 403, 500):
        servicenow.read_answer(Answer(status, {}, b"", data))


# -- reading under faults -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "facts"),
    [
        (FaultKind.REFUSE, {}),
        (FaultKind.RESET_AFTER, {}),
        (FaultKind.TRUNCATED, {}),
        (FaultKind.HTML, {}),
        (FaultKind.STATUS, {"status": 500}),
        (FaultKind.STATUS, {"status": 202, "body": ""}),
        (FaultKind.STATUS, {"status": 200, "body": '{"result": [], "error": {"message": "Transaction cancelled"}}'}),
        (FaultKind.STATUS, {"status": 200, "body": '{"result": {}}'}),
    ],
)
def test_read_survives_two_passing_faults_and_tells_a_lasting_one(
    bench: ServiceNowBench, kind: FaultKind, facts: dict[str, Any]
) -> None:
    """Reads are repeated briefly; then the fault is transient."""
    key = bench.sim.insert("incident", short_description="x")
    bench.client.describe("incident")
    passing = facts.get("body") != '{"result": {}}'  # well-formed, so only the client can tell; not repeated within
    bench.sim.add_fault(kind, path=INCIDENTS, times=2 if passing else 0, **facts)

    if passing:
        assert len(bench.client.fetch_rows("incident", frozenset({"number"}), (), [(key,)])) == 1
        bench.sim.faults.clear()
        bench.sim.add_fault(kind, path=INCIDENTS, times=0, **facts)
    with pytest.raises(TransientError):
        bench.client.fetch_rows("incident", frozenset({"number"}), (), [(key,)])


def test_thread_pool_that_is_full_gives_a_short_pause() -> None:
    """A 429 without Retry-After rests for seconds, not for an hour."""
    with servicenow_bench() as bench:
        bench.client.describe("incident")
        bench.sim.add_fault(FaultKind.STATUS, path=INCIDENTS, status=429)

        answer = create(bench)

        assert isinstance(answer, RateLimitedError)
        assert 0 < answer.retry_after_s <= 5


def test_hourly_limit_is_obeyed() -> None:
    """The vendor's own Retry-After reaches permits and error."""
    with servicenow_bench(switches={"rate_limit_per_hour": 5}) as bench:
        bench.client.describe("incident")

        answers = [create(bench) for _ in range(4)]

        limited = [answer for answer in answers if isinstance(answer, RateLimitedError)]
        assert limited
        assert limited[0].retry_after_s > 5
        assert bench.permits.pauses[0] == limited[0].retry_after_s


# -- stubs ----------------------------------------------------------------------------------------------------------------


def stubbed(stub: responses.RequestsMock, table: str = "sys_user") -> servicenow.ServiceNow:
    """Return a client of a stubbed instance that has one small table."""
    root = "https://sn.example/api/now/table/"
    columns = {
        "sys_id": "GUID",
        "email": "email",
        "sys_updated_on": "glide_date_time",
        "state": "integer",
        "active": "boolean",
    }
    parents = [[{"name": table, "super_class.name": "task" if table == "incident" else ""}]]
    parents += [[{"name": "task", "super_class.name": ""}]] if table == "incident" else []
    for rows in parents:
        stub.get(f"{root}sys_db_object", json={"result": [row | {"sys_id": "c" * 32} for row in rows]})
    stub.get(
        f"{root}sys_dictionary",
        json={"result": [{"name": table, "element": name, "internal_type": kind} for name, kind in columns.items()]},
    )
    return servicenow.ServiceNow(connect("https://sn.example", servicenow.DIALECT))
