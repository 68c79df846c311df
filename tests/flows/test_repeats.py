"""A message that comes again after its work was done says what was done, and does nothing."""

from shared.state.rows import Outcome, RunState
from tests.flows.world import World


def test_a_closed_case_whose_result_was_not_stored_is_still_updated(world: World) -> None:
    """The note was written and the link knows it; the process ended before the result: the repeat says `updated`."""
    case = world.add_case("Printer on fire")
    world.sync()
    world.advance(60)
    world.dynamics.update("incident", case, statecode=1, statuscode=5)
    world.advance(60)
    world.wire.kill_on("storage POST results", after=False)

    run = world.sync("today")

    assert world.pump.kills == 1
    assert {key: row.outcome for key, row in world.results(run).items()} == {case: Outcome.UPDATED}
    assert (run.counts, run.state) == ({"updated": 1}, RunState.COMPLETED)
    assert len(world.servicenow.records.journal(world.incident_of(case), "work_notes")) == 1
