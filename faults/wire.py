"""The edge of a process under test: every outgoing call is seen here, named, and perhaps struck.

A call's name says who is called, with what (ids taken out), and which function of the product made it. A struck call
leaves over the proxy; the death of the process is an exception that nothing may catch, and no call leaves after it.
"""

import contextlib
import dataclasses
import re
import sys
import time
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

from requests.adapters import HTTPAdapter

from faults.kinds import Effect, Fault
from faults.proxy import Passing, Proxy, Stroke
from sandbox.processes import free_ports
from shared.state.storage import SideBySide
from tests.flows.world import Killed

ROOT = Path(__file__).parent.parent
SILENCE_S = 0.1  # time-out of a call that is never answered, in the place of its own
KEEP_ALIVE_S = (
    2.0  # then a kept connection is dropped: the emulator closes it after 5, which would be a fault that nobody ordered
)
PATIENCE_S = 20.0  # and of a call that is answered wrongly: a busy machine must not look like a time-out
WRITES = frozenset({"POST", "PUT", "PATCH", "MERGE", "DELETE"})
_ID = re.compile(r"[0-9a-f]{32}|[0-9a-f]{8}-[0-9a-f-]{27}|\([^)]*\)|\d{10,}")
_PLUMBING = {"each", "<lambda>", "map", "wrap", "_map_shards", "<listcomp>", "<genexpr>", "guarded", "wrapper", "step"}
_STEPS = 2  # innermost functions of sync that name a call


@dataclasses.dataclass(frozen=True)
class Strike:
    """Which occurrence of which call is struck, and how."""

    label: str
    occurrence: int  # from 0
    fault: Fault


class Wire:
    """Sees, counts and strikes the calls of the process while `live`."""

    def __init__(self, names: dict[int, str], proxy: Proxy) -> None:
        self._names, self._proxy = names, proxy  # names by the port of the server
        self.prefix = ""
        self.live, self.dead = False, False
        self.struck: dict[Strike, int] = {}  # and the attempt in which it was
        self.calls: list[str] = []
        self._counts: Counter[str] = Counter()
        self._strikes: dict[str, list[Strike]] = {}
        self._delivery = 0
        self._next: Stroke | None = None
        self._used_s: weakref.WeakKeyDictionary[HTTPAdapter, float] = weakref.WeakKeyDictionary()
        self.on_expire: Callable[[str], None] = lambda _: None
        self.error_of: Callable[[str, int], bytes | None] = lambda _name, _status: None
        self.on_sleep: Callable[[float], None] = lambda _: None

    def arm(self, *strikes: Strike) -> None:
        """Begin to count anew, and to wait for the calls that are to be struck."""
        self.calls, self._counts, self._strikes, self.struck = [], Counter(), defaultdict(list), {}
        for strike in strikes:
            self._strikes[strike.label].append(strike)
        self.dead, self._delivery, self._next = False, 0, None

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        """Be live for one attempt of the product."""
        self._delivery += 1
        self.live = True
        try:
            yield
        finally:
            self.live = False

    def decide(self, passing: Passing) -> Stroke | None:  # noqa: ARG002  # what passes was chosen before it left
        """Tell the proxy what becomes of the request that comes next: only struck ones take this way."""
        stroke, self._next = self._next, None
        return stroke

    def carry(self, label: str, call: Callable[[], Any]) -> Any:
        """Let a call of the harness itself pass; part of the face that a pump expects."""
        if self.dead:
            raise Killed(label)
        return call()

    def strikes(self, label: str) -> Fault | None:
        """Count a call; return the fault that strikes it, if one does."""
        if self.dead:
            raise Killed(label)
        number = self._counts[label]
        self._counts[label] += 1
        self.calls.append(label)
        for strike in self._strikes.get(label, ()):
            if number == strike.occurrence:
                self.struck[strike] = self._delivery
                return strike.fault
            if strike.fault.lasting and self.struck.get(strike) == self._delivery:
                return strike.fault
        return None

    def die(self, why: str) -> None:
        """End the process."""
        self.dead = True
        raise Killed(why)

    # -- the adapter --------------------------------------------------------------------------------------------------

    def send(self, original: Callable[..., Any], adapter: HTTPAdapter, request: Any, **options: Any) -> Any:
        """Send a request as the product asked for it, or as the fault wants it."""
        now_s = time.monotonic()
        if now_s - self._used_s.get(adapter, now_s) > KEEP_ALIVE_S:
            adapter.poolmanager.clear()
        self._used_s[adapter] = now_s
        if not self.live:
            return original(adapter, request, **options)
        parts = urlsplit(request.url)
        name = self._names.get(parts.port or 0, parts.netloc)
        path = _ID.sub("*", parts.path.replace(self.prefix, ""))
        path = re.sub(r"^/sandbox[0-9a-f]+", "", path)
        if name in ("queue", "table"):
            path = path.split("(")[0].rstrip("*") or path
        asks = f" _method={found[1]}" if (found := re.search(r"_method=(\w+)", parts.query)) else ""
        label = f"{name} {request.method} {path}{asks} · {caller()}"
        fault = self.strikes(label)
        if fault is None:
            return original(adapter, request, **options)
        return self._strike_http(fault, name, lambda: original(adapter, request, **options), request, options)

    def _strike_http(
        self, fault: Fault, name: str, send: Callable[[], Any], request: Any, options: dict[str, Any]
    ) -> Any:
        match fault.effect:
            case Effect.KILL_BEFORE:
                self.die("before")
            case Effect.KILL_AFTER:
                send().close()
                self.die("after")
            case Effect.EXPIRE:
                self.on_expire(name)
                return send()
            case Effect.REFUSE:
                port = free_ports(1)[0]
            case _:
                port = self._proxy.port_of(name)
                headers = (("Retry-After", str(fault.retry_after_s)),) if fault.retry_after_s is not None else ()
                self._next = Stroke(fault.effect, fault.status, headers, self.error_of(name, fault.status))
        parts = urlsplit(request.url)
        request.url = parts._replace(scheme="http", netloc=f"127.0.0.1:{port}").geturl()
        options["timeout"] = (PATIENCE_S, SILENCE_S if fault.waits else PATIENCE_S)
        try:
            return send()
        finally:
            self._proxy.settle(lambda: self._next is None)

    def sleep(self, seconds: float) -> None:
        """Stand in for a sleep of the product: the clock moves, nobody waits."""
        if self.live:
            self.on_sleep(seconds)
        else:
            _SLEEP(seconds)


_SLEEP = time.sleep


def one_by_one(_: SideBySide, call: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """Stand in for SideBySide.map: the same rules, in one thread, so that every scenario sees the same order."""
    answers, errors = [], []
    for item in items:
        try:
            answers.append(call(item))
        except Exception as exc:
            errors.append(exc)
    if errors:
        raise errors[0]
    return answers


def at_once(_: SideBySide, call: Callable[[], Any]) -> Future[Any]:
    """Stand in for SideBySide.start in the same way: the call has ended when its caller goes on."""
    future: Future[Any] = Future()
    try:
        future.set_result(call())
    except Exception as exc:
        future.set_exception(exc)
    return future


@contextlib.contextmanager
def tapped(wire: Wire) -> Iterator[None]:
    """Have every HTTP call of this process pass the wire, one after another, and no sleep wait."""
    original = HTTPAdapter.send

    def send(adapter: HTTPAdapter, request: Any, **options: Any) -> Any:
        return wire.send(original, adapter, request, **options)

    with (
        mock.patch.object(HTTPAdapter, "send", send),
        mock.patch.object(SideBySide, "map", one_by_one),
        mock.patch.object(SideBySide, "start", at_once),
        mock.patch("time.sleep", wire.sleep),
    ):
        yield


def caller() -> str:
    """Name the functions of the product that make the call in hand: the client's, and the steps that asked for it."""
    client, steps = "", []
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(str(ROOT)):
            part = path[len(str(ROOT)) + 1 : -3]
            name = frame.f_code.co_name
            if part.startswith(("shared/clients/", "shared/state/", "shared/services")):
                if not part.startswith("shared/clients/http") and name not in _PLUMBING and not name.startswith("_"):
                    client = name
            elif part.startswith(("sync/", "web/")) and name not in _PLUMBING and len(steps) < _STEPS:
                step = f"{part.split('/', 1)[1]}.{name}"
                if not steps or steps[-1] != step:
                    steps.append(step)
        frame = frame.f_back
    return " ← ".join([client, *steps])
