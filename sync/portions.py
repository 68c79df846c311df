"""A page's records worked in portions, a few side by side: while some are written, others are claimed or stored.

So the target always has as many calls under way as it allows, and no phase of one portion waits for another's.
"""

import threading
from collections.abc import Callable, Iterator, Sequence

from shared.state.rows import PageMessage, PageRow, shard_of
from shared.state.storage import SideBySide
from sync.app import App
from sync.flow import Flow
from sync.work import Work

RECORDS_IN_HAND = 500  # of a run, over its pages: some 40 kB each, all of which one worker may have to hold
LEAST_PAGES, MOST_PAGES = 2, 8  # of a run, in hand together
AT_ONCE = 3  # portions of a page: one is claimed, one is written, one is stored
THREADS = 32  # of a process, for the portions of all its pages
_SIDE_BY_SIDE = SideBySide(THREADS)


def by_shard(works: Sequence[Work]) -> list[Work]:
    """Return works so that those whose links are stored together stand together."""
    return sorted(works, key=lambda work: shard_of(work.key))


def work_portions(portions: Iterator[Sequence[Work]], step: Callable[[Sequence[Work]], None]) -> int:
    """Do a step for each portion, a few at the same time; return how many works were in them.

    Raises the first error after the portions under way have ended; those behind it are not begun.
    """
    lock, failed, worked = threading.Lock(), threading.Event(), 0

    def take() -> Sequence[Work]:
        nonlocal worked
        with lock:
            portion = () if failed.is_set() else next(portions, ())
            worked += len(portion)
            return portion

    def work_some(_: int) -> None:
        while portion := take():
            try:
                step(portion)
            except BaseException:
                failed.set()
                raise

    _SIDE_BY_SIDE.map(work_some, range(AT_ONCE))
    return worked


def send_next(app: App, page: PageRow) -> None:
    """Have the page behind a page listed, by whichever worker is free."""
    app.queues.send(PageMessage(run_id=page.run_id, page=page.page + 1, link=page.next_link, first_sent_at=app.now()))


class Relay:
    """Sends the next page on once, as soon as few enough earlier pages are in hand, at the latest when this one is done."""

    def __init__(self, app: App, flow: Flow, page: PageRow, *, sent: bool = False) -> None:
        self._app, self._page = app, page
        self._before = page.page + 1 - pages_at_once(app, flow, len(page.keys))
        self._sent = sent or page.last
        self._lock = threading.Lock()

    def send_in_turn(self) -> None:
        """Send the next page if its turn has come."""
        with self._lock:
            if self._sent:
                return
            earlier = (
                self._app.tables.get(PageRow, self._page.run_id, f"{self._before:06d}") if self._before >= 0 else None
            )
            if earlier is None or earlier.fanned_out:
                self._send()

    def send(self) -> None:
        """Send the next page, if it was not sent."""
        with self._lock:
            if not self._sent:
                self._send()

    def _send(self) -> None:
        send_next(self._app, self._page)
        self._sent = True


def pages_at_once(app: App, flow: Flow, records: int) -> int:
    """Return how many pages of so many records a run has in hand: enough to use the target's permits, and little more."""
    permits = app.settings.connection(flow.recipe.target.connection).concurrency
    wanted = max(LEAST_PAGES, min(MOST_PAGES, permits // 8))
    return max(LEAST_PAGES, min(wanted, RECORDS_IN_HAND // max(1, records)))
