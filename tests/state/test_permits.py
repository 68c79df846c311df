"""Permits over threads and processes: never more than allowed, whatever dies."""

import contextlib
import os
import socketserver
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from shared.attempt import Lane, attempt
from shared.errors import RateLimitedError, StateError
from shared.state import permits as permits_module
from shared.state.permits import SharedPermits
from shared.state.shares import Budget, Limits, PermitRow
from tests.state import permit_worker

ROOT = Path(__file__).parents[2]


class Vendor(socketserver.ThreadingTCPServer):
    """Answers slowly and counts the calls under way."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.lock = threading.Lock()
        self.under_way: list[str] = []
        self.most = 0
        self.most_runs = 0
        self.calls = 0
        self.seen = threading.Semaphore(0)

    @property
    def port(self) -> int:
        return self.server_address[1]


class Answer(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        vendor, lane = self.server, self.request.recv(1).decode()
        assert isinstance(vendor, Vendor)
        with vendor.lock:
            vendor.under_way.append(lane)
            vendor.calls += 1
            vendor.most = max(vendor.most, len(vendor.under_way))
            vendor.most_runs = max(vendor.most_runs, vendor.under_way.count("r"))
        vendor.seen.release()
        time.sleep(0.01)  # the vendor's latency
        with vendor.lock:
            vendor.under_way.remove(lane)
        with contextlib.suppress(OSError):
            self.request.sendall(b".")


@pytest.fixture
def vendor():
    with Vendor() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def share(request):
    """Return permits as several processes have them; they give their blocks back at the end."""
    made = []

    def build(tables, limits, **facts) -> SharedPermits:
        made.append(SharedPermits(tables, "vendor", limits, **facts))
        return made[-1]

    yield build
    for each in made:
        each.close()


def call_all(permits: SharedPermits, vendor: Vendor, calls: int, lane: Lane = Lane.RUN) -> None:
    with attempt(lane=lane):
        for _ in range(calls):
            with permits.hold():
                permit_worker.call_vendor(vendor.port, lane)


def hold_until_refused(permits: SharedPermits) -> None:
    while True:
        with permits.hold():
            pass


def await_line(permits: SharedPermits, length: int) -> None:
    """Return when so many calls wait for a permit."""
    while len(permits._waiting[Lane.RUN]) < length:
        time.sleep(0.001)


def in_threads(*jobs) -> None:
    threads = [threading.Thread(target=job[0], args=job[1:]) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def start_worker(azurite, prefix, vendor, concurrency, threads, calls) -> subprocess.Popen[str]:
    numbers = map(str, (vendor.port, concurrency, threads, calls))
    command = [sys.executable, "-m", "tests.state.permit_worker", prefix, *numbers]
    env = os.environ | {"STORAGE": azurite.connection_string}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)


def stored(tables) -> PermitRow | None:
    return tables.get(PermitRow, "vendor", "permits")


def await_held(tables, permits: int) -> None:
    """Return when the row says that so many permits are held over all processes."""
    ends_at_s = time.monotonic() + 60
    while held(tables) != permits:
        assert time.monotonic() < ends_at_s, f"{held(tables)} are held, not {permits}"
        time.sleep(0.01)


def held(tables) -> int:
    row = stored(tables)
    return sum(sum(block.held.values()) for block in row.blocks.values()) if row else 0


def test_threads_of_two_processes_share(tables, others, vendor, share):
    """Never more than allowed, runs never use what is kept, and hardly any storage call is made."""
    two = [share(each, Limits(4), wait_s=60) for each in (tables, others)]

    in_threads(*((call_all, permits, vendor, 40) for permits in two for _ in range(6)))

    assert vendor.calls == 480
    assert vendor.most == vendor.most_runs == 3
    assert (tables.operations.total() + others.operations.total()) / 480 <= 0.1  # the start's asks included


def test_events_keep_their_share_while_a_run_is_going(tables, others, vendor, share):
    """The run has more threads than permits in both processes; each event still finds one."""
    two = [share(each, Limits(4), wait_s=60) for each in (tables, others)]
    runs = [(call_all, permits, vendor, 30) for permits in two for _ in range(6)]

    in_threads(*runs, (call_all, two[0], vendor, 30, Lane.EVENT))

    assert vendor.calls == 390
    assert vendor.most <= 4
    assert vendor.most_runs <= 3


def test_one_permit_serves_both_lanes(tables, others, vendor, share):
    """It goes round: every process gets its turns."""
    two = [share(each, Limits(1), wait_s=60) for each in (tables, others)]

    in_threads(
        (call_all, two[0], vendor, 10), (call_all, two[1], vendor, 10), (call_all, two[1], vendor, 5, Lane.EVENT)
    )

    assert (vendor.calls, vendor.most) == (25, 1)


def test_processes_share_and_one_is_killed(azurite, prefix, tables, vendor):
    """With SIGKILL in the middle of its calls: the others go on, never more than allowed."""
    workers = [start_worker(azurite, prefix, vendor, 4, 6, 50) for _ in range(3)]
    for _ in range(60):
        assert vendor.seen.acquire(timeout=30)

    workers[0].kill()
    outputs = [worker.communicate(timeout=60)[0] for worker in workers]

    assert [worker.returncode for worker in workers] == [-9, 0, 0]
    assert vendor.calls >= 600
    assert vendor.most <= 3
    assert all(int(text) < 0.1 * 300 for text in outputs[1:])


def test_dead_process_keeps_its_permits_until_its_lease_ends(azurite, prefix, tables, vendor, share):
    """Its last call may still be under way at the vendor."""
    worker = start_worker(azurite, prefix, vendor, 4, 6, 100_000)
    for _ in range(20):
        assert vendor.seen.acquire(timeout=30)
    worker.kill()
    worker.communicate()
    [block] = stored(tables).blocks.values()
    permits = share(tables, Limits(4), call_s=permit_worker.CALL_S, slack_s=permit_worker.SLACK_S, wait_s=60)

    with permits.hold():
        assert tables.now() > block.until
    assert block.held["run"] == 3


def test_busy_permits_put_the_work_back(tables, others, share):
    """After a bounded wait, with a moment at which to try again."""
    first, second = (share(each, Limits(1), wait_s=0.3) for each in (tables, others))

    with first.hold(), pytest.raises(RateLimitedError) as caught, second.hold():
        pass

    assert caught.value.code == "permits_busy"
    assert caught.value.retry_after_s > 0
    assert caught.value.connection == "vendor"


def test_waiting_ends_with_the_attempt(tables, share):
    """No longer than the attempt has time left."""
    permits = share(tables, Limits(1), wait_s=60)

    with permits.hold(), attempt(ends_at_s=time.monotonic() + 0.2), pytest.raises(RateLimitedError), permits.hold():
        pass


def test_permit_is_not_waited_for_until_it_is_too_late_for_the_call(tables, share):
    """The work is put back while there is still time for the call: a permit after that would be used up for nothing."""
    permits = share(tables, Limits(1), wait_s=120, call_s=60)

    with permits.hold(), attempt(ends_at_s=time.monotonic() + 60.2) as tight:
        with pytest.raises(RateLimitedError), permits.hold():
            pass
        left_s = tight.left_s()

    assert left_s > 30


def test_pause_stops_this_process_at_once_and_the_others_soon(tables, others, share):
    """It is in the row; a shorter one does not shorten it."""
    here = share(tables, Limits(4))
    there = share(others, Limits(4), look_s=0.1)
    with there.hold():
        pass

    here.pause(60)
    here.pause(5)

    with pytest.raises(RateLimitedError) as caught, here.hold():
        pass
    assert caught.value.code == "connection_paused"
    assert 50 < caught.value.retry_after_s <= 60
    with pytest.raises(RateLimitedError) as seen:
        hold_until_refused(there)
    assert seen.value.code == "connection_paused"


def test_short_pause_is_waited_for(tables, share):
    """Work is put back only when the pause is longer than the wait."""
    permits = share(tables, Limits(4), wait_s=30)

    permits.pause(0.6)
    with permits.hold():
        over = time.monotonic() >= permits._paused_until_s

    assert over
    assert stored(tables).paused_until is not None


def test_pause_that_storage_did_not_take_is_told_later(tables, edge, share, caplog):
    """It holds here at once all the same."""
    permits = share(tables, Limits(4))
    with permits.hold():
        edge.faults = [("", "refuse")] * 12

        permits.pause(60)

        with pytest.raises(RateLimitedError), permits.hold():
            pass
        edge.faults = []
        waiting = threading.Event()
        while stored(tables).paused_until is None:
            waiting.wait(0.05)


def test_storage_that_is_away_is_a_state_error(tables, edge, share):
    """The queue delivers the message again; when storage is back, so are the permits."""
    permits = share(tables, Limits(4), wait_s=30)
    edge.faults = [("", "refuse")] * 100

    with pytest.raises(StateError), permits.hold():
        pass

    edge.faults = []
    with permits.hold():
        pass


def test_unexpected_error_does_not_end_the_permits(tables, edge, share):
    """Whoever asks for permits goes on asking: else nobody of this process would ever call the vendor again."""
    permits = share(tables, Limits(4), wait_s=30)
    edge.faults = [("GET .*permits", "break")]

    with pytest.raises(StateError, match="permits"), permits.hold():
        pass
    with permits.hold():
        held = True

    assert held


def test_unexpected_error_leaves_the_calls_under_way_alone(tables, edge, share):
    """The thread that asks for permits goes on while some are held, and the next call gets its own."""
    permits = share(tables, Limits(4), wait_s=30)
    with permits.hold():
        edge.faults = [("permits", "break")]
        permits.expect(3)
        while edge.faults:
            time.sleep(0.001)
        for _ in range(3):  # the first may still be told of the error
            with contextlib.suppress(StateError), permits.hold():
                break
        assert held(tables) >= 2


def test_budget_holds_over_all_processes(tables, others, share):
    """Its calls are handed out in blocks; when they are used up the work waits for the next slot."""
    limits = Limits(4, kept=0, budgets=(Budget(20, zone="America/Chicago"),))
    two = [share(each, limits, wait_s=5) for each in (tables, others)]
    made = []

    def work(permits: SharedPermits) -> None:
        with contextlib.suppress(RateLimitedError):
            while True:
                with permits.hold():
                    made.append(1)

    in_threads(*((work, permits) for permits in two for _ in range(3)))

    assert len(made) == 20
    with pytest.raises(RateLimitedError) as caught, two[0].hold():
        pass
    assert caught.value.code == "budget_spent"
    assert caught.value.retry_after_s > 5


def test_call_that_others_wait_for_goes_ahead(tables, share):
    """What a page still has to look up goes before the writes of the pages before it."""
    permits = share(tables, Limits(1), wait_s=30)
    made = []

    def call(name: str, ahead: bool) -> None:
        with permits.hold(ahead=ahead):
            made.append(name)

    threads = []
    with permits.hold():
        for number, (name, ahead) in enumerate((("write", False), ("look up", True), ("look up too", True)), 1):
            threads.append(threading.Thread(target=call, args=(name, ahead)))
            threads[-1].start()
            await_line(permits, number)
    for thread in threads:
        thread.join()

    assert made == ["look up", "look up too", "write"]


def test_idle_block_goes_back(tables, others, share):
    """Another process need not wait for the lease."""
    first, second = (share(each, Limits(2), wait_s=30) for each in (tables, others))

    with first.hold():
        pass
    with second.hold():
        pass
    second.close()

    assert stored(tables).blocks == {}


def test_calls_of_a_budget_go_back_soon(tables, others, share, monkeypatch):
    """Others have none until they do, and would put their work back until the budget's next slot."""
    monkeypatch.setattr(permits_module, "IDLE_WITH_FEW_S", 600.0)
    first = share(tables, Limits(8, budgets=(Budget(40),)))

    with first.hold():
        pass

    await_held(others, 0)
    assert sum(stored(others).spent.values()) == 1


def test_announced_calls_are_asked_for_at_once(tables, others, share, monkeypatch):
    """With one write of the row for all of them, before the first has come."""
    monkeypatch.setattr(permits_module, "IDLE_S", 600.0)
    permits = share(tables, Limits(8))

    permits.expect(5)
    await_held(others, 5)

    assert tables.operations.counts()["replace"] == 0


def test_announcement_while_the_block_goes_back_is_not_lost(tables, others, edge, share, monkeypatch):
    """Announced while the row is read, made while it is written: the call would else wait for the next look."""
    monkeypatch.setattr(permits_module, "FIRST_LOOK_S", 600.0)
    first, second = (share(each, Limits(8), wait_s=20, look_s=300) for each in (tables, others))
    read, made = tables.get, []

    def hold() -> None:
        with first.hold():
            made.append("call")

    call = threading.Thread(target=hold)

    def begin_call() -> None:
        call.start()
        await_line(first, 1)

    def read_and_announce(*key):
        first.expect(6)
        edge.before = begin_call
        monkeypatch.setattr(tables, "get", read)
        return read(*key)

    with second.hold():
        with first.hold():
            await_held(others, 2)
        monkeypatch.setattr(tables, "get", read_and_announce)
        while call.ident is None:
            time.sleep(0.001)
        call.join()

    assert made


def test_permits_that_lie_idle_go_back_while_others_want_them(tables, others, share, monkeypatch):
    """Though one of the process's calls goes on, and long before it would look at the row again."""
    monkeypatch.setattr(permits_module, "FIRST_LOOK_S", 600.0)
    limits = Limits(8, kept=0)
    first, second = share(tables, limits, wait_s=30, look_s=300, slack_s=600), share(others, limits, wait_s=30)
    begun, end, gone = threading.Barrier(7), threading.Event(), threading.Event()

    def call(until: threading.Event) -> None:
        with first.hold():
            begun.wait()
            until.wait()

    threads = [threading.Thread(target=call, args=(end if number else gone,)) for number in range(6)]
    with second.hold():
        for thread in threads:
            thread.start()
        begun.wait()
        end.set()
        await_held(tables, 2)  # one of each process
        gone.set()
    for thread in threads:
        thread.join()


def test_call_does_not_start_that_could_outlive_the_lease(tables, share, edge):
    """When the lease cannot be renewed no new call starts, though permits are free."""
    clock = [1000.0]
    permits = share(tables, Limits(4), wait_s=30, call_s=75, slack_s=30, now_s=lambda: clock[0])
    with permits.hold():
        pass
    edge.faults = [("", "refuse")] * 100

    clock[0] += 31

    with pytest.raises(StateError), permits.hold():
        pass
    edge.faults = []
