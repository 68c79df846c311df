"""What reaches us broken: messages that are not ours, expired pages, hostile answers, recipes, settings and rows."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from azure.functions.queue import QueueMessage

import function_app
from sandbox.simulator import FaultKind
from shared.errors import ConfigError, StateError
from shared.state.messages import (
    MESSAGES,
    EventMessage,
    ItemModel,
    ItemsMessage,
    Message,
    PageMessage,
    RowModel,
    RunMessage,
    SummaryMessage,
)
from shared.state.queues import fit
from shared.state.rows import AuditRow, CursorRow, MailState, Outcome, ResultRow, RunState
from tests.flows.world import NOW, RECIPE, Delivery, Stage, World, new_world

TRIGGERS = {
    "pages": function_app.list_page,
    "items": function_app.sync_items,
    "events": function_app.sync_events,
    "runs": function_app.finish_run,
    "summaries": function_app.send_summary,
    "pages-poison": function_app.bury_page,
    "items-poison": function_app.bury_items,
    "events-poison": function_app.bury_event,
    "runs-poison": function_app.bury_run,
    "summaries-poison": function_app.bury_summary,
}
INCIDENTS = "/api/now/table/incident"
ERROR_BODY = '{"error": {"message": "Operation Failed", "detail": "canary"}, "status": "failure"}'


@pytest.fixture
def app(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """Let the triggers work on this test's own world."""
    monkeypatch.setattr(function_app, "_build_app", lambda: world.app)
    return world


@pytest.fixture(scope="module")
def idle_world(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with new_world(stage, tmp_path_factory.mktemp("recipes"), "tidlebad") as made:
        yield made


@pytest.fixture
def idle(idle_world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """Let the triggers work on a world in which nothing ever happens."""
    monkeypatch.setattr(function_app, "_build_app", lambda: idle_world.app)
    return idle_world


def deliver(queue: str, body: str | bytes | Message, count: int = 1) -> None:
    """Hand a message to its trigger, as the worker does. Whatever is raised makes the host keep the message."""
    content = body.body() if isinstance(body, Message) else body
    message = QueueMessage(id="m-1", body=content, dequeue_count=count)
    answer = TRIGGERS[queue].build().get_user_function()(message)
    assert answer is None


def example(model: type[Message], run_id: str = f"{RECIPE}-20260310T090000000-abcd") -> Message:
    """Return a message of ours."""
    facts: dict[str, Any] = {
        "run_id": run_id,
        "page": 0,
        "items": [ItemModel(key="k")],
        "recipe": RECIPE,
        "record": "dynamics365.incident",
        "key": "k",
        "name": "Update",
        "event_id": "e",
        "received_at": NOW,
    }
    return model(**{name: facts[name] for name in model.model_fields if name in facts})


# -- messages that are not ours -----------------------------------------------------------------------------------------

NOT_OURS = {
    "bytes": b"\x00\xff\xfe random \x80",
    "empty": b"",
    "text": b"hello",
    "other": b'{"order": 7, "customer": "canary@customer.example"}',
    "list": b"[1, 2]",
    "wrong-types": b'{"schema_version": 1, "run_id": {"a": 1}, "page": "x", "items": 3}',
    "deep": b"[" * 50_000,
}


@pytest.mark.parametrize("queue", TRIGGERS)
@pytest.mark.parametrize("body", NOT_OURS.values(), ids=NOT_OURS.keys())
def test_a_message_that_is_not_ours_is_recorded_and_gone(
    idle: World, caplog: pytest.LogCaptureFixture, queue: str, body: bytes
) -> None:
    """Nothing is raised, so the host deletes it; one line names the queue, and none repeats the message."""
    deliver(queue, body)

    (line,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert line.message == "a message that is not ours was dropped"
    assert (line.queue, line.code) == (queue, "not_ours")
    assert "canary" not in caplog.text
    assert idle.runs() == []


@pytest.mark.parametrize("queue", TRIGGERS)
def test_a_message_of_a_newer_app_stays(idle: World, queue: str) -> None:
    """Two versions run side by side while one is deployed: the older one leaves to the newer what it cannot read."""
    message = example(next(m for m in MESSAGES if queue.startswith(m.QUEUE)))

    with pytest.raises(StateError) as caught:
        deliver(queue, message.model_copy(update={"schema_version": 99}))

    assert caught.value.code == "newer_schema"
    assert idle.runs() == []


@pytest.mark.parametrize("model", MESSAGES, ids=lambda model: model.QUEUE)
@pytest.mark.parametrize("poison", ["", "-poison"], ids=["queue", "poison"])
def test_a_message_of_a_run_that_is_gone_ends_quietly(idle: World, model: type[Message], poison: str) -> None:
    """Runs are deleted after their retention; a late message finds nothing and does no harm."""
    if model is EventMessage:
        message: Message = example(model).model_copy(update={"recipe": "was_removed"})
    else:
        message = example(model)

    deliver(model.QUEUE + poison, message)

    assert idle.runs() == []


# -- poison -------------------------------------------------------------------------------------------------------------


def test_a_poison_item_becomes_a_failed_result_with_its_reason(app: World, caplog: pytest.LogCaptureFixture) -> None:
    """The last known reason stands in the result; without one, that the worker died. The run ends and is told of it."""
    known, unknown = app.add_case(), app.add_case()
    run = app.start()
    app.pump.lost = lambda delivery: delivery.queue == "items"
    app.pump.run(for_s=5)
    reasons = {known: {"reason": "vendor_unavailable", "problem": "ServiceNow failed (503)."}, unknown: {}}

    for case, facts in reasons.items():
        deliver("items-poison", ItemsMessage(run_id=run.run_id, page=0, items=[ItemModel(key=case)], **facts))
    app.pump.run()

    results = app.results(run)
    assert {case: (result.outcome, result.reason) for case, result in results.items()} == {
        known: (Outcome.FAILED, "vendor_unavailable"),
        unknown: (Outcome.FAILED, "worker_died"),
    }
    assert results[known].message == "ServiceNow failed (503)."
    assert app.run_row(run).state is RunState.COMPLETED_WITH_FAILURES
    assert "ServiceNow failed (503)." in app.mailbox.mails[0].text
    assert sorted(app.open_keys()) == sorted([known, unknown])


def test_poison_messages_are_counted(app: World, caplog: pytest.LogCaptureFixture) -> None:
    """Each one is a line with its queue and how many records it held, and stands in the record of who did what."""
    run = app.start()

    deliver("items-poison", ItemsMessage(run_id=run.run_id, page=0, items=[ItemModel(key="a"), ItemModel(key="b")]))

    (line,) = [record for record in caplog.records if record.message == "a message was delivered too often"]
    assert (line.queue, line.count, line.reason, line.run_id) == ("items", 2, "worker_died", run.run_id)
    assert [row.detail for row in app.tables.query(AuditRow, "2026-03") if row.action == "buried"] == [
        "items: 2, worker_died"
    ]


def test_a_poison_item_does_not_change_a_result(app: World) -> None:
    """A record that was worked before its message died keeps its result."""
    case = app.add_case()
    run = app.sync()

    deliver("items-poison", ItemsMessage(run_id=run.run_id, page=0, items=[ItemModel(key=case)]))

    assert app.outcomes(run) == {"created": 1}


def test_a_poison_item_of_a_guarded_record_ends_the_run(app: World) -> None:
    """A held record whose message dies after the confirmation has failed: it does not wait for ever."""
    app.change_settings(max_new_users=0)
    case = app.add_case(contact=app.add_contact("new@customer.example"))
    run = app.start()
    app.pump.run(for_s=60)
    app.pump.lost = lambda delivery: delivery.queue == "items"
    function_app.api.runs.confirm_run(app.app, run.run_id, "http")
    app.pump.run(for_s=60)

    deliver("items-poison", ItemsMessage(run_id=run.run_id, page=0, items=[ItemModel(key=case)]))
    app.pump.run()

    assert app.run_row(run).state is RunState.COMPLETED_WITH_FAILURES
    assert app.outcomes(run) == {"failed": 1}


def test_a_poison_page_fails_the_run(app: World) -> None:
    """A listing that kills its workers ends the run as failed, and the mail says so."""
    run = app.start()
    app.pump.lost = lambda delivery: delivery.queue == "pages"
    app.pump.run(for_s=0)

    deliver("pages-poison", PageMessage(run_id=run.run_id))
    app.pump.run()

    assert app.run_row(run).state is RunState.FAILED
    assert "died each time" in app.run_row(run).error
    assert "died each time" in app.mailbox.mails[0].text


def test_a_poison_check_is_looked_at_again(app: World) -> None:
    """A run ends although the message that looks after it died."""
    app.add_case()
    run = app.start()
    app.pump.lost = lambda delivery: delivery.queue == "runs" and app.now() == NOW
    app.pump.run()
    app.pump.lost = lambda _: False
    assert app.run_row(run).state is RunState.RUNNING

    deliver("runs-poison", RunMessage(run_id=run.run_id, turn=app.run_row(run).turn))
    app.pump.run()

    assert app.run_row(run).state is RunState.COMPLETED


def test_a_poison_summary_says_so_on_the_run(app: World) -> None:
    """A mail that could not be built leaves `summary_failed`; one that was sent stays sent, one not due yet stays owed."""
    sent = app.sync()
    app.pump.lost = lambda delivery: delivery.queue == "summaries"
    unsent = app.sync()
    running = app.start("today")

    for run in (sent, unsent, running):
        deliver("summaries-poison", SummaryMessage(run_id=run.run_id))

    assert app.run_row(sent).mail_state is MailState.SENT
    assert app.run_row(unsent).mail_state is MailState.SUMMARY_FAILED
    assert app.run_row(running).mail_state is MailState.OWED


def test_a_poison_event_becomes_a_failed_result(app: World) -> None:
    """An event that killed its workers is a failed result of its day, and its record is kept as open."""
    deliver("events-poison", example(EventMessage))

    (run,) = app.runs()
    (result,) = (row for page in range(64) for row in app.tables.query(ResultRow, f"{run.run_id}!{page:06d}"))
    assert (result.outcome, result.reason, result.record_key) == (Outcome.FAILED, "worker_died", "k")
    assert app.open_keys() == ["k"]


# -- an app that cannot be built, and storage that refuses ----------------------------------------------------------------


@pytest.mark.parametrize("queue", TRIGGERS)
def test_without_settings_no_message_is_dropped(queue: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trigger raises, so the message comes back; the poison trigger raises too, and its queue has no poison queue."""
    for name in ("AzureWebJobsStorage", "APP_URL", "DIGEST_KEYS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(function_app, "configure_logging", lambda: None)  # pytest's handlers are not ours to change
    function_app._build_app.cache_clear()

    with pytest.raises(ConfigError) as caught:
        deliver(queue, b"anything")

    assert "AzureWebJobsStorage" in caught.value.message


def test_poison_messages_stay_while_storage_refuses(app: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure that cannot be written down now is not dropped: the message comes back after its lease."""
    case = app.add_case()
    run = app.start()
    app.pump.lost = lambda delivery: delivery.queue == "items"
    app.pump.run(for_s=5)
    message = ItemsMessage(run_id=run.run_id, page=0, items=[ItemModel(key=case)])

    def refuse(*_: Any, **__: Any) -> None:
        raise StateError("Storage refused.")

    with monkeypatch.context() as broken:
        broken.setattr(app.tables, "insert", refuse)
        with pytest.raises(StateError):
            deliver("items-poison", message)
    deliver("items-poison", message, count=2)
    app.pump.run()

    assert app.outcomes(run) == {"failed": 1}
    assert app.run_row(run).state is RunState.COMPLETED_WITH_FAILURES


@pytest.mark.parametrize("queue", ["pages", "items", "runs", "summaries", "items-poison"])
def test_a_row_of_a_newer_app_stops_the_work(app: World, queue: str) -> None:
    """A row that a newer app wrote is not read by halves: the message stays until that app is deployed."""
    run = app.start()
    app.tables.upsert(run.model_copy(update={"schema_version": 99}))

    with pytest.raises(StateError) as caught:
        deliver(queue, example(next(m for m in MESSAGES if queue.startswith(m.QUEUE)), run.run_id))

    assert caught.value.code == "newer_schema"
    assert "deploy" in caught.value.message


# -- pages and answers --------------------------------------------------------------------------------------------------


def test_a_page_link_that_expired_loses_no_case(stage: Stage, tmp_path: Path, prefix: str) -> None:
    """The listing goes on from the last record's change time: every case gets its one incident and its one count."""
    with new_world(stage, tmp_path / "recipes", prefix, {"CONNECTIONS__DYNAMICS365__PAGE_SIZE": "2"}) as world:
        cases = [world.add_case() for _ in range(7)]
        run = world.start()

        def expire(delivery: Delivery) -> None:
            if delivery.queue == "pages" and json.loads(delivery.body)["page"] == 2:
                world.clock.advance(world.dynamics.settings.paging_cookie_s + 1)

        world.pump.before = expire
        world.pump.run(for_s=3 * 3600)
        ended = world.run_row(run)

        assert 400 in [call.status for call in world.dynamics.requests("GET", "skiptoken")]
        assert ended.state is RunState.COMPLETED
        assert len(world.incidents()) == len(cases)
        assert {world.incident_of(case)["correlation_id"] for case in cases} == set(cases)
        assert sum(ended.counts.values()) == len(cases)


HOSTILE = {
    "error-in-200": (FaultKind.STATUS, {"status": 200, "body": ERROR_BODY}),
    "error-in-200-after-effect": (FaultKind.STATUS_AFTER, {"status": 200, "body": ERROR_BODY}),
    "html": (FaultKind.HTML, {}),
    "truncated": (FaultKind.TRUNCATED, {}),
    "202": (FaultKind.STATUS, {"status": 202, "body": ""}),
    "202-after-effect": (FaultKind.STATUS_AFTER, {"status": 202, "body": ""}),
    "empty-200": (FaultKind.STATUS, {"status": 200, "body": ""}),
    "no-rows": (FaultKind.STATUS, {"status": 200, "body": '{"result": "canary"}'}),
}


def never_pause(world: World) -> None:
    """Let calls be repeated without the short pause in between."""
    for system in world.systems.values():
        system._http._sleep = lambda _: None


READS = [name for name in HOSTILE if "effect" not in name]


@pytest.mark.parametrize(("method", "answer"), [("POST", name) for name in HOSTILE] + [("GET", name) for name in READS])
def test_a_hostile_answer_ends_in_one_incident(world: World, method: str, answer: str) -> None:
    """200 with an error or HTML, cut JSON, a dropped request: whatever took effect is found, nothing is doubled."""
    kind, facts = HOSTILE[answer]
    case = world.add_case()
    world.servicenow.add_fault(kind, method=method, path=INCIDENTS, **facts)

    run = world.sync()

    assert run.state is RunState.COMPLETED
    assert run.counts == {"created": 1}
    assert world.incident_of(case)["short_description"] == "Case number 1"


@pytest.mark.parametrize("fault", [HOSTILE["error-in-200"], HOSTILE["html"]], ids=["error-in-200", "html"])
def test_answers_that_stay_hostile_fail_the_record(world: World, fault: tuple[FaultKind, Any]) -> None:
    """A system that never answers sensibly ends in a failed record with a reason, not in a run without end."""
    kind, facts = fault
    world.add_case()
    world.servicenow.add_fault(kind, method="POST", path=INCIDENTS, times=0, **facts)
    world.servicenow.add_fault(kind, method="GET", path=INCIDENTS, times=0, **facts)

    run = world.start()
    never_pause(world)
    world.pump.run(for_s=3 * 86_400)

    ended = world.run_row(run)
    assert ended.state in (RunState.COMPLETED_WITH_FAILURES, RunState.FAILED)
    (result,) = world.results(run).values()
    assert result.reason
    assert "ServiceNow" in result.message
    assert "canary" not in result.message
    assert len(world.incidents()) <= 1
    assert len(world.mailbox.mails) == 1


@pytest.mark.parametrize("body", ["<html>", '{"value": [{}]}', '{"value": [5]}', "[]"])
def test_a_hostile_listing_fails_the_run(world: World, body: str) -> None:
    """A source that lists nonsense for good ends the run as failed, with a sentence in the mail."""
    world.add_case()
    world.dynamics.add_fault(FaultKind.STATUS, path=r"/incidents\?", times=0, status=200, body=body)

    run = world.start()
    never_pause(world)
    world.pump.run(for_s=3 * 86_400)

    ended = world.run_row(run)
    assert ended.state is RunState.FAILED
    assert "Dynamics" in ended.error
    assert len(world.mailbox.mails) == 1


# -- recipes and settings -----------------------------------------------------------------------------------------------


def test_a_broken_recipe_names_every_fault_at_start(world: World) -> None:
    """The app does not start; one error names each fault with file, line and the word that was probably meant."""
    with pytest.raises(ConfigError) as caught:
        world.change_recipe("    convert: {truncate: 160}", "    convrt: {truncate: 160}")
    with pytest.raises(ConfigError) as both:
        world.change_recipe("gone:", "gnoe:")

    assert "convrt" in caught.value.message
    assert "convert" in caught.value.message
    assert f"{RECIPE}.yaml:" in caught.value.message
    assert all(word in both.value.message for word in ("convrt", "convert", "gnoe", "gone"))


def test_a_recipe_that_does_not_fit_its_systems_fails_the_run(world: World) -> None:
    """Before its first run a recipe is compared with both systems: all misfits stand on the run and in the mail."""
    world.change_recipe("  contact_type:", "  contact_tipe:")
    world.change_recipe("from: createdon", "from: createdom")
    world.add_case()

    run = world.sync()

    assert run.state is RunState.FAILED
    assert all(word in run.error for word in ("contact_tipe", "contact_type", "createdom", "createdon"))
    assert f"{RECIPE}.yaml:" in run.error
    assert "contact_tipe" in world.mailbox.mails[0].text
    assert world.incidents() == []
    cursor = world.tables.get(CursorRow, RECIPE, "cursor")
    assert cursor is not None
    assert cursor.validated_hash == ""


def test_bad_settings_are_named_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is missing or wrong stands in one message, so that it is mended in one go."""
    for name in ("AzureWebJobsStorage", "MAIL__HOST", "CONNECTIONS__SERVICENOW__URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("APP_URL", "no address")
    monkeypatch.setenv("TIME_ZONE", "Middle/Earth")
    monkeypatch.setenv("DIGEST_KEYS", "short:secret")
    monkeypatch.setattr(function_app, "configure_logging", lambda: None)  # pytest's handlers are not ours to change
    function_app._build_app.cache_clear()

    with pytest.raises(ConfigError) as caught:
        function_app.get_app()

    wanted = ("AzureWebJobsStorage", "MAIL", "APP_URL", "TIME_ZONE", "DIGEST_KEYS", "ALLOWED_MAIL_DOMAINS")
    assert all(name in caught.value.message for name in wanted)
    assert "short:secret" not in caught.value.message


def test_a_message_with_a_huge_record_travels_as_its_key() -> None:
    """A record that would not fit into a queue message is read again from its source."""
    row = RowModel(key="k", fields={"description": "x" * 100_000})

    message = fit(ItemsMessage(run_id="r", page=0, items=[ItemModel(key="k", row=row)]))

    assert message.items == [ItemModel(key="k")]
