"""A stand-in for a Marketo instance: identity, leads, companies, describe and usage, as strict as the vendor's.

Nearly every failure is HTTP 200 with an envelope that says so. Beside the vendor's endpoints: a page for people at `/`, a
lead's page at the vendor's address (`/leadDatabase/loadLeadDetail?leadId=…`), and below `/_sandbox/`: `settings`,
`errors` (what the next calls are answered), `tokens`, `records/{leads|companies}[/{id}]`.
Vendor pages: Authentication, Error Codes, Leads, Companies, Usage, Integration Best Practices.
"""

import asyncio
import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl

from aiohttp import web

from sandbox import marketo_page as page
from sandbox.marketo_api import Api, Call
from sandbox.marketo_fields import COMPANY, LEAD, Field, UnfitError
from sandbox.marketo_limits import NOT_COUNTED, Usage
from sandbox.marketo_store import CallError, Record, Records
from sandbox.simulator import Clock, Simulator, json_text

CLIENT_ID, CLIENT_SECRET = "0c0ffee0-0000-4000-8000-00000000c0de", "marketo-sandbox-secret"
API_USER = "concord@example.com"
MAX_BODY_BYTES = 1024 * 1024
MAX_URI_CHARS = 8 * 1024
TABLES = {"leads": LEAD, "lead": LEAD, "companies": COMPANY, "company": COMPANY}
GZIP_FROM_BYTES = 1024


class Switches:
    """What differs between instances, or on a bad day; set as attributes, keyword arguments or `POST /_sandbox/settings`."""

    # identity
    token_life_s: int = 3600
    # rights and modes
    denied: list[str] = []  # noqa: RUF012 # of "leads", "companies", "stats": answered 603; replaced, never changed in place
    crm_sync: bool = False  # native CRM sync: the company interface is closed
    crm_code: str = "1018"  # what it then answers; some instances answer 603
    company_fields_on_lead: bool = False  # company values through Sync Leads: 1021, or accepted for all its leads
    unknown_company_skips: bool = True  # a lead whose externalCompanyId nobody has: 1013, or not linked
    partitions: list[str] = ["Default"]  # noqa: RUF012 # the first takes leads that name none
    partition_required: bool = False
    # load; 0 = no bound
    calls_per_window: int = 100
    window_s: float = 20.0
    concurrent_calls: int = 10
    daily_calls: int = 50_000
    latency_s: float = 0.0  # real seconds that every REST call takes
    race_delay_s: float = 0.0  # real seconds between look-up and insert of createOrUpdate


@dataclasses.dataclass
class ScriptedError:
    """What the next calls are answered instead of the truth, inside HTTP 200."""

    code: str
    message: str = ""
    times: int = 1
    path: str = ""  # regular expression over the path; empty: any
    method: str = ""  # empty: any
    after: bool = False  # the call takes effect all the same
    record: int | None = None  # only this record of the answer is skipped, the call itself is a success
    left: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\d{3,4}", self.code):
            raise ValueError(f"{self.code!r} is not a code")
        self.left = self.times

    def takes(self, method: str, path: str) -> bool:
        """Count a call that matches and tell whether this error strikes it."""
        fits = (not self.method or self.method.upper() == method) and re.search(self.path, path)
        if not fits or not self.left:
            return False
        self.left -= 1
        return True

    @property
    def text(self) -> str:
        """Return the message of the answer."""
        return self.message or _MESSAGES.get(self.code, "Error")


_MESSAGES = {
    "502": "Bad Gateway",
    "604": "Request timed out",
    "606": "Max rate limit '100' exceeded with in '20' secs",
    "607": "Daily quota reached",
    "608": "API Temporarily Unavailable",
    "611": "System error",
    "614": "Invalid Subscription",
    "615": "Concurrent access limit reached",
    "713": "Transient Error",
    "1007": "Multiple lead match lookup criteria",
    "1014": "Failed to create Object",
}


@dataclasses.dataclass
class _Token:
    value: str
    client_id: str
    until: datetime
    expired: bool = False  # by a control, before its time


class Marketo(Switches, Simulator):
    """One simulated instance; see Switches for its keyword arguments."""

    name = "marketo"

    def __init__(self, clock: Clock | None = None, **switches: Any) -> None:
        self.oauth_clients = {CLIENT_ID: CLIENT_SECRET}
        self.errors: list[ScriptedError] = []
        self._tokens: dict[str, _Token] = {}
        self._issued = 0
        self._answered = 0
        super().__init__(clock)
        self.configure(switches)
        self.records = Records(self.clock, self)
        self.usage = Usage(self.clock, self)
        self.api = Api(self.records, self.usage, self)

    # -- for tests ----------------------------------------------------------------------------------------------------

    def insert(self, table: str, at: datetime | None = None, **fields: Any) -> int:
        """Create a record as a person does and return its id; leads may share an email. Raises ValueError."""
        with self.records.lock:
            return self._person(lambda: self.records.insert(TABLES[table], fields, at))

    def update(self, table: str, number: int, at: datetime | None = None, **fields: Any) -> None:
        """Change a record as a person does; raises as insert does, KeyError when there is none."""
        with self.records.lock:
            self._person(lambda: self.records.update(TABLES[table], number, fields, at))

    def delete(self, table: str, number: int) -> None:
        """Remove a record as a person does, a company with its leads."""
        with self.records.lock:
            self.records.delete(TABLES[table], number)

    def rows(self, table: str, **equals: Any) -> list[Record]:
        """Return the records whose fields equal these values, with every field, by id; leads show their company."""
        name = TABLES[table]
        with self.records.lock:
            found = self.records.companies() if name == COMPANY else list(self.records.tables[LEAD].values())
            blank = dict.fromkeys(self.records.fields[name])
            rows = [blank | self.records.show(name, record) for record in found]
        return sorted((r for r in rows if all(r[k] == v for k, v in equals.items())), key=lambda row: row["id"])

    def add_field(self, table: str, field: Field) -> None:
        """Give the instance a custom field."""
        self.records.fields[TABLES[table]][field.name] = field

    def script_error(self, code: str, **facts: Any) -> ScriptedError:
        """Plan what the next calls are answered; see ScriptedError for the facts."""
        error = ScriptedError(str(code), **facts)
        self.errors.append(error)
        return error

    def configure(self, switches: Mapping[str, Any]) -> None:
        """Set switches by name; raises ValueError for an unknown one or a value of the wrong type, and then sets none."""
        known = {name: type(getattr(Switches, name)) for name in Switches.__annotations__}
        for name, value in switches.items():
            if name not in known:
                raise ValueError(f"{name} is no switch of this instance; there are {', '.join(sorted(known))}")
            fits = isinstance(value, (int, float) if known[name] is float else known[name])
            if not fits or (isinstance(value, bool) and known[name] is not bool):
                raise ValueError(f"{name} must be {known[name].__name__}, not {value!r}")
        for name, value in switches.items():
            setattr(self, name, value)

    def settings(self) -> dict[str, Any]:
        """Return all switches as they are set."""
        return {name: getattr(self, name) for name in Switches.__annotations__}

    def expire_tokens(self) -> None:
        """Let every token that was given out expire: 602."""
        for token in self._tokens.values():
            token.expired = True

    def invalidate_tokens(self) -> None:
        """Forget every token that was given out: 601."""
        self._tokens.clear()

    @staticmethod
    def _person(work: Any) -> Any:
        try:
            return work()
        except UnfitError as exc:
            raise ValueError(f"{exc.code} {exc.message}") from exc

    # -- routes -------------------------------------------------------------------------------------------------------

    def add_routes(self, routes: web.UrlDispatcher) -> None:
        """Add the vendor's endpoints, the pages and the controls."""
        routes.add_route("*", "/identity/oauth/token", self._identity)
        routes.add_route("*", "/rest/{tail:.*}", self._rest)
        routes.add_get("/", self._home)
        routes.add_get("/leadDatabase/loadLeadDetail", self._lead_page)
        routes.add_get("/companies/{id}", self._company_page)
        routes.add_get("/_sandbox/settings", self._get_settings)
        routes.add_post("/_sandbox/settings", self._post_settings)
        routes.add_get("/_sandbox/errors", self._get_errors)
        routes.add_post("/_sandbox/errors", self._post_error)
        routes.add_delete("/_sandbox/errors", self._clear_errors)
        routes.add_post("/_sandbox/tokens", self._post_tokens)
        routes.add_get("/_sandbox/records/{table}", self._get_records)
        routes.add_post("/_sandbox/records/{table}", self._post_record)
        routes.add_patch("/_sandbox/records/{table}/{id}", self._patch_record)
        routes.add_delete("/_sandbox/records/{table}/{id}", self._delete_record)

    def error_response(self, status: int) -> web.Response:
        """Return the gateway's page for a status: what carries an error code is answered with 200."""
        phrase = HTTPStatus(status).phrase
        text = f"<html><head><title>{status} {phrase}</title></head><body><h1>{phrase}</h1></body></html>"
        return web.Response(status=status, text=text, content_type="text/html")

    # -- identity -----------------------------------------------------------------------------------------------------

    async def _identity(self, request: web.Request) -> web.Response:
        if request.method not in ("GET", "POST"):
            return self.error_response(405)
        asked = request.query
        client_id = asked.get("client_id", "")
        if asked.get("grant_type") != "client_credentials":
            return _refused("unauthorized", "grant_type must be client_credentials")
        if not client_id or self.oauth_clients.get(client_id) != asked.get("client_secret"):
            return _refused("invalid_client", "Bad client credentials")
        token = self._current_token(client_id)
        left_s = int((token.until - self.clock.now()).total_seconds())
        body = {"access_token": token.value, "token_type": "bearer", "expires_in": left_s, "scope": API_USER}
        return web.json_response(body)

    def _current_token(self, client_id: str) -> _Token:
        """Return the client's token as long as it lives: all processes of one client share it."""
        for token in self._tokens.values():
            if token.client_id == client_id and self._lives(token):
                return token
        self._issued += 1
        digest = hashlib.sha256(f"{client_id}:{self._issued}".encode()).hexdigest()
        until = self.clock.now() + timedelta(seconds=self.token_life_s)
        token = _Token(f"{digest[:8]}-{digest[8:12]}-4{digest[13:16]}-{digest[16:28]}:sn", client_id, until)
        self._tokens[token.value] = token
        return token

    def _lives(self, token: _Token) -> bool:
        return not token.expired and token.until > self.clock.now()

    def _check_token(self, request: web.Request) -> None:
        scheme, _, value = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not value.strip():  # a parameter is not looked at any more
            raise CallError("600", "Access token not specified")
        token = self._tokens.get(value.strip())
        if token is None:
            raise CallError("601", "Access token invalid")
        if not self._lives(token):
            raise CallError("602", "Access token expired")

    # -- REST ---------------------------------------------------------------------------------------------------------

    async def _rest(self, request: web.Request) -> web.Response:
        body = await request.read()
        if len(request.raw_path) > MAX_URI_CHARS:
            return self.error_response(414)
        if len(body) > MAX_BODY_BYTES:
            return self.error_response(413)
        self.usage.enter()
        self.usage.take(API_USER)
        try:
            members, success = await self._work(request, body), True
        except CallError as exc:
            self.usage.note_error(exc.code)
            if exc.code in NOT_COUNTED:
                self.usage.give_back(API_USER)
            members, success = {"errors": [{"code": exc.code, "message": exc.message}]}, False
        finally:
            self.usage.leave()
        return self._envelope(request, members, success)

    async def _work(self, request: web.Request, body: bytes) -> dict[str, Any]:
        self._check_token(request)
        if refused := self.usage.refuse():
            raise CallError(*refused)
        if self.latency_s:
            await asyncio.sleep(self.latency_s)
        call = _read_call(request, body)
        scripted = next((e for e in self.errors if e.takes(request.method, request.path)), None)
        if scripted is None:
            return await self.api.handle(call)
        if scripted.record is not None:
            return await self._skip_one(call, scripted)
        if scripted.after:
            await self.api.handle(call)
        raise CallError(scripted.code, scripted.text)

    async def _skip_one(self, call: Call, scripted: ScriptedError) -> dict[str, Any]:
        """Work a sync without one of its records, which the answer then shows as skipped in its place."""
        body, at = call.json(), scripted.record or 0
        inputs = call.inputs(body)
        rest = inputs[:at] + inputs[at + 1 :]
        left = dataclasses.replace(call, body=json.dumps(body | {"input": rest}).encode())
        items = (await self.api.handle(left))["result"] if rest else []
        skipped = {"status": "skipped", "reasons": [{"code": scripted.code, "message": scripted.text}]}
        items = [*items[:at], skipped, *items[at:]]
        if "companies" in call.path:
            items = [item | {"seq": seq} for seq, item in enumerate(items)]
        return {"result": items}

    def _envelope(self, request: web.Request, members: dict[str, Any], success: bool) -> web.Response:
        self._answered += 1
        stamp = int(self.clock.now().timestamp() * 1000)
        envelope = {"requestId": f"{self._answered:x}#{stamp:x}", "success": success} | members
        text = json_text(envelope)
        response = web.Response(text=text, content_type="application/json")
        if len(text) >= GZIP_FROM_BYTES and "gzip" in request.headers.get("Accept-Encoding", ""):
            response.enable_compression(web.ContentCoding.gzip)
        return response

    # -- pages --------------------------------------------------------------------------------------------------------

    async def _home(self, request: web.Request) -> web.Response:
        with self.records.lock:
            text = page.home(
                self.records, self.usage.today(), request.query.get("q", ""), request.query.get("watch") == "1"
            )
        return web.Response(text=text, content_type="text/html")

    async def _lead_page(self, request: web.Request) -> web.Response:
        return self._record_page(LEAD, request.query.get("leadId", ""))

    async def _company_page(self, request: web.Request) -> web.Response:
        return self._record_page(COMPANY, request.match_info["id"])

    def _record_page(self, table: str, number: str) -> web.Response:
        with self.records.lock:
            text = page.record(self.records, table, number)
        return web.Response(text=text or page.missing(), status=200 if text else 404, content_type="text/html")

    # -- controls -----------------------------------------------------------------------------------------------------

    async def _get_settings(self, request: web.Request) -> web.Response:
        return web.json_response(self.settings())

    async def _post_settings(self, request: web.Request) -> web.Response:
        body = await _read_object(request)
        return _admin(lambda: self.configure(body) or self.settings())

    async def _get_errors(self, request: web.Request) -> web.Response:
        return web.json_response([dataclasses.asdict(error) for error in self.errors])

    async def _post_error(self, request: web.Request) -> web.Response:
        body = await _read_object(request)
        return _admin(lambda: dataclasses.asdict(self.script_error(**body)), 201)

    async def _clear_errors(self, request: web.Request) -> web.Response:
        self.errors.clear()
        return web.Response(status=204)

    async def _post_tokens(self, request: web.Request) -> web.Response:
        """Void the tokens: `{"make": "expired"}` (602) or `{"make": "invalid"}` (601)."""
        make = {"expired": self.expire_tokens, "invalid": self.invalidate_tokens}
        asked = str((await _read_object(request)).get("make"))
        if asked not in make:
            return web.json_response({"error": f"make is one of {', '.join(make)}"}, status=400)
        make[asked]()
        return web.Response(status=204)

    async def _get_records(self, request: web.Request) -> web.Response:
        return _admin(lambda: self.rows(request.match_info["table"], **request.query))

    async def _post_record(self, request: web.Request) -> web.Response:
        body, table = await _read_object(request), request.match_info["table"]
        return _admin(lambda: {"id": self.insert(table, **body)}, 201)

    async def _patch_record(self, request: web.Request) -> web.Response:
        body, table, number = await _read_object(request), request.match_info["table"], request.match_info["id"]
        return _admin(lambda: self.update(table, int(number), **body) or {"id": int(number)})

    async def _delete_record(self, request: web.Request) -> web.Response:
        table, number = request.match_info["table"], request.match_info["id"]
        return _admin(lambda: self.delete(table, int(number)) or {})


def _read_call(request: web.Request, body: bytes) -> Call:
    """Read the parameters; a POST that asks for `_method=GET` carries them as a form (in practice the word itself too)."""
    content_type = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    params, method = dict(request.query), request.method
    if method == "POST" and content_type == "application/x-www-form-urlencoded":
        form = dict(parse_qsl(body.decode("utf-8", "replace")))
        if (params.get("_method") or form.get("_method") or "").upper() == "GET":
            method, params = "GET", params | form
    path = request.path.removeprefix("/rest/v1") if request.path.startswith("/rest/v1/") else ""
    return Call(method, path, params, content_type, body)


async def _read_object(request: web.Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except ValueError as exc:
        raise web.HTTPBadRequest(text="not JSON") from exc
    if not isinstance(body, dict):
        raise web.HTTPBadRequest(text="not an object")
    return body


def _refused(error: str, description: str) -> web.Response:
    return web.json_response({"error": error, "error_description": description}, status=401)


def _admin(work: Any, status: int = 200) -> web.Response:
    try:
        return web.json_response(work(), status=status)
    except KeyError as exc:
        return web.json_response({"error": f"there is no {exc.args[0]}"}, status=404)
    except (TypeError, ValueError) as exc:
        return web.json_response({"error": str(exc)}, status=400)
