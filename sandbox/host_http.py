"""The host's HTTP side: the functions' routes, `/admin` for running one by hand, and the sandbox's look at its workers."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from aiohttp import web

from sandbox.host_messages import Call, FunctionFacts, HttpAnswer, HttpCall, QueueCall, TimerCall
from sandbox.host_pool import InvocationError
from sandbox.host_routes import Route, find_route

MAX_BODY_BYTES = 104_857_600
LONGEST_ANSWER_S = 230.0  # Azure's front end hangs up then; the function goes on
MESSAGE_LIFE = timedelta(days=7)
log = logging.getLogger("host")

Invoke = Callable[[str, Call], "Future[Any]"]


class HttpFrontend:
    """The aiohttp application in front of the functions."""

    def __init__(
        self,
        functions: Sequence[FunctionFacts],
        routes: Sequence[Route],
        invoke: Invoke,
        invoke_by_hand: Invoke,
        state: Callable[[], dict[str, Any]],
        key: str | None = None,
        answer_limit_s: float = LONGEST_ANSWER_S,
    ) -> None:
        self._functions = {function.name.lower(): function for function in functions}
        self._routes, self._invoke, self._invoke_by_hand, self._state = routes, invoke, invoke_by_hand, state
        self._key, self._answer_limit_s = key, answer_limit_s
        self.app = web.Application(client_max_size=MAX_BODY_BYTES)
        self.app.router.add_get("/_sandbox/host", self._show_state)
        self.app.router.add_get("/admin/host/status", self._show_status)
        self.app.router.add_post("/admin/functions/{name}", self._run_by_hand)
        self.app.router.add_route("*", "/{path:.*}", self._call_function)

    async def _call_function(self, request: web.Request) -> web.StreamResponse:
        found = find_route(self._routes, request.method, request.rel_url.raw_path)
        if found is None:
            return web.Response(status=404)
        route, route_params = found
        if not self._may_call(request, route.auth_level):
            return web.Response(status=401)
        call = HttpCall(
            method=request.method,
            url=str(request.url),
            headers=_join(request.headers),
            query=_join(request.query),
            route_params=route_params,
            body=await request.read(),
        )
        try:
            future = asyncio.wrap_future(self._invoke(route.function, call))
            answer = await asyncio.wait_for(asyncio.shield(future), self._answer_limit_s)
        except InvocationError as exc:
            log.error("function %s failed: %s", route.function, exc)
            return web.Response(status=500)
        except TimeoutError:
            future.add_done_callback(lambda late: late.exception())  # nobody waits for its answer any more
            log.error("function %s did not answer within %.0f s", route.function, self._answer_limit_s)
            return web.Response(status=502)
        return _respond(answer)

    def _may_call(self, request: web.Request, auth_level: str) -> bool:
        if self._key is None or auth_level == "anonymous":
            return True
        return self._key in (request.query.get("code"), request.headers.get("x-functions-key"))

    async def _run_by_hand(self, request: web.Request) -> web.Response:
        function = self._functions.get(request.match_info["name"].lower())
        if function is None:
            return web.Response(status=404)
        if not self._may_call(request, "admin"):
            return web.Response(status=401)
        try:
            given = (await request.json()).get("input", "") if request.can_read_body else ""
        except (ValueError, AttributeError):
            return web.Response(status=400, text='the body must be JSON such as {"input": ""}')
        if function.trigger["type"] == "httpTrigger":
            return web.Response(status=400, text=f"{function.name} is an HTTP function: call its route")
        timer = function.trigger["type"] == "timerTrigger"
        call = TimerCall(past_due=False, status={}) if timer else _message(given)
        self._invoke_by_hand(function.name, call).add_done_callback(lambda done: _log_failure(function.name, done))
        return web.Response(status=202)

    async def _show_status(self, request: web.Request) -> web.Response:
        return web.json_response({"state": "Running"})

    async def _show_state(self, request: web.Request) -> web.Response:
        return web.json_response(self._state())


def _join(values: Mapping[str, str]) -> dict[str, str]:
    """Return one text per name: repeated ones joined by a comma, empty ones left out, as the host hands them to Python."""
    joined: dict[str, str] = {}
    for name, value in values.items():
        joined[name] = f"{joined[name]},{value}" if name in joined else value
    return {name: value for name, value in joined.items() if value}


def _respond(answer: HttpAnswer) -> web.Response:
    response = web.Response(status=answer.status, body=answer.body or None)
    response.headers.popall("Content-Type", None)
    for name, value in answer.headers:
        response.headers.add(name, value)
    return response


def _message(body: str) -> QueueCall:
    now = datetime.now(UTC)
    return QueueCall(
        body=body,
        id=str(uuid4()),
        dequeue_count=1,
        pop_receipt="by-hand",
        insertion_time=now.isoformat(),
        expiration_time=(now + MESSAGE_LIFE).isoformat(),
        next_visible_time=now.isoformat(),
    )


def _log_failure(function: str, done: "Future[Any]") -> None:
    if exc := done.exception():
        log.error("function %s, run by hand, failed: %s", function, exc)
