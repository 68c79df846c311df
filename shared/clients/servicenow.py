"""ServiceNow through its Table API: records are read, looked up and written one by one, with raw values.

Follows https://www.servicenow.com/docs/r/api-reference/rest-apis/c_TableAPI.html. Two habits of the vendor shape this
client: the limit and the count of a list are taken before rights, so a short page does not end a list; and a condition
that it cannot use is dropped, so no row is believed before it shows what was asked for. The Batch API is not used: it
is not atomic and has 30 s for everything.
"""

import contextvars
import dataclasses
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import datetime
from typing import Any, TypeVar
from urllib.parse import quote

from shared import attempt
from shared.clients import servicenow_query as query
from shared.clients.http import Answer, Dialect, HttpConnection, Meaning, Reading, read_date
from shared.clients.lookups import check_values, keep_asked, page_length
from shared.clients.servicenow_children import (
    group_paths,
    name_entries,
    read_children,
    shape,
)
from shared.clients.servicenow_paging import Place, build_window, ceil
from shared.clients.servicenow_schema import (
    CHILD_TABLES,
    JOURNAL,
    JOURNAL_TABLE,
    NOUNS,
    ChildType,
    Column,
    Table,
    build_fields,
    build_table,
    describe_child,
    find_reference,
    flatten,
    read_time,
    read_value,
    write_value,
)
from shared.clients.system import Changed, Key, Page, Paths, RecordType, Row, Value, Write, Written
from shared.errors import (
    EXISTS_ALREADY,
    AccessError,
    AmbiguousWriteError,
    MappingError,
    RateLimitedError,
    RejectedError,
    SyncError,
    TransientError,
)

SYSTEM = "ServiceNow"
TABLE_PATH = "/api/now/table/"
SCHEMA_ROLES = (
    "The integration user needs read access to sys_db_object, sys_dictionary and sys_choice: a role with read rules on "
    "them, such as personalize_dictionary."
)
A = TypeVar("A")
B = TypeVar("B")
CLOSED_STATES, RESOLVED = ("7", "8"), "6"


class ServiceNow:
    """One instance: System, Source and Target.

    A page of `fetch_page` may be empty although more follow: rights are applied after the limit. An asked field that
    an answer leaves out raises AccessError (`field_unreadable`), as an unreadable field must not look like an empty one.

    Tables with journal fields offer the child type `journal`: their entries (`id`, `element`, `text`, `author`,
    `created_at`). Any table that refers to another one by one column is a child type of it (`incident_task` of
    `incident`, `sys_user_grmember` of `sys_user_group`, where it is called `member` too).
    """

    writes_together = 1

    def __init__(
        self,
        http: HttpConnection,
        *,
        web_url: str | None = None,
        page_size: int = 100,
        bulk_page_size: int = 250,
        lookup_size: int = 1000,
        transaction_s: float = 60.0,
        parallel: int = 1,
    ) -> None:
        self.transaction_s = transaction_s
        self._http = http
        self._web_url = (web_url or http.base_url).rstrip("/")
        self._page_size, self._bulk_page_size = page_size, bulk_page_size
        self._lookup_size, self._parallel = lookup_size, parallel
        self._tables: dict[str, Table] = {}
        self._record_types: dict[str, RecordType] = {}
        self._pools: dict[str, ThreadPoolExecutor] = {}
        self._lock = threading.Lock()
        self._locks: dict[str, threading.RLock] = {}  # held while a table is described, so that threads do not all ask

    # -- System -------------------------------------------------------------------------------------------------------

    def describe(self, record: str) -> RecordType:
        if (known := self._record_types.get(record)) is not None:
            return known
        with self._lock_of(record):
            if record not in self._record_types and (child := self._child_of(record)) is not None:
                self._record_types[record] = describe_child(child, record, self.describe(child.table.name))
            elif record not in self._record_types:
                table = self._table(record)
                asked = f"nameIN{','.join(table.lineage)}^inactive=false"
                choices = self._list_schema("sys_choice", asked, ("name", "element", "value"), may_be_empty=True)
                noun = NOUNS.get(record, record)
                self._record_types[record] = RecordType(record, noun, build_fields(table, choices))
            return self._record_types[record]

    def fetch_rows(self, record: str, paths: Paths, by: Sequence[str], values: Sequence[Key]) -> list[Row]:
        keys = check_values(by, values)
        if not by and not all(query.SYS_ID.fullmatch(str(key[0])) for key in keys):
            raise RejectedError("A ServiceNow sys_id is 32 lower-case hex digits.", code="unsearchable_value")
        table = self._table_of(record)
        record = table.name
        columns = self._columns(record, {*paths, *by})
        if refused := [name for name in by if table.asks_children(name) or columns[name].appends]:
            raise RejectedError(
                f"ServiceNow cannot search by the journal field {refused[0]}.", code="unsearchable_field"
            )
        return self._add_children(table, paths, self._look_up(record, columns, by, keys))

    def _look_up(
        self, record: str, columns: Mapping[str, Column], by: Sequence[str], keys: Sequence[Key], *, whole: bool = False
    ) -> list[Row]:
        """Return the rows that carry the keys; with `whole`, rows that rights hide raise AccessError."""
        fields = self._asked(record, columns)

        def look_up(text: str) -> list[Row]:
            asked = query.build_query(text, order_by=("sys_id",))
            pages = self._list(record, asked, fields, whole=whole)
            rows = [self._build_row(record, columns, one) for raw in pages for one in raw]
            return keep_asked(rows, by, keys, SYSTEM, self._http.connection)

        found = self._side_by_side(look_up, list(query.build_lookup(by or ("sys_id",), keys)), "look-ups")
        return list({row.key: row for rows in found for row in rows}.values())

    def _add_children(self, table: Table, paths: Paths, rows: Sequence[Row]) -> list[Row]:
        """Return the rows with the children that paths lead into, fetched for all of them together."""
        for name, below in group_paths(path for path in paths if table.asks_children(path)).items():
            entries = read_children(self._child(table, name), below, [row.key for row in rows], self._read_all)
            rows = [dataclasses.replace(row, fields={**row.fields, name: entries[row.key]}) for row in rows]
        return list(rows)

    def _read_all(self, record: str, paths: Paths, column: str, keys: Sequence[str]) -> list[Row]:
        columns = self._columns(record, paths)
        rows = self._look_up(record, columns, (column,), [(key,) for key in keys], whole=True) if keys else []
        return self._add_children(self._table(record), paths, rows)

    def url(self, record: str, key: str) -> str:
        return f"{self._web_url}/nav_to.do?uri={quote(f'{record}.do?sys_id={key}', safe='')}"

    # -- Source -------------------------------------------------------------------------------------------------------

    def read_clock(self) -> datetime:
        params = {"sysparm_fields": "sys_id", "sysparm_limit": "1", "sysparm_no_count": "true"}
        answer = self._http.call("GET", f"{TABLE_PATH}sys_user", action="read the clock", safe=True, query=params)
        if (date := read_date(answer.headers)) is None:
            raise TransientError("ServiceNow answered without a Date header. It is tried again later.")
        return date

    def fetch_page(
        self, record: str, paths: Paths, changed: Changed, page: str | None, *, in_bulk: bool = False, fill: int = 1
    ) -> Page:
        """Fetch a page by keyset: rows that change meanwhile move behind the place that was reached, none is skipped."""
        columns, moment = self._columns(record, paths), self._table(record).moment
        place, size = Place.read(page), page_length(self._bulk_page_size, fill) if in_bulk else self._page_size
        window = build_window(moment, changed)
        when = query.build_condition(changed.when)
        order = (moment, "sys_id")
        if place.moment:
            # Two groups: later seconds, or the same second and a later id. Each repeats all conditions.
            later = query.build_query(when, window, f"{moment}>{place.moment}", order_by=())
            same = query.build_query(when, window, f"{moment}={place.moment}", f"sys_id>{place.sys_id}", order_by=order)
            text = f"{later}^NQ{same}"
        else:
            text = query.build_query(when, window, order_by=order)
        params = query.build_params(text, self._asked(record, columns), size, place.offset)
        answer = self._http.call(
            "GET", TABLE_PATH + query.check_name(record), action=f"list {record}", safe=True, query=params
        )
        raw, ended = _read_list(answer), self._is_last(answer, place.offset, size)
        rows = [self._build_row(record, columns, one) for one in raw]
        self._check_window(rows, changed)
        return Page(
            tuple(self._add_children(self._table(record), paths, rows)),
            next=None if ended else place.after(raw, moment, size).write(),
            total=_read_total(answer) if page is None else None,
        )

    # -- Target -------------------------------------------------------------------------------------------------------

    def write_rows(self, record: str, writes: Sequence[Write]) -> list[Written | SyncError]:
        """Write records, side by side where `parallel` allows; `Written.row` holds the fields sent, journals left out."""
        child, stop = self._child_of(record), _Stop()
        if child is not None and child.is_journal:
            return self._write_entries(child, writes, stop)
        table = child.table if child else self._table(record)  # described once, before the threads
        return self._side_by_side(lambda write: self._answer_write(table.name, write, stop, child), writes)

    def _write_entries(self, child: ChildType, writes: Sequence[Write], stop: "_Stop") -> list[Written | SyncError]:
        """Make journal entries, those of one record one after the other, and find out their keys."""
        groups: dict[str | None, list[int]] = {}
        for index, write in enumerate(writes):
            groups.setdefault(write.parent, []).append(index)

        def send(group: list[int]) -> dict[int, Written | SyncError]:
            return {index: self._answer_write(child.parent.name, writes[index], stop, child) for index in group}

        answers = dict(each for sent in self._side_by_side(send, list(groups.values())) for each in sent.items())
        sent = [(write, answers[index]) for index, write in enumerate(writes)]
        return name_entries(sent, lambda parents: read_children(child, set(), parents, self._read_all))

    def _side_by_side(self, step: Callable[[A], B], units: Sequence[A], kind: str = "writes") -> list[B]:
        if min(self._parallel, len(units)) <= 1:
            return [step(unit) for unit in units]
        self._http.expect(min(self._parallel, len(units)))
        pool = self._pool(f"{attempt.current().lane}-{kind}")
        futures = [pool.submit(contextvars.copy_context().run, step, unit) for unit in units]
        wait(futures)  # whatever becomes of one, none is under way when we return
        return [future.result() for future in futures]

    def _pool(self, name: str) -> ThreadPoolExecutor:
        """Return the threads that write, or look up, for a lane: as many as calls may be under way, kept, and held by no other."""
        with self._lock:
            if name not in self._pools:
                self._pools[name] = ThreadPoolExecutor(self._parallel, thread_name_prefix=f"servicenow-{name}")
            return self._pools[name]

    def _answer_write(self, record: str, write: Write, stop: "_Stop", child: ChildType | None) -> Written | SyncError:
        try:
            stop.check()
            return self._write_one(record, shape(child, write) if child else write)
        except RateLimitedError as exc:
            stop.error = exc
            return exc
        except SyncError as exc:
            return exc

    def _write_one(self, record: str, write: Write) -> Written:
        if write.fields is None:
            return self._remove(record, write.key or "")
        columns = self._columns(record, write.fields)
        if not write.fields or columns.keys() != write.fields.keys() or any("." in name for name in columns):
            raise MappingError(f"There is nothing that can be written to {record}.", code="nothing_to_write")
        if write.key is not None and not query.SYS_ID.fullmatch(write.key):
            raise RejectedError("A ServiceNow sys_id is 32 lower-case hex digits.", code="target_missing")
        appends = any(column.appends for column in columns.values())
        shown = {name: column for name, column in columns.items() if not column.appends}
        create = write.key is None
        try:
            answer = self._http.call(
                "POST" if create else "PATCH",
                TABLE_PATH + record + ("" if create else f"/{write.key}"),
                action=f"{'create' if create else 'update'} {record}",
                safe=not create and not appends,
                query={
                    "sysparm_fields": ",".join(self._asked(record, shown)),
                    "sysparm_exclude_reference_link": "true",
                    "sysparm_display_value": "false",
                    "sysparm_input_display_value": "false",
                },
                json_body={name: write_value(columns[name], value) for name, value in write.fields.items()},
            )
        except RejectedError as exc:
            if exc.status == 404 and not create:
                exc.code = "target_missing"
            raise
        except AmbiguousWriteError as exc:
            if exc.code == EXISTS_ALREADY and not create:
                raise RejectedError(
                    exc.message, code=EXISTS_ALREADY, connection=exc.connection, status=exc.status
                ) from None
            raise
        return self._read_written(record, write, shown, answer)

    def _remove(self, record: str, sys_id: str) -> Written:
        """Delete a record; one that is gone already, or hidden, is as good as deleted."""
        if not query.SYS_ID.fullmatch(sys_id):
            raise RejectedError("A ServiceNow sys_id is 32 lower-case hex digits.", code="target_missing")
        try:
            path = f"{TABLE_PATH}{record}/{sys_id}"
            answer = self._http.call("DELETE", path, action=f"delete {record}", safe=True, wants_json=False)
        except RejectedError as exc:
            if exc.status != 404:
                raise
        else:
            if answer.status != 204:  # a page of a proxy, say
                raise TransientError(f"ServiceNow did not say that it deleted a {record}. It is tried again later.")
        return Written(sys_id, created=False)

    def _read_written(self, record: str, write: Write, shown: Mapping[str, Column], answer: Answer) -> Written:
        raw = answer.data.get("result") if isinstance(answer.data, dict) else None
        sys_id = str(raw.get("sys_id") or "") if isinstance(raw, dict) else ""
        if not isinstance(raw, dict) or not query.SYS_ID.fullmatch(sys_id) or (write.key and sys_id != write.key):
            raise AmbiguousWriteError(
                f"ServiceNow answered a write to {record} without the record ({self._http.connection}). It is looked up.",
                code="unreadable_answer",
                connection=self._http.connection,
                status=answer.status,
            )
        return Written(sys_id, write.key is None, self._build_row(record, shown, raw, strict=False))

    # -- rows ---------------------------------------------------------------------------------------------------------

    def _asked(self, record: str, columns: Iterable[str]) -> list[str]:
        table = self._table(record)
        names = {"sys_id", table.moment, *columns, *(name.partition(".")[0] for name in columns)}
        extras = {"sys_mod_count", "number", "active", *(("state",) if record == "incident" else ())}
        return sorted(names | extras & set(table.columns))

    def _build_row(
        self, record: str, columns: Mapping[str, Column], raw: Mapping[str, Any], strict: bool = True
    ) -> Row:
        table = self._table(record)
        fields: dict[str, Value] = {}
        for path, column in columns.items():
            text = flatten(raw.get(path))
            if text is None and strict and self._is_unreadable(path, raw):
                raise AccessError(
                    f"ServiceNow does not show {record}.{path} to the integration user ({self._http.connection}). "
                    "Give it a role that may read this field.",
                    code="field_unreadable",
                    connection=self._http.connection,
                )
            fields[path] = read_value(column, text or "")
        moment, changed_at, problem = flatten(raw.get(table.moment)) or "", None, ""
        try:
            changed_at = read_time(moment) if moment else None
        except ValueError:
            moment, problem = "", f"ServiceNow shows a {table.moment} that is no time. It is read again later."
        count = flatten(raw.get("sys_mod_count")) or "0"
        key = str(raw.get("sys_id") or "")
        if not key:
            raise AccessError("ServiceNow shows rows without sys_id to the integration user.", code="field_unreadable")
        return Row(
            key=key,
            fields=fields,
            version=f"{moment}/{count:0>10}" if moment else "",
            changed_at=changed_at,
            label=str(raw.get("number") or ""),
            url=self.url(record, key),
            closed=_is_closed(record, raw),
            problem=problem,
        )

    @staticmethod
    def _is_unreadable(path: str, raw: Mapping[str, Any]) -> bool:
        head, _, rest = path.partition(".")
        return not rest or ("." not in rest and bool(raw.get(head)))  # through an empty reference there is nothing

    def _check_window(self, rows: Sequence[Row], changed: Changed) -> None:
        since, until = ceil(changed.since), ceil(changed.until)
        for at in (row.changed_at for row in rows if not row.problem):
            if (since and (at is None or at < since)) or (until and (at is None or at >= until)):
                raise RejectedError(
                    f"ServiceNow listed a record from outside of the window that was asked for ({self._http.connection}). "
                    "Check that the integration user may search by time of change.",
                    code="filter_ignored",
                    connection=self._http.connection,
                )

    def _list(
        self, record: str, text: str, fields: Sequence[str], *, whole: bool = False
    ) -> Iterator[list[dict[str, Any]]]:
        offset = seen = 0
        while True:
            answer = self._http.call(
                "GET",
                TABLE_PATH + query.check_name(record),
                action=f"look up {record}",
                safe=True,
                query=query.build_params(text, fields, self._lookup_size, offset),
            )
            rows = _read_list(answer)
            seen += len(rows)
            yield rows
            if self._is_last(answer, offset, self._lookup_size):
                break
            offset += self._lookup_size
        total = _read_total(answer)
        if whole and total is not None and seen < total:
            raise AccessError(
                f"ServiceNow hides rows of {record} from the integration user ({self._http.connection}). "
                "Give it a role that may read them.",
                code="rows_unreadable",
                connection=self._http.connection,
            )

    def _is_last(self, answer: Answer, offset: int, limit: int | None = None) -> bool:
        if (total := _read_total(answer)) is not None:
            return offset + (limit or self._page_size) >= total
        return 'rel="next"' not in answer.headers.get("Link", "")

    # -- schema -------------------------------------------------------------------------------------------------------

    def _columns(self, record: str, paths: Iterable[str]) -> dict[str, Column]:
        table = self._table(record)
        return {path: self._column(record, path) for path in paths if not table.asks_children(path)}

    def _column(self, record: str, path: str) -> Column:
        query.check_name(path)
        head, _, rest = path.partition(".")
        column = self._table(record).columns.get(head)
        if column is None or (rest and not column.refers_to):
            raise RejectedError(f"ServiceNow has no field {path} on {record}.", code="unknown_field")
        return self._column(column.refers_to, rest) if rest else column

    def _table(self, record: str) -> Table:
        if (known := self._tables.get(record)) is not None:
            return known
        with self._lock_of(record):
            if record not in self._tables:
                lineage = self._read_lineage(query.check_name(record))
                fields = ("name", "element", "internal_type", "max_length", "reference", "read_only", "choice")
                asked = f"nameIN{','.join(lineage)}^elementISNOTEMPTY^active=true"
                rows = [
                    row
                    for row in self._list_schema("sys_dictionary", asked, fields)
                    if row.get("name") in lineage and row.get("element")
                ]
                self._tables[record] = build_table(record, lineage, rows)
            return self._tables[record]

    def _table_of(self, record: str) -> Table:
        """Return the table in which the records of a type stand; `record` may be a child type (`incident.journal`)."""
        child = self._child_of(record)
        return child.table if child else self._table(record)

    def _child_of(self, record: str) -> ChildType | None:
        parent, _, name = record.rpartition(".")
        return self._child(self._table_of(parent), name) if parent else None

    def _child(self, table: Table, name: str) -> ChildType:
        """Return a child type of a table. Raises RejectedError for what is none, ConfigError for what could be two."""
        if name == JOURNAL and table.has_journal:
            return ChildType(table, self._table(JOURNAL_TABLE), "element_id")
        try:
            other = self._table(CHILD_TABLES.get((table.name, name), name))
        except RejectedError as exc:
            raise RejectedError(f"ServiceNow has no field {name} on {table.name}.", code="unknown_field") from exc
        return ChildType(table, other, find_reference(table, other))

    def _lock_of(self, record: str) -> threading.RLock:
        with self._lock:
            return self._locks.setdefault(record, threading.RLock())

    def _read_lineage(self, record: str) -> tuple[str, ...]:
        lineage, name = [], record
        while name and name not in lineage:
            rows = self._list_schema("sys_db_object", f"name={name}", ("name", "super_class.name"), may_be_empty=True)
            own = next((row for row in rows if row.get("name") == name), None)
            if own is None:
                raise RejectedError(
                    f"ServiceNow has no table {name}, or does not show it ({self._http.connection}). {SCHEMA_ROLES}",
                    code="unknown_record_type",
                    connection=self._http.connection,
                )
            lineage.append(name)
            name = str(own.get("super_class.name") or "")
        return tuple(lineage)

    def _list_schema(
        self, table: str, text: str, fields: Sequence[str], may_be_empty: bool = False
    ) -> list[dict[str, Any]]:
        try:
            asked = query.build_query(text, order_by=("sys_id",))
            rows = [row for page in self._list(table, asked, ("sys_id", *fields)) for row in page]
        except AccessError as exc:
            if exc.status != 403:
                raise
            message = (
                f"ServiceNow does not show {table} to the integration user ({self._http.connection}). {SCHEMA_ROLES}"
            )
            raise AccessError(message, connection=exc.connection, path=exc.path, status=exc.status) from exc
        if not rows and not may_be_empty:
            raise AccessError(
                f"ServiceNow shows nothing of {table} ({self._http.connection}). {SCHEMA_ROLES}",
                connection=self._http.connection,
            )
        return rows


class _Stop:
    """Ends the rest of a batch of writes once the vendor, or our own permits, asked to wait."""

    error: RateLimitedError | None = None

    def check(self) -> None:
        if self.error is not None:
            raise RateLimitedError(
                self.error.message,
                retry_after_s=self.error.retry_after_s,
                code=self.error.code,
                connection=self.error.connection,
            )


def _is_closed(record: str, raw: Mapping[str, Any]) -> bool:
    """Tell whether a record is over: inactive ones are, users too; a resolved incident may still be reopened."""
    state, inactive = str(raw.get("state") or ""), raw.get("active") == "false"
    if record != "incident":
        return inactive
    return state in CLOSED_STATES or (inactive and state != RESOLVED)


def _read_total(answer: Answer) -> int | None:
    """Return how many records a list has in all, before rights; None where the answer does not say."""
    text = answer.headers.get("X-Total-Count", "")
    return int(text) if re.fullmatch(r"\d{1,12}", text, re.ASCII) else None


def _read_list(answer: Answer) -> list[dict[str, Any]]:
    result = answer.data.get("result") if isinstance(answer.data, dict) else None
    if not isinstance(result, list) or not all(isinstance(row, dict) for row in result):
        raise TransientError("ServiceNow answered a list without rows. It is tried again later.", status=answer.status)
    return result


# -- how ServiceNow speaks HTTP -------------------------------------------------------------------------------------------

RULE_NAME = re.compile(r"Business Rule '([\w .,:()/-]{1,80})'")
MANDATORY = re.compile(r"mandatory: ([\w ,.()/-]{1,160})")


def read_answer(answer: Answer) -> Reading | None:
    """Read an answer by ServiceNow's own rules; None: as its HTTP status says."""
    error = answer.data.get("error") if isinstance(answer.data, dict) else None
    facts = error if isinstance(error, dict) else {"message": error or ""}
    text = f"{facts.get('message') or ''}\n{facts.get('detail') or ''}"
    if answer.status == 202:  # the documentation says: not executed; a create is looked up all the same
        return Reading(Meaning.LOST, "request_dropped", "dropped the request (202): too many calls in one session")
    if 200 <= answer.status < 300 and error is not None:
        return Reading(Meaning.LOST, "error_in_answer", f"answered {answer.status} with an error inside")
    if answer.status == 400 and "Invalid table" in text:
        return Reading(Meaning.REJECTED, "unknown_record_type", "has no such table (400)")
    if answer.status == 403:
        return _read_403(text)
    if answer.status == 500 and "maximum execution time" in text:
        return Reading(Meaning.LOST, "transaction_cancelled", "cancelled the call for taking too long (500)")
    return None


def _read_403(text: str) -> Reading:
    lower = text.lower()
    if "unique key" in lower or "duplicate entry" in lower:
        return Reading(Meaning.EXISTS, EXISTS_ALREADY, "says that such a record exists already (403)")
    if "data policy" in lower:
        named = f": mandatory {match[1].strip()}" if (match := MANDATORY.search(text)) else ""
        return Reading(Meaning.REJECTED, "data_policy", f"refused the record by a data policy (403){named}")
    if "business rule" in lower:
        named = f" '{match[1]}'" if (match := RULE_NAME.search(text)) else ""
        return Reading(Meaning.REJECTED, "business_rule", f"refused the record by a business rule{named} (403)")
    return Reading(Meaning.NO_ACCESS, "", "refused access (403): a role is missing for this table or record")


DIALECT = Dialect(SYSTEM, read_answer)
