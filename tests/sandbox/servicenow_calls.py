"""A ServiceNow stand-in for tests: a frozen clock, and requests without cookies as an integration sends them."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import requests

from sandbox.servicenow import CLIENT_ID, CLIENT_SECRET, PASSWORD, USER_NAME, ServiceNow
from sandbox.simulator import Clock, serve_in_thread

NOW = datetime(2026, 3, 2, 12, 0, 0, tzinfo=UTC)
JSON = {"Accept": "application/json"}


class Api:
    """Calls one instance with plain requests."""

    def __init__(self, sim: ServiceNow, url: str) -> None:
        self.sim = sim
        self.url = url
        self.auth: tuple[str, str] | None = (USER_NAME, PASSWORD)

    def call(self, method: str, path: str, params: Any = None, **facts: Any) -> requests.Response:
        """Send one request; a path without a slash in front is below the Table API."""
        address = self.url + (path if path.startswith("/") else f"/api/now/table/{path}")
        facts.setdefault("headers", {})
        facts["headers"] = JSON | facts["headers"]
        return requests.request(method, address, params=params, auth=self.auth, timeout=20, **facts)

    def get(self, path: str, **params: Any) -> requests.Response:
        """Send a GET with query parameters."""
        return self.call("GET", path, params)

    def found(self, table: str, query: str, field: str = "number", **params: Any) -> list[str]:
        """Return one field of all rows that an encoded query finds."""
        response = self.get(table, sysparm_query=query, sysparm_exclude_reference_link="true", **params)
        assert response.status_code == 200, response.text
        return [row[field] for row in response.json()["result"]]

    def token(self, **fields: str) -> requests.Response:
        """Ask for a token with the default client; fields are added or replaced."""
        form = {"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET, **fields}
        return requests.post(f"{self.url}/oauth_token.do", data=form, timeout=20)


@contextmanager
def running(**switches: Any) -> Iterator[Api]:
    """Serve one instance with a frozen clock."""
    sim = ServiceNow(Clock(NOW), **switches)
    with serve_in_thread(sim) as (port,):
        yield Api(sim, f"http://127.0.0.1:{port}")
