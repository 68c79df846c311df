"""A stand-in for a ServiceNow instance: OAuth, Table, Aggregate, Attachment and Batch API, as strict as the vendor's.

Beside the vendor's endpoints: a page for people at `/`, the record's own page at the vendor's address
(`/nav_to.do?uri=incident.do?sys_id=…`), and below `/_sandbox/`: `settings`, `users`, `hooks`,
`records/{table}[/{sys_id}]`.
Vendor pages: Table API, REST API response codes, inbound REST rate limiting, OAuth API, encoded query strings.
"""

import asyncio
import base64
import binascii
import contextlib
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from aiohttp import web
from multidict import CIMultiDict, MultiDict
from yarl import URL

from sandbox import servicenow_page as page
from sandbox.servicenow_access import ApiUser, TokenDesk, admin_user, read_basic, read_user
from sandbox.servicenow_answers import Answer, Call, failure
from sandbox.servicenow_dictionary import TABLES
from sandbox.servicenow_hooks import Hook, Hooks
from sandbox.servicenow_query import Row
from sandbox.servicenow_store import Records, RefusedError, Rules
from sandbox.servicenow_tables import TableApi
from sandbox.simulator import Clock, Simulator

USER_NAME, PASSWORD = "concord.integration", "integration-password"
ADMIN_NAME, ADMIN_PASSWORD = "admin", "admin-password"
CLIENT_ID, CLIENT_SECRET = "concord-client", "concord-secret"

SESSION_QUEUE = 10  # requests of one session that may wait
_API_PATH = re.compile(r"/api/now(?:/v(?P<version>[12]))?/(?P<api>table|stats|attachment|batch)(?:/(?P<rest>.*))?$")
_API_NAMES = {"table": "Table API", "stats": "Aggregate API", "attachment": "Attachment API", "batch": "Batch API"}
_CANCELLED = "Transaction cancelled: maximum execution time exceeded"


class Switches(Rules):
    """What differs between instances, or on a bad day; set as attributes, keyword arguments or `POST /_sandbox/settings`."""

    # OAuth
    password_grant: bool = True
    client_credentials_grant: bool = False  # off on a new instance
    application_user: str = USER_NAME  # runs the calls of client_credentials; "" = none set
    access_life_s: int = 1800
    refresh_life_s: int = 8_640_000
    refresh_echoes_token: bool = True  # the refresh grant repeats the refresh token
    # rights and queries
    hide_inactive_users: bool = False  # a before-query rule: who is no admin finds only active sys_user rows
    enforce_query_acl: bool = False  # a filter on an unreadable field is refused instead of ignored
    invalid_query_returns_no_rows: bool = False
    not_equal_matches_empty: bool = False
    shuffle_ties: bool = False  # rows that the query does not order come in another order each time
    system_time_zone: str = "America/Los_Angeles"  # for users without a zone of their own
    # load
    pool_size: int = 4  # API_INT threads; 0 = no limit
    pool_queue: int = 50
    rate_limit_per_hour: int = 0  # per user and API; 0 = none
    session_wait_s: float = 30.0  # a request that waits longer for its session is dropped with 202
    latency_s: float = 0.0  # real seconds that every API request takes, inside its thread
    transaction_limit_s: float = 60.0
    row_cost_s: float = 0.0  # simulated seconds per row delivered; over the limit the transaction is cancelled
    cancelled_as: str = "500"  # or "truncated" or "both": 200 with half a body, 200 with result and error
    batch_limit_s: float = 30.0
    batch_item_cost_s: float = 0.0  # simulated seconds per batch item; what lies over the limit is unserviced
    max_url_chars: int = 16_384
    # what happens after our write
    touch_after_write: dict[str, str] = {}  # noqa: RUF012 # replaced as a whole, never changed in place
    attachment_limit_bytes: int = 1024 * 1024 * 1024


def _switch_types() -> dict[str, type]:
    names = [name for cls in (Rules, Switches) for name in cls.__annotations__]
    return {name: type(getattr(Switches, name)) for name in names}


class ServiceNow(Switches, Simulator):
    """One simulated instance; see Switches for its keyword arguments."""

    name = "servicenow"

    def __init__(self, clock: Clock | None = None, instance: str = "servicenow", **switches: Any) -> None:
        self._sessions: dict[str, _Session] = {}
        self._taken = 0  # threads of the pool and places in its queue
        self._threads: tuple[int, asyncio.Semaphore] | None = None
        self._counts: dict[tuple[str, str, int], int] = {}
        self._transactions = 0
        self.instance = self.name = instance
        super().__init__(clock)
        self.configure(switches)
        self.records = Records(self.clock, self, instance)
        self.tokens = TokenDesk(self.clock)
        self.oauth_clients = {CLIENT_ID: CLIENT_SECRET}
        self.users: dict[str, ApiUser] = {}
        self.scripts: list[str] = []  # server-side code that values in queries made run
        self.table_api = TableApi(self)
        self.outbound = Hooks(self)
        self.add_user(admin_user(ADMIN_NAME, ADMIN_PASSWORD), first_name="System", last_name="Administrator")
        self.add_user(ApiUser(USER_NAME, PASSWORD), first_name="Concord", last_name="Integration")

    # -- for tests ----------------------------------------------------------------------------------------------------

    @property
    def tables(self) -> dict[str, dict[str, Row]]:
        """Return all rows by table and sys_id; to be read, not changed."""
        return self.records.tables

    def insert(self, table: str, by: str = "admin", at: datetime | None = None, **fields: str) -> str:
        """Create a record as a person does, through all rules, and return its sys_id; `at` is its time of creation.

        Raises RefusedError when a rule says no, KeyError for a table or field that does not exist.
        """
        self._check_names(table, fields)
        with self.records.lock:
            return self.records.insert_row(table, fields, by, at)["sys_id"]

    def update(self, table: str, sys_id: str, by: str = "agent", at: datetime | None = None, **fields: str) -> bool:
        """Change a record as a person does and tell whether anything changed; raises as insert does."""
        self._check_names(table, fields)
        with self.records.lock:
            row = self.records.find(table, sys_id)
            if row is None:
                raise KeyError(f"{table} has no record {sys_id}")
            return self.records.update_row(self.records.class_of(table, row), row, fields, by, at)

    def delete(self, table: str, sys_id: str, by: str = "admin") -> None:
        """Remove a record as a person does."""
        with self.records.lock:
            self.records.delete_row(table, self.tables[table][sys_id], by)

    def rows(self, table: str, **equals: str) -> list[Row]:
        """Return the rows of a table (and of those that extend it) whose fields equal these values, by sys_id."""
        self._check_names(table, equals)
        with self.records.lock:
            return [row for row in self.records.rows_of(table) if all(row[k] == v for k, v in equals.items())]

    def add_user(self, user: ApiUser, **fields: str) -> ApiUser:
        """Let an account use the API; it gets a row in sys_user unless it has one."""
        if not self.rows("sys_user", user_name=user.user_name):
            named = {"last_name": user.user_name, "internal_integration_user": "true"} | fields
            self.insert("sys_user", by="system", user_name=user.user_name, **named)
        self.users[user.user_name] = user
        return user

    def configure(self, switches: Mapping[str, Any]) -> None:
        """Set switches by name; raises ValueError for an unknown one or a value of the wrong type, and then sets none."""
        known = _switch_types()
        for name, value in switches.items():
            if name not in known:
                raise ValueError(f"{name} is no switch of this instance; there are {', '.join(sorted(known))}")
            wanted = known[name]
            fits = isinstance(value, (int, float) if wanted is float else wanted)
            if not fits or (isinstance(value, bool) and wanted is not bool):
                raise ValueError(f"{name} must be {wanted.__name__}, not {value!r}")
        for name, value in switches.items():
            setattr(self, name, value)

    def settings(self) -> dict[str, Any]:
        """Return all switches as they are set."""
        return {name: getattr(self, name) for name in _switch_types()}

    def expire_tokens(self) -> None:
        """Void every access token; refresh tokens stay."""
        self.tokens.expire_access()

    # -- routes -------------------------------------------------------------------------------------------------------

    def add_routes(self, routes: web.UrlDispatcher) -> None:
        """Add the vendor's endpoints, the page and the controls."""
        routes.add_post("/oauth_token.do", self._oauth)
        routes.add_route("*", "/api/{tail:.*}", self._api)
        routes.add_get("/", self._home)
        routes.add_get("/nav_to.do", self._record_page)
        routes.add_get("/{table}.do", self._record_page)
        routes.add_post("/_sandbox/edit/{table}/{sys_id}", self._edit)
        routes.add_get("/_sandbox/settings", self._get_settings)
        routes.add_post("/_sandbox/settings", self._post_settings)
        routes.add_post("/_sandbox/users", self._post_user)
        routes.add_post("/_sandbox/hooks", self._post_hook)
        routes.add_delete("/_sandbox/hooks", self._clear_hooks)
        routes.add_get("/_sandbox/records/{table}", self._get_records)
        routes.add_post("/_sandbox/records/{table}", self._post_record)
        routes.add_patch("/_sandbox/records/{table}/{sys_id}", self._patch_record)
        routes.add_delete("/_sandbox/records/{table}/{sys_id}", self._delete_record)

    def error_response(self, status: int) -> web.Response:
        """Return the vendor's error body for a status; gateway errors are HTML."""
        match status:
            case 401:
                answer = _unauthenticated()
            case 404:
                answer = failure(404, "No Record found", "Record doesn't exist or ACL restricts the record retrieval")
            case 403:
                answer = failure(403, "User Not Authorized", "Failed API level ACL Validation")
            case 405:
                answer = failure(405, "Method not supported", None)
            case 500:
                answer = _cancelled()
            case 502 | 503 | 504 | 429:
                return _html(status)
            case _:
                answer = failure(status, HTTPStatus(status).phrase, None)
        return _response(answer)

    # -- OAuth --------------------------------------------------------------------------------------------------------

    async def _oauth(self, request: web.Request) -> web.Response:
        if request.content_type != "application/x-www-form-urlencoded":
            return _denied()
        fields = {
            name: values[-1] for name, values in parse_qs((await request.read()).decode("utf-8", "replace")).items()
        }
        client_id = fields.get("client_id", "")
        if not client_id or self.oauth_clients.get(client_id) != fields.get("client_secret"):
            return _denied()
        match fields.get("grant_type"):
            case "password":
                user = self._check_password(fields.get("username", ""), fields.get("password", ""), interactive=True)
                user_name = user.user_name if user and self.password_grant else ""
            case "client_credentials":
                usable = self.client_credentials_grant and self.application_user in self.users
                user_name = self.application_user if usable and self._is_usable(self.application_user) else ""
            case "refresh_token":
                token = self.tokens.refresh_owner(client_id, fields.get("refresh_token", ""))
                user_name = token.user_name if token and self._is_usable(token.user_name) else ""
            case _:
                user_name = ""
        if not user_name:
            return _denied()
        return self._grant(fields["grant_type"], client_id, user_name)

    def _grant(self, grant: str, client_id: str, user_name: str) -> web.Response:
        access = self.tokens.access(client_id, user_name, self.access_life_s)
        body: dict[str, Any] = {"access_token": access.value}
        if grant == "password" or (grant == "refresh_token" and self.refresh_echoes_token):
            body["refresh_token"] = self.tokens.refresh(client_id, user_name, self.refresh_life_s).value
        remaining_s = int((access.until - self.clock.now()).total_seconds())
        return web.json_response(body | {"scope": "useraccount", "token_type": "Bearer", "expires_in": remaining_s})

    def _check_password(self, user_name: str, password: str, interactive: bool = False) -> ApiUser | None:
        user = self.users.get(user_name)
        good = user is not None and user.password == password and self._is_usable(user_name, interactive)
        return user if good else None

    def _is_usable(self, user_name: str, interactive: bool = False) -> bool:
        row = next(iter(self.records.lookup("sys_user", "user_name", [user_name.lower()]) or ()), None)
        if row is None or row["active"] != "true" or row["locked_out"] == "true":
            return False
        return not (interactive and row["web_service_access_only"] == "true")

    def _authenticate(self, request: web.Request) -> ApiUser | None:
        scheme, _, credentials = request.headers.get("Authorization", "").partition(" ")
        match scheme.lower():
            case "bearer":
                user_name = self.tokens.owner(credentials.strip())
                return self.users.get(user_name) if user_name and self._is_usable(user_name) else None
            case "basic":
                pair = read_basic(credentials.strip())
                return self._check_password(*pair) if pair else None
        return None

    # -- the API: session, thread, rate, call -------------------------------------------------------------------------

    async def _api(self, request: web.Request) -> web.Response:
        if len(request.raw_path) > self.max_url_chars:
            return _html(414)
        user = self._authenticate(request)
        if user is None:
            return _response(_unauthenticated())
        call = Call(
            method=request.method,
            url=request.url,
            query=MultiDict(request.query),
            headers=CIMultiDict(request.headers),
            body=await request.read(),
            user=user,
        )
        session_id = request.cookies.get("JSESSIONID")
        if session_id is not None:
            return await self._in_session(session_id, call)
        response = await self._in_thread(call)
        self._transactions += 1
        fresh = hashlib.md5(f"session:{self._transactions}".encode(), usedforsecurity=False).hexdigest().upper()
        response.set_cookie("JSESSIONID", fresh, path="/", httponly=True)
        return response

    async def _in_session(self, session_id: str, call: Call) -> web.Response:
        """Work a session's requests one after the other; what would wait too long or in too long a queue is dropped."""
        session = self._sessions.setdefault(session_id, _Session())
        if session.waiting >= SESSION_QUEUE:
            return web.Response(status=202)
        session.waiting += 1
        try:
            async with asyncio.timeout(self.session_wait_s):
                await session.lock.acquire()
        except TimeoutError:
            return web.Response(status=202)
        finally:
            session.waiting -= 1
        try:
            return await self._in_thread(call)
        finally:
            session.lock.release()

    async def _in_thread(self, call: Call) -> web.Response:
        if self.pool_size and self._taken >= self.pool_size + self.pool_queue:
            return _html(429)
        self._taken += 1
        try:
            async with self._pool():
                if self.latency_s:
                    await asyncio.sleep(self.latency_s)
                return self._limited(call)
        finally:
            self._taken -= 1

    def _pool(self) -> contextlib.AbstractAsyncContextManager[Any]:
        if not self.pool_size:
            return contextlib.nullcontext()
        if self._threads is None or self._threads[0] != self.pool_size:
            self._threads = self.pool_size, asyncio.Semaphore(self.pool_size)
        return self._threads[1]

    def _limited(self, call: Call) -> web.Response:
        match = _API_PATH.match(call.url.path)
        if not self.rate_limit_per_hour or match is None:
            return _response(self.handle(call))
        api, now_s = _API_NAMES[match["api"]], int(self.clock.now().timestamp())
        reset_s = (now_s // 3600 + 1) * 3600
        key = (call.user.user_name, api, reset_s)
        self._counts[key] = self._counts.get(key, 0) + 1
        limit = self.rate_limit_per_hour
        rule = hashlib.md5(f"rule:{api}".encode(), usedforsecurity=False).hexdigest()
        headers = {"X-RateLimit-Limit": str(limit), "X-RateLimit-Reset": str(reset_s), "X-RateLimit-Rule": rule}
        if self._counts[key] <= limit:
            answer = self.handle(call)
        else:
            answer = failure(429, "Rate limit exceeded", f"Rate limit of {limit} requests per hour for {api} exceeded")
            answer.headers["Retry-After"] = str(reset_s - now_s)
        answer.headers.update(headers)
        return _response(answer)

    def handle(self, call: Call) -> Answer:
        """Work one API call; also the items of a batch come here."""
        match = _API_PATH.match(call.url.path)
        with self.records.lock:
            try:
                if match is None:
                    return _no_resource(call)
                return self._dispatch(call, match["api"], match["version"] or "", match["rest"] or "")
            except RefusedError as exc:
                return failure(exc.status, exc.message, exc.detail)

    def _dispatch(self, call: Call, api: str, version: str, rest: str) -> Answer:
        if call.method == "POST" and (override := call.headers.get("X-HTTP-Method-Override")):
            call.method = override.upper()
        parts = rest.strip("/").split("/") if rest.strip("/") else []
        match api, parts:
            case "table", [table]:
                return self.table_api.collection(call, table, version)
            case "table", [table, sys_id]:
                return self.table_api.record(call, table, sys_id)
            case "stats", [table]:
                return self.table_api.stats(call, table)
            case "attachment", _:
                return self.table_api.attachments.handle(call, parts)
            case "batch", []:
                return self._batch(call)
        return _no_resource(call)

    # -- Batch API ----------------------------------------------------------------------------------------------------

    def _batch(self, call: Call) -> Answer:
        if call.method != "POST":
            return failure(405, "Method not supported", None)
        if call.content_type != "application/json":
            return failure(415, "Unsupported media type", None)
        body = call.json()
        items = body.get("rest_requests") if isinstance(body, dict) else None
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            return failure(500, "Exception while reading request", "rest_requests must be a list of requests")
        done, undone, spent_s = [], [], 0.0
        for item in items:
            spent_s += self.batch_item_cost_s
            if spent_s > self.batch_limit_s:
                undone.append(str(item.get("id", "")))
            else:
                done.append(self._batch_item(call, item))
        result = {
            "batch_request_id": str(body.get("batch_request_id", "")),
            "serviced_requests": done,
            "unserviced_requests": undone,
        }
        return Answer(200, result)

    def _batch_item(self, outer: Call, item: dict[str, Any]) -> dict[str, Any]:
        try:
            answer = self.handle(_inner_call(outer, item))
        except (ValueError, TypeError, KeyError, AttributeError, binascii.Error) as exc:
            answer = failure(400, "Exception while reading request", str(exc))
        served: dict[str, Any] = {
            "id": str(item.get("id", "")),
            "status_code": answer.status,
            "status_text": HTTPStatus(answer.status).phrase,
            "body": base64.b64encode(answer.content()).decode(),
            "execution_time": 1,
        }
        if not item.get("exclude_response_headers"):
            named = {"Content-Type": answer.content_type, **answer.headers} if answer.content() else answer.headers
            served["headers"] = [{"name": name, "value": value} for name, value in named.items()]
        return served

    # -- time limits --------------------------------------------------------------------------------------------------

    def over_limit(self, row_count: int) -> bool:
        """Tell whether delivering so many rows takes longer than a transaction may."""
        return row_count * self.row_cost_s > self.transaction_limit_s

    def cancelled(self, complete: Answer) -> Answer:
        """Return what a cancelled transaction leaves of an answer."""
        if self.cancelled_as == "500":
            return _cancelled()
        content = complete.content()
        if self.cancelled_as == "both":
            rows = complete.payload["result"][: max(1, int(self.transaction_limit_s / self.row_cost_s))]
            return Answer(200, {"result": rows} | _cancelled().payload, complete.headers)
        return Answer(200, raw=content[: len(content) // 2], headers=complete.headers)

    # -- people and controls ------------------------------------------------------------------------------------------

    def zone_of(self, user_name: str) -> ZoneInfo:
        """Return the time zone in which a user sees dates."""
        row = next(iter(self.records.lookup("sys_user", "user_name", [user_name.lower()]) or ()), None)
        try:
            return ZoneInfo(row["time_zone"] if row and row["time_zone"] else self.system_time_zone)
        except (ZoneInfoNotFoundError, ValueError):
            return ZoneInfo(self.system_time_zone)

    async def _home(self, request: web.Request) -> web.Response:
        with self.records.lock:
            text = page.home(self.records, self.instance, request.query.get("q", ""))
        return web.Response(text=text, content_type="text/html")

    async def _record_page(self, request: web.Request) -> web.Response:
        address = URL(request.query.get("uri", "")) if request.path == "/nav_to.do" else request.rel_url
        table, sys_id = address.path.strip("/").removesuffix(".do"), address.query.get("sys_id", "")
        with self.records.lock:
            row = self.records.find(table, sys_id) if table in TABLES else None
            if row is None:
                text, status = page.missing(table, sys_id), 404
            else:
                text, status = (
                    page.record(self.records, self.records.class_of(table, row), row, request.query.get("error", "")),
                    200,
                )
        return web.Response(text=text, status=status, content_type="text/html")

    async def _edit(self, request: web.Request) -> web.Response:
        table, sys_id = request.match_info["table"], request.match_info["sys_id"]
        form = {name: str(value) for name, value in (await request.post()).items()}
        target = URL("/nav_to.do").with_query(uri=f"{table}.do?sys_id={sys_id}")
        try:
            self.update(table, sys_id, **form)
        except (RefusedError, KeyError) as exc:
            target = target.update_query(error=getattr(exc, "detail", None) or str(exc))
        raise web.HTTPSeeOther(str(target))

    async def _get_settings(self, request: web.Request) -> web.Response:
        return web.json_response(self.settings())

    async def _post_settings(self, request: web.Request) -> web.Response:
        try:
            self.configure(await request.json())
        except (ValueError, AttributeError) as exc:
            return web.json_response({"error": str(exc)}, status=400)
        return web.json_response(self.settings())

    async def _post_user(self, request: web.Request) -> web.Response:
        try:
            self.add_user(read_user(await request.json()))
        except (ValueError, TypeError, AttributeError) as exc:
            return web.json_response({"error": str(exc)}, status=400)
        return web.Response(status=204)

    async def _post_hook(self, request: web.Request) -> web.Response:
        try:
            self.outbound.hooks.append(Hook(**await request.json()))
        except (ValueError, TypeError) as exc:
            return web.json_response({"error": str(exc)}, status=400)
        return web.Response(status=204)

    async def _clear_hooks(self, request: web.Request) -> web.Response:
        self.outbound.hooks.clear()
        return web.Response(status=204)

    async def _get_records(self, request: web.Request) -> web.Response:
        return self._admin(lambda: self.rows(request.match_info["table"], **request.query))

    async def _post_record(self, request: web.Request) -> web.Response:
        table, fields = request.match_info["table"], await _read_fields(request)
        return self._admin(lambda: self.tables[table][self.insert(table, **fields)], status=201)

    async def _patch_record(self, request: web.Request) -> web.Response:
        table, sys_id, fields = request.match_info["table"], request.match_info["sys_id"], await _read_fields(request)

        def edit() -> Row:
            self.update(table, sys_id, **{"by": "agent", **fields})
            return self.tables[self.records.class_of(table, {"sys_id": sys_id})][sys_id]

        return self._admin(edit)

    async def _delete_record(self, request: web.Request) -> web.Response:
        return self._admin(lambda: self.delete(request.match_info["table"], request.match_info["sys_id"]))

    @staticmethod
    def _admin(work: Callable[[], Any], status: int = 200) -> web.Response:
        try:
            return web.json_response(work(), status=status)
        except RefusedError as exc:
            return web.json_response({"error": exc.detail or exc.message}, status=exc.status)
        except (KeyError, TypeError) as exc:
            return web.json_response({"error": str(exc.args[0])}, status=400)

    @staticmethod
    def _check_names(table: str, fields: Iterable[str]) -> None:
        page.check_names(table, fields)


class _Session:
    """Requests that carry the same session cookie."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.waiting = 0


def _inner_call(outer: Call, item: Mapping[str, Any]) -> Call:
    address = str(item["url"])
    if not address.startswith("/"):
        raise ValueError("url must be relative to the instance")
    url = outer.url.join(URL(address, encoded=True))
    headers = CIMultiDict((entry["name"], str(entry["value"])) for entry in item.get("headers", []))
    headers.setdefault("Accept", outer.headers.get("Accept", "*/*"))  # the vendor's own client sends items without one
    body = base64.b64decode(item.get("body") or "", validate=True)
    return Call(str(item["method"]).upper(), url, MultiDict(url.query), headers, body, outer.user)


async def _read_fields(request: web.Request) -> dict[str, Any]:
    """Return the fields of a person's edit; `at` (ISO time) and `by` say when and by whom."""
    try:
        fields = {str(name): str(value) for name, value in dict(await request.json()).items()}
        if "at" not in fields:
            return fields
        moment = datetime.fromisoformat(fields.pop("at"))
    except (ValueError, TypeError) as exc:
        raise web.HTTPBadRequest(text=f"not fields of a record: {exc}") from exc
    return fields | {"at": moment if moment.tzinfo else moment.replace(tzinfo=UTC)}


def _response(answer: Answer) -> web.Response:
    content = answer.content()
    headers = CIMultiDict(answer.headers)
    if content:
        headers["Content-Type"] = answer.content_type
    return web.Response(status=answer.status, body=content or None, headers=headers)


def _denied() -> web.Response:
    return web.json_response({"error_description": "access_denied", "error": "server_error"}, status=401)


def _unauthenticated() -> Answer:
    answer = failure(401, "User Not Authenticated", "Required to provide Auth information")
    answer.headers["WWW-Authenticate"] = 'BASIC realm="Service-now"'
    return answer


def _cancelled() -> Answer:
    return failure(
        500,
        _CANCELLED,
        f"{_CANCELLED} Check logs for error trace or enable glide.rest.debug property to verify REST request processing",
    )


def _no_resource(call: Call) -> Answer:
    return failure(400, "Requested URI does not represent any resource", f"{call.url.path} is not a resource")


def _html(status: int) -> web.Response:
    phrase = HTTPStatus(status).phrase
    text = f"<html><head><title>{status}</title></head><body><h1>{status} {phrase}</h1></body></html>"
    return web.Response(status=status, text=text, content_type="text/html")
