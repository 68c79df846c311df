"""Child types of ServiceNow: read with their record, made, changed and removed under it."""

from collections.abc import Iterator

import pytest

from sandbox.servicenow import USER_NAME
from sandbox.simulator import FaultKind
from shared.clients.system import FieldKind, Write, Written
from shared.errors import AmbiguousWriteError, ConfigError, MappingError, RejectedError
from tests.clients.connections import ServiceNowBench, servicenow_bench

MEMBERS = frozenset({"sys_user_grmember.id", "sys_user_grmember.user", "sys_user_grmember.user.email"})


@pytest.fixture
def bench() -> Iterator[ServiceNowBench]:
    """Serve an instance whose integration user keeps group members too."""
    with servicenow_bench() as bench:
        user = bench.sim.users[USER_NAME]
        user.create |= {"sys_user_grmember"}
        user.delete |= {"sys_user_grmember"}
        yield bench


def note(marker: str, parent: str, element: str = "work_notes") -> Write:
    """Build the write of an entry that is known by its marker."""
    fields = {"element": element, "text": f"[Ada #{marker}] Seen"}
    return Write(None, fields, {"text": f"#{marker}]"}, parent)


def add_user(bench: ServiceNowBench, name: str) -> str:
    return bench.sim.insert("sys_user", user_name=name, email=f"{name}@acme.example", last_name=name)


# -- journal entries --------------------------------------------------------------------------------------------------


def test_entries_are_made_by_their_record_and_named_by_their_marker(bench: ServiceNowBench) -> None:
    """Each entry goes to its journal, in order, and its key is read back in one call for all of them."""
    one, other = (bench.sim.insert("incident", short_description=text) for text in ("One", "Other"))
    writes = [note("a1", one), note("a2", one, "comments"), note("b1", other)]
    bench.client.write_rows("incident.journal", [])
    bench.client.describe("incident.journal")
    bench.sim.journal.clear()

    answers = bench.client.write_rows("incident.journal", writes)

    entries = bench.sim.tables["sys_journal_field"]
    made = [(entries[answer.key]["element"], entries[answer.key]["value"]) for answer in answers]
    assert made == [
        ("work_notes", "[Ada #a1] Seen"),
        ("comments", "[Ada #a2] Seen"),
        ("work_notes", "[Ada #b1] Seen"),
    ]
    assert all(answer.created for answer in answers)
    assert len(bench.sim.requests("GET", "/sys_journal_field")) == 1


def test_an_entry_whose_text_was_rewritten_is_still_named(bench: ServiceNowBench) -> None:
    """A rule of the instance rewrites what is written: the marker's id is enough."""
    sys_id, marker = bench.sim.insert("incident", short_description="One"), "0123456789abcdef0123456789abcdef"

    def rewrite(change) -> None:
        for entry in bench.sim.tables["sys_journal_field"].values():
            entry["value"] = entry["value"].replace("[", "").replace("]", ":").replace("#", "").upper()

    bench.sim.records.on_change.append(rewrite)

    (answer,) = bench.client.write_rows("incident.journal", [note(marker, sys_id)])

    assert isinstance(answer, Written)
    assert bench.sim.tables["sys_journal_field"][answer.key]["value"] == f"ADA {marker.upper()}: SEEN"


def test_an_entry_that_the_instance_drops_is_said(bench: ServiceNowBench) -> None:
    """A journal that the user may not write takes nothing and answers 200."""
    bench.sim.users[USER_NAME].unwritable = {"incident": frozenset({"work_notes"})}
    sys_id = bench.sim.insert("incident", short_description="One")

    (answer,) = bench.client.write_rows("incident.journal", [note("a1", sys_id)])

    assert isinstance(answer, RejectedError)
    assert answer.code == "entry_not_shown"


def test_an_entry_whose_key_cannot_be_read_is_in_doubt(bench: ServiceNowBench) -> None:
    """The entry is there, so it is looked up later and not made again."""
    sys_id = bench.sim.insert("incident", short_description="One")
    bench.client.describe("incident.journal")
    bench.client.fetch_rows("incident", frozenset({"journal.id"}), (), [(sys_id,)])
    bench.sim.add_fault(kind=FaultKind.STATUS, status=503, path="/sys_journal_field", times=9)

    (answer,) = bench.client.write_rows("incident.journal", [note("a1", sys_id)])

    assert isinstance(answer, AmbiguousWriteError)


@pytest.mark.parametrize(
    ("write", "error"),
    [
        (Write(None, {"element": "short_description", "text": "x"}, {}, "0" * 32), MappingError),
        (Write(None, {"text": "x"}, {}, "0" * 32), MappingError),
        (Write(None, {"element": "comments", "text": "x", "author": "me"}, {}, "0" * 32), MappingError),
        (Write("0" * 32, {"text": "x"}, {}, "0" * 32), RejectedError),
        (Write("0" * 32, None, {}, "0" * 32), RejectedError),
    ],
    ids=["no journal", "journal unknown", "author", "changed", "removed"],
)
def test_what_a_journal_does_not_take_is_refused_before_it_is_sent(bench: ServiceNowBench, write, error) -> None:
    """An entry without its journal never falls into another one: internal must not become public."""
    (answer,) = bench.client.write_rows("incident.journal", [write])

    assert isinstance(answer, error)
    assert not bench.sim.requests("PATCH")


def test_the_journal_describes_its_entries(bench: ServiceNowBench) -> None:
    """Which journals there are, and that entries are only ever added."""
    described = bench.client.describe("incident.journal")

    assert described.only_added
    assert set(described.fields["element"].choices) == {"comments", "work_notes"}
    assert [name for name, field in described.fields.items() if field.writable] == ["element", "text"]


# -- tables that refer to their record --------------------------------------------------------------------------------


def test_rows_that_refer_to_a_record_are_read_with_it(bench: ServiceNowBench) -> None:
    """Paths lead through the child's own references; `member` is another name for a group's members."""
    group, empty = (bench.sim.insert("sys_user_group", name=name) for name in ("Hardware", "Empty"))
    ada = add_user(bench, "ada")
    member = bench.sim.insert("sys_user_grmember", user=ada, group=group)

    rows = {row.key: row.fields for row in bench.client.fetch_rows("sys_user_group", MEMBERS, (), [(group,), (empty,)])}
    named = bench.client.fetch_rows("sys_user_group", frozenset({"member.user"}), (), [(group,)])

    assert rows[group]["sys_user_grmember"] == [{"id": member, "user": ada, "user.email": "ada@acme.example"}]
    assert rows[empty]["sys_user_grmember"] == []
    assert named[0].fields["member"] == [{"id": member, "user": ada}]


def test_a_child_is_made_under_its_record_and_removed(bench: ServiceNowBench) -> None:
    """The reference to the record is the client's to fill; removing what is gone already succeeds."""
    group, ada = bench.sim.insert("sys_user_group", name="Hardware"), add_user(bench, "ada")

    (made,) = bench.client.write_rows("sys_user_group.member", [Write(None, {"user": ada}, {"user": ada}, group)])
    (row,) = bench.sim.rows("sys_user_grmember", group=group)
    removed = bench.client.write_rows("sys_user_group.member", [Write(made.key, None, {}, group)] * 2)

    assert (row["sys_id"], row["user"]) == (made.key, ada)
    assert [answer.key for answer in removed] == [made.key] * 2
    assert bench.sim.rows("sys_user_grmember", group=group) == []


def test_a_removal_without_the_right_is_refused(bench: ServiceNowBench) -> None:
    """ServiceNow says 403, and the row stays."""
    bench.sim.users[USER_NAME].delete = frozenset()
    group = bench.sim.insert("sys_user_group", name="Hardware")
    member = bench.sim.insert("sys_user_grmember", user=add_user(bench, "ada"), group=group)

    (answer,) = bench.client.write_rows("sys_user_group.member", [Write(member, None, {}, group)])

    assert not isinstance(answer, Written)
    assert len(bench.sim.rows("sys_user_grmember", group=group)) == 1


def test_a_web_page_is_no_proof_of_a_removal(bench: ServiceNowBench) -> None:
    """Only 204 says that a record was deleted."""
    group = bench.sim.insert("sys_user_group", name="Hardware")
    member = bench.sim.insert("sys_user_grmember", user=add_user(bench, "ada"), group=group)
    bench.sim.add_fault(kind=FaultKind.HTML, method="DELETE", times=9)

    (answer,) = bench.client.write_rows("sys_user_group.member", [Write(member, None, {}, group)])

    assert not isinstance(answer, Written)


def test_the_reference_to_the_record_is_found_or_asked_for(bench: ServiceNowBench) -> None:
    """One column that refers to the record's own table decides; several are named, none is refused."""
    member = bench.client.describe("sys_user_group.sys_user_grmember")

    with pytest.raises(ConfigError, match="assigned_to and"):
        bench.client.describe("sys_user.incident")
    with pytest.raises(RejectedError, match="no field that refers to"):
        bench.client.describe("incident.sys_user")
    with pytest.raises(RejectedError, match="no field colour"):
        bench.client.describe("incident.colour")
    assert not member.fields["group"].writable
    assert member.fields["user"].kind is FieldKind.REFERENCE
    assert "id" in member.fields
