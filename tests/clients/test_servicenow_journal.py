"""Journal entries as a child type of ServiceNow's task tables: how they are described, fetched and guarded."""

from collections.abc import Iterator
from datetime import timedelta

import pytest

from sandbox.servicenow_access import ApiUser
from shared.clients.auth import BasicAuth
from shared.clients.system import Changed, FieldKind, Write
from shared.errors import AccessError, MappingError, RejectedError
from tests.clients.connections import NOW, ServiceNowBench, servicenow_bench

JOURNAL_CALLS = "/api/now/table/sys_journal_field"
ENTRY_PATHS = frozenset({"number", "journal.id", "journal.text"})


@pytest.fixture
def bench() -> Iterator[ServiceNowBench]:
    """Serve an instance that holds nothing but its API users."""
    with servicenow_bench() as bench:
        yield bench


def insert_noted(bench: ServiceNowBench, *notes: str) -> str:
    """Create an incident and add work notes to it, a minute apart."""
    sys_id = bench.sim.insert("incident", short_description="Printer")
    for note in notes:
        bench.sim.clock.advance(60)
        bench.sim.update("incident", sys_id, work_notes=note, by="agent")
    return sys_id


def test_describe_offers_the_journal_of_task_tables_only(bench: ServiceNowBench) -> None:
    """Tables with journal fields have a list `journal`, which those fields refer to; it is only read."""
    fields = bench.client.describe("incident").fields

    journal = fields["journal"]
    assert (journal.kind, journal.writable, journal.searchable) == (FieldKind.LIST, False, False)
    assert {name: fields[name].refers_to for name in ("comments", "work_notes")} == {
        "comments": ("journal",),
        "work_notes": ("journal",),
    }
    assert fields["work_notes"].kind is FieldKind.APPEND
    assert "journal" not in bench.client.describe("sys_user").fields


def test_entries_are_canonical_and_oldest_first(bench: ServiceNowBench) -> None:
    """An entry says its id, journal field, text, author and time."""
    sys_id = insert_noted(bench, "First, with ^ and 'quotes'", "Second")
    bench.sim.clock.advance(60)
    bench.sim.update("incident", sys_id, comments="For the caller", by="agent")

    (row,) = bench.client.fetch_rows("incident", frozenset({"journal"}), (), [(sys_id,)])

    entries = row.fields["journal"]
    assert [(entry["element"], entry["text"]) for entry in entries] == [
        ("work_notes", "First, with ^ and 'quotes'"),
        ("work_notes", "Second"),
        ("comments", "For the caller"),
    ]
    assert (entries[0]["author"], entries[0]["created_at"]) == ("agent", NOW + timedelta(minutes=1))
    assert len({entry["id"] for entry in entries}) == 3


def test_entries_come_under_their_child_type_by_any_path_into_it(bench: ServiceNowBench) -> None:
    """`journal.text` asks for the list `journal`, whose entries are complete; a record without entries has an empty one."""
    noted, silent = insert_noted(bench, "Seen"), insert_noted(bench)

    rows = {row.key: row.fields for row in bench.client.fetch_rows("incident", ENTRY_PATHS, (), [(noted,), (silent,)])}

    assert set(rows[noted]) == {"number", "journal"}
    assert set(rows[noted]["journal"][0]) == {"id", "element", "text", "author", "created_at"}
    assert rows[silent]["journal"] == []


def test_entries_of_a_page_are_fetched_together() -> None:
    """A page costs one call more, however many records it has; without a journal path it costs none."""
    with servicenow_bench(page_size=50) as bench:
        keys = [insert_noted(bench, f"Note {number}") for number in range(50)]
        bench.client.describe("incident")
        bench.client.fetch_rows("incident", ENTRY_PATHS, (), [(keys[0],)])
        bench.sim.journal.clear()

        page = bench.client.fetch_page("incident", ENTRY_PATHS, Changed(None, None), None)
        plain = bench.client.fetch_page("incident", frozenset({"number"}), Changed(None, None), None)

        assert sorted(row.fields["journal"][0]["text"] for row in page.rows) == sorted(
            f"Note {number}" for number in range(50)
        )
        assert "journal" not in plain.rows[0].fields
        assert len(bench.sim.requests("GET", JOURNAL_CALLS)) == 1


def test_entries_of_many_records_are_asked_in_urls_that_fit(bench: ServiceNowBench) -> None:
    """More records than fit into a URL are asked for in several calls, none of them too long."""
    keys = [insert_noted(bench, f"Note {number}") for number in range(400)]

    rows = bench.client.fetch_rows("incident", ENTRY_PATHS, (), [(key,) for key in keys])

    calls = bench.sim.requests("GET", JOURNAL_CALLS)
    assert sum(len(row.fields["journal"]) for row in rows) == 400
    assert len(calls) == 3
    assert max(len(call.target) for call in calls) < 8000


def test_entries_that_rights_hide_are_not_taken_for_none() -> None:
    """Hidden entries raise AccessError: taken for none, a note would be appended twice."""
    with servicenow_bench(auth=BasicAuth("limited", "pw")) as bench:
        user = ApiUser("limited", "pw")
        user.visible_rows = {"sys_journal_field": "element=comments"}
        bench.sim.add_user(user)
        sys_id = insert_noted(bench, "Internal")

        with pytest.raises(AccessError) as caught:
            bench.client.fetch_rows("incident", ENTRY_PATHS, (), [(sys_id,)])

    assert caught.value.code == "rows_unreadable"
    assert "sys_journal_field" in caught.value.message


def test_unknown_parts_of_an_entry_are_refused(bench: ServiceNowBench) -> None:
    """What an entry does not have is an unknown field; other tables have no journal at all."""
    sys_id = insert_noted(bench)

    for record, path in (("incident", "journal.colour"), ("sys_user", "journal"), ("sys_user", "journal.text")):
        with pytest.raises(RejectedError) as caught:
            bench.client.fetch_rows(record, frozenset({path}), (), [(sys_id,)])

        assert caught.value.code == "unknown_field"


def test_the_journal_is_neither_searched_nor_written(bench: ServiceNowBench) -> None:
    """Entries are found through their records, and made by writing a journal field."""
    sys_id = insert_noted(bench)

    with pytest.raises(RejectedError) as caught:
        bench.client.fetch_rows("incident", frozenset({"number"}), ("journal.text",), [("Seen",)])
    answer = bench.client.write_rows("incident", [Write(sys_id, {"journal": "x", "urgency": 1})])[0]

    assert caught.value.code == "unsearchable_field"
    assert isinstance(answer, MappingError)
    assert not bench.sim.requests("PATCH")
