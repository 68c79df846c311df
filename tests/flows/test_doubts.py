"""An appended entry, or a create, stays in doubt until it is known: whoever comes next, with whatever state of the record."""

from collections.abc import Callable
from datetime import timedelta

import pytest

from sandbox.simulator import FaultKind
from shared.state.messages import EventMessage
from shared.state.rows import Claim, IdentityRow, Outcome
from sync import links
from sync.decide import search_key
from tests.flows.contacts import ContactWorld
from tests.flows.test_closed_case import PATCH, comments_on
from tests.flows.test_found_creates import EMAIL, _deliver, _die_creating, _item_of, _values
from tests.flows.test_lost_answers import INCIDENT
from tests.flows.world import LEASE_S, Delivery, World

GONE = "gone: # the case was resolved, cancelled or deleted; its incident gets a note and is left open\n"


@pytest.fixture
def commenting(world: World) -> World:
    """Return a world whose recipe puts the description into the comments too."""
    world.change_recipe("  contact_type:\n", "  comments: description\n\n  contact_type:\n")
    return world


def _patches(world: World) -> int:
    return len(world.servicenow.requests("PATCH", "/table/incident/"))


def _drop_items(world: World) -> None:
    """Let the messages of records vanish that were sent again."""
    world.pump.run(for_s=0, until=lambda: True)
    world.pump.waiting = [each for each in world.pump.waiting if each.queue != "items"]


def _put_updates_off(world: World, for_s: int) -> None:
    headers = {"Retry-After": str(for_s)}
    world.servicenow.add_fault(FaultKind.STATUS, **PATCH, status=429, headers=headers, times=3)


def _outrun(world: World) -> tuple[str, Delivery]:
    """Return a case, and a message that holds it as it was before another run has worked it."""
    case = world.add_case(description="First")
    world.sync()
    world.edit_case(case, title="Second title")
    older = _item_of(world, case)
    world.dynamics.update("incident", case, title="Third title")
    world.advance(1)
    world.start(f"ids={case}", mail_to=())
    world.pump.run(for_s=5)
    return case, older


# -- entries ------------------------------------------------------------------------------------------------------------


def test_an_older_message_does_not_settle_a_comment_in_doubt(commenting: World) -> None:
    """It holds the record as it was before that comment: which entry is in doubt only the newest state tells."""
    world = commenting
    case = world.add_case(description="First")
    world.sync()
    world.edit_case(case, title="Second title")
    older = _item_of(world, case)
    world.edit_case(case, description="Second")
    newer = _item_of(world, case)
    world.servicenow.add_fault(FaultKind.RESET_AFTER, **PATCH)
    _deliver(world, newer)
    _drop_items(world)
    world.advance(LEASE_S + 1)

    _deliver(world, older)
    world.pump.run()
    world.sync(f"ids={case}")

    assert comments_on(world, case) == ["First", "Second"]
    assert world.incident_of(case)["short_description"] == "Second title"


def test_a_message_that_is_out_of_date_does_not_settle_a_comment_in_doubt(commenting: World) -> None:
    """The record was worked since it was prepared; then a comment's answer was lost and the rest of its update put off."""
    world = commenting
    case, older = _outrun(world)
    world.dynamics.update("incident", case, description="Second", title="Fourth title")
    world.advance(1)
    newer = _item_of(world, case)
    world.servicenow.add_fault(FaultKind.RESET_AFTER, **PATCH)
    before = _patches(world)
    _deliver(world, newer)
    world.dynamics.update("incident", case, title="Fifth title")
    _put_updates_off(world, 5)
    world.pump.run(until=lambda: _patches(world) > before + 1)

    _deliver(world, older)
    world.pump.run()

    assert comments_on(world, case) == ["First", "Second"]
    assert world.incident_of(case)["short_description"] == "Fifth title"


def test_a_record_that_left_scope_keeps_its_comment_in_doubt(commenting: World) -> None:
    """A case whose comment's answer was lost is closed, seen closed by who looks it up, and opened again."""
    world = commenting
    note = '  work_notes: "Case {ticketnumber} was closed in Dynamics 365"\n'
    world.change_recipe(GONE + note, "gone: ignore\n")
    case = world.add_case(description="First")
    world.sync()
    world.edit_case(case, title="Second title")
    older = _item_of(world, case)
    world.edit_case(case, description="Second")
    newer = _item_of(world, case)
    world.servicenow.add_fault(FaultKind.RESET_AFTER, **PATCH)
    _deliver(world, newer)
    _drop_items(world)
    world.edit_case(case, statecode=1, statuscode=5)
    world.advance(LEASE_S + 1)
    _deliver(world, older)
    world.pump.run()
    world.edit_case(case, statecode=0, statuscode=1)

    world.sync(f"ids={case}")

    assert comments_on(world, case) == ["First", "Second"]


def test_a_comment_on_a_record_that_a_later_rule_found_is_not_added_again(commenting: World) -> None:
    """The first rule's field is written on create alone, so the adopted record cannot be looked up by it."""
    world = commenting
    world.change_recipe("    from: incidentid\n", "    from: incidentid\n    write: on_create\n")
    case = world.add_case(description="First")
    world.servicenow.insert("incident", number=world.number_of(case))
    world.servicenow.add_fault(FaultKind.RESET_AFTER, **PATCH)

    run = world.sync()

    (incident,) = world.incidents()
    assert len(world.servicenow.records.journal(incident, "comments")) == 1
    assert run.counts == {"adopted": 1}


def test_a_record_that_was_there_is_not_looked_for_beyond_its_rule(commenting: World) -> None:
    """No create is in doubt, so that nobody else who has its value, and does not meet the rule, can be its incident."""
    world = commenting
    rule = "  - {fields: [correlation_display], when: {active: true}}\n  - number"
    world.change_recipe("  - correlation_id\n  - number", rule)
    case = world.add_case(description="First")
    number = world.number_of(case)
    other = world.servicenow.insert("incident", correlation_display=number, number="INC0099")
    world.servicenow.update("incident", other, **CLOSED)
    world.servicenow.insert("incident", number=number)
    world.servicenow.add_fault(FaultKind.REFUSE, **PATCH)

    run = world.sync()

    assert run.counts == {"adopted": 1}
    (incident,) = world.incidents(number=number)
    assert len(world.servicenow.records.journal(incident, "comments")) == 1


def test_a_comment_under_another_records_value_is_not_added_again(commenting: World) -> None:
    """The record is found by a value whose create, another's, was in doubt; then the answer to its own comment is lost."""
    world = commenting
    world.change_recipe("  - correlation_id\n  - number", "  - correlation_display\n  - number")
    case = world.add_case(description="First")
    number = world.number_of(case)
    flow = world.app.flow(world.recipe)
    claim = Claim(owner="dead", until=world.now(), create_by=world.now() - timedelta(hours=1))
    value = links.identity(flow, flow.target_name, ("correlation_display",), [search_key(number)], "another-case")
    world.view.insert(value.model_copy(update={"claim": claim}))
    item = _item_of(world, case)
    world.servicenow.insert("incident", correlation_display=number, number="INC0099")
    world.servicenow.add_fault(FaultKind.RESET_AFTER, **PATCH)

    _deliver(world, item)
    world.pump.run()

    (incident,) = world.incidents()
    assert len(world.servicenow.records.journal(incident, "comments")) == 1
    assert world.runs()[0].counts == {"adopted": 1}


def test_a_record_that_was_read_anew_promises_what_it_writes_then(commenting: World) -> None:
    """It was prepared without a comment, is read anew since another run has worked it, and has one: its answer is lost."""
    world = commenting
    case, older = _outrun(world)
    world.dynamics.update("incident", case, description="Second")
    world.servicenow.add_fault(FaultKind.RESET_AFTER, **PATCH)

    _deliver(world, older)
    world.pump.run()

    assert comments_on(world, case) == ["First", "Second"]


# -- what is told -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [FaultKind.RESET_AFTER, FaultKind.REFUSE], ids=["effect", "no effect"])
def test_a_record_that_was_there_is_told_as_adopted(commenting: World, kind: FaultKind) -> None:
    """The answer to its first update, a comment among it, was lost: found by its key, it is none that we have made."""
    world = commenting
    case = world.add_case(description="First")
    world.servicenow.insert("incident", number=world.number_of(case))
    world.servicenow.add_fault(kind, **PATCH)

    run = world.sync()

    assert comments_on(world, case) == ["First"]
    assert run.counts == {"adopted": 1}


def test_a_record_that_was_made_is_told_as_created(commenting: World) -> None:
    """The answer to its create was lost, and that to the update which a later run sent to it, with another comment."""
    world = commenting
    case = world.add_case(description="First")
    item = _item_of(world, case)
    world.servicenow.add_fault(FaultKind.RESET_AFTER, method="POST", path=INCIDENT)
    _deliver(world, item)
    _drop_items(world)
    world.advance(LEASE_S + 1)
    world.edit_case(case, description="Second")
    world.servicenow.add_fault(FaultKind.RESET_AFTER, **PATCH)

    run = world.sync(f"ids={case}")

    assert comments_on(world, case) == ["First", "Second"]
    assert run.counts == {"created": 1}


CLOSED = {"state": "7", "close_code": "Solution provided", "close_notes": "Done"}


@pytest.mark.parametrize("again", ["its message", "another run", "one that was prepared before"])
def test_a_create_in_doubt_that_is_found_closed_is_linked(world: World, again: str) -> None:
    """It was made by us, and is told so; what it did not take, a caller here, is not noted as asked, and written later."""
    case = world.add_case()
    item = _item_of(world, case)
    world.servicenow.add_fault(FaultKind.RESET_AFTER, method="POST", path=INCIDENT)
    before = _item_of(world, case)
    _deliver(world, item)
    (made,) = world.incidents()
    caller, other = made["caller_id"], world.add_servicenow_user("other@customer.example")
    world.servicenow.update("incident", made["sys_id"], caller_id=other, **CLOSED)
    if again != "its message":
        _drop_items(world)
        world.advance(LEASE_S - 10)
        _deliver(world, before if again == "one that was prepared before" else _item_of(world, case))
    world.pump.run()
    assert Outcome.CREATED in [result.outcome for run in world.runs() for result in world.results(run).values()]
    assert world.incident_of(case)["caller_id"] == other
    world.servicenow.update("incident", made["sys_id"], state="2", active="true")
    world.edit_case(case, title="Opened again")

    world.sync(f"ids={case}")

    incident = world.incident_of(case)
    assert (incident["short_description"], incident["caller_id"]) == ("Opened again", caller)


# -- who writes nothing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shown", [True, False], ids=["it was made", "it was not"])
def test_an_event_that_writes_nothing_leaves_the_doubt_and_holds_nobody_up(world: World, shown: bool) -> None:
    """A case's message died with its create; an event finds the case closed; then it is open, and synced."""
    case = world.add_case()
    _die_creating(world, _item_of(world, case))
    world.advance(LEASE_S + 1)
    world.edit_case(case, statecode=1, statuscode=5)
    facts = {"recipe": world.recipe, "record": "dynamics365.incident", "key": case, "name": "Update"}
    world.app.queues.send(EventMessage(**facts, event_id="closed", received_at=world.now()))
    world.pump.run(for_s=1)
    world.edit_case(case, statecode=0, statuscode=1)
    item = _item_of(world, case)
    if shown:
        world.servicenow.insert("incident", correlation_id=case)
    began = world.now()

    _deliver(world, item)
    world.pump.run(until=lambda: not any(each.queue == "items" for each in world.pump.waiting))

    assert len(world.incidents(correlation_id=case)) == 1
    assert (world.now() - began).total_seconds() < LEASE_S / 4


# -- values -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "kept"), [(str.upper, EMAIL), (lambda email: f"new.{email}", f"new.{EMAIL}")], ids=["case", "address"]
)
def test_a_value_whose_writing_alone_has_changed_stays_noted(
    contact_world: ContactWorld, change: Callable[[str], str], kept: str
) -> None:
    """An email in capitals is the one that the contact has: nobody else may take it. A former one is free."""
    world = contact_world
    world.change_recipe("    convert: [strip, lower]\n", "    convert: strip\n")
    contact = world.contact(EMAIL)
    world.send("contact", contact, "Create")
    world.edit("contact", contact, emailaddress1=change(EMAIL))

    world.send("contact", contact)

    flow = world.app.flow(world.recipe)
    (value,) = _values(world)
    assert value.digest == links.identity(flow, flow.target_name, ("email",), [search_key(kept)]).digest
    assert isinstance(value, IdentityRow)
    assert [lead["email"] for lead in world.leads()] == [change(EMAIL)]
