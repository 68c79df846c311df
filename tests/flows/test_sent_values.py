"""A create whose answer was lost is looked up by what was sent, also where the source has changed it since."""

import pytest

from sandbox.simulator import FaultKind
from shared.errors import MappingError
from shared.state.rows import LinkRow, Outcome
from sync import repairs
from tests.flows.contacts import ContactWorld
from tests.flows.test_found_creates import EMAIL, _deliver, _die_creating, _item_of
from tests.flows.test_lost_answers import INCIDENT
from tests.flows.world import LEASE_S, Delivery, World

MOVED = "ana.moved@customer.example"
CREATE_LEAD = "marketo POST rest/v1/leads.json"
LEADS = {"method": "POST", "path": "/leads.json"}


def _lose_answer(world: World, item: Delivery) -> None:
    """Let a message's create take effect and its answer be lost."""
    if isinstance(world, ContactWorld):
        world.marketo.add_fault(FaultKind.RESET_AFTER, **LEADS)
    else:
        world.servicenow.add_fault(FaultKind.RESET_AFTER, method="POST", path=INCIDENT)
    _deliver(world, item)


def _abandon(world: World) -> None:
    """Let the messages of records vanish, and their claims end."""
    world.pump.run(for_s=0, until=lambda: True)
    world.pump.waiting = [each for each in world.pump.waiting if each.queue != "items"]
    world.advance(LEASE_S + 1)


def _emails(world: ContactWorld) -> list[str]:
    return sorted(lead["email"] for lead in world.leads())


# -- the message itself comes again -------------------------------------------------------------------------------------


@pytest.mark.parametrize("skip", [None, 0, 2], ids=["looked up", "refused before", "look-up refused"])
def test_a_contact_whose_email_changes_before_the_look_up(contact_world: ContactWorld, skip: int | None) -> None:
    """The message carries the contact as it was sent; the new email is the next change, and moves the lead."""
    world = contact_world
    contact = world.contact(EMAIL)
    _lose_answer(world, _item_of(world, contact))
    world.edit("contact", contact, emailaddress1=MOVED)
    if skip is not None:
        world.marketo.add_fault(FaultKind.STATUS, method="GET", path="/leads.json", status=500, skip=skip, times=3)

    world.pump.run()
    run = world.sync(f"ids={contact}", mail_to=())

    assert _emails(world) == [MOVED]
    assert [each.counts for each in world.runs()] == [{"updated": 1}, {"created": 1}]
    assert world.results(run)[contact].outcome is Outcome.UPDATED


@pytest.mark.parametrize("refused", [False, True], ids=["looked up", "looked up later"])
def test_an_event_of_a_contact_whose_email_changes(contact_world: ContactWorld, refused: bool) -> None:
    """So it is with events, which read their contact anew otherwise; also where the look-up itself fails at first."""
    world = contact_world
    contact = world.contact(EMAIL)
    world.marketo.add_fault(FaultKind.RESET_AFTER, **LEADS)
    first = world.hook("contact", contact, "Create")
    world.pump.run(for_s=1)
    world.edit("contact", contact, emailaddress1=MOVED)
    if refused:  # after its match, and what it asked while the create could still take effect
        world.marketo.add_fault(FaultKind.STATUS, method="GET", path="/leads.json", status=500, skip=2, times=3)
    second = world.hook("contact", contact)

    world.pump.run()

    assert _emails(world) == [MOVED]
    assert [world.event(each).outcome for each in (first, second)] == [Outcome.CREATED, Outcome.UPDATED]


def test_contacts_of_the_bulk_lane_whose_emails_change(contact_world: ContactWorld) -> None:
    """The answer to a whole page is lost; the records go on alone, each with what was sent of it."""
    world = contact_world
    contacts = [world.contact(f"c{number}@customer.example") for number in range(3)]
    world.advance(60)
    world.change_settings(bulk_above=0)
    world.marketo.add_fault(FaultKind.RESET_AFTER, **LEADS)
    run = world.start("today", mail_to=())
    world.pump.run(until=lambda: len(world.leads()) == 3)
    for number, contact in enumerate(contacts[:2]):
        world.edit("contact", contact, emailaddress1=f"m{number}@customer.example")

    world.pump.run()
    world.sync(f"ids={','.join(contacts)}", mail_to=())

    assert _emails(world) == ["c2@customer.example", "m0@customer.example", "m1@customer.example"]
    assert world.run_row(run).counts == {"created": 3}


def test_a_case_that_is_closed_before_the_look_up(world: World) -> None:
    """Its incident is found and linked; the next run leaves the note that the case was closed."""
    case = world.add_case()
    _lose_answer(world, _item_of(world, case))
    world.dynamics.update("incident", case, statecode=1, statuscode=5)

    world.pump.run()
    world.advance(60)
    run = world.sync("today")

    assert len(world.servicenow.records.journal(world.incident_of(case), "work_notes")) == 1
    assert world.results(run)[case].outcome is Outcome.UPDATED


@pytest.mark.parametrize("closed", [True, False])
def test_what_was_not_made_is_made_as_it_is_now(world: World, closed: bool) -> None:
    """The create had no effect: what was sent is looked up, what is sent then is the newest state, if it is in scope."""
    case = world.add_case()
    item = _item_of(world, case)
    world.servicenow.add_fault(FaultKind.REFUSE, method="POST", path=INCIDENT)
    _deliver(world, item)
    changes = {"statecode": 1, "statuscode": 5} if closed else {"title": "New title"}
    world.dynamics.update("incident", case, **changes)

    world.pump.run()

    assert [each["short_description"] for each in world.incidents()] == ([] if closed else ["New title"])
    result = world.results(world.runs()[0])[case]
    assert (result.outcome, result.reason) == (("skipped", "case_not_active") if closed else ("created", ""))


# -- another message finds the doubt ------------------------------------------------------------------------------------


def _in_doubt(world: ContactWorld) -> str:
    """Return a contact whose lead was made by a message that never came again, and which then got another email."""
    contact = world.contact(EMAIL)
    _lose_answer(world, _item_of(world, contact))
    _abandon(world)
    world.edit("contact", contact, emailaddress1=MOVED)
    return contact


def test_a_contact_that_cannot_be_looked_up_fails(contact_world: ContactWorld) -> None:
    """Nothing but a digest says what was sent: a second lead is not made, and a person is told what to do."""
    world = contact_world
    contact = _in_doubt(world)

    started = []
    for _ in range(2):
        started.append(world.start(f"ids={contact}", mail_to=()))
        world.pump.run(for_s=1)  # the second one waits for no claim of the first

    assert _emails(world) == [EMAIL]
    for run in started:
        result = world.results(run)[contact]
        assert (result.outcome, result.reason) == (Outcome.FAILED, "create_in_doubt")
        assert "recreate" in result.message
        assert EMAIL not in result.message


@pytest.mark.parametrize("mended", [True, False], ids=["mended", "removed"])
def test_a_person_settles_it(contact_world: ContactWorld, mended: bool) -> None:
    """The lead that was made gets the new email, or is removed; then the contact is worked as if nothing had been."""
    world = contact_world
    contact = _in_doubt(world)
    failed = world.sync(f"ids={contact}", mail_to=())
    (lead,) = world.leads()
    if mended:
        world.marketo.update("leads", lead["id"], email=MOVED)
    else:
        world.marketo.delete("leads", lead["id"])
    with pytest.raises(MappingError):
        repairs.unlink_missing(world.app, failed, "operator")

    run = repairs.recreate_missing(world.app, failed, "operator").run
    world.pump.run()

    assert _emails(world) == [MOVED]
    assert world.results(run)[contact].outcome is (Outcome.ADOPTED if mended else Outcome.CREATED)


def test_a_record_that_is_being_worked_is_not_recreated(contact_world: ContactWorld) -> None:
    """Its message may be about to create: the claim is left to it."""
    world = contact_world
    contact = _in_doubt(world)
    failed = world.sync(f"ids={contact}", mail_to=())
    world.edit("contact", contact, emailaddress1=EMAIL)
    _die_creating(world, _item_of(world, contact), "marketo (GET|POST) rest/v1/leads.json")

    with pytest.raises(MappingError, match="being worked"):
        repairs.recreate_missing(world.app, failed, "operator")


def test_a_contact_that_has_its_email_again_is_looked_up(contact_world: ContactWorld) -> None:
    """The digest knows the value again, however it is written."""
    world = contact_world
    contact = _in_doubt(world)
    world.sync(f"ids={contact}", mail_to=())
    world.edit("contact", contact, emailaddress1=EMAIL.upper())

    run = world.sync(f"ids={contact}", mail_to=())

    assert (_emails(world), run.counts) == ([EMAIL], {"created": 1})


def test_a_create_that_cannot_have_left_is_not_in_doubt(contact_world: ContactWorld) -> None:
    """The message died before it claimed the email, which every create does first: the new email is free to be used."""
    world = contact_world
    contact = world.contact(EMAIL)
    _die_creating(world, _item_of(world, contact), "storage POST identities")
    world.advance(LEASE_S + 1)
    world.edit("contact", contact, emailaddress1=MOVED)

    run = world.sync(f"ids={contact}", mail_to=())

    assert (_emails(world), run.counts) == ([MOVED], {"created": 1})


def test_a_claim_on_a_link_that_another_has_begun_says_what_is_sent(contact_world: ContactWorld) -> None:
    """An event died with its claim, before it said anything; a first run, which looks no links up, goes on from there."""
    world = contact_world
    contact = world.contact(EMAIL)
    world.advance(1)
    world.start("today", mail_to=())
    world.view.insert(LinkRow(pair="a", side="b", key="c"))  # so that there is a table
    world.wire.kill_on("storage POST links", after=True)
    world.hook("contact", contact, "Create")
    world.pump.run(until=lambda: world.pump.kills > 0)
    world.pump.waiting = [each for each in world.pump.waiting if each.queue != "events"]
    world.advance(LEASE_S + 1)
    world.marketo.add_fault(FaultKind.RESET_AFTER, **LEADS)
    world.pump.run(until=lambda: bool(world.leads()))
    _abandon(world)
    world.edit("contact", contact, emailaddress1=MOVED)

    run = world.sync(f"ids={contact}", mail_to=())

    assert (_emails(world), world.results(run)[contact].reason) == ([EMAIL], "create_in_doubt")


def test_what_is_stored_of_a_value_is_a_digest(contact_world: ContactWorld) -> None:
    """Under the claim as under the value itself; once the record is linked nothing of it stays."""
    world = contact_world
    contact = world.contact(EMAIL)
    _lose_answer(world, _item_of(world, contact))
    claimed = world.link("contact", contact)
    world.pump.run()

    linked = world.link("contact", contact)
    (stored,) = (row for row in world.view.scan(LinkRow) if row.key == contact)
    assert claimed is not None
    assert linked is not None
    assert EMAIL not in claimed.model_dump_json()
    assert list(claimed.inputs) == ["marketo.lead"]
    assert (stored.other_key != "", linked.inputs.get("marketo.lead")) == (True, None)


# -- no value, and conditions -------------------------------------------------------------------------------------------


def test_a_record_without_a_value_fails_instead_of_being_made_twice(world: World) -> None:
    """A first rule whose field is empty finds nothing, whatever was made."""
    world.change_recipe("  - correlation_id\n  - number", "  - description\n  - description")
    case = world.add_case(description=None)
    world.servicenow.add_fault(FaultKind.RESET_AFTER, method="POST", path=INCIDENT)
    world.change_recipe("    when: {active: true}\n", "    when: {active: false}\n")

    run = world.sync()

    assert len(world.incidents()) == 1
    assert world.results(run)[case].reason == "create_in_doubt"


CONDITIONS = ["when: {active: true}", "same_or_empty: [caller_id]"]


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("field", ["correlation_id", "correlation_display"])
def test_a_record_that_is_changed_in_the_target_before_the_look_up(world: World, condition: str, field: str) -> None:
    """It does not meet the first rule's condition any more. Who has the case's own id is its incident, others are not taken."""
    rule = f"  - {{fields: [{field}], {condition}}}\n  - number"
    world.change_recipe("  - correlation_id\n  - number", rule)
    case = world.add_case()
    item = _item_of(world, case)
    _lose_answer(world, item)
    (made,) = world.incidents()
    other = world.add_servicenow_user("other@customer.example")
    changes = {"number": "INC0099", "short_description": "Other", "caller_id": other}
    world.servicenow.update("incident", made["sys_id"], **changes)
    world.servicenow.update("incident", made["sys_id"], state="7", close_code="Solution provided", close_notes="Done")

    world.pump.run()

    assert [each["sys_id"] for each in world.incidents()] == [made["sys_id"]]
    result = world.results(world.runs()[0])[case]
    known = field == "correlation_id"
    assert (result.outcome, result.reason) == (("created", "") if known else ("failed", "create_in_doubt"))


# -- what was sent is held no longer than the doubt -----------------------------------------------------------------------


def test_an_event_whose_doubt_is_over_reads_its_contact_anew(contact_world: ContactWorld) -> None:
    """Looked up and not made, its create is put off; the contact is deleted meanwhile, which its own event finds unlinked."""
    world = contact_world
    contact = world.contact(EMAIL)
    world.marketo.add_fault(FaultKind.REFUSE, **LEADS)
    first = world.hook("contact", contact, "Create")
    world.pump.run(for_s=1)
    world.marketo.add_fault(FaultKind.STATUS, **LEADS, status=429, headers={"Retry-After": "60"}, times=3)
    before = len(world.marketo.requests("POST", "/leads.json"))
    world.pump.run(for_s=600, until=lambda: len(world.marketo.requests("POST", "/leads.json")) > before)
    world.dynamics.delete("contact", contact)
    second = world.hook("contact", contact, "Delete")

    world.pump.run()

    assert world.leads() == []
    assert [world.event(each).outcome for each in (first, second)] == [Outcome.SKIPPED, Outcome.SKIPPED]


def test_an_event_of_which_a_references_answer_was_lost_reads_its_contact_anew(contact_world: ContactWorld) -> None:
    """Its company's create is in doubt, its own cannot have left: it is made as it is by then, or not at all."""
    world = contact_world
    contact = world.contact(EMAIL, world.account())
    world.marketo.add_fault(FaultKind.RESET_AFTER, method="POST", path="/companies.json")
    event = world.hook("contact", contact, "Create")
    world.pump.run(for_s=1)
    world.dynamics.delete("contact", contact)

    world.pump.run()

    assert (world.leads(), world.event(event).reason) == ([], "source_missing")
