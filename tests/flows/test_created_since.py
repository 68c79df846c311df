"""Cases that are younger than everything that earlier runs have listed: no link is read for them unless one may be there.

Whatever a case that looks new has behind it, the run ends as if its link had been read at once.
"""

import random
from collections.abc import Callable
from datetime import timedelta

import pytest

from shared.state.rows import RunRow, RunState
from sync import runs
from tests.flows.test_neighbours import PARENT
from tests.flows.world import CALLER, Delivery, Facts, World

WINDOW = "last_days:3"
CLOSED = {"state": "7", "close_code": "Solution provided", "close_notes": "Done."}


@pytest.fixture(params=["single", "bulk"], autouse=True)
def lane(request: pytest.FixtureRequest, world: World) -> None:
    """Work in both lanes."""
    if request.param == "bulk":
        world.change_settings(bulk_above=0)


def _young(world: World, **columns: object) -> str:
    """Add a case that was created now, an hour after the run before."""
    world.advance(3600)
    return world.add_case(createdon=world.now(), modifiedon=world.now(), **columns)


def _linked(world: World, **columns: object) -> str:
    """Add a young case that somebody has synced by itself since the run over all."""
    world.sync(WINDOW)
    case = _young(world, **columns)
    world.sync(f"ids={case}")
    world.advance(60)
    return case


def _again(world: World, window: str = WINDOW, **facts: object) -> RunRow:
    world.forget_journal()
    world.wire.calls.clear()
    return world.sync(window, **facts)


def _change(world: World, case: str, **fields: str) -> None:
    """Change a case's incident as an agent does."""
    world.servicenow.update("incident", world.incident_of(case)["sys_id"], **fields)


def _reasons(world: World, run: RunRow) -> set[str]:
    return {result.reason for result in world.results(run).values()}


# -- what is read -----------------------------------------------------------------------------------------------------


def test_young_cases_cost_no_look_at_links(world: World) -> None:
    """They are made once, and no link is read."""
    world.sync(WINDOW)
    cases = [_young(world) for _ in range(3)]
    world.advance(60)

    run = _again(world)

    assert "storage GET links" not in world.wire.calls
    assert run.counts == {"created": 3}
    assert all(world.incident_of(case) for case in cases)


def test_cases_of_before_are_looked_up(world: World) -> None:
    """A case that an earlier run can have listed is looked up, although it has no link."""
    world.sync(WINDOW)
    world.add_case(modifiedon=world.now())
    world.advance(60)

    run = _again(world)

    assert "storage GET links" in world.wire.calls
    assert run.counts == {"created": 1}


def test_young_case_that_needs_a_user(world: World) -> None:
    """Its user is made as ever, once, and is listed."""
    world.sync(WINDOW)
    case = _young(world, contact=world.add_contact("new@customer.example"))
    world.advance(60)

    run = _again(world)

    assert run.counts == {"created": 1}
    assert len(world.results(run)[case].created_references) == len(world.users("new@customer.example")) == 1


def test_young_case_whose_incident_is_there(world: World) -> None:
    """It is adopted."""
    world.sync(WINDOW)
    case = _young(world)
    world.servicenow.insert("incident", number=world.number_of(case), short_description="From the former integration")
    world.advance(60)

    run = _again(world)

    assert (run.counts, len(world.incidents())) == ({"adopted": 1}, 1)


def test_young_cases_and_older_ones_are_looked_up_together(world: World) -> None:
    """One question for each of three rules and each of two kinds of people, whoever is looked for."""
    world.sync(WINDOW)
    world.advance(3600)
    now = {"createdon": world.now(), "modifiedon": world.now()}
    for number in range(8):
        world.add_case(**(now if number % 2 else {"modifiedon": world.now()}))
    world.advance(60)

    run = _again(world)

    asked = set(world.reads("/table/(incident|sys_user)"))  # some of them again with a new token
    assert (run.counts, len(asked)) == ({"created": 8}, 5)


@pytest.mark.parametrize("by_hand", [False, True])
def test_neighbour_whose_record_a_reference_makes(world: World, by_hand: bool) -> None:
    """Its own case adopts it, also where both were held and a person has made the user meanwhile."""
    world.change_recipe("  correlation_display:", PARENT)
    world.sync(WINDOW)
    world.change_settings(max_new_users=0)
    parent = _young(world, contact=world.add_contact("new@customer.example"))
    _young(world, masterid=parent)
    world.advance(60)
    run = world.sync(WINDOW)
    if by_hand:
        world.add_servicenow_user("new@customer.example")

    runs.confirm_run(world.app, run.run_id, "ada")
    world.pump.run()

    assert len(world.incidents(number=world.number_of(parent))) == 1
    assert len(world.incidents()) == 2


# -- somebody was faster ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edited", [False, True])
def test_case_synced_by_itself(world: World, edited: bool) -> None:
    """What changed since is written, and that only."""
    case = _linked(world)
    if edited:
        world.edit_case(case, title="Another title")

    run = _again(world)

    assert run.counts == ({"updated": 1} if edited else {"unchanged": 1})
    assert world.incident_of(case)["short_description"] == world.case(case)["title"]
    assert len(world.writes()) == edited


def test_case_that_is_over(world: World) -> None:
    """It is looked up however young it is: its incident hears of the end."""
    case = _linked(world)
    world.edit_case(case, statecode=1, statuscode=5)

    run = _again(world)

    notes = world.servicenow.records.journal(world.incident_of(case), "work_notes")
    assert (run.counts, len(notes)) == ({"updated": 1}, 1)


def test_preview_looks_links_up(world: World) -> None:
    """A preview claims nothing, so nothing else would tell it."""
    _linked(world)

    run = _again(world, preview=True)

    assert run.counts == {"unchanged": 1}


def test_incident_that_an_agent_closed(world: World) -> None:
    """Where nothing changed in the source, that the incident takes no more changes does not matter."""
    case = _linked(world)
    _change(world, case, urgency="1", **CLOSED)

    run = _again(world)

    assert run.counts == {"unchanged": 1}


def test_copy_of_the_incident(world: World) -> None:
    """The link tells which of the two is the case's."""
    case = _linked(world)
    world.servicenow.insert("incident", correlation_id=case, short_description="Insert and stay", number="INC9999")

    run = _again(world)

    assert run.counts == {"unchanged": 1}


def test_closed_copy_takes_no_update_away(world: World) -> None:
    """An agent's copy carries the case's id, and was closed: the update goes to the linked incident, in the daily run too."""
    world.sync("since_last_run")
    case = _young(world)
    world.sync(f"ids={case}")
    _change(world, case, correlation_id="")
    world.servicenow.insert("incident", correlation_id=case, short_description="copy", number="INC77", **CLOSED)
    world.edit_case(case, title="Edited")
    world.advance(1200)

    run = _again(world, "since_last_run")

    assert run.counts == {"updated": 1}
    assert {row["short_description"] for row in world.incidents()} == {"Edited", "copy"}


@pytest.mark.parametrize(
    "others",
    [[{"correlation": True, **CLOSED}], [{"title": True}, {"title": True}]],
    ids=["closed copy", "two of the same title"],
)
def test_deleted_incident_is_missed(world: World, others: list[Facts]) -> None:
    """The record fails because its incident is gone, whatever else the rules would find, and stays open."""
    case = _linked(world)
    incident = world.incident_of(case)
    world.servicenow.delete("incident", incident["sys_id"])
    for number, other in enumerate(others):
        facts = {name: value for name, value in other.items() if name in CLOSED}
        facts |= {"correlation_id": case} if "correlation" in other else {}
        title = incident["short_description"] if "title" in other else "copy"
        world.servicenow.insert(
            "incident", short_description=title, caller_id=incident["caller_id"], number=f"INC7{number}", **facts
        )
    world.edit_case(case, prioritycode=1)

    run = _again(world)

    assert (_reasons(world, run), world.open_keys()) == ({"target_missing"}, [case])


@pytest.mark.parametrize("most_users", [0, 50])
def test_user_that_was_renamed(world: World, most_users: int) -> None:
    """An unchanged case makes no user, and nobody is asked for one."""
    case = _linked(world)
    world.change_settings(max_new_users=most_users)
    caller = world.incident_of(case)["caller_id"]
    world.servicenow.update("sys_user", caller, email="married@customer.example", user_name="married@customer.example")

    run = _again(world)

    assert (run.state, run.counts) == (RunState.COMPLETED, {"unchanged": 1})
    assert (world.writes(), world.users(CALLER)) == ([], [])


def test_case_from_the_future(world: World) -> None:
    """A `createdon` that is still to come says nothing of links, now and in every later run."""
    world.sync(WINDOW)
    case = world.add_case(createdon=world.now() + timedelta(days=400), modifiedon=world.now())
    world.advance(60)
    first = _again(world)
    world.servicenow.insert("incident", correlation_id=case, short_description="copy", number="INC9")
    world.advance(60)

    second = _again(world)

    assert (first.counts, second.counts) == ({"created": 1}, {"unchanged": 1})


def test_refused_update_does_not_wait_for_a_create(world: World) -> None:
    """The rules find nothing, the claim meets the link: what is then written is no create, and is tried again soon."""
    case = _linked(world)
    _change(world, case, correlation_id="", number="INC1")
    world.edit_case(case, title="Edited")
    world.servicenow.add_fault("status", path="/table/incident", method="PATCH", status=500, times=3)
    began_at = world.now()

    run = _again(world)

    assert (run.counts, len(world.incidents())) == ({"updated": 1}, 1)
    assert world.now() - began_at < timedelta(seconds=30)


def test_case_synced_while_a_run_waits(world: World) -> None:
    """A run waits for a person, a run of chosen cases links its case meanwhile, the person says yes."""
    world.sync(WINDOW)
    world.change_settings(max_new_users=0)
    case = _young(world, contact=world.add_contact("new@customer.example"))
    world.advance(60)
    run = world.sync(WINDOW)
    world.change_settings(max_new_users=50)
    world.sync(f"ids={case}")

    runs.confirm_run(world.app, run.run_id, "ada")
    world.pump.run()

    assert world.run_row(run).counts == {"unchanged": 1}
    assert (len(world.users("new@customer.example")), len(world.incidents())) == (1, 1)


def test_case_synced_while_a_first_run_waits(world: World) -> None:
    """Nothing was linked when it began; days later that is no more so."""
    world.change_settings(max_new_users=0)
    case = world.add_case(contact=world.add_contact("new@customer.example"))
    run = world.sync("since_last_run")
    world.change_settings(max_new_users=50)
    world.sync(f"ids={case}")
    caller = world.incident_of(case)["caller_id"]
    world.servicenow.update("sys_user", caller, email="married@customer.example")

    runs.confirm_run(world.app, run.run_id, "ada")
    world.pump.run()

    assert world.run_row(run).counts == {"unchanged": 1}
    assert world.users("new@customer.example") == []


@pytest.mark.parametrize("seed", range(3))
def test_runs_beside_each_other(world: World, seed: int) -> None:
    """Three runs over the same young cases, every message twice and in any order: each case has one incident."""
    world.sync(WINDOW)
    world.advance(3600)
    people = [world.add_contact(f"new{number}@customer.example") for number in range(3)]
    now = {"createdon": world.now(), "modifiedon": world.now()}
    cases = [world.add_case(contact=people[number % 3], **now) for number in range(9)]
    world.advance(60)
    world.pump.shuffle, world.pump.copies, world.pump.repeats = random.Random(seed), 2, 1

    started = [world.start(window) for window in (WINDOW, "all", "ids=" + ",".join(cases[:5]))]
    world.pump.run(for_s=7200)

    for run in map(world.run_row, started):
        assert run.state.ended
        assert "failed" not in run.counts
    assert [world.link_of(case).claim for case in cases if world.incident_of(case)] == [None] * 9
    assert [len(world.users(f"new{number}@customer.example")) for number in range(3)] == [1, 1, 1]


# -- a recipe's first run -------------------------------------------------------------------------------------------------


def _linked_beside(world: World) -> tuple[RunRow, list[Delivery], str]:
    """Start a first run whose listing waits, and have a run of chosen cases link its case meanwhile."""
    case = world.add_case(createdon=world.now(), modifiedon=world.now())
    world.advance(5)
    first = world.start("since_last_run")
    world.pump._take()
    waiting = [each for each in world.pump.waiting if each.queue == "pages"]
    world.pump.waiting = [each for each in world.pump.waiting if each not in waiting]
    world.start(f"ids={case}")
    world.pump.run(for_s=30)
    assert world.incident_of(case)
    return first, waiting, case


def _two_of_its_title(world: World, incident: Facts) -> None:
    world.servicenow.update("incident", incident["sys_id"], correlation_id="", number="INC0000001")
    for number in ("INC0000002", "INC0000003"):
        facts = {name: incident[name] for name in ("short_description", "caller_id")}
        world.servicenow.insert("incident", number=number, **facts)


def _closed_copy(world: World, incident: Facts) -> None:
    copied = {"correlation_id": incident["correlation_id"], "short_description": "Copy", "number": "INC0000004"}
    world.servicenow.update("incident", incident["sys_id"], correlation_id="")
    world.servicenow.insert("incident", **copied, **CLOSED)


def _renamed_user(world: World, incident: Facts) -> None:
    world.servicenow.update("sys_user", incident["caller_id"], email="new@customer.example", user_name="new")


@pytest.mark.parametrize("change", [_two_of_its_title, _closed_copy, _renamed_user])
def test_case_linked_beside_a_first_run(world: World, change: Callable[[World, Facts], None]) -> None:
    """Nothing of what the rules and the users would say counts: its link is looked up, and nothing has changed."""
    first, waiting, case = _linked_beside(world)
    users = len(world.servicenow.rows("sys_user"))
    change(world, world.incident_of(case))

    world.pump.waiting += waiting
    world.pump.run()

    assert world.run_row(first).counts == {"unchanged": 1}
    assert len(world.servicenow.rows("sys_user")) == users


def test_update_of_a_case_linked_beside_a_first_run(world: World) -> None:
    """It reaches the linked incident, although an agent's closed copy carries the case's id."""
    first, waiting, case = _linked_beside(world)
    _closed_copy(world, world.incident_of(case))
    world.edit_case(case, title="Edited")
    world.advance(1200)

    world.pump.waiting += waiting
    world.pump.run()

    assert world.run_row(first).counts == {"updated": 1}
    assert [each["short_description"] for each in world.incidents() if each["number"] != "INC0000004"] == ["Edited"]
