"""A page's records worked in portions, a few side by side: while some are written, others are claimed or stored.

So the target always has as many calls under way as it allows, and no phase of one portion waits for another's.
"""

import contextlib
import json
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Self

from pydantic import TypeAdapter

from shared import attempt
from shared.clients.system import Row
from shared.errors import RateLimitedError, StateError
from shared.state.messages import PageMessage, RowModel
from shared.state.rows import PageRow, shard_of
from shared.state.storage import SideBySide
from sync.app import App
from sync.flow import Flow
from sync.work import Work

RECORDS_IN_HAND = 800  # of a process, over all its pages
LEAST_PAGES, MOST_PAGES = 2, 8  # of a run, in hand together, over all workers
PERMITS_A_PAGE = 8  # for so many calls at once one page more is in hand
BUSY_S = 5.0  # until a page is sent again that found no room in time
LONGEST_WAIT_S = 120.0  # for room, where the attempt has no end
AT_ONCE = 3  # portions of a page: one is claimed, one is written, one is stored
THREADS = 32  # of a process, for the portions of all its pages
_SIDE_BY_SIDE = SideBySide(THREADS)
_PACKED = TypeAdapter(list[RowModel])


def by_shard(works: Sequence[Work]) -> list[Work]:
    """Return works so that those whose links are stored together stand together."""
    return sorted(works, key=lambda work: shard_of(work.key))


def work_portions(take: Callable[[], Sequence[Work]], step: Callable[[Sequence[Work]], None]) -> None:
    """Do a step for each portion that is taken, a few at the same time, until one is empty.

    Raises the first error after the portions under way have ended; those behind it are not begun.
    """
    failed = threading.Event()

    def work_some(_: int) -> None:
        while not failed.is_set() and (portion := take()):
            try:
                step(portion)
            except BaseException:
                failed.set()
                raise

    _SIDE_BY_SIDE.map(work_some, range(AT_ONCE))


class Relay:
    """Sends the next page on once, as soon as few enough earlier pages are in hand, at the latest when this one is done.

    While it is entered, the end of another page in this process has it look again.
    """

    def __init__(self, app: App, flow: Flow, page: PageRow, *, sent: bool = False) -> None:
        self._app, self._page = app, page
        self._before = page.page + 1 - pages_at_once(app, flow)
        self.sent = sent or page.last
        self._over = False  # it is left: others look no more
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        with _RELAYS_LOCK:
            _RELAYS.append(self)
        return self

    def __exit__(self, *exc: object) -> None:
        with _RELAYS_LOCK:
            _RELAYS.remove(self)
        with self._lock:
            self._over = True

    def send_in_turn(self) -> None:
        """Send the next page if its turn has come."""
        with self._lock:
            if self.sent or self._over:
                return
            earlier = (
                self._app.tables.get(PageRow, self._page.run_id, f"{self._before:06d}") if self._before >= 0 else None
            )
            if earlier is None or earlier.fanned_out:
                self._send()

    def send(self) -> None:
        """Send the next page, if it was not sent."""
        with self._lock:
            if not self.sent:
                self._send()

    def _send(self) -> None:
        app, page = self._app, self._page
        app.queues.send(
            PageMessage(run_id=page.run_id, page=page.page + 1, link=page.next_link, first_sent_at=app.now())
        )
        self.sent = True


_RELAYS: list[Relay] = []  # of the pages in hand in this process
_RELAYS_LOCK = threading.Lock()


def send_those_in_turn() -> None:
    """Send the pages whose turn has come because one in this process is done.

    Where storage refuses, the page before each sends it itself, at its end.
    """
    with _RELAYS_LOCK:
        relays = list(_RELAYS)
    for relay in relays:
        with contextlib.suppress(StateError):
            relay.send_in_turn()


def pages_at_once(app: App, flow: Flow) -> int:
    """Return how many pages a run has in hand over all workers: enough to use the target's permits, and little more."""
    return min(MOST_PAGES, LEAST_PAGES + permits_of(app, flow) // PERMITS_A_PAGE)


def permits_of(app: App, flow: Flow) -> int:
    """Return how many calls at once the target allows, over all workers."""
    return app.settings.connection(flow.recipe.target.connection).concurrency


class Listed:
    """A page's rows as they were listed; packed while the page waits, they take a fifth of the memory."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = {row.key: row for row in rows}
        self._packed = "[]"

    def pack(self) -> None:
        """Make the rows small until they are asked for. One that could not be read stays as it is."""
        packed = [RowModel.of(row) for row in self._rows.values() if not row.problem]
        # Not pydantic's own JSON: it takes no half characters, which vendors' texts may hold.
        self._packed = json.dumps(_PACKED.dump_python(packed, mode="json"))
        self._rows = {key: row for key, row in self._rows.items() if row.problem}

    def by_key(self) -> dict[str, Row]:
        """Return the rows by their keys."""
        return self._rows | {each.key: each.row() for each in _PACKED.validate_python(json.loads(self._packed))}


class Room:
    """What keeps a process's memory flat: so many records are in hand together, and further pages wait in line."""

    def __init__(self, records: int = RECORDS_IN_HAND) -> None:
        self._records = self._free = records
        self._line: deque[object] = deque()
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def hold(self, records: int, pack: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Have so many records in hand; more than all that fit go alone, and none need no room.

        `pack` is called before a wait.

        Raises RateLimitedError `worker_busy` when there is no room within half of the attempt's time.
        """
        if not records:
            yield
            return
        wanted, me, came = min(records, self._records), object(), False
        wait_s = min(LONGEST_WAIT_S, attempt.current().left_s() / 2)
        with self._changed:
            self._line.append(me)
            try:
                if self._line[0] is not me or self._free < wanted:
                    pack()
                came = self._changed.wait_for(lambda: self._line[0] is me and self._free >= wanted, wait_s)
            finally:
                self._line.remove(me)
                self._free -= wanted if came else 0
                self._changed.notify_all()
        if not came:
            raise RateLimitedError(
                "This worker has enough records in hand; the page waits. If this lasts, let the app scale out.",
                code="worker_busy",
                retry_after_s=BUSY_S,
            )
        try:
            yield
        finally:
            with self._changed:
                self._free += wanted
                self._changed.notify_all()


ROOM = Room()
