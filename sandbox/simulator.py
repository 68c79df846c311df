"""What every simulated vendor shares: an HTTP edge with a journal of requests, faults on demand and a clock that tests can set.

A simulator is an aiohttp application (aiohttp, because a fault must be able to cut the TCP connection, which
`request.transport` allows). All state changes happen on one event loop, so a handler without `await` is atomic.

Control endpoints, none of which a vendor has, live under `/_sandbox/`:
`GET|DELETE /_sandbox/journal`, `GET|POST|DELETE /_sandbox/faults`, `GET|POST /_sandbox/clock`.
A person's page and a system's own controls are added by the system (see `Simulator.add_routes`).
"""

import asyncio
import contextlib
import dataclasses
import json
import re
import ssl
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from enum import StrEnum
from typing import Any

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

SANDBOX_PREFIX = "/_sandbox/"
MAX_BODY_BYTES = 128 * 1024 * 1024
TURNS = 12  # of the loop, within which a request that has arrived is in a handler's hands
MAX_LINE_BYTES = 64 * 1024  # aiohttp's own limit of 8 KiB is below what these vendors accept in a URL


class Clock:
    """The simulated vendor's clock: real time plus an offset, or frozen; always aware UTC."""

    def __init__(self, start: datetime | None = None) -> None:
        self._frozen = start
        self._offset = timedelta()

    def now(self) -> datetime:
        """Return the current time of this vendor, with microseconds."""
        return (self._frozen or datetime.now(UTC)) + self._offset

    def now_s(self) -> datetime:
        """Return the current time cut to whole seconds, the resolution that these vendors store."""
        return self.now().replace(microsecond=0)

    def freeze(self, at: datetime | None) -> None:
        """Stop the clock at a moment; None lets it run again."""
        self._frozen, self._offset = at, timedelta()

    def advance(self, seconds: float) -> None:
        """Move the clock by seconds, also backwards."""
        self._offset += timedelta(seconds=seconds)


class FaultKind(StrEnum):
    """What goes wrong with one request."""

    REFUSE = "refuse"  # the connection is cut before the request is looked at
    RESET_AFTER = "reset_after"  # the request takes effect, then the connection is cut: the answer is lost
    LATE_EFFECT = (
        "late_effect"  # hangs for `seconds` while nothing happens, then takes effect although nobody waits any more
    )
    HANG = "hang"  # waits for `seconds`, then cuts the connection; the request never takes effect
    LATENCY = "latency"  # waits for `seconds`, then works normally
    STATUS = "status"  # answers `status` with `body` and `headers`; the request never takes effect
    STATUS_AFTER = "status_after"  # the request takes effect, then answers `status` (a gateway that lost the answer)
    TRUNCATED = "truncated"  # the request takes effect; half of the body arrives with a well-formed header
    HTML = "html"  # the request takes effect; 200 with an HTML page instead of the answer
    EXPIRE_TOKEN = "expire_token"  # every token that was given out is void from this request on


@dataclasses.dataclass
class Fault:
    """One planned failure: which requests (method and a regular expression over path and query), from which occurrence on, how often."""

    kind: FaultKind
    method: str = ""  # empty: any
    path: str = ""  # searched in the decoded "path?query"; empty: any
    skip: int = 0  # matching requests to let pass first
    times: int = 1  # how many to hit after that; 0 = until removed
    status: int = 503
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    body: str | None = None  # None: the system's own error body, if it has one
    seconds: float = 0.0
    seen: int = 0
    hit: int = 0

    def takes(self, method: str, target: str) -> bool:
        """Count a request that matches and tell whether this fault strikes it."""
        if (self.method and self.method.upper() != method) or (self.path and not re.search(self.path, target)):
            return False
        self.seen += 1
        if self.seen <= self.skip or (self.times and self.hit >= self.times):
            return False
        self.hit += 1
        return True


@dataclasses.dataclass(frozen=True)
class Entry:
    """One request as it arrived, and what became of it."""

    at: datetime  # vendor's clock, when it arrived
    method: str
    path: str  # decoded, without query
    query: str  # decoded
    headers: dict[str, str]  # lower-case names; Authorization is kept only as its scheme
    body: str
    status: int  # 0: no answer was given
    fault: str  # kind of the fault that struck, or ""
    started_s: float  # monotonic
    ended_s: float

    @property
    def target(self) -> str:
        """Return path and query as faults match them."""
        return f"{self.path}?{self.query}" if self.query else self.path


class Simulator:
    """One simulated system; subclasses add routes and records."""

    name = "simulator"

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self.journal: list[Entry] = []
        self.faults: list[Fault] = []
        self.in_flight = 0
        self.max_in_flight = 0
        self.app = web.Application(middlewares=[self._edge], client_max_size=MAX_BODY_BYTES)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.app.on_startup.append(self._note_loop)
        routes = self.app.router
        routes.add_get(f"{SANDBOX_PREFIX}journal", self._get_journal)
        routes.add_delete(f"{SANDBOX_PREFIX}journal", self._clear_journal)
        routes.add_get(f"{SANDBOX_PREFIX}faults", self._get_faults)
        routes.add_post(f"{SANDBOX_PREFIX}faults", self._add_fault)
        routes.add_delete(f"{SANDBOX_PREFIX}faults", self._clear_faults)
        routes.add_get(f"{SANDBOX_PREFIX}clock", self._get_clock)
        routes.add_post(f"{SANDBOX_PREFIX}clock", self._set_clock)
        self.add_routes(routes)

    # -- for the systems ----------------------------------------------------------------------------------------------

    def add_routes(self, routes: web.UrlDispatcher) -> None:
        """Add the system's endpoints, its page `/` and its own controls below `/_sandbox/`."""

    def expire_tokens(self) -> None:
        """Make every access token that was given out invalid."""

    def error_response(self, status: int) -> web.Response:
        """Return this system's usual error body for a status that a fault asks for."""
        return web.Response(status=status)

    def spawn(self, work: Awaitable[Any]) -> None:
        """Run something beside the requests (a webhook delivery) on the simulator's loop."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- for tests ----------------------------------------------------------------------------------------------------

    def requests(self, method: str = "", path: str = "") -> list[Entry]:
        """Return the journal's entries of a method whose "path?query" matches a regular expression."""
        return [e for e in list(self.journal) if (not method or e.method == method) and re.search(path, e.target)]

    def add_fault(self, kind: FaultKind | str, **facts: Any) -> Fault:
        """Plan a fault; see Fault for the facts."""
        fault = Fault(FaultKind(kind), **facts)
        self.faults.append(fault)
        return fault

    def settle(self, timeout_s: float = 30.0) -> None:
        """Wait, in another thread than the simulator's, until all requests that have arrived are worked, and what they began.

        On a busy machine a caller may have given up before its request was looked at.
        """
        ends_at_s = time.monotonic() + timeout_s
        while self._loop is not None and self._loop.is_running() and time.monotonic() < ends_at_s:
            asyncio.run_coroutine_threadsafe(self._take_arrived(), self._loop).result(timeout_s)
            if not self._tasks and not self.in_flight:
                return
            time.sleep(0.005)

    async def _note_loop(self, _: web.Application) -> None:
        self._loop = asyncio.get_running_loop()

    @staticmethod
    async def _take_arrived() -> None:
        for _ in range(TURNS):
            await asyncio.sleep(0)

    # -- the edge -----------------------------------------------------------------------------------------------------

    @web.middleware
    async def _edge(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith(SANDBOX_PREFIX) or request.path == "/":
            return await handler(request)
        arrived, started_s = self.clock.now(), time.monotonic()
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        body, status, kind = b"", 0, ""
        try:
            body = await request.read()
            target = f"{request.path}?{_decoded_query(request)}" if request.query_string else request.path
            fault = next((f for f in self.faults if f.takes(request.method, target)), None)
            kind = fault.kind if fault else ""
            response = await (self._strike(fault, request, handler) if fault else self._answer(request, handler))
            response.headers.setdefault("Date", format_datetime(self.clock.now(), usegmt=True))
            status = response.status
            return response
        finally:
            self.in_flight -= 1
            headers = {k.lower(): v for k, v in request.headers.items()}
            if "authorization" in headers:
                headers["authorization"] = headers["authorization"].split(" ")[0]
            self.journal.append(
                Entry(arrived, request.method, request.path, _decoded_query(request), headers,
                      body.decode("utf-8", "replace"), status, kind, started_s, time.monotonic())
            )  # fmt: skip

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPException as exc:  # aiohttp's own 404 and 405, in this system's clothes
            if exc.status >= 400:
                return self.error_response(exc.status)
            raise

    async def _strike(self, fault: Fault, request: web.Request, handler: Handler) -> web.StreamResponse:
        match fault.kind:
            case FaultKind.REFUSE:
                self._cut(request)
            case FaultKind.RESET_AFTER:
                await self._answer(request, handler)
                self._cut(request)
            case FaultKind.LATE_EFFECT:
                self.spawn(self._work_late(fault.seconds, request, handler))
                await asyncio.sleep(fault.seconds)
                self._cut(request)
            case FaultKind.HANG:
                await asyncio.sleep(fault.seconds)
                self._cut(request)
            case FaultKind.STATUS | FaultKind.STATUS_AFTER:
                if fault.kind is FaultKind.STATUS_AFTER:
                    await self._answer(request, handler)
                own = self.error_response(fault.status)
                response = own if fault.body is None else web.Response(status=fault.status, text=fault.body)
                response.headers.update(fault.headers)
                return response
            case FaultKind.TRUNCATED:
                response = await self._answer(request, handler)
                body = response.body if isinstance(response, web.Response) and isinstance(response.body, bytes) else b""
                return web.Response(
                    status=response.status, body=body[: len(body) // 2], content_type=response.content_type
                )
            case FaultKind.HTML:
                await self._answer(request, handler)
                return web.Response(text="<html><body>Instance hibernating</body></html>", content_type="text/html")
            case FaultKind.EXPIRE_TOKEN:
                self.expire_tokens()
            case FaultKind.LATENCY:
                await asyncio.sleep(fault.seconds)
        return await self._answer(request, handler)

    async def _work_late(self, seconds: float, request: web.Request, handler: Handler) -> None:
        await asyncio.sleep(seconds)
        await self._answer(request, handler)

    @staticmethod
    def _cut(request: web.Request) -> None:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("cut by a fault")

    # -- controls -----------------------------------------------------------------------------------------------------

    async def _get_journal(self, request: web.Request) -> web.Response:
        entries = self.requests(request.query.get("method", ""), request.query.get("path", ""))
        rows = [dataclasses.asdict(entry) | {"at": entry.at.isoformat()} for entry in entries]
        return web.json_response({"count": len(rows), "entries": rows, "max_in_flight": self.max_in_flight})

    async def _clear_journal(self, request: web.Request) -> web.Response:
        self.journal.clear()
        self.max_in_flight = self.in_flight
        return web.Response(status=204)

    async def _get_faults(self, request: web.Request) -> web.Response:
        return web.json_response([dataclasses.asdict(fault) for fault in self.faults])

    async def _add_fault(self, request: web.Request) -> web.Response:
        try:
            self.faults.append(_read_fault(await request.json()))
        except (TypeError, ValueError) as exc:
            kinds = ", ".join(kind.value for kind in FaultKind)
            return web.json_response({"error": f"not a fault: {exc}; kinds are {kinds}"}, status=400)
        return web.Response(status=204)

    async def _clear_faults(self, request: web.Request) -> web.Response:
        self.faults.clear()
        return web.Response(status=204)

    async def _get_clock(self, request: web.Request) -> web.Response:
        return web.json_response({"now": self.clock.now().isoformat()})

    async def _set_clock(self, request: web.Request) -> web.Response:
        body = await request.json()
        if "now" in body:
            self.clock.freeze(datetime.fromisoformat(body["now"]) if body["now"] else None)
        self.clock.advance(float(body.get("advance_s", 0)))
        return await self._get_clock(request)


def _read_fault(body: dict[str, Any]) -> Fault:
    return Fault(**{**body, "kind": FaultKind(body.get("kind", ""))})


def _decoded_query(request: web.Request) -> str:
    return request.rel_url.query_string


@contextlib.asynccontextmanager
async def serve(sims: Iterable[tuple[Simulator, int]], tls: ssl.SSLContext | None = None) -> AsyncIterator[list[int]]:
    """Serve simulators on 127.0.0.1, each on its port (0 = any free one), and yield the ports in order.

    Raises OSError when a port is taken.
    """
    runners: list[web.AppRunner] = []
    try:
        ports = []
        for sim, port in sims:
            runner = web.AppRunner(sim.app, access_log=None, max_line_size=MAX_LINE_BYTES, shutdown_timeout=0.5)
            await runner.setup()
            runners.append(runner)
            await web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls).start()
            ports.append(runner.addresses[0][1])
        yield ports
    finally:
        for runner in runners:
            await runner.cleanup()


@contextlib.contextmanager
def serve_in_thread(*sims: Simulator, tls: ssl.SSLContext | None = None) -> Any:
    """Serve simulators from a thread of this process, for tests; yields their ports."""
    loop = asyncio.new_event_loop()
    ready: list[int] = []
    up, stop = threading.Event(), asyncio.Event()
    failure: list[BaseException] = []

    async def run() -> None:
        async with serve([(sim, 0) for sim in sims], tls) as ports:
            ready.extend(ports)
            up.set()
            await stop.wait()

    def work() -> None:
        try:
            loop.run_until_complete(run())
        except BaseException as exc:
            failure.append(exc)
            up.set()
        finally:
            drop_connections(loop)
            loop.close()

    thread = threading.Thread(target=work, name="simulators", daemon=True)
    thread.start()
    up.wait(30)
    if failure:
        raise failure[0]
    try:
        yield ready
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)


def drop_connections(loop: asyncio.AbstractEventLoop) -> None:
    """Cut what is left open: a TLS connection waits up to 30 s for the client's farewell, and aiohttp cannot shorten that."""
    for transport in list(getattr(loop, "_transports", {}).values()):
        transport.abort()
    loop.run_until_complete(asyncio.sleep(0))


def json_text(value: Any) -> str:
    """Return compact JSON, as these vendors send it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
