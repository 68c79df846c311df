"""How the demo tells what became of the contacts that it saved."""

import asyncio
from types import SimpleNamespace
from typing import Any

from sandbox.demo_contacts import Saved, await_results

APP = "http://localhost:7071"
CONTACT, ACCOUNT = "contact_to_lead", "account_to_company"


def result(event: str, record: str, outcome: str, second: int) -> dict[str, Any]:
    return {"key": event, "record_key": record, "outcome": outcome, "ended_at": f"2026-03-10T09:00:{second:02}Z"}


def told(looks: list[list[dict[str, Any]]], saved: list[Saved], known: set[str]) -> list[str]:
    """Return the outcomes that are told when each look at the contacts' results shows more of them."""
    left = list(looks)

    async def get(url: str) -> dict[str, Any]:
        if "recipe=" in url:
            return {"runs": [{"window": "events", "links": {"results": f"{APP}/{url.partition('=')[2]}"}}]}
        return {"results": (left.pop(0) if len(left) > 1 else left[0]) if url.endswith(CONTACT) else []}

    sandbox: Any = SimpleNamespace(app_url=APP)
    return [each.outcome for each in asyncio.run(await_results(sandbox, get, saved, known))]


def test_an_edit_is_told_by_its_own_event() -> None:
    """Another worker's clock may be behind: the edit's result then looks older than that of the create."""
    created = result("e1", "nils", "created", 11)
    edited = result("e2", "nils", "updated", 10)
    saved = [Saved("its email changed", CONTACT, "nils", "updated")]

    assert told([[created], [edited, created]], saved, {"e1"}) == ["updated"]


def test_every_record_is_waited_for() -> None:
    """As many results as records are not enough: one record may have two, and another none yet."""
    mona, again = result("e1", "mona", "created", 10), result("e2", "mona", "unchanged", 11)
    saved = [Saved("a new one", CONTACT, key, "created") for key in ("mona", "olga")]

    assert told([[mona, again], [mona, again, result("e3", "olga", "created", 12)]], saved, set())[1] == "created"
