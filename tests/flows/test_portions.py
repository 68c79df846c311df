"""How many records a process has in hand, and how many pages a run."""

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from shared.attempt import attempt, monotonic_s
from shared.clients.system import Row
from shared.errors import RateLimitedError
from shared.state.messages import PageMessage
from shared.state.queues import parse
from shared.state.rows import PageRow, RunState, new_run_id
from sync import bulk as engine
from sync import portions, runs
from sync.portions import ROOM, Listed, Relay, Room, pages_at_once, send_those_in_turn
from tests.flows.world import NOW, RECIPE, TRIGGERS, Delivery, World

WINDOW = "last_days:3"


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


def test_relay_that_was_left_is_sent_by_its_page_alone(world: World) -> None:
    """Its page says then whether the next one was sent: another page of the process, which looks late, may not change that."""
    app, flow, run_id = world.app, world.app.flow(RECIPE), new_run_id(RECIPE, NOW, "0000")
    page = app.tables.insert(PageRow(run_id=run_id, page=0))

    with Relay(app, flow, page) as relay:
        pass
    relay.send_in_turn()

    assert not relay.sent
    relay.send()
    assert relay.sent


@pytest.mark.parametrize("bulk_above", [1000, 0], ids=["single", "bulk"])
def test_next_page_is_sent_before_a_pages_records_are_worked(paged_world: World, bulk_above: int) -> None:
    """A page that dies with its records leaves the rest of the run going on."""
    paged_world.change_settings(bulk_above=bulk_above)
    paged_world.systems["dynamics365"]._bulk_page_size = 10
    for _ in range(12):
        paged_world.add_case()
    paged_world.start(WINDOW)
    paged_world.wire.kill_on("storage POST items|servicenow POST", after=False)

    paged_world.pump.run(until=lambda: paged_world.pump.kills > 0)
    paged_world.pump._take()

    waiting = [parse(PageMessage, each.body).page for each in paged_world.pump.waiting if each.queue == "pages"]
    assert sorted(waiting) == [0, 1]


@pytest.fixture
def bulk(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """A world of pages of five cases in bulk, in which a page that finds no room goes back at once."""
    world.change_settings(bulk_above=0)
    monkeypatch.setattr(world.systems["dynamics365"], "_bulk_page_size", 5)
    monkeypatch.setattr("shared.clients.dynamics365.page_length", lambda size, _: size)
    monkeypatch.setattr(portions, "LONGEST_WAIT_S", 0.01)
    for _ in range(12):
        world.add_case()
    return world


def test_page_that_goes_back_sends_the_next_one_once(bulk: World) -> None:
    """Else each copy of a page would beget another as long as the worker has no room."""
    run = bulk.start(WINDOW)

    with ROOM.hold(800):
        bulk.pump.run(for_s=120)
        waiting = Counter(parse(PageMessage, each.body).page for each in bulk.pump.waiting if each.queue == "pages")
    bulk.pump.run()

    assert waiting == {0: 1, 1: 1}
    assert bulk.run_row(run).counts == {"created": 12}


def test_waiting_rows_are_packed(bulk: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page in line keeps little, and works what it listed."""
    monkeypatch.setattr(portions, "LONGEST_WAIT_S", 20.0)
    run = bulk.start(WINDOW)
    (page,) = _take_pages(bulk)
    packed = []
    monkeypatch.setattr(Listed, "pack", lambda listed, pack=Listed.pack: (pack(listed), packed.append(listed)))

    with _waits_for_room(bulk, page):
        assert [len(listed._rows) for listed in packed] == [0]

    assert len(bulk.incidents()) == 5
    assert bulk.run_row(run).state is RunState.RUNNING


def test_packed_rows_are_as_they_were() -> None:
    """Values of every kind, and what could not be read of a row."""
    fields = {
        "text": "x",
        "half": "\ud83d",
        "number": 7,
        "share": 0.5,
        "yes": True,
        "at": NOW,
        "none": None,
        "many": [1, "a"],
    }
    rows = [
        Row("a", fields, version="3", changed_at=NOW, created_at=NOW, closed=True),
        Row("b", {}, problem="No time."),
    ]
    listed = Listed(rows)

    listed.pack()

    assert listed.by_key() == {row.key: row for row in rows}


def test_page_that_cannot_be_packed_leaves_the_line() -> None:
    """Whatever goes wrong with it, those behind it get their room."""
    room = Room(100)

    def fail() -> None:
        raise KeyError

    with room.hold(80):
        with pytest.raises(KeyError), room.hold(30, fail):
            pass
        with room.hold(20):
            assert not room._line


def test_page_of_a_run_that_was_cancelled_while_it_waited_is_not_worked(bulk: World, monkeypatch) -> None:
    """Who cancels a run means the pages that stand in line too."""
    monkeypatch.setattr(portions, "LONGEST_WAIT_S", 20.0)
    run = bulk.start(WINDOW)
    (page,) = _take_pages(bulk)

    with _waits_for_room(bulk, page):
        runs.cancel_run(bulk.app, bulk.run_row(run).run_id, "ada")

    assert bulk.incidents() == []


def test_run_that_is_cancelled_while_a_page_is_in_hand_begins_no_portion_more(bulk: World, monkeypatch) -> None:
    """A page may hold minutes of work: only the portion under way ends."""
    monkeypatch.setattr(engine, "LEAST_PORTION", 1)
    monkeypatch.setattr(engine, "CALLS_IN_A_ROW", 0)
    monkeypatch.setattr(portions, "AT_ONCE", 1)
    monkeypatch.setattr(type(bulk.systems["servicenow"]), "writes_together", 2)
    finish = engine.finish

    def finish_and_cancel(flow, run, works) -> None:
        finish(flow, run, works)
        if not bulk.run_row(run).state.ended:
            runs.cancel_run(bulk.app, run.run_id, "ada")

    monkeypatch.setattr(engine, "finish", finish_and_cancel)

    run = bulk.sync(WINDOW)

    assert len(bulk.incidents()) == 2
    assert (run.state, run.counts) == (RunState.CANCELLED, {"created": 2})


def _take_pages(world: World) -> list[Delivery]:
    world.pump._take()
    return [each for each in world.pump.waiting if each.queue == "pages"]


@contextlib.contextmanager
def _waits_for_room(world: World, page: Delivery) -> Iterator[None]:
    """Deliver a page to a worker that has no room for it, until the block ends."""
    thread = threading.Thread(target=TRIGGERS["pages"], args=(world.app, page.id, page.body, 1))
    with ROOM.hold(800):
        thread.start()
        while not ROOM._line:
            threading.Event().wait(0.01)
        yield
    thread.join(60)
