"""Rows in tables: stored whole, changed by compare-and-set, certain of every write."""

import contextlib
import threading
from datetime import UTC, datetime
from typing import Any, ClassVar
from unittest import mock
from urllib.parse import unquote

import pytest
from azure.core.pipeline import Pipeline
from pydantic import Field

from shared.errors import ConfigError, StateError
from shared.state import entities
from shared.state.rows import (
    ROWS,
    Claim,
    CursorRow,
    LinkRow,
    Outcome,
    ResultRow,
    RunKind,
    RunRow,
    SlotRow,
    StateRow,
)
from shared.state.shares import PermitRow
from shared.state.storage import connect_tables
from shared.state.tables import RowChangedError, RowExistsError, Tables, build_filter

NOON = datetime(2026, 3, 14, 12, 0, 0, 123456, tzinfo=UTC)
RUN = "case_to_incident-20260314T120000123-ab12"
WRITES = "(POST|PUT|PATCH|DELETE) "


def link(key: str = "C1", **facts) -> LinkRow:
    return LinkRow(pair="dynamics365.incident+servicenow.incident", side="dynamics365.incident", key=key, **facts)


def result(key: str, **facts) -> ResultRow:
    return ResultRow(run_id=RUN, page=0, key=key, outcome=Outcome.CREATED, ended_at=NOON, **facts)


def cursor(**facts) -> CursorRow:
    return CursorRow(recipe="case_to_incident", activated_at=NOON, **facts)


def read_cursor(tables: Tables) -> CursorRow:
    row = tables.get(CursorRow, "case_to_incident", "cursor")
    assert row is not None
    return row


class LooseRow(StateRow):
    """A row for what real rows never hold."""

    TABLE: ClassVar[str] = "audit"  # one that there is

    key: str
    number: int = 0
    text: str = ""
    share: float = 0.0
    yes: bool = False
    at: datetime | None = None
    many: list[str] = Field(default_factory=list)
    claim: Claim | None = None

    @property
    def partition_key(self) -> str:
        return "p"

    @property
    def row_key(self) -> str:
        return self.key


def replace_together(tables: Tables, row: LooseRow) -> StateRow:
    """Store a row in a transaction, over another one with its key."""
    stored = tables.insert(LooseRow(key=row.key))
    return tables.transact([("replace", row.model_copy(update={"etag": stored.etag}))])[0]


class OldRow(LooseRow):
    """The same row as an older app knows it."""

    text: ClassVar[str] = ""


class NewRow(LooseRow):
    """The same row as a newer app writes it."""

    schema_version: int = 2
    news: str = "more"


# -- rows and entities --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ROWS, ids=lambda model: model.__name__)
def test_rows_may_leave_none_out(model):
    """What is None is not stored, so every field that may be None is None when it is missing."""
    for name, field in model.model_fields.items():
        nullable = field.annotation is not None and type(None) in getattr(field.annotation, "__args__", ())

        assert not nullable or field.default is None, name


@pytest.mark.parametrize(
    "store",
    [
        pytest.param(lambda tables, row: tables.insert(row), id="alone"),
        pytest.param(lambda tables, row: tables.transact([("insert", row)])[0], id="inserted together"),
        pytest.param(lambda tables, row: tables.transact([("upsert", row)])[0], id="stored together"),
        pytest.param(replace_together, id="replaced together"),
    ],
)
def test_row_comes_back_as_it_was_stored(tables, store):
    """Every kind of value survives: text of any script, numbers, times, lists, models, half a surrogate pair in a list."""
    row = LooseRow(
        key="ключ 'k' %25",
        number=-(2**31),
        text="ÄÖ😀\n<x>",
        share=0.1,
        yes=True,
        at=NOON,
        many=["a", "\ud800", "😀"],
        claim=Claim(owner="m", until=NOON),
    )

    stored = store(tables, row)

    found = tables.get(LooseRow, "p", row.key)
    assert found == stored
    assert found.model_copy(update={"etag": ""}) == row
    assert type(found.at) is datetime


def test_row_with_much_text_is_stored_in_parts(tables):
    """JSON beyond one property's size is cut, and comes back whole."""
    row = LooseRow(key="k", many=["é" * 1000] * 20)

    tables.insert(row)

    assert tables.get(LooseRow, "p", "k").many == row.many
    assert [found.many for found in tables.query(LooseRow, "p", select=["many"])] == [row.many]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        pytest.param(LooseRow(key="k", number=2**31), "32 bits", id="integer"),
        pytest.param(LooseRow(key="k", text="😀" * 16_385), "32,770 characters", id="text"),
        pytest.param(LooseRow(key="k", many=["x" * 600_000]), "bytes", id="entity"),
        pytest.param(LooseRow(key="k" * 513), "513 characters", id="long key"),
        pytest.param(LooseRow(key="a/b"), "forbids", id="slash in key"),
        pytest.param(LooseRow(key="a\x85"), "forbids", id="control character in key"),
        pytest.param(LooseRow(key=""), "empty key", id="empty key"),
        pytest.param(LooseRow(key="k", at=datetime(2026, 3, 14)), "without a zone", id="naive time"),  # noqa: DTZ001
    ],
)
def test_row_beyond_azures_limits_is_refused_before_it_is_sent(tables, edge, row, words):
    """The emulator takes what Azure refuses, so we check; the message names the kind of row, never what it holds."""
    with pytest.raises(StateError, match=words) as caught:
        tables.insert(row)

    assert "LooseRow" in str(caught.value)
    assert edge.requests == []


def test_row_with_too_many_properties_is_refused(tables):
    """252 properties of our own fit."""
    row = LooseRow(key="k")
    wide = type(
        "WideRow",
        (LooseRow,),
        {"__annotations__": {f"f{n}": int for n in range(250)}, **{f"f{n}": 0 for n in range(250)}},
    )

    with pytest.raises(StateError, match="properties"):
        entities.to_entity(wide(key=row.key), "m")


def test_row_of_a_newer_app_is_not_read(tables):
    """An older app must not write back what it does not understand."""
    tables.insert(NewRow(key="k"))

    with pytest.raises(StateError, match="deploy the newer app first"):
        tables.get(LooseRow, "p", "k")


def test_row_with_unknown_columns_is_read(tables):
    """Columns that went out of use are ignored."""
    tables.insert(LooseRow(key="k", text="x", number=7))

    assert tables.get(OldRow, "p", "k").number == 7


def test_row_that_cannot_be_read_says_where_not_what(tables):
    """A damaged row's content stays out of the error."""
    tables.insert(SlotRow(recipe="r", kind="window", run_id="geheim", window="geheim"))

    with pytest.raises(StateError, match="activated_at: missing") as caught:
        tables.get(CursorRow, "r", "slot-window")

    assert "geheim" not in str(caught.value)
    assert caught.value.__cause__ is None


# -- single rows --------------------------------------------------------------------------------------------------


def test_reading_what_is_not_there(tables):
    """No table and no row are both nothing."""
    assert tables.get(LinkRow, "p", "k") is None
    assert list(tables.query(LinkRow, "p")) == []
    assert tables.count(LinkRow, "p") == 0
    tables.delete_key(LinkRow, "p", "k")

    assert tables.operations.counts() == {"get": 1, "query": 2, "delete": 1}


def test_insert_tells_what_is_there_already(tables, others):
    """The second insert of a key raises, and carries the row that is there."""
    first = others.insert(link(other_key="I1"))

    with pytest.raises(RowExistsError) as caught:
        tables.insert(link(other_key="I2"))

    assert caught.value.stored == first


def test_replace_fails_when_somebody_was_faster(tables, others):
    """Compare-and-set: only the row that was read is replaced."""
    row = tables.insert(cursor())
    others.replace(row.model_copy(update={"validated_hash": "theirs"}))

    with pytest.raises(RowChangedError) as caught:
        tables.replace(row.model_copy(update={"validated_hash": "ours"}))

    assert caught.value.stored.validated_hash == "theirs"


def test_replace_fails_when_the_row_is_gone(tables, others):
    """A row that was deleted is not made again."""
    row = tables.insert(cursor())
    others.delete(row)

    with pytest.raises(RowChangedError) as caught:
        tables.replace(row)

    assert caught.value.stored is None


def test_replace_takes_away_what_is_none_now(tables):
    """A replaced row keeps nothing of the old one."""
    row = tables.insert(cursor(read_until=NOON))

    tables.replace(row.model_copy(update={"read_until": None}))

    assert read_cursor(tables).read_until is None


def test_delete_leaves_a_changed_row(tables, others):
    """A row that was read is deleted only as it was read; one that is gone is fine."""
    row = tables.insert(cursor())
    changed = others.replace(row)

    with pytest.raises(RowChangedError):
        tables.delete(row)

    tables.delete(changed)
    tables.delete(changed)


def test_two_writers_of_the_same_content_do_not_both_win(tables, others, edge):
    """Equal content is no proof that a write was ours: both counted up from 0, one of them must learn of it."""
    row = tables.insert(RunRow(run_id=RUN, recipe="case_to_incident", kind=RunKind.WINDOW, created_at=NOON))
    counted = row.model_copy(update={"mail_sends": 1})
    edge.before = lambda: others.replace(counted)

    with pytest.raises(RowChangedError):
        tables.replace(counted)


@pytest.mark.parametrize("fault", ["lose", "500", "503", "200"])  # 200: a web page in the place of the answer
def test_insert_whose_answer_was_lost_is_not_taken_for_somebody_elses(tables, edge, fault):
    """The SDK or we repeat it, storage says 409, and the row that stands there is ours."""
    tables.create_all([CursorRow])
    edge.faults = [(WRITES, fault)]

    stored = tables.insert(cursor())

    assert stored == read_cursor(tables)
    assert not edge.faults


@pytest.mark.parametrize("fault", ["lose", "500", "refuse", "200"])
def test_replace_whose_answer_was_lost_is_believed_after_a_look(tables, edge, fault):
    """The repeat meets 412; the mark of the stored row says that it was us."""
    row = tables.insert(cursor())
    edge.faults = [(WRITES, fault)]

    stored = tables.replace(row.model_copy(update={"validated_hash": "new"}))

    assert stored == read_cursor(tables)
    assert stored.validated_hash == "new"


def test_delete_whose_answer_was_lost_is_done(tables, edge):
    """A row that is gone is what was asked for."""
    row = tables.insert(cursor())
    edge.faults = [(WRITES, "lose")]

    tables.delete(row)

    assert tables.get(CursorRow, row.partition_key, row.row_key) is None


def test_insert_that_never_arrives_is_a_state_error(tables, edge):
    """Repeats are bounded; then the queue delivers the work again."""
    tables.create_all([CursorRow])
    edge.faults = [(WRITES, "refuse")] * 20

    with pytest.raises(StateError, match="no answer") as caught:
        tables.insert(cursor())

    assert not isinstance(caught.value, RowExistsError)
    edge.faults = []
    assert tables.get(CursorRow, "case_to_incident", "cursor") is None


def test_a_bad_key_names_the_setting(azurite, prefix):
    """Credentials are a person's business; the key itself is not shown."""
    wrong = azurite.connection_string.replace(azurite.key, "d3Jvbmc=")
    with connect_tables(wrong) as service, pytest.raises(ConfigError, match="AzureWebJobsStorage") as caught:
        Tables(service, prefix).get(CursorRow, "p", "k")

    assert "d3Jvbmc" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "UseNoStorage", "AccountKey=geheim"])
def test_a_bad_connection_string_names_the_setting(text):
    """What cannot be a connection string is refused before anything is sent."""
    with pytest.raises(ConfigError, match="AzureWebJobsStorage") as caught:
        connect_tables(text)

    assert "geheim" not in str(caught.value)


# -- many rows ----------------------------------------------------------------------------------------------------


def test_get_many_keeps_the_order(tables):
    """One answer per key, None where there is no row."""
    rows = [tables.insert(link(f"C{n}")) for n in range(5)]
    keys = [(row.partition_key, row.row_key) for row in rows]

    found = tables.get_many(LinkRow, [*reversed(keys), ("p", "none")])

    assert found == [*reversed(rows), None]


@pytest.mark.parametrize("absent", [0, 100], ids=["most are there", "few are there"])
@pytest.mark.parametrize(("there", "step"), [(40, 1), (40, 3), (400, 40), (2600, 3), (2600, 250), (0, 1)])
def test_get_many_finds_the_same_together_as_one_by_one(tables, there, step, absent):
    """Wanted rows come back, and nothing else, whether they stand close together, far apart or not at all."""
    rows = {row.row_key: row for row in tables.transact([("upsert", LooseRow(key=f"{n:04d}")) for n in range(there)])}
    wanted = [f"{n:04d}" for n in range(0, max(there, 10), step)] + ["0000!", "0005a", "9999"]
    wanted += [f"{n * 26:04d}x" for n in range(absent)]

    found = tables.get_many(LooseRow, [("p", key) for key in reversed(wanted)])

    assert found == [rows.get(key) for key in reversed(wanted)]


@pytest.mark.parametrize(("apart", "queries"), [(1, 6), (4, 6), (20, 8)])
def test_get_many_reads_rows_of_a_partition_a_dozen_a_query(tables, apart, queries):
    """A page's rows cost a list of keys for each thousand and a query for each dozen, where not too many stand between them."""
    tables.transact([("upsert", LooseRow(key=f"{n:05d}")) for n in range(60 * apart)])
    before = tables.operations.counts()

    found = tables.get_many(LooseRow, [("p", f"{n * apart:05d}") for n in range(60)])

    assert None not in found
    assert tables.operations.counts() - before == {"query": queries}


def test_get_many_names_the_rows_that_are_there_and_where_they_stand(tables, edge):
    """A filter says between which keys storage may look: Azure looks through the partition for several keys."""
    tables.transact([("upsert", LooseRow(key=f"{n:02d}")) for n in range(0, 20, 2)])
    del edge.addresses[:]

    tables.get_many(LooseRow, [("p", f"{n:02d}") for n in range(1, 18)])

    (asked,) = [unquote(address) for address in edge.addresses if "$select" not in unquote(address)]
    assert (
        "PartitionKey eq 'p' and RowKey ge '02' and RowKey le '16' and ( RowKey eq '02' or RowKey eq '04' or" in asked
    )
    assert asked.count("RowKey eq") == 8


@pytest.mark.parametrize(("apart", "counts"), [(100, {"query": 2}), (1000, {"query": 1, "get": 11})])
def test_get_many_does_not_ask_for_each_row_that_is_not_there(tables, apart, counts):
    """Where few of a partition's rows are wanted and none is there, its keys tell; where they are too many, each is asked for."""
    tables.transact([("upsert", LooseRow(key=f"{n:05d}")) for n in range(12 * apart)])
    before = tables.operations.counts()

    found = tables.get_many(LooseRow, [("p", f"{n * apart:05d}x") for n in range(12)])

    assert found == [None] * 12
    assert tables.operations.counts() - before == counts


@pytest.mark.parametrize("sign", ["a", "'", "é"])
@pytest.mark.parametrize("length", [100, 300, 512])
def test_get_many_asks_for_long_keys_in_addresses_that_servers_take(tables, sign, length):
    """A dozen of the longest keys would be refused; fewer are named then."""
    rows = tables.transact([("insert", LooseRow(key=f"{n:02d}" + sign * (length - 2))) for n in range(12)])

    assert tables.get_many(LooseRow, [("p", row.row_key) for row in rows]) == rows


def test_get_many_reads_on_where_storage_answers_with_a_part(tables, edge):
    """Azure may end a list before it is full and say where it goes on: what comes later is not taken for absent."""
    rows = tables.transact([("upsert", LooseRow(key=f"{n:04d} it's")) for n in range(20)])
    edge.faults += [(r"GET .*audit\(\)", "few")] * 3

    assert tables.get_many(LooseRow, [("p", row.row_key) for row in rows]) == rows
    assert not edge.faults
    assert (
        sum("audit()" in request for request in edge.requests) == 6
    )  # three of three keys, the rest, twelve rows and eight


@pytest.mark.parametrize("mark", list(" _.:,;@~!$&()*<>{}[]|^-%+='é"))
def test_get_many_finds_keys_with_any_sign(tables, mark):
    """What a vendor's key may hold neither ends the filter nor changes what is asked."""
    keys = [f"{number:02d}{mark}b" if number in (0, 5, 9) else f"{number:02d}a" for number in range(10)]
    rows = tables.transact([("insert", link(key, parent="p")) for key in keys])

    assert tables.get_many(LinkRow, [(row.partition_key, row.row_key) for row in rows]) == rows


@pytest.mark.parametrize("asked", [0, 1, 2], ids=["the keys", "a dozen rows", "the others"])
@pytest.mark.parametrize("fault", ["lose", "cut", "503", "403"])
def test_get_many_believes_no_answer_that_it_cannot_read(tables, edge, fault, asked):
    """An answer that did not come, or not whole, is asked for again or is an error: no row is taken for absent."""
    rows = tables.transact([("upsert", LooseRow(key=f"{n:04d}")) for n in range(20)])
    edge.faults += [(r"GET .*audit\(\)", "")] * asked + [(r"GET .*audit\(\)", fault)]

    with contextlib.suppress(StateError, ConfigError):
        assert tables.get_many(LooseRow, [("p", row.row_key) for row in rows]) == rows

    assert not edge.faults


def test_query_reads_a_range_in_order(tables):
    """Keys are ordered as text; the end is not included."""
    tables.transact([("insert", LooseRow(key=f"{n:04d}")) for n in range(1100)])

    assert [row.key for row in tables.query(LooseRow, "p", "0010", "0013")] == ["0010", "0011", "0012"]
    assert [row.key for row in tables.query(LooseRow, "p", limit=2)] == ["0000", "0001"]
    assert tables.count(LooseRow, "p") == 1100
    assert sum(1 for _ in tables.scan(LooseRow, "o", "q")) == 1100


def test_query_of_selected_fields_has_no_others(tables):
    """A field that was not asked for cannot be mistaken for an empty one."""
    tables.insert(LooseRow(key="k", text="x", number=7, at=NOON))

    row = next(tables.query(LooseRow, "p", select=["number", "at", "claim"]))

    assert (row.number, row.at, row.claim) == (7, NOON, None)
    with pytest.raises(AttributeError):
        _ = row.text


def test_filter_refuses_more_than_azure_takes():
    """Azure takes 15 comparisons, the emulator any number."""
    comparison = ("RowKey", "ne", "x")
    build_filter([comparison] * 15)

    with pytest.raises(StateError, match="15"):
        build_filter([comparison] * 16)
    with pytest.raises(StateError, match="15"):
        build_filter([comparison] * 4, [comparison] * 12)


def test_transaction_of_more_than_a_hundred_rows(tables):
    """It goes in pieces of a hundred; each row gets its etag."""
    stored = tables.transact([("insert", result(f"C{n}")) for n in range(250)])

    assert tables.operations.counts()["transact"] == 4  # the first one found no table
    changed = tables.transact(
        [("replace", row.model_copy(update={"attempts": 2})) for row in stored[:2]] + [("delete", stored[2])]
    )
    assert changed[0].etag != stored[0].etag
    assert tables.count(ResultRow, stored[0].partition_key) == 249
    assert tables.replace(changed[1]).attempts == 2


def test_transaction_of_large_rows_is_cut_by_size(tables):
    """Azure takes 4 MiB at once."""
    big = [LooseRow(key=f"{n}", many=["x" * 400_000]) for n in range(12)]

    tables.transact([("insert", row) for row in big])

    assert tables.operations.counts()["transact"] == 1 + 2
    assert tables.count(LooseRow, "p") == 12


def test_transaction_names_the_row_that_exists(tables, others):
    """All or nothing, and the caller learns which row it was."""
    theirs = others.insert(result("C1"))

    with pytest.raises(RowExistsError) as caught:
        tables.transact([("upsert", result("C0")), ("insert", result("C1"))])

    assert (caught.value.index, caught.value.row.key, caught.value.stored) == (1, "C1", theirs)
    assert tables.count(ResultRow, theirs.partition_key) == 1


def test_transaction_names_the_row_that_changed(tables, others):
    """In the second piece too; `done` says what stands."""
    rows = tables.transact([("insert", result(f"C{n:03d}")) for n in range(130)])
    others.replace(rows[120])

    with pytest.raises(RowChangedError) as caught:
        tables.transact([("replace", row) for row in rows])

    assert (caught.value.index, caught.value.row.key, caught.value.done) == (120, "C120", 100)


def test_transaction_forgives_deleting_what_is_gone(tables):
    """The other rows are still written."""
    rows = tables.transact([("insert", result(f"{n}'s")) for n in range(2)])
    tables.delete(rows[0])

    tables.transact([("delete", rows[0]), ("delete", rows[1]), ("insert", result("C2"))])

    assert [row.key for row in tables.query(ResultRow, rows[0].partition_key)] == ["C2"]


@pytest.mark.parametrize("fault", ["lose", "503", "cut"])
def test_transaction_whose_answer_was_lost_is_believed_after_a_look(tables, edge, fault):
    """Repeated by the SDK or by us, it meets its own rows."""
    tables.create_all([ResultRow])
    edge.faults = [("batch", fault)]

    stored = tables.transact([("insert", result(f"C{n}")) for n in range(3)])

    assert stored == list(tables.query(ResultRow, stored[0].partition_key))


@pytest.mark.parametrize(
    "operations",
    [
        pytest.param([("insert", result("C1")), ("upsert", result("C1"))], id="a row twice"),
        pytest.param([("insert", result("C1")), ("insert", cursor())], id="two tables"),
        pytest.param([("replace", result("C1"))], id="replaced without a read"),
    ],
)
def test_transaction_that_cannot_be_is_refused(tables, operations):
    """These are mistakes of ours."""
    with pytest.raises(ValueError, match=r"transaction|never read"):
        tables.transact(operations)


# -- compare-and-set loop -----------------------------------------------------------------------------------------


def test_update_loses_no_count(tables, others):
    """Several threads of two processes count up one row; none is lost."""

    def count_up(row: LooseRow | None) -> LooseRow:
        return LooseRow(key="k", number=(row.number if row else 0) + 1)

    def work(mine: Tables) -> None:
        for _ in range(10):
            mine.update(LooseRow, "p", "k", count_up, attempts=50)

    threads = [threading.Thread(target=work, args=(mine,)) for mine in (tables, others, tables, others)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert tables.get(LooseRow, "p", "k").number == 40


def test_update_without_a_change_writes_nothing(tables):
    """None, or the row as it was, means: leave it."""
    row = tables.insert(LooseRow(key="k"))

    assert tables.update(LooseRow, "p", "k", lambda row: None) == row
    assert tables.update(LooseRow, "p", "k", lambda row: row) == row
    assert "replace" not in tables.operations.counts()


def test_now_is_the_storages_time(tables):
    """The clock follows the Date header, whatever the machine's clock says."""

    class Answer:
        class http_response:  # noqa: N801
            headers: ClassVar = {"Date": "Sat, 14 Mar 2026 12:00:00 GMT"}

    tables._clock.note()(Answer)

    assert abs((tables.now() - datetime(2026, 3, 14, 12, 0, tzinfo=UTC)).total_seconds()) < 60


def test_first_use_of_a_table_disturbs_no_other_call(tables: Tables) -> None:
    """The SDK's clients of one account share their policies: a client made during a call would rewire them under it."""
    built = []

    class Noticed(Pipeline):
        def __init__(self, *args: Any, **options: Any) -> None:
            built.append(1)
            super().__init__(*args, **options)

    with mock.patch("azure.data.tables._table_service_client.Pipeline", Noticed):
        for row in (LinkRow(pair="a+b", side="a", key="1"), PermitRow(connection="servicenow")):
            tables.get(type(row), row.partition_key, row.row_key)
            tables.insert(row)  # which makes its table
        tables.create_all()

    assert not built
