"""Storage's clock, as its answers tell it."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from shared.state.storage import ServerClock

NOON = datetime(2026, 3, 14, 12, 0, tzinfo=UTC)


class Machine:
    """A machine that asks storage for the time; its steady clock goes on as a test says."""

    def __init__(self) -> None:
        self.steady_s = 1_000.0
        self.clock = ServerClock(lambda: self.steady_s)

    def ask(self, answered: datetime, takes_s: float = 0.0) -> datetime:
        """Get an answer that left storage at a moment and came when `takes_s` had passed; return the time then."""
        note = self.clock.note()
        self.steady_s += takes_s
        note(answer(answered))
        return self.clock.now()


def answer(date: datetime) -> Any:
    return SimpleNamespace(http_response=SimpleNamespace(headers={"Date": f"{date:%a, %d %b %Y %H:%M:%S} GMT"}))


def test_first_answer_tells_the_time() -> None:
    """The machine's own clock does not matter, and time goes on between answers."""
    machine = Machine()

    told = machine.ask(NOON)
    machine.steady_s += 90

    assert abs(told - NOON) <= timedelta(seconds=1)
    assert machine.clock.now() - told == timedelta(seconds=90)


@pytest.mark.parametrize("late_s", [5.0, 40.0])
def test_answer_that_came_late_does_not_put_the_clock_back(late_s: float) -> None:
    """A machine or a connection stood still meanwhile: the answer says what the time was when it left."""
    machine = Machine()
    before = machine.ask(NOON)

    after = machine.ask(NOON, takes_s=late_s)

    assert after - before == timedelta(seconds=late_s)


@pytest.mark.parametrize("step_s", [-40.0, -5.0, 5.0, 40.0])
def test_answer_that_came_at_once_is_believed(step_s: float) -> None:
    """Whichever way the two clocks have gone apart."""
    machine = Machine()
    machine.ask(NOON)

    told = machine.ask(NOON + timedelta(seconds=step_s))

    assert abs(told - NOON - timedelta(seconds=step_s)) <= timedelta(seconds=1)


def test_first_answer_that_came_late_is_mended_by_the_next() -> None:
    """Better behind for a moment than by a machine's clock."""
    machine = Machine()
    machine.ask(NOON, takes_s=40.0)

    told = machine.ask(NOON + timedelta(seconds=40))

    assert abs(told - NOON - timedelta(seconds=40)) <= timedelta(seconds=1)
