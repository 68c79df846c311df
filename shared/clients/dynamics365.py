"""Dynamics 365 through the Dataverse Web API: cases, contacts and accounts are read with all that hangs on them in one call.

Follows https://learn.microsoft.com/power-apps/developer/data-platform/webapi/. Windows are explicit UTC bounds, never
the vendor's relative functions, which depend on a time zone that nobody sees; page links are followed as they are.
"""

import contextvars
import dataclasses
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any
from urllib.parse import quote

from shared.clients.dynamics365_query import (
    GUID,
    LOOKUPS,
    NAME,
    Column,
    Place,
    Selection,
    Table,
    build_condition,
    build_lookup,
    build_window,
    join_filters,
    read_time,
)
from shared.clients.dynamics365_webhook import WebhookRules, read_event
from shared.clients.http import Answer, Dialect, HttpConnection, Meaning, Reading, read_date
from shared.clients.lookups import check_values, keep_asked, page_length
from shared.clients.system import (
    Changed,
    Event,
    FieldKind,
    FieldType,
    Key,
    Page,
    Paths,
    RecordType,
    Row,
    Scalar,
    Webhook,
)
from shared.errors import RejectedError, TransientError

SYSTEM = "Dynamics 365"
ROOT = "/api/data/v9.2/"
MAX_PAGE_SIZE = 5000
CAST = "Microsoft.Dynamics.CRM."
HEADERS = {"OData-MaxVersion": "4.0", "OData-Version": "4.0", "If-None-Match": "null"}  # null: no cached expands
# Tables of the base system, so that listing them needs no call for their address: set name, key.
KNOWN_TABLES = {
    "incident": ("incidents", "incidentid"),
    "contact": ("contacts", "contactid"),
    "account": ("accounts", "accountid"),
    "systemuser": ("systemusers", "systemuserid"),
    "team": ("teams", "teamid"),
}
NOUNS = {"incident": "case", "systemuser": "user"}
LABELS = {"incident": "ticketnumber"}  # other tables are named after people and companies: no label
CAST_OF_CHOICES = ("PicklistAttributeMetadata", "StateAttributeMetadata", "StatusAttributeMetadata")
CAST_OF_LENGTHS = ("StringAttributeMetadata", "MemoAttributeMetadata")
VERSION = "versionnumber"  # what the ETag shows of a record by itself
ETAG = re.compile(r'W/"(\d{1,20})"', re.ASCII)
LINK_EXPIRED = (400, 404, 410, 412)  # the link was the vendor's own: it no longer knows it


class Dynamics365:
    """One environment: System, Source and Sender.

    A path ends in a column (`title`), in a lookup (`owninguser`: its id) or in a navigation property that leads to one
    kind of record (`customerid_contact`: its id, None if the customer is an account).
    """

    transaction_s = 120.0  # Dataverse's own limit of an operation is two minutes

    def __init__(
        self,
        http: HttpConnection,
        *,
        organization_url: str,
        page_size: int = 100,
        bulk_page_size: int = 250,
        web_url: str | None = None,
        webhook_keys: tuple[str, ...] = (),
        organization: str = "",
        webhook_header: str = WebhookRules.header,
        webhook_parameter: str = WebhookRules.parameter,
    ) -> None:
        self._http = http
        self._webhooks = WebhookRules(http.connection, webhook_keys, organization, webhook_header, webhook_parameter)
        self._web_url = (web_url or organization_url).rstrip("/")
        self._page_size = max(1, min(page_size, MAX_PAGE_SIZE))
        self._bulk_page_size = max(1, min(bulk_page_size, MAX_PAGE_SIZE))
        self._tables: dict[str, Table] = {}
        self._record_types: dict[str, RecordType] = {}
        self._lock = threading.Lock()
        self._locks: dict[str, threading.RLock] = {}  # held while a table is described, so that threads do not all ask

    # -- System -------------------------------------------------------------------------------------------------------

    def describe(self, record: str) -> RecordType:
        if (known := self._record_types.get(record)) is not None:
            return known
        with self._lock_of(record):
            if record not in self._record_types:
                self._record_types[record] = self._read_record_type(record)
            return self._record_types[record]

    def fetch_rows(self, record: str, paths: Paths, by: Sequence[str], values: Sequence[Key]) -> list[Row]:
        keys = check_values(by, values)
        table = self._table(record)
        places = {path: self._place(table, path) for path in {*paths, *by}}
        if by:
            asked = [places[path] for path in by]
        else:
            if not all(GUID.fullmatch(str(key[0])) for key in keys):
                says = "A Dynamics 365 id is a GUID, as in the address of a record; a number or a name is none."
                raise RejectedError(says, code="unsearchable_value")
            keys = [(str(key[0]).lower(),) for key in keys]
            asked = [Place((table.key,), Column(table.key, "Uniqueidentifier"))]
        found: dict[str, Row] = {}
        for text in build_lookup(asked, keys):
            options = self._select(table, places) | {"$filter": text, "$orderby": f"{table.key} asc"}
            for answer in self._follow(table, options):
                rows = [self._build_row(table, places, one) for one in _read_list(answer)]
                found |= {row.key: row for row in keep_asked(rows, by, keys, SYSTEM, self._http.connection)}
        return list(found.values())

    def url(self, record: str, key: str) -> str:
        return f"{self._web_url}/main.aspx?etn={quote(record)}&pagetype=entityrecord&id={quote(key)}"

    # -- Source -------------------------------------------------------------------------------------------------------

    def read_clock(self) -> datetime:
        answer = self._get(f"{ROOT}WhoAmI", action="read the clock")
        if (date := read_date(answer.headers)) is None:
            raise TransientError("Dynamics 365 answered without a Date header. It is tried again later.")
        return date

    def fetch_page(
        self, record: str, paths: Paths, changed: Changed, page: str | None, *, in_bulk: bool = False, fill: int = 1
    ) -> Page:
        table, size = self._table(record), page_length(self._bulk_page_size, fill) if in_bulk else self._page_size
        places = {path: self._place(table, path) for path in {*paths, *changed.when}}
        if page is None:
            text = join_filters([build_window(changed), build_condition(places, changed.when)])
            options = self._select(table, {path: places[path] for path in paths})
            options |= {"$filter": text} if text else {}
            options |= {"$orderby": f"modifiedon asc,{table.key} asc", "$count": "true"}
            answer = self._get(ROOT + table.set_name, action=f"list {record}", query=options, rows=size)
        else:
            answer = self._follow_link(page, record, size)
        rows = tuple(self._build_row(table, {path: places[path] for path in paths}, one) for one in _read_list(answer))
        count = answer.data.get("@odata.count", -1) if page is None else -1
        return Page(
            rows, next=self._next_link(answer), total=count if 0 <= count < MAX_PAGE_SIZE else None
        )  # a count ends at the largest page

    def _follow_link(self, link: str, record: str, size: int) -> Answer:
        try:
            return self._get(link, action=f"list {record}", rows=size)
        except RejectedError as exc:
            if exc.status in LINK_EXPIRED:
                exc.code = "page_expired"
            raise

    def _follow(self, table: Table, options: Mapping[str, str]) -> Iterator[Answer]:
        answer = self._get(ROOT + table.set_name, action=f"look up {table.name}", query=options, rows=MAX_PAGE_SIZE)
        yield answer
        while (link := self._next_link(answer)) is not None:
            answer = self._get(link, action=f"look up {table.name}", rows=MAX_PAGE_SIZE)
            yield answer

    def _next_link(self, answer: Answer) -> str | None:
        link = answer.data.get("@odata.nextLink")
        if link is None:
            return None
        self._http.check_own_host(str(link))
        return str(link)

    def _get(
        self, target: str, *, action: str, query: Mapping[str, str] | None = None, rows: int | None = None
    ) -> Answer:
        # The page size is not kept in a link: it is sent again with every page.
        headers = HEADERS | ({"Prefer": f"odata.maxpagesize={rows}"} if rows else {})
        return self._http.call("GET", target, action=action, safe=True, query=query, headers=headers)

    # -- Sender -------------------------------------------------------------------------------------------------------

    def read_events(self, request: Webhook) -> list[Event]:
        self._webhooks.check_key(request)
        self._webhooks.check_origin(request)
        return [read_event(request)]

    # -- rows ---------------------------------------------------------------------------------------------------------

    def _place(self, table: Table, path: str) -> Place:
        head, _, rest = path.partition(".")
        if not NAME.fullmatch(head):
            raise self._unknown(table, path)
        if rest:
            if (found := table.find_target(head)) is None:
                raise self._unknown(table, path)
            inner = self._place(self._table(found[1]), rest)
            return Place((head, *inner.steps), inner.column)
        if (column := table.find_column(head)) is not None:
            return Place((column.property_name,), column)
        if (found := table.find_target(head)) is not None:  # one of several kinds: its own key, not the lookup's value
            key = self._table(found[1]).key
            return Place((head, key), Column(key, "Uniqueidentifier"))
        raise self._unknown(table, path)

    def _unknown(self, table: Table, path: str) -> RejectedError:
        hint = " (an owner is read through owninguser or owningteam)" if path.startswith("ownerid.") else ""
        return RejectedError(f"Dynamics 365 has no column {path} on {table.name}{hint}.", code="unknown_field")

    def _select(self, table: Table, places: Mapping[str, Place]) -> dict[str, str]:
        own = {
            table.key,
            *(
                {"modifiedon", "createdon", "statecode", "isdisabled", LABELS.get(table.name, table.key)}
                & set(table.columns)
            ),
        }
        selection = Selection(own)
        for place in places.values():
            here = selection
            for step in place.steps[:-1]:
                here = here.expands.setdefault(step, Selection())
            here.columns.add(place.steps[-1])
        self._complete(table, selection)
        return selection.write()

    def _complete(self, table: Table, selection: Selection) -> None:
        """Let every level select its key, as an empty $select would bring all columns; inner ones have no ETag to go by."""
        selection.columns.add(table.key)
        for name, inner in selection.expands.items():
            found = table.find_target(name)
            if found is not None:
                reached = self._table(found[1])
                inner.columns.update({VERSION} & set(reached.columns))
                self._complete(reached, inner)

    def _build_row(self, table: Table, places: Mapping[str, Place], record: Mapping[str, Any]) -> Row:
        if not (key := str(record.get(table.key) or "").lower()):
            raise TransientError(
                "Dynamics 365 answered with a row without its id. It is tried again later.",
                code="unreadable_answer",
                status=200,
            )
        modified = record.get("modifiedon")
        changed_at = read_time(modified) if isinstance(modified, str) else None
        unreadable = bool(modified) and changed_at is None
        created = record.get("createdon")
        label = record.get(LABELS.get(table.name, ""))
        return Row(
            key=key,
            fields={path: place.read(record) for path, place in places.items()},
            version=build_version(record.get("@odata.etag"), changed_at),
            changed_at=changed_at,
            label=str(label or ""),
            url=self.url(table.name, key),
            closed=record.get("statecode") not in (None, 0) or record.get("isdisabled") is True,
            inner=dict(_inner_versions(record)),
            created_at=read_time(created) if isinstance(created, str) else None,
            problem="Dynamics 365 shows a modifiedon that is no time. It is read again later." if unreadable else "",
        )

    # -- schema -------------------------------------------------------------------------------------------------------

    def _table(self, record: str) -> Table:
        if (known := self._tables.get(record)) is not None:
            return known
        with self._lock_of(record):
            if record not in self._tables:
                self._tables[record] = self._read_table(record)
            return self._tables[record]

    def _lock_of(self, record: str) -> threading.RLock:
        with self._lock:
            return self._locks.setdefault(record, threading.RLock())

    def _read_table(self, record: str) -> Table:
        if not NAME.fullmatch(record):
            raise RejectedError("This is not a name of a Dynamics 365 table.", code="unknown_record_type")
        try:
            set_name, key = KNOWN_TABLES.get(record) or self._read_address(record)
            rows, lookups = self._read_attributes(
                record,
                ("", "LogicalName,AttributeType,IsValidForCreate,IsValidForUpdate", ""),
                ("LookupAttributeMetadata", "LogicalName,Targets", ""),
            )
        except RejectedError as exc:
            if exc.status == 404:
                raise RejectedError(
                    f"Dynamics 365 has no table {record} ({self._http.connection}).",
                    code="unknown_record_type",
                    connection=self._http.connection,
                    status=404,
                ) from None
            raise
        targets = {row["LogicalName"]: tuple(row.get("Targets") or ()) for row in lookups}
        columns = {
            row["LogicalName"]: Column(
                row["LogicalName"],
                row.get("AttributeType") or "String",
                targets.get(row["LogicalName"], ()),
                bool(row.get("IsValidForCreate") or row.get("IsValidForUpdate")),
            )
            for row in rows
        }
        return Table(record, set_name, key, columns)

    def _read_address(self, record: str) -> tuple[str, str]:
        answer = self._get(
            f"{ROOT}EntityDefinitions(LogicalName='{record}')",
            action=f"describe {record}",
            query={"$select": "EntitySetName,PrimaryIdAttribute"},
        )
        return str(answer.data["EntitySetName"]), str(answer.data["PrimaryIdAttribute"])

    def _read_attributes(self, record: str, *asks: tuple[str, str, str]) -> list[list[dict[str, Any]]]:
        """Read attributes of several kinds side by side: each ask is a kind, what to select and what to expand."""
        address = f"{ROOT}EntityDefinitions(LogicalName='{record}')/Attributes"

        def read(ask: tuple[str, str, str]) -> list[dict[str, Any]]:
            cast, select, expand = ask
            options = {"$select": select} | ({"$expand": expand} if expand else {})
            path = address + (f"/{CAST}{cast}" if cast else "")
            return _read_list(self._get(path, action=f"describe {record}", query=options))

        with ThreadPoolExecutor(len(asks), thread_name_prefix="dynamics365-describe") as pool:
            futures = [pool.submit(contextvars.copy_context().run, read, ask) for ask in asks]
            return [future.result() for future in futures]

    def _read_record_type(self, record: str) -> RecordType:
        table = self._table(record)
        asks = [(cast, "LogicalName,MaxLength", "") for cast in CAST_OF_LENGTHS]
        asks += [(cast, "LogicalName", "OptionSet($select=Options)") for cast in CAST_OF_CHOICES]
        answers = self._read_attributes(record, *asks)
        lengths = {row["LogicalName"]: row.get("MaxLength") for rows in answers[: len(CAST_OF_LENGTHS)] for row in rows}
        choices = {
            row["LogicalName"]: _read_options(row.get("OptionSet"))
            for rows in answers[len(CAST_OF_LENGTHS) :]
            for row in rows
        }
        fields = {
            column.name: FieldType(
                name=column.name,
                kind=column.kind,
                length=lengths.get(column.name),
                choices=choices.get(column.name, ()),
                writable=column.writable,
                searchable=column.type != "Virtual",
                refers_to=column.targets,
            )
            for column in table.columns.values()
        }
        for column in table.columns.values():  # customerid_contact and its like are references of their own
            if column.type in LOOKUPS and column.type != "Owner" and len(column.targets) > 1:
                for target in column.targets:
                    name = f"{column.name}_{target}"
                    fields.setdefault(
                        name,
                        dataclasses.replace(
                            fields[column.name], name=name, refers_to=(target,), kind=FieldKind.REFERENCE
                        ),
                    )
        return RecordType(record, NOUNS.get(record, record), fields)


def build_version(etag: object, changed_at: datetime | None) -> str:
    """Build a version that orders by plain text: the row version within the ETag, or else the time of change.

    ETags are documented as opaque. That their number grows with every change of the table is what everybody sees,
    not what is promised: this is the only place that relies on it.
    """
    if isinstance(etag, str) and (match := ETAG.fullmatch(etag)):
        return match[1].zfill(20)
    return changed_at.isoformat() if changed_at else ""


def _inner_versions(record: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the versions of the records within a record, in the form of `build_version`."""
    for name, inner in record.items():
        if isinstance(inner, Mapping):
            here = f"{path}.{name}" if path else name
            if (number := inner.get(VERSION)) is not None:
                yield here, str(number).zfill(20)
            yield from _inner_versions(inner, here)


def _read_list(answer: Answer) -> list[dict[str, Any]]:
    rows = answer.data.get("value") if isinstance(answer.data, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise TransientError(
            "Dynamics 365 answered a list without rows. It is tried again later.", status=answer.status
        )
    return rows


def _read_options(option_set: object) -> tuple[Scalar, ...]:
    options: Iterable[Any] = (option_set.get("Options") or ()) if isinstance(option_set, Mapping) else ()
    return tuple(option["Value"] for option in options if isinstance(option.get("Value"), int))


# -- how Dataverse speaks HTTP --------------------------------------------------------------------------------------------

ACCESS_CODES = {
    "0x80072560": "has no application user for this client id (403)",
    "0x80095ffc": "does not allow this app: its id is not on the environment's allow list (403)",
    "0x80040220": "refused access (403): a privilege is missing in the application user's security role",
}
LIMITS = {
    "0x80072322": "asks for fewer calls (429: number of requests)",
    "0x80072321": "asks for fewer calls (429: execution time)",
    "0x80072326": "asks for fewer calls at once (429: concurrency)",
}


def read_answer(answer: Answer) -> Reading | None:
    """Read an answer by Dataverse's own codes; None: as its HTTP status says."""
    error = answer.data.get("error") if isinstance(answer.data, dict) else None
    code = str(error.get("code") or "").lower() if isinstance(error, dict) else ""
    if 200 <= answer.status < 300:
        if answer.status == 202 or error is not None:
            return Reading(Meaning.LOST, "error_in_answer", f"answered {answer.status} without doing what was asked")
        return None
    if answer.status == 429:
        return Reading(Meaning.LIMITED, "", LIMITS.get(code, "asks for fewer calls (429)"))
    if answer.status == 403:
        return Reading(Meaning.NO_ACCESS, "", ACCESS_CODES.get(code, "refused access (403)"))
    if 400 <= answer.status < 500 and answer.status not in (401, 404, 408, 410) and code:
        shown = code if re.fullmatch(r"0x[0-9a-f]{8}", code) else "no code"
        return Reading(Meaning.REJECTED, "", f"refused the call ({answer.status}, {shown})")
    return None


DIALECT = Dialect(
    SYSTEM, read_answer, request_id_header="x-ms-service-request-id", correlation_header="x-ms-client-request-id"
)
