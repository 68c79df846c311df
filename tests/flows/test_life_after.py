"""A run's end: ended stays ended whatever a slower process does, nothing that failed is lost, and what follows waits its turn."""

from datetime import timedelta
from typing import Any

import pytest

from shared.state.messages import EventMessage
from shared.state.rows import MailState, Outcome, RunKind, RunRow, RunState, SlotRow
from sync import repairs, runs
from sync.messages import on_poison
from tests.flows.contacts import ContactWorld
from tests.flows.world import RECIPE, Killed, World, store_run

# -- ended stays ended ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [RunState.RUNNING, RunState.AWAITING_CONFIRMATION])
def test_cancelled_run_is_not_brought_back(world: World, state: RunState) -> None:
    """A worker that read the run before a person cancelled it must not set it going again."""
    run = world.start()
    runs.cancel_run(world.app, run.run_id, "http")

    world.app.change_run(run.run_id, state=state)

    assert world.run_row(run).state is RunState.CANCELLED


def test_confirmation_of_a_run_that_was_cancelled_meanwhile_starts_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two people decide at once: the one who cancels is not overruled."""
    world.change_settings(max_new_users=0)
    world.add_case(contact=world.add_contact("new@customer.example"))
    run = world.sync()
    waiting = world.run_row(run)
    assert waiting.state is RunState.AWAITING_CONFIRMATION
    runs.cancel_run(world.app, run.run_id, "http")
    monkeypatch.setattr(runs, "existing_run", lambda app, run_id: waiting)

    runs.confirm_run(world.app, run.run_id, "http")
    world.pump.run()

    assert world.run_row(run).state is RunState.CANCELLED
    assert world.incidents() == []


def test_run_never_ends_before_it_has_started(world: World) -> None:
    """Each worker estimates storage's clock: the one that ends a run may be behind the one that began it."""
    run = world.start()
    world.app.change_run(run.run_id, started_at=world.now() + timedelta(seconds=1))

    runs.cancel_run(world.app, run.run_id, "http")

    row = world.run_row(run)
    assert row.ended_at == row.started_at


def test_failures_of_a_cancelled_run_stay_open(paged_world: World) -> None:
    """What failed before a run was stopped is kept to be taken along, although its page was never complete."""
    world = paged_world
    bad = world.add_case("")
    for _ in range(3):
        world.add_case()
    world.pump.lost = lambda delivery: delivery.queue == "items"
    run = world.start()
    world.pump.run(for_s=30)
    assert world.results(run)[bad].outcome is Outcome.FAILED

    runs.cancel_run(world.app, run.run_id, "http")

    assert world.open_keys() == [bad]


def test_verification_waits_for_another_backfill(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verification that follows a backfill waits for the slot; until then nothing fails and nothing is buried."""
    world.add_case()
    first = world.start("all")
    other = store_run(world, timedelta(hours=-1), "0the", RunKind.BACKFILL)
    free_slot = runs._free_slot

    def free_and_lose(app: Any, run: RunRow) -> None:
        free_slot(app, run)
        if not world.run_row(other).ended_at and world.view.get(SlotRow, RECIPE, "slot-backfill") is None:
            world.view.insert(SlotRow(recipe=RECIPE, kind="backfill", run_id=other.run_id, window="today"))

    monkeypatch.setattr(runs, "_free_slot", free_and_lose)
    world.pump.run(for_s=900)
    assert not world.run_row(first).closed

    world.app.change_run(other.run_id, state=RunState.COMPLETED, ended_at=world.now())
    world.pump.run(for_s=900)

    assert world.pump.poisoned == []
    assert world.run_row(first).closed
    assert [run.window for run in world.runs() if run.verify] == ["all"]
    assert len(world.mailbox.mails) == 1


# -- repairs of many ------------------------------------------------------------------------------------------------


def test_run_over_thousands_of_ids_can_be_stored(world: World) -> None:
    """A repair takes up to ten thousand records; their ids are kept once, and the window only counts them."""
    ids = ",".join(f"{number:08d}-0000-0000-0000-000000000000" for number in range(repairs.MOST_RECORDS))

    run = world.start(f"ids={ids}")

    stored = world.run_row(run)
    assert len(stored.ids) == repairs.MOST_RECORDS
    assert stored.window == "ids: 10,000 records"


# -- days of events -------------------------------------------------------------------------------------------------


def test_day_of_events_is_watched_however_many_runs_follow_it(contact_world: ContactWorld) -> None:
    """Polls start a run every few minutes: the day that lost its check is found behind them."""
    world = contact_world
    world.send("contact", world.contact("one@customer.example"), "Create")
    day = world.event_run()
    world.pump.waiting.clear()  # its check is lost
    for number in range(30):
        world.advance(60)
        store_run(world, timedelta(0), f"b{number:03d}")

    world.advance(3600)
    world.tick()

    assert world.run_row(day).turn > day.turn
    assert world.run_row(day).mail_state is MailState.NONE


def test_second_event_of_an_equal_version_is_no_second_creation(contact_world: ContactWorld) -> None:
    """Dataverse tells of a creation and at once of an update: the record was created once, and the day says so."""
    world = contact_world
    contact = world.contact("one@customer.example")

    outcomes = [world.send("contact", contact, message).outcome for message in ("Create", "Update")]

    assert outcomes == [Outcome.CREATED, Outcome.UNCHANGED]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("table", ["open", "results"])
def test_failed_event_is_taken_along_whenever_its_worker_died(
    contact_world: ContactWorld, table: str, after: bool
) -> None:
    """A death between an event's result and the list of open records must not leave the record off the list."""
    world = contact_world
    contact = world.contact(None)
    world.hook("contact", contact, "Create")
    world.wire.kill_on(f"storage (PUT|PATCH|POST) {table}", after=after)

    world.pump.run()

    assert world.pump.kills == 1
    assert [row.outcome for row in world.events().values()] == ["failed"]
    assert world.open_keys() == [contact]


@pytest.mark.parametrize("table", ["open", "results"])
def test_buried_event_is_taken_along_whenever_its_worker_died(contact_world: ContactWorld, table: str) -> None:
    """The same holds for an event that killed its workers: its failure is noted when the poison message comes again."""
    world = contact_world
    contact = world.contact("ana@customer.example")
    message = EventMessage(
        recipe=world.recipe,
        record="dynamics365.contact",
        event_id=f"op:{contact}:Create",
        key=contact,
        name="Create",
        received_at=world.now(),
    ).model_dump_json()
    world.wire.kill_on(f"storage (PUT|PATCH|POST) {table}", after=True)
    with pytest.raises(Killed):
        on_poison(world.app, "events", message.encode())
    world.restart()

    on_poison(world.app, "events", message.encode())

    assert [row.reason for row in world.events().values()] == ["worker_died"]
    assert world.open_keys() == [contact]
