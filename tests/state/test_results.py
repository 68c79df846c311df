"""Results of single messages are stored together, and none spoils the others."""

import threading
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from shared.errors import SyncError
from shared.state.rows import Outcome, ResultRow
from shared.state.tables import Tables
from sync.outcomes import Results, store_results
from tests.state.edge import Edge

NOW = datetime(2026, 3, 10, 9, 0, tzinfo=UTC)
RUN = "case_to_incident-20260310T090000-aaaa"


def build_result(key: str, page: int = 0, outcome: Outcome = Outcome.CREATED, message: str = "") -> ResultRow:
    return ResultRow(run_id=RUN, page=page, key=key, outcome=outcome, message=message, ended_at=NOW)


def stored(tables: Tables) -> dict[str, Outcome]:
    return {result.key: result.outcome for result in tables.scan(ResultRow)}


def store_at_once(tables: Tables, results: Sequence[ResultRow]) -> dict[str, Exception]:
    """Let each result be stored by a thread of its own: the first goes alone, the others when all of them are there."""
    together, errors, gate = Results(tables, apart_s=600.0), {}, threading.Barrier(len(results))

    def store(result: ResultRow) -> None:
        with together.coming():
            gate.wait()
            try:
                together.store([result])
            except SyncError as exc:
                errors[result.key] = exc

    threads = [threading.Thread(target=store, args=(result,)) for result in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_results_of_many_messages_share_transactions(tables: Tables) -> None:
    """One operation is less than one a record, and each result is there."""
    tables.create_all([ResultRow])
    before = tables.operations.total()

    errors = store_at_once(tables, [build_result(f"C{number}", page=number % 2) for number in range(20)])

    assert not errors
    assert stored(tables) == {f"C{number}": Outcome.CREATED for number in range(20)}
    assert tables.operations.total() - before <= 10


def test_result_that_is_there_already_stays_and_spoils_nothing(tables: Tables) -> None:
    """A repeat of a message changes nothing of what was noted; what a guard held is replaced once."""
    store_results(tables, [build_result("C1", outcome=Outcome.FAILED), build_result("C2", outcome=Outcome.HELD)])

    errors = store_at_once(tables, [build_result(key) for key in ("C1", "C2", "C3")])

    assert not errors
    assert stored(tables) == {"C1": Outcome.FAILED, "C2": Outcome.CREATED, "C3": Outcome.CREATED}


def test_result_that_cannot_be_stored_spoils_nothing(tables: Tables) -> None:
    """The others are stored; only its own message is told, and comes again."""
    bad = build_result("bad").model_copy(update={"attempts": 2**40})

    errors = store_at_once(tables, [build_result("C1"), bad, build_result("C2")])

    assert list(errors) == ["bad"]
    assert stored(tables) == {"C1": Outcome.CREATED, "C2": Outcome.CREATED}


def test_lost_answer_leaves_each_result_once(tables: Tables, edge: Edge) -> None:
    """The transaction was stored, and nobody was told: all are read back, and none is missing."""
    tables.create_all([ResultRow])
    edge.faults = [("POST .*batch", "lose")] * 3

    errors = store_at_once(tables, [build_result(f"C{number}") for number in range(5)])

    assert not errors
    assert stored(tables) == {f"C{number}": Outcome.CREATED for number in range(5)}


def test_two_copies_of_a_result_disturb_nobody(tables: Tables) -> None:
    """A message may be in the queue twice: its second result is a repeat, and no fault of the others."""
    errors = store_at_once(tables, [build_result(key) for key in ("C1", "C2", "C2", "C3", "C3")])

    assert not errors
    assert stored(tables) == {f"C{number}": Outcome.CREATED for number in (1, 2, 3)}


@pytest.mark.parametrize("fault", ["break", "403", "500"])
def test_failed_transaction_leaves_each_to_itself(tables: Tables, edge: Edge, fault: str) -> None:
    """Whatever became of what they sent together, each stores its own."""
    tables.create_all([ResultRow])
    edge.faults = [("POST .*batch", fault)]

    errors = store_at_once(tables, [build_result(f"C{number}") for number in range(6)])

    assert not errors
    assert stored(tables) == {f"C{number}": Outcome.CREATED for number in range(6)}
