"""When a record that could not be worked is tried again."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from shared.errors import RateLimitedError
from shared.state.messages import ItemModel
from sync.outcomes import again_of
from sync.work import Work

NOW = datetime(2026, 3, 10, 9, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("waited_s", "delay_s"), [(0, 1), (3, 1.5), (20, 10), (300, 30)], ids=["at once", "soon", "later", "at the most"]
)
def test_claim_of_another_message_is_looked_at_again_soon(waited_s: float, delay_s: float) -> None:
    """A claim may last ten minutes and is mostly over in a second: the wait grows with what was waited already."""
    held = RateLimitedError("held", code="claim_held", retry_after_s=30.0)
    work = Work(ItemModel(key="k"), error=held, first_sent_at=NOW - timedelta(seconds=waited_s))

    again = again_of(SimpleNamespace(now=lambda: NOW), work)

    assert again is not None
    assert (again.delay_s, again.counted, again.code) == (delay_s, False, "claim_held")
