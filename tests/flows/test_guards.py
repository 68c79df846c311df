"""A run that would create many users asks first: it lists everything, holds what would create, and goes on when told to."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from sandbox.simulator import FaultKind
from shared.errors import MappingError
from shared.state.rows import RunRow, RunState
from sync import runs
from sync.views import run_view
from tests.flows.world import RECIPIENT, Stage, World, new_world


@pytest.fixture
def world(stage: Stage, tmp_path: Path, prefix: str) -> Iterator[World]:
    """Return a world whose cases come in pages of four, and whose runs may create three users."""
    values = {"CONNECTIONS__DYNAMICS365__PAGE_SIZE": "4", "MAX_NEW_USERS": "3", "MAX_REMOVALS": "3"}
    values["CONNECTIONS__DYNAMICS365__BULK_PAGE_SIZE"] = "4"
    with new_world(stage, tmp_path / "recipes", prefix, values) as made:
        yield made


def _cases(world: World, strangers: int) -> list[str]:
    """Add ten cases on three pages, of which so many have new people as callers."""
    contacts = [world.add_contact(f"new{number}@customer.example") for number in range(strangers)]
    return [
        world.add_case(contact=contacts[number // 2] if number % 2 == 0 and number // 2 < strangers else None)
        for number in range(10)
    ]


def _new_users(world: World) -> list[str]:
    return [row["email"] for row in world.servicenow.rows("sys_user") if row["email"].startswith("new")]


def _work(world: World) -> RunRow:
    run = world.start()
    world.pump.run(for_s=60)
    return world.run_row(run)


def test_too_many_new_users_wait_for_a_person(world: World) -> None:
    """All pages are listed and worked, the cases of new people are held, and the recipients are asked, once."""
    _cases(world, 4)

    run = _work(world)

    assert run.state is RunState.AWAITING_CONFIRMATION
    assert (run.held_for, run.held_count) == ("new_users", 4)
    assert world.outcomes(run) == {"created": 6, "held": 4}
    assert run_view(world.app, run)["counts"] == {"created": 6, "held": 4}
    assert _new_users(world) == []
    (mail,) = world.mailbox.mails
    assert mail.recipients == (RECIPIENT,)
    assert "4 users" in mail.text
    assert run.run_id in mail.text


@pytest.mark.parametrize("writes", [0, 1], ids=["as it is counted", "as it is judged"])
def test_a_run_that_is_cancelled_when_it_would_ask_asks_nobody(
    world: World, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """It holds nothing any more, and is mailed once, when what was in hand is counted."""
    _cases(world, 4)
    run = world.start()
    world.pump.run(until=lambda: len(world.results(run)) == 10)
    (check,) = [each for each in world.pump.waiting if each.queue == "runs"]
    carry, left = world.wire.carry, [run.run_id, *[""] * writes]

    def cancel_before(label: str, call: Callable[[], Any]) -> Any:
        if label == "storage PUT runs" and left and left.pop():
            runs.cancel_run(world.app, run.run_id, "operator@example.com")
        return carry(label, call)

    monkeypatch.setattr(world.wire, "carry", cancel_before)
    world.pump.deliver(check)
    assert world.run_row(run).state is RunState.CANCELLED
    world.pump.run(for_s=runs.SETTLED_AFTER_S - 10)
    assert world.mailbox.mails == []

    world.pump.run()

    view = run_view(world.app, world.run_row(run))
    assert (view["counts"], view["held"]) == ({"created": 6}, None)
    assert len(world.mailbox.mails) == 1


def test_confirmed_run_goes_on_and_replaces_what_was_held(world: World) -> None:
    """After the confirmation the held cases are worked, their results are final, and the summary tells all."""
    cases = _cases(world, 4)
    run = _work(world)

    runs.confirm_run(world.app, run.run_id, "operator@example.com")
    world.pump.run(for_s=600)

    run = world.run_row(run)
    assert (run.state, run.counts) == (RunState.COMPLETED, {"created": 10})
    assert world.outcomes(run) == {"created": 10}
    assert len(_new_users(world)) == 4
    assert all(world.incident_of(case)["caller_id"] for case in cases)
    assert len({mail.message["Message-ID"] for mail in world.mailbox.mails}) == 2


def test_few_new_users_over_several_pages_need_no_confirmation(world: World) -> None:
    """Where all pages together create few, the run goes on by itself and asks nobody."""
    _cases(world, 3)

    run = world.sync()

    assert (run.state, run.counts) == (RunState.COMPLETED, {"created": 10})
    assert (len(_new_users(world)), len(world.mailbox.mails)) == (3, 1)


def test_one_person_on_many_pages_counts_once(world: World) -> None:
    """It is the users that count, not the cases."""
    contact = world.add_contact("new@customer.example")
    for _ in range(10):
        world.add_case(contact=contact)

    run = world.sync()

    assert (run.counts, len(_new_users(world))) == ({"created": 10}, 1)


def test_unconfirmed_run_is_cancelled_after_seven_days(world: World) -> None:
    """Nobody answers: the run ends without the held writes, says why, and the next one may start."""
    _cases(world, 4)
    run = _work(world)

    world.pump.run(for_s=timedelta(days=7, hours=2).total_seconds())

    ended = world.run_row(run)
    assert (ended.state, _new_users(world)) == (RunState.CANCELLED, [])
    assert "confirm" in ended.error
    assert world.start("today").run_id != run.run_id


def test_confirming_twice_or_too_late_is_refused(world: World) -> None:
    """A confirmation belongs to a run that waits for one."""
    _cases(world, 4)
    run = _work(world)
    runs.confirm_run(world.app, run.run_id, "operator@example.com")

    with pytest.raises(MappingError, match="does not wait") as refused:
        runs.confirm_run(world.app, run.run_id, "operator@example.com")

    assert refused.value.code == "nothing_to_confirm"


def test_start_while_a_run_waits_joins_it(world: World) -> None:
    """The same window joins the waiting run, another one is told of it."""
    _cases(world, 4)
    run = _work(world)

    joined = world.start(mail_to=("second@example.com",))
    with pytest.raises(MappingError) as refused:
        world.start("today")

    assert joined.run_id == run.run_id
    assert refused.value.code == "run_in_progress"


def test_outage_does_not_lead_around_the_guard(world: World) -> None:
    """Cases whose page could not look their people up are held like the others: no worker creates users on its own."""
    _cases(world, 5)
    world.servicenow.add_fault(FaultKind.STATUS, method="GET", path="/table/sys_user", status=503, times=12)

    run = _work(world)

    assert _new_users(world) == []
    assert (run.state, run.held_count) == (RunState.AWAITING_CONFIRMATION, 5)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", ["storage PUT runs", "storage POST pages"])
def test_release_that_is_interrupted_goes_on(world: World, at: str, after: bool) -> None:
    """A worker that dies while it lets the held cases go leaves nothing held for ever."""
    _cases(world, 4)
    run = _work(world)
    world.wire.kill_on(at, after=after)
    with pytest.raises(BaseException):  # noqa: B017, PT011  # the end of the process
        runs.confirm_run(world.app, run.run_id, "operator@example.com")
    world.restart()
    if world.run_row(run).state is RunState.AWAITING_CONFIRMATION:
        runs.confirm_run(world.app, run.run_id, "operator@example.com")

    world.tick_for(12)

    assert (world.run_row(run).counts, len(_new_users(world))) == ({"created": 10}, 4)


def test_preview_tells_of_new_users_and_asks_nobody(world: World) -> None:
    """A preview creates nothing, so there is nothing to confirm."""
    _cases(world, 4)

    run = world.sync(preview=True)

    assert (run.state.ended, world.writes()) == (True, [])
    assert run.counts == {"created": 10}


# -- what is taken away -------------------------------------------------------------------------------------------------


def _resolve(world: World, number: int) -> list[str]:
    """Sync ten cases, then change all of them and resolve so many; return the resolved ones."""
    world.change_recipe('work_notes: "Case {ticketnumber} was closed in Dynamics 365"', "urgency: {value: 3}")
    cases = [world.add_case() for _ in range(10)]
    world.sync()
    world.mailbox.mails.clear()
    for case in cases[number:]:
        world.edit_case(case, title="Changed")
    for case in cases[:number]:
        world.dynamics.resolve(case)
    world.advance(60)
    return cases[:number]


def _urgencies(world: World, cases: list[str]) -> set[str]:
    return {world.incident_of(case)["urgency"] for case in cases}


@pytest.mark.parametrize("window", ["today", "all"], ids=["one by one", "bulk"])
def test_much_that_would_be_taken_away_waits_for_a_person(world: World, window: str) -> None:
    """All else is written, what is over is only counted, and the mail names how many of how many; confirmed, it is done."""
    gone = _resolve(world, 4)

    run = world.start(window)
    world.pump.run(for_s=60)
    waiting, before = world.run_row(run), _urgencies(world, gone)
    runs.confirm_run(world.app, run.run_id, "operator@example.com")
    world.pump.run(for_s=600)

    assert (waiting.state, waiting.held_for, waiting.held_count) == (
        RunState.AWAITING_CONFIRMATION,
        "removals",
        4,
    )
    assert run_view(world.app, waiting)["counts"] == {"updated": 6, "held": 4}
    assert (before, _urgencies(world, gone)) == ({"2"}, {"3"})
    assert "take away 4 of 10" in world.mailbox.mails[0].text
    assert "until then nothing of it happens" in world.mailbox.mails[0].text
    assert (world.run_row(run).state, world.run_row(run).counts) == (RunState.COMPLETED, {"updated": 10})


def test_little_that_is_taken_away_goes_last_and_asks_nobody(world: World) -> None:
    """Up to the guard a run goes on by itself, after everything else was written."""
    gone = _resolve(world, 3)
    world.forget_journal()

    run = world.sync("today")

    assert (run.state, run.counts) == (RunState.COMPLETED, {"updated": 10})
    written = [path for path, _ in world.sent()]
    assert [any(world.incident_of(case)["sys_id"] in path for case in gone) for path in written] == [False] * 7 + [
        True
    ] * 3


def test_share_of_many_records_may_go_without_a_question(world: World) -> None:
    """The guard is a share of the run's records, where that is more than what may always go."""
    gone = _resolve(world, 4)
    world.change_settings(max_removals_percent=40.0)

    run = world.sync("today")

    assert (run.state, _urgencies(world, gone)) == (RunState.COMPLETED, {"3"})


def test_note_takes_nothing_away(world: World) -> None:
    """What only adds an entry is not guarded, however often."""
    cases = [world.add_case() for _ in range(10)]
    world.sync()
    for case in cases:
        world.dynamics.resolve(case)
    world.advance(60)

    run = world.sync("today")

    assert (run.state, run.counts) == (RunState.COMPLETED, {"updated": 10})


def test_outage_does_not_lead_around_the_guard_of_removals(world: World) -> None:
    """Cases whose page could not look their incidents up are held like the others."""
    gone = _resolve(world, 4)
    world.servicenow.add_fault(FaultKind.STATUS, method="GET", path="/table/incident", status=503, times=12)

    run = world.start("today")
    world.pump.run(for_s=600)

    assert world.run_row(run).state is RunState.AWAITING_CONFIRMATION
    assert (world.run_row(run).held_count, _urgencies(world, gone)) == (4, {"2"})


def test_unconfirmed_removals_are_cancelled_and_asked_again(world: World) -> None:
    """After seven days without an answer the run ends, nothing was taken away, and the next run asks again."""
    gone = _resolve(world, 4)
    run = world.start("today")
    world.pump.run(for_s=60)

    world.pump.run(for_s=timedelta(days=7, hours=2).total_seconds())
    again = world.start("all")
    world.pump.run(for_s=60)

    assert (world.run_row(run).state, _urgencies(world, gone)) == (RunState.CANCELLED, {"2"})
    assert world.run_row(again).state is RunState.AWAITING_CONFIRMATION
