"""The receiver of webhooks, from a real request object to the message in the queue."""

import dataclasses
import json
import logging
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import azure.functions as func
import pytest
from azure.core.exceptions import ServiceRequestError, ServiceResponseTimeoutError
from azure.core.pipeline.transport import RequestsTransport

import function_app
from sandbox.azurite import Azurite
from shared.errors import ConfigError
from shared.settings import load_settings
from shared.state.messages import EventMessage
from shared.state.queues import Queues, parse
from shared.state.rows import AuditRow
from shared.state.storage import connect_queues, connect_tables
from shared.state.tables import Tables
from sync.app import App, build_app
from web import webhooks

NOW = datetime(2026, 3, 10, 23, 30, tzinfo=UTC)
KEY, NEXT_KEY = "the-first-webhook-key-0001", "the-second-webhook-key-0002"
ORGANIZATION = "contoso.crm4.dynamics.com"
CONTACT = "c0000000-0000-4000-8000-0000000000c1"
OPERATION = "77777777-0000-4000-8000-000000000001"
RECIPE = """
title: {title}
source: dynamics365.{source}
target: servicenow.{target}
start: {start}
match: [{field}]
fields: {{{field}: {path}}}
notify: {{summary: email}}
"""
RECIPES = {
    "contact_to_user": ("Contacts", "contact", "sys_user", "{webhook: [Create, Update]}", "email", "emailaddress1"),
    "account_to_company": ("Accounts", "account", "core_company", "{webhook: true}", "name", "name"),
    "case_to_incident": ("Cases", "incident", "incident", "{http: yesterday}", "correlation_id", "incidentid"),
}


class Storage(RequestsTransport):
    """The SDK's edge: sends for real, refuses connections, or never answers, without making a test wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.fault = ""
        self.granted_s: list[float] = []  # what each request would have waited at the most

    def send(self, request: Any, **options: Any) -> Any:
        self.granted_s.append(sum(options.get(name, 60.0) for name in ("connection_timeout", "read_timeout")))
        if self.fault == "refuses":
            raise ServiceRequestError("connection refused")
        if self.fault == "hangs":
            raise ServiceResponseTimeoutError("no answer")
        answer = super().send(request, **options)
        if self.fault.isdigit():
            answer.status_code = int(self.fault)
        return answer


class Receiver:
    """The trigger function over an app of this test's own."""

    def __init__(self, app: App, edge: Storage, timers: list[tuple[float, Callable[[], None]]]) -> None:
        self.app, self.edge, self.timers = app, edge, timers
        self.call = function_app.receive_webhook.build().get_user_function()

    def post(self, recipe: str = "contact_to_user", **facts: Any) -> tuple[int, dict[str, str]]:
        """Call as Dataverse does, by default rightly, and return status and body."""
        answer = self.call(build_request(recipe, **facts))
        return answer.status_code, json.loads(answer.get_body())

    def messages(self) -> list[EventMessage]:
        """Return what stands in the queue."""
        return [parse(EventMessage, text) for text in self.app.queues.peek("events", 32)]

    def counts(self) -> dict[tuple[str, str], int]:
        """Write the counts as the timers would, and return them by recipe and reason."""
        while self.timers:
            self.timers.pop()[1]()
        rows = self.app.tables.query(AuditRow, "2026-03")
        return {(row.recipe, row.detail): row.count for row in rows if row.action.startswith("webhook_")}


def body(record: str = "contact", name: str = "Update", key: str = CONTACT, **members: Any) -> bytes:
    context = {"PrimaryEntityName": record, "MessageName": name, "PrimaryEntityId": key, "OperationId": OPERATION}
    return json.dumps(context | members).encode()


def build_request(
    recipe: str,
    query: dict[str, str] | None = None,
    headers: dict[str, str] | None = None,
    organization: str | None = ORGANIZATION,
    content: bytes | None = None,
) -> func.HttpRequest:
    origin = {} if organization is None else {"X-MS-Dynamics-Organization": organization}
    return func.HttpRequest(
        method="POST",
        url=f"https://concord.example.com/api/webhooks/{recipe}",
        headers={"Content-Type": "application/json"} | origin | (headers or {}),
        params={"code": KEY} if query is None else query,
        route_params={"recipe": recipe},
        body=body() if content is None else content,
    )


def environ(storage: str, **changes: str) -> dict[str, str]:
    return {
        "AzureWebJobsStorage": storage,
        "APP_URL": "http://localhost:7071",
        "TIME_ZONE": "Europe/Berlin",
        "ALLOWED_MAIL_DOMAINS": "example.com",
        "NOTIFY": "support.lead@example.com",
        "DIGEST_KEYS": "test:a-key-that-is-used-in-tests-alone-0001",
        "MAIL__HOST": "127.0.0.1",
        "MAIL__SECURITY": "none",
        "MAIL__SENDER": "concord@example.com",
        "CONNECTIONS__DYNAMICS365__ENVIRONMENT": "test",
        "CONNECTIONS__DYNAMICS365__URL": f"https://{ORGANIZATION}",
        "CONNECTIONS__DYNAMICS365__TENANT_ID": "11111111-2222-3333-4444-555555555555",
        "CONNECTIONS__DYNAMICS365__CLIENT_ID": "66666666-7777-8888-9999-000000000000",
        "CONNECTIONS__DYNAMICS365__CLIENT_SECRET": "a secret",
        "CONNECTIONS__DYNAMICS365__WEBHOOK_KEY": f"{KEY}, {NEXT_KEY}",
        "CONNECTIONS__SERVICENOW__ENVIRONMENT": "test",
        "CONNECTIONS__SERVICENOW__URL": "https://contoso.service-now.com",
        "CONNECTIONS__SERVICENOW__AUTH": "basic",
        "CONNECTIONS__SERVICENOW__USER": "concord",
        "CONNECTIONS__SERVICENOW__PASSWORD": "a secret",
    } | changes


@pytest.fixture
def changes() -> dict[str, str]:
    """Settings of this test's own."""
    return {}


@pytest.fixture
def receiver(
    azurite: Azurite, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str]
) -> Iterator[Receiver]:
    for name, (title, source, target, start, field, path) in RECIPES.items():
        text = RECIPE.format(title=title, source=source, target=target, start=start, field=field, path=path)
        (tmp_path / f"{name}.yaml").write_text(text)
    edge, timers = Storage(), []
    with (
        connect_queues(azurite.connection_string, transport=edge) as queue_service,
        connect_tables(azurite.connection_string) as table_service,
    ):
        app = dataclasses.replace(
            build_app(load_settings(environ(azurite.connection_string, **changes)), tmp_path),
            queues=Queues(queue_service, prefix),
            tables=Tables(table_service, prefix),
            now=lambda: NOW,
        )
        monkeypatch.setattr(function_app, "get_app", lambda: app)
        monkeypatch.setattr(webhooks, "CALLS", webhooks.CallCounts(lambda *timer: timers.append(timer)))
        yield Receiver(app, edge, timers)


# -- taken ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "facts",
    [
        pytest.param({"query": {"code": KEY}}, id="WebhookKey"),
        pytest.param({"query": {}, "headers": {"X-Functions-Key": KEY}}, id="HttpHeader"),
        pytest.param({"query": {"key": KEY}}, id="HttpQueryString"),
        pytest.param({"query": {"code": NEXT_KEY}}, id="next key of a rotation"),
        pytest.param({"organization": ORGANIZATION.upper()}, id="organization in capitals"),
    ],
)
def test_event_is_in_the_queue_before_it_is_acknowledged(receiver, facts):
    """Each of Dataverse's three ways: 202, and one message that names the record and nothing of its content."""
    answer = receiver.post(**facts)

    assert answer == (202, {"status": "accepted"})
    assert receiver.messages() == [
        EventMessage(
            recipe="contact_to_user",
            record="dynamics365.contact",
            key=CONTACT,
            name="Update",
            event_id=f"{OPERATION}:{CONTACT}:Update",
            received_at=NOW,
        )
    ]


def test_repeat_has_the_same_identity(receiver):
    """A replayed call is taken again under the same event id, which is what makes it one event."""
    answers = [receiver.post(), receiver.post()]

    assert answers == [(202, {"status": "accepted"})] * 2
    assert len({message.event_id for message in receiver.messages()}) == 1


def test_recipe_without_names_takes_every_event(receiver):
    """`webhook: true` means every event of its record."""
    answer = receiver.post("account_to_company", content=body("account", "Assign"))

    assert answer == (202, {"status": "accepted"})
    assert [message.recipe for message in receiver.messages()] == ["account_to_company"]


def test_stripped_body_is_enough(receiver):
    """Above 256 KB Dataverse takes most members away; a large body below our own limit is read too."""
    answer = receiver.post(content=body(SharedVariables=["x" * (webhooks.MAX_BODY_BYTES - 1000)]))

    assert answer == (202, {"status": "accepted"})


# -- ignored ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(body("account"), id="account at the contacts' address"),
        pytest.param(body("systemuser"), id="unknown entity"),
        pytest.param(body(name="Delete"), id="message that the recipe does not name"),
        pytest.param(body(name="new_Custom"), id="unknown message"),
    ],
)
def test_event_that_the_recipe_does_not_ask_for_is_ignored(receiver, content):
    """It is well received, does nothing and is counted; the address decides which record is meant."""
    answer = receiver.post(content=content)

    assert answer == (202, {"status": "ignored"})
    assert receiver.messages() == []
    assert receiver.counts() == {("contact_to_user", "ignored"): 1}


# -- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "status", "code"),
    [
        pytest.param({"query": {}}, 401, "bad_key", id="no key"),
        pytest.param({"query": {"code": "guess"}}, 401, "bad_key", id="wrong key"),
        pytest.param({"query": {"code": f"{KEY},{NEXT_KEY}"}}, 401, "bad_key", id="the setting itself"),
        pytest.param({"query": {}, "content": b"{"}, 401, "bad_key", id="the key comes before the body"),
        pytest.param({"organization": "copy.crm4.dynamics.com"}, 403, "foreign_origin", id="foreign origin"),
        pytest.param({"organization": None}, 403, "foreign_origin", id="no origin"),
        pytest.param({"organization": "x", "content": b"{"}, 403, "foreign_origin", id="the origin before the body"),
        pytest.param({"content": b"{"}, 400, "bad_body", id="bad JSON"),
        pytest.param({"content": b""}, 400, "bad_body", id="no body"),
        pytest.param({"content": b"[" * 200_000}, 400, "bad_body", id="deep JSON"),
        pytest.param({"content": body(key="1")}, 400, "bad_body", id="no record"),
        pytest.param({"content": b" " * (webhooks.MAX_BODY_BYTES + 1)}, 413, "body_too_large", id="oversized"),
    ],
)
def test_call_that_is_not_ours_is_refused_and_counted(receiver, facts, status, code):
    """Each kind has its status and its count; nothing reaches the queue."""
    answer, problem = receiver.post(**facts)

    assert (answer, problem["error"]) == (status, code)
    assert receiver.messages() == []
    assert receiver.counts() == {("contact_to_user", code): 1}


@pytest.mark.parametrize("recipe", ["unknown", "case_to_incident", "", "../health"])
def test_unknown_recipe_is_404_and_lists_nothing(receiver, recipe):
    """A stranger does not learn which recipes there are, nor leaves a trace under a name of his choice."""
    status, problem = receiver.post(recipe)

    assert (status, problem["error"]) == (404, "unknown_recipe")
    assert not any(name in problem["message"] for name in RECIPES)
    assert receiver.counts() == {}


def test_no_forged_call_is_accepted(receiver):
    """Of a thousand calls with guessed keys, in all three places, none is taken; the count says how many there were."""
    chance = random.Random(20260310)
    places = ("code", "key", "x-functions-key")

    statuses = set()
    for _ in range(1000):
        guess = chance.choice(
            [KEY[: chance.randrange(len(KEY))], KEY[::-1], KEY.upper(), f"{chance.random()}", "\ud800"]
        )
        place = chance.choice(places)
        facts = {"query": {}, "headers": {place: guess}} if place.startswith("x-") else {"query": {place: guess}}
        statuses.add(receiver.post(**facts)[0])

    assert statuses == {401}
    assert receiver.messages() == []
    assert receiver.counts() == {("contact_to_user", "bad_key"): 1000}


@pytest.mark.parametrize("changes", [{"CONNECTIONS__DYNAMICS365__WEBHOOK_KEY": ""}])
def test_without_a_key_the_setting_is_named(receiver):
    """Nothing is taken before a key is set, and whoever tries is told which."""
    status, problem = receiver.post(query={"code": ""})

    assert (status, problem["error"]) == (401, "bad_key")
    assert "CONNECTIONS__DYNAMICS365__WEBHOOK_KEY" in problem["message"]


def test_log_holds_neither_key_nor_body(receiver, caplog):
    """A refused call is one line with recipe and reason."""
    caplog.set_level(logging.DEBUG, "web")
    secret = "guessed-key-that-nobody-may-read"

    receiver.post(query={"code": secret}, content=body(Private="ada@customer.example"))
    receiver.post(content=body("Private ada@customer.example"))
    receiver.post(content=body(Private="ada@customer.example"))

    lines = [json.dumps(vars(record), default=str) for record in caplog.records if record.name.startswith("web")]
    assert [record.reason for record in caplog.records if hasattr(record, "reason")] == ["bad_key", "bad_body"]
    assert not any(word in line for line in lines for word in (secret, KEY, NEXT_KEY, "ada@", CONTACT))


# -- storage is down --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["refuses", "hangs", "503", "403"])
def test_queue_that_takes_nothing_is_503_within_the_bound(receiver, fault):
    """503 is what Dataverse tries again; one request, whose time is bounded, because after a time-out it never would."""
    receiver.app.queues.create_all(["events"])
    receiver.edge.fault, receiver.edge.granted_s = fault, []

    status, _ = receiver.post()

    assert status == 503
    assert len(receiver.edge.granted_s) == 1
    assert receiver.edge.granted_s[0] <= webhooks.SEND_TIMEOUT_S


def test_refusing_needs_no_storage(receiver):
    """A forged call costs nothing: no request leaves for it."""
    receiver.edge.fault = "hangs"

    status, _ = receiver.post(query={})

    assert status == 401
    assert receiver.edge.granted_s == []


def test_app_that_is_not_configured_is_503_and_tells_nothing(receiver, monkeypatch):
    """Strangers may ask here, so what is missing stands in the log alone."""

    def refuse() -> App:
        raise ConfigError("CONNECTIONS__DYNAMICS365__CLIENT_SECRET is missing")

    monkeypatch.setattr(function_app, "get_app", refuse)

    status, problem = receiver.post()

    assert status == 503
    assert "CLIENT_SECRET" not in json.dumps(problem)


# -- counting ---------------------------------------------------------------------------------------------------------


def test_counts_are_written_once_a_minute_and_add_up(receiver):
    """However many calls come, a process writes at once, then after a minute; the rows of a day grow over all processes."""
    receiver.post(query={})
    first_delay_s, write = receiver.timers.pop()
    write()
    for _ in range(5):
        receiver.post(query={})
    [(next_delay_s, _)] = receiver.timers

    counted = receiver.counts()

    assert first_delay_s == 0
    assert 59 < next_delay_s <= webhooks.COUNT_EVERY_S
    assert counted == {("contact_to_user", "bad_key"): 6}
    [row] = receiver.app.tables.query(AuditRow, "2026-03")
    assert row.at == datetime(2026, 3, 10, 23, 0, tzinfo=UTC)  # midnight of the 11th in Berlin


def test_counting_never_breaks_anything(receiver, monkeypatch):
    """When the table cannot be written the count is lost, and nothing else."""
    receiver.post(query={})
    monkeypatch.setattr(type(receiver.app.tables), "update", lambda *_: 1 / 0)

    receiver.timers.pop()[1]()

    assert receiver.post(query={})[0] == 401
