"""A strict stand-in for Dynamics 365 / Dataverse: the Web API behind tokens, application users and service protection limits.

The language and the rules live in the `dynamics365_*` modules beside this one; `EntraLogin` is the login host that shares the token store.
A person reads and edits records at `/` and `/main.aspx`, a test through `insert`, `update`, `delete` or `/_sandbox/records/…`.
"""

import asyncio
import dataclasses
import time
import uuid
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qs

from aiohttp import web

from sandbox import dynamics365_page as page
from sandbox.dynamics365_api import WebApi
from sandbox.dynamics365_batch import answer_batch
from sandbox.dynamics365_calls import JSON_TYPE, NO_SEGMENT, Answer, ApplicationUser, Call, Settings, write_error
from sandbox.dynamics365_hooks import Hooks
from sandbox.dynamics365_limits import Protection
from sandbox.dynamics365_login import DEFAULT_CLIENT, DEFAULT_SECRET, DEFAULT_TENANT, EntraLogin, TokenStore
from sandbox.dynamics365_query import Ref, Row
from sandbox.dynamics365_render import write_moment
from sandbox.dynamics365_store import BUSINESS_UNIT, CURRENCY, Actor, ApiError, Rows
from sandbox.dynamics365_tables import Table
from sandbox.simulator import SANDBOX_PREFIX, Clock, Simulator

__all__ = ["DEFAULT_CLIENT", "DEFAULT_SECRET", "DEFAULT_TENANT", "Dynamics365", "EntraLogin"]

API_PATH = "/api/data/"
PERSON_ID = "66666666-0000-0000-0000-0000000000aa"
APPLICATION_USER_ID = "66666666-0000-0000-0000-000000000001"
ERROR_CODES = {404: NO_SEGMENT, 429: "0x80072322", 503: "0x80044150"}


class Dynamics365(Simulator):
    """One environment with one application user (`DEFAULT_CLIENT`) and no records; switches are the fields of Settings."""

    name = "dynamics365"

    def __init__(self, clock: Clock | None = None, tokens: TokenStore | None = None, **switches: Any) -> None:
        clock = clock or (tokens.clock if tokens else Clock())
        self.tokens = tokens or TokenStore(clock)
        self.settings = Settings(**switches)
        self.hooks = Hooks(self)
        self.store = Rows(clock, self._changed, PERSON_ID)
        self.api = WebApi(self.store, self.settings)
        self.protection = Protection(self.settings, clock)
        self.application_users: dict[str, ApplicationUser] = {}  # by client id
        super().__init__(clock)
        self.store.create(self._table("businessunit"), {"businessunitid": BUSINESS_UNIT.id, "name": "contoso"})
        currency = {"transactioncurrencyid": CURRENCY.id, "currencyname": "US Dollar", "isocurrencycode": "USD"}
        self.store.create(self._table("transactioncurrency"), currency)
        self.store.create(
            self._table("organization"), {"name": "contoso", "languagecode": 1033, "expirechangetrackingindays": 7}
        )
        self.insert(
            "systemuser",
            systemuserid=PERSON_ID,
            firstname="Demo",
            lastname="Person",
            internalemailaddress="demo.person@contoso.example",
        )
        self.add_application_user(DEFAULT_CLIENT, DEFAULT_SECRET, user_id=APPLICATION_USER_ID)
        self.hooks.fill()

    # -- for tests and a person's page --------------------------------------------------------------------------------

    def add_application_user(
        self, client_id: str, secret: str, rights: dict[str, str] | None = None, allowed: bool = True, user_id: str = ""
    ) -> ApplicationUser:
        """Register an app and its application user; rights per table are letters of "crwd", None means everything."""
        user_id = user_id or str(uuid.uuid4())
        self.tokens.secrets[client_id] = secret
        self.insert(
            "systemuser",
            systemuserid=user_id,
            firstname="#",
            lastname=f"Concord {client_id[-4:]}",
            applicationid=client_id,
        )
        self.application_users[client_id] = ApplicationUser(client_id, user_id, rights, allowed)
        return self.application_users[client_id]

    def set_rights(self, rights: dict[str, str] | None, client_id: str = DEFAULT_CLIENT) -> None:
        """Replace the rights of an application user; None means everything."""
        self.application_users[client_id] = dataclasses.replace(self.application_users[client_id], rights=rights)

    def set_max_length(self, entity: str, column: str, length: int) -> None:
        """Change the length of a text column, as a customizer can."""
        table = self._table(entity)
        table.columns[column] = dataclasses.replace(table.columns[column], max_length=length)

    def insert(self, entity: str, **columns: Any) -> str:
        """Create a record as a person and return its id.

        Lookups take ("table", id), or an id under the logical, property or navigation name. Any option value and any column is accepted.
        """
        table = self._table(entity)
        with self.store.acting(self.store.person):
            return self.store.create(table, self.store.read_person_values(table, columns))

    def update(self, entity: str, record_id: str, **columns: Any) -> None:
        """Change a record as a person; see `insert` for the columns."""
        table = self._table(entity)
        with self.store.acting(self.store.person):
            self.store.update(table, record_id.lower(), self.store.read_person_values(table, columns))

    def delete(self, entity: str, record_id: str) -> None:
        """Delete a record as a person."""
        with self.store.acting(self.store.person):
            self.store.delete(self._table(entity), record_id.lower())

    def resolve(self, case_id: str, status: int = -1, subject: str = "Resolved") -> None:
        """Resolve a case as a person."""
        with self.store.acting(self.store.person):
            self.store.resolve(case_id.lower(), status, subject)

    def merge(self, master_id: str, subordinate_id: str) -> None:
        """Merge a case into another as a person."""
        with self.store.acting(self.store.person):
            self.store.merge(master_id.lower(), subordinate_id.lower())

    def rows(self, entity: str) -> list[dict[str, Any]]:
        """Return all records of a table, oldest first, with property names and values as the Web API has them."""
        table = self._table(entity)
        return [self._plain(table, row) for row in self.store.all(table.name)]

    def register_hook(
        self, url: str, entity: str, messages: Iterable[str] = ("Create", "Update", "Delete"), **facts: Any
    ) -> list[str]:
        """Call an address whenever a record of a table changes, and return the ids of the steps, one per message.

        `auth` is "key" (`?code=`), "header" or "query", `value` the secret, `name` that of the header or parameter;
        `filtering` names columns of which an Update must have one; `pre_image`, `post_image` name columns ([]: all).
        """
        return self.hooks.register(url, entity, messages, **facts)

    # -- the seam for webhooks ----------------------------------------------------------------------------------------

    def _changed(
        self, entity: str, record_id: str, message: str, changed_columns: list[str], before: Row | None
    ) -> None:
        """Hear of every write once it stands: message is Create, Update, Delete, Close or Merge; `self.store.actor` says who wrote.

        A test may write from another thread than the server's.
        """
        self.hooks.on_change(entity, record_id, message, changed_columns, before)

    # -- HTTP -----------------------------------------------------------------------------------------------------------

    def add_routes(self, routes: web.UrlDispatcher) -> None:
        """Add the Web API, the pages and the controls."""
        routes.add_route("*", f"{API_PATH}{{version}}/{{tail:.*}}", self._answer_web_api)
        routes.add_get("/", self._show_overview)
        routes.add_get("/main.aspx", self._show_record)
        routes.add_post(f"{SANDBOX_PREFIX}form/{{entity}}/{{id}}", self._save_form)
        routes.add_get(f"{SANDBOX_PREFIX}records/{{entity}}", self._list_records)
        routes.add_post(f"{SANDBOX_PREFIX}records/{{entity}}", self._add_record)
        routes.add_patch(f"{SANDBOX_PREFIX}records/{{entity}}/{{id}}", self._change_record)
        routes.add_delete(f"{SANDBOX_PREFIX}records/{{entity}}/{{id}}", self._remove_record)
        self.hooks.add_routes(routes, self.app)
        routes.add_get(f"{SANDBOX_PREFIX}settings", self._get_settings)
        routes.add_post(f"{SANDBOX_PREFIX}settings", self._set_settings)

    def expire_tokens(self) -> None:
        """Make every access token that was given out invalid."""
        self.tokens.expire_all()

    def error_response(self, status: int) -> web.Response:
        """Return the Web API's error body for a status; 401 has none."""
        if status == 401:
            return web.Response(status=401, headers={"WWW-Authenticate": "Bearer"})
        return self._respond(
            write_error(status, ERROR_CODES.get(status, ""), f"The request failed with status {status}.")
        )

    async def _answer_web_api(self, request: web.Request) -> web.Response:
        version = request.match_info["version"]
        if version not in {"v9.0", "v9.1", "v9.2"}:
            return self._respond(write_error(404, NO_SEGMENT, f"The API version '{version}' is not available."))
        try:
            self._check_url(request)
            user = self._find_user(request)
            with self.protection.admit(user.user_id):
                if self.settings.latency_s:
                    await asyncio.sleep(self.settings.latency_s)
                answer = self._work(request, await request.read(), user, version)
        except ApiError as exc:
            answer = write_error(exc.status, exc.code, exc.message, dict(request.headers))
            answer.headers.update(exc.headers)
            if exc.status == 401:
                answer.body = None
        return self._respond(answer)

    def _work(self, request: web.Request, body: bytes, user: ApplicationUser, version: str) -> Answer:
        headers = {name.lower(): value for name, value in request.headers.items()}
        root = f"{_root_of(request)}{API_PATH}{version}/"
        call = Call(request.method, request.raw_path.removeprefix(f"{API_PATH}{version}/"), headers, body, root, user)
        actor = Actor(
            self._find_caller(headers, user), request.query.get("tag", ""), headers.get("x-ms-correlation-id", "")
        )
        started_s = time.perf_counter()
        with self.store.acting(actor):
            if call.path != "$batch":
                answer = self.api.answer(call)
            elif call.method == "POST":
                answer = answer_batch(self.api, call)
            else:
                raise ApiError(405, "", f"The requested resource does not support http method '{call.method}'.")
        self.protection.spend(user.user_id, (time.perf_counter() - started_s) * 1000)
        answer.headers.update(self.protection.remaining(user.user_id))
        return answer

    def _check_url(self, request: web.Request) -> None:
        if len(request.raw_path) > self.settings.max_url_chars:
            raise ApiError(414, "", "The request URI is too long: send the query in a $batch.")

    def _find_user(self, request: web.Request) -> ApplicationUser:
        root = _root_of(request)
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        grant = self.tokens.find(token) if scheme.lower() == "bearer" else None
        if grant is None or grant.audience.lower() != root.lower():
            authority = f"https://login.microsoftonline.com/{self.tokens.tenant}/oauth2/authorize"
            raise ApiError(
                401, "", "", {"WWW-Authenticate": f"Bearer authorization_uri={authority}, resource_id={root}/"}
            )
        user = self.application_users.get(grant.client_id)
        if user is None:
            raise ApiError(403, "0x80072560", "The user is not a member of the organization.")
        if not user.allowed:
            raise ApiError(
                403, "0x80095ffc", f"The application {grant.client_id} is not on the allow list of this environment."
            )
        row = self.store.find("systemuser", user.user_id)
        if row is None or row["isdisabled"]:
            raise ApiError(
                403, "0x80040225", f"The user with SystemUserId={user.user_id} is disabled or does not exist."
            )
        return user

    def _find_caller(self, headers: dict[str, str], user: ApplicationUser) -> str:
        """Return the user that a call acts for: by CallerObjectId another than the application user."""
        object_id = headers.get("callerobjectid", "").lower()
        if not object_id:
            return user.user_id
        for row in self.store.all("systemuser"):
            if row.get("azureactivedirectoryobjectid") == object_id:
                return str(row["systemuserid"])
        raise ApiError(403, "0x80041d1f", f"No user has the Microsoft Entra object id {object_id}.")

    @staticmethod
    def _respond(answer: Answer) -> web.Response:
        request_id = str(uuid.uuid4())
        headers = {**answer.headers, "x-ms-service-request-id": request_id, "REQ_ID": request_id}
        if answer.body is None:
            headers.pop("Content-Type", None)
            return web.Response(status=answer.status, headers=headers)
        return web.Response(
            status=answer.status, body=answer.text.encode(), headers={"Content-Type": JSON_TYPE, **headers}
        )

    # -- pages and controls -------------------------------------------------------------------------------------------

    async def _show_overview(self, request: web.Request) -> web.Response:
        return _html(page.show_overview(self.store, request.query.get("q", "")))

    async def _show_record(self, request: web.Request) -> web.Response:
        entity, record_id = request.query.get("etn", ""), request.query.get("id", "").strip("{}").lower()
        row = self.store.find(entity, record_id)
        if row is None:
            return _html(
                page.show_message("Record is unavailable", f"There is no {entity} with the id {record_id}."), 404
            )
        return _html(page.show_record(self.store, entity, row))

    async def _save_form(self, request: web.Request) -> web.Response:
        entity, record_id = request.match_info["entity"], request.match_info["id"]
        row = self.store.find(entity, record_id) if entity in page.EDITABLE else None
        if row is None:
            return _html(
                page.show_message("Record is unavailable", f"There is no {entity} with the id {record_id}."), 404
            )
        form = {
            name: values[0]
            for name, values in parse_qs((await request.read()).decode(), keep_blank_values=True).items()
        }
        try:
            self._save(entity, row, form)
        except (ApiError, ValueError) as exc:
            return _html(page.show_record(self.store, entity, row, getattr(exc, "message", str(exc))), 400)
        raise web.HTTPSeeOther(page.record_url(entity, record_id))

    def _save(self, entity: str, row: Row, form: dict[str, str]) -> None:
        """Write those fields of a form that differ, by the rules that hold for a person."""
        table, changed = self._table(entity), {}
        for name in page.EDITABLE[entity]:
            if name not in form:
                continue
            value = page.read_field(self.store, table.columns[name], form[name].replace("\r\n", "\n"))
            if value != row.get(name):
                changed[name] = value
        if entity == "incident" and changed.get("statecode") == 1:
            del changed["statecode"]
            if changed:
                self.update(entity, row[table.key], **changed)
            self.resolve(row[table.key])
        elif changed:
            if entity == "incident" and row["statecode"] != 0 and changed.get("statecode") != 0:
                raise ApiError(400, "", "This case is closed: set its state to Active first.")
            self.update(entity, row[table.key], **changed)

    async def _list_records(self, request: web.Request) -> web.Response:
        try:
            records = self.rows(request.match_info["entity"])
        except KeyError as exc:
            return web.json_response({"error": exc.args[0]}, status=404)
        return web.json_response({"count": len(records), "records": records})

    async def _add_record(self, request: web.Request) -> web.Response:
        try:
            return web.json_response(
                {"id": self.insert(request.match_info["entity"], **await request.json())}, status=201
            )
        except (ApiError, ValueError, TypeError, KeyError) as exc:
            return _refuse_control(exc)

    async def _change_record(self, request: web.Request) -> web.Response:
        try:
            self.update(request.match_info["entity"], request.match_info["id"], **await request.json())
        except (ApiError, ValueError, TypeError, KeyError) as exc:
            return _refuse_control(exc)
        return web.Response(status=204)

    async def _remove_record(self, request: web.Request) -> web.Response:
        try:
            self.delete(request.match_info["entity"], request.match_info["id"])
        except (ApiError, KeyError) as exc:
            return _refuse_control(exc)
        return web.Response(status=204)

    async def _get_settings(self, request: web.Request) -> web.Response:
        rights = {
            client: dict(user.rights) if user.rights is not None else None
            for client, user in self.application_users.items()
        }
        return web.json_response(
            {**dataclasses.asdict(self.settings), "token_lifetime_s": self.tokens.lifetime_s, "rights": rights}
        )

    async def _set_settings(self, request: web.Request) -> web.Response:
        """Change settings; besides the switches `token_lifetime_s` and `rights` ({client id: {table: "crwd"} or null})."""
        try:
            given = dict(await request.json())
            rights = given.pop("rights", {})
            unknown = set(given) - {field.name for field in dataclasses.fields(Settings)} - {"token_lifetime_s"}
            unknown |= set(rights) - set(self.application_users)
            if unknown:
                return web.json_response({"error": f"unknown: {', '.join(sorted(unknown))}"}, status=400)
        except (ValueError, TypeError) as exc:
            return _refuse_control(exc)
        self.tokens.lifetime_s = given.pop("token_lifetime_s", self.tokens.lifetime_s)
        for name, value in given.items():
            setattr(self.settings, name, value)
        for client_id, table_rights in rights.items():
            self.set_rights(table_rights, client_id)
        return await self._get_settings(request)

    # -- shared -----------------------------------------------------------------------------------------------------------

    def _table(self, entity: str) -> Table:
        table = self.store.tables.get(entity) or self.store.by_set.get(entity)
        if table is None:
            raise KeyError(f"no table {entity}; there are {', '.join(self.store.tables)}")
        return table

    @staticmethod
    def _plain(table: Table, row: Row) -> dict[str, Any]:
        shown = {}
        for name, column in table.columns.items():
            value = row.get(name)
            if isinstance(value, Ref):
                value = value.id
            elif column.kind == "DateTime" and value is not None:
                value = write_moment(value)
            shown[column.property_name] = value
        return shown


def _root_of(request: web.Request) -> str:
    return f"{request.scheme}://{request.host}"


def _html(text: str, status: int = 200) -> web.Response:
    return web.Response(text=text, status=status, content_type="text/html")


def _refuse_control(exc: Exception) -> web.Response:
    status = exc.status if isinstance(exc, ApiError) else 404 if isinstance(exc, KeyError) else 400
    text = exc.message if isinstance(exc, ApiError) else str(exc.args[0] if exc.args else exc)
    return web.json_response({"error": text}, status=status)
