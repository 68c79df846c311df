"""`python -m benchmarks.growth`: what the storage emulator itself takes for our kinds of calls while its tables grow.

One caller, links and results as a run stores them, nothing beside. A run over many records is no more linear than this.
"""

import json
import os
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from itertools import count, islice
from statistics import median
from typing import TypeVar

from sandbox.azurite import Azurite
from shared.state.rows import LinkRow, Outcome, ResultRow
from shared.state.storage import connect_tables
from shared.state.tables import Tables

SIZES = (1_000, 10_000, 100_000)
PAGE, SHARE = 100, 13  # records of a page, and those of them in one shard
TIMES = 20
RUN = "case_to_incident-20260312T093000000-0000"

T = TypeVar("T")


def main() -> int:
    """Fill the tables in steps, and print what a call takes at each, in ms."""
    rows = []
    with Azurite() as storage, connect_tables(storage.connection_string) as service:
        growth = Growth(Tables(service))
        for size in SIZES:
            growth.fill(size)
            rows.append({"records": size} | growth.measure())
            print(json.dumps(rows[-1]), flush=True)
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}")
    return 0


class Growth:
    """Tables that are filled, and what their calls take."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._links = map(_link, count())
        self._shard = _link(0).partition_key
        self._pages = 0
        self._times: dict[str, list[float]] = defaultdict(list)

    def fill(self, records: int) -> None:
        """Store so many links and results in all, page by page."""
        while self._pages * PAGE < records:
            self._store_page(list(islice(self._links, PAGE)))

    def measure(self) -> dict[str, float]:
        """Return the medians of some calls of each kind, in ms."""
        self._times.clear()
        mine = (row for row in self._links if row.partition_key == self._shard)
        for _ in range(TIMES):
            rows = list(islice(mine, SHARE))
            claimed = self._timed("claims", partial(self._tables.transact, [("insert", row) for row in rows]))
            self._timed("links", partial(self._tables.transact, [("replace", row) for row in claimed]))
            self._timed("one link read", partial(self._tables.get, LinkRow, self._shard, rows[0].row_key))
            results = self._new_results()
            self._timed("results", partial(self._tables.transact, [("insert", row) for row in results]))
            self._timed("results read", partial(self._read, results[0].partition_key))
        return {name: round(median(times), 1) for name, times in self._times.items()}

    def _store_page(self, links: list[LinkRow]) -> None:
        shards: dict[str, list[LinkRow]] = defaultdict(list)
        for row in links:
            shards[row.partition_key].append(row)
        for rows in shards.values():
            self._tables.transact([("insert", row) for row in rows])
        self._tables.transact([("insert", row) for row in self._new_results()])

    def _read(self, partition_key: str) -> list[ResultRow]:
        return list(self._tables.query(ResultRow, partition_key))

    def _new_results(self) -> list[ResultRow]:
        self._pages += 1
        at = datetime(2026, 3, 12, tzinfo=UTC)
        return [
            ResultRow(run_id=RUN, page=self._pages, key=f"{number:032x}", outcome=Outcome.CREATED, ended_at=at)
            for number in range(PAGE)
        ]

    def _timed(self, name: str, call: Callable[[], T]) -> T:
        begun_s = time.perf_counter()
        answer = call()
        self._times[name].append(1000 * (time.perf_counter() - begun_s))
        return answer


def _link(number: int) -> LinkRow:
    pair = "dynamics365.incident+servicenow.incident"
    return LinkRow(pair=pair, side="dynamics365.incident", key=f"5b000000-0000-0000-0000-{number:012x}")


if __name__ == "__main__":
    sys.exit(main())
