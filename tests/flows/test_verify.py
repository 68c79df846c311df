"""A verification names every difference between source and target, and writes nothing."""

import random

import pytest

from tests.flows.contacts import CONTACTS, ContactWorld
from tests.flows.world import World

CLOSED = {"state": "7", "close_code": "Solution provided", "close_notes": "Done"}


def synced(world: World, count: int = 4) -> list[str]:
    cases = [world.add_case(f"Printer {number} is offline") for number in range(count)]
    world.sync("last_days:3")
    world.forget_journal()
    return cases


def found(world: World) -> dict[str, tuple[str, str]]:
    """Return the failures of a verification: reason and message by case."""
    run = world.sync("last_days:3", verify=True)
    return {key: (row.reason, row.message) for key, row in world.results(run).items() if row.outcome == "failed"}


def test_equal_systems_have_no_differences(world):
    """Nothing is named, nothing is written."""
    synced(world)

    assert found(world) == {}
    assert world.writes() == []


def test_deleted_target_is_named(world):
    """An incident that is gone, or hidden, is missing."""
    cases = synced(world)
    world.servicenow.delete("incident", world.incident_of(cases[1])["sys_id"])

    differences = found(world)

    assert {key: reason for key, (reason, _) in differences.items()} == {cases[1]: "target_missing"}
    assert world.writes() == []


def test_altered_target_is_named_with_its_fields(world):
    """An agent's change is a difference, told as what it is."""
    cases = synced(world)
    world.servicenow.update("incident", world.incident_of(cases[2])["sys_id"], short_description="Something else")

    differences = found(world)

    assert {key: reason for key, (reason, _) in differences.items()} == {cases[2]: "target_altered"}
    assert "short_description" in differences[cases[2]][1]


def test_doubled_target_is_named(world):
    """A second incident that carries the case's id is one too many."""
    cases = synced(world)
    world.servicenow.insert("incident", correlation_id=cases[0], short_description="A copy")

    differences = found(world)

    assert {key: reason for key, (reason, _) in differences.items()} == {cases[0]: "target_doubled"}


def test_source_that_is_ahead_is_named(world):
    """A change that was not written yet, and a case that was never synced."""
    cases = synced(world)
    world.edit_case(cases[3], title="Printer 3 burns")
    new = world.add_case("A new one")

    differences = found(world)

    assert {key: reason for key, (reason, _) in differences.items()} == {cases[3]: "target_behind", new: "not_synced"}


def test_what_runs_skip_is_no_difference(world):
    """The incident of a case is closed and takes nothing: a run skips it, so "sync it" would be advice for ever."""
    cases = synced(world)
    world.servicenow.update("incident", world.incident_of(cases[0])["sys_id"], **CLOSED)
    world.edit_case(cases[0], title="Printer 0 burns")
    unlinked = world.add_case("Printer is on fire")
    world.servicenow.insert("incident", correlation_id=unlinked, short_description="Printer", **CLOSED)
    skipped = {
        key: row.reason for key, row in world.results(world.sync("last_days:3")).items() if row.outcome == "skipped"
    }
    world.forget_journal()

    run = world.sync("last_days:3", verify=True)

    told = {key: row.reason for key, row in world.results(run).items() if row.outcome == "skipped"}
    assert told == skipped == {cases[0]: "target_closed", unlinked: "target_closed"}
    assert run.counts["unchanged"] == 3
    assert world.outcomes(run) == {"unchanged": 3, "skipped": 2}
    assert world.writes() == []


def test_closed_target_is_still_compared_with_what_was_agreed(world):
    """That it takes no more changes does not hide what an agent changed, or that it is doubled."""
    cases = synced(world)
    incident = world.incident_of(cases[0])["sys_id"]
    world.servicenow.update("incident", incident, short_description="Something else", **CLOSED)
    world.edit_case(cases[0], description="Burns")

    assert {key: reason for key, (reason, _) in found(world).items()} == {cases[0]: "target_altered"}


def test_what_runs_fail_is_told_by_their_reason(world):
    """A record that no run can sync is not to be synced first: its own reason says what to mend. Nothing is made for it."""
    synced(world)
    company = world.add_case(customerid_account=world.dynamics.insert("account", name="Northwind"))
    doubled = world.add_case("Two incidents stand for it")
    for _ in range(2):
        world.servicenow.insert("incident", correlation_id=doubled, short_description="Printer")
    stranger = world.add_case(contact=world.add_contact("new@customer.example"))

    differences = found(world)

    assert {key: reason for key, (reason, _) in differences.items()} == {
        company: "customer_is_account",
        doubled: "ambiguous_match",
        stranger: "not_synced",
    }
    assert world.users("new@customer.example") == []
    assert world.writes() == []


def test_backfill_is_verified_by_itself(world):
    """After a backfill a verification follows; it mails only if it found something."""
    world.add_case("Printer is offline")

    world.sync("all")

    assert [run.verify for run in sorted(world.runs(), key=lambda run: run.created_at)] == [False, True]
    assert len(world.mailbox.messages) == 1


def test_reference_that_is_gone_is_named(world):
    """A user was deleted: the incidents that name the user as caller refer to nobody, and say so."""
    synced(world)
    contact = world.add_contact("leaves@customer.example")
    case = world.add_case("The one who leaves", contact=contact)
    world.sync(f"ids={case}")
    world.servicenow.delete("sys_user", world.users("leaves@customer.example")[0]["sys_id"])
    world.forget_journal()

    differences = found(world)

    assert {key: reason for key, (reason, _) in differences.items()} == {case: "reference_missing"}
    assert "caller_id" in differences[case][1]
    assert world.writes() == []


def test_changed_customer_that_was_not_written_is_named(world):
    """A case that got another contact is behind by its caller."""
    cases = synced(world)
    world.edit_case(cases[1], customerid_contact=world.add_contact("other@customer.example"))

    differences = found(world)

    assert {key: reason for key, (reason, _) in differences.items()} == {cases[1]: "target_behind"}
    assert "caller_id" in differences[cases[1]][1]


def test_all_differences_of_a_record_are_named(world):
    """A doubled incident that an agent also changed is told as both, the graver one first."""
    cases = synced(world)
    world.servicenow.insert("incident", correlation_id=cases[0], short_description="A copy")
    world.servicenow.update("incident", world.incidents(number=world.number_of(cases[0]))[0]["sys_id"], urgency="1")

    reason, message = found(world)[cases[0]]

    assert reason == "target_doubled"
    assert "one is too many" in message
    assert "urgency" in message


@pytest.mark.parametrize("seed", range(4))
def test_random_damage_is_found_and_named_and_nothing_else(world, seed):
    """Whatever was deleted, altered or doubled is named, record by record; what was left alone is not."""
    chance = random.Random(seed)
    cases = synced(world, 12)
    damaged = chance.sample(cases, 6)
    kinds = [
        chance.choice(("target_missing", "target_altered", "target_doubled", "reference_missing")) for _ in damaged
    ]
    users = {}
    for case, kind in zip(damaged, kinds, strict=True):
        if kind == "reference_missing":
            users[case] = f"user{case[:8]}@customer.example"
            world.edit_case(case, customerid_contact=world.add_contact(users[case]))
    world.sync("last_days:3")
    for case, kind in zip(damaged, kinds, strict=True):
        _damage(world, case, kind, chance, users)

    differences = found(world)

    assert {key: reason for key, (reason, _) in differences.items()} == dict(zip(damaged, kinds, strict=True))


def _damage(world: World, case: str, kind: str, chance: random.Random, users: dict[str, str]) -> None:
    incident = world.incident_of(case)
    if kind == "target_missing":
        world.servicenow.delete("incident", incident["sys_id"])
    elif kind == "target_doubled":
        world.servicenow.insert("incident", correlation_id=case, short_description=incident["short_description"])
    elif kind == "reference_missing":
        world.servicenow.delete("sys_user", world.users(users[case])[0]["sys_id"])
    else:
        field = chance.choice(("short_description", "description", "urgency", "contact_type"))
        world.servicenow.update("incident", incident["sys_id"], **{field: "3" if field == "urgency" else "phone call"})


def test_what_nobody_damaged_is_never_named(world):
    """A closed case whose incident has a note, a reopened one, and an agent's own fields are no differences."""
    cases = synced(world)
    world.edit_case(cases[0], statecode=1, statuscode=5)
    world.edit_case(cases[1], statecode=1, statuscode=5)
    world.sync("last_days:3")
    world.edit_case(cases[1], statecode=0, statuscode=1)
    world.sync("last_days:3")
    world.servicenow.update("incident", world.incident_of(cases[2])["sys_id"], impact="1", work_notes="Looked at it")

    assert found(world) == {}


def test_reads_of_a_verification_are_its_own(world):
    """They are a few for a page, they write nothing, and none of them belongs to the run that it verifies."""
    synced(world, 30)
    world.forget_journal()

    run = world.sync("last_days:3", verify=True)

    assert run.counts == {"unchanged": 30}
    assert len([target for target in world.reads() if "/table/" in target]) <= 4
    assert world.writes() == []


# -- contacts, leads and companies -----------------------------------------------------------------------------------


def test_leads_that_differ_are_named(contact_world: ContactWorld) -> None:
    """A lead that was deleted (a company takes its leads along), changed or doubled is named by its contact."""
    world = contact_world
    accounts = [world.account(f"Company {number}") for number in range(2)]
    contacts = [world.contact(f"person{number}@customer.example", accounts[number % 2]) for number in range(5)]
    contacts.append(world.contact("alone@customer.example"))
    world.advance(60)
    world.sync_recipe(CONTACTS, "all", mail_to=())
    leads = {row["email"]: row["id"] for row in world.marketo.rows("leads")}
    world.marketo.delete("leads", leads["person0@customer.example"])
    world.marketo.update("leads", leads["person2@customer.example"], firstName="Somebody")
    world.marketo.insert("leads", email="person4@customer.example", lastName="Twice")
    (company,) = world.marketo.rows("companies", externalCompanyId=accounts[1])
    world.marketo.delete("companies", company["id"])
    world.marketo.journal.clear()

    run = world.sync_recipe(CONTACTS, "all", mail_to=(), verify=True)

    reasons = {key: row.reason for key, row in world.results(run).items() if row.outcome == "failed"}
    assert reasons == {
        contacts[0]: "target_missing",
        contacts[1]: "target_missing",
        contacts[2]: "target_altered",
        contacts[3]: "target_missing",
        contacts[4]: "target_doubled",
    }
    assert {call for call in world.marketo_calls() if "write" in call} == set()
