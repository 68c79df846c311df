"""Children of a record: comments both ways, each once, between two ServiceNow instances."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.twins import TwinWorld, new_twin_world
from tests.flows.world import Stage


@pytest.fixture
def twins(stage: Stage, tmp_path: Path, prefix: str) -> Iterator[TwinWorld]:
    """Return a world of this test's own."""
    with new_twin_world(stage, tmp_path / "recipes", prefix) as made:
        yield made


def test_comments_travel_both_ways_once(twins: TwinWorld) -> None:
    """Each comment and each work note arrives once, in its own journal, and what arrived is not sent back."""
    sys_id = twins.incident()
    first = twins.write_entry(twins.servicenow, sys_id, "Hello")
    note = twins.write_entry(twins.servicenow, sys_id, "Only for us", "work_notes")

    twins.both_ways()
    reply = twins.write_entry(twins.vendor, twins.twin(sys_id)["sys_id"], "We look into it", by="vic")
    twins.both_ways()

    ours = [("comments", "Hello"), ("work_notes", "Only for us"), ("comments", f"[vic #{reply}] We look into it")]
    theirs = [
        ("comments", f"[ada #{first}] Hello"),
        ("work_notes", f"[ada #{note}] Only for us"),
        ("comments", "We look into it"),
    ]
    assert twins.entries(twins.servicenow, sys_id) == ours
    assert twins.entries(twins.vendor, twins.twin(sys_id)["sys_id"]) == theirs
    assert all(link.other_key and link.claim is None for link in twins.child_links())
