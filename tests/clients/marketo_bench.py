"""The Marketo client against its simulator: a served instance, the client and permits that only take notes."""

import contextlib
from collections.abc import Iterator
from typing import Any

from sandbox.marketo import CLIENT_ID, CLIENT_SECRET
from sandbox.marketo import Marketo as MarketoSimulator
from sandbox.simulator import Clock, serve_in_thread
from shared.clients import marketo
from shared.clients.auth import TokenAuth
from shared.clients.marketo_auth import build_marketo_auth
from shared.clients.system import Row, Write, Written
from shared.errors import SyncError
from tests.clients.connections import NOW, Permits, connect


class MarketoBench:
    """A served instance, the client that speaks to it and the permits in between."""

    def __init__(self, sim: MarketoSimulator, url: str, **facts: Any) -> None:
        self.sim, self.base_url, self.permits = sim, url, Permits()
        http = {name: facts.pop(name) for name in ("read_s",) if name in facts}
        self.http = connect(url, marketo.DIALECT, sign_in(url), self.permits, **http)
        self.client = marketo.Marketo(self.http, **facts)

    def find(self, *emails: Any, record: str = "lead", by: str = "email", also: str = "lastName") -> list[Row]:
        """Look records up by one field."""
        return self.client.fetch_rows(record, frozenset({by, also}), (by,), [(email,) for email in emails])

    def create(self, *emails: str, **fields: Any) -> list[Written | SyncError]:
        """Create leads, each with the same fields."""
        writes = [Write(None, {"email": email} | fields, {"email": email}) for email in emails]
        return self.client.write_rows("lead", writes)

    def calls(self, method: str = "", path: str = "/rest/") -> int:
        """Return how many calls the instance saw."""
        return len(self.sim.requests(method, path))


def sign_in(base_url: str, secret: str = CLIENT_SECRET, **facts: Any) -> TokenAuth:
    """Sign in to a simulated instance."""
    return build_marketo_auth("marketo", base_url, CLIENT_ID, secret, sleep=lambda _: None, **facts)


@contextlib.contextmanager
def marketo_bench(switches: dict[str, Any] | None = None, **facts: Any) -> Iterator[MarketoBench]:
    """Serve one instance with a frozen clock."""
    sim = MarketoSimulator(Clock(NOW), **(switches or {}))
    with serve_in_thread(sim) as (port,):
        bench = MarketoBench(sim, f"http://127.0.0.1:{port}", **facts)
        yield bench
        bench.http.close()
