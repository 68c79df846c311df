"""Real clients against the simulators: connections as services would build them, and permits that only take notes."""

import contextlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from sandbox.dynamics365 import Dynamics365 as DynamicsSimulator
from sandbox.servicenow import CLIENT_ID, CLIENT_SECRET, PASSWORD, USER_NAME
from sandbox.servicenow import ServiceNow as ServiceNowSimulator
from sandbox.simulator import Clock, serve_in_thread
from shared.clients import dynamics365, servicenow
from shared.clients.auth import BasicAuth, ServiceNowSignIn, TokenAuth, build_servicenow_auth
from shared.clients.http import Auth, Dialect, HttpConnection, NoAuth
from shared.errors import RateLimitedError

NOW = datetime(2026, 3, 12, 9, 30, 15, tzinfo=UTC)


class Permits:
    """Grants everything and notes what was asked; refuses what it is told to, by whether a call goes ahead of others."""

    def __init__(self) -> None:
        self.refuses: Callable[[bool], bool] = lambda _: False
        self.held = 0
        self.most_held = 0
        self.taken = 0
        self.pauses: list[float] = []

    @contextlib.contextmanager
    def hold(self, *, ahead: bool = False) -> Iterator[None]:
        self.taken += 1
        if self.refuses(ahead):
            raise RateLimitedError("All calls are under way.", code="permits_busy", retry_after_s=3.0)
        self.held += 1
        self.most_held = max(self.most_held, self.held)
        try:
            yield
        finally:
            self.held -= 1

    def expect(self, calls: int) -> None:
        pass

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)


class IssuedTokens:
    """Takes tokens from a simulator's own store, as if a login had given them out."""

    def __init__(self, sim: DynamicsSimulator, origin: str) -> None:
        self.sim, self.origin = sim, origin
        self.value = sim.tokens.issue(origin)

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.value}"}

    def renew(self, refused: Any) -> None:
        self.value = self.sim.tokens.issue(self.origin)


def connect(
    base_url: str,
    dialect: Dialect | None = None,
    auth: Auth | None = None,
    permits: Permits | None = None,
    **facts: Any,
) -> HttpConnection:
    """Build a connection that never sleeps."""
    return HttpConnection(
        "vendor",
        base_url,
        auth or NoAuth(),
        permits or Permits(),
        dialect or Dialect("Vendor"),
        **{"connect_s": 2.0, "read_s": 5.0, "sleep": lambda _: None} | facts,
    )


class ServiceNowBench:
    """A served instance, the client that speaks to it and the permits in between."""

    def __init__(self, sim: ServiceNowSimulator, url: str, auth: Auth | None, **facts: Any) -> None:
        self.sim, self.base_url, self.permits = sim, url, Permits()
        http = {name: facts.pop(name) for name in ("read_s",) if name in facts}
        self.http = connect(url, servicenow.DIALECT, auth or BasicAuth(USER_NAME, PASSWORD), self.permits, **http)
        self.client = servicenow.ServiceNow(self.http, **facts)


@contextlib.contextmanager
def servicenow_bench(
    auth: Auth | None = None, switches: dict[str, Any] | None = None, **facts: Any
) -> Iterator[ServiceNowBench]:
    """Serve one instance with a frozen clock."""
    sim = ServiceNowSimulator(Clock(NOW), **(switches or {}))
    with serve_in_thread(sim) as (port,):
        bench = ServiceNowBench(sim, f"http://127.0.0.1:{port}", auth, **facts)
        yield bench
        bench.http.close()


def oauth(base_url: str, grant: str = "password", **facts: Any) -> TokenAuth:
    """Sign in to a simulated instance."""
    sign_in = ServiceNowSignIn(grant, CLIENT_ID, CLIENT_SECRET, user_name=USER_NAME, password=PASSWORD)
    return build_servicenow_auth("servicenow", base_url, sign_in, sleep=lambda _: None, **facts)


class DynamicsBench:
    """A served environment, the client that speaks to it and the permits in between."""

    def __init__(self, sim: DynamicsSimulator, url: str, **facts: Any) -> None:
        self.sim, self.permits = sim, Permits()
        self.http = connect(url, dynamics365.DIALECT, IssuedTokens(sim, url), self.permits)
        self.client = dynamics365.Dynamics365(self.http, organization_url=url, **facts)


@contextlib.contextmanager
def dynamics_bench(switches: dict[str, Any] | None = None, **facts: Any) -> Iterator[DynamicsBench]:
    """Serve one environment with a frozen clock."""
    sim = DynamicsSimulator(Clock(NOW), **(switches or {}))
    with serve_in_thread(sim) as (port,):
        bench = DynamicsBench(sim, f"http://127.0.0.1:{port}", **facts)
        yield bench
        bench.http.close()
