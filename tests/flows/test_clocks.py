"""Workers on machines whose clocks differ: what they compare with each other is told in one time."""

from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

import pytest

from shared.state import storage
from shared.state.rows import RunRow
from sync import app as product
from sync.app import build_app
from tests.flows.world import World

MACHINE_IS_FAST_BY = timedelta(hours=6)


class Fast(datetime):
    """The clock of a machine that is hours ahead."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Any:
        return datetime.now(tz) + MACHINE_IS_FAST_BY


def test_worker_tells_the_time_by_storage(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's own clock may be wrong: a claim of another, or a lease, is not over because of that."""
    monkeypatch.setattr(storage, "datetime", Fast)
    monkeypatch.setattr(product, "datetime", Fast)
    app = build_app(world.settings, world._folder)

    list(app.tables.query(RunRow, world.recipe, limit=1))

    assert abs(app.now() - datetime.now(UTC)) < MACHINE_IS_FAST_BY / 2
