"""What a worker remembers of a run: one read for many records, and never older than it says."""

from datetime import UTC, datetime

import pytest

from shared.errors import StateError
from shared.state.rows import RunKind, RunRow, RunState, new_run_id
from sync.app import RUN_MEMORY_S, RunMemory

NOW = datetime(2026, 3, 12, 9, 30, tzinfo=UTC)


def _run(state: RunState) -> RunRow:
    return RunRow(
        run_id=new_run_id("case_to_incident", NOW, "0000"),
        recipe="case_to_incident",
        kind=RunKind.WINDOW,
        state=state,
        created_at=NOW,
        moved_at=NOW,
    )


class Clock:
    """A clock that a test sets."""

    s = 100.0

    def __call__(self) -> float:
        return self.s


def test_one_reads_anew_while_the_others_go_by_what_is_known():
    """A second look during the read costs nothing; what was read counts for all from then on."""
    clock, reads = Clock(), []
    memory = RunMemory(clock)
    memory.get("run", lambda _: _run(RunState.RUNNING))
    clock.s += RUN_MEMORY_S

    def read(run_id: str) -> RunRow:
        reads.append(run_id)
        assert memory.get(run_id, read).state is RunState.RUNNING  # another thread's look
        return _run(RunState.CANCELLED)

    assert memory.get("run", read).state is RunState.CANCELLED
    assert memory.get("run", read).state is RunState.CANCELLED
    assert reads == ["run"]


def test_nobody_goes_by_what_is_too_old():
    """Where the one who reads anew does not come back, each reads for himself in the end."""
    clock = Clock()
    memory = RunMemory(clock)
    memory.get("run", lambda _: _run(RunState.RUNNING))
    clock.s += RUN_MEMORY_S

    def hang(_: str) -> RunRow:
        clock.s += RUN_MEMORY_S
        assert memory.get("run", lambda _: _run(RunState.CANCELLED)).state is RunState.CANCELLED
        raise StateError("storage did not answer")

    with pytest.raises(StateError):
        memory.get("run", hang)

    assert memory.get("run", hang).state is RunState.CANCELLED


def test_run_that_is_unknown_is_read_by_all_who_ask():
    """Nothing is known of it yet that others could go by."""
    memory, reads = RunMemory(Clock()), []

    def read(run_id: str) -> RunRow:
        reads.append(run_id)
        if len(reads) == 1:
            memory.get(run_id, read)
        return _run(RunState.RUNNING)

    assert memory.get("run", read).state is RunState.RUNNING
    assert len(reads) == 2
