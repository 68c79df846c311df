"""What is old goes: runs, their results, and days of events, each after its own time."""

from datetime import timedelta

import pytest

from shared.state.rows import ResultRow, RunKind, RunRow
from sync import retention
from tests.flows.world import World, store_run


def _results_of(world: World, run: RunRow) -> int:
    return sum(1 for _ in world.view.scan(ResultRow, f"{run.run_id}!", f"{run.run_id}~"))


def test_results_of_old_events_are_deleted(world: World) -> None:
    """A day of events goes with its results, which no manifest names."""
    old = store_run(world, timedelta(days=31), "events", RunKind.EVENTS)

    retention.purge(world.app)

    assert world.runs() == []
    assert _results_of(world, old) == 0


def test_runs_that_are_still_kept_do_not_hide_older_ones(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the two retentions may lie more runs than one day deletes: the older ones go all the same."""
    monkeypatch.setattr(retention, "MOST_RUNS", 2)
    kept = [store_run(world, timedelta(days=40 + n), f"aa0{n}") for n in range(4)]
    old = store_run(world, timedelta(days=100), "0ld0")

    retention.purge(world.app)

    assert {run.run_id for run in world.runs()} == {run.run_id for run in kept}
    assert _results_of(world, old) == 0
