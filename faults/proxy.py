"""An HTTP-aware proxy that breaks what passes through it: one port per server behind it, one connection per request.

It knows nothing of what it carries: storage, vendors and their sign-in go the same way. Who strikes decides per request.
"""

import asyncio
import contextlib
import dataclasses
import json
import re
import socket
import ssl
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

from faults.kinds import STORAGE, Effect

T = TypeVar("T")

LOOPBACK = "127.0.0.1"
LONGEST_SILENCE_S = 60.0
SILENCE = b""  # the answer that never comes
PAGE = b"<html><body><h1>Sign in to the guest network</h1></body></html>"
STORAGE_CODES = {429: "TooManyRequests", 500: "InternalError", 502: "BadGateway", 503: "ServerBusy"}


@dataclasses.dataclass(frozen=True)
class Upstream:
    """A server behind the proxy."""

    name: str
    host: str
    port: int
    tls: bool = False
    called: str = ""  # host name and port by which clients call it; empty: as they say themselves


@dataclasses.dataclass(frozen=True)
class Passing:
    """A request on its way."""

    upstream: Upstream
    method: str
    target: str
    raw: bytes


@dataclasses.dataclass(frozen=True)
class Stroke:
    """What becomes of one request; `kill` ends the process that waits for the answer."""

    effect: Effect
    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None  # None: the server's own kind of error body
    delay_s: float = 0.0  # before anything happens
    kill: Callable[[], None] | None = None


class Proxy:
    """Runs on a loop of its own in a thread; `decide` is called on that loop for every request."""

    def __init__(self, decide: Callable[[Passing], Stroke | None]) -> None:
        self._decide = decide
        self._loop = asyncio.new_event_loop()
        self._held: list[Passing] = []
        self._busy = 0  # requests that have arrived and not yet come to anything
        self._ports: dict[str, int] = {}
        self._servers: list[asyncio.Server] = []
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End all connections and the loop."""
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def open(self, upstream: Upstream) -> int:
        """Listen for requests to a server and return the port."""
        return self._run(self._open(upstream))

    def port_of(self, name: str) -> int:
        """Return the port that stands for a server."""
        return self._ports[name]

    def release(self) -> int:
        """Let the requests that were withheld take effect now; return how many there were."""
        held, self._held = self._held, []
        for passing in held:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                self._run(_forward(passing))
        return len(held)

    def settle(self, arrived: Callable[[], bool]) -> None:
        """Wait until a request has arrived, and all that arrived have taken effect as far as they ever will."""

        async def wait() -> None:
            while self._busy or not arrived():
                await asyncio.sleep(0.002)

        self._run(wait())

    @property
    def holds(self) -> bool:
        """Whether a withheld request is still to take effect."""
        return bool(self._held)

    def forget(self) -> None:
        """Drop what is withheld."""
        self._held = []

    def _run(self, work: Awaitable[T]) -> T:
        async def wait() -> T:
            return await work

        return asyncio.run_coroutine_threadsafe(wait(), self._loop).result(LONGEST_SILENCE_S)

    async def _open(self, upstream: Upstream) -> int:
        server = await asyncio.start_server(
            lambda reader, writer: self._serve(upstream, reader, writer), LOOPBACK, 0, limit=2**20, backlog=512
        )
        self._servers.append(server)
        self._ports[upstream.name] = server.sockets[0].getsockname()[1]
        return self._ports[upstream.name]

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        current = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not current]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, upstream: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            passing = await _read_request(upstream, reader)
            answer = await self._carry(passing, writer)
            if answer == SILENCE:
                await _wait_for_hangup(reader)
            elif answer is not None:
                writer.write(answer)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, ValueError):
            writer.transport.abort()
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            with contextlib.suppress(OSError):
                writer.close()

    async def _carry(self, passing: Passing, writer: asyncio.StreamWriter) -> bytes | None:
        self._busy += 1
        try:
            stroke = self._decide(passing)
            if stroke is not None and stroke.delay_s:
                await asyncio.sleep(stroke.delay_s)
            return await (self._strike(passing, stroke, writer) if stroke else _forward(passing))
        finally:
            self._busy -= 1

    async def _strike(self, passing: Passing, stroke: Stroke, writer: asyncio.StreamWriter) -> bytes | None:
        match stroke.effect:
            case Effect.KILL_BEFORE | Effect.KILL_AFTER:
                if stroke.effect is Effect.KILL_AFTER:
                    await _forward(passing)
                if stroke.kill:
                    stroke.kill()
                _reset(writer)
            case Effect.REFUSE | Effect.RESET_BEFORE:
                _reset(writer)
            case Effect.RESET_AFTER:
                await _forward(passing)
                _reset(writer)
            case Effect.SILENT_AFTER:
                await _forward(passing)
                return SILENCE
            case Effect.LATE:
                self._held.append(passing)
                return SILENCE
            case Effect.HANG:
                return SILENCE
            case Effect.STATUS | Effect.STATUS_AFTER:
                if stroke.effect is Effect.STATUS_AFTER:
                    await _forward(passing)
                return _error(passing, stroke)
            case Effect.CUT:
                head, body = _split(await _forward(passing))
                return head + body[: len(body) // 2]
            case Effect.SHORT:
                head, body = _split(await _forward(passing))
                return _with_length(head, body[: len(body) // 2])
            case Effect.HTML:
                await _forward(passing)
                return _answer(200, "text/html", PAGE)
            case Effect.EXPIRE:
                return await _forward(passing)
        return None


def _reset(writer: asyncio.StreamWriter) -> None:
    """Cut a connection so that the other side sees a reset."""
    sock: socket.socket | None = writer.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _wait_for_hangup(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(OSError, TimeoutError):
        await asyncio.wait_for(reader.read(1), LONGEST_SILENCE_S)


# -- HTTP as far as it is needed ----------------------------------------------------------------------------------------


async def _read_request(upstream: Upstream, reader: asyncio.StreamReader) -> Passing:
    head = await reader.readuntil(b"\r\n\r\n")
    line, _, rest = head.partition(b"\r\n")
    method, target, _ = line.decode("latin-1").split(" ", 2)
    body = await _read_body(head, reader)
    kept = [each for each in rest.split(b"\r\n") if each and not re.match(rb"(?i)(connection|expect):", each)]
    if upstream.called:
        kept = [each for each in kept if not each.lower().startswith(b"host:")] + [f"Host: {upstream.called}".encode()]
    raw = b"\r\n".join([line, b"Connection: close", *kept, b"", b""]) + body
    return Passing(upstream, method, target, raw)


async def _read_body(head: bytes, reader: asyncio.StreamReader) -> bytes:
    if found := re.search(rb"(?im)^content-length: *(\d+)", head):
        return await reader.readexactly(int(found[1]))
    body = b""
    if re.search(rb"(?im)^transfer-encoding: *chunked", head):
        while True:
            line = await reader.readuntil(b"\r\n")
            chunk = await reader.readexactly(int(line.split(b";")[0], 16) + 2)
            body += line + chunk
            if line.strip() == b"0":
                break
    return body


_ANY_CERTIFICATE = ssl.create_default_context()
_ANY_CERTIFICATE.check_hostname, _ANY_CERTIFICATE.verify_mode = False, ssl.CERT_NONE


async def _forward(passing: Passing) -> bytes:
    """Carry a request to its server and return the whole answer, framed by its length."""
    up = passing.upstream
    reader, writer = await asyncio.open_connection(up.host, up.port, ssl=_ANY_CERTIFICATE if up.tls else None)
    try:
        writer.write(passing.raw)
        await writer.drain()
        answer = await reader.read(-1)
    finally:
        with contextlib.suppress(OSError):
            writer.close()
    if not answer:
        raise ConnectionResetError("the server closed without an answer")
    head, body = _split(answer)
    if passing.method == "HEAD" or re.match(rb"HTTP/1\.[01] (1..|204|304)", head):
        return answer
    return _with_length(head, body)


def _split(answer: bytes) -> tuple[bytes, bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    if re.search(rb"(?im)^transfer-encoding: *chunked", head):
        body = _unchunk(body)
    return head + b"\r\n\r\n", body


def _unchunk(body: bytes) -> bytes:
    whole = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        count = int(size.split(b";")[0] or b"0", 16)
        whole, body = whole + body[:count], body[count + 2 :]
        if not count:
            break
    return whole


def _with_length(head: bytes, body: bytes) -> bytes:
    lines = [
        line
        for line in head.split(b"\r\n")
        if line and not re.match(rb"(?i)(content-length|transfer-encoding|connection|keep-alive):", line)
    ]
    return b"\r\n".join([*lines, b"Connection: close", b"Content-Length: %d" % len(body), b"", b""]) + body


def _answer(status: int, kind: str, body: bytes, headers: tuple[tuple[str, str], ...] = ()) -> bytes:
    lines = [f"HTTP/1.1 {status} Struck", f"Content-Type: {kind}", *(f"{name}: {value}" for name, value in headers)]
    return _with_length("\r\n".join(lines).encode() + b"\r\n\r\n", body)


def _error(passing: Passing, stroke: Stroke) -> bytes:
    if stroke.body is not None:
        return _answer(stroke.status, "application/json", stroke.body, stroke.headers)
    code = STORAGE_CODES.get(stroke.status, "InternalError")
    if passing.upstream.name not in STORAGE:
        return _answer(stroke.status, "text/html", b"<html><body>Bad gateway</body></html>", stroke.headers)
    headers = (*stroke.headers, ("x-ms-error-code", code))
    if passing.upstream.name == "table":
        text = json.dumps({"odata.error": {"code": code, "message": {"lang": "en-US", "value": "Struck."}}})
        return _answer(stroke.status, "application/json;odata=minimalmetadata", text.encode(), headers)
    text = f'<?xml version="1.0" encoding="utf-8"?><Error><Code>{code}</Code><Message>Struck.</Message></Error>'
    return _answer(stroke.status, "application/xml", text.encode(), headers)


@contextlib.contextmanager
def serving(decide: Callable[[Passing], Stroke | None]) -> Iterator[Proxy]:
    """Run a proxy for as long as the block lasts."""
    proxy = Proxy(decide)
    try:
        yield proxy
    finally:
        proxy.close()
