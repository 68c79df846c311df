"""What waits for a busy storage goes together, and each caller learns what became of its own."""

import itertools
import threading
import time
from collections.abc import Callable, Sequence

import pytest

from shared.errors import StateError
from shared.state.together import Together

WAIT_S = 600.0  # longer than any machine stalls
APART_S = 0.03
MOST = 100
MOST_BYTES = 48 * 1024


class Busy:
    """A storage whose first send ends only when a test says so."""

    def __init__(
        self, apart_s: float = APART_S, now_s: Callable[[], float] = time.monotonic, stuck_s: float = WAIT_S
    ) -> None:
        self.sent: list[list[str]] = []  # the parts of each send that arrived
        self.first_came, self.first_may_end = threading.Event(), threading.Event()
        self.refuses: Callable[[list[str]], bool] = lambda _: False
        self.answers: dict[str, str] = {}
        self.granted_s: list[float] = []
        self.threads: list[threading.Thread] = []
        self.together = Together(
            self._send, apart_s=apart_s, most=MOST, most_bytes=MOST_BYTES, stuck_s=stuck_s, now_s=now_s
        )

    def _send(self, parts: Sequence[str], timeout_s: float) -> None:
        self.granted_s.append(timeout_s)
        if not self.first_came.is_set():
            self.first_came.set()
            assert self.first_may_end.wait(WAIT_S)
        names = list(parts)
        if self.refuses(names):
            raise StateError("refused")
        self.sent.append(names)

    def call(self, name: str, size: int = 300, timeout_s: float = WAIT_S) -> None:
        """Let a caller of its own send a part."""
        thread = threading.Thread(target=self._call, args=(name, size, timeout_s))
        thread.start()
        self.threads.append(thread)

    def _call(self, name: str, size: int, timeout_s: float) -> None:
        try:
            self.together.send(name, timeout_s, size)
            self.answers[name] = "stored"
        except StateError as exc:
            self.answers[name] = exc.message

    def call_while_busy(self, *names: str, size: int = 300) -> None:
        """Let a first part be under way, and others come meanwhile."""
        self.call("first")
        assert self.first_came.wait(WAIT_S)
        for number, name in enumerate(names, 1):
            self.call(name, size)
            while self.together.waiting() + sum(map(len, self.sent)) < number:
                pass

    def end(self) -> None:
        """Let the first send end, and wait until all callers have their answers."""
        self.first_may_end.set()
        for thread in self.threads:
            thread.join(WAIT_S)


def after_a_first() -> Busy:
    """Return a storage that a part was just sent to, so that the next ones have to wait."""
    busy = Busy(apart_s=WAIT_S)
    busy.first_may_end.set()
    busy.call("first")
    busy.end()
    return busy


def test_idle_part_goes_at_once_and_alone() -> None:
    """Nothing waits for company."""
    busy = Busy()
    busy.first_may_end.set()

    for name in "abc":
        busy.together.send(name, WAIT_S)

    assert busy.sent == [["a"], ["b"], ["c"]]


def test_parts_that_come_during_a_send_go_as_one() -> None:
    """While a send is under way the next ones gather; each caller is answered when its part is stored."""
    busy = Busy()
    busy.call_while_busy("a", "b", "c")
    answered_before = dict(busy.answers)

    busy.end()

    assert answered_before == {}
    assert [sorted(names) for names in busy.sent] == [["first"], ["a", "b", "c"]]
    assert busy.answers == dict.fromkeys(["first", "a", "b", "c"], "stored")


def test_parts_that_follow_each_other_shortly_go_as_one() -> None:
    """A first part goes at once; those that come soon after it share the next send, and a full one does not wait."""
    busy = after_a_first()

    for number in range(MOST):
        busy.call(f"e{number}")
    busy.end()

    assert list(map(len, busy.sent)) == [1, MOST]
    assert set(busy.answers.values()) == {"stored"}


@pytest.mark.parametrize("looks", [2.5, 3.5, 4.5, 5.5, 6.5, 7.5])
def test_moment_of_a_send_is_missed_by_nobody(looks: float) -> None:
    """Between two looks at the clock the next send may begin: who found it too early must not wait for a call to wake it."""
    busy = Busy(now_s=itertools.count(0.0, APART_S / looks).__next__)
    busy.first_may_end.set()
    busy.together.send("first", WAIT_S)

    busy.call("second", timeout_s=WAIT_S / 10)
    busy.threads[0].join(WAIT_S / 60)

    assert busy.sent == [["first"], ["second"]]


@pytest.mark.parametrize(
    ("size", "most"),
    [pytest.param(300, MOST, id="number"), pytest.param(MOST_BYTES // 4, 4, id="bytes")],
)
def test_message_holds_no_more_than_it_may(size: int, most: int) -> None:
    """What is too much for one message goes with the next, and none is left out."""
    names = [f"e{number}" for number in range(2 * most + 1)]
    busy = Busy()
    busy.call_while_busy(*names, size=size)

    busy.end()

    assert sorted(map(len, busy.sent)) == [1, 1, most, most]
    assert sorted(name for sent in busy.sent for name in sent) == sorted(["first", *names])


def test_full_message_does_not_wait_for_the_one_under_way() -> None:
    """A send that takes long must not make callers come faster than they are answered."""
    busy = Busy()
    busy.call_while_busy(*(f"e{number}" for number in range(MOST + 3)))
    sent_meanwhile = list(map(len, busy.sent))

    busy.end()

    assert sent_meanwhile == [MOST]
    assert sorted(map(len, busy.sent)) == [1, 3, MOST]


def test_send_that_hangs_holds_up_nobody_else() -> None:
    """After a while the next one begins beside it, however few wait."""
    busy = Busy(stuck_s=0.001)
    busy.call_while_busy("a", "b")

    for thread in busy.threads[1:]:
        thread.join(WAIT_S)

    assert busy.answers == {"a": "stored", "b": "stored"}
    busy.end()
    assert busy.answers == dict.fromkeys(("first", "a", "b"), "stored")


def test_those_behind_a_send_that_hangs_are_as_fast_as_ever() -> None:
    """Not one send a second while it hangs, but as many as there would be without it."""
    clock = [100.0]
    busy = Busy(now_s=lambda: clock[0], stuck_s=1.0)
    busy.call_while_busy()
    clock[0] += 2.0

    for name in ("a", "b", "c"):
        clock[0] += 2 * APART_S
        busy.call(name)
        busy.threads[-1].join(10)

    assert busy.answers == dict.fromkeys("abc", "stored")
    busy.end()


def test_refused_message_is_told_to_each_of_its_callers() -> None:
    """None of them is acknowledged; a part that comes later is a new attempt."""
    busy = Busy()
    busy.refuses = lambda names: "a" in names
    busy.call_while_busy("a", "b")
    busy.end()

    busy.together.send("later", WAIT_S)

    assert busy.answers == {"first": "stored", "a": "refused", "b": "refused"}
    assert busy.sent == [["first"], ["later"]]


def test_caller_whose_time_is_over_is_told_so_and_its_part_is_not_sent() -> None:
    """Nobody may be told of a failure and have its part wait for a send all the same."""
    busy = Busy()
    busy.call_while_busy()

    with pytest.raises(StateError):
        busy.together.send("late", 0.0)
    busy.end()

    assert busy.sent == [["first"]]


def test_caller_with_the_most_time_left_sends() -> None:
    """A caller who has waited long has no time left for a send; those that came after it are not refused for that."""
    busy = Busy()
    busy.call("first")
    assert busy.first_came.wait(WAIT_S)
    for number in range(MOST - 1):
        busy.call(f"e{number}", timeout_s=WAIT_S if number else 4 * WAIT_S)
        while busy.together.waiting() <= number:
            pass

    busy.end()

    assert len(busy.granted_s) == 2
    assert busy.granted_s[1] > 2 * WAIT_S


def test_death_of_a_send_frees_its_place_and_acknowledges_nobody() -> None:
    """Whatever ends a send, the next part can go."""
    busy = Busy()
    busy.first_may_end.set()

    def die(_: list[str]) -> bool:
        raise SystemExit

    busy.refuses = die
    with pytest.raises(SystemExit):
        busy.together.send("a", WAIT_S)
    busy.refuses = lambda _: False
    busy.together.send("b", WAIT_S)

    assert busy.sent == [["b"]]


def test_nobody_waits_when_all_who_are_announced_are_there() -> None:
    """What is to be gathered is known: no time has to pass for company that does not come."""
    busy = after_a_first()
    with busy.together.coming(), busy.together.coming():
        busy.call("a")
        busy.call("b")
        busy.end()

    assert list(map(sorted, busy.sent)) == [["first"], ["a", "b"]]


def test_announced_caller_that_has_nothing_to_send_is_waited_for_no_more() -> None:
    """It may have failed: the others must not wait for it."""
    busy = after_a_first()
    with busy.together.coming():
        with busy.together.coming():
            busy.call("a")
            while not busy.together.waiting():
                pass
        busy.end()

    assert busy.sent == [["first"], ["a"]]


def test_newcomer_who_completes_the_lot_wakes_the_one_who_sends() -> None:
    """Who has the most time left sends, also when it has waited before the last one came."""
    busy = after_a_first()
    with busy.together.coming(), busy.together.coming():
        busy.call("a", timeout_s=WAIT_S)
        while not busy.together.waiting():
            pass
        busy.call("b", timeout_s=WAIT_S / 10)
        busy.threads[-1].join(WAIT_S / 60)
        answers = dict(busy.answers)
        busy.end()

    assert answers.get("b") == "stored"
    assert list(map(sorted, busy.sent)) == [["first"], ["a", "b"]]


def test_all_who_are_announced_wait_for_the_send_under_way() -> None:
    """One send at a time, unless a full one waits: a busy storage is not asked more because all are there."""
    busy = Busy(apart_s=0.0)
    with busy.together.coming():
        busy.call("first")
        assert busy.first_came.wait(WAIT_S)
        busy.call("a")
        while not busy.together.waiting():
            pass
        sent_meanwhile = list(busy.sent)
        busy.end()

    assert sent_meanwhile == []
    assert busy.sent == [["first"], ["a"]]
