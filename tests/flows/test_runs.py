"""The life of runs: starting, joining, the cursor, what is taken along, outages, cancelling, and runs that stop moving."""

from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from sandbox.simulator import FaultKind
from shared.errors import MappingError
from shared.state.rows import CursorRow, MailState, Outcome, RunRow, RunState
from sync import runs
from tests.flows.world import NOW, RECIPE, TRANSACTION_S, YESTERDAY, Delivery, Killed, World

SINCE = "since_last_run"


def _cursor(world: World) -> CursorRow:
    row = world.view.get(CursorRow, RECIPE, "cursor")
    assert row is not None
    return row


def _fails(delivery: Delivery) -> bool:
    return delivery.queue == "items"


# -- starting and joining -------------------------------------------------------------------------------------------


def test_equal_window_joins_and_both_get_the_mail(world: World) -> None:
    """Browsers repeat a GET: the second start joins the running run and adds its address."""
    world.add_case()
    first = world.start()
    second = world.start(mail_to=("second@example.com",))

    world.pump.run()

    assert first.run_id == second.run_id
    assert len(world.runs()) == 1
    assert sorted(who for mail in world.mailbox.mails for who in mail.recipients) == [
        "ada@example.com",
        "second@example.com",
    ]


def test_other_window_is_refused_by_name(world: World) -> None:
    """Another window is told which run is in progress, and leaves nothing behind."""
    first = world.start()

    with pytest.raises(MappingError, match=first.run_id) as refused:
        world.start("last_week")

    assert refused.value.code == "run_in_progress"
    assert len(world.runs()) == 1


def test_preview_and_run_do_not_join(world: World) -> None:
    """Who wants a preview does not want to write, and the other way round."""
    world.start(preview=True)

    with pytest.raises(MappingError) as refused:
        world.start()

    assert refused.value.code == "run_in_progress"


def test_backfill_runs_beside_a_windowed_run(world: World) -> None:
    """A recipe has one windowed run and one backfill, and both may work on the same case at once."""
    cases = [world.add_case() for _ in range(4)]
    window, backfill = world.start(), world.start("all")

    world.pump.run()

    for run in (window, backfill):
        assert sorted(world.results(run)) == sorted(cases)
        assert world.run_row(run).state is RunState.COMPLETED
    assert len(world.incidents()) == 4
    created = sum(world.run_row(run).counts.get("created", 0) for run in (window, backfill))
    assert created == 4


def test_start_after_the_end_is_a_new_run(world: World) -> None:
    """What has ended is not joined."""
    first = world.sync()

    second = world.sync()

    assert first.run_id != second.run_id
    assert len(world.mailbox.mails) == 2


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", ["POST runs", "POST cursors", "POST pages"])
def test_slot_is_free_again_after_a_crash_at_the_start(world: World, at: str, after: bool) -> None:
    """However a start dies, the next one works, and in the end each case has one incident and nobody waits."""
    world.sync()  # tables and cursor are there
    world.mailbox.mails.clear()
    world.add_case()
    world.wire.kill_on(f"storage {at}", after=after)
    with pytest.raises(Killed):
        world.start()
    world.restart()

    world.start()
    world.pump.run()
    world.tick_for(10)

    assert len(world.incidents()) == 1
    assert [run.state.ended for run in world.runs()] == [True, True]
    assert len({mail.message["Message-ID"] for mail in world.mailbox.mails}) == 1
    assert world.start("last_week").state is RunState.QUEUED


# -- the cursor -------------------------------------------------------------------------------------------------------


def test_first_start_reads_what_the_recipe_says(world: World) -> None:
    """Without a cursor the daily run begins with yesterday, and with nothing older."""
    new, old = world.add_case(), world.add_case(modifiedon=YESTERDAY - timedelta(days=2))

    run = world.sync(SINCE)

    assert list(world.results(run)) == [new]
    assert world.incidents(correlation_id=old) == []
    assert run.since == NOW.replace(hour=0) - timedelta(days=1)


def test_cursor_moves_to_the_vendors_time_at_the_start(world: World) -> None:
    """The end of what was read is fixed before the first page; what changes meanwhile belongs to the next run."""
    world.add_case()
    run = world.start(SINCE)
    world.pump.before = lambda delivery: world.clock.advance(1)

    world.pump.run()

    until = world.run_row(run).until
    assert until is not None
    assert _cursor(world).read_until == until < world.now()


def test_next_run_overlaps_by_ten_minutes(world: World) -> None:
    """Changes that became visible late are read again."""
    first = world.sync(SINCE)
    world.advance(3600)

    second = world.sync(SINCE)

    assert first.until is not None
    assert second.since == first.until - timedelta(minutes=10)
    assert _cursor(world).read_until == second.until


@pytest.mark.parametrize("window", ["yesterday", "last_days:3", "all", "ids"])
def test_other_windows_do_not_move_the_cursor(world: World, window: str) -> None:
    """Only a run since the last one knows that nothing lies before it."""
    case = world.add_case()

    world.sync(f"ids={case}" if window == "ids" else window)

    assert _cursor(world).read_until is None


def test_preview_does_not_move_the_cursor(world: World) -> None:
    """A preview has written nothing."""
    world.sync(SINCE, preview=True)

    assert _cursor(world).read_until is None


def test_failed_and_cancelled_runs_do_not_move_the_cursor(world: World) -> None:
    """What was not read through is read again by the next run."""
    world.add_case()
    world.dynamics.add_fault(FaultKind.STATUS, method="GET", path="/incidents", status=400)
    failed = world.sync(SINCE)
    after_failed = _cursor(world).read_until
    cancelled = world.start(SINCE)
    runs.cancel_run(world.app, cancelled.run_id, "operator@example.com")
    world.pump.run()
    after_cancelled = _cursor(world).read_until

    run = world.sync(SINCE)

    assert (failed.state, world.run_row(cancelled).state) == (RunState.FAILED, RunState.CANCELLED)
    assert (after_failed, after_cancelled) == (None, None)
    assert (run.counts, _cursor(world).read_until) == ({"created": 1}, run.until)


def test_cursor_never_moves_back(world: World) -> None:
    """A late end of an older run does not undo a newer one's."""
    first = world.sync(SINCE)
    later = NOW + timedelta(hours=1)
    world.tables.update(
        CursorRow, RECIPE, "cursor", lambda row: row.model_copy(update={"read_until": later}) if row else None
    )
    world.app.change_run(first.run_id, closed=False)

    runs._close(world.app, world.run_row(first))

    assert _cursor(world).read_until == later


def test_run_with_failures_moves_the_cursor(world: World) -> None:
    """Failed cases are kept by their ids; the others are read."""
    world.add_case(title="")

    run = world.sync(SINCE)

    assert run.state is RunState.COMPLETED_WITH_FAILURES
    assert _cursor(world).read_until == run.until


# -- failed cases are taken along -------------------------------------------------------------------------------------


def test_failed_case_is_taken_along_until_it_succeeds(world: World) -> None:
    """A case that failed is worked again by each run, without having changed, and struck when it is in order."""
    account = world.dynamics.insert("account", name="Northwind")
    case = world.add_case(customerid_account=account)
    world.sync()
    world.advance(86_400)
    second = world.sync()
    kept = world.open_keys()
    world.advance(86_400)
    world.change_recipe(
        "from: customerid_contact\n", "from: [customerid_contact, customerid_account.primarycontactid]\n"
    )
    world.dynamics.update("account", account, primarycontactid=world.caller)
    world.dynamics.update("incident", case, modifiedon=YESTERDAY)

    third = world.sync()

    assert world.results(second)[case].reason == "customer_is_account"
    assert (kept, world.open_keys()) == ([case], [])
    assert third.counts == {"created": 1}


def test_failed_case_that_changed_again_is_worked_once(world: World) -> None:
    """It stands in the window and among the open ones: one result, one line in the mail."""
    case = world.add_case(title="")
    world.sync("last_days:2")
    world.edit_case(case, description="Still no title")

    run = world.sync("last_days:2")

    assert run.counts == {"failed": 1}
    assert list(world.results(run)) == [case]


def test_after_seven_days_a_failed_case_is_only_kept(world: World) -> None:
    """It is no longer worked by itself, and never dropped."""
    case = world.add_case(title="")
    world.sync()
    world.advance(86_400 * 8)

    run = world.sync()

    assert world.results(run) == {}
    assert world.open_keys() == [case]


def test_mail_separates_new_failures_from_repeated_ones(world: World) -> None:
    """Who reads the second mail sees what is new in it."""
    old = world.add_case(title="")
    world.sync()
    world.advance(86_400)
    new = world.add_case(title="", modifiedon=world.now() - timedelta(days=1))

    world.sync()

    text = world.mailbox.mails[1].text
    assert text.index(world.number_of(new)) < text.index(world.number_of(old))
    assert "again" in text.lower() or "still" in text.lower() or "earlier" in text.lower()


def test_open_case_that_vanished_is_struck(world: World) -> None:
    """A case that was deleted at the source fails no more."""
    case = world.add_case(title="")
    world.sync()
    world.dynamics.delete("incident", case)
    world.advance(86_400)

    run = world.sync()

    assert (world.results(run)[case].reason, world.open_keys()) == ("source_missing", [])


# -- listing ----------------------------------------------------------------------------------------------------------


def test_listing_that_fails_for_good_fails_the_run(world: World) -> None:
    """The run ends with the real reason, its mail is sent, and its slot is free."""
    world.dynamics.add_fault(FaultKind.STATUS, method="GET", path="/incidents", status=403, times=0)

    run = world.sync()

    assert run.state is RunState.FAILED
    assert "403" in run.error
    assert len(world.mailbox.mails) == 1
    assert world.start("last_week").run_id != run.run_id


def test_page_link_that_expired_goes_on_from_the_last_case(paged_world: World) -> None:
    """Nothing is lost and nothing is worked twice."""
    world = paged_world
    cases = [world.add_case() for _ in range(25)]
    world.dynamics.add_fault(
        FaultKind.STATUS,
        method="GET",
        path="skiptoken",
        status=400,
        body='{"error": {"code": "0x80060888", "message": "Malformed XML in the Paging Cookie"}}',
    )

    run = world.sync()

    assert sorted(world.results(run)) == sorted(cases)
    assert run.counts == {"created": 25}


# -- cancelling -------------------------------------------------------------------------------------------------------


def test_cancelled_run_starts_nothing_more(paged_world: World) -> None:
    """What is under way ends; nothing else is written, and the mail says so."""
    world = paged_world
    for _ in range(15):
        world.add_case()
    run = world.start()
    world.pump.run(until=lambda: len(world.incidents()) == 4)

    runs.cancel_run(world.app, run.run_id, "operator@example.com")
    world.pump.run()

    assert world.run_row(run).state is RunState.CANCELLED
    assert len(world.incidents()) == 4
    assert len(world.mailbox.mails) == 1
    assert "cancel" in world.mailbox.mails[0].text.lower()


def test_cancelled_run_counts_what_was_in_hand_before_it_is_mailed(paged_world: World) -> None:
    """A page in hand goes on for some seconds: run and mail say the same, and what became of all of it."""
    world = paged_world
    for number in range(15):
        world.add_case("" if number == 2 else None)
    run = world.start()
    world.pump.run(until=lambda: len(world.incidents()) == 4)

    runs.cancel_run(world.app, run.run_id, "operator@example.com")
    world.pump.run(for_s=runs.SETTLED_AFTER_S - 1)
    before = list(world.mailbox.mails)
    world.pump.run()

    row = world.run_row(run)
    assert before == []
    assert row.counts == dict(Counter(result.outcome.value for result in world.results(run).values()))
    assert (row.counts["created"], row.closed) == (4, True)
    assert f"4 synced, {row.counts.get('failed', 0)} failed" in world.mailbox.mails[0].text


def test_run_is_not_closed_by_two_at_once(world: World) -> None:
    """Who ended a run closes it: a check that comes meanwhile would send its readers a second mail."""
    run = world.start()
    ended = runs._mark_ended(world.app, run, RunState.FAILED, "No such record.")
    assert ended is not None
    assert runs._mark_ended(world.app, run, RunState.CANCELLED, "Cancelled by a person.") is None
    world.pump.run(for_s=runs.SETTLED_AFTER_S - 1)
    before = list(world.mailbox.mails)

    runs._close(world.app, ended)
    world.pump.run()

    assert (before, len(world.mailbox.mails)) == ([], 1)
    assert world.run_row(run).error == "No such record."


def _check_beside(world: World, run: RunRow, end: Callable[[], object]) -> None:
    """Deliver a run's check, and end the run when that check is about to store what it has added up."""
    (check,) = [each for each in world.pump.waiting if each.queue == "runs"]
    carry = world.wire.carry

    def end_before(label: str, call: Callable[[], Any]) -> Any:
        if label == "storage PUT runs":
            patch.undo()
            end()
        return carry(label, call)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world.wire, "carry", end_before)
        world.pump.deliver(check)
    assert world.run_row(run).state.ended


@pytest.fixture
def in_hand(world: World) -> RunRow:
    """Return a run of which one record has its result, and the others are still to be worked."""
    for _ in range(3):
        world.add_case()
    run = world.start()
    world.pump.run(until=lambda: bool(world.results(run)))
    return run


def test_a_check_that_meets_a_cancel_ends(world: World, in_hand: RunRow) -> None:
    """The cancel has sent a check of its own: two of one turn would close the run, and mail it, side by side."""
    _check_beside(world, in_hand, lambda: runs.cancel_run(world.app, in_hand.run_id, "operator@example.com"))
    world.pump.run(for_s=0, until=lambda: True)

    assert len([each for each in world.pump.waiting if each.queue == "runs"]) == 1


def test_a_check_does_not_count_a_run_that_has_ended(world: World, in_hand: RunRow) -> None:
    """Who closed it has counted all of it."""
    _check_beside(world, in_hand, lambda: runs.end_run(world.app, in_hand, RunState.FAILED, "No page."))
    world.pump.run()

    assert world.run_row(in_hand).counts == {"created": 1}


def test_run_whose_closing_was_interrupted_is_closed_by_a_check(world: World) -> None:
    """The process that ended it has died: its readers are told all the same."""
    run = world.start()
    runs._mark_ended(world.app, run, RunState.FAILED, "No such record.")

    world.pump.run()

    assert world.run_row(run).closed
    assert len(world.mailbox.mails) == 1


def test_a_cancelled_run_does_not_strike_what_a_newer_one_failed_with(world: World) -> None:
    """Its own result of the record is the older one: what failed since is taken along all the same."""
    cases = [world.add_case() for _ in range(4)]
    run = world.start(mail_to=())
    world.pump.run(until=lambda: bool(world.results(run)))
    (case,) = world.results(run).keys() & set(cases)
    runs.cancel_run(world.app, run.run_id, "operator@example.com")
    world.advance(1)
    world.dynamics.update("incident", case, title="")
    newer = world.start(f"ids={case}", mail_to=())
    world.pump.run(for_s=runs.SETTLED_AFTER_S - 10)
    assert world.results(newer)[case].outcome is Outcome.FAILED

    world.pump.run()

    assert world.run_row(run).closed
    assert world.open_keys() == [case]


# -- outages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", ["dynamics365", "servicenow"])
def test_run_waits_while_a_system_is_down_and_completes_afterwards(world: World, system: str) -> None:
    """Half an hour without the vendor burns no attempt: the run says since when it waits, and then goes on."""
    cases = [world.add_case() for _ in range(3)]
    sim = world.dynamics if system == "dynamics365" else world.servicenow
    fault = sim.add_fault(FaultKind.STATUS, status=503, path="/incidents|/table/", times=0)
    run = world.start()
    world.tick_for(30)
    waiting = world.run_row(run)
    calls = fault.hit
    sim.faults.clear()

    world.tick_for(25)

    ended = world.run_row(run)
    assert (waiting.state, waiting.waiting_for) == (RunState.WAITING, system)
    assert waiting.waiting_since is not None
    assert waiting.waiting_since - waiting.created_at < timedelta(minutes=1)
    assert calls < 320  # without rests, which this world does not know: test_outage.py counts with them
    assert (ended.counts, ended.waiting_for) == ({"created": 3}, "")
    assert {result.attempts for result in world.results(run).values()} == {1}
    assert len(world.incidents()) == len(cases)


def test_wait_is_bounded(world: World) -> None:
    """After the longest wait the case fails with the reason that it waited for."""
    world.add_case()
    world.change_settings(max_wait_s=3600)
    world.servicenow.add_fault(FaultKind.STATUS, status=503, path="/table/", times=0)
    run = world.start()

    world.pump.run(for_s=3 * 3600)

    ended = world.run_row(run)
    assert ended.state in (RunState.COMPLETED_WITH_FAILURES, RunState.FAILED)
    reasons = {result.reason for result in world.results(run).values()}
    assert reasons == {"vendor_unavailable"} or "503" in ended.error


def test_attempts_are_bounded_and_end_with_the_real_reason(world: World) -> None:
    """A case whose writes keep failing ends as failed, with what the vendor said and how often it was tried."""
    bad, good = world.add_case("Bad one"), world.add_case()
    world.servicenow.add_fault(FaultKind.STATUS, method="POST", path="/table/incident", status=500, times=0)
    run = world.start()
    world.pump.run(for_s=600)
    world.servicenow.faults.clear()

    world.pump.run(for_s=7200)

    for case in (bad, good):
        result = world.results(run)[case]
        assert (result.outcome, result.attempts) == ("failed", world.settings.max_attempts)
        assert "500" in result.message
    assert world.run_row(run).state is RunState.COMPLETED_WITH_FAILURES
    assert world.now() - NOW > timedelta(seconds=TRANSACTION_S)


# -- runs that stop moving --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("queue", ["pages", "items", "runs", "summaries"])
def test_run_whose_messages_were_lost_is_pushed_to_its_end(paged_world: World, queue: str) -> None:
    """The watchdog sends again what is missing: the run ends, with one result per case and one summary."""
    world = paged_world
    cases = [world.add_case() for _ in range(15)]
    run = world.start()
    seen: list[str] = []

    def lost(delivery: Delivery) -> bool:
        seen.append(delivery.queue)
        return delivery.queue == queue and seen.count(queue) <= 2

    world.pump.lost = lost

    world.tick_for(45)

    ended = world.run_row(run)
    assert (ended.state, ended.counts) == (RunState.COMPLETED, {"created": 15})
    assert sorted(world.results(run)) == sorted(cases)
    assert (len(world.incidents()), len(world.mailbox.mails)) == (15, 1)
    assert ended.mail_state is MailState.SENT


def test_page_that_is_sent_again_is_worked_from_its_manifest(world: World) -> None:
    """What the listing would say now is another thing: the watchdog's message, new as it is, does not list again."""
    cases = [world.add_case() for _ in range(3)]
    run = world.start()
    world.wire.kill_on("storage POST items", after=False)
    world.pump.run(until=lambda: world.pump.kills > 0)
    world.pump.waiting = [each for each in world.pump.waiting if each.queue != "pages"]
    world.forget_journal()

    world.tick_for(30)

    asked = [entry.target for entry in world.dynamics.requests("GET", "/incidents")]
    assert [len([target for target in asked if word in target]) for word in ("modifiedon ge", "incidentid eq")] == [
        0,
        1,
    ]
    assert world.run_row(run).counts == {"created": 3}
    assert sorted(world.results(run)) == sorted(cases)


def test_app_that_was_down_for_hours_goes_on_by_itself(world: World) -> None:
    """A deployment or a crash of hours interrupts a run; afterwards it ends."""
    case = world.add_case()
    run = world.start()
    world.pump.run(until=lambda: any(each.queue == "items" for each in world.pump.waiting))
    world.advance(5 * 3600)

    world.tick_for(10)

    assert world.run_row(run).counts == {"created": 1}
    assert world.incident_of(case)
