"""How many records a process has in hand."""

import threading

import pytest

from shared.attempt import attempt, monotonic_s
from shared.errors import RateLimitedError
from sync.portions import Room


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
