"""What the clock starts: each local time once, also when the clocks change, when nobody was there, or when two come at once."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from shared.errors import StateError
from shared.state.rows import RunRow, RunState
from sync import runs, ticks
from sync.app import App
from sync.recipe import Recipe
from tests.flows.contacts import ACCOUNTS, ContactWorld
from tests.flows.world import World

DAILY = "daily: since_last_run"


def _schedule(world: World, at: str) -> None:
    world.change_recipe(DAILY, f'daily: {{at: "{at}", zone: Europe/Berlin, window: since_last_run}}')


def _begin(world: World, moment: datetime) -> None:
    """Let the app see the recipe for the first time at a moment."""
    world.clock.freeze(moment)
    world.tick()


def _daily(world: World) -> list[RunRow]:
    return [run for run in world.runs() if run.started_by == "daily"]


def _tick_until(world: World, moment: datetime, step: timedelta = timedelta(minutes=10)) -> None:
    while world.now() < moment:
        world.clock.freeze(world.now() + step)
        world.tick()
        world.pump.run(for_s=60)


@pytest.mark.parametrize(
    ("at", "begin", "starts"),
    [
        pytest.param("06:30", datetime(2026, 3, 11, tzinfo=UTC), datetime(2026, 3, 11, 5, 30, tzinfo=UTC), id="plain"),
        pytest.param(
            "02:30", datetime(2026, 3, 28, 12, tzinfo=UTC), datetime(2026, 3, 29, 1, 30, tzinfo=UTC), id="skipped"
        ),
        pytest.param(
            "02:30", datetime(2026, 10, 24, 12, tzinfo=UTC), datetime(2026, 10, 25, 0, 30, tzinfo=UTC), id="repeated"
        ),
    ],
)
def test_local_time_starts_one_run_a_day(world: World, at: str, begin: datetime, starts: datetime) -> None:
    """A local time that the clocks skip or repeat starts exactly one run."""
    _schedule(world, at)
    _begin(world, begin)

    _tick_until(world, starts + timedelta(hours=6))

    (run,) = _daily(world)
    assert run.created_at - starts < timedelta(minutes=10)
    assert run.state is RunState.COMPLETED
    assert [mail.recipients for mail in world.mailbox.mails] == [("support.lead@example.com",)]


def test_missed_times_are_caught_up_once(world: World) -> None:
    """After days without the app one run starts, and it reads since the last one."""
    _schedule(world, "06:30")
    _begin(world, datetime(2026, 3, 11, tzinfo=UTC))
    world.clock.freeze(datetime(2026, 3, 14, 12, tzinfo=UTC))

    for _ in range(3):
        world.tick()
        world.pump.run(for_s=60)
        world.advance(60)

    assert len(_daily(world)) == 1


def test_two_ticks_at_once_start_one_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hosts whose timers fire in the same second start one run, and its mail goes out once."""
    _schedule(world, "06:30")
    _begin(world, datetime(2026, 3, 11, tzinfo=UTC))
    world.clock.freeze(datetime(2026, 3, 11, 5, 31, tzinfo=UTC))
    _between(monkeypatch, world, lambda: ticks.tick(world.app))

    world.tick()
    world.pump.run(for_s=60)

    assert len(_daily(world)) == 1
    assert len(world.mailbox.mails) == 1


def _between(monkeypatch: pytest.MonkeyPatch, world: World, other: Callable[[], None]) -> None:
    """Let the other host work after ours has seen that something is due, and before it starts it."""
    started, start = [], ticks._start

    def start_later(*args: object) -> bool:
        if not started:
            started.append(True)
            other()
        return start(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(ticks, "_start", start_later)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", ["POST runs", "POST cursors", "POST pages", "PUT cursors"])
def test_start_that_dies_is_neither_lost_nor_doubled(world: World, at: str, after: bool) -> None:
    """However the timer dies, the next ones see to it that the day has its one run."""
    _schedule(world, "06:30")
    world.sync()  # tables are there
    world.mailbox.mails.clear()
    _begin(world, datetime(2026, 3, 11, tzinfo=UTC))
    world.clock.freeze(datetime(2026, 3, 11, 5, 31, tzinfo=UTC))
    world.wire.kill_on(f"storage {at}", after=after)

    world.tick_for(12)

    (run,) = _daily(world)
    assert run.state is RunState.COMPLETED
    assert len(world.mailbox.mails) == 1


def test_start_that_finds_another_run_waits_for_its_end(world: World) -> None:
    """A day's run is not lost because somebody's run was in its way."""
    _schedule(world, "06:30")
    _begin(world, datetime(2026, 3, 11, tzinfo=UTC))
    world.clock.freeze(datetime(2026, 3, 11, 5, 30, tzinfo=UTC))
    world.start("last_week")
    world.tick()
    refused = len(_daily(world))

    world.tick_for(3)

    assert refused == 0
    assert len(_daily(world)) == 1


def test_daily_timer_starts_the_recipes_without_a_time_of_their_own(world: World) -> None:
    """The app's daily time belongs to recipes that name none."""
    world.add_case()

    ticks.start_daily(world.app)
    world.pump.run()

    (run,) = _daily(world)
    assert (run.counts, run.window) == ({"created": 1}, "since_last_run")
    assert len(world.mailbox.mails) == 1


def test_daily_run_that_found_another_in_its_way_is_made_up_for(world: World) -> None:
    """The day's run and its mail are not lost because somebody's run was going on at that minute."""
    world.add_case()
    world.start("last_week")
    ticks.start_daily(world.app)
    refused = len(_daily(world))

    world.tick_for(5)

    assert (refused, len(_daily(world))) == (0, 1)
    assert any(mail.recipients == ("support.lead@example.com",) for mail in world.mailbox.mails)


def test_daily_timer_that_storage_refuses_says_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's log has to show a start that did not happen."""

    def refuse(_: object) -> None:
        raise StateError("Storage did not insert a row of runs")

    monkeypatch.setattr(world.tables, "insert", refuse)

    with pytest.raises(StateError):
        ticks.start_daily(world.app)


def test_recipe_whose_timer_fails_does_not_stop_the_others(
    contact_world: ContactWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One recipe's trouble is its own: the others start, and the host's log shows the error."""
    world = contact_world
    start = runs.start_run

    def refuse(app: App, recipe: Recipe, *args: object, **facts: object) -> object:
        if recipe.name == ACCOUNTS:
            raise StateError("Storage did not insert a row of runs")
        return start(app, recipe, *args, **facts)  # type: ignore[arg-type]

    monkeypatch.setattr(runs, "start_run", refuse)

    with pytest.raises(StateError):
        ticks.start_daily(world.app)

    assert [run.started_by for run in world.runs()] == ["daily"]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", ["storage POST summaries", "storage PUT cursors"])
def test_digest_of_a_timer_that_dies_is_neither_lost_nor_doubled(
    contact_world: ContactWorld, at: str, after: bool
) -> None:
    """The word to send it is sent before that is noted, and goes out once."""
    world = contact_world
    world.tick()
    world.send("contact", world.contact(None), "Create")
    world.pump.run()
    world.advance_to(datetime(2026, 3, 11, 0, 1, tzinfo=UTC))
    world.wire.kill_on(at, after=after)

    world.tick_for(5)

    assert len(world.mailbox.mails) == 1
