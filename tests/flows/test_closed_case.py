"""A closed case leaves one note on its incident, whatever happens to the answer and to the process."""

import re
from typing import Any

import pytest

from sandbox.simulator import FaultKind
from shared.state.rows import Outcome, RunState
from tests.flows.world import World

PATCH = {"method": "PATCH", "path": "/table/incident/"}


@pytest.fixture
def case(world: World) -> str:
    """Return a case that has its incident and was then closed."""
    case_id = world.add_case("Printer on fire")
    world.sync()
    close(world, case_id)
    return case_id


def close(world: World, case_id: str) -> None:
    """Resolve a case, as a person does."""
    world.advance(60)
    world.dynamics.update("incident", case_id, statecode=1, statuscode=5)
    world.advance(60)


def reopen(world: World, case_id: str) -> None:
    world.advance(60)
    world.dynamics.update("incident", case_id, statecode=0, statuscode=1)
    world.advance(60)


def notes_of(world: World, case_id: str) -> list[str]:
    """Return the work notes on a case's incident."""
    entries = world.servicenow.records.journal(world.incident_of(case_id), "work_notes")
    return [entry["value"] for entry in entries]


def test_a_closed_case_leaves_a_note_that_a_person_can_read(world: World, case: str) -> None:
    """The note says what happened in one line and carries a short mark; the incident is left open."""
    run = world.sync("today")

    (note,) = notes_of(world, case)
    assert re.fullmatch(rf"Case {world.number_of(case)} was closed in Dynamics 365 \[#[0-9a-f]{{10}}\]", note)
    assert world.results(run)[case].outcome is Outcome.UPDATED
    assert world.incident_of(case)["state"] == "1"


def test_the_note_is_written_once(world: World, case: str) -> None:
    """Later runs see the closed case again and add nothing."""
    world.sync("today")
    world.forget_journal()
    again = world.sync("today")

    assert len(notes_of(world, case)) == 1
    assert world.results(again)[case].outcome is Outcome.UNCHANGED
    assert world.writes() == []


def test_closing_twice_leaves_two_notes(world: World, case: str) -> None:
    """A case that was opened again and closed again says so again."""
    world.sync("today")
    reopen(world, case)
    world.sync("today")
    close(world, case)
    world.sync("today")

    notes = notes_of(world, case)
    assert len(notes) == 2
    assert len(set(notes)) == 2


@pytest.mark.parametrize(
    ("kind", "facts"),
    [
        pytest.param(FaultKind.RESET_AFTER, {}, id="reset"),
        pytest.param(FaultKind.STATUS_AFTER, {"status": 504}, id="gateway"),
        pytest.param(FaultKind.TRUNCATED, {}, id="truncated"),
        pytest.param(FaultKind.LATE_EFFECT, {"seconds": 2.5}, id="late"),
        pytest.param(FaultKind.HTML, {}, id="html"),
    ],
)
def test_a_lost_answer_leaves_one_note(world: World, case: str, kind: FaultKind, facts: dict[str, Any]) -> None:
    """The note was added and its answer was lost: it is found by its mark and not added again."""
    world.servicenow.add_fault(kind, **PATCH, **facts)

    run = world.sync("today")

    assert len(notes_of(world, case)) == 1
    assert run.state is RunState.COMPLETED
    assert world.results(run)[case].outcome is Outcome.UPDATED


@pytest.mark.parametrize(
    ("kind", "facts"),
    [
        pytest.param(FaultKind.REFUSE, {}, id="refused"),
        pytest.param(FaultKind.STATUS, {"status": 503}, id="503"),
        pytest.param(FaultKind.STATUS, {"status": 202, "body": ""}, id="dropped"),
    ],
)
def test_a_note_that_never_arrived_is_added(world: World, case: str, kind: FaultKind, facts: dict[str, Any]) -> None:
    """The request had no effect: after the look at the journal it is sent again."""
    world.servicenow.add_fault(kind, **PATCH, **facts)

    run = world.sync("today")

    assert len(notes_of(world, case)) == 1
    assert run.state is RunState.COMPLETED


@pytest.mark.parametrize("lease_left_s", [0.0, 600.0], ids=["worker", "host"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_death_beside_the_write_leaves_one_note(world: World, case: str, after: bool, lease_left_s: float) -> None:
    """The process ends right before or after the note left: the message is delivered again, the note stands there once."""
    world.pump.lease_left_s = lease_left_s
    world.wire.kill_on("servicenow PATCH", after=after)

    run = world.sync("today")

    assert world.pump.kills == 1
    assert len(notes_of(world, case)) == 1
    assert run.state is RunState.COMPLETED
    assert world.results(run)[case].outcome is Outcome.UPDATED


def test_messages_that_come_twice_leave_one_note(world: World, case: str) -> None:
    """Every message of the run arrives twice, and each of them once more after it ended well."""
    world.pump.copies, world.pump.repeats = 2, 1

    world.sync("today")

    assert len(notes_of(world, case)) == 1


def test_hidden_notes_fail_the_record_instead_of_doubling_its_note(world: World, case: str) -> None:
    """Where the integration user may not read the journal, a lost answer cannot be settled: a person is told."""
    user = next(user for user in world.servicenow.users.values() if not user.admin)
    user.visible_rows = {"sys_journal_field": "element=comments"}
    world.servicenow.add_fault(FaultKind.RESET_AFTER, **PATCH)

    run = world.sync("today")

    assert len(notes_of(world, case)) == 1
    result = world.results(run)[case]
    assert (result.outcome, result.reason) == (Outcome.FAILED, "rows_unreadable")
    assert "sys_journal_field" in result.message


def test_the_mark_fits_into_the_field(world: World) -> None:
    """A note as long as the field is cut, not its mark."""
    length = world.systems["servicenow"].describe("incident").fields["work_notes"].length
    world.change_recipe(
        '"Case {ticketnumber} was closed in Dynamics 365"', '"{description} {description} {description}"'
    )
    case_id = world.add_case(description="x" * 2000)
    world.sync()
    close(world, case_id)

    world.sync("today")

    (note,) = notes_of(world, case_id)
    assert len(note) == length
    assert re.search(r"xxx \[#[0-9a-f]{10}\]$", note)


# -- a field that only appends ------------------------------------------------------------------------------------------


@pytest.fixture
def commenting(world: World) -> World:
    """Return a world whose recipe puts the description into the comments too."""
    world.change_recipe("  contact_type:\n", "  comments: description\n\n  contact_type:\n")
    return world


def comments_on(world: World, case_id: str) -> list[str]:
    """Return the comments on a case's incident without their marks, oldest first."""
    entries = world.servicenow.records.journal(world.incident_of(case_id), "comments")
    return [re.sub(r" \[#\w+\]$", "", entry["value"]) for entry in reversed(entries)]


def test_a_comment_of_a_lost_create_is_not_added_again(commenting: World) -> None:
    """The create took the comment along: the record is found by its key, the comment by its mark."""
    case_id = commenting.add_case(description="First")
    commenting.servicenow.add_fault(FaultKind.RESET_AFTER, method="POST", path="/table/incident")

    run = commenting.sync()

    assert comments_on(commenting, case_id) == ["First"]
    assert commenting.results(run)[case_id].outcome is Outcome.CREATED


@pytest.mark.parametrize("kind", [FaultKind.STATUS, FaultKind.STATUS_AFTER], ids=["no-effect", "effect"])
def test_a_later_comment_is_not_taken_for_an_earlier_one(commenting: World, kind: FaultKind) -> None:
    """Each text has its mark: a comment whose answer was lost is looked for by its own."""
    case_id = commenting.add_case(description="First")
    commenting.sync()
    commenting.edit_case(case_id, description="Second")
    commenting.servicenow.add_fault(kind, **PATCH, status=504)

    commenting.sync("today")

    assert comments_on(commenting, case_id) == ["First", "Second"]


def test_a_comment_in_doubt_stays_in_doubt_when_the_rest_is_put_off(commenting: World) -> None:
    """It was added, its answer was lost, the title has changed since, and that change is refused for now."""
    case_id = commenting.add_case(description="First")
    commenting.sync()
    commenting.edit_case(case_id, description="Second", title="Second title")
    commenting.servicenow.add_fault(FaultKind.RESET_AFTER, **PATCH)
    commenting.start("today")
    commenting.pump.run(until=lambda: bool(commenting.servicenow.requests("PATCH", "/table/incident/")))
    commenting.dynamics.update("incident", case_id, title="Third title")
    commenting.servicenow.add_fault(FaultKind.STATUS, **PATCH, status=429, headers={"Retry-After": "5"}, times=3)

    commenting.pump.run()

    assert comments_on(commenting, case_id) == ["First", "Second"]
    assert commenting.incident_of(case_id)["short_description"] == "Third title"
