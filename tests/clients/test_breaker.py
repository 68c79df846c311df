"""The circuit breaker: when it opens, how long it rests, what closes it."""

import contextlib

import pytest

from shared.clients.breaker import FIRST_REST_S, LONGEST_REST_S, OPEN_AFTER, Breaker


class Clock:
    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


class Pauses:
    """A connection's permits, as far as the breaker uses them."""

    def __init__(self):
        self.seconds = []

    def hold(self, *, ahead=False):
        return contextlib.nullcontext()

    def expect(self, calls):
        pass

    def pause(self, seconds):
        self.seconds.append(seconds)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def pauses():
    return Pauses()


def fail(breaker, times):
    for _ in range(times):
        breaker.unanswered()


def test_a_few_unanswered_calls_do_not_open_it(clock, pauses):
    """Single faults are the business of the attempts."""
    breaker = Breaker(pauses, clock)

    fail(breaker, OPEN_AFTER - 1)

    assert pauses.seconds == []


def test_an_answer_starts_the_count_anew(clock, pauses):
    """Only calls in a row count."""
    breaker = Breaker(pauses, clock)

    fail(breaker, OPEN_AFTER - 1)
    breaker.answered()
    fail(breaker, OPEN_AFTER - 1)

    assert pauses.seconds == []


def test_calls_in_a_row_rest_the_connection_once(clock, pauses):
    """Calls that were under way together are one outage."""
    breaker = Breaker(pauses, clock)

    fail(breaker, OPEN_AFTER + 20)

    assert pauses.seconds == [pytest.approx(FIRST_REST_S, rel=0.2)]


def test_rests_grow_to_a_bound_and_start_small_again(clock, pauses):
    """A long outage is not hammered; after it the connection is as quick as before."""
    breaker = Breaker(pauses, clock)
    fail(breaker, OPEN_AFTER)
    for _ in range(8):
        clock.now_s += LONGEST_REST_S * 2
        breaker.unanswered()

    breaker.answered()
    clock.now_s += LONGEST_REST_S * 2
    fail(breaker, OPEN_AFTER)

    assert pauses.seconds[1] == pytest.approx(2 * FIRST_REST_S, rel=0.2)
    assert pauses.seconds[-2] == pytest.approx(LONGEST_REST_S, rel=0.2)
    assert pauses.seconds[-1] == pytest.approx(FIRST_REST_S, rel=0.2)
