"""How many records a process has in hand, and how many pages a run."""

import threading

import pytest

from shared.attempt import attempt, monotonic_s
from shared.errors import RateLimitedError
from shared.state.rows import PageRow, new_run_id
from sync.portions import Relay, Room, pages_at_once, send_those_in_turn
from tests.flows.world import NOW, RECIPE, World


@pytest.mark.parametrize(
    "sizes", [[40, 60, 50, 10, 90, 30], [500, 1, 500, 100]], ids=["pages", "pages beyond the room"]
)
def test_room_is_never_exceeded_but_by_one_page(sizes):
    """Pages go in as they come, each when those in hand leave room for it; one that never fits goes alone."""
    room, lock, in_hand, seen = Room(100), threading.Lock(), [], []

    def work(size: int) -> None:
        with room.hold(size):
            with lock:
                in_hand.append(size)
                seen.append(list(in_hand))
            with lock:
                in_hand.remove(size)

    threads = [threading.Thread(target=work, args=(size,)) for size in sizes * 20]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(seen) == len(sizes) * 20
    assert all(len(together) == 1 or sum(together) <= 100 for together in seen)


def test_page_that_finds_no_room_in_time_waits_in_the_queue():
    """Its message is sent again, which is no failed attempt; who comes later is not held up by it."""
    room = Room(100)

    with room.hold(80):
        with attempt(ends_at_s=monotonic_s() + 0.1), pytest.raises(RateLimitedError) as caught, room.hold(30):
            pass
        with room.hold(20), room.hold(0):
            pass

    assert caught.value.code == "worker_busy"


def test_page_that_is_not_listed_in_time_waits_in_the_queue():
    """So it does behind a page of its run that finds no room."""
    room = Room(100)
    in_line = threading.Thread(target=_try_to_hold, args=(room, 30))

    with room.hold(80):
        in_line.start()
        while not room._line:
            pass
        with attempt(ends_at_s=monotonic_s() + 0.1), pytest.raises(RateLimitedError) as caught:
            room.wait_behind("run")
    in_line.join(20)

    assert caught.value.code == "worker_busy"


def _try_to_hold(room: Room, records: int) -> None:
    with room.hold(records, "run"):
        pass


def test_a_page_is_listed_once_the_one_before_it_has_found_room():
    """Else the records of all pages that wait would be kept, and memory grow with the run; other runs wait for none of them."""
    room, waited, steps = Room(100), threading.Event(), []

    def stand_in_line() -> None:
        with room.hold(30, "run"):
            steps.append("in hand")
            waited.wait(20)

    def come_behind() -> None:
        room.wait_behind("run")
        steps.append("listed")
        waited.set()

    threads = [threading.Thread(target=step) for step in (stand_in_line, come_behind)]
    with room.hold(80, "run"):
        threads[0].start()
        while not room._line:
            room.wait_behind("another run")
        threads[1].start()
        steps.append("room is full")
    for thread in threads:
        thread.join(20)

    assert steps == ["room is full", "in hand", "listed"]


def test_next_page_is_sent_as_soon_as_an_earlier_one_is_done(world: World) -> None:
    """Not only when the page before it is: its target would have nothing to do while the next ones are listed."""
    app, flow, run_id = world.app, world.app.flow(RECIPE), new_run_id(RECIPE, NOW, "0000")
    newest = pages_at_once(app, flow) - 1
    first, last = (app.tables.insert(PageRow(run_id=run_id, page=page)) for page in (0, newest))

    def sent() -> int:
        return sum(len(times) for (queue, _), times in world.queues.due.items() if queue == "pages")

    before = sent()
    with Relay(app, flow, last) as relay:
        relay.send_in_turn()
        send_those_in_turn()
        assert sent() == before
        app.tables.replace(first.model_copy(update={"fanned_out": True}))
        send_those_in_turn()
        relay.send_in_turn()
        relay.send()
        assert sent() == before + 1
    send_those_in_turn()

    assert sent() == before + 1
