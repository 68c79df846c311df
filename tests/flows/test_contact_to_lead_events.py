"""Webhook events: repeats, any order, edits in between, the day's run, its digest, and events that wait together."""

import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sandbox import dynamics365_render
from shared.state.messages import EventMessage
from shared.state.queues import parse
from shared.state.rows import Outcome, RunState
from sync import events
from sync.app import App
from tests.flows.contacts import ACCOUNTS, CONTACTS, ContactWorld, new_contact_world
from tests.flows.world import NOW, Delivery, Stage

EMAIL = "ana@customer.example"


@pytest.fixture
def berlin(stage: Stage, tmp_path: Path, prefix: str) -> Iterator[ContactWorld]:
    """A world whose app lives in Berlin: its day ends at 23:00 UTC in winter."""
    with new_contact_world(stage, tmp_path / "recipes", prefix, {"TIME_ZONE": "Europe/Berlin"}) as made:
        yield made


def _between(world: ContactWorld, label: str, happen: Callable[[], object]) -> None:
    """Let something happen once, right after the next call whose label begins so was answered."""
    carry, waiting = world.wire.carry, [happen]

    def carry_and_more(said: str, call: Callable[[], object]) -> object:
        answer = carry(said, call)
        if said.startswith(label) and waiting:
            waiting.pop()()
        return answer

    world.wire.carry = carry_and_more  # type: ignore[method-assign]


def _work_next(world: ContactWorld) -> None:
    """Let another worker work the next message that waits, from its beginning to its end."""
    world.pump._take()
    delivery = world.pump._next()
    assert delivery is not None
    world.pump.deliver(delivery)


# -- two workers ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def whole_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Dynamics 365 give versions no finer than its times: two edits within a second have the same one."""
    monkeypatch.setattr(dynamics365_render, "etag_of", lambda _: "unknown")


def _edits(world: ContactWorld, contact: str, title: str) -> None:
    """Edit a contact, within the second that it is, and let another worker work all that waits."""
    world.edit("contact", contact, jobtitle=title)
    world.hook("contact", contact)
    while any(delivery.due <= world.now() for delivery in _waiting(world)):
        _work_next(world)


def _waiting(world: ContactWorld) -> list[Delivery]:
    world.pump._take()
    return world.pump.waiting


@pytest.mark.usefixtures("whole_seconds")
@pytest.mark.parametrize("last", ["Head of buying", "Seller"], ids=["another value", "back to what it was"])
def test_events_that_two_workers_work_at_once_end_with_the_newest_state(contact_world: ContactWorld, last: str) -> None:
    """Wherever in its work one worker is overtaken by a second edit and its event, the lead ends as the contact is.

    Both edits lie within a second and their versions are equal. One contact after the other is overtaken at the first
    call that leaves the worker, at the second, and so on, until its work has no further call.
    """
    world, calls, number = contact_world, 0, 0
    while number == 0 or number < calls:
        contact = world.contact(f"c{number}@customer.example", jobtitle="Seller")
        world.send("contact", contact, "Create")
        world.edit("contact", contact, jobtitle="Buyer")
        world.hook("contact", contact)
        world.pump._take()
        world.wire.calls = []
        _at_call(world, number, lambda contact=contact: _edits(world, contact, last))  # type: ignore[misc]

        _work_next(world)
        calls = calls or len(world.wire.calls)
        world.pump.run()

        assert world.lead(f"c{number}@customer.example")["title"] == last, f"overtaken at call {number} of {calls}"
        number += 1
    assert calls > 5


@pytest.mark.usefixtures("whole_seconds")
def test_run_that_is_overtaken_by_an_event_reads_the_record_again(contact_world: ContactWorld) -> None:
    """What a sweep has listed before an event brought a newer state of the same second is not put back."""
    world = contact_world
    contact = world.contact(EMAIL, jobtitle="Seller")
    world.send("contact", contact, "Create")
    world.edit("contact", contact, jobtitle="Buyer")

    world.advance(60)
    moment = world.dynamics.rows("contact")[0]["modifiedon"]

    def overtake() -> None:
        world.edit("contact", contact, jobtitle="Head of buying", modifiedon=moment)
        world.hook("contact", contact)
        _work_next(world)

    _between(world, "marketo GET rest/v1/leads.json", overtake)
    world.sweep()

    assert world.lead(EMAIL)["title"] == "Head of buying"


def _at_call(world: ContactWorld, number: int, happen: Callable[[], object]) -> None:
    """Let something happen once, right after call `number` from now on was answered."""
    carry, left = world.wire.carry, [number]

    def carry_and_more(said: str, call: Callable[[], object]) -> object:
        answer = carry(said, call)
        left[0] -= 1
        if left[0] == -1:
            world.wire.carry = carry  # type: ignore[method-assign]
            happen()
        return answer

    world.wire.carry = carry_and_more  # type: ignore[method-assign]


# -- order ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 1], ids=["in order", "the later one first"])
def test_two_edits_within_a_second_end_right(contact_world: ContactWorld, first: int) -> None:
    """Whatever order the events of two edits come in, the lead is as the contact is; the one that finds nothing is unchanged."""
    world = contact_world
    contact = world.contact(EMAIL)
    world.send("contact", contact, "Create")
    for title in ("Buyer", "Head of buying"):
        world.edit("contact", contact, jobtitle=title)
    operations = ["00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002"]

    for operation in (operations[first], operations[1 - first]):
        world.hook("contact", contact, operation=operation)
    world.pump.run()

    assert world.lead(EMAIL)["title"] == "Head of buying"
    assert world.counted([*world.events().values()]) == {"created": 1, "updated": 1, "unchanged": 1}


@pytest.mark.parametrize("call", ["dynamics365 GET api/data/v9.2/contacts", "marketo GET rest/v1/leads.json"])
def test_event_overtaken_by_another_writes_nothing_stale(contact_world: ContactWorld, call: str) -> None:
    """A worker that is overtaken by the next edit's event does not put the old value back: that event waits for it."""
    world = contact_world
    contact = world.contact(EMAIL)
    world.send("contact", contact, "Create")
    world.edit("contact", contact, jobtitle="Buyer")
    world.hook("contact", contact)

    def overtake() -> None:
        world.edit("contact", contact, jobtitle="Head of buying")
        world.hook("contact", contact)
        _work_next(world)

    _between(world, call, overtake)
    world.pump.run()

    assert world.lead(EMAIL)["title"] == "Head of buying"
    assert world.counted([*world.events().values()]) == {"created": 1, "updated": 2}


def test_company_is_not_put_back_by_a_contact_read_before(contact_world: ContactWorld) -> None:
    """The account within a contact is as old as the reading: what the account's own event wrote meanwhile stays."""
    world = contact_world
    account = world.account("Fabrikam")
    contact = world.contact(EMAIL, account)
    world.send("contact", contact, "Create")
    world.edit("account", account, name="Fabrikam North")
    world.edit("contact", contact, jobtitle="Buyer")
    slow = world.hook("contact", contact)

    def overtake() -> None:
        world.edit("account", account, name="Fabrikam Group")
        world.hook("account", account)
        _work_next(world)

    _between(world, "dynamics365 GET api/data/v9.2/contacts", overtake)
    world.pump.run()

    assert world.company(account)["company"] == "Fabrikam Group"
    assert world.lead(EMAIL)["title"] == "Buyer"
    assert world.event(slow).outcome is Outcome.UPDATED


def test_events_of_one_contact_among_those_that_wait(contact_world: ContactWorld) -> None:
    """Create and updates of a contact that wait together are worked one after the other: one lead, a result for each."""
    world = contact_world
    contact = world.contact(EMAIL)
    ids = [world.hook("contact", contact, message) for message in ("Update", "Create", "Update")]

    world.pump.run()

    assert len(world.leads()) == 1
    assert sorted(world.event(event_id).outcome for event_id in ids) == ["created", "unchanged", "unchanged"]


def test_event_that_comes_twice_has_one_result(contact_world: ContactWorld) -> None:
    """Dataverse's second try carries the same operation: it changes neither lead nor result, together or later."""
    world = contact_world
    contact = world.contact(EMAIL)
    operation = "00000000-0000-4000-8000-000000000001"

    event_id = world.hook("contact", contact, "Create", operation)
    world.hook("contact", contact, "Create", operation)
    world.pump.run()
    world.hook("contact", contact, "Create", operation)
    world.pump.run()

    assert list(world.events()) == [event_id]
    assert world.event(event_id).outcome is Outcome.CREATED
    assert len(world.leads()) == 1


# -- the day's run --------------------------------------------------------------------------------------------------------


def test_events_of_a_day_form_one_run(berlin: ContactWorld) -> None:
    """The run shows counts and failures like any other; it closes after midnight in the app's zone."""
    world = berlin
    world.send("contact", world.contact(EMAIL), "Create")
    world.send("contact", world.contact(None), "Create")
    open_run = world.event_run()

    world.advance_to(datetime(2026, 3, 10, 23, 1, tzinfo=UTC))
    world.tick_for(10)

    run = world.run_row(open_run)
    assert open_run.state is RunState.RUNNING
    assert (run.since, run.until) == (
        datetime(2026, 3, 9, 23, 0, tzinfo=UTC),
        datetime(2026, 3, 10, 23, 0, tzinfo=UTC),
    )
    assert (run.state, run.counts) == (RunState.COMPLETED_WITH_FAILURES, {"created": 1, "failed": 1})


def test_late_event_belongs_to_the_day_it_is_worked(berlin: ContactWorld) -> None:
    """An event that came before midnight and is worked after it stands in the new day's run, and the old one stays closed."""
    world = berlin
    world.send("contact", world.contact(EMAIL), "Create")
    yesterday = world.event_run()
    world.advance_to(datetime(2026, 3, 10, 22, 59, 50, tzinfo=UTC))
    late = world.hook("contact", world.contact("late@customer.example"), "Create")

    world.advance_to(datetime(2026, 3, 10, 23, 0, 5, tzinfo=UTC))
    world.tick_for(20)

    today = world.event_run()
    assert today.run_id != yesterday.run_id
    assert world.event(late).run_id == today.run_id
    assert world.run_row(yesterday).counts == {"created": 1}
    assert world.run_row(yesterday).state is RunState.COMPLETED


def test_event_that_comes_again_after_midnight_has_one_result(berlin: ContactWorld) -> None:
    """What was worked the day before is not worked again, whether the vendor or the queue repeats it."""
    world = berlin
    world.advance_to(datetime(2026, 3, 10, 22, 59, tzinfo=UTC))
    contact = world.contact(EMAIL)
    operation = "00000000-0000-4000-8000-000000000001"
    event_id = world.hook("contact", contact, "Create", operation)
    world.pump.run()
    (delivery,) = (each for each in world.pump.done if each.queue == "events")

    world.advance_to(datetime(2026, 3, 10, 23, 5, tzinfo=UTC))
    world.hook("contact", contact, "Create", operation)
    world.pump.run(for_s=60)
    world.advance_to(datetime(2026, 3, 11, 5, 0, tzinfo=UTC))
    world.pump.waiting.append(delivery)
    world.pump.run(for_s=60)

    assert list(world.events()) == [event_id]
    assert world.event(event_id).outcome is Outcome.CREATED


def test_event_that_waits_over_midnight_keeps_its_count(berlin: ContactWorld) -> None:
    """One that found Marketo out of order before midnight ends in the next day's run, once."""
    world = berlin
    world.advance_to(datetime(2026, 3, 10, 22, 59, tzinfo=UTC))
    world.marketo.script_error("713", times=3)
    waits = world.hook("contact", world.contact(EMAIL), "Create")

    world.tick_for(30)

    assert world.event(waits).outcome is Outcome.CREATED
    assert world.event(waits).run_id == world.event_run().run_id
    assert len(world.leads()) == 1


# -- the digest -----------------------------------------------------------------------------------------------------------


def _next_day(world: ContactWorld) -> None:
    world.advance_to((NOW + timedelta(days=1)).replace(hour=0, minute=1))
    world.tick_for(15)


def test_day_without_failures_sends_nothing(contact_world: ContactWorld) -> None:
    """Webhooks and sweeps are silent when nothing failed."""
    world = contact_world
    world.tick()  # the recipe is known since today
    world.send("contact", world.contact(EMAIL), "Create")
    world.sweep()

    _next_day(world)

    assert world.mailbox.mails == []


def test_day_with_failures_sends_one_digest(contact_world: ContactWorld) -> None:
    """One mail tells of all that failed that day, by event or by sweep."""
    world = contact_world
    world.tick()
    contact = world.contact(None, lastname="Nomail")
    world.send("contact", contact, "Create")
    world.send("contact", contact)
    world.sweep()

    _next_day(world)

    [mail] = world.mailbox.mails
    assert contact in mail.text
    assert "ana@" not in mail.text


# -- events that wait together --------------------------------------------------------------------------------------------


def _burst(world: ContactWorld, contacts: int, accounts: int) -> tuple[list[str], list[str]]:
    """Let events of many new contacts wait; return the contacts and the events' ids."""
    owners = [world.account(f"Company {number}") for number in range(accounts)]
    made = [world.contact(f"c{number}@customer.example", owners[number % accounts]) for number in range(contacts)]
    return made, [world.hook("contact", contact, "Create") for contact in made]


def test_burst_takes_few_calls(contact_world: ContactWorld) -> None:
    """300 contacts of 30 accounts that wait are read, searched and written together, each with its own result.

    Companies need no search.
    """
    world = contact_world
    world.send("contact", world.contact("first@customer.example"), "Create")  # the schemas are known
    _, ids = _burst(world, 300, 30)
    world.forget_journal()

    world.pump.run(for_s=0)

    assert world.marketo_calls() == {
        "write companies": 1,
        "search leads": 1,
        "write leads": 1,
    }
    assert world.reads_of("contacts") <= 5  # a filter holds about 65 ids
    assert [world.event(event_id).outcome for event_id in ids] == ["created"] * 300
    assert len(world.leads()) == 301
    assert len(world.companies()) == 30


def test_event_that_waits_for_its_turn_takes_along_what_came_meanwhile(contact_world: ContactWorld) -> None:
    """A busy process does not start small lots side by side: the next one is the larger, and Marketo's calls are fewer."""
    world = contact_world
    world.send("contact", world.contact("first@customer.example"), "Create")  # the schemas are known
    world.forget_journal()
    world.hook("contact", world.contact("early@customer.example"), "Create")
    world.pump._take()
    delivery = world.pump._next()
    with events.TURNS, events.TURNS:
        worker = threading.Thread(target=world.pump.deliver, args=(delivery,))
        worker.start()
        _, later = _burst(world, 4, 1)
        world.pump._take()

    worker.join()

    assert world.marketo_calls()["write leads"] == 1
    assert len(world.leads()) == 6
    assert set(later) <= set(world.events())


def test_message_of_a_burst_ends_after_its_result(contact_world: ContactWorld) -> None:
    """What was taken along is deleted only when its own result is stored; the first one is the host's to end."""
    world = contact_world
    _, ids = _burst(world, 6, 2)
    end, stored = world.pump.end, []

    def end_and_note(message_id: str) -> None:
        [body] = [each.body for each in world.pump.waiting if each.id == message_id]
        stored.append(parse(EventMessage, body).event_id in world.events())
        end(message_id)

    world.pump.end = end_and_note  # type: ignore[method-assign]
    world.pump.run()

    assert stored == [True] * (len(ids) - 1)
    assert set(ids) <= set(world.events())


def test_bad_record_of_a_burst_stays_alone(contact_world: ContactWorld) -> None:
    """`success: true` with a skipped record fails that record and no other."""
    world = contact_world
    contacts, ids = _burst(world, 20, 2)
    world.marketo.script_error("1003", message="Invalid data", record=7, path="leads", method="POST")
    no_email = world.hook("contact", world.contact(None), "Create")

    world.pump.run()

    results = [world.event(event_id) for event_id in ids]
    assert world.counted(results)["created"] == 19
    [refused] = [result for result in results if result.outcome is not Outcome.CREATED]
    assert refused.outcome is Outcome.FAILED
    assert "1003" in refused.message or "Invalid data" in refused.message
    assert world.event(no_email).reason == "contact_without_email"
    assert len(world.leads()) == 19
    assert len(contacts) == 20


def test_broken_company_fails_only_its_contacts(contact_world: ContactWorld) -> None:
    """When a company is refused its contacts fail, the others go on."""
    world = contact_world
    world.marketo.script_error("1003", record=1, path="companies", method="POST")

    _, ids = _burst(world, 12, 3)
    world.pump.run()

    results = [world.event(event_id) for event_id in ids]
    assert sum(result.outcome is Outcome.CREATED for result in results) == 8
    assert sum(result.outcome is Outcome.FAILED for result in results) == 4
    assert len(world.companies()) == 2


def _work_round(world: ContactWorld, round_: int, ids: Sequence[str]) -> tuple[dict[str, int], int]:
    """Work everything, through the death that was set, and return what became of a round's events and how many leads it has."""
    world.pump.run()
    world.wire.kill_at(-1, after=False)
    events = world.events()
    leads = [lead for lead in world.leads() if str(lead["email"]).startswith(f"r{round_}-")]
    return world.counted([events[event_id] for event_id in ids if event_id in events]), len(leads)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_burst_loses_and_doubles_nothing(contact_world: ContactWorld, after: bool) -> None:
    """Whatever kind of call the process dies at, each contact has one lead, each event one result, and it is the true one."""
    world = contact_world
    world.send("contact", world.contact("first@customer.example"), "Create")
    labels = _labels_of_a_burst(world)
    expected, wrong = {"created": 6}, []
    for round_, number in enumerate(firsts_and_lasts(labels)):
        accounts = [world.account(f"Round {round_} of {one}") for one in "AB"]
        contacts = [world.contact(f"r{round_}-{n}@customer.example", accounts[n % 2]) for n in range(6)]
        ids = [world.hook("contact", contact, "Create") for contact in contacts]
        world.wire.kill_at(number, after=after)
        found, leads = _work_round(world, round_, ids)
        companies = [len(world.companies(externalCompanyId=account)) for account in accounts]
        if (found, leads, companies) != (expected, 6, [1, 1]):
            wrong.append(f"{labels[number]}: {found}, {leads} leads, companies {companies}")

    assert wrong == [], "\n".join(wrong)


# -- several events in a message ------------------------------------------------------------------------------------------


def _hook_together(world: ContactWorld, contacts: list[str]) -> list[str]:
    """Put one message into the queue that holds an event of each contact, as a busy receiver does; return the events' ids."""
    first, *others = (
        EventMessage(
            recipe=CONTACTS,
            record="dynamics365.contact",
            key=contact,
            name="Create",
            event_id=f"together:{contact}:Create",
            received_at=world.now(),
        )
        for contact in contacts
    )
    world.queues.send(first.model_copy(update={"others": others}))
    return [event.event_id for event in (first, *others)]


def test_events_of_one_message_have_a_result_each(contact_world: ContactWorld) -> None:
    """A record that is refused fails alone, one that has to wait goes on by itself, a repeat says no more."""
    world = contact_world
    contacts = [world.contact(f"c{number}@customer.example") for number in range(4)] + [world.contact(None)]
    world.marketo.script_error("1003", message="Invalid data", record=1, path="leads", method="POST")

    ids = _hook_together(world, [*contacts, contacts[0]])
    world.pump.run()

    assert len(set(ids)) == 5
    counts = world.counted([world.event(event_id) for event_id in set(ids)])
    assert counts == {"created": 3, "invalid_value": 1, "contact_without_email": 1}
    assert len(world.leads()) == 3


def test_event_of_a_message_that_has_to_wait_goes_on_by_itself(contact_world: ContactWorld) -> None:
    """While Marketo is away each event is sent again under its own claims; none is lost and none doubled."""
    world = contact_world
    fault = world.marketo.add_fault("status", status=503, path="/rest/", times=0)
    ids = _hook_together(world, [world.contact(f"c{number}@customer.example") for number in range(4)])

    world.pump.run(for_s=600)
    world.marketo.faults.remove(fault)
    world.pump.run(for_s=3600)

    assert world.counted([world.event(event_id) for event_id in ids]) == {"created": 4}
    assert len(world.leads()) == 4


def test_two_contacts_with_one_email_in_a_message_are_one_lead(contact_world: ContactWorld) -> None:
    """Events of a message do not share their claims: the second is told that the address is another contact's."""
    world = contact_world

    ids = _hook_together(world, [world.contact(EMAIL), world.contact(EMAIL)])
    world.pump.run(for_s=3600)

    results = [world.event(event_id) for event_id in ids]
    assert sorted(result.outcome for result in results) == ["created", "failed"]
    assert {result.reason for result in results if result.outcome is Outcome.FAILED} == {"email_shared"}
    assert len(world.leads()) == 1


@pytest.mark.parametrize("together", [300, 1], ids=["together", "one by one"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_message_of_several_that_kills_loses_and_doubles_nothing(
    contact_world: ContactWorld, after: bool, together: int
) -> None:
    """Whatever kind of call the process dies at, also between two results: one lead a contact, one true result an event."""
    world = contact_world
    world.change_settings(events_together=together)
    world.send("contact", world.contact("first@customer.example"), "Create")
    _hook_together(world, [world.contact(f"plain-{number}@customer.example") for number in range(4)])
    world.wire.calls = []
    world.pump.run()
    labels, wrong = list(world.wire.calls), []
    for round_, number in enumerate(firsts_and_lasts(labels)):
        contacts = [world.contact(f"r{round_}-{n}@customer.example") for n in range(4)]
        ids = _hook_together(world, contacts)
        world.wire.kill_at(number, after=after)
        found, leads = _work_round(world, round_, ids)
        if (found, leads) != ({"created": 4}, 4):
            wrong.append(f"{labels[number]}: {found}, {leads} leads")

    assert wrong == [], "\n".join(wrong)


def test_event_that_kills_its_worker_takes_no_other_of_its_message_along(contact_world: ContactWorld) -> None:
    """A message whose worker died is taken apart: the one that kills ends in poison, the others are worked."""
    world = contact_world
    world.change_settings(events_together=1)
    contacts = [world.contact(f"c{number}@customer.example") for number in range(4)]
    ids = _hook_together(world, contacts)

    def die_of_the_second(delivery: Delivery) -> None:
        works_it = contacts[1] in delivery.body and (delivery.count == 1 or contacts[0] not in delivery.body)
        world.wire.kill_at(0 if works_it else -1, after=False)

    world.pump.before = die_of_the_second
    world.pump.run()

    results = [world.event(event_id) for event_id in ids]
    assert [result.outcome for result in results] == ["created", "failed", "created", "created"]
    assert results[1].reason == "worker_died"
    assert len(world.leads()) == 3


def test_events_that_have_waited_keep_their_claims_when_their_message_is_taken_apart(
    contact_world: ContactWorld,
) -> None:
    """An event that was sent on holds its claims under its first id: under another one it would wait for itself."""
    world = contact_world
    fault = world.marketo.add_fault("status", status=503, path="/rest/", times=0)
    ids = _hook_together(world, [world.contact(f"c{number}@customer.example") for number in range(3)])
    world.pump.run(for_s=0)
    world.marketo.faults.remove(fault)
    world.change_settings(events_together=1)  # none is taken along: each delivery is seen
    deliveries: list[EventMessage] = []

    def die_once(delivery: Delivery) -> None:
        if delivery.queue == EventMessage.QUEUE:
            deliveries.append(parse(EventMessage, delivery.body))
            world.wire.kill_at(0 if deliveries[-1].others and delivery.count == 1 else -1, after=False)

    world.pump.before = die_once
    world.pump.run()

    waited = deliveries[0]
    first_ids = [event.first_id for event in (waited, *waited.others)]
    assert len(set(first_ids)) == 3
    assert sorted(event.first_id for event in deliveries if not event.others) == sorted(first_ids)
    assert world.counted([world.event(event_id) for event_id in ids]) == {"created": 3}
    assert len(world.leads()) == 3


def test_message_of_several_that_comes_twice_has_one_result_an_event(contact_world: ContactWorld) -> None:
    """A message whose deletion was lost is taken apart, and each of its events finds its result."""
    world = contact_world
    world.pump.repeats = 2

    ids = _hook_together(world, [world.contact(f"c{number}@customer.example") for number in range(4)])
    world.pump.run(for_s=60)

    assert world.counted([world.event(event_id) for event_id in ids]) == {"created": 4}
    assert len(world.leads()) == 4


def _labels_of_a_burst(world: ContactWorld) -> list[str]:
    account = world.account("Plain")
    for number in range(6):
        world.hook("contact", world.contact(f"plain-{number}@customer.example", account), "Create")
    world.wire.calls = []
    world.pump.run()
    return list(world.wire.calls)


def firsts_and_lasts(labels: list[str]) -> list[int]:
    """Return the numbers of each kind of call's first and last one."""
    firsts = {label: number for number, label in reversed(list(enumerate(labels)))}
    lasts = {label: number for number, label in enumerate(labels)}
    return sorted({*firsts.values(), *lasts.values()})


def test_vendor_down_keeps_a_burst_waiting(contact_world: ContactWorld) -> None:
    """While Marketo is away the events wait; when it is back each is worked, none failed."""
    world = contact_world
    fault = world.marketo.add_fault("status", status=503, path="/rest/", times=0)
    _, ids = _burst(world, 10, 2)

    sent_before = world.queues.operations.counts()["send"]
    world.pump.run(for_s=0)
    sent_on = world.queues.operations.counts()["send"] - sent_before
    world.pump.run(for_s=1800)
    results_when_down = world.events()
    world.marketo.faults.remove(fault)
    world.pump.run(for_s=3600)

    assert results_when_down == {}
    assert sent_on <= 3  # not one an event; the look at the day that begins is one of them
    assert world.counted([world.event(event_id) for event_id in ids]) == {"created": 10}


# -- sweep and backfill -----------------------------------------------------------------------------------------------------


def _activate(app: App, world: ContactWorld) -> None:
    """Let the app see its recipes for the first time."""
    world.tick()
    assert set(app.recipes) == {CONTACTS, ACCOUNTS}


def test_sweep_finds_what_never_arrived(contact_world: ContactWorld) -> None:
    """Contacts and accounts whose webhook was lost are found by their change time, and worked like the others."""
    world = contact_world
    _activate(world.app, world)
    world.advance(60)
    known = world.account("Fabrikam")
    world.send("contact", world.contact(EMAIL, known), "Create")
    world.edit("account", known, name="Fabrikam Group")
    lost = world.contact("lost@customer.example", world.account("Contoso"))
    world.advance(3600)

    runs = [world.sweep(CONTACTS), world.sweep(ACCOUNTS)]

    assert [run.kind for run in runs] == ["window", "window"]
    assert world.lead("lost@customer.example")["company"] == "Contoso"
    assert world.company(known)["company"] == "Fabrikam Group"
    assert world.results(runs[0])[lost].outcome is Outcome.CREATED
    assert runs[0].counts == {"created": 1, "unchanged": 1}


def test_sweep_reads_on_from_its_cursor(contact_world: ContactWorld) -> None:
    """The next sweep begins where the last one ended, ten minutes before; what is older is not read again."""
    world = contact_world
    _activate(world.app, world)
    old = world.contact(EMAIL)
    world.advance(3600)
    world.sweep()
    world.advance(3600)
    new = world.contact("new@customer.example")
    world.advance(60)

    run = world.sweep()

    assert set(world.results(run)) == {new}
    assert old not in world.results(run)


def test_first_sweep_reads_no_history(contact_world: ContactWorld) -> None:
    """Contacts from before the app was set up are moved by a backfill only."""
    world = contact_world
    world.contact(EMAIL, modifiedon=NOW - timedelta(days=30))
    _activate(world.app, world)
    world.advance(3600)

    run = world.sweep()

    assert run.counts == {}
    assert world.leads() == []


@pytest.mark.parametrize("bulk_above", [0, 1000], ids=["bulk", "single"])
def test_sweep_is_the_same_in_both_lanes(contact_world: ContactWorld, bulk_above: int) -> None:
    """A sweep of many works whole pages; each contact has its own result all the same."""
    world = contact_world
    world.change_settings(bulk_above=bulk_above)
    _activate(world.app, world)
    account = world.account("Fabrikam")
    for number in range(30):
        world.contact(f"c{number}@customer.example" if number % 10 else None, account)
    world.advance(3600)

    run = world.sweep()

    assert run.counts == {"created": 27, "failed": 3}
    assert len(world.leads()) == 27
    assert len(world.companies()) == 1


def test_backfill_moves_everything(contact_world: ContactWorld) -> None:
    """On demand all contacts are worked, whenever they changed; Marketo's calls are few."""
    world = contact_world
    long_ago = NOW - timedelta(days=700)
    accounts = [world.account(f"Company {number}", modifiedon=long_ago) for number in range(10)]
    for number in range(200):
        world.contact(f"c{number}@customer.example", accounts[number % 10], modifiedon=long_ago)

    run = world.sync_recipe(CONTACTS, "all")
    calls = world.marketo_calls()

    assert run.counts == {"created": 200}
    assert len(world.leads()) == 200
    assert len(world.companies()) == 10
    assert calls["write leads"] <= 4
    assert calls["write companies"] <= 4
    assert calls["search leads"] <= 6


def test_sweep_after_all_is_quiet(contact_world: ContactWorld) -> None:
    """What the events have done the sweep finds done: it asks Dynamics 365 for a page, and Marketo nothing."""
    world = contact_world
    _activate(world.app, world)
    _, ids = _burst(world, 20, 2)
    world.pump.run()
    world.advance(3600)
    world.forget_journal()

    run = world.sweep()

    assert run.counts == {"unchanged": len(ids)}
    assert world.marketo_calls() == {}


def test_preview_sees_what_an_event_linked_after_its_start(contact_world: ContactWorld) -> None:
    """A recipe's first preview does not promise to create what exists by now."""
    world = contact_world
    contact = world.contact(EMAIL)
    world.advance(60)
    run = world.start("all", preview=True)
    world.hook("contact", contact, "Create")
    world.pump._take()
    (event,) = (each for each in world.pump.waiting if each.queue == "events")
    world.pump.deliver(event)

    world.pump.run()

    assert world.results(run)[contact].outcome is Outcome.UNCHANGED
