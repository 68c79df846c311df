"""Table and Aggregate API of the simulated instance: queries, rights, paging, and how rows look on the wire."""

import dataclasses
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from sandbox.servicenow_answers import Answer, Call, failure
from sandbox.servicenow_attachments import AttachmentApi
from sandbox.servicenow_dictionary import TABLES, Column, columns_of, lineage
from sandbox.servicenow_query import Asker, Query, Row, Search, equals_query, parse
from sandbox.servicenow_store import RefusedError, text_of

if TYPE_CHECKING:
    from sandbox.servicenow import ServiceNow

DEFAULT_LIMIT = 10_000
_CLOSED = {"7", "8"}
_AGGREGATES = ("avg", "sum", "min", "max")


@dataclasses.dataclass(frozen=True)
class View:
    """How the caller wants to see rows."""

    display: str  # "false", "true" or "all"
    links: bool
    fields: tuple[str, ...] | None  # None: all
    origin: str
    zone: ZoneInfo


class TableApi:
    """Answers the Table and Aggregate API for one instance."""

    def __init__(self, instance: "ServiceNow") -> None:
        self.instance = instance
        self.attachments = AttachmentApi(instance, self)
        self._searches = 0

    # -- resources ----------------------------------------------------------------------------------------------------

    def collection(self, call: Call, table: str, version: str) -> Answer:
        """Answer `/table/{table}`."""
        if table not in TABLES:
            return failure(400, f"Invalid table {table}", None)
        match call.method:
            case "GET" | "HEAD":
                call.check_headers()
                answer = self.list_rows(call, table)
                if version == "1" and answer.status == 200 and answer.payload == {"result": []}:
                    return failure(404, "No Record found", "No records found")
                return answer
            case "POST":
                call.check_headers()
                return self._create(call, table)
        return failure(405, "Method not supported", None)

    def record(self, call: Call, table: str, sys_id: str) -> Answer:
        """Answer `/table/{table}/{sys_id}`."""
        if table not in TABLES:
            return failure(400, f"Invalid table {table}", None)
        if call.method not in {"GET", "HEAD", "PUT", "PATCH", "DELETE"}:
            return failure(405, "Method not supported", None)
        call.check_headers()
        row = self.readable(call, table, sys_id)
        match call.method:
            case "GET" | "HEAD":
                return Answer(200, {"result": self._show(table, row, self._view(call), call)})
            case "DELETE":
                return self.delete(call, table, row)
        return self._change(call, table, row)

    def stats(self, call: Call, table: str) -> Answer:
        """Answer `/stats/{table}`."""
        if table not in TABLES:
            return failure(400, f"Invalid table {table}", None)
        if call.method not in {"GET", "HEAD"}:
            return failure(405, "Method not supported", None)
        call.check_headers()
        rows = self._find(call, table)
        if self.instance.over_limit(len(rows)):
            return self.instance.cancelled(Answer(200, {"result": []}))
        names = [name for name in call.query.get("sysparm_group_by", "").split(",") if name]
        search = self._search(call)
        readers = [(name, found[1]) for name in names if (found := search.reader(table, name))]
        if not readers:
            return Answer(200, {"result": {"stats": self._aggregate(call, table, rows)}})
        groups: dict[tuple[str, ...], list[Row]] = {}
        for row in rows:
            groups.setdefault(tuple(read(row) for _, read in readers), []).append(row)
        result = [
            {
                "stats": self._aggregate(call, table, members),
                "groupby_fields": [{"field": readers[i][0], "value": value} for i, value in enumerate(values)],
            }
            for values, members in sorted(groups.items())
        ]
        return Answer(200, {"result": result})

    def list_rows(self, call: Call, table: str) -> Answer:
        """Answer a list: the limit and the count come before the rights, as with the vendor."""
        rows = self._find(call, table)
        limit, offset = call.number("sysparm_limit", DEFAULT_LIMIT) or DEFAULT_LIMIT, call.number("sysparm_offset", 0)
        view = self._view(call)
        show = self._shower(table, view, call)
        visible = self._row_filter(call, table)
        page = [row for row in rows[offset : offset + limit] if visible(row)]
        headers = {} if call.flag("sysparm_no_count") else {"X-Total-Count": str(len(rows))}
        if not call.flag("sysparm_suppress_pagination_header") and (
            link := _link_header(call, limit, offset, len(rows))
        ):
            headers["Link"] = link
        answer = Answer(200, {"result": [show(row) for row in page]}, headers)
        return self.instance.cancelled(answer) if self.instance.over_limit(len(page)) else answer

    # -- writes -------------------------------------------------------------------------------------------------------

    def _create(self, call: Call, table: str) -> Answer:
        self.check_right(call, "create", table, "Insert")
        values = self._sent_values(call, table)
        row = self.instance.records.insert_row(
            table, values, call.user.user_name, system=self._sets_system(call), zone=self._input_zone(call)
        )
        location = f"{call.url.origin()}/api/now/table/{table}/{row['sys_id']}"
        return self._written(call, table, row, 201, {"Location": location})

    def _change(self, call: Call, table: str, row: Row) -> Answer:
        self.check_right(call, "write", table, "Update")
        values = self._sent_values(call, table)
        records = self.instance.records
        real = records.class_of(table, row)
        if real == "incident" and row["state"] in _CLOSED and not call.user.writes_closed:
            raise RefusedError(403, "Operation Failed", "ACL Exception Update Failed due to security constraints")
        records.update_row(
            real, row, values, call.user.user_name, system=self._sets_system(call), zone=self._input_zone(call)
        )
        return self._written(call, table, row, 200, {})

    def delete(self, call: Call, table: str, row: Row) -> Answer:
        """Remove a row if the user may."""
        self.check_right(call, "delete", table, "Delete")
        records = self.instance.records
        records.delete_row(records.class_of(table, row), row, call.user.user_name)
        return Answer(204)

    def _written(self, call: Call, table: str, row: Row, status: int, headers: dict[str, str]) -> Answer:
        """Build the answer of a write before the instance's own later rule touches the row."""
        silent = call.headers.get("X-no-response-body", "").lower() == "true"
        payload = None if silent else {"result": self._show(table, row, self._view(call), call)}
        touch = self.instance.touch_after_write
        if touch and "task" in lineage(table):
            self.instance.records.update_row(self.instance.records.class_of(table, row), row, touch, "system")
        return Answer(status, payload, headers)

    def _sent_values(self, call: Call, table: str) -> dict[str, str]:
        body = call.json()
        if isinstance(body, list):
            body = body[0] if body else {}
        if not isinstance(body, dict):
            raise RefusedError(400, "Exception while reading request", "The payload must be an object")
        columns, refused = columns_of(table), call.user.unwritable.get(table, ())
        texts = {name: text_of(value) for name, value in body.items() if name in columns and name not in refused}
        return {name: text for name, text in texts.items() if text is not None}

    @staticmethod
    def _sets_system(call: Call) -> bool:
        return call.flag("sysparm_suppress_auto_sys_field")

    def _input_zone(self, call: Call) -> ZoneInfo | None:
        shown = call.flag("sysparm_input_display_value")
        return self.instance.zone_of(call.user.user_name) if shown else None

    # -- rights -------------------------------------------------------------------------------------------------------

    @staticmethod
    def check_right(call: Call, action: str, table: str, verb: str) -> None:
        """Raise RefusedError unless the user may do this to rows of a table."""
        if not call.user.may(action, table):
            raise RefusedError(403, "Operation Failed", f"ACL Exception {verb} Failed due to security constraints")

    def readable(self, call: Call, table: str, sys_id: str) -> Row:
        """Return a row that the user may see; raises RefusedError, the same for absent and hidden rows."""
        self._check_read(call, table)
        row = self.instance.records.find(table, sys_id)
        if row is None or self._is_hidden_user(call, table, row) or not self._row_filter(call, table)(row):
            raise RefusedError(404, "No Record found", "Record doesn't exist or ACL restricts the record retrieval")
        return row

    @staticmethod
    def _check_read(call: Call, table: str) -> None:
        if not call.user.may("read", table):
            raise RefusedError(403, "User Not Authorized", "Failed API level ACL Validation")

    def _row_filter(self, call: Call, table: str) -> Callable[[Row], bool]:
        query = call.user.visible_rows.get(table)
        if not query:
            return lambda _row: True
        seen = {row["sys_id"] for row in Search(self.instance.records, self._asker(call)).run(table, parse(query)).rows}
        return lambda row: row["sys_id"] in seen

    def _is_hidden_user(self, call: Call, table: str, row: Row) -> bool:
        return (
            self.instance.hide_inactive_users
            and table == "sys_user"
            and row["active"] != "true"
            and not call.user.admin
        )

    # -- search -------------------------------------------------------------------------------------------------------

    def _find(self, call: Call, table: str) -> list[Row]:
        """Return all rows that the call's query matches, before limit and row rights."""
        self._check_read(call, table)
        search = self._search(call)
        found = search.run(table, self._read_query(call, table))
        self.instance.scripts.extend(search.scripts)
        if search.refused and self.instance.enforce_query_acl:
            raise RefusedError(
                403,
                "Insufficient rights to query records",
                f"Fields present in the query do not have permission to be read: {', '.join(search.refused)}",
            )
        if found.dropped and self.instance.invalid_query_returns_no_rows:
            return []
        rows = found.rows
        if table == "sys_user" and self.instance.hide_inactive_users:
            rows = [row for row in rows if not self._is_hidden_user(call, table, row)]
        return rows

    def _read_query(self, call: Call, table: str) -> Query:
        if "sysparm_query" in call.query:
            query = parse(call.query["sysparm_query"])
        else:
            query = equals_query((k, v) for k, v in call.query.items() if not k.startswith("sysparm_"))
        if self.instance.shuffle_ties:
            self._searches += 1
            query.shuffle = self._searches
        return query

    def _search(self, call: Call) -> Search:
        return Search(self.instance.records, self._asker(call), call.user.hides, self.instance.not_equal_matches_empty)

    def _asker(self, call: Call) -> Asker:
        name = call.user.user_name
        row = next(iter(self.instance.records.lookup("sys_user", "user_name", [name.lower()]) or ()), None)
        return Asker(row["sys_id"] if row else "", name, self.instance.zone_of(name), self.instance.clock.now_s())

    # -- rows on the wire ---------------------------------------------------------------------------------------------

    def _view(self, call: Call) -> View:
        wanted = call.query.get("sysparm_fields", "")
        display = call.query.get("sysparm_display_value", "false").lower()
        return View(
            display=display if display in {"true", "all"} else "false",
            links=not call.flag("sysparm_exclude_reference_link"),
            fields=tuple(dict.fromkeys(filter(None, (name.strip() for name in wanted.split(","))))) or None,
            origin=str(call.url.origin()),
            zone=self.instance.zone_of(call.user.user_name),
        )

    def _show(self, table: str, row: Row, view: View, call: Call) -> dict[str, Any]:
        return self._shower(table, view, call)(row)

    def _shower(self, table: str, view: View, call: Call) -> Callable[[Row], dict[str, Any]]:
        """Return a function that turns a row into what the API sends; unreadable and unknown fields are left out."""
        cells = [
            (path, cell)
            for path in view.fields or columns_of(table)
            if (cell := self._cell(table, path, view, call)) is not None
        ]
        return lambda row: {path: cell(row) for path, cell in cells}

    def _cell(self, table: str, path: str, view: View, call: Call) -> Callable[[Row], Any] | None:
        found = self._search(call).reader(table, path)
        if found is None or not self._may_see(call, table, path):
            return None
        column, read = found
        if column.is_journal:
            holder = self._holder(table, path)
            return lambda row: self._journal_cell(column, holder(row), view)
        if view.display == "false" and not (column.reference and view.links):
            return read
        if not column.reference or column.type == "glide_list":
            return lambda row: _shaped(view, read(row), self.shown(column, read(row), view.zone))
        return lambda row: self._reference_cell(column, read(row), view)

    def _may_see(self, call: Call, table: str, path: str) -> bool:
        here = table
        for step in path.split("."):
            if call.user.hides(here, step) or (here != table and not call.user.may("read", here)):
                return False
            here = columns_of(here)[step].reference or here
        return True

    def _holder(self, table: str, path: str) -> Callable[[Row], Row | None]:
        """Return a function that finds the row which the last step of a path belongs to."""
        before, _, _ = path.rpartition(".")
        found = Search(self.instance.records, _NOBODY).reader(table, before) if before else None
        if found is None:
            return lambda row: row
        column, read = found
        return lambda row: self.instance.records.find(column.reference, read(row), column.by_name)

    def _journal_cell(self, column: Column, row: Row | None, view: View) -> Any:
        if view.display == "false" or row is None:
            return _shaped(view, "", "")
        entries = self.instance.records.journal(row, column.name)
        text = "".join(
            f"{_local(entry['sys_created_on'], view.zone)} - {self._full_name(entry['sys_created_by'])} ({column.label})\n{entry['value']}\n\n"
            for entry in entries
        )
        return _shaped(view, "", text)

    def _full_name(self, user_name: str) -> str:
        found = self.instance.records.lookup("sys_user", "user_name", [user_name.lower()])
        return found[0]["name"] if found else user_name

    def _reference_cell(self, column: Column, value: str, view: View) -> Any:
        if value == "":
            return _shaped(view, "", "")
        target = f"{view.origin}/api/now/table/{column.reference}"
        link = f"{target}?name={value}" if column.by_name else f"{target}/{value}"
        if view.display == "false":
            return {"link": link, "value": value}
        shown = self.shown(column, value, view.zone)
        if view.display == "true":
            return {"display_value": shown, "link": link} if view.links else shown
        return {"display_value": shown, "value": value} | ({"link": link} if view.links else {})

    def shown(self, column: Column, value: str, zone: ZoneInfo) -> str:
        """Return a value as a person in this zone sees it."""
        if value == "":
            return ""
        if column.type == "glide_list":
            return ", ".join(self._name_of(column, part) or part for part in value.split(","))
        if column.type == "domain_id":
            return value
        if column.reference:
            return self._name_of(column, value)
        if column.type == "glide_date_time":
            return _local(value, zone)
        if column.type == "sys_class_name":
            return TABLES[value].label if value in TABLES else value
        return column.choices.get(value, value)

    def _name_of(self, column: Column, value: str) -> str:
        records = self.instance.records
        row = records.find(column.reference, value, column.by_name)
        return records.display(column.reference, row) if row is not None else ""

    # -- aggregates ---------------------------------------------------------------------------------------------------

    def _aggregate(self, call: Call, table: str, rows: list[Row]) -> dict[str, Any]:
        stats: dict[str, Any] = {}
        if call.flag("sysparm_count"):
            stats["count"] = str(len(rows))
        for kind in _AGGREGATES:
            names = [
                name for name in call.query.get(f"sysparm_{kind}_fields", "").split(",") if name in columns_of(table)
            ]
            if names:
                stats[kind] = {name: _total(kind, [row[name] for row in rows if row[name]]) for name in names}
        return stats


_NOBODY = Asker("", "", ZoneInfo("UTC"), datetime(2026, 1, 1, tzinfo=UTC))


def _shaped(view: View, value: str, shown: str) -> Any:
    match view.display:
        case "true":
            return shown
        case "all":
            return {"display_value": shown, "value": value}
    return value


def _local(value: str, zone: ZoneInfo) -> str:
    return datetime.fromisoformat(value).replace(tzinfo=UTC).astimezone(zone).strftime("%Y-%m-%d %H:%M:%S")


def _total(kind: str, values: list[str]) -> str:
    if kind in {"min", "max"} and not all(value.lstrip("-").isdigit() for value in values):
        return (min if kind == "min" else max)(values)
    numbers = [int(value) for value in values if value.lstrip("-").isdigit()]
    if not numbers:
        return ""
    match kind:
        case "avg":
            return f"{sum(numbers) / len(numbers):.4f}"
        case "sum":
            return str(sum(numbers))
    return str(min(numbers) if kind == "min" else max(numbers))


def _link_header(call: Call, limit: int, offset: int, total: int) -> str:
    """Return the paging links; none when one page holds everything."""
    if total <= limit and offset == 0:
        return ""
    last = (total - 1) // limit * limit if total else 0
    places: Mapping[str, int | None] = {
        "first": 0,
        "prev": max(0, offset - limit) if offset > 0 else None,
        "next": offset + limit if offset + limit < total else None,
        "last": last,
    }
    return ",".join(
        f'<{_page_url(call, limit, place)}>;rel="{name}"' for name, place in places.items() if place is not None
    )


def _page_url(call: Call, limit: int, offset: int) -> str:
    query = call.query.copy()
    query["sysparm_limit"], query["sysparm_offset"] = str(limit), str(offset)
    return str(call.url.with_query(query))
