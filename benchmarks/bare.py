"""What the same job costs without any state: the minimal calls, side by side, as an expert's throw-away script makes them.

It lists the pages, asks for each page's users at once and creates an incident per case. Nothing is remembered, retried
or checked, and a second run would double every record: this is the measure that the product is compared with. With
`--load-s` it only sends creates as fast as it can, which shows what the stub sustains.
"""

import argparse
import asyncio
import json
import os
import resource
import sys
import time
from typing import Any
from urllib.parse import quote, urlsplit

import aiohttp

TABLE = "/api/now/table/"
PAGE_SIZE = 100
SELECT = (
    "$select=caseorigincode,createdon,description,incidentid,modifiedon,prioritycode,statecode,ticketnumber,title"
    "&$expand=customerid_contact($select=emailaddress1,firstname,lastname),"
    "owninguser($select=internalemailaddress,firstname,lastname)"
    "&$filter=statecode eq 0&$orderby=modifiedon asc"
)
ANSWERED = "sysparm_fields=sys_id,number&sysparm_exclude_reference_link=true"
ORIGINS = {1: "phone", 2: "email", 3: "self-service"}


async def sync(url: str, cap: int) -> dict[str, Any]:
    """Copy every case, with at most `cap` calls to ServiceNow at once."""
    started_s, creating = time.perf_counter(), []
    async with (
        aiohttp.ClientSession(url) as crm,
        aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=cap)) as desk,
    ):
        target: str | None = f"/api/data/v9.2/incidents?{quote(SELECT, safe='$=&(),')}"
        while target:
            async with crm.get(target, headers={"Prefer": f"odata.maxpagesize={PAGE_SIZE}"}) as answer:
                page = await answer.json()
            creating.append(asyncio.create_task(create_page(desk, page["value"])))
            link = page.get("@odata.nextLink")
            target = link.removeprefix(url) if link else None
        created = sum(await asyncio.gather(*creating))
    seconds = time.perf_counter() - started_s
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "cases": created,
        "seconds": seconds,
        "cpu_ms_per_case": 1000 * (used.ru_utime + used.ru_stime) / max(created, 1),
        "memory_mb": used.ru_maxrss / 1024,
    }


async def create_page(desk: aiohttp.ClientSession, cases: list[dict[str, Any]]) -> int:
    """Create the incidents of a page; return how many."""
    emails = {case["customerid_contact"]["emailaddress1"] for case in cases}
    emails |= {case["owninguser"]["internalemailaddress"] for case in cases}
    text = quote("^OR".join(f"email={email}" for email in sorted(emails)), safe="")
    async with desk.get(f"{TABLE}sys_user?sysparm_query={text}&sysparm_fields=sys_id,email") as answer:
        users = {row["email"]: row["sys_id"] for row in (await answer.json())["result"]}
    await asyncio.gather(*(create(desk, case, users) for case in cases))
    return len(cases)


async def create(desk: aiohttp.ClientSession, case: dict[str, Any], users: dict[str, str]) -> None:
    """Create the incident of a case."""
    incident = {
        "correlation_id": case["incidentid"],
        "correlation_display": case["ticketnumber"],
        "number": case["ticketnumber"],
        "short_description": case["title"][:160],
        "description": (case["description"] or "")[:4000],
        "opened_at": case["createdon"].replace("T", " ").rstrip("Z"),
        "contact_type": ORIGINS.get(case["caseorigincode"], "self-service"),
        "urgency": str(case["prioritycode"]),
        "caller_id": users.get(case["customerid_contact"]["emailaddress1"], ""),
        "assigned_to": users.get(case["owninguser"]["internalemailaddress"], ""),
    }
    async with desk.post(f"{TABLE}incident?{ANSWERED}", json=incident) as answer:
        answer.raise_for_status()
        await answer.json()


class Caller(asyncio.Protocol):
    """One connection that sends the same request again as soon as it is answered."""

    def __init__(self, request: bytes) -> None:
        self.answered = 0
        self._request, self._buffer = request, b""
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        start = self._buffer.index(b"Content-Length: ") + 16
        if len(self._buffer) >= end + 4 + int(self._buffer[start : self._buffer.index(b"\r", start)]):
            self.answered += 1
            self._buffer = b""
            if self._transport is not None:
                self._transport.write(self._request)


async def load(url: str, connections: int, seconds: float) -> dict[str, Any]:
    """Send creates without pause; return how many were answered in a second."""
    body = json.dumps(
        {"correlation_id": "0", "short_description": "load", "description": "x" * 400, "urgency": "2"}
    ).encode()
    fields = "active,caller_id,correlation_id,description,number,short_description,state,sys_id,sys_mod_count,urgency"
    head = f"POST {TABLE}incident?sysparm_fields={fields} HTTP/1.1\r\nHost: stub\r\nContent-Length: {len(body)}\r\n\r\n"
    where = urlsplit(url)
    loop = asyncio.get_running_loop()
    callers = [Caller(head.encode() + body) for _ in range(connections)]
    for caller in callers:
        await loop.create_connection(lambda caller=caller: caller, where.hostname, where.port)
    await asyncio.sleep(seconds)
    return {"requests_per_s": sum(caller.answered for caller in callers) / seconds}


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--cap", type=int, default=52)
    parser.add_argument("--load-s", type=float, default=0.0)
    options = parser.parse_args()
    work = load(options.url, options.cap, options.load_s) if options.load_s else sync(options.url, options.cap)
    print(json.dumps(asyncio.run(work)), flush=True)
    os._exit(0)  # the load's connections are still in full flow


if __name__ == "__main__":
    sys.exit(main())
