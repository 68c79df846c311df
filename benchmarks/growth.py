"""`python -m benchmarks.growth`: what storage itself takes for our kinds of calls while its tables grow.

One caller, links and results as a run stores them, nothing beside. A run over many records is no more linear than this.
With --account the tables are those of the account in AzureWebJobsStorage, under names of their own that are deleted at the
end: what Azure takes is to be known before much depends on it.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from itertools import count, islice
from statistics import median
from typing import TypeVar

from sandbox.azurite import Azurite
from shared.state.rows import LinkRow, Outcome, ResultRow
from shared.state.storage import connect_tables
from shared.state.tables import Tables

PAGE, SHARE = 100, 13  # records of a page, and those of them in one shard
TIMES = 20
ACCOUNT = "AzureWebJobsStorage"
RUN = "case_to_incident-20260312T093000000-0000"

T = TypeVar("T")


def main() -> int:
    """Fill the tables in steps, and print what a call takes at each, in ms."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--account", action="store_true", help="measure the account in AzureWebJobsStorage, not Azurite"
    )
    parser.add_argument("--sizes", default="1000,10000,100000", help="records in the tables")
    options = parser.parse_args()
    rows = []
    with _account() if options.account else _emulator() as tables:
        growth = Growth(tables)
        for size in map(int, options.sizes.split(",")):
            growth.fill(size)
            rows.append({"records": size} | growth.measure())
            print(json.dumps(rows[-1]), flush=True)
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}")
    return 0


@contextmanager
def _emulator() -> Iterator[Tables]:
    with Azurite() as storage, connect_tables(storage.connection_string) as service:
        yield Tables(service)


@contextmanager
def _account() -> Iterator[Tables]:
    prefix = f"growth{time.time_ns():x}"
    with connect_tables(os.environ.get(ACCOUNT, "")) as service:  # which says what to do where there is none
        try:
            yield Tables(service, prefix)
        finally:
            for model in (LinkRow, ResultRow):
                service.delete_table(prefix + model.TABLE)


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
        there = [row.row_key for row in self._tables.query(LinkRow, self._shard, select=("side", "key", "parent"))]
        for number in range(TIMES):
            apart = max(1, len(there) // SHARE)
            wanted = [(self._shard, key) for key in there[number % apart :: apart][:SHARE]]
            self._timed("links of a page read", partial(self._tables.get_many, LinkRow, wanted))
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
