"""Both vendors as one very fast process: answers just the calls that our clients make, after a given latency, and counts them.

It checks nothing: what a call may look like is the strict simulators' business, which is also where the schema answers
and the shape of a case come from (`capture.py`). Sign-in to Dynamics stays with the sandbox's own login.
"""

import argparse
import asyncio
import gc
import json
import os
import sys
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

from sandbox.processes import tie_to_parent

TABLE = "/api/now/table/"
CASES = "/api/data/v9.2/incidents"
WARM_UP = 64  # further cases, listed alone by a run that only makes the workers ready …
WARM_UP_PAGE = 4  # … in pages so small that each worker gets some
USERS = 200  # contacts, and owners a tenth of it: all of them are known to ServiceNow
STATUS_TEXT = {200: b"200 OK", 201: b"201 Created", 404: b"404 Not Found"}
Json = dict[str, Any]


class Vendors:
    """The records of both systems, and what was asked of them."""

    def __init__(self, captured: Mapping[str, Any], cases: int, latency_s: float) -> None:
        self.answers = {target: body.encode() for target, body in captured["answers"].items()}
        self.latency_s = latency_s
        self.counts: Counter[str] = Counter()
        self.in_flight = self.most_in_flight = 0
        self.first_write_at = self.last_write_at = 0.0
        self.users = _make_users()
        made = [_make_case(captured["case"], number, self.users) for number in range(cases + WARM_UP)]
        self.case_index = {case["incidentid"]: case for case in made}
        self.cases, self.others = made[:cases], made[cases:]
        self.warming = False
        self.incidents: dict[str, Json] = {}
        self.by_field: dict[tuple[str, str], list[Json]] = {}
        self._date_s, self._date = 0, b""

    def date(self) -> bytes:
        """Return the Date header's value, made once a second."""
        now_s = int(time.time())
        if now_s != self._date_s:
            self._date_s, self._date = now_s, formatdate(now_s, usegmt=True).encode()
        return self._date

    def answer(self, method: str, target: str, headers: bytes, body: bytes) -> tuple[int, bytes]:
        """Answer a call of one of our clients."""
        path, _, query = target.partition("?")
        if path.startswith(TABLE):
            return self._answer_table(method, path[len(TABLE) :], target, query, body)
        if path == CASES:
            self.counts["dynamics365 GET incidents"] += 1
            return 200, self._list_cases(query, headers)
        if path == "/api/data/v9.2/WhoAmI":
            self.counts["dynamics365 GET WhoAmI"] += 1
            return 200, b'{"UserId":"00000000-0000-0000-0000-000000000001"}'
        if path == "/oauth_token.do":
            self.counts["servicenow sign-in"] += 1
            return 200, b'{"access_token":"stub","token_type":"Bearer","expires_in":1799,"scope":"useraccount"}'
        return self._answer_captured("dynamics365", target)

    def _answer_captured(self, system: str, target: str) -> tuple[int, bytes]:
        known = self.answers.get(unquote(target))
        self.counts[f"{system} schema" if known else f"{system} unknown: {target[:200]}"] += 1
        return (
            (200, known) if known else (404, b'{"error":{"message":"the benchmark\'s stub does not know this call"}}')
        )

    # -- Dynamics 365 -----------------------------------------------------------------------------------------------

    def _list_cases(self, query: str, headers: bytes) -> bytes:
        options = dict(parse_qsl(query))
        text = options.get("$filter", "")
        if "incidentid eq" in text:  # records that a message carries by key only
            wanted = [word.strip("()'") for word in text.split() if word.count("-") == 4]
            return _dump({"value": [self.case_index[key] for key in wanted if key in self.case_index]})
        start = int(options.get("$skiptoken", "0"))
        size = WARM_UP_PAGE if self.warming else int(_header(headers, b"odata.maxpagesize=", b"\r") or b"5000")
        answer: Json = {"value": self.cases[start : start + size]}
        if start + size < len(self.cases):
            host = (_header(headers, b"Host: ", b"\r") or b"").decode()
            answer["@odata.nextLink"] = f"http://{host}{CASES}?$skiptoken={start + size}"
        return _dump(answer)

    def touch(self) -> None:
        """Change the title of every case, as a user would."""
        now = datetime.now(UTC)
        for number, case in enumerate(self.cases):
            case["title"] = f"{case['title'].partition(' (')[0]} (changed {time.time_ns()})"
            case["modifiedon"] = f"{now - timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}"
            case["@odata.etag"] = f'W/"{time.time_ns() // 1000 + number}"'

    def bear(self) -> None:
        """Let every case be created now."""
        now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        for case in self.cases:
            case |= {"createdon": now, "modifiedon": now}

    # -- ServiceNow -------------------------------------------------------------------------------------------------

    def _answer_table(self, method: str, rest: str, target: str, query: str, body: bytes) -> tuple[int, bytes]:
        table, _, sys_id = rest.partition("/")
        if table.startswith("sys_d") or table == "sys_choice":
            return self._answer_captured("servicenow", target)
        self.counts[f"servicenow {method} {table}"] += 1
        options = dict(parse_qsl(query))
        fields = options["sysparm_fields"].split(",")
        if method == "GET":
            rows = self._search(table, options.get("sysparm_query", ""))
            return 200, _dump({"result": [_show(row, fields) for row in rows]})
        self.last_write_at = time.time()
        self.first_write_at = self.first_write_at or self.last_write_at
        if method == "POST":
            row = {"sys_id": uuid.uuid4().hex, "sys_mod_count": "0", "active": "true", "state": "1"} | json.loads(body)
            row["sys_updated_on"] = _now_text()
            if table == "incident":
                self._add(row)
            return 201, _dump({"result": _show(row, fields)})
        row = self.incidents[sys_id]
        row |= json.loads(body) | {"sys_updated_on": _now_text(), "sys_mod_count": str(int(row["sys_mod_count"]) + 1)}
        return 200, _dump({"result": _show(row, fields)})

    def _add(self, row: Json) -> None:
        self.incidents[row["sys_id"]] = row
        for field in ("correlation_id", "number"):
            self.by_field.setdefault((field, row.get(field, "")), []).append(row)

    def _search(self, table: str, query: str) -> list[Json]:
        """Find rows by one field with one or many values, the only queries that our clients make here."""
        text = query.partition("^ORDERBY")[0]
        if "=" in text:
            pairs = [term.partition("=")[::2] for term in text.split("^OR")]
        else:
            field, _, values = text.partition("IN")
            pairs = [(field, value) for value in values.split(",")]
        if table == "sys_user":
            return [self.users[value] for field, value in pairs if field == "email" and value in self.users]
        if table != "incident":
            return []
        found: list[Json] = []
        for field, value in pairs:
            if field == "sys_id":
                found += [self.incidents[value]] if value in self.incidents else []
            else:
                found += self.by_field.get((field, value), [])
        return found

    # -- controls ---------------------------------------------------------------------------------------------------

    def control(self, target: str) -> bytes:
        """Answer the benchmark itself."""
        name, _, argument = target.removeprefix("/_stub/").partition("/")
        if name == "touch":
            self.touch()
        elif name == "bear":
            self.bear()
        elif name == "swap":  # lists the cases for the warm-up instead of the others, and back
            self.cases, self.others, self.warming = self.others, self.cases, not self.warming
        elif name == "latency":
            self.latency_s = float(argument) / 1000
        elif name == "clear":
            self.counts.clear()
            self.most_in_flight, self.first_write_at, self.last_write_at = 0, 0.0, 0.0
        elif name == "forget":
            self.incidents, self.by_field = {}, {}
        return _dump(
            {
                "counts": self.counts,
                "incidents": len(self.incidents),
                "most_in_flight": self.most_in_flight,
                "first_write_at": self.first_write_at,
                "last_write_at": self.last_write_at,
            }
        )


class Connection(asyncio.Protocol):
    """One keep-alive connection; it reads as much HTTP/1.1 as requests and aiohttp send."""

    def __init__(self, vendors: Vendors, loop: asyncio.AbstractEventLoop) -> None:
        self._vendors, self._loop = vendors, loop
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's signature
        self._transport = None

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        while (end := buffer.find(b"\r\n\r\n")) >= 0:
            head = buffer[: end + 2]
            length = int(_header(head, b"Content-Length: ", b"\r") or 0)
            if len(buffer) < end + 4 + length:
                break
            self._take(head, buffer[end + 4 : end + 4 + length])
            buffer = buffer[end + 4 + length :]
        self._buffer = buffer

    def _take(self, head: bytes, body: bytes) -> None:
        vendors = self._vendors
        method, target, _ = head[: head.index(b"\r\n")].decode("latin-1").split(" ")
        if target.startswith("/_stub/"):
            self._send(200, vendors.control(target))
            return
        vendor = target.startswith("/api/now/")
        if vendor:
            vendors.in_flight += 1
            vendors.most_in_flight = max(vendors.most_in_flight, vendors.in_flight)
        status, answer = vendors.answer(method, target, head, body)
        if vendors.latency_s:
            self._loop.call_later(vendors.latency_s, self._end, status, answer, vendor)
        else:
            self._end(status, answer, vendor)

    def _end(self, status: int, answer: bytes, vendor: bool) -> None:
        self._vendors.in_flight -= vendor
        self._send(status, answer)

    def _send(self, status: int, answer: bytes) -> None:
        if self._transport is not None:
            self._transport.write(
                b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nDate: %b\r\nContent-Length: %d\r\n\r\n%b"
                % (STATUS_TEXT[status], self._vendors.date(), len(answer), answer)
            )


def _header(head: bytes, name: bytes, end: bytes) -> bytes | None:
    start = head.find(name)
    if start < 0:
        return None
    start += len(name)
    return head[start : head.index(end, start)]


def _show(row: Json, fields: list[str]) -> Json:
    return {field: row.get(field, "") for field in fields}


def _dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _now_text() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())


def _make_users() -> dict[str, Json]:
    emails = [f"contact{number}@customer.example" for number in range(USERS)]
    emails += [f"owner{number}@example.com" for number in range(USERS // 10)]
    return {
        email: {
            "sys_id": uuid.uuid5(uuid.NAMESPACE_URL, email).hex,
            "email": email,
            "active": "true",
            "sys_mod_count": "0",
        }
        | {"sys_updated_on": "2026-01-01 00:00:00"}
        for email in emails
    }


def _make_case(template: Json, number: int, users: Mapping[str, Json]) -> Json:
    emails = list(users)
    case = json.loads(json.dumps(template))
    modified = datetime.now(UTC) - timedelta(days=1) + timedelta(milliseconds=20 * number)
    case |= {
        "incidentid": str(uuid.uuid5(uuid.NAMESPACE_URL, f"case {number}")),
        "ticketnumber": f"CAS-{number:07d}-B3N7",
        "title": f"The pump of line {number} stops",
        "description": "It stops after a minute and says <b>E42</b>. " * 5,
        "createdon": f"{modified - timedelta(days=2):%Y-%m-%dT%H:%M:%SZ}",
        "modifiedon": f"{modified:%Y-%m-%dT%H:%M:%SZ}",
        "@odata.etag": f'W/"{1_000_000 + number}"',
    }
    contact, owner = emails[number % USERS], emails[USERS + number % (USERS // 10)]
    case["customerid_contact"] |= {"contactid": str(uuid.uuid5(uuid.NAMESPACE_URL, contact)), "emailaddress1": contact}
    owner_id = str(uuid.uuid5(uuid.NAMESPACE_URL, owner))
    case["owninguser"] |= {"systemuserid": owner_id, "ownerid": owner_id, "internalemailaddress": owner}
    return case | {"_owninguser_value": owner_id}


async def _serve(vendors: Vendors, ready_fd: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(vendors, loop), "127.0.0.1", 0, backlog=512)
    with os.fdopen(ready_fd, "w") as ready:
        ready.write(str(server.sockets[0].getsockname()[1]))
    gc.freeze()
    await server.serve_forever()


def main() -> None:
    """Serve until the parent ends us."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captured", type=Path, required=True, help="what capture.py wrote")
    parser.add_argument("--cases", type=int, required=True)
    parser.add_argument("--latency-ms", type=float, default=0.0)
    parser.add_argument("--ready-fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    options = parser.parse_args()
    tie_to_parent(options.parent)
    captured = json.loads(options.captured.read_text())
    vendors = Vendors(captured, options.cases, options.latency_ms / 1000)
    asyncio.run(_serve(vendors, options.ready_fd))


if __name__ == "__main__":
    sys.exit(main())
