"""A served Dynamics 365 simulator at a fixed time with a few records, and a bare HTTP caller with a token."""

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import requests

from sandbox.dynamics365 import Dynamics365
from sandbox.simulator import Clock, serve_in_thread

NOW = datetime(2026, 3, 12, 9, 30, 15, tzinfo=UTC)
ACME = "a0000000-0000-4000-8000-000000000001"
ADA = "c0000000-0000-4000-8000-000000000001"
BOB = "c0000000-0000-4000-8000-000000000002"
USER = "50000000-0000-4000-8000-000000000001"
TEAM = "70000000-0000-4000-8000-000000000001"


class Caller:
    """Plain requests against the Web API; `call` returns the response whatever its status."""

    def __init__(self, sim: Dynamics365, port: int) -> None:
        self.sim = sim
        self.origin = f"http://127.0.0.1:{port}"
        self.root = f"{self.origin}/api/data/v9.2/"
        self.session = requests.Session()
        self.session.headers["Authorization"] = f"Bearer {sim.tokens.issue(self.origin)}"

    def call(self, method: str, path: str, prefer: str = "", body: Any = None, **headers: str) -> requests.Response:
        """Send one request below the API root (or to a whole URL)."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if prefer:
            headers["Prefer"] = prefer
        url = path if path.startswith("http") else self.root + path
        return self.session.request(method, url, json=body, headers=headers, timeout=10)

    def get(self, path: str, prefer: str = "", **headers: str) -> Any:
        """Return the JSON of a GET that must succeed."""
        response = self.call("GET", path, prefer, **headers)
        assert response.status_code == 200, response.text
        return response.json()

    def refusal(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str, str]:
        """Return status, code and message of a request that must fail."""
        response = self.call(method, path, body=body, **headers)
        assert response.status_code >= 400, response.text
        error = response.json()["error"]
        return response.status_code, error["code"], error["message"]


@contextlib.contextmanager
def served(**switches: Any) -> Iterator[Caller]:
    """Serve a simulator with a user, a team, an account and two contacts."""
    sim = Dynamics365(Clock(NOW), **switches)
    sim.insert(
        "systemuser", systemuserid=USER, firstname="Olga", lastname="Owner", internalemailaddress="olga@contoso.example"
    )
    sim.insert("team", teamid=TEAM, name="Support EMEA")
    sim.insert("account", accountid=ACME, name="Acme", revenue=20000, numberofemployees=1200)
    sim.insert(
        "contact",
        contactid=ADA,
        firstname="Ada",
        lastname="Quill",
        emailaddress1="ada@acme.example",
        parentcustomerid_account=ACME,
    )
    sim.insert("contact", contactid=BOB, firstname="Bob", lastname="O'Brien")
    sim.update("account", ACME, primarycontactid=ADA)
    with serve_in_thread(sim) as (port,):
        caller = Caller(sim, port)
        yield caller
        caller.session.close()


def add_case(sim: Dynamics365, title: str | None = "Printer offline", **columns: Any) -> str:
    """Insert a case of Ada's, unless told otherwise."""
    return sim.insert("incident", **{"title": title, "customerid_contact": ADA, **columns})
