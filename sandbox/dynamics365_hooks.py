"""Webhooks of the Dynamics 365 simulator: service endpoints and their steps, and the calls that changes bring about.

They are registered through the Web API like the vendor's own, or with `register_hook`. Delivery is as poor as documented:
60 seconds, one more attempt and only after 502, 503 or 504, no order, failures kept as system jobs. Switches lose,
repeat and mix up calls from a fixed seed, so that a test sees the same each time.
"""

import asyncio
import dataclasses
import random
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

import aiohttp
from aiohttp import web

from sandbox.dynamics365_context import Change, Ids, Image, build_context, write_context
from sandbox.dynamics365_query import Ref, Row
from sandbox.dynamics365_store import GUID, Actor, ApiError
from sandbox.dynamics365_tables import metadata_id
from sandbox.simulator import SANDBOX_PREFIX

if TYPE_CHECKING:
    from sandbox.dynamics365 import Dynamics365

MESSAGES = ("Create", "Update", "Delete", "Close", "Merge")
WITH_STEPS = ("incident", "contact", "account")
TRIED_AGAIN = (502, 503, 504)
SYSTEM_ID = "66666666-0000-0000-0000-0000000000ff"
BY_KEY, BY_HEADER, BY_QUERY = 4, 5, 6
AUTH_TYPES = {"key": BY_KEY, "header": BY_HEADER, "query": BY_QUERY}
USUAL_NAMES = {BY_HEADER: "x-functions-key", BY_QUERY: "key"}
SEED = 20260301


@dataclasses.dataclass
class Switches:
    """What differs between organizations, and what tests want to go wrong; all changeable while the simulator runs."""

    organization: str = "localhost"  # host name that the calls say they come from
    timeout_s: float = 60.0
    retry_wait_s: float = 0.0  # before the one more attempt
    max_body_bytes: int = 256 * 1024
    drop_percent: int = 0  # calls that never leave
    duplicate_percent: int = 0  # calls that are made twice
    delay_s: float = 0.0  # each call waits for a random part of this, so that they overtake each other
    hold: bool = False  # calls wait for `release`


@dataclasses.dataclass(frozen=True)
class Sent:
    """One attempt at a call, or a call that was dropped."""

    at: datetime
    step_id: str
    entity: str
    record_id: str
    message: str
    operation_id: str
    url: str  # without the query, which may hold the key
    headers: dict[str, str]  # without the step's own
    body: str
    attempt: int
    status: int  # 0: no answer
    note: str = ""  # dropped, duplicate, or why there was no answer


@dataclasses.dataclass(frozen=True)
class Call:
    """What is to be sent."""

    step: Row
    url: str
    params: dict[str, str]
    secrets: dict[str, str]  # headers
    headers: dict[str, str]
    body: bytes
    change: Change
    ids: Ids
    wait_s: float = 0.0
    note: str = ""


class Hooks:
    """Sends what the steps ask for, in the background of the simulator's loop."""

    def __init__(self, sim: "Dynamics365") -> None:
        self._sim = sim
        self.switches = Switches()
        self.sent: list[Sent] = []
        self.held: list[Call] = []
        self._secrets: dict[str, str | None] = {}  # endpoint -> authvalue, which nobody can read
        self._random = random.Random(SEED)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._session: aiohttp.ClientSession | None = None
        self._running: set[asyncio.Task[Any]] = set()
        self._lock = threading.Lock()
        self._pending = 0

    def seed(self, number: int) -> None:
        """Begin the chances of losing, repeating and mixing up anew."""
        self._random.seed(number)

    def fill(self) -> None:
        """Write the messages that steps can be registered for."""
        for message in MESSAGES:
            message_id = metadata_id("sdkmessage", message)
            self._sim.insert("sdkmessage", sdkmessageid=message_id, name=message)
            for entity in WITH_STEPS if message in MESSAGES[:3] else WITH_STEPS[:1]:
                self._sim.insert(
                    "sdkmessagefilter",
                    sdkmessagefilterid=metadata_id("sdkmessagefilter", message, entity),
                    name=f"{message} of {entity}",
                    primaryobjecttypecode=entity,
                    sdkmessageid=message_id,
                )

    # -- registration -------------------------------------------------------------------------------------------------

    def register(
        self,
        url: str,
        entity: str,
        messages: Iterable[str] = ("Create", "Update", "Delete"),
        *,
        auth: str = "key",
        value: str = "",
        name: str = "",
        filtering: Iterable[str] = (),
        pre_image: Iterable[str] | None = None,
        post_image: Iterable[str] | None = None,
    ) -> list[str]:
        """Register an endpoint and a step per message, and return the steps' ids; see `Dynamics365.register_hook`."""
        messages, images = tuple(messages), {0: pre_image, 1: post_image}
        if auth not in AUTH_TYPES or entity not in WITH_STEPS or not set(messages) <= set(MESSAGES):
            raise ValueError(
                f"a hook has auth {', '.join(AUTH_TYPES)}, an entity of {', '.join(WITH_STEPS)} and messages of {', '.join(MESSAGES)}"
            )
        kind = AUTH_TYPES[auth]
        if kind != BY_KEY:
            settings = ET.Element("settings")
            ET.SubElement(settings, "setting", name=name or USUAL_NAMES[kind], value=value)
            value = ET.tostring(settings, encoding="unicode")
        endpoint = self._sim.insert(
            "serviceendpoint",
            name=f"Webhook {url}"[:256], url=url, contract=8, messageformat=2, authtype=kind, authvalue=value,
        )  # fmt: skip
        steps = []
        for message in messages:
            step = self._sim.insert(
                "sdkmessageprocessingstep",
                name=f"{message} of {entity}", sdkmessageid=metadata_id("sdkmessage", message),
                sdkmessagefilterid=metadata_id("sdkmessagefilter", message, entity),
                eventhandler=("serviceendpoint", endpoint), stage=40, mode=1, rank=1, supporteddeployment=0,
                filteringattributes=",".join(filtering) or None, asyncautodelete=True,
            )  # fmt: skip
            for image_type, columns in images.items():
                if columns is not None:
                    self._sim.insert(
                        "sdkmessageprocessingstepimage",
                        entityalias="PostImage" if image_type else "PreImage", imagetype=image_type,
                        attributes=",".join(columns) or None, messagepropertyname="Target", sdkmessageprocessingstepid=step,
                    )  # fmt: skip
            steps.append(step)
        return steps

    def clear(self) -> None:
        """Take every step and endpoint away."""
        for table in ("sdkmessageprocessingstepimage", "sdkmessageprocessingstep", "serviceendpoint"):
            for row in self._sim.store.all(table):
                self._sim.delete(table, row[self._sim.store.tables[table].key])

    def _take_secret(self, row_id: str, columns: Iterable[str], before: Row | None) -> None:
        """Check an endpoint that was written and hide its secret, which the vendor never shows again."""
        rows = self._sim.store.data["serviceendpoint"]
        row = rows[row_id]
        secret = row["authvalue"] if "authvalue" in columns else self._secrets.get(row_id)
        try:
            _check_endpoint(row, secret)
        except ApiError:
            if before is None:
                del rows[row_id]
            else:
                rows[row_id] = before
            raise
        self._secrets[row_id] = secret
        rows[row_id] = {**row, "authvalue": None}

    # -- changes ------------------------------------------------------------------------------------------------------

    def on_change(
        self, entity: str, record_id: str, message: str, changed_columns: list[str], before: Row | None
    ) -> None:
        """Call every endpoint with a step for the change; without a running server nobody is called."""
        if entity == "serviceendpoint" and message != "Delete":
            self._take_secret(record_id, changed_columns, before)
        if entity not in WITH_STEPS or self._loop is None:
            return
        store = self._sim.store
        change = Change(
            store.tables[entity], record_id, message, tuple(changed_columns), before,
            None if message == "Delete" else store.find(entity, record_id), store.actor, self._sim.clock.now_s(),
        )  # fmt: skip
        for step in self._steps(change):
            self._post(self._build_call(step, change))

    def _steps(self, change: Change) -> Iterator[Row]:
        message_id = metadata_id("sdkmessage", change.message)
        for step in self._sim.store.all("sdkmessageprocessingstep"):
            message, narrowed, handler = step["sdkmessageid"], step["sdkmessagefilterid"], step["eventhandler"]
            if step["statecode"] != 0 or message is None or message.id != message_id:
                continue
            if handler is None or self._sim.store.find(handler.table, handler.id) is None:
                continue
            if narrowed and narrowed.id != metadata_id("sdkmessagefilter", change.message, change.table.name):
                continue
            wanted = {name.strip() for name in (step["filteringattributes"] or "").split(",") if name.strip()}
            if change.message != "Update" or not wanted or wanted & set(change.columns):
                yield step

    def _build_call(self, step: Row, change: Change) -> Call:
        step_id = step["sdkmessageprocessingstepid"]
        endpoint = self._sim.store.data["serviceendpoint"][step["eventhandler"].id]
        given = change.actor.correlation_id
        ids = Ids(step_id, self._guid(), self._guid(), given.lower() if GUID.fullmatch(given) else self._guid())
        context = build_context(change, ids, self._images(step_id))
        body, stripped = write_context(context, self.switches.max_body_bytes)
        headers = {
            "Content-Type": "application/json",
            "x-ms-dynamics-organization": self.switches.organization,
            "x-ms-dynamics-entity-name": change.table.name,
            "x-ms-dynamics-request-name": change.message,
            "x-ms-correlation-request-id": ids.correlation,
            "x-request-id": self._guid(),
        } | ({"x-ms-dynamics-msg-size-exceeded": "true"} if stripped else {})
        pairs = _read_pairs(endpoint["authtype"], self._secrets.get(endpoint["serviceendpointid"]))
        by_header = endpoint["authtype"] == BY_HEADER
        return Call(
            step, endpoint["url"], {} if by_header else pairs, pairs if by_header else {}, headers, body, change, ids
        )

    def _images(self, step_id: str) -> list[Image]:
        images = []
        for row in self._sim.store.all("sdkmessageprocessingstepimage"):
            if row["sdkmessageprocessingstepid"] == Ref("sdkmessageprocessingstep", step_id):
                columns = tuple(name.strip() for name in (row["attributes"] or "").split(",") if name.strip())
                kind = row["imagetype"]
                images.append(Image(row["entityalias"] or row["name"] or "", kind in (0, 2), kind in (1, 2), columns))
        return images

    def _guid(self) -> str:
        return str(uuid.UUID(int=self._random.getrandbits(128), version=4))

    # -- delivery -----------------------------------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """Return how many calls are under way."""
        return self._pending

    def wait_idle(self, timeout_s: float = 30.0) -> None:
        """Wait, in another thread than the server's, until no call is under way. Raises TimeoutError."""
        ends_at_s = time.monotonic() + timeout_s
        while self._pending:
            if time.monotonic() > ends_at_s:
                raise TimeoutError(f"{self._pending} webhooks are still under way")
            time.sleep(0.002)

    def release(self, *, shuffle: bool = False) -> int:
        """Send the calls that were held, one after the other, mixed up if asked for; return how many."""
        calls, self.held = self.held, []
        if shuffle:
            self._random.shuffle(calls)
        self._start(calls)
        return len(calls)

    def _post(self, call: Call) -> None:
        if self._chance(self.switches.drop_percent):
            self._note(call, 0, 0, "dropped")
            return
        copies = [call]
        if self._chance(self.switches.duplicate_percent):
            copies.append(dataclasses.replace(call, note="duplicate"))
        for copy in copies:
            if self.switches.hold:
                self.held.append(copy)
            else:
                wait_s = self._random.random() * self.switches.delay_s
                self._start([dataclasses.replace(copy, wait_s=wait_s)])

    def _chance(self, percent: int) -> bool:
        return percent > 0 and self._random.randrange(100) < percent

    def _start(self, calls: list[Call]) -> None:
        if self._loop is None or not calls:
            return
        with self._lock:
            self._pending += len(calls)
        self._loop.call_soon_threadsafe(lambda: self._sim.spawn(self._deliver_all(calls)))

    async def _deliver_all(self, calls: list[Call]) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        left = len(calls)
        try:
            for call in calls:
                await self._deliver(call)
                left -= 1
                self._settle(1)
        finally:
            self._settle(left)
            self._running.discard(task)

    def _settle(self, count: int) -> None:
        with self._lock:
            self._pending -= count

    async def _deliver(self, call: Call) -> None:
        if call.wait_s:
            await asyncio.sleep(call.wait_s)
        status, problem = await self._attempt(call, 1)
        if status in TRIED_AGAIN:
            await asyncio.sleep(self.switches.retry_wait_s)
            status, problem = await self._attempt(call, 2)
        if not 200 <= status < 300:
            self._keep_job(call, 31, f"The webhook call failed: {problem or f'status {status}'}.")
        elif not call.step["asyncautodelete"]:
            self._keep_job(call, 30, "")

    async def _attempt(self, call: Call, number: int) -> tuple[int, str]:
        assert self._session is not None
        status, problem = 0, ""
        try:
            async with self._session.post(
                call.url, params=call.params, data=call.body, headers=call.headers | call.secrets, ssl=False,
                allow_redirects=False, timeout=aiohttp.ClientTimeout(total=self.switches.timeout_s),
            ) as response:  # fmt: skip
                status = response.status
        except TimeoutError:
            problem = f"no answer within {self.switches.timeout_s:g} s"
        except (aiohttp.ClientError, ValueError, OSError) as exc:
            problem = type(exc).__name__
        self._note(call, number, status, call.note or problem)
        return status, problem

    def _note(self, call: Call, attempt: int, status: int, note: str) -> None:
        change = call.change
        self.sent.append(
            Sent(self._sim.clock.now(), call.ids.step, change.table.name, change.record_id, change.message,
                 call.ids.operation, call.url.partition("?")[0], call.headers, call.body.decode(), attempt, status, note)
        )  # fmt: skip

    def _keep_job(self, call: Call, status: int, message: str) -> None:
        """Write the system job of a call that failed, or whose step keeps them all."""
        store, now = self._sim.store, self._sim.clock.now_s()
        with store.acting(Actor(SYSTEM_ID)):
            store.create(
                store.tables["asyncoperation"],
                {
                    "asyncoperationid": call.ids.operation if call.note != "duplicate" else self._guid(),
                    "name": call.step["name"], "operationtype": 1, "statecode": 3, "statuscode": status, "startedon": call.change.at,
                    "completedon": now, "messagename": call.change.message, "primaryentitytype": call.change.table.name,
                    "message": message or None, "friendlymessage": message or None, "correlationid": call.ids.correlation,
                    "owningextensionid": Ref("sdkmessageprocessingstep", call.ids.step),
                },
            )  # fmt: skip

    # -- the server's life, and controls ------------------------------------------------------------------------------

    def add_routes(self, routes: web.UrlDispatcher, app: web.Application) -> None:
        """Add the controls below `/_sandbox/hooks`."""
        app.on_startup.append(self._open)
        app.on_cleanup.append(self._close)
        routes.add_get(f"{SANDBOX_PREFIX}hooks", self._show)
        routes.add_post(f"{SANDBOX_PREFIX}hooks", self._register)
        routes.add_delete(f"{SANDBOX_PREFIX}hooks", self._remove_all)
        routes.add_post(f"{SANDBOX_PREFIX}hooks/switches", self._set_switches)
        routes.add_post(f"{SANDBOX_PREFIX}hooks/release", self._release)

    async def _open(self, _app: web.Application) -> None:
        self._loop, self._session = asyncio.get_running_loop(), aiohttp.ClientSession()

    async def _close(self, _app: web.Application) -> None:
        session, self._loop, self._session = self._session, None, None
        tasks = list(self._running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if session is not None:
            await session.close()

    async def _show(self, request: web.Request) -> web.Response:
        names = ("step_id", "entity", "record_id", "message", "operation_id", "url", "attempt", "status", "note")
        sent = [{"at": each.at.isoformat()} | {name: getattr(each, name) for name in names} for each in self.sent]
        steps = [
            {"id": row["sdkmessageprocessingstepid"], "name": row["name"]}
            for row in self._sim.store.all("sdkmessageprocessingstep")
        ]
        facts = {"switches": dataclasses.asdict(self.switches), "pending": self.pending, "held": len(self.held)}
        return web.json_response({"steps": steps, "sent": sent} | facts)

    async def _register(self, request: web.Request) -> web.Response:
        try:
            given = dict(await request.json())
            return web.json_response({"steps": self.register(**given)}, status=201)
        except (ApiError, ValueError, TypeError, KeyError) as exc:
            return _refuse(exc)

    async def _remove_all(self, request: web.Request) -> web.Response:
        self.clear()
        return web.Response(status=204)

    async def _set_switches(self, request: web.Request) -> web.Response:
        """Change switches; besides them `seed`."""
        try:
            given = dict(await request.json())
            seed = given.pop("seed", None)
            self.switches = dataclasses.replace(self.switches, **given)
            if seed is not None:
                self.seed(int(seed))
        except (ValueError, TypeError) as exc:
            return _refuse(exc)
        return web.json_response(dataclasses.asdict(self.switches))

    async def _release(self, request: web.Request) -> web.Response:
        return web.json_response({"released": self.release(shuffle=request.query.get("shuffle") == "true")})


def _check_endpoint(row: Row, secret: str | None) -> None:
    if urlsplit(row["url"] or "").scheme not in {"http", "https"} or not row["contract"]:
        raise ApiError(400, "0x80040203", "An endpoint needs contract 8 (Webhook) and an absolute url.")
    _read_pairs(row["authtype"], secret)


def _read_pairs(kind: int | None, secret: str | None) -> dict[str, str]:
    """Return what an endpoint's secret adds to query or headers."""
    if kind is None or not secret:
        return {}
    if kind == BY_KEY:
        return {"code": secret}
    try:
        return {setting.attrib["name"]: setting.attrib["value"] for setting in ET.fromstring(secret).iter("setting")}
    except (ET.ParseError, KeyError):
        raise ApiError(
            400, "0x80040203", 'authvalue is written <settings><setting name="…" value="…"/></settings>.'
        ) from None


def _refuse(exc: Exception) -> web.Response:
    return web.json_response({"error": getattr(exc, "message", str(exc))}, status=400)
