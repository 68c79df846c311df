"""A Marketo stand-in for tests: a frozen clock, and requests as an integration sends them."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import requests

from sandbox.marketo import CLIENT_ID, CLIENT_SECRET, Marketo
from sandbox.simulator import Clock, serve_in_thread

NOW = datetime(2026, 3, 2, 12, 0, 0, tzinfo=UTC)


class Api:
    """Calls one instance with plain requests."""

    def __init__(self, sim: Marketo, url: str) -> None:
        self.sim = sim
        self.url = url
        self.token = self.identity().json()["access_token"]

    def identity(self, method: str = "GET", **changes: str) -> requests.Response:
        """Ask for a token with the default client; parameters are added or replaced."""
        asked = {"grant_type": "client_credentials", "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET} | changes
        return requests.request(method, f"{self.url}/identity/oauth/token", params=asked, timeout=20)

    def call(self, method: str, path: str, **facts: Any) -> requests.Response:
        """Send one request below /rest/v1."""
        headers = {"Authorization": f"Bearer {self.token}"} | facts.pop("headers", {})
        return requests.request(method, f"{self.url}/rest/v1/{path}", headers=headers, timeout=20, **facts)

    def get(self, path: str, **params: Any) -> dict[str, Any]:
        """Return the envelope of a GET with query parameters."""
        response = self.call("GET", path, params=params)
        assert response.status_code == 200, response.text
        return response.json()

    def post(self, path: str, body: Any, **facts: Any) -> dict[str, Any]:
        """Return the envelope of a POST of JSON."""
        response = self.call("POST", path, json=body, **facts)
        assert response.status_code == 200, response.text
        return response.json()

    def sync(self, *records: Any, **members: Any) -> list[dict[str, Any]]:
        """Sync leads and return the results."""
        envelope = self.post("leads.json", members | {"input": list(records)})
        assert envelope["success"], envelope
        return envelope["result"]

    def find(self, *emails: str, **params: Any) -> list[dict[str, Any]]:
        """Return the leads with these emails."""
        return self.get("leads.json", filterType="email", filterValues=",".join(emails), **params)["result"]

    def sync_companies(self, *records: Any, **members: Any) -> list[dict[str, Any]]:
        """Sync companies and return the results."""
        return self.post("companies.json", members | {"input": list(records)})["result"]

    def control(self, method: str, path: str, **facts: Any) -> requests.Response:
        """Call a control of the sandbox."""
        return requests.request(method, f"{self.url}/_sandbox/{path}", timeout=20, **facts)


def code(envelope: dict[str, Any]) -> str:
    """Return the code of a call that failed as a whole."""
    assert envelope["success"] is False, envelope
    return envelope["errors"][0]["code"]


def outcomes(results: list[dict[str, Any]]) -> list[str]:
    """Return each record's status, or the code for which it was skipped."""
    return [item["reasons"][0]["code"] if item["status"] == "skipped" else item["status"] for item in results]


@contextmanager
def running(**switches: Any) -> Iterator[Api]:
    """Serve one instance with a frozen clock."""
    sim = Marketo(Clock(NOW), **switches)
    with serve_in_thread(sim) as (port,):
        yield Api(sim, f"http://127.0.0.1:{port}")
