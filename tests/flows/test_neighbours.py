"""One record's trouble stays its own, however it was worked: with a page, with events that wait together, inside another."""

import threading
from datetime import datetime, timedelta
from typing import Any

import pytest

from sandbox import dynamics365_render
from shared.clients.servicenow import ServiceNow
from shared.state.messages import ItemModel
from shared.state.rows import Outcome, RunState
from sync import bulk, events, items
from tests.flows.contacts import ContactWorld
from tests.flows.world import YESTERDAY, Killed, World

WAIT_S = 60.0  # longer than any machine stalls


def test_event_that_kills_its_workers_takes_nobody_along(
    contact_world: ContactWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events that were worked together with a deadly one are delivered again, and none of them dies with it for good."""
    world = contact_world
    deadly = world.contact("deadly@customer.example")
    work = events._work_together

    def die(app: Any, recipe: str, group: Any) -> None:
        if any(taken.message.key == deadly for taken in group):
            raise Killed("by its content")
        work(app, recipe, group)

    monkeypatch.setattr(events, "_work_together", die)
    ids = [world.hook("contact", world.contact(f"c{number}@customer.example"), "Create") for number in range(5)]
    fatal = world.hook("contact", deadly, "Create")
    ids += [world.hook("contact", world.contact(f"d{number}@customer.example"), "Create") for number in range(5)]

    world.pump.run()

    assert (world.event(fatal).outcome, world.event(fatal).reason) == (Outcome.FAILED, "worker_died")
    assert {world.event(event_id).outcome for event_id in ids} == {Outcome.CREATED}


def test_record_that_no_step_can_take_fails_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of ours in what a page does together costs one record, not the page's run."""
    cases = [world.add_case(f"Case {number}") for number in range(3)]
    find_matches = items.find_matches

    def stumble(target: Any, record: str, paths: Any, rules: Any, asks: Any, ahead: Any) -> Any:
        if any(mapped.key == cases[1] for mapped, _ in asks):
            raise KeyError("a bug of ours")
        return find_matches(target, record, paths, rules, asks, ahead)

    monkeypatch.setattr(items, "find_matches", stumble)

    run = world.sync()

    results = world.results(run)
    assert (results[cases[1]].outcome, results[cases[1]].reason) == (Outcome.FAILED, "internal_error")
    assert [results[case].outcome for case in (cases[0], cases[2])] == [Outcome.CREATED] * 2


def test_company_that_no_step_can_take_fails_its_contacts_alone(
    contact_world: ContactWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of ours about one company fails its contact; the contacts beside it are worked."""
    world = contact_world
    bad, good = world.account("Bad"), world.account("Good")
    map_work = items.map_work

    def stumble(flow: Any, work: Any) -> None:
        if work.key == bad:
            raise KeyError("a bug of ours")
        map_work(flow, work)

    monkeypatch.setattr(items, "map_work", stumble)
    ids = [
        world.hook("contact", world.contact(f"{name}@customer.example", account), "Create")
        for name, account in (("bad", bad), ("good", good))
    ]

    world.pump.run()

    assert [world.event(each).outcome for each in ids] == [Outcome.FAILED, Outcome.CREATED]
    assert world.event(ids[0]).reason == "internal_error"


def _show_no_time(monkeypatch: pytest.MonkeyPatch, moment: datetime) -> None:
    """Let Dynamics 365 write one moment as something that is none."""
    write = dynamics365_render.write_moment
    monkeypatch.setattr(
        dynamics365_render, "write_moment", lambda value: "yesterday-ish" if value == moment else write(value)
    )


@pytest.mark.parametrize("window", ["yesterday", "all"], ids=["one by one", "bulk"])
def test_record_with_an_unreadable_time_fails_alone(world: World, monkeypatch: pytest.MonkeyPatch, window: str) -> None:
    """A case whose time of change cannot be read is read again later, then fails by that name; its page goes on."""
    moment = YESTERDAY - timedelta(hours=2)
    cases = [world.add_case(), world.add_case(modifiedon=moment), world.add_case()]
    _show_no_time(monkeypatch, moment)

    run = world.sync(window)

    results = world.results(run)
    bad = results[cases[1]]
    assert run.state is RunState.COMPLETED_WITH_FAILURES
    assert (bad.outcome, bad.reason, bad.attempts) == (Outcome.FAILED, "unreadable_answer", 5)
    assert "modifiedon" in bad.message
    assert [results[case].outcome for case in (cases[0], cases[2])] == [Outcome.CREATED] * 2
    assert world.incidents(correlation_id=cases[1]) == []


def test_event_with_an_unreadable_time_fails_alone(
    contact_world: ContactWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A contact whose time of change cannot be read costs the events that were worked with it nothing."""
    world = contact_world
    moment = YESTERDAY - timedelta(hours=2)
    _show_no_time(monkeypatch, moment)
    bad = world.hook("contact", world.contact("bad@customer.example", modifiedon=moment), "Create")
    good = world.hook("contact", world.contact("good@customer.example"), "Create")

    world.pump.run()

    assert (world.event(bad).outcome, world.event(bad).reason) == (Outcome.FAILED, "unreadable_answer")
    assert (world.event(good).outcome, world.event(good).attempts) == (Outcome.CREATED, 1)


def test_target_with_an_unreadable_time_fails_its_record_alone(world: World) -> None:
    """An incident that shows a time which is none is not written over; the cases beside it are updated."""
    cases = [world.add_case(), world.add_case()]
    world.sync()
    incidents = [world.incident_of(case) for case in cases]
    world.servicenow.tables["incident"][incidents[0]["sys_id"]]["sys_updated_on"] = "yesterday-ish"
    for case in cases:
        world.edit_case(case, title="Changed")

    run = world.sync("today")

    results = world.results(run)
    assert (results[cases[0]].outcome, results[cases[0]].reason) == (Outcome.FAILED, "unreadable_answer")
    assert results[cases[1]].outcome is Outcome.UPDATED
    assert world.incident_of(cases[0])["short_description"] == incidents[0]["short_description"]


def test_rules_are_asked_while_references_are_looked_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page's incidents are looked for beside its callers, each once."""
    for number in range(3):
        world.add_servicenow_user(f"ann{number}@customer.example")
        world.add_case(f"Case {number}", contact=world.add_contact(f"ann{number}@customer.example"))
    asked: list[tuple[str, ...]] = []
    all_rules_asked = threading.Event()
    fetch_rows = ServiceNow.fetch_rows

    def fetch(self: ServiceNow, record: str, paths: Any, by: Any, values: Any) -> Any:
        if record == "sys_user":
            assert all_rules_asked.wait(WAIT_S)
        elif record == "incident":
            asked.append(tuple(by))
            if len(asked) == 3:
                all_rules_asked.set()
        return fetch_rows(self, record, paths, by, values)

    monkeypatch.setattr(ServiceNow, "fetch_rows", fetch)

    run = world.sync()

    assert [result.outcome for result in world.results(run).values()] == [Outcome.CREATED] * 3
    assert sorted(asked) == [("correlation_id",), ("number",), ("short_description",)]


PARENT = """  parent_incident:
    from: masterid
    find:
      record: incident
      match: [number]
      write: create
      fields:
        number: {from: ticketnumber}
        short_description: {from: title}

  correlation_display:"""


def test_record_that_a_page_made_as_a_reference_is_not_made_again(world: World) -> None:
    """A case whose incident was just made as another's parent takes that one, although it was not there before."""
    world.change_recipe("  correlation_display:", PARENT)
    parent = world.add_case("Parent")
    child = world.add_case("Child", masterid=parent)

    run = world.sync()

    results = world.results(run)
    assert (results[child].outcome, results[parent].outcome) == (Outcome.CREATED, Outcome.ADOPTED)
    assert len(world.incidents(number=world.number_of(parent))) == 1


def test_record_that_a_neighbours_reference_made_is_not_made_again(world: World) -> None:
    """So it is where references are made at once, as those of events."""
    world.change_recipe("  correlation_display:", PARENT)
    run = world.sync()
    parent = world.add_case("Parent")
    child = world.add_case("Child", masterid=parent)
    works = items.works_of([ItemModel(key=key) for key in (child, parent)], page=0, owner="test")
    flow = world.app.flow(world.recipe)

    items.prepare(flow, run, works, create_references=True)
    bulk.finish(flow, run, works)

    assert [work.outcome for work in works] == [Outcome.CREATED, Outcome.ADOPTED]
    assert len(world.incidents(number=world.number_of(parent))) == 1
