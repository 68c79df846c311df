"""What an operator does about failed records over HTTP acts on just those, and leaves the first run and its mail as they were."""

import json
from typing import Any

import azure.functions as func
import pytest

import function_app
from shared.errors import MappingError
from sync import repairs
from tests.flows.contacts import ContactWorld
from tests.flows.world import World


@pytest.fixture
def app(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """Let the triggers work on this test's own world."""
    monkeypatch.setattr(function_app, "_build_app", lambda: world.app)
    return world


def repair(run_id: str, action: str, *ids: str) -> Any:
    """Call a run's repair as a person does, and return the answer."""
    body = json.dumps({"ids": list(ids)} if ids else {}).encode()
    headers = {"Content-Type": "application/json"}
    request = func.HttpRequest(
        "POST",
        "http://localhost:7071/api/x",
        headers=headers,
        route_params={"run_id": run_id, "action": action},
        body=body,
    )
    response: func.HttpResponse = function_app.change_run.build().get_user_function()(request)
    assert response.status_code in (200, 202), response.get_body()
    return json.loads(response.get_body())


def two_failed(world: World) -> tuple[str, str, str]:
    """Run over three cases of which two have no title; return those two and the run."""
    first, second, _ = world.add_case(title=""), world.add_case(title=""), world.add_case("Fine")
    run = world.sync()
    assert run.counts == {"failed": 2, "created": 1}
    return first, second, run.run_id


def test_retry_works_what_failed_and_nothing_else(app: World) -> None:
    """A new run over the failed records; what the first run says of them, and its mail, stand."""
    first, second, run_id = two_failed(app)
    for case in (first, second):
        app.edit_case(case, title="Has one now")
    before = {key: row.outcome for key, row in app.results(run_id).items()}

    again = repair(run_id, "retry")["run_id"]
    app.pump.run()

    assert again != run_id
    assert {key: row.outcome for key, row in app.results(again).items()} == {first: "created", second: "created"}
    assert {key: row.outcome for key, row in app.results(run_id).items()} == before
    assert len(app.mailbox.mails) == 2
    assert app.open_keys() == []


def test_retry_of_one_leaves_the_other(app: World) -> None:
    """Of several failed records only the named one is worked."""
    first, second, run_id = two_failed(app)
    for case in (first, second):
        app.edit_case(case, title="Has one now")

    again = repair(run_id, "retry", first)["run_id"]
    app.pump.run()

    assert {key: row.outcome for key, row in app.results(again).items()} == {first: "created"}
    assert app.open_keys() == [second]


@pytest.mark.parametrize("action", ["retry", "skip"])
def test_id_that_did_not_fail_is_named_and_nothing_is_done(app: World, action: str) -> None:
    """A misspelt id among others must not look as if it had been taken."""
    first, second, run_id = two_failed(app)

    with pytest.raises(MappingError, match="misspelt") as refused:
        repairs.ACTIONS[action](app.app, app.run_row(run_id), "operator", [first, "misspelt"])

    assert refused.value.code == "nothing_to_repair"
    assert sorted(app.open_keys()) == sorted([first, second])
    assert len(app.runs()) == 1


@pytest.mark.parametrize("named", ["key", "record_key"])
def test_event_that_failed_is_retried_by_either_key(contact_world: ContactWorld, named: str) -> None:
    """The result of an event has two: the event's, and its record's."""
    world = contact_world
    contact, other = world.contact(None), world.contact(None)
    failed = [world.send("contact", each, "Create") for each in (contact, other)]
    world.edit("contact", contact, emailaddress1="ana@customer.example")

    again = repairs.retry_failed(world.app, world.event_run(), "operator", [getattr(failed[0], named)]).run
    world.pump.run()

    assert {key: row.outcome for key, row in world.results(again).items()} == {contact: "created"}


def test_skip_takes_just_the_named_off_the_list(app: World) -> None:
    """The next run takes the other one along, and the skipped one not."""
    first, second, run_id = two_failed(app)

    repair(run_id, "skip", first)
    app.advance(86400)
    following = app.sync("since_last_run")

    assert app.open_keys() == [second]
    assert first not in app.results(following)
    assert second in app.results(following)


def test_skip_of_all_leaves_nothing_open(app: World) -> None:
    """Without ids everything that failed in the run is skipped."""
    _, _, run_id = two_failed(app)

    answer = repair(run_id, "skip")

    assert app.open_keys() == []
    assert (answer["run_id"], answer["repair"]) == (run_id, {"action": "skip", "records": 2})


@pytest.mark.parametrize(("ids", "records"), [(0, 2), (1, 1)], ids=["all", "one"])
def test_retry_says_how_many_records_it_took(app: World, ids: int, records: int) -> None:
    """The answer shows the new run, which is still to begin: the number is what a person has to check."""
    *failed, run_id = two_failed(app)

    answer = repair(run_id, "retry", *failed[:ids])

    assert (answer["run_id"] != run_id, answer["repair"]) == (True, {"action": "retry", "records": records})


@pytest.mark.parametrize(("action", "incidents"), [("recreate", 1), ("unlink", 0)])
def test_missing_target_is_given_up_only_when_a_person_says_so(app: World, action: str, incidents: int) -> None:
    """A deleted incident is never made again by itself; `recreate` does so at once, `unlink` at the case's next change."""
    case = app.add_case()
    app.sync()
    app.servicenow.delete("incident", app.incident_of(case)["sys_id"])
    app.edit_case(case, title="Changed")
    run = app.sync(f"ids={case}")
    assert app.results(run)[case].reason == "target_missing"

    repair(run.run_id, action)
    app.pump.run()
    after_repair = len(app.incidents(correlation_id=case))
    app.edit_case(case, title="Changed again")
    app.sync(f"ids={case}")

    assert after_repair == incidents
    assert len(app.incidents(correlation_id=case)) == 1
    assert app.open_keys() == []
