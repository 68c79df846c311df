"""The bulk lane: the records of a page worked together inside its invocation, their rows stored shard by shard.

Claims, targets and links of one shard go in one transaction; where it is refused, each of its rows is stored by itself,
so that a record with its own trouble never touches its neighbours. What fails is sent again alone, by the caller.
"""

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from shared import attempt
from shared.errors import RateLimitedError, SyncError
from shared.state import claims
from shared.state.rows import IdentityRow, LinkRow, PageRow, RunKind, RunRow, TargetRow
from shared.state.storage import SideBySide
from shared.state.tables import RowError
from shared.state.transactions import MAX_ROWS, Action
from sync import links, writing
from sync.app import App
from sync.flow import Flow
from sync.work import Work

LEAST_PORTION = 125  # records that are claimed before the first of them is written …
LEAST_AGAIN = 32  # … of those that come again
CALLS_IN_A_ROW = 8  # … or so many as the target takes in so many turns: their rows then share transactions
REFUSALS = 4  # of a shard's claims, each without the row for which the one before was refused
_SIDE_BY_SIDE = SideBySide()

A = TypeVar("A")


def is_bulk(app: App, run: RunRow, page: PageRow) -> bool:
    """Tell whether a page is worked as a whole: of a backfill, and of a run that has grown beyond BULK_ABOVE."""
    if run.kind in (RunKind.IDS, RunKind.EVENTS):
        return False
    return run.kind is RunKind.BACKFILL or (page.page + 1) * len(page.keys) > app.settings.bulk_above


class Portions:
    """A page's works, dealt out for as long as there is time; what stays is to be sent on.

    A claim promises until when its create leaves. Works whose turn at the target did not come until then gave their
    claims up and come again; portions are then no larger than what was written of one in that time.
    """

    def __init__(self, flow: Flow, works: Sequence[Work], permits: int) -> None:
        self._flow, self._works = flow, deque(works)
        self._size = max(LEAST_PORTION, CALLS_IN_A_ROW * permits, flow.target.writes_together)
        self._lock = threading.Lock()

    @property
    def left(self) -> list[Work]:
        """Return the works that were not dealt out, or came back."""
        return list(self._works)

    def take(self) -> list[Work]:
        """Return the next portion; empty when there is none, or no time for it."""
        with self._lock:
            size = min(self._size, len(self._works)) if _has_time(self._flow) else 0
            return [self._works.popleft() for _ in range(size)]

    def put_back(self, works: Sequence[Work], written: int) -> None:
        """Take the works of a portion back that came too late, after so many others of it."""
        if not works:
            return
        found = links.find_links(self._flow, [work.key for work in works if work.linked_key])
        for work in works:
            link = found.get(work.key)
            if link is None or work.link is None or claims.content(link) == claims.content(work.link):
                work.link = link  # else it was worked meanwhile: its claim meets another row, and it is read again
            work.error, work.identity, work.unwritten = None, None, False
        with self._lock:
            self._works.extend(works)
            self._size = min(self._size, max(written, LEAST_AGAIN, self._flow.target.writes_together))


def came_too_late(work: Work) -> bool:
    """Tell whether a work's own write did not leave because our own permits left no time for it.

    Whose claim, reading or children came too late is half done: it goes on alone, under the same owner, from the start.
    """
    late = isinstance(work.error, RateLimitedError) and work.error.code in ("permits_busy", "no_time_left")
    return late and work.unwritten


def finish(flow: Flow, run: RunRow, works: Sequence[Work]) -> None:
    """Claim, write and link a portion of records; each has its own outcome or error afterwards."""
    writing.finish(flow, run, works, _book(flow, works))


def claim_ahead(flow: Flow, works: Sequence[Work]) -> None:
    """Load and claim the links of works whose records are still to be read.

    Whoever reads a record under its claim has the newest state in hand, and nobody writes an older one behind it.
    """
    writing.claim_ahead(flow, works, _book(flow, works))


def give_up_ahead(flow: Flow, works: Sequence[Work]) -> None:
    """Give the claims up that were taken ahead for works that write nothing; a doubt about an earlier create stays."""
    writing.give_up_ahead(works, _book(flow, works))


def _book(flow: Flow, works: Sequence[Work]) -> links.Book:
    return ShardBook(flow) if len(works) > 1 else links.Book(flow)


def _has_time(flow: Flow) -> bool:
    return attempt.current().left_s() > flow.limits.create_s


class ShardBook(links.Book):
    """Claims and links of many records, stored in a transaction per shard."""

    def __init__(self, flow: Flow) -> None:
        super().__init__(flow)
        self._taken: dict[str, claims.Taken[LinkRow]] = {}
        self._taken_values: dict[tuple[str, str], claims.Taken[IdentityRow]] = {}
        self._targets: list[tuple[LinkRow, TargetRow]] = []
        self._values: list[tuple[LinkRow, IdentityRow]] = []
        self._links: list[LinkRow] = []

    def claim_together(self, wanted: Sequence[links.Wanted]) -> None:
        plain = [
            each for each in wanted if each.link is None or each.link.claim is None or (each.link.etag and each.held)
        ]
        _map_shards(
            self._claim_shard, [(each, self._claimed(each)) for each in plain], lambda pair: pair[1].partition_key
        )
        values = {
            each.value.row_key: self._claimed_value(each, each.value)
            for each in wanted
            if each.row_key in self._taken and each.value is not None and not each.value.older_digest
        }
        _map_shards(self._claim_values, list(values.values()), lambda row: row.partition_key)

    def _claimed_value(self, wanted: links.Wanted, value: IdentityRow) -> IdentityRow:
        return value.model_copy(update={"claim": links.new_claim(self.flow, wanted.owner, creating=True)})

    def _claim_values(self, rows: list[IdentityRow]) -> None:
        try:
            stored = self.flow.tables.transact([("insert", row) for row in rows])
        except RowError:
            return  # each is then claimed by itself
        for row in stored:
            if isinstance(row, IdentityRow) and row.claim is not None:
                self._taken_values[row.row_key, row.claim.owner] = claims.Taken(row)

    def _claimed(self, wanted: links.Wanted) -> LinkRow:
        link = wanted.link or LinkRow(pair=self.flow.pair, side=self.flow.source_name, key=wanted.key)
        return link.model_copy(update={"claim": links.new_claim(self.flow, wanted.owner, creating=wanted.creating)})

    def _claim_shard(self, pairs: list[tuple[links.Wanted, LinkRow]]) -> None:
        left = list(pairs)
        for _ in range(REFUSALS):
            if not left:
                return
            try:
                rows = self.flow.tables.transact([("replace" if row.etag else "insert", row) for _, row in left])
            except RowError as exc:
                del left[exc.index]  # claimed by itself, which says whose claim it met; so are all after too many
                continue
            for (wanted, _), row in zip(left, rows, strict=True):
                if isinstance(row, LinkRow):
                    self._taken[wanted.row_key] = claims.Taken(row)
            return

    def claim(self, wanted: links.Wanted) -> claims.Taken[LinkRow]:
        return self._taken.get(wanted.row_key) or super().claim(wanted)

    def claim_value(self, blank: IdentityRow, owner: str) -> claims.Taken[IdentityRow]:
        return self._taken_values.get((blank.row_key, owner)) or super().claim_value(blank, owner)

    def store_value(self, link: LinkRow, row: IdentityRow) -> None:
        self._values.append((link, row))

    def release(self, rows: Sequence[LinkRow | IdentityRow]) -> None:
        def release(rows: list[LinkRow | IdentityRow]) -> None:
            try:
                self.flow.tables.transact([_released(row) for row in rows])
            except RowError:
                links.Book.release(self, rows)

        _map_shards(release, rows, lambda row: row.partition_key)

    def own_target(self, link: LinkRow, key: str) -> None:
        row = TargetRow(
            pair=self.flow.pair, side=self.flow.target_name, key=key, link_side=link.side, link_key=link.key
        )
        self._targets.append((link, row))

    def store(self, link: LinkRow) -> None:
        self._links.append(link)

    def settle_together(self) -> dict[str, SyncError]:
        errors: dict[str, SyncError] = {}
        targets, self._targets = self._targets, []
        values, self._values = self._values, []
        kept, self._links = self._links, []

        def own(pairs: list[tuple[LinkRow, TargetRow]]) -> None:
            try:
                self.flow.tables.transact([("insert", row) for _, row in pairs])
            except (RowError, ValueError):  # ValueError: one target twice
                for link, row in pairs:
                    _note(errors, link, partial(links.own_target, self.flow, link, row.key))

        def settle_values(pairs: list[tuple[LinkRow, IdentityRow]]) -> None:
            try:
                self.flow.tables.transact([("replace", row) for _, row in pairs])
            except RowError:
                for link, row in pairs:
                    _note(errors, link, partial(links.store, self.flow, row))

        def settle(rows: list[LinkRow]) -> None:
            try:
                stored = self.flow.tables.transact([("replace", row) for row in rows])
            except RowError:
                for row in rows:
                    _note(errors, row, partial(links.Book.store, self, row))
            else:
                self.stored.update({row.row_key: row for row in stored if isinstance(row, LinkRow)})

        _map_shards(own, targets, lambda pair: pair[1].partition_key)
        values = [(link, row) for link, row in values if link.row_key not in errors]
        _map_shards(settle_values, values, lambda pair: pair[1].partition_key)
        kept = [row for row in kept if row.row_key not in errors]  # no link to a target that is another's
        _map_shards(settle, kept, lambda row: row.partition_key)
        return errors


def _released(row: LinkRow | IdentityRow) -> tuple[Action, LinkRow | IdentityRow]:
    return ("replace", row.model_copy(update={"claim": None})) if links.is_linked(row) else ("delete", row)


def _note(errors: dict[str, SyncError], link: LinkRow, step: Callable[[], object]) -> None:
    try:
        step()
    except SyncError as exc:
        errors[link.row_key] = exc


def _map_shards(step: Callable[[list[A]], None], entries: Sequence[A], shard: Callable[[A], str]) -> None:
    """Do a step for the entries of each shard, at most a transaction's rows at a time, side by side."""
    shards: dict[str, list[A]] = defaultdict(list)
    for entry in entries:
        shards[shard(entry)].append(entry)
    pieces = [
        members[start : start + MAX_ROWS] for members in shards.values() for start in range(0, len(members), MAX_ROWS)
    ]
    _SIDE_BY_SIDE.map(step, pieces)
