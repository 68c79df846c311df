"""A run that would create many users asks first: it lists everything, holds what would create, and goes on when told to."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from sandbox.simulator import FaultKind
from shared.errors import MappingError
from shared.state.rows import RunRow, RunState
from sync import runs
from tests.flows.world import RECIPIENT, Stage, World, new_world


@pytest.fixture
def world(stage: Stage, tmp_path: Path, prefix: str) -> Iterator[World]:
    """Return a world whose cases come in pages of four, and whose runs may create three users."""
    values = {"CONNECTIONS__DYNAMICS365__PAGE_SIZE": "4", "MAX_NEW_USERS": "3"}
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
    assert _new_users(world) == []
    (mail,) = world.mailbox.mails
    assert mail.recipients == (RECIPIENT,)
    assert "4 users" in mail.text
    assert run.run_id in mail.text


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
