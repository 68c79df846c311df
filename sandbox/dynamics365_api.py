"""The Dataverse Web API over the simulator's rows: one call in, one answer out, no HTTP server and no waiting.

Follows the fact sheet, sections 2 and 3. A $batch part is the same kind of call as a request.
"""

import bisect
import dataclasses
import itertools
import json
import re
import secrets
import zlib
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import unquote, unquote_plus

from sandbox import dynamics365_query as q
from sandbox.dynamics365_calls import (
    BAD_QUERY,
    JSON_TYPE,
    NO_SEGMENT,
    Answer,
    Call,
    Request,
    Settings,
    read_options,
    read_preferences,
    write_error,
)
from sandbox.dynamics365_metadata import MetadataReader
from sandbox.dynamics365_paging import Cookies, TokenError
from sandbox.dynamics365_query import Asker, QueryError, Ref, Row, Shape
from sandbox.dynamics365_render import COUNT_LIMIT, TOTAL_COUNT, Renderer, describe_context, etag_of
from sandbox.dynamics365_store import GUID, ORGANIZATION_ID, ApiError, Rows, bad_payload, convert, not_found
from sandbox.dynamics365_tables import (
    CAST_PREFIX,
    Navigation,
    Table,
)

RIGHTS = {"read": "Read", "create": "Create", "write": "Write", "delete": "Delete"}
LIST_OPTIONS = frozenset({"$select", "$filter", "$expand", "$orderby", "$top", "$count", "$skiptoken", "$deltatoken"})
CACHED_LISTS = 8


class WebApi:
    """Answers calls on the rows; holds nothing but caches and the tokens' secret."""

    def __init__(self, rows: Rows, settings: Settings) -> None:
        self.rows, self.settings = rows, settings
        self._secret = secrets.token_bytes(16)
        self._lists: OrderedDict[tuple[Any, ...], tuple[list[Any], list[Row]]] = OrderedDict()

    def forget_lists(self) -> None:
        """Drop the lists that are kept: other rows have taken the place of all, so a version says nothing of them."""
        self._lists.clear()

    def answer(self, call: Call) -> Answer:
        """Answer one call; a refusal becomes an error body."""
        try:
            answer = self._route(call)
        except QueryError as exc:
            answer = write_error(400, BAD_QUERY, str(exc), call.headers)
        except (RecursionError, OverflowError):
            answer = write_error(
                400, BAD_QUERY, "The query is nested too deeply or holds a date out of range.", call.headers
            )
        except TokenError as exc:
            answer = write_error(400, "0x80040216", str(exc), call.headers)
        except ApiError as exc:
            answer = write_error(exc.status, exc.code, exc.message, call.headers)
            answer.headers.update(exc.headers)
        answer.headers.setdefault("OData-Version", "4.0")
        if answer.body is not None:
            answer.headers.setdefault("Content-Type", JSON_TYPE)
        return answer

    # -- routing

    def _route(self, call: Call) -> Answer:
        segments = [unquote(part) for part in call.path.split("/") if part]
        if not segments:
            raise ApiError(404, NO_SEGMENT, "Resource not found for the segment ''.")
        request = self._read(call)
        head = segments[0]
        if head in {"WhoAmI", "WhoAmI()"} and len(segments) == 1:
            self._need_method(call, "GET")
            return self._who_am_i(request)
        if head == "CloseIncident" and len(segments) == 1:
            self._need_method(call, "POST")
            return self._close_incident(request)
        if head.partition("(")[0] == "EntityDefinitions":
            self._need_method(call, "GET")
            return MetadataReader(self.rows, self.settings.change_tracking, request).answer(segments)
        match = re.fullmatch(r"(\w+)(?:\((.*)\))?", head, re.DOTALL)
        table = self.rows.by_set.get(match[1]) if match else None
        if match is None or table is None:
            raise ApiError(404, NO_SEGMENT, f"Resource not found for the segment '{head}'.")
        if match[2] is None:
            return self._route_set(request, table, segments[1:])
        return self._route_row(request, table, match[2], segments[1:])

    def _route_set(self, request: Request, table: Table, rest: list[str]) -> Answer:
        call = request.call
        if not rest and call.method == "GET":
            return self._list(request, table, table.set_name, lambda: self.rows.all(table.name))
        if not rest and call.method == "POST":
            return self._create(request, table)
        if rest == ["$count"]:
            self._need_method(call, "GET")
            return self._count(request, table)
        if rest in ([f"{CAST_PREFIX}CreateMultiple"], [f"{CAST_PREFIX}UpdateMultiple"]):
            self._need_method(call, "POST")
            return self._write_multiple(request, table, create=rest[0].endswith("CreateMultiple"))
        if rest:
            raise ApiError(404, NO_SEGMENT, f"Resource not found for the segment '{rest[0]}'.")
        raise _wrong_method(call.method)

    def _route_row(self, request: Request, table: Table, key: str, rest: list[str]) -> Answer:
        call = request.call
        if not rest:
            match call.method:
                case "GET":
                    return self._get(request, table, self._need_row(table, key))
                case "PATCH":
                    return self._patch(request, table, key)
                case "DELETE":
                    return self._delete(request, table, key)
            raise _wrong_method(call.method)
        navigation = table.navigations.get(rest[0])
        if (
            navigation is None
            or navigation.target == "principal"
            or len(rest) > 2
            or (len(rest) == 2 and (rest[1] != "$ref" or navigation.many))
        ):
            raise ApiError(404, NO_SEGMENT, f"Resource not found for the segment '{rest[-1]}'.")
        self._need_method(call, "GET")
        self._need_right(request, "read", table)
        row, target = self._need_row(table, key), self.rows.tables[navigation.target]
        if navigation.many:
            path = f"{table.set_name}({row[table.key]})/{navigation.name}"
            return self._list(request, target, path, lambda: self.rows.related(navigation, row[table.key]))
        ref = row.get(navigation.column)
        related = self.rows.find(ref.table, ref.id) if ref and ref.table == navigation.target else None
        if related is None:
            return Answer(204)
        if rest[1:] == ["$ref"]:
            return Answer(
                200, {"@odata.context": f"{call.root}$metadata#$ref", "@odata.id": self._url(request, target, ref.id)}
            )
        return self._get(request, target, related)

    def _read(self, call: Call) -> Request:
        asker = Asker(self.rows.clock.now(), self.settings.user_zone)
        cookies = Cookies(self._secret, call.root, asker.now)
        prefer = read_preferences(call.headers.get("prefer", ""))
        if prefer.page_size:
            prefer = dataclasses.replace(prefer, page_size=min(prefer.page_size, self.settings.max_page_size))
        renderer = Renderer(self.rows, prefer.pattern, asker, cookies, prefer.page_size or self.settings.max_page_size)
        return Request(call, read_options(call), prefer, renderer, asker, cookies)

    @staticmethod
    def _need_method(call: Call, method: str) -> None:
        if call.method != method:
            raise _wrong_method(call.method)

    def _need_right(self, request: Request, right: str, table: Table) -> None:
        user = request.call.user
        if not user.may(right, table.name):
            raise ApiError(
                403,
                "0x80040220",
                f"Principal user (Id={user.user_id}, type=8) is missing prv{RIGHTS[right]}{table.schema_name} privilege for table {table.name}.",
            )

    def _url(self, request: Request, table: Table, row_id: str) -> str:
        return f"{request.call.root}{table.set_name}({row_id})"

    # -- keys

    def read_key(self, table: Table, text: str) -> tuple[str | None, Row]:
        """Return the id that a key in a URL means (None: no such row) and the columns of an alternate key."""
        if GUID.fullmatch(text):
            return text.lower(), {}
        pairs: Row = {}
        for part in q.split_outside(text, ","):
            match = re.fullmatch(r"\s*(\w+)\s*=\s*(.+?)\s*", part, re.DOTALL)
            column = table.property(match[1]) if match else None
            if match is None or column is None:
                raise self._no_key(table)
            pairs[column.name] = self._read_key_value(table, match[2])
        if set(pairs) == {table.key} and GUID.fullmatch(str(pairs[table.key])):
            return pairs[table.key].lower(), {}
        if set(pairs) not in [set(key) for key in self.settings.alternate_keys.get(table.name, ())]:
            raise self._no_key(table)
        wanted = {name: _fold(value) for name, value in pairs.items()}
        hits = (
            row
            for row in self.rows.all(table.name)
            if all(_fold(row.get(name)) == value for name, value in wanted.items())
        )
        row = next(hits, None)
        return (row[table.key] if row else None), pairs

    def _read_key_value(self, table: Table, text: str) -> Any:
        if re.fullmatch(r"'(?:[^']|'')*'", text, re.DOTALL):
            return text[1:-1].replace("''", "'")
        if re.fullmatch(r"-?\d+", text):
            return int(text)
        if GUID.fullmatch(text):
            return text
        raise self._no_key(table)

    @staticmethod
    def _no_key(table: Table) -> ApiError:
        return ApiError(
            400, "0x80060888", f"The key in the request URI is not valid for resource '{CAST_PREFIX}{table.name}'."
        )

    def _need_row(self, table: Table, key: str) -> Row:
        row_id, pairs = self.read_key(table, key)
        row = self.rows.find(table.name, row_id) if row_id else None
        if row is None:
            if pairs:
                raise ApiError(
                    404, "0x80060891", f"A record with the specified key values does not exist in {table.name} entity"
                )
            raise not_found(table, str(row_id))
        return row

    # -- reading

    def _shape(self, request: Request, table: Table) -> Shape:
        options = request.options
        selected = "$select" in options
        columns = q.parse_select(options["$select"], table) if selected else list(table.columns.values())
        shape = Shape(table, columns, selected)
        if "$expand" in options:
            shape.expands = q.parse_expand(options["$expand"], table, self.rows, request.asker)
            self._check_expand_rights(request, shape)
        return shape

    def _check_expand_rights(self, request: Request, shape: Shape) -> None:
        for expand in shape.expands:
            if expand.navigation.target != "principal":
                self._need_right(request, "read", expand.shape.table)
            self._check_expand_rights(request, expand.shape)

    def _get(self, request: Request, table: Table, row: Row) -> Answer:
        self._need_right(request, "read", table)
        request.allow_options("$select", "$expand")
        shape = self._shape(request, table)
        tag = request.call.headers.get("if-none-match", "")
        if tag == etag_of(row) and not shape.expands and not request.prefer.annotations:
            return Answer(304, headers={"ETag": etag_of(row)})
        return Answer(
            200, self._entity(request, shape, row), {"ETag": etag_of(row), **request.prefer.applied("annotations")}
        )

    def _entity(self, request: Request, shape: Shape, row: Row) -> dict[str, Any]:
        context = describe_context(request.call.root, shape, shape.selected, "/$entity")
        return {"@odata.context": context, **request.renderer.show(row, shape)}

    def _count(self, request: Request, table: Table) -> Answer:
        self._need_right(request, "read", table)
        request.allow_options("$filter")
        keep = self._filter(request, table)
        count = sum(1 for row in self.rows.all(table.name) if keep(row))
        return Answer(200, str(min(count, COUNT_LIMIT)), {"Content-Type": "text/plain; charset=utf-8"})

    def _filter(self, request: Request, table: Table) -> q.Predicate:
        if "$filter" not in request.options:
            return bool  # a row is never empty
        return q.parse_filter(request.options["$filter"], table, self.rows, request.asker, request.aliases)

    def _list(self, request: Request, table: Table, path: str, source: Callable[[], list[Row]]) -> Answer:
        self._need_right(request, "read", table)
        request.allow_options(*LIST_OPTIONS)
        if request.prefer.track_changes or "$deltatoken" in request.options:
            return self._list_changes(request, table, path)
        options, prefer = request.options, request.prefer
        shape = self._shape(request, table)
        order = q.parse_order(options["$orderby"], table) if "$orderby" in options else []
        keep = self._filter(request, table)
        written = [option for option in request.call.options if not unquote_plus(option).startswith("$skiptoken=")]
        place = {"page": 1}
        if "$skiptoken" in options:
            place = request.cookies.read(options["$skiptoken"], path, written, self.settings.paging_cookie_s)
        if options.get("$count", "false") not in {"true", "false"}:
            raise QueryError(
                f"Invalid value '{options['$count']}' for $count query option found. Valid values are 'true' or 'false'."
            )
        top = q.read_natural("$top", options["$top"]) if "$top" in options else None
        unique = not order or any(term.column.name == table.key for term in order)
        terms = order or [q.Order(table.columns[table.key], descending=False)]
        keys, found = self._sorted(
            (path, options.get("$filter"), options.get("$orderby"), *request.aliases.items()),
            request,
            terms,
            keep,
            source,
        )
        if not unique:  # rows that compare equal come in any order, a different one on each page
            found = _shuffle_ties(keys, found, table, place["page"])
        sort_key = q.build_sort_key(terms)
        start = (
            bisect.bisect_right(keys, sort_key(map(_read_place, place["after"])))
            if "after" in place
            else place.get("skip", 0)
        )
        # with a page size $top is ignored; without, $top ends the answer
        size = prefer.page_size or (
            self.settings.max_page_size if top is None else min(top, self.settings.max_page_size)
        )
        page = found[start : start + size]
        body: dict[str, Any] = {"@odata.context": describe_context(request.call.root, shape, shape.selected)}
        counting = options.get("$count") == "true"
        if counting:
            body["@odata.count"] = min(len(found), COUNT_LIMIT)
        if prefer.pattern.wants(TOTAL_COUNT):
            body[f"@{TOTAL_COUNT}"] = min(len(found), COUNT_LIMIT) if counting else -1
            body[f"@{TOTAL_COUNT}limitexceeded"] = counting and len(found) > COUNT_LIMIT
        body["value"] = [request.renderer.show(row, shape) for row in page]
        if start + size < len(found) and (top is None or prefer.page_size):
            last = [_write_place(self.rows.order_value(term.column, page[-1])) for term in terms] if page else []
            further: dict[str, Any] = {"after": last} if unique and page else {"skip": start + size}
            body["@odata.nextLink"] = request.cookies.link(path, written, {"page": place["page"] + 1, **further})
        return Answer(200, body, prefer.applied("page", "annotations"))

    def _sorted(
        self,
        name: tuple[Any, ...],
        request: Request,
        order: list[q.Order],
        keep: q.Predicate,
        source: Callable[[], list[Row]],
    ) -> Any:
        """Return the rows that a query finds, in order, with their sort keys; kept until a row changes or the clock matters."""
        relative = q.CRM in f"{name[1]}"
        entry = (self.rows.version, *name)
        if not relative and entry in self._lists:
            return self._lists[entry]
        sort_key = q.build_sort_key(order)
        columns = [term.column for term in order]
        pairs = [
            (sort_key([self.rows.order_value(column, row) for column in columns]), row) for row in source() if keep(row)
        ]
        pairs.sort(key=lambda pair: pair[0])
        result = [key for key, _ in pairs], [row for _, row in pairs]
        if not relative:
            self._lists[entry] = result
            while len(self._lists) > CACHED_LISTS:
                self._lists.popitem(last=False)
        return result

    def _list_changes(self, request: Request, table: Table, path: str) -> Answer:
        """Answer a query with change tracking: all rows at first, then what changed or was deleted."""
        for name in ("$filter", "$orderby", "$expand", "$top"):
            if name in request.options:
                raise QueryError(f'The "{name}" query parameter isn\'t supported when Change Tracking is enabled.')
        if table.name not in self.settings.change_tracking or path != table.set_name:
            raise ApiError(400, "0x80044183", f"Entity {table.name} does not have change tracking enabled.")
        shape = self._shape(request, table)
        written = [
            o for o in request.call.options if unquote_plus(o).partition("=")[0] not in {"$skiptoken", "$deltatoken"}
        ]
        since, until, skip, page_number = None, self.rows.version, 0, 1
        if "$skiptoken" in request.options:
            place = request.cookies.read(request.options["$skiptoken"], path, written, self.settings.paging_cookie_s)
            since, until, skip, page_number = place["since"], place["until"], place["skip"], place["page"]
        elif "$deltatoken" in request.options:
            lifetime_s = int(timedelta(days=self.settings.delta_days).total_seconds())
            since = request.cookies.read_delta(request.options["$deltatoken"], path, written, lifetime_s)
        found = [row for row in self.rows.all(table.name) if (since or 0) < row["versionnumber"] <= until]
        found.sort(key=lambda row: row["versionnumber"])
        gone = [] if since is None else [d for d in self.rows.deleted if d[1] == table.name and since < d[0] <= until]
        size = request.prefer.page_size or self.settings.max_page_size
        value: list[dict[str, Any]] = []
        for item in [*found, *gone][skip : skip + size]:
            if isinstance(item, dict):
                value.append(request.renderer.show(item, shape))
            else:
                context = f"{request.call.root}$metadata#{table.set_name}/$deletedEntity"
                value.append({"@odata.context": context, "id": item[2], "reason": "deleted"})
        body: dict[str, Any] = {"@odata.context": describe_context(request.call.root, shape, shape.selected, "/$delta")}
        if skip + size < len(found) + len(gone):
            further = {"page": page_number + 1, "skip": skip + size, "since": since, "until": until}
            body["@odata.nextLink"] = request.cookies.link(path, written, further)
        else:
            body["@odata.deltaLink"] = request.cookies.delta_link(path, written, until)
        body["value"] = value
        return Answer(200, body, request.prefer.applied("page", "annotations", "track"))

    # -- writing

    def _read_body(self, request: Request) -> dict[str, Any]:
        call = request.call
        if len(call.body) > self.settings.max_body_bytes:
            raise ApiError(413, "", "Request Entity Too Large")
        if not call.headers.get("content-type", "").strip().lower().startswith("application/json"):
            raise ApiError(415, BAD_QUERY, "The request needs the header Content-Type: application/json.")
        try:
            body = json.loads(call.body)
        except ValueError as exc:
            raise ApiError(
                400, "0x80048d19", f"Error identified in Payload provided by the user: no valid JSON ({exc})."
            ) from None
        if not isinstance(body, dict):
            raise ApiError(
                400, "0x80048d19", "Error identified in Payload provided by the user: an object is expected."
            )
        return body

    def read_values(self, table: Table, body: dict[str, Any]) -> Row:
        """Return the canonical values of a payload."""
        values: Row = {}
        for name, value in body.items():
            property_name, mark, annotation = name.partition("@")
            if mark and annotation == "odata.bind":
                navigation = self._need_bindable(table, property_name)
                if values.get(navigation.column) is None:  # of several branches the one that is set wins
                    values[navigation.column] = self._read_binding(table, navigation, value)
            elif name == "@odata.type":
                if str(value).lstrip("#") != f"{CAST_PREFIX}{table.name}":
                    raise bad_payload(table, f"The type '{value}' does not match '{CAST_PREFIX}{table.name}'.")
            elif not mark:
                column = table.property(name)
                if column is None:
                    known = name in table.navigations
                    hint = (
                        "is a navigation property: bind it with @odata.bind"
                        if known
                        else f"does not exist on type '{CAST_PREFIX}{table.name}'"
                    )
                    raise bad_payload(
                        table,
                        f"The property '{name}' {hint}. Make sure to only use property names that are defined by the type.",
                    )
                if column.is_lookup:
                    raise bad_payload(
                        table,
                        f"'{name}': CRM does not support direct update of lookup properties, use the navigation property instead.",
                    )
                values[column.name] = convert(table, column, value)
        return values

    def _need_bindable(self, table: Table, name: str) -> Navigation:
        navigation = table.navigations.get(name)
        if navigation is None or navigation.many:
            raise bad_payload(
                table,
                f"An undeclared property '{name}' which only has property annotations in the payload but no property value was found.",
            )
        return navigation

    def _read_binding(self, table: Table, navigation: Navigation, value: Any) -> Ref | None:
        if value is None:
            return None
        match = (
            re.fullmatch(r"(?:https?://[^/]+/api/data/v9\.\d)?/?(\w+)\((.+)\)", value, re.DOTALL)
            if isinstance(value, str)
            else None
        )
        target = self.rows.by_set.get(match[1]) if match else None
        accepted = ("systemuser", "team") if navigation.target == "principal" else (navigation.target,)
        if match is None or target is None or target.name not in accepted:
            raise bad_payload(
                table,
                f"Invalid value '{value}' of '{navigation.name}@odata.bind': a reference to {' or '.join(accepted)} is expected.",
            )
        return Ref(target.name, self._need_row(target, match[2])[target.key])

    def _create(self, request: Request, table: Table, row_id: str | None = None, given: Row | None = None) -> Answer:
        self._need_right(request, "create", table)
        request.allow_options("$select", "$expand")
        shape = self._shape(request, table)
        values = {**(given or {}), **self.read_values(table, self._read_body(request))}
        self.rows.check_write(table, values, None)
        row_id = self.rows.create(table, values, row_id)
        headers = {"OData-EntityId": self._url(request, table, row_id)}
        if request.prefer.representation:
            return self._represent(request, shape, row_id, 201, headers)
        return Answer(204, headers=headers)

    def _represent(self, request: Request, shape: Shape, row_id: str, status: int, headers: dict[str, str]) -> Answer:
        row = self.rows.data[shape.table.name][row_id]
        headers = {**headers, "ETag": etag_of(row), **request.prefer.applied("annotations", "representation")}
        return Answer(status, self._entity(request, shape, row), headers)

    def _patch(self, request: Request, table: Table, key: str) -> Answer:
        row_id, pairs = self.read_key(table, key)
        row = self.rows.find(table.name, row_id) if row_id else None
        headers = request.call.headers
        if row is None:
            if headers.get("if-match"):
                raise not_found(table, row_id or key)
            return self._create(request, table, row_id, pairs)
        if headers.get("if-none-match") == "*":
            raise ApiError(412, "0x80040237", "A record with matching key values already exists.")
        self._check_version(request, row)
        self._need_right(request, "write", table)
        request.allow_options("$select", "$expand")
        shape = self._shape(request, table)
        values = self.read_values(table, self._read_body(request))
        values.pop(table.key, None)
        self.rows.check_write(table, values, row)
        self.rows.update(table, row[table.key], values)
        entity = {"OData-EntityId": self._url(request, table, row[table.key])}
        if request.prefer.representation:
            return self._represent(request, shape, row[table.key], 200, entity)
        return Answer(204, headers=entity)

    @staticmethod
    def _check_version(request: Request, row: Row) -> None:
        wanted = request.call.headers.get("if-match")
        if wanted and wanted not in {"*", etag_of(row)}:
            raise ApiError(
                412, "0x80060882", "The version of the existing record doesn't match the RowVersion property provided."
            )

    def _delete(self, request: Request, table: Table, key: str) -> Answer:
        row = self._need_row(table, key)
        self._need_right(request, "delete", table)
        self._check_version(request, row)
        self.rows.delete(table, row[table.key])
        return Answer(204)

    def _write_multiple(self, request: Request, table: Table, create: bool) -> Answer:
        """Create or update all targets of one table, or none."""
        self._need_right(request, "create" if create else "write", table)
        targets = self._read_body(request).get("Targets")
        if not isinstance(targets, list) or not targets or not all(isinstance(target, dict) for target in targets):
            raise bad_payload(table, "'Targets' must be a list of objects.")
        ids = []
        with self.rows.transaction():
            for target in targets:
                if "@odata.type" not in target:
                    raise bad_payload(table, "Each of 'Targets' needs @odata.type.")
                values = self.read_values(table, target)
                if create:
                    self.rows.check_write(table, values, None)
                    ids.append(self.rows.create(table, values))
                    continue
                row_id = values.pop(table.key, None)
                row = self.rows.find(table.name, row_id) if row_id else None
                if row is None:
                    raise not_found(table, str(row_id))
                self.rows.check_write(table, values, row)
                self.rows.update(table, row_id, values)
        if not create:
            return Answer(204)
        context = f"{request.call.root}$metadata#{CAST_PREFIX}CreateMultipleResponse"
        return Answer(200, {"@odata.context": context, "Ids": ids})

    # -- functions and actions

    def _who_am_i(self, request: Request) -> Answer:
        user = self.rows.find("systemuser", request.call.user.user_id) or {}
        unit = user.get("businessunitid")
        return Answer(
            200,
            {
                "@odata.context": f"{request.call.root}$metadata#{CAST_PREFIX}WhoAmIResponse",
                "BusinessUnitId": unit.id if unit else None,
                "UserId": request.call.user.user_id,
                "OrganizationId": ORGANIZATION_ID,
            },
        )

    def _close_incident(self, request: Request) -> Answer:
        incident, resolution = self.rows.tables["incident"], self.rows.tables["incidentresolution"]
        self._need_right(request, "write", incident)
        body = self._read_body(request)
        given, status = body.get("IncidentResolution"), body.get("Status")
        if (
            not isinstance(given, dict)
            or not isinstance(status, int)
            or isinstance(status, bool)
            or set(body) - {"IncidentResolution", "Status"}
        ):
            raise ApiError(
                400,
                "0x80048d19",
                "CloseIncident takes IncidentResolution (an incidentresolution) and Status (a whole number).",
            )
        values = self.read_values(resolution, given)
        if not values.get("incidentid"):
            raise bad_payload(resolution, "incidentid@odata.bind is required.")
        self.rows.check_write(resolution, values, None)
        with self.rows.transaction():
            self.rows.resolve(
                values["incidentid"].id,
                status,
                values.get("subject"),
                values.get("description"),
                values.get("timespent"),
            )
        return Answer(204)


def _wrong_method(method: str) -> ApiError:
    return ApiError(405, "", f"The requested resource does not support http method '{method}'.")


def _fold(value: Any) -> Any:
    return value.casefold() if isinstance(value, str) else value


def _shuffle_ties(keys: list[Any], rows: list[Row], table: Table, page: int) -> list[Row]:
    """Return the rows with those of equal keys in an order that depends on the page."""
    shuffled: list[Row] = []
    for _, group in itertools.groupby(zip(keys, rows, strict=True), key=lambda pair: pair[0]):
        ties = [row for _, row in group]
        shuffled += sorted(ties, key=lambda row: zlib.crc32(f"{page}{row[table.key]}".encode()))
    return shuffled


def _write_place(part: tuple[bool, Any]) -> list[Any]:
    present, value = part
    return [present, value.isoformat(), "moment"] if isinstance(value, datetime) else [present, value]


def _read_place(part: list[Any]) -> tuple[bool, Any]:
    return (part[0], datetime.fromisoformat(part[1]) if len(part) == 3 else part[1])
