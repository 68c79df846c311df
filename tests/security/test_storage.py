"""What is left in storage: every entity and every message of every kind of failure, read raw, without our models."""

import json
from typing import Any

import azure.functions as func
import pytest
from azure.core.exceptions import ResourceNotFoundError
from azure.data.tables import TableServiceClient
from azure.storage.queue import QueueServiceClient

import function_app
from sandbox.mailbox import MailFaultKind
from sandbox.simulator import FaultKind
from shared.state.messages import ItemModel, ItemsMessage, RowModel
from sync import messages
from tests.flows.world import RECIPE, TRIGGERS, World

RECIPIENT = "canary.reader@example.com"
CALLER = "canary.caller@customer.example"
OWNER = "canary.owner@contoso.example"
PERSONAL = {
    "recipient": RECIPIENT,
    "caller": CALLER,
    "owner": OWNER,
    "first name": "Kanarienvogel",
    "last name": "Serinuscanaria",
    "title": "Gelberkanari",
    "description": "Harzerroller",
    "phone": "+4930555000123",
}
SECRETS = {
    "client secret": "sandbox-secret",
    "client secret of ServiceNow": "concord-secret",
    "password": "integration-password",
    "digest key": "a-key-that-is-used-in-tests-alone-0001",
    "function key": "Kaefigschluessel",
}
CANARIES = PERSONAL | SECRETS
ECHO = json.dumps({"error": {"message": f"Kanarienvogel {CALLER}", "detail": "Gelberkanari Harzerroller"}})


def found_in(text: str) -> list[str]:
    """Return which canaries stand in a text, also inside of escapes."""
    lowered = text.lower() + text.lower().replace("%40", "@").replace("\\u0040", "@")
    return [name for name, canary in CANARIES.items() if canary.lower() in lowered]


def entities(world: World) -> list[tuple[str, dict[str, Any]]]:
    """Return every entity of every table of this world, as stored."""
    with TableServiceClient.from_connection_string(world._text) as service:
        names = [table.name for table in service.list_tables() if table.name.startswith(world.prefix)]
        return [
            (name.removeprefix(world.prefix), dict(row))
            for name in names
            for row in service.get_table_client(name).list_entities()
        ]


def queued(world: World) -> dict[str, list[str]]:
    """Return the messages of every queue of this world, as stored, poison queues too."""
    with QueueServiceClient.from_connection_string(world._text) as service:
        names = [queue.name for queue in service.list_queues(name_starts_with=world.prefix)]
        found = {}
        for name in names:
            try:
                peeked = service.get_queue_client(name).peek_messages(max_messages=32)
            except ResourceNotFoundError:  # deleted meanwhile
                continue
            found[name.removeprefix(world.prefix)] = [str(message.content) for message in peeked]
        return found


def leaks(world: World) -> list[tuple[str, str, list[str]]]:
    """Return every column that holds a canary, but for the recipients of a run."""
    return [
        (table, column, found)
        for table, row in entities(world)
        for column, value in row.items()
        if (found := found_in(f"{column} {value!r}"))
        if not (table == "runs" and column in ("mail_to", "mail_left") and found == ["recipient"])
    ]


def add_canary_case(world: World, title: str = "Gelberkanari", email: str | None = CALLER, **columns: Any) -> str:
    named = {"firstname": PERSONAL["first name"], "lastname": PERSONAL["last name"], "telephone1": PERSONAL["phone"]}
    contact = world.add_contact(email, **named)
    owner = world.add_owner(OWNER, firstname=PERSONAL["first name"], lastname=PERSONAL["last name"])
    facts = {"contact": contact, "description": "Harzerroller", "ownerid": ("systemuser", owner)} | columns
    return world.add_case(title, **facts)


def plant(world: World) -> None:
    """Add cases that end in every kind of outcome; every value of theirs is a canary."""
    add_canary_case(world)
    add_canary_case(world, title="")
    add_canary_case(world, title="Gelberkanari " * 15)
    add_canary_case(world, email=None)
    add_canary_case(world, email=f"javascript:{CALLER}")
    add_canary_case(world, title="Gelberkanari resolved", statecode=1)
    for _ in range(2):
        world.servicenow.insert("incident", short_description="Gelberkanari doubled", description="Harzerroller")
        world.servicenow.insert("sys_user", user_name=f"Kanarienvogel{_}", email="canary.twice@customer.example")
    add_canary_case(world, title="Gelberkanari doubled")
    add_canary_case(world, title="Gelberkanari twice", email="canary.twice@customer.example")
    world.add_servicenow_user("canary.gone@customer.example", active="false")
    add_canary_case(world, title="Gelberkanari gone", email="canary.gone@customer.example")
    account = world.dynamics.insert("account", name="Kanarienvogel GmbH")
    world.add_case("Gelberkanari account", customerid_account=account, description="Harzerroller")


def be_quick(world: World) -> None:
    """Let the app give up soon, and repeat calls without a pause in between."""
    world.change_settings(max_wait_s=60, max_attempts=2)
    for system in world.systems.values():
        system._http._sleep = lambda _: None


def ask(trigger: str, params: dict[str, str] | None = None, **route: str) -> str:
    """Call a trigger function and return its answer's text."""
    method = "POST" if "action" in route else "GET"
    request = func.HttpRequest(method, "http://localhost/api/x", params=params, route_params=route, body=b"")
    return getattr(function_app, trigger).build().get_user_function()(request).get_body().decode()


def start(world: World, monkeypatch: pytest.MonkeyPatch, **params: str) -> str:
    monkeypatch.setattr(function_app, "_build_app", lambda: world.app)
    given = {"Email": RECIPIENT, "code": SECRETS["function key"], "window": "yesterday"} | params
    return json.loads(ask("start_sync", given, recipe=RECIPE))["run_id"]


def test_the_scan_finds_what_is_there(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipients stand where they may stand and are found there: else nothing here proves anything."""
    plant(world)
    run_id = start(world, monkeypatch)

    rows = entities(world)

    (run,) = [row for table, row in rows if table == "runs" and run_id in repr(row)]
    assert found_in(repr(run)) == ["recipient"]
    assert "pages" in queued(world)


FAULTS: dict[str, list[dict[str, Any]]] = {
    "nothing else": [],
    "records refused": [
        {"kind": FaultKind.STATUS, "method": "POST", "path": "/incident", "status": 400, "body": ECHO, "times": 3},
        {"kind": FaultKind.STATUS, "method": "POST", "path": "/sys_user", "status": 403, "body": ECHO, "times": 0},
    ],
    "answers lost": [
        {"kind": FaultKind.STATUS_AFTER, "method": "POST", "path": "/incident", "status": 502, "body": ECHO, "times": 3},
        {"kind": FaultKind.RESET_AFTER, "method": "POST", "path": "/sys_user"},
        {"kind": FaultKind.STATUS, "path": "/table/", "status": 200, "body": ECHO, "skip": 8, "times": 2},
    ],
    "nobody there": [{"kind": FaultKind.STATUS, "path": "/table/incident", "status": 503, "body": ECHO, "times": 0}],
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_no_failure_stores_what_a_record_says(world: World, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Runs, previews, verifications, retries and skips over records that fail in every way: rows and answers hold no value."""
    plant(world)
    be_quick(world)
    for fault in FAULTS[name]:
        world.servicenow.add_fault(**fault)
    world.mailbox.add_mail_fault(MailFaultKind.REFUSE_RECIPIENT, code=450)

    run_ids = []
    for params in ({"preview": "true"}, {}, {"verify": "true"}):
        run_ids.append(start(world, monkeypatch, **params))
        world.pump.run(for_s=3600)
    answers = [ask(trigger, run_id=run_id) for run_id in run_ids for trigger in ("get_run", "list_results")]
    answers += [ask("list_runs"), ask("change_run", run_id=run_ids[1], action="retry")]
    world.pump.run(for_s=3600)
    answers.append(ask("change_run", run_id=run_ids[1], action="skip"))

    assert all(world.run_row(run_id).state.ended for run_id in run_ids)
    assert leaks(world) == []
    assert [found for answer in answers if (found := found_in(answer))] == []
    assert not any(queued(world).values())
    assert len(entities(world)) > 5


def test_tables_hold_nothing_while_messages_carry_records(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a run the values are in the messages that are still to be worked, and nowhere else."""
    plant(world)
    start(world, monkeypatch)

    world.pump.run(until=lambda: any(each.queue == "items" for each in world.pump.waiting))

    assert found_in(" ".join(each.body for each in world.pump.waiting))
    assert leaks(world) == []


def test_burying_keeps_ids_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages that kill every worker carry records into the poison queue; what is written of them holds no value."""
    plant(world)
    run_id = start(world, monkeypatch)

    def die(*_: Any) -> None:
        raise MemoryError(CALLER)

    monkeypatch.setitem(TRIGGERS, "items", die)
    world.pump.run(for_s=3600)

    assert {each.queue for each in world.pump.poisoned} == {"items"}
    assert found_in(" ".join(each.body for each in world.pump.poisoned))
    assert leaks(world) == []
    assert "worker_died" in {result.reason for result in world.results(run_id).values()}
    assert not any(queued(world).values())
    assert "buried" in {row.get("action") for table, row in entities(world) if table == "audit"}


@pytest.mark.parametrize("queue", ["pages", "items", "events", "runs", "summaries"])
def test_burying_what_is_not_ours_keeps_nothing(world: World, queue: str) -> None:
    """A foreign message with somebody's data is counted in the log; nothing of it is written down."""
    row = RowModel(key="k", fields={"title": "Gelberkanari", "emailaddress1": CALLER}, label="Harzerroller")
    stranger = ItemsMessage(run_id="other_recipe-20260310T090000000-abcd", page=0, items=[ItemModel(key="k", row=row)])

    for body in (json.dumps(PERSONAL).encode(), stranger.body().encode(), CALLER.encode(), b"\xff" + CALLER.encode()):
        messages.on_poison(world.app, queue, body)

    assert leaks(world) == []
    assert not any(queued(world).values())


def test_mail_holds_what_it_is_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The summary names records by number and the users that were made by address; no title, no name, no secret."""
    plant(world)
    start(world, monkeypatch)
    world.pump.run()

    (mail,) = world.mailbox.mails
    said = found_in(f"{mail.text} {mail.html} {mail.message['Subject']}")
    assert set(said) <= {"caller", "owner"}
    assert list(mail.recipients) == [RECIPIENT]


@pytest.mark.parametrize("ids", [CALLER, "Gelberkanari", "a b", "a'b", "a^b", "a/b", "x" * 101])
def test_ids_are_keys_and_no_values(world: World, monkeypatch: pytest.MonkeyPatch, ids: str) -> None:
    """Whoever asks for a record by its email or title is told to give its id: what is asked for is stored with the run."""
    monkeypatch.setattr(function_app, "_build_app", lambda: world.app)

    answer = json.loads(ask("start_sync", {"Email": RECIPIENT, "ids": ids}, recipe=RECIPE))

    if ids != "Gelberkanari":  # a word may be a key
        assert answer["error"] == "bad_window"
        assert world.runs() == []
