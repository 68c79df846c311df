"""Half an hour without a vendor: growing waits, few calls, a page that says who is down since when, and then the work."""

import contextlib
import json
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import azure.functions as func
import pytest

import function_app
from sandbox.simulator import FaultKind
from shared.clients.breaker import LONGEST_REST_S, Breaker
from shared.errors import RateLimitedError
from shared.state.rows import RunState
from tests.clients.connections import Permits
from tests.flows.world import World

CASES = 12
CALLS_A_MINUTE = 6  # that a vendor which is down may see, of all records together


class PausingPermits(Permits):
    """Refuses calls while a connection rests, on the world's clock, in the words of the permits that workers share."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world, self._until = world, world.now()

    @contextlib.contextmanager
    def hold(self, *, ahead: bool = False) -> Iterator[None]:
        left_s = (self._until - self._world.now()).total_seconds()
        if left_s > 0:
            raise RateLimitedError("Calls rest.", code="connection_paused", retry_after_s=left_s)
        with super().hold(ahead=ahead):
            yield

    def pause(self, seconds: float) -> None:
        super().pause(seconds)
        self._until = max(self._until, self._world.now() + timedelta(seconds=seconds))


@pytest.fixture
def resting(world: World) -> World:
    """Let connections rest on the world's clock."""
    for system in world.systems.values():
        http: Any = system._http  # type: ignore[attr-defined]  # every client has one
        http._permits = PausingPermits(world)
        http._breaker = Breaker(http._permits, lambda: world.now().timestamp())
    return world


def test_servicenow_down_for_half_an_hour(resting: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records wait ever longer on their first delivery; the vendor sees a few probes a minute; then all goes through.

    The outage begins when the records are prepared, so that what it meets first are creates.
    """
    world = resting
    monkeypatch.setattr(function_app, "_build_app", lambda: world.app)
    cases = [world.add_case() for _ in range(CASES)]
    seen: dict[str, list[datetime]] = defaultdict(list)
    counts: set[int] = set()

    def before(delivery: Any) -> None:
        if delivery.queue == "items":
            counts.add(delivery.count)
            key = next(case for case in cases if case in delivery.body)
            seen[key].append(world.now())

    run = world.start()
    world.pump.run(until=lambda: any(each.queue == "items" for each in world.pump.waiting))
    world.pump.before, down_at = before, world.now()
    world.servicenow.journal.clear()
    fault = world.servicenow.add_fault(FaultKind.STATUS, status=503, path="/table/", times=0)
    world.tick_for(30)
    page = show(run.run_id)
    calls = len(world.servicenow.requests("", "/table/"))
    world.servicenow.faults.clear()
    world.tick_for(25)

    assert (calls, counts) == (fault.hit, {1})
    assert calls <= 30 * CALLS_A_MINUTE
    assert page["state"] == "waiting"
    assert page["waiting"]["for"] == "ServiceNow (connection servicenow)"
    assert datetime.fromisoformat(page["waiting"]["since"]) - down_at < timedelta(minutes=1)
    for moments in seen.values():
        gaps = [(later - earlier).total_seconds() for earlier, later in pairwise(moments)]
        assert max(gaps) >= 0.8 * LONGEST_REST_S, gaps  # rests vary by a fifth
    ended = world.run_row(run)
    assert (ended.state, ended.counts) == (RunState.COMPLETED, {"created": CASES})
    assert max(result.attempts for result in world.results(run).values()) <= 2  # a create that was in doubt counts
    assert show(run.run_id)["waiting"] is None
    assert [mail for mail in world.mailbox.mails if "12 synced" in str(mail.message["Subject"])]


def show(run_id: str) -> Any:
    """Return a run's page as its address answers it."""
    request = func.HttpRequest("GET", "http://localhost:7071/api/runs/x", route_params={"run_id": run_id}, body=b"")
    response: func.HttpResponse = function_app.get_run.build().get_user_function()(request)
    return json.loads(response.get_body())
