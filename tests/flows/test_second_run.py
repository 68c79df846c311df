"""What a second run does: nothing where nothing changed, and exactly the changed fields where something did."""

import json

import pytest

from shared.state.rows import RunRow, RunState
from tests.flows.world import CALLER, World

WINDOW = "last_days:3"


def _sent(world: World) -> dict[str, dict[str, str]]:
    """Return what was sent to each incident."""
    found: dict[str, dict[str, str]] = {}
    for path, body in world.sent("PATCH"):
        found.setdefault(path.rsplit("/", 1)[-1], {}).update(json.loads(body))
    return found


def _again(world: World, **facts: object) -> RunRow:
    world.forget_journal()
    return world.sync(WINDOW, **facts)


def _notes(world: World, case_id: str) -> list[str]:
    incident = world.incident_of(case_id)
    return [row["value"] for row in world.servicenow.records.journal(incident, "work_notes")]


def _resolve(world: World, case_id: str) -> None:
    world.edit_case(case_id, statecode=1, statuscode=5)


def _reopen(world: World, case_id: str) -> None:
    world.edit_case(case_id, statecode=0, statuscode=1)


# -- nothing changed ------------------------------------------------------------------------------------------------


def test_second_run_writes_nothing(world: World) -> None:
    """Where nothing changed nothing is written, whatever kind of case it is; the counts say so."""
    for _ in range(3):
        world.add_case()
    world.add_case(contact=world.add_contact("new@customer.example"))
    world.add_case(contact=world.add_contact(None))
    world.add_case("x" * 200, description="<p>Text</p>", prioritycode=77)
    team = world.dynamics.insert("team", name="Nobody knows")
    world.add_case(ownerid=("team", team))
    adopted = world.add_case()
    world.servicenow.insert("incident", number=world.number_of(adopted), short_description="Old", urgency="1")
    world.sync(WINDOW)

    run = _again(world)

    assert (world.writes(), run.counts, run.state) == ([], {"unchanged": 8}, RunState.COMPLETED)


def test_second_run_asks_servicenow_nothing(world: World) -> None:
    """An unchanged case costs no vendor call: the link knows what was written."""
    for _ in range(5):
        world.add_case(contact=world.add_contact("new@customer.example"))
    world.sync(WINDOW)

    _again(world)

    assert world.reads("/table/(incident|sys_user)") == []


def test_touched_case_writes_nothing(world: World) -> None:
    """A case whose change time moved, and nothing that is mapped, is unchanged."""
    case = world.add_case()
    world.sync(WINDOW)
    world.edit_case(case, casetypecode=2)

    run = _again(world)

    assert (world.writes(), run.counts) == ([], {"unchanged": 1})


# -- what changed -----------------------------------------------------------------------------------------------------


def test_three_edits_change_three_incidents_in_these_fields(world: World) -> None:
    """Only what changed is written."""
    cases = [world.add_case() for _ in range(6)]
    world.sync(WINDOW)
    world.edit_case(cases[0], title="Another title")
    world.edit_case(cases[1], prioritycode=1)
    world.edit_case(cases[2], description="More", caseorigincode=1)

    run = _again(world)

    ids = [world.incident_of(case)["sys_id"] for case in cases]
    assert _sent(world) == {
        ids[0]: {"short_description": "Another title"},
        ids[1]: {"urgency": "1"},
        ids[2]: {"description": "More", "contact_type": "phone"},
    }
    assert run.counts == {"updated": 3, "unchanged": 3}


def test_agents_reassignment_survives_until_the_owner_changes(world: World) -> None:
    """An agent's choice stays while the source's owner stays, also when other fields are written."""
    case = world.add_case()
    world.sync(WINDOW)
    agent = world.add_servicenow_user("agent@contoso.example")
    world.servicenow.update("incident", world.incident_of(case)["sys_id"], assigned_to=agent)
    world.edit_case(case, title="Edited")
    _again(world)
    kept = world.incident_of(case)
    world.edit_case(case, ownerid=("systemuser", world.add_owner("second@contoso.example")))

    _again(world)

    assert (kept["short_description"], kept["assigned_to"]) == ("Edited", agent)
    assert world.user_name(world.incident_of(case)["assigned_to"]) == "second@contoso.example"


def test_agents_change_survives_after_an_equal_change_on_both_sides(world: World) -> None:
    """When both sides were changed alike, that is remembered: the agent's next change is not overwritten."""
    case = world.add_case(prioritycode=3)
    world.sync(WINDOW)
    sys_id = world.incident_of(case)["sys_id"]
    world.edit_case(case, prioritycode=1)
    world.servicenow.update("incident", sys_id, urgency="1")
    first = _again(world)
    world.servicenow.update("incident", sys_id, urgency="2")

    second = _again(world)

    assert (first.counts, second.counts) == ({"unchanged": 1}, {"unchanged": 1})
    assert world.incident_of(case)["urgency"] == "2"


def test_changed_caller_is_written(world: World) -> None:
    """Another contact is another caller, found or made as for a new case."""
    case = world.add_case()
    world.sync(WINDOW)
    world.edit_case(case, customerid_contact=world.add_contact("new@customer.example"))

    run = _again(world)

    assert world.user_name(world.incident_of(case)["caller_id"]) == "new@customer.example"
    assert run.counts == {"updated": 1}


def test_team_takes_a_persons_place(world: World) -> None:
    """A case handed to a team goes to the group, and the assignee that we had filled is cleared."""
    group = world.servicenow.insert("sys_user_group", name="Hardware")
    case = world.add_case()
    world.sync(WINDOW)
    world.edit_case(case, ownerid=("team", world.dynamics.insert("team", name="Hardware")))

    _again(world)

    incident = world.incident_of(case)
    assert (incident["assignment_group"], incident["assigned_to"]) == (group, "")


@pytest.mark.parametrize("filled_by_us", [True, False], ids=["ours", "the agent's"])
def test_empty_source_clears_only_what_we_filled(world: World, filled_by_us: bool) -> None:
    """An emptied description takes ours away, and never what somebody else wrote."""
    case = world.add_case(description="Ours" if filled_by_us else None)
    world.sync(WINDOW)
    if not filled_by_us:
        world.servicenow.update("incident", world.incident_of(case)["sys_id"], description="The agent's")
    world.edit_case(case, description=None, title="Edited")

    _again(world)

    assert world.incident_of(case)["description"] == ("" if filled_by_us else "The agent's")
    assert world.incident_of(case)["short_description"] == "Edited"


def test_adopted_fields_of_equal_value_are_not_ours_to_clear(world: World) -> None:
    """What an adopted incident held by itself stays when the source is emptied."""
    case = world.add_case(description="Same")
    world.servicenow.insert("incident", number=world.number_of(case), description="Same")
    world.sync(WINDOW)
    world.edit_case(case, description=None)

    _again(world)

    assert world.incident_of(case)["description"] == "Same"


# -- cases that are over ------------------------------------------------------------------------------------------


def test_closed_case_leaves_one_note_each_time_it_closes(world: World) -> None:
    """A case that is resolved leaves one note and an open incident; resolved again, it leaves a second one."""
    case = world.add_case()
    world.sync(WINDOW)
    counts = []
    for step in (_resolve, None, _reopen, _resolve, None):
        if step:
            step(world, case)
        counts.append((_again(world).counts, len(_notes(world, case))))

    assert [notes for _, notes in counts] == [1, 1, 1, 2, 2]
    assert counts[0][0] == {"updated": 1}
    assert counts[1][0] == counts[4][0] == {"unchanged": 1}
    assert all(world.number_of(case) in note for note in _notes(world, case))
    assert world.incident_of(case)["state"] == "1"


def test_edits_of_a_reopened_case_are_written(world: World) -> None:
    """Once it is active again a case is followed again, with what changed while it was closed."""
    case = world.add_case()
    world.sync(WINDOW)
    _resolve(world, case)
    _again(world)
    world.edit_case(case, title="Edited while closed")
    _again(world)
    closed = world.incident_of(case)["short_description"]
    _reopen(world, case)

    run = _again(world)

    assert closed != "Edited while closed"
    assert world.incident_of(case)["short_description"] == "Edited while closed"
    assert run.counts == {"updated": 1}


def test_merged_case_counts_as_over(world: World) -> None:
    """A case that was merged into another is cancelled by that: it leaves the note."""
    case, master = world.add_case(), world.add_case()
    world.sync(WINDOW)
    world.dynamics.merge(master, case)
    world.advance(60)

    _again(world)

    assert len(_notes(world, case)) == 1


# -- incidents that are over or gone ---------------------------------------------------------------------------------


def test_closed_incident_takes_no_changes(world: World) -> None:
    """A closed incident is left alone and counted; nothing is created in its place."""
    case = world.add_case()
    world.sync(WINDOW)
    sys_id = world.incident_of(case)["sys_id"]
    world.servicenow.update("incident", sys_id, state="7", close_code="Solution provided", close_notes="Done.")
    world.edit_case(case, title="Too late")

    run = _again(world)

    result = world.results(run)[case]
    assert (result.outcome, result.reason) == ("skipped", "target_closed")
    assert (world.writes(), len(world.incidents())) == ([], 1)


def test_deleted_incident_is_never_made_again(world: World) -> None:
    """A linked incident that is gone fails the case until a person decides, run after run."""
    case = world.add_case()
    world.sync(WINDOW)
    world.servicenow.delete("incident", world.incident_of(case)["sys_id"])
    world.edit_case(case, title="Edited")

    runs = [_again(world) for _ in range(2)]

    for run in runs:
        result = world.results(run)[case]
        assert (result.outcome, result.reason) == ("failed", "target_missing")
    assert world.incidents() == []


def test_source_that_is_older_than_the_last_write_is_not_written(world: World) -> None:
    """A message with an older version of the case, worked late, does not undo the newer one."""
    case = world.add_case("First")
    world.sync(WINDOW)
    world.edit_case(case, title="Second")
    late = world.start(f"ids={case}", mail_to=())
    world.pump.run(until=lambda: any(each.queue == "items" for each in world.pump.waiting))
    world.edit_case(case, title="Third")
    held = [each for each in world.pump.waiting if each.queue == "items"]
    for each in held:
        world.pump.waiting.remove(each)
    world.sync(WINDOW)
    world.pump.waiting += held

    world.pump.run()

    assert world.incident_of(case)["short_description"] == "Third"
    assert world.outcomes(late) == {"unchanged": 1}


def test_caller_stays_when_the_contact_loses_its_email(world: World) -> None:
    """No usable value is no reason to take away what stands there."""
    case = world.add_case()
    world.sync(WINDOW)
    world.dynamics.update("contact", world.caller, emailaddress1=None)
    world.edit_case(case, title="Edited")

    _again(world)

    assert world.user_name(world.incident_of(case)["caller_id"]) == CALLER
