"""A create in doubt whose record was found, and then put off: whoever prepared the record before creates no second one."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest

from sandbox.simulator import FaultKind
from shared.state.rows import IdentityRow, Outcome
from sync.forget import forget_email
from tests.flows.contacts import ContactWorld
from tests.flows.test_lost_answers import INCIDENT
from tests.flows.world import LEASE_S, TRANSACTION_S, Delivery, World

EMAIL = "ana.quill@customer.example"


@pytest.fixture
def case(world: World) -> str:
    """Return a case that no incident stands for yet."""
    return world.add_case("Old title")


def _item_of(world: World, case: str) -> Delivery:
    """Start a run of one case and return its item's message, which waits for nobody else then."""
    world.start(f"ids={case}", mail_to=())
    world.pump.run(until=lambda: any(each.queue == "items" for each in world.pump.waiting))
    (item,) = [each for each in world.pump.waiting if each.queue == "items"]
    world.pump.waiting.remove(item)
    return item


def _deliver(world: World, item: Delivery) -> None:
    world.pump.waiting.append(item)
    world.pump.deliver(item)


def _die_creating(world: World, item: Delivery, create: str = "servicenow POST api/now/table/incident") -> None:
    """Let a message die for ever before its create left: its claim stays, and says that there may be one."""
    world.wire.kill_on(create, after=False)
    _deliver(world, item)
    world.pump.waiting.remove(item)


def _show_late(world: World, case: str) -> str:
    """Let the create show after all, under a title that is to be mended; the claim on it is over."""
    incident = world.servicenow.insert("incident", correlation_id=case, short_description="Another title")
    world.advance(LEASE_S - 10)
    return incident


def _put_updates_off(world: World, for_s: int) -> None:
    headers = {"Retry-After": str(for_s)}
    world.servicenow.add_fault(FaultKind.STATUS, method="PATCH", status=429, headers=headers, times=3)


def _incidents(world: World, case: str) -> list[tuple[str, str]]:
    return [(found["sys_id"], found["short_description"]) for found in world.incidents(correlation_id=case)]


def test_its_own_message_comes_again(world: World, case: str) -> None:
    """What its page found out is not believed any more."""
    _die_creating(world, _item_of(world, case))
    world.advance(10)
    item = _item_of(world, case)
    incident = _show_late(world, case)
    _put_updates_off(world, 1)

    _deliver(world, item)
    world.pump.run()

    assert _incidents(world, case) == [(incident, "Old title")]


@pytest.mark.parametrize("copied", [True, False], ids=["a copy of the message", "another run"])
def test_another_message_was_prepared_before_too(world: World, case: str, copied: bool) -> None:
    """The claim says to whoever comes next that the record is to be looked up."""
    _die_creating(world, _item_of(world, case))
    world.advance(10)
    item = _item_of(world, case)
    other = Delivery(item.queue, "a-copy", item.body, item.due) if copied else _item_of(world, case)
    incident = _show_late(world, case)
    _put_updates_off(world, 5)

    _deliver(world, item)
    _deliver(world, other)
    world.pump.run()

    assert _incidents(world, case) == [(incident, "Old title")]


def test_a_page_in_bulk_was_prepared_before_too(world: World, case: str) -> None:
    """It claims its records together, and meets the claim that was left in doubt."""
    world.add_case("Other")
    _die_creating(world, _item_of(world, case))
    world.advance(10)
    item = _item_of(world, case)
    world.change_settings(bulk_above=0)
    carry, shown = world.wire.carry, []

    def work_another_before(label: str, call: Callable[[], Any]) -> Any:
        if not shown and label == "storage POST $batch" and world.servicenow.requests("GET", "/table/incident"):
            shown.append(_show_late(world, case))
            _put_updates_off(world, 5)
            _deliver(world, item)
        return carry(label, call)

    run = world.start("last_days:3", mail_to=())
    with mock.patch.object(world.wire, "carry", work_another_before):
        world.pump.run()

    assert _incidents(world, case) == [(shown[0], "Old title")]
    assert sum(world.run_row(run).counts.values()) == 2


def test_nobody_died(world: World, case: str) -> None:
    """The answer is lost, a rule of the vendor changes the record, its update is put off; a copy of the message comes late."""
    item = _item_of(world, case)
    copy = Delivery(item.queue, "a-copy", item.body, item.due)
    world.servicenow.add_fault(FaultKind.RESET_AFTER, method="POST", path=INCIDENT)
    _deliver(world, item)
    (made,) = world.incidents()
    world.servicenow.update("incident", made["sys_id"], short_description="Changed by a rule")
    _put_updates_off(world, 20)

    world.pump.run(until=lambda: bool(world.servicenow.requests("PATCH", "/table/incident")))
    _deliver(world, copy)
    world.pump.run()

    assert _incidents(world, case) == [(made["sys_id"], "Old title")]
    (run,) = world.runs()
    assert run.counts == {"created": 1}


def test_the_record_that_was_read_anew_goes_on(world: World, case: str) -> None:
    """A message that read its record under the claim, and is put off, does not go back to the row of its page."""
    item = _item_of(world, case)
    world.dynamics.update("incident", case, title="Second")
    world.start(f"ids={case}", mail_to=())
    world.pump.run(for_s=5)
    world.dynamics.update("incident", case, title="Third")
    _put_updates_off(world, 1)

    _deliver(world, item)
    world.pump.run()

    assert [title for _, title in _incidents(world, case)] == ["Third"]


def _values(world: World) -> list[IdentityRow]:
    return [row for row in world.view.scan(IdentityRow) if row.record.startswith("marketo.")]


def test_a_value_in_doubt_is_forgotten_when_nothing_can_come_of_it_any_more(contact_world: ContactWorld) -> None:
    """A claim that is over is no trace to keep; one under which a create may still show is."""
    world = contact_world
    _die_creating(world, _item_of(world, world.contact(EMAIL)), "marketo POST rest/v1/leads.json")

    forget_email(world.app, EMAIL)
    assert len(_values(world)) == 1
    world.advance(LEASE_S + 3601)
    forget_email(world.app, EMAIL)

    assert not _values(world)


def test_a_value_in_doubt_that_another_record_found(contact_world: ContactWorld) -> None:
    """A contact's message died with its create; the next one with that email takes the lead over, and is put off.

    The doubt stays with the email alone: the second contact has made no create, waits for none, and adopts.
    """
    world = contact_world
    first, second = world.contact(EMAIL), world.contact(EMAIL, lastname="Other")
    _die_creating(world, _item_of(world, first), "marketo POST rest/v1/leads.json")
    world.advance(10)
    item = _item_of(world, second)
    world.marketo.insert("leads", email=EMAIL, lastName="Quill")
    world.advance(LEASE_S - 10)
    world.marketo.add_fault(FaultKind.STATUS, method="POST", path="/leads.json", status=429, times=3)
    began = world.now()

    _deliver(world, item)
    (value,) = _values(world)
    world.pump.run()

    assert value.claim is not None
    assert value.claim.create_by is not None
    assert len(world.leads()) == 1
    result = world.results(world.runs()[0])[second]
    assert result.outcome is Outcome.ADOPTED
    assert (result.ended_at - began).total_seconds() < TRANSACTION_S
