"""The Dynamics 365 client against its simulator: one call a page with all that hangs on a record."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import responses
from hypothesis import given
from hypothesis import strategies as st

from sandbox.simulator import FaultKind
from shared.clients import dynamics365, system
from shared.clients import dynamics365_query as query
from shared.clients.dynamics365_query import Column, Place
from shared.clients.http import Answer
from shared.clients.system import Changed, FieldKind, Row
from shared.errors import AccessError, RateLimitedError, RejectedError, RemoteError, TransientError
from tests.clients.connections import NOW, DynamicsBench, connect, dynamics_bench

ACME = "a0000000-0000-4000-8000-000000000001"
ADA = "c0000000-0000-4000-8000-000000000001"
OLGA = "50000000-0000-4000-8000-000000000001"
TEAM = "70000000-0000-4000-8000-000000000001"
TITLE = Place(("title",), Column("title", "String"))


def fill(bench: DynamicsBench) -> DynamicsBench:
    """Add a user, a team, an account and its contact."""
    sim = bench.sim
    sim.insert("systemuser", systemuserid=OLGA, firstname="Olga", internalemailaddress="olga@contoso.example")
    sim.insert("team", teamid=TEAM, name="Support EMEA")
    sim.insert("account", accountid=ACME, name="Acme", revenue=20000)
    sim.insert("contact", contactid=ADA, firstname="Ada", lastname="O'Brien", emailaddress1="ada@acme.example")
    sim.update("account", ACME, primarycontactid=ADA)
    return bench


@pytest.fixture
def bench() -> Iterator[DynamicsBench]:
    """Serve an environment with one of each kind."""
    with dynamics_bench(page_size=2) as bench:
        yield fill(bench)


def add_case(bench: DynamicsBench, title: str = "Printer", **columns: Any) -> str:
    return bench.sim.insert("incident", **{"title": title, "customerid_contact": ADA, **columns})


def list_all(bench: DynamicsBench, paths: frozenset[str], changed: Changed | None = None) -> list[Row]:
    rows, page = [], None
    while True:
        found = bench.client.fetch_page("incident", paths, changed or Changed(None, None), page)
        rows += found.rows
        if (page := found.next) is None:
            return rows


def test_row_holds_all_paths_flat_and_canonical(bench: DynamicsBench) -> None:
    """Contact, owner and team come with the case; ids are small, times aware; whatever is empty is None."""
    case_id = add_case(bench, ownerid=OLGA, description="")
    paths = frozenset(
        {"title", "description", "prioritycode", "createdon", "customerid", "customerid_contact", "customerid_contact.emailaddress1",
         "customerid_account", "customerid_account.name", "customerid_account.primarycontactid.emailaddress1",
         "owninguser", "owninguser.internalemailaddress", "owningteam", "owningteam.name"}
    )  # fmt: skip

    (row,) = list_all(bench, paths)

    assert row.fields == {
        "title": "Printer",
        "description": None,
        "prioritycode": 2,
        "createdon": NOW,
        "customerid": ADA,
        "customerid_contact": ADA,
        "customerid_contact.emailaddress1": "ada@acme.example",
        "customerid_account": None,
        "customerid_account.name": None,
        "customerid_account.primarycontactid.emailaddress1": None,
        "owninguser": OLGA,
        "owninguser.internalemailaddress": "olga@contoso.example",
        "owningteam": None,
        "owningteam.name": None,
    }
    assert (row.key, row.changed_at, row.closed) == (case_id, NOW, False)
    assert row.label.startswith("CAS-")
    assert row.url.endswith(f"/main.aspx?etn=incident&pagetype=entityrecord&id={case_id}")


def test_account_customer_and_team_owner_take_the_other_branch(bench: DynamicsBench) -> None:
    """The lookup that does not match is empty, and so is all behind it."""
    bench.sim.insert("incident", title="x", customerid_account=ACME, ownerid=TEAM)
    paths = frozenset({"customerid_contact", "customerid_account", "customerid_account.primarycontactid.emailaddress1", "owninguser.internalemailaddress", "owningteam.name"})  # fmt: skip

    (row,) = list_all(bench, paths)

    assert row.fields == {
        "customerid_contact": None,
        "customerid_account": ACME,
        "customerid_account.primarycontactid.emailaddress1": "ada@acme.example",
        "owninguser.internalemailaddress": None,
        "owningteam.name": "Support EMEA",
    }


def test_page_is_one_call(bench: DynamicsBench) -> None:
    """After the tables are known, a page of cases with everything on them costs one call, with the same page size."""
    for i in range(5):
        add_case(bench, str(i))
    paths = frozenset({"title", "customerid_contact.emailaddress1", "owninguser.internalemailaddress"})
    list_all(bench, paths)
    calls = len(bench.sim.journal)

    rows = list_all(bench, paths)

    assert len({row.key for row in rows}) == 5
    assert len(bench.sim.journal) - calls == 3
    sizes = {entry.headers["prefer"] for entry in bench.sim.requests("GET", r"/incidents")}
    assert sizes == {"odata.maxpagesize=2"}


def test_window_is_explicit_and_rounded_up(bench: DynamicsBench) -> None:
    """Inclusive below, exclusive above, whole seconds of UTC; no function of the vendor's."""
    for i in range(5):
        bench.sim.clock.freeze(NOW + timedelta(seconds=i))
        add_case(bench, str(i))
    since, until = NOW + timedelta(seconds=1, microseconds=1), NOW + timedelta(seconds=4)

    rows = list_all(bench, frozenset({"title"}), Changed(since, until))

    assert [row.fields["title"] for row in rows] == ["2", "3"]
    assert "Microsoft.Dynamics" not in bench.sim.requests("GET", "/incidents")[0].query


def test_first_page_knows_the_total(bench: DynamicsBench) -> None:
    """The count comes with the first page."""
    for i in range(3):
        add_case(bench, str(i))

    page = bench.client.fetch_page("incident", frozenset({"title"}), Changed(None, None), None)

    assert page.total == 3


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ({"statecode": system.Test((0,))}, {"a", "b", "q"}),
        ({"statecode": system.Test((0,), negated=True)}, {"done"}),
        ({"prioritycode": system.Test((1, 3))}, {"a", "q"}),
        ({"title": system.Test(("A", "it's"))}, {"a"}),
        ({"title": system.Test(("q'q' or 1 eq 1",))}, set()),
        ({"description": system.Test((None,))}, {"a", "q", "done"}),
        ({"description": system.Test((None,), negated=True)}, {"b"}),
        ({"description": system.Test(("text",), negated=True)}, {"a", "q", "done"}),
        ({"customerid_contact.emailaddress1": system.Test(("ada@acme.example",))}, {"a", "b", "done"}),
        ({"customerid_contact": system.Test((ADA,)), "prioritycode": system.Test((1,))}, {"a"}),
        ({"customerid_contact": system.Test((None,))}, {"q"}),
        ({"owninguser": system.Test((OLGA,))}, {"b"}),
        ({"createdon": system.Test((NOW,))}, {"a", "b", "q", "done"}),
    ],
)
def test_condition_is_asked_of_the_vendor(bench: DynamicsBench, when: system.Condition, expected: set[str]) -> None:
    """Numbers, text, ids, times, references and emptiness."""
    add_case(bench, "a", prioritycode=1)
    add_case(bench, "b", description="text", ownerid=OLGA)
    bench.sim.insert("incident", title="q", customerid_account=ACME, prioritycode=3)
    done = add_case(bench, "done")
    bench.sim.update("incident", done, statecode=2, statuscode=6)

    rows = list_all(bench, frozenset({"title"}), Changed(None, None, when))

    assert {row.fields["title"] for row in rows} == expected


def test_resolved_case_is_closed(bench: DynamicsBench) -> None:
    """Any state but active is over."""
    bench.sim.update("incident", add_case(bench), statecode=2, statuscode=6)

    (row,) = list_all(bench, frozenset({"title"}))

    assert row.closed


def test_disabled_user_is_closed(bench: DynamicsBench) -> None:
    """Users have no state, but can be disabled."""
    bench.sim.update("systemuser", OLGA, isdisabled=True)

    (row,) = bench.client.fetch_rows("systemuser", frozenset({"firstname"}), (), [(OLGA,)])

    assert row.closed


def test_version_orders_changes_within_a_second(bench: DynamicsBench) -> None:
    """Times have whole seconds; the version tells two changes of one second apart, by plain text comparison."""
    key = add_case(bench)
    (before,) = list_all(bench, frozenset({"title"}))
    bench.sim.update("incident", key, title="again")

    (after,) = list_all(bench, frozenset({"title"}))

    assert before.changed_at == after.changed_at
    assert before.version < after.version


@pytest.mark.parametrize(
    ("etag", "expected"),
    [('W/"7310442"', "00000000000007310442"), ('W/"x"', NOW.isoformat()), (None, NOW.isoformat())],
)
def test_version_falls_back_to_the_time_of_change(etag: str | None, expected: str) -> None:
    """An ETag that is no number orders nothing."""
    assert dynamics365.build_version(etag, NOW) == expected


@pytest.mark.parametrize("name", ["O'Brien", "o'brien", "50% & more", "a+b#c/d,e;f", "''", "größer", "x' or 'a' eq 'a"])
def test_value_with_query_signs_finds_its_own_record_only(bench: DynamicsBench, name: str) -> None:
    """Quotes are doubled and everything is encoded once."""
    bench.sim.insert("contact", firstname="other", lastname="other")
    if name.lower() != "o'brien":
        bench.sim.insert("contact", firstname="x", lastname=name)

    rows = bench.client.fetch_rows("contact", frozenset({"lastname"}), ("lastname",), [(name,)])

    assert [str(row.fields["lastname"]).lower() for row in rows] == [name.lower()]


@given(st.text())
def test_text_never_leaves_its_literal(value: str) -> None:
    """Between its outer quotes a literal holds the value, each quote twice."""
    if not value:
        return

    literal = query.write_literal(TITLE.column, value)

    assert literal[0] == literal[-1] == "'"
    assert "'" not in literal[1:-1].replace("''", "")
    assert literal[1:-1].replace("''", "'") == value


@pytest.mark.parametrize(
    ("kind", "value"),
    [("Uniqueidentifier", "x' or 1 eq 1"), ("Lookup", "1111"), ("Integer", "1 or 1 eq 1"), ("State", True), ("Money", float("nan")),
     ("Boolean", "true"), ("DateTime", "2026-03-01"), ("DateTime", datetime(2026, 3, 1)), ("Integer", "١")],  # noqa: DTZ001
)  # fmt: skip
def test_value_that_is_not_of_its_columns_type_is_refused(kind: str, value: Any) -> None:
    """Only text is quoted; the rest must be what it says before it stands in a filter."""
    with pytest.raises(RejectedError) as caught:
        query.write_literal(Column("c", kind), value)

    assert caught.value.code == "unsearchable_value"


def test_ids_are_looked_up_in_few_calls(bench: DynamicsBench) -> None:
    """Many ids, in any case, each row once, more than a page of the listing."""
    keys = [add_case(bench, str(i)) for i in range(130)]
    bench.client.fetch_rows("incident", frozenset({"title"}), (), [(keys[0],)])
    calls = len(bench.sim.journal)

    rows = bench.client.fetch_rows("incident", frozenset({"title"}), (), [(key.upper(),) for key in keys])

    assert sorted(row.key for row in rows) == sorted(keys)
    assert len(bench.sim.journal) - calls == 2
    assert max(len(entry.path) + len(entry.query) for entry in bench.sim.requests("GET", "/incidents")) < 8000


def test_several_fields_are_looked_up_together(bench: DynamicsBench) -> None:
    """Each key of several fields counts as a whole."""
    for first, last in (("a", "1"), ("a", "2"), ("b", "1")):
        bench.sim.insert("contact", firstname=first, lastname=last)
    both = ("firstname", "lastname")

    rows = bench.client.fetch_rows("contact", frozenset(both), both, [("a", "2"), ("b", "1"), ("c", "c")])

    assert sorted((row.fields["firstname"], row.fields["lastname"]) for row in rows) == [("a", "2"), ("b", "1")]  # type: ignore[type-var]


@pytest.mark.parametrize("path", ["nope", "ownerid.fullname", "customerid.name", "title.x", "a b", "customerid_contact.nope", ""])  # fmt: skip
def test_unknown_path_is_refused_by_name(bench: DynamicsBench, path: str) -> None:
    """A path that the environment does not have is told before anything is listed."""
    with pytest.raises(RejectedError) as caught:
        bench.client.fetch_page("incident", frozenset({path}), Changed(None, None), None)

    assert caught.value.code == "unknown_field"


def test_unknown_table_is_refused_by_name(bench: DynamicsBench) -> None:
    """A record type that the environment does not have."""
    for record in ("nothing", "in cident", "x')"):
        with pytest.raises(RejectedError) as caught:
            bench.client.describe(record)

        assert caught.value.code == "unknown_record_type"


def test_describe_tells_types_lengths_choices_and_targets(bench: DynamicsBench) -> None:
    """From the metadata, once."""
    described = bench.client.describe("incident")
    calls = len(bench.sim.journal)
    fields = bench.client.describe("incident").fields

    assert len(bench.sim.journal) == calls
    assert described.noun == "case"
    assert (fields["title"].length, fields["title"].kind) == (200, FieldKind.TEXT)
    assert fields["statecode"].choices == (0, 1, 2)
    assert fields["customerid_contact"].refers_to == ("contact",)
    assert (fields["createdon"].kind, fields["createdon"].writable) == (FieldKind.TIME, False)


def test_table_that_is_not_of_the_base_system_is_found_by_its_definition(bench: DynamicsBench) -> None:
    """The address of a table stands in its definition."""
    bench.sim.insert("annotation", subject="s", notetext="t", objectid_incident=(case := add_case(bench)))

    rows = bench.client.fetch_rows("annotation", frozenset({"notetext"}), ("objectid",), [(case,)])

    assert [row.fields["notetext"] for row in rows] == ["t"]


def test_clock_is_the_vendors(bench: DynamicsBench) -> None:
    """The Date header, whole seconds, aware UTC."""
    assert bench.client.read_clock() == NOW


def test_title_that_looks_like_a_time_stays_text(bench: DynamicsBench) -> None:
    """Types come from the metadata, not from the looks of a value."""
    add_case(bench, "2026-03-01T10:00:00Z")

    (row,) = list_all(bench, frozenset({"title"}))

    assert row.fields["title"] == "2026-03-01T10:00:00Z"


@pytest.mark.parametrize("broken", [True, False])
def test_page_that_the_vendor_no_longer_knows_has_its_own_code(broken: bool) -> None:
    """An old or broken link means: list again from the start."""
    with dynamics_bench(switches={"paging_cookie_s": 60}, page_size=1) as bench:
        fill(bench)
        for i in range(2):
            add_case(bench, str(i))
        link = bench.client.fetch_page("incident", frozenset({"title"}), Changed(None, None), None).next
        assert link is not None
        if broken:
            link = link.replace("pagenumber", "pagenumbre")
        else:
            bench.sim.clock.advance(61)

        with pytest.raises(RejectedError) as caught:
            bench.client.fetch_page("incident", frozenset({"title"}), Changed(None, None), link)

    assert caught.value.code == "page_expired"


def test_page_link_to_another_host_is_not_followed() -> None:
    """Neither one that an answer holds nor one that comes back through a queue."""
    with responses.RequestsMock() as stub:
        client = dynamics365.Dynamics365(connect("https://org.example", dynamics365.DIALECT), organization_url="https://org.example")  # fmt: skip
        root = "https://org.example/api/data/v9.2/"
        attributes = f"{root}EntityDefinitions(LogicalName='incident')/Attributes"
        stub.get(attributes, json={"value": [{"LogicalName": "title", "AttributeType": "String"}]})
        stub.get(f"{attributes}/Microsoft.Dynamics.CRM.LookupAttributeMetadata", json={"value": []})
        stub.get(f"{root}incidents", json={"value": [], "@odata.nextLink": "https://evil.example/api/data/v9.2/incidents?$skiptoken=1"})  # fmt: skip

        for page in (None, "https://evil.example/api/data/v9.2/incidents?$skiptoken=1"):
            with pytest.raises(AccessError) as caught:
                client.fetch_page("incident", frozenset({"title"}), Changed(None, None), page)

            assert caught.value.code == "foreign_link"


@pytest.mark.parametrize(
    ("kind", "facts", "error"),
    [
        (FaultKind.REFUSE, {}, TransientError),
        (FaultKind.TRUNCATED, {}, TransientError),
        (FaultKind.HTML, {}, TransientError),
        (FaultKind.STATUS, {"status": 503}, TransientError),
        (FaultKind.STATUS, {"status": 200, "body": '{"error": {"code": "0x1", "message": "x"}}'}, TransientError),
        (FaultKind.STATUS, {"status": 200, "body": '{"value": 5}'}, TransientError),
        (FaultKind.STATUS, {"status": 429, "headers": {"Retry-After": "12"}}, RateLimitedError),
        (FaultKind.STATUS, {"status": 403}, AccessError),
        (FaultKind.STATUS, {"status": 400}, RejectedError),
    ],
)
def test_lasting_fault_on_a_page_is_told_by_what_happens_next(
    bench: DynamicsBench, kind: FaultKind, facts: dict[str, Any], error: type[RemoteError]
) -> None:
    """Listing has no effect: nothing is ambiguous."""
    list_all(bench, frozenset({"title"}))
    bench.sim.add_fault(kind, path="/incidents", times=0, **facts)

    with pytest.raises(RemoteError) as caught:
        list_all(bench, frozenset({"title"}))

    assert type(caught.value) is error
    assert bench.permits.pauses == ([12.0] if error is RateLimitedError else [])


def test_expired_token_is_renewed_in_between(bench: DynamicsBench) -> None:
    """A token that ends on the second page does not end the listing."""
    for i in range(4):
        add_case(bench, str(i))
    bench.sim.add_fault(FaultKind.EXPIRE_TOKEN, path="skiptoken")

    assert len(list_all(bench, frozenset({"title"}))) == 4


@pytest.mark.parametrize(
    ("code", "said"),
    [("0x80072560", "application user"), ("0x80095ffc", "allow list"), ("0x80040220", "privilege"), ("", "403")],
)
def test_forbidden_names_what_is_missing(code: str, said: str) -> None:
    """The three known reasons are told apart."""
    reading = dynamics365.read_answer(Answer(403, {}, b"", {"error": {"code": code, "message": "x"}}))

    assert reading is not None
    assert said in reading.reason


def test_times_of_all_forms_are_aware_utc() -> None:
    """With offset, without, and dates."""
    texts = ("2026-03-01T10:00:00Z", "2026-03-01T11:00:00+01:00", "2026-03-01T10:00:00")

    assert {query.read_time(text) for text in texts} == {datetime(2026, 3, 1, 10, tzinfo=UTC)}
    assert query.read_time("2026-03-01") == datetime(2026, 3, 1, tzinfo=UTC)
