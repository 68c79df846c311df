"""A page's records worked in portions, a few side by side: while some are written, others are claimed or stored.

So the target always has as many calls under way as it allows, and no phase of one portion waits for another's.
"""

import threading
from collections.abc import Callable, Iterator, Sequence

from shared.state.rows import shard_of
from shared.state.storage import SideBySide
from sync.work import Work

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
