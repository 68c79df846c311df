"""From a work to its result, or to a later attempt: the one place that turns errors into results."""

import dataclasses
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager

from shared.errors import AmbiguousWriteError, RateLimitedError, StateError, SyncError, TransientError
from shared.state.rows import Outcome, ResultRow, RunRow
from shared.state.tables import RowChangedError, RowExistsError, Tables
from shared.state.together import Together
from sync import links
from sync.flow import Flow
from sync.work import Work

LOG = logging.getLogger(__name__)

OUTAGE_STATUSES = frozenset({0, 429, 502, 503, 504})  # nobody answered for the vendor: waiting, not a failed attempt
FIRST_DELAY_S = 5.0
LONGEST_DELAY_S = 600.0
APART_S = 0.1  # from one transaction of single messages' results to the next
MOST_TOGETHER = 8  # a quarter of the messages in work (host.json)
STORE_S = 30.0  # after which a result that others should have stored is stored alone


@dataclasses.dataclass(frozen=True)
class Again:
    """A record that has to be worked later."""

    delay_s: float
    counted: bool  # a failed attempt, not only a wait
    code: str
    message: str
    outage_of: str = ""  # the connection that does not answer


def result_of(flow: Flow, run: RunRow, work: Work) -> ResultRow:
    """Build the result of a settled work."""
    if work.outcome is None:
        raise ValueError("the work is not settled")
    target = work.written or work.target
    key = target.key if target else links.target_key(flow, work.link) if work.link and work.link.other_key else ""
    made = [answer.created for answer in work.references.values() if answer.created]
    return ResultRow(
        run_id=run.run_id,
        page=work.page,
        key=work.event_id or work.key,
        record_key=work.key if work.event_id else "",
        outcome=work.outcome,
        reason=work.reason,
        message=work.message,
        warnings=[{"code": code, "text": text} for code, text in warnings_of(work)],
        fields=(work.decision.reasons if work.decision else {}) | work.notes,
        source_label=work.row.label if work.row else "",
        source_url=work.row.url if work.row else flow.source.url(flow.recipe.source.record, work.key),
        target_key=key,
        target_label=target.label if target else "",
        target_url=flow.target.url(flow.recipe.target.record, key) if key else "",
        created_references=list({entry["key"]: entry for entry in made}.values()),
        attempts=work.attempts,
        ended_at=flow.now(),
    )


def warnings_of(work: Work) -> list[tuple[str, str]]:
    """Return the warnings that count for what was done: those of fields that were written or would have been."""
    return [*_own_warnings(work), *work.child_warnings]


def _own_warnings(work: Work) -> list[tuple[str, str]]:
    if work.outcome in (Outcome.UNCHANGED, Outcome.SKIPPED) or work.mapped is None:
        return []
    found = [(warning.code, warning.text) for warning in work.mapped.warnings]
    lost = [("field_not_written", f"{name}: sent, but the answer does not show it.") for name in work.lost]
    return list(dict.fromkeys([*found, *lost]))


def again_of(flow: Flow, work: Work) -> Again | None:
    """Say whether an errored work is to be tried later; None where its error is final."""
    error = work.error
    match error:
        case RateLimitedError(code="claim_held"):
            return Again(_growing_wait_s(flow, work, 1.0, error.retry_after_s), False, error.code, error.message)
        case RateLimitedError():
            return Again(max(1.0, error.retry_after_s), False, error.code, error.message)
        case AmbiguousWriteError():
            down = error.connection if error.status in OUTAGE_STATUSES else ""
            return Again(flow.target.transaction_s + 1, True, error.code, error.message, down)
        case TransientError() if error.status in OUTAGE_STATUSES:
            return Again(
                _growing_wait_s(flow, work, FIRST_DELAY_S, LONGEST_DELAY_S),
                False,
                error.code,
                error.message,
                error.connection,
            )
        case TransientError():
            return Again(_growing_delay_s(work.attempts), True, error.code, error.message)
        case SyncError():
            return None
        case _:
            text = f"Concord hit an error of its own ({type(error).__name__}); its log says more."
            return Again(_growing_delay_s(work.attempts), True, "internal_error", text)


def is_create_in_doubt(work: Work) -> bool:
    """Tell whether a record's own create is in doubt: it goes on as it was sent, whatever becomes of it meanwhile.

    Its answer was lost just now, or before, and then something failed on the way to its look-up. That of a record which it
    refers to is lost before its own claim promises anything.
    """
    claim = work.link.claim if work.link is not None and not work.linked_key else None
    if claim is None or claim.create_by is None or work.failed_child:
        return False
    came_along = work.attempts > 1 and work.item.row is not None
    return came_along or isinstance(work.error, AmbiguousWriteError)


def _growing_delay_s(attempts: int) -> float:
    return float(min(LONGEST_DELAY_S, FIRST_DELAY_S * 3 ** (attempts - 1)))


def _growing_wait_s(flow: Flow, work: Work, first_s: float, most_s: float) -> float:
    """Wait half as long as the record has waited already: what is short ends soon, what is long is not hammered."""
    waited_s = (flow.now() - work.first_sent_at).total_seconds() if work.first_sent_at else 0.0
    return min(most_s, max(first_s, waited_s / 2))


def fail(work: Work, code: str, message: str) -> None:
    """Settle a work as failed with its last reason."""
    work.error = None
    work.end(Outcome.FAILED, code, f"{work.failed_child}: {message}" if work.failed_child else message)


def settle_error(flow: Flow, work: Work) -> Again | None:
    """Turn a work's error into its failed outcome, or say when to try again."""
    if work.error is None:
        return None
    again = again_of(flow, work)
    if again is None:
        error = work.error
        fail(work, error.code if isinstance(error, SyncError) else "internal_error", str(error))
        return None
    waited = (
        work.first_sent_at is not None and (flow.now() - work.first_sent_at).total_seconds() > flow.limits.max_wait_s
    )
    if waited or (again.counted and work.attempts >= flow.limits.max_attempts):
        fail(work, again.code, again.message)
        return None
    return again


def tally(counts: Counter[str], result: ResultRow) -> None:
    """Count a result by its outcome, and a skipped one by its reason too."""
    counts[result.outcome.value] += 1
    if result.reason and result.outcome is Outcome.SKIPPED:
        counts[f"skipped:{result.reason}"] += 1


def store_results(tables: Tables, results: Sequence[ResultRow]) -> None:
    """Insert results, together where there are several; one that is there stays, unless it was only held."""
    for rows in _partitions(results):
        _store_together(tables, rows)


def _store_together(tables: Tables, results: Sequence[ResultRow]) -> None:
    if len(results) > 1:
        try:
            tables.transact([("insert", result) for result in results])
        except RowExistsError:
            LOG.info("some of these results are there already")
        else:
            return
    for result in results:
        _store_one(tables, result)


def _store_one(tables: Tables, result: ResultRow) -> None:
    try:
        tables.insert(result)
    except RowExistsError as exc:
        stored = exc.stored
        if isinstance(stored, ResultRow) and stored.outcome is Outcome.HELD and result.outcome is not Outcome.HELD:
            try:
                tables.replace(result.model_copy(update={"etag": stored.etag}))
            except RowChangedError:
                return  # another copy of the message has replaced it


class Results:
    """Where single messages store their results: those that end within a moment share a transaction.

    A record costs six storage operations by itself; its result is the one that it has in a partition with its neighbours.
    """

    def __init__(self, tables: Tables, apart_s: float = APART_S) -> None:
        self._tables = tables
        self._together: Together[ResultRow] = Together(self._store_all, apart_s=apart_s, most=MOST_TOGETHER)

    def coming(self) -> AbstractContextManager[None]:
        """Announce a message that is going to have a result: one that is alone waits for nobody."""
        return self._together.coming()

    def store(self, results: Sequence[ResultRow]) -> None:
        """Store a message's results, one of them together with those of other messages.

        Raises what storing it alone raises.
        """
        if len(results) == 1:
            try:
                self._together.send(results[0], STORE_S)
            except SyncError as exc:
                LOG.info("a result is stored alone", extra={"code": exc.code, "problem": exc.message})
            else:
                return
        store_results(self._tables, results)

    def _store_all(self, results: Sequence[ResultRow], _: float) -> None:
        """Insert results as they are. Raises StateError, after which each caller stores its own, in a thread of its own."""
        try:
            for rows in _partitions(results):
                if len(rows) > 1:
                    self._tables.transact([("insert", row) for row in rows])
                else:
                    self._tables.insert(rows[0])
        except Exception as exc:
            raise StateError(f"Results could not be stored together: {type(exc).__name__}") from exc


def _partitions(results: Sequence[ResultRow]) -> Iterable[list[ResultRow]]:
    partitions: dict[str, list[ResultRow]] = {}
    for result in results:
        partitions.setdefault(result.partition_key, []).append(result)
    return partitions.values()
