"""The rules by which processes share a connection's permits."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.state.shares import MARGIN_S, Ask, Block, Budget, Limits, PermitRow, Settled, call_key, settle

NOON = datetime(2026, 3, 14, 12, 0, tzinfo=UTC)
LEASE_S = 30.0


def ask(holder: str = "a", run: int = 0, event: int = 0, at_s: float = 0, **facts) -> Ask:
    facts = {"in_use": {}, **facts}
    return Ask(holder, NOON + timedelta(seconds=at_s), LEASE_S, demand={"run": run, "event": event}, **facts)


def settle_all(limits: Limits, *asks: Ask) -> Settled:
    row = PermitRow(connection="c")
    for each in asks:
        settled = settle(row, each, limits)
        row = settled.row
    return settled


def held(row: PermitRow, pool: str) -> dict[str, int]:
    return {holder: block.held.get(pool, 0) for holder, block in row.blocks.items()}


@pytest.mark.parametrize(
    ("concurrency", "kept", "run", "event"),
    [(1, None, 1, 0), (2, None, 1, 1), (4, None, 3, 1), (8, None, 6, 2), (52, None, 39, 13), (8, 0, 8, 0)],
)
def test_a_quarter_is_kept_for_events(concurrency, kept, run, event):
    """At least one where there are two; a connection without events may keep none."""
    limits = Limits(concurrency, kept)

    assert (limits.permits("run"), limits.permits("event")) == (run, event)


@pytest.mark.parametrize(("concurrency", "kept"), [(0, None), (4, 4), (4, -1)])
def test_limits_that_cannot_be_are_refused(concurrency, kept):
    """A connection without a permit for runs would stand still."""
    with pytest.raises(ValueError, match="permits"):
        Limits(concurrency, kept)


def test_process_alone_takes_what_it_needs():
    """And no more; runs never take what is kept."""
    assert settle_all(Limits(4), ask(run=2)).limit == {"run": 2, "event": 0}
    assert settle_all(Limits(4), ask(run=20)).limit == {"run": 3, "event": 0}


def test_events_take_what_runs_leave():
    """Beyond the permits kept for them they use a run's."""
    assert settle_all(Limits(8), ask(event=5)).limit == {"run": 3, "event": 2}
    assert settle_all(Limits(1), ask(event=5)).limit == {"run": 1, "event": 0}


def test_newcomer_gets_half_of_what_is_free():
    """So that the next one finds something too."""
    settled = settle_all(Limits(52), ask("a", run=10), ask("b", run=39))

    assert settled.limit["run"] == 19 + (29 - 19) // 2
    assert settled.room


@pytest.mark.parametrize(
    ("asks", "scarce"),
    [
        ([ask("a", run=8)], False),
        ([ask("a", run=1), ask("b", run=2)], False),
        ([ask("a", run=1), ask("b", run=5)], True),
        ([ask("a", run=8), ask("b", run=8), ask("a", run=1, at_s=1)], True),
    ],
    ids=["alone", "enough for all", "little is left", "another wants more"],
)
def test_permits_are_scarce_when_others_may_want_them(asks, scarce):
    """Who then lets half of its own lie idle gives them back at once."""
    assert settle_all(Limits(8, kept=0), *asks).scarce is scarce


def test_process_without_permits_is_given_its_share():
    """It says so in the row, and the holder goes down, as far as its calls have ended."""
    limits = Limits(4)
    starved = settle_all(limits, ask("a", run=9), ask("b", run=9, at_s=1))
    given_back = settle(starved.row, ask("a", run=9, at_s=2, in_use={"run": 3}), limits)
    ended = settle(given_back.row, ask("a", run=9, at_s=3, in_use={"run": 2}), limits)
    taken = settle(ended.row, ask("b", run=9, at_s=4), limits)

    assert (starved.limit["run"], starved.starved) == (0, True)
    assert (given_back.limit["run"], held(given_back.row, "run")["a"]) == (2, 3)
    assert held(taken.row, "run") == {"a": 2, "b": 1}
    assert not taken.starved


def test_fewer_permits_than_processes_go_round():
    """Who had its turn gives way to who waits longest, and queues behind it."""
    limits = Limits(1)
    waiting = settle_all(limits, ask("a", run=1), ask("b", run=1, at_s=1), ask("c", run=1, at_s=2))
    still = settle(waiting.row, ask("a", run=1, at_s=3, held_s=3), limits)
    over = settle(still.row, ask("a", run=1, at_s=6, held_s=6), limits)
    too_early = settle(over.row, ask("c", run=1, at_s=7), limits)
    next_one = settle(too_early.row, ask("b", run=1, at_s=8), limits)

    assert still.limit["run"] == 1
    assert over.limit["run"] == 0
    assert too_early.limit["run"] == 0
    assert next_one.limit["run"] == 1


def test_block_is_collected_after_its_lease():
    """A dead process's permits come back when its last call is surely over, not before."""
    limits = Limits(4)
    row = settle_all(limits, ask("dead", run=3)).row

    early = settle(row, ask("b", run=3, at_s=LEASE_S + MARGIN_S - 0.1), limits)
    late = settle(row, ask("b", run=3, at_s=LEASE_S + MARGIN_S), limits)

    assert early.limit["run"] == 0
    assert late.limit["run"] == 3
    assert set(late.row.blocks) == {"b"}


def test_calls_that_outlived_their_lease_are_still_counted():
    """They are under way, whatever the row says."""
    limits = Limits(4)
    row = settle_all(limits, ask("b", run=3)).row

    settled = settle(row, ask("a", run=3, in_use={"run": 2}), limits)

    assert settled.limit["run"] == 0
    assert held(settled.row, "run") == {"a": 2, "b": 3}


def test_leaving_gives_everything_back():
    """The row forgets the process."""
    limits = Limits(4, budgets=(Budget(100, seconds=20),))
    first = settle_all(limits, ask("a", run=3))

    left = settle(first.row, ask("a", leaving=True, calls=first.calls), limits)

    assert left.row.blocks == {}
    assert set(left.row.spent.values()) == {0}


def test_pause_is_never_shortened():
    """The later one counts."""
    row = PermitRow(connection="c", paused_until=NOON + timedelta(minutes=5))

    settled = settle(row, ask(run=1, paused_until=NOON + timedelta(minutes=1)), Limits(4))

    assert settled.row.paused_until == NOON + timedelta(minutes=5)


def test_looking_changes_nothing():
    """Without a new need there is nothing to write."""
    limits = Limits(4, budgets=(Budget(1000, zone="America/Chicago"),))
    first = settle_all(limits, ask("a", run=3))

    again = settle(first.row, ask("a", run=3, at_s=5, in_use={"run": 3}, calls=first.calls), limits)

    assert not again.changed


@pytest.mark.parametrize(
    ("budget", "now", "ends"),
    [
        pytest.param(Budget(50, seconds=20), NOON + timedelta(seconds=39), NOON + timedelta(seconds=40), id="window"),
        pytest.param(Budget(50), NOON, datetime(2026, 3, 15, tzinfo=UTC), id="day"),
        pytest.param(
            Budget(50, zone="America/Chicago"),
            datetime(2026, 3, 8, 7, tzinfo=UTC),
            datetime(2026, 3, 9, 5, tzinfo=UTC),
            id="day with a clock change",
        ),
    ],
)
def test_slot_ends_where_the_vendor_counts_anew(budget, now, ends):
    """A day begins at midnight in its own zone, also when that day has 23 hours."""
    slot = budget.slot(now)

    assert budget.ends_at(slot) == ends
    assert budget.slot(ends) == slot + 1
    assert budget.slot(ends - timedelta(seconds=1)) == slot


def test_budget_keeps_a_part_for_events():
    """Runs cannot use up what events need."""
    budget = Budget(40, seconds=20)
    limits = Limits(4, budgets=(budget,))
    slot = budget.slot(NOON)

    settled = settle_all(limits, ask("a", run=99), ask("b", run=99), ask("b", event=1))

    assert settled.row.spent[call_key(budget, slot, "run")] == 30
    assert settled.calls == {call_key(budget, slot, "event"): 5}


def test_new_slot_has_all_its_calls():
    """What was not used does not carry over; the old slot is forgotten when no process can be in it any more."""
    budget = Budget(40, seconds=20)
    limits = Limits(4, budgets=(budget,))
    slot = budget.slot(NOON)
    row = settle_all(limits, ask("a", run=9)).row

    later = settle(row, ask("a", run=9, at_s=40), limits)

    assert later.row.spent == {call_key(budget, slot + 2, "run"): 30}


STEPS = st.lists(
    st.tuples(
        st.sampled_from("abcde"),  # who asks
        st.integers(0, 12),  # calls of runs wanted
        st.integers(0, 4),  # events wanted
        st.floats(0, 1),  # how many of its permits are in use
        st.floats(0, 40),  # seconds since the last step
        st.booleans(),  # whether it leaves
    ),
    max_size=40,
)


@given(concurrency=st.integers(1, 9), steps=STEPS)
def test_never_more_than_the_connection_allows(concurrency, steps):
    """Whoever asks for what in whatever order: what may be in use at a time stays within the limits."""
    limits = Limits(concurrency, budgets=(Budget(20, seconds=20),))
    row, now_s = PermitRow(connection="c"), 0.0
    may_use: dict[str, dict[str, int]] = {}
    until: dict[str, float] = {}
    calls: dict[str, int] = {}

    for holder, run, event, used, seconds, leaving in steps:
        now_s += seconds
        mine = may_use.get(holder, {}) if until.get(holder, 0) > now_s else {}
        in_use = {pool: 0 if leaving else round(count * used) for pool, count in mine.items()}
        settled = settle(row, ask(holder, run, event, now_s, in_use=in_use, leaving=leaving), limits)
        row = settled.row
        may_use[holder] = {pool: max(settled.limit[pool], in_use.get(pool, 0)) for pool in settled.limit}
        until[holder] = now_s + LEASE_S
        for key, count in settled.calls.items():
            calls[key] = calls.get(key, 0) + count

        alive = [may_use[each] for each in may_use if until[each] > now_s]
        for pool in ("run", "event"):
            assert sum(each[pool] for each in alive) <= limits.permits(pool)
    for key, count in calls.items():
        assert count <= limits.calls(limits.budgets[0], key.split("|")[2])


def test_block_of_no_permits_waits_for_a_short_time_only():
    """A process that died waiting must not keep others from growing."""
    row = settle_all(Limits(1), ask("a", run=1), ask("b", run=1)).row

    assert isinstance(row.blocks["b"], Block)
    assert row.blocks["b"].until < row.blocks["a"].until


def test_process_takes_few_calls_of_a_short_slot():
    """What one process holds and does not use, another one lacks until the slot ends: it takes what it soon needs."""
    budget = Budget(50, seconds=20)
    limits = Limits(5, budgets=(budget,))
    key = call_key(budget, budget.slot(NOON), "run")

    modest = settle_all(limits, ask("a", run=1))
    busy = settle_all(limits, ask("a", run=40))

    assert modest.calls == {key: 16}
    assert busy.calls == {key: 40}
