"""Answers that are lost, messages that come twice or out of order: nothing is lost, nothing is doubled."""

import random
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest

from sandbox.simulator import FaultKind
from shared.state.rows import RunState
from tests.flows.world import LEASE_S, READ_TIMEOUT_S, TRANSACTION_S, World

NEW = "new.person@customer.example"
INCIDENT, USER = "/table/incident$|/table/incident\\?", "/table/sys_user$|/table/sys_user\\?"
LATE = {"kind": FaultKind.LATE_EFFECT, "seconds": READ_TIMEOUT_S + 0.3}

AFTER_EFFECT = [
    pytest.param({"kind": FaultKind.RESET_AFTER}, id="reset after the effect"),
    pytest.param({"kind": FaultKind.STATUS_AFTER, "status": 502}, id="502 after the effect"),
    pytest.param({"kind": FaultKind.STATUS_AFTER, "status": 500}, id="500 after the effect"),
    pytest.param({"kind": FaultKind.TRUNCATED}, id="truncated answer"),
    pytest.param({"kind": FaultKind.HTML}, id="web page with 200"),
    pytest.param(LATE, id="effect after the time-out"),
]
WITHOUT_EFFECT = [
    pytest.param({"kind": FaultKind.REFUSE}, id="reset before the request"),
    pytest.param({"kind": FaultKind.STATUS, "status": 503}, id="503"),
    pytest.param({"kind": FaultKind.STATUS, "status": 429}, id="429"),
    pytest.param({"kind": FaultKind.STATUS, "status": 429, "headers": {"Retry-After": "40"}}, id="429 with a time"),
    pytest.param({"kind": FaultKind.EXPIRE_TOKEN}, id="expired token"),
    pytest.param({"kind": FaultKind.HANG, "seconds": READ_TIMEOUT_S + 0.3}, id="hang"),
]
Facts = dict[str, Any]


def _check_three_new_cases(world: World, run_id: str, cases: list[str]) -> None:
    run = world.run_row(run_id)
    assert (run.counts, run.state) == ({"created": 3}, RunState.COMPLETED)
    assert len(world.incidents()) == 3
    for case in cases:
        link = world.link_of(case)
        assert link is not None
        assert (link.other_key, link.claim) == (world.incident_of(case)["sys_id"], None)
    assert len(world.mailbox.mails) == 1


# -- creates ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", AFTER_EFFECT + WITHOUT_EFFECT)
def test_incident_whose_answer_is_lost_is_created_once(world: World, fault: Facts) -> None:
    """A create of an incident without an answer is looked up before anything is sent again."""
    cases = [world.add_case() for _ in range(3)]
    world.servicenow.add_fault(**fault, method="POST", path=INCIDENT, skip=1)

    run = world.sync()

    _check_three_new_cases(world, run.run_id, cases)


@pytest.mark.parametrize("fault", AFTER_EFFECT + WITHOUT_EFFECT)
def test_user_whose_answer_is_lost_is_created_once(world: World, fault: Facts) -> None:
    """The same for a user that is made on the way: it is made once, and is everybody's caller."""
    contact = world.add_contact(NEW)
    cases = [world.add_case(contact=contact) for _ in range(3)]
    world.servicenow.add_fault(**fault, method="POST", path=USER)

    run = world.sync()

    (user,) = world.users(NEW)
    assert {world.incident_of(case)["caller_id"] for case in cases} == {user["sys_id"]}
    _check_three_new_cases(world, run.run_id, cases)


@pytest.mark.parametrize("fault", AFTER_EFFECT + WITHOUT_EFFECT)
def test_update_whose_answer_is_lost_counts_as_updated(world: World, fault: Facts) -> None:
    """An update is harmless to repeat; it is reported as what it was."""
    case = world.add_case()
    world.sync()
    world.edit_case(case, title="Edited")
    times = 1 if fault["kind"] is FaultKind.EXPIRE_TOKEN else 3  # as often as the client repeats by itself
    world.servicenow.add_fault(**fault, method="PATCH", times=times)

    run = world.sync("last_days:3")

    assert world.incident_of(case)["short_description"] == "Edited"
    assert run.counts == {"updated": 1}
    link = world.link_of(case)
    assert link is not None
    assert link.claim is None


@pytest.mark.parametrize("fault", AFTER_EFFECT)
def test_closing_note_whose_answer_is_lost_is_written_once(world: World, fault: Facts) -> None:
    """A work note only appends: its marker is looked for before it is sent again."""
    case = world.add_case()
    world.sync()
    world.edit_case(case, statecode=1, statuscode=5)
    world.servicenow.add_fault(**fault, method="PATCH")

    run = world.sync("last_days:3")

    notes = world.servicenow.records.journal(world.incident_of(case), "work_notes")
    assert (len(notes), run.counts) == (1, {"updated": 1})


@pytest.mark.parametrize("lost", [INCIDENT, USER], ids=["incident", "user"])
def test_doubtful_create_is_looked_up_when_it_can_no_longer_happen(world: World, lost: str) -> None:
    """Until the vendor's longest transaction has passed an empty look-up proves nothing: nothing is created on its word."""
    world.add_case(contact=world.add_contact(NEW))
    world.servicenow.add_fault(**LATE, method="POST", path=lost)
    before = world.now()

    run = world.sync()

    creates = [entry.at for entry in world.servicenow.requests("POST", lost)]
    looks = [(entry.at - before).total_seconds() for entry in world.servicenow.requests("GET", lost)]
    assert len(creates) == 1
    assert lost == USER or max(looks) > TRANSACTION_S  # a page looks for users anyway: what it finds earlier is there
    assert run.counts == {"created": 1}


def test_several_lost_answers_in_a_row_create_once(world: World) -> None:
    """Each look-up has its own wait; a create that certainly did not happen is sent again."""
    case = world.add_case()
    world.servicenow.add_fault(FaultKind.HANG, method="POST", path=INCIDENT, seconds=READ_TIMEOUT_S + 0.2, times=2)
    world.servicenow.add_fault(FaultKind.RESET_AFTER, method="POST", path=INCIDENT)

    run = world.sync()

    assert (len(world.incidents()), run.counts) == (1, {"created": 1})
    assert world.results(run)[case].attempts > 1


def test_lost_answer_whose_lookup_fails_keeps_the_doubt(world: World) -> None:
    """A look-up that brings an error decides nothing: the doubt stays until one is answered."""
    world.add_case()
    world.servicenow.add_fault(FaultKind.RESET_AFTER, method="POST", path=INCIDENT)
    world.servicenow.add_fault(FaultKind.STATUS, method="GET", path="/table/incident", status=503, skip=3, times=6)

    run = world.sync()

    assert (len(world.incidents()), run.counts) == (1, {"created": 1})


# -- reads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        *WITHOUT_EFFECT,
        pytest.param({"kind": FaultKind.TRUNCATED}, id="truncated answer"),
        pytest.param({"kind": FaultKind.HTML}, id="web page with 200"),
        pytest.param({"kind": FaultKind.STATUS, "status": 500}, id="500"),
    ],
)
@pytest.mark.parametrize("system", ["dynamics", "servicenow"])
def test_read_that_fails_is_repeated(world: World, fault: Facts, system: str) -> None:
    """A page that cannot be listed, and a look-up that cannot be answered, are tried again until they are."""
    cases = [world.add_case() for _ in range(3)]
    sim, path = (world.dynamics, "/incidents") if system == "dynamics" else (world.servicenow, "/table/sys_user")
    times = 1 if fault["kind"] is FaultKind.EXPIRE_TOKEN else 2
    sim.add_fault(**fault, method="GET", path=path, times=times)

    run = world.sync()

    _check_three_new_cases(world, run.run_id, cases)


# -- messages ---------------------------------------------------------------------------------------------------------


def _many_cases(world: World, count: int = 24) -> None:
    contact = world.add_contact(NEW)
    for number in range(count):
        world.add_case(**({"contact": contact} if number % 9 == 0 else {}))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_messages_twice_and_in_any_order(paged_world: World, seed: int) -> None:
    """Every message is delivered again after it was worked, in any order: pages, items, checks and mail."""
    world = paged_world
    _many_cases(world)
    world.pump.shuffle, world.pump.repeats = random.Random(seed), 1

    run = world.sync()

    assert (run.counts, len(world.incidents())) == ({"created": 24}, 24)
    assert len(world.results(run)) == 24
    assert (len(world.users(NEW)), len(world.mailbox.mails)) == (1, 1)


def test_copies_of_every_message(paged_world: World) -> None:
    """A send that the storage took twice brings two messages with ids of their own: the second finds the first one's work."""
    world = paged_world
    _many_cases(world)
    world.pump.copies = 2

    run = world.sync()

    assert (run.counts, len(world.incidents())) == ({"created": 24}, 24)
    assert (len(world.users(NEW)), len(world.mailbox.mails)) == (1, 1)


def test_copies_that_are_worked_at_the_same_time(world: World) -> None:
    """While a message works on a record its copy waits: it does not write, and it does not fail."""
    case = world.add_case()
    run = world.start()
    world.pump.run(until=lambda: any(each.queue == "items" for each in world.pump.waiting))
    (item,) = [each for each in world.pump.waiting if each.queue == "items"]
    copy = type(item)(item.queue, "a-copy", item.body, item.due)
    world.wire.kill_on("servicenow POST", after=False)
    world.pump.lease_left_s = LEASE_S
    world.pump.deliver(item)  # dies with the claim in its hands
    world.pump.waiting.append(copy)
    world.pump.deliver(copy)
    between = (len(world.incidents()), world.results(run))

    world.pump.run()

    assert between == (0, {})
    assert (len(world.incidents()), world.run_row(run).counts) == (1, {"created": 1})
    assert world.incident_of(case)


def test_two_messages_that_ask_for_one_new_user(world: World) -> None:
    """Two cases of one new person, worked apart: the second waits for the first one's claim and finds the user."""
    contact = world.add_contact(NEW)
    first, second = (world.add_case(contact=contact) for _ in range(2))
    runs = [world.start(f"ids={case}", mail_to=()) for case in (first, second)]
    world.wire.kill_on("servicenow POST api/now/table/sys_user", after=True)
    world.pump.lease_left_s = LEASE_S

    world.pump.run()

    (user,) = world.users(NEW)
    assert {world.incident_of(case)["caller_id"] for case in (first, second)} == {user["sys_id"]}
    assert [world.run_row(run).counts for run in runs] == [{"created": 1}, {"created": 1}]


def test_user_claim_of_a_dead_message_is_taken_over_as_doubtful(world: World) -> None:
    """A message that died with its user's create on the way never comes back: the next one looks before it creates."""
    contact = world.add_contact(NEW)
    first, second = (world.add_case(contact=contact) for _ in range(2))
    world.start(f"ids={first}", mail_to=())
    world.wire.kill_on("servicenow POST api/now/table/sys_user", after=True)
    world.pump.run(until=lambda: world.pump.kills > 0)
    world.pump.waiting.clear()

    run = world.sync(f"ids={second}")

    (user,) = world.users(NEW)
    assert world.incident_of(second)["caller_id"] == user["sys_id"]
    assert run.counts == {"created": 1}


def test_link_claim_that_is_over_is_taken_over_as_doubtful(world: World) -> None:
    """A record whose message died for ever is worked by the next run, after a look whether it was created."""
    case = world.add_case()
    world.start(f"ids={case}", mail_to=())
    world.wire.kill_on("servicenow POST api/now/table/incident", after=True)
    world.pump.run(until=lambda: world.pump.kills > 0)
    world.pump.waiting.clear()

    run = world.sync(f"ids={case}")

    assert (len(world.incidents()), run.counts) == (1, {"created": 1})


def test_message_that_kills_its_worker_each_time_becomes_a_failed_result(world: World) -> None:
    """After five deaths the host gives up: the record fails with that reason, and the others and the run go on."""
    bad, good = world.add_case("Deadly"), world.add_case()

    def before(delivery: Any) -> None:
        if delivery.queue == "items" and bad in delivery.body:
            world.wire.kill_on(".", after=False)

    world.pump.before = before

    run = world.sync()

    assert (world.results(run)[bad].outcome, world.results(run)[bad].reason) == ("failed", "worker_died")
    assert world.results(run)[good].outcome == "created"
    assert run.state is RunState.COMPLETED_WITH_FAILURES
    assert len(world.mailbox.mails) == 1


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_create_in_doubt_that_a_kill_interrupts_counts_as_created(world: World, nth: int) -> None:
    """The answer is lost, the record is found, and the process ends after any of the writes of its link: it is our doing."""
    world.add_case()
    world.servicenow.add_fault(kind=FaultKind.RESET_AFTER, method="POST", path=INCIDENT)
    carry, seen = world.wire.carry, []

    def counting(label: str, call: Callable[[], Any]) -> Any:
        seen.extend([label] if label == "storage PUT links" else [])
        if label == "storage PUT links" and len(seen) == nth:
            world.wire.kill_on(label, after=True)
        return carry(label, call)

    with mock.patch.object(world.wire, "carry", counting):
        run = world.sync()

    assert world.pump.kills == 1
    assert len(world.incidents()) == 1
    assert run.counts == {"created": 1}
