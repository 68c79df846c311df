"""Match rules that are asked side by side: what a run asks of a slow system does not hold up an event."""

import threading
from collections.abc import Sequence
from typing import Any

from shared import attempt
from shared.attempt import Lane
from shared.clients.system import Key, Row
from shared.state.storage import SIDE_BY_SIDE
from sync.mapping import Mapped, MappedField
from sync.matching import find_matches
from sync.recipe import FieldRule, MatchRule

WAIT_S = 300.0  # longer than any machine stalls
RULES = [MatchRule(fields=("number",)), MatchRule(fields=("title",))]


class Slow:
    """A system that answers events at once, and runs when it may."""

    def __init__(self) -> None:
        self.asked_by_runs = threading.Semaphore(0)
        self.may_answer_runs = threading.Event()

    def fetch_rows(self, record: str, paths: Any, by: Any, keys: Sequence[Key]) -> list[Row]:
        if attempt.current().lane is Lane.RUN:
            self.asked_by_runs.release()
            assert self.may_answer_runs.wait(WAIT_S)
        return []


def mapped(key: str) -> Mapped:
    fields = {name: MappedField(FieldRule(value=key), value=key, accepted=(key,)) for name in ("number", "title")}
    return Mapped(None, fields, key)  # type: ignore[arg-type]  # no rule here looks at the block


def ask(target: Slow, lane: Lane) -> threading.Thread:
    """Let a page of two records look for their matches, in a thread of its own."""
    asks = [(mapped(key), lambda _: "") for key in "ab"]

    def look() -> None:
        with attempt.attempt(lane=lane):
            find_matches(target, "incident", frozenset(), RULES, asks)  # type: ignore[arg-type]  # all that is asked of it

    thread = threading.Thread(target=look)
    thread.start()
    return thread


def test_look_ups_of_runs_that_wait_hold_up_no_event() -> None:
    """However many of a run's pages wait for an answer, an event's look-ups begin."""
    target = Slow()
    runs = [ask(target, Lane.RUN) for _ in range(SIDE_BY_SIDE)]
    for _ in range(SIDE_BY_SIDE):
        assert target.asked_by_runs.acquire(timeout=WAIT_S)

    event = ask(target, Lane.EVENT)
    event.join(60.0)
    was_answered = not event.is_alive()
    target.may_answer_runs.set()
    for thread in (*runs, event):
        thread.join(WAIT_S)

    assert was_answered
