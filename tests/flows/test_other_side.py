"""A pair that the recipe of the other direction has begun to link: it is neither made again from this side, nor left out."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.state.rows import LinkRow, Outcome, ResultRow, RunRow
from tests.flows.twins import BACK, OUT, TwinWorld, new_twin_world
from tests.flows.world import LEASE_S, Stage

CREATING = (
    "write: update\nfields:\n",
    "match: [correlation_id]\nfields:\n  correlation_id: {from: sys_id, write: on_create}\n",
)


@pytest.fixture(params=["update", "upsert"])
def twins(stage: Stage, tmp_path: Path, prefix: str, request: pytest.FixtureRequest) -> Iterator[TwinWorld]:
    """Return a world of two instances in which a first pair is linked; the way back updates alone, or creates as well."""
    with new_twin_world(stage, tmp_path / "recipes", prefix) as made:
        if request.param == "upsert":
            made.recipe = BACK
            made.change_recipe(*CREATING)
            made.recipe = OUT
        made.incident()
        made.sync_recipe(OUT)
        yield made


def _die_before_the_link(twins: TwinWorld) -> str:
    """Let the message of a new incident die when its twin is noted as made, and is not linked; return the incident."""
    ours = twins.incident(short_description="Scanner jams")
    twins.advance(60)
    twins.start(f"ids={ours}", mail_to=())
    twins.wire.kill_on("storage POST targets", after=True)
    twins.pump.lease_left_s = LEASE_S - 10
    twins.pump.run(until=lambda: twins.pump.kills > 0)
    assert [link.key for link in twins.view.scan(LinkRow) if not link.other_key] == [ours]
    return ours


def _drop_items(twins: TwinWorld) -> None:
    twins.pump.waiting = [each for each in twins.pump.waiting if each.queue != "items"]


def _of_twin(twins: TwinWorld, run: RunRow, ours: str) -> ResultRow:
    return twins.results(run)[twins.twin(ours)["sys_id"]]


def _counts(twins: TwinWorld) -> tuple[int, int]:
    return len(twins.servicenow.rows("incident")), len(twins.vendor.rows("incident"))


def test_a_pair_whose_message_comes_again_is_waited_for(twins: TwinWorld) -> None:
    """While the other side's claim holds, its message is at work, or comes again."""
    ours = _die_before_the_link(twins)

    back = twins.sync_recipe(BACK)

    assert _of_twin(twins, back, ours).outcome is Outcome.UNCHANGED
    assert _counts(twins) == (2, 2)


def test_a_pair_whose_message_is_gone_is_left_to_the_other_side(twins: TwinWorld) -> None:
    """The way back fails until the recipe that has begun goes on; then the record is taken along and in step."""
    ours = _die_before_the_link(twins)
    _drop_items(twins)
    twins.advance(LEASE_S + 1)

    failed = twins.sync_recipe(BACK)
    between = _counts(twins)
    out = twins.sync_recipe(OUT)
    twins.advance(60)
    twins.vendor.update("incident", twins.twin(ours)["sys_id"], short_description="Mended by the vendor")
    back = twins.sync_recipe(BACK)

    result = _of_twin(twins, failed, ours)
    assert (result.outcome, result.reason, between) == (Outcome.FAILED, "other_side_unfinished", (2, 2))
    assert twins.results(out)[ours].outcome is Outcome.CREATED
    assert _of_twin(twins, back, ours).outcome is Outcome.UPDATED
    assert twins.servicenow.rows("incident", sys_id=ours)[0]["short_description"] == "Mended by the vendor"
    assert _counts(twins) == (2, 2)


def test_an_event_leaves_the_other_sides_claim_as_it_is(twins: TwinWorld) -> None:
    """It claims before it reads, and gives back what it took: the doubt stays, and the other side goes on from there."""
    ours = _die_before_the_link(twins)
    _drop_items(twins)
    twins.advance(LEASE_S + 1)

    twins.send_event(BACK, "servicenow_vendor.incident", twins.twin(ours)["sys_id"], "changed")
    twins.pump.run(for_s=1)
    run = twins.start(f"ids={ours}", mail_to=())
    twins.pump.run(for_s=5)

    assert [each.reason for each in twins.event_results(BACK)] == ["other_side_unfinished"]
    assert twins.results(run)[ours].outcome is Outcome.CREATED
    assert _counts(twins) == (2, 2)


def test_an_event_leaves_the_other_sides_claim_on_what_it_adopts(twins: TwinWorld) -> None:
    """Nothing is in doubt there; given up by this side it would let the next change be left out, or made a third record."""
    ours = twins.incident(short_description="Scanner jams")
    theirs = twins.vendor.insert("incident", correlation_id=ours, short_description="To be adopted")
    twins.advance(60)
    twins.start(f"ids={ours}", mail_to=())
    twins.wire.kill_on("storage POST targets", after=True)
    twins.pump.lease_left_s = LEASE_S - 10
    twins.pump.run(until=lambda: twins.pump.kills > 0)
    _drop_items(twins)
    twins.advance(LEASE_S + 1)

    for event in ("first", "second"):
        twins.send_event(BACK, "servicenow_vendor.incident", theirs, event)
        twins.pump.run(for_s=1)

    assert [each.reason for each in twins.event_results(BACK)] == ["other_side_unfinished"] * 2
    assert [link.key for link in twins.view.scan(LinkRow) if not link.other_key] == [ours]
    assert _counts(twins) == (2, 2)


def test_a_linked_pair_is_found_from_the_other_side(twins: TwinWorld) -> None:
    """One link serves both directions: nothing is made, and the vendor's change comes back."""
    ours = twins.incident(short_description="Scanner jams")
    twins.sync_recipe(OUT)
    twins.advance(60)
    twins.vendor.update("incident", twins.twin(ours)["sys_id"], short_description="Mended by the vendor")

    back = twins.sync_recipe(BACK)

    assert _of_twin(twins, back, ours).outcome is Outcome.UPDATED
    assert twins.servicenow.rows("incident", sys_id=ours)[0]["short_description"] == "Mended by the vendor"
    assert _counts(twins) == (2, 2)
