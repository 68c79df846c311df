"""Demo records and pages of the ServiceNow stand-in."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import requests

from sandbox.servicenow import ServiceNow
from sandbox.servicenow_records import seed
from sandbox.simulator import Clock, serve_in_thread
from tests.sandbox.servicenow_calls import NOW


def make_cases(count: int) -> list[dict[str, Any]]:
    start = datetime(2026, 1, 5, tzinfo=UTC)
    return [
        {
            "incidentid": f"id-{number:04d}",
            "ticketnumber": f"CAS-{number:05d}",
            "title": f"Case number {number}" if number % 10 else "Same as others",
            "contact_email": f"contact{number // 3}@contoso.example" if number % 17 else "",
            "owner_email": f"owner{number % 12}@acme.example",
            "owner_team": "Support EMEA" if number % 9 == 0 else "",
            "createdon": (start + timedelta(minutes=40 * number)).isoformat().replace("+00:00", "Z"),
        }
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def cases() -> dict[str, dict[str, Any]]:
    """Cases by id."""
    return {case["incidentid"]: case for case in make_cases(600)}


@pytest.fixture(scope="module")
def seeded(cases: dict[str, dict[str, Any]]) -> tuple[ServiceNow, dict[str, list[str]]]:
    """An instance with its demo records; only read."""
    sim = ServiceNow(Clock(NOW))
    return sim, seed(sim, list(cases.values()))


def test_seed_size_and_spread(seeded: tuple[ServiceNow, dict[str, list[str]]]) -> None:
    """There are 2,000 incidents from 2025 on, in several states, none later than the clock."""
    rows = seeded[0].rows("incident")

    opened = sorted(row["sys_created_on"] for row in rows)
    assert len(rows) == 2000
    assert opened[0].startswith("2025-0")
    assert opened[-1] <= "2026-03-02 12:00:00"
    assert {row["state"] for row in rows} == {"1", "2", "3", "6", "7"}
    assert all(row["correlation_id"] == "" for row in rows)


def test_seed_relations_hold(seeded: tuple[ServiceNow, dict[str, list[str]]], cases: dict[str, dict[str, Any]]) -> None:
    """What the returned table says of a case is what a search by number, title and address shows."""
    sim, relations = seeded
    kind_of = {case_id: kind for kind, ids in relations.items() for case_id in ids}
    by_number: dict[str, list[Any]] = {}
    by_title: dict[str, list[Any]] = {}
    for row in sim.rows("incident"):
        by_number.setdefault(row["number"], []).append(row)
        by_title.setdefault(row["short_description"].casefold(), []).append(row)

    for case_id, case in cases.items():
        kind = kind_of.get(case_id)
        numbered, titled = by_number.get(case["ticketnumber"], []), by_title.get(case["title"].casefold(), [])
        callers = sim.rows("sys_user", email=case["contact_email"]) if case["contact_email"] else []
        ids = {caller["sys_id"] for caller in callers}
        assert len(numbered) == (kind == "vendor_recipe"), case
        match kind:
            case "ambiguous_title":
                assert [row["active"] for row in titled] == ["true", "true"]
            case "same_title_closed":
                assert [row["active"] for row in titled] == ["false"]
            case "same_title_other_caller":
                assert titled[0]["caller_id"] not in ids | {""}
            case "same_title":
                assert [row["caller_id"] in ids | {""} for row in titled] == [True]
            case "inactive_caller":
                assert ([row["active"] for row in callers], titled) == (["false"], [])
            case "duplicate_caller":
                assert ([row["active"] for row in callers], titled) == (["true", "true"], [])
            case None:
                assert titled == []


def test_seed_counts(seeded: tuple[ServiceNow, dict[str, list[str]]]) -> None:
    """Each kind has its share, and no case is in two kinds."""
    _, relations = seeded
    listed = [case_id for ids in relations.values() for case_id in ids]

    assert {kind: len(ids) for kind, ids in relations.items() if "title" in kind or "recipe" in kind} == {
        "vendor_recipe": 40,
        "same_title": 40,
        "ambiguous_title": 6,
        "same_title_closed": 8,
        "same_title_other_caller": 8,
    }
    assert len(relations["inactive_caller"]) >= 6
    assert len(relations["duplicate_caller"]) >= 6
    assert len(listed) == len(set(listed))


def test_seed_repeats(cases: dict[str, dict[str, Any]], seeded: tuple[ServiceNow, dict[str, list[str]]]) -> None:
    """The same cases in another order make the same records."""
    sim = ServiceNow(Clock(NOW))

    relations = seed(sim, list(reversed(cases.values())))

    assert relations == seeded[1]
    assert sim.tables["incident"] == seeded[0].tables["incident"]


@pytest.mark.parametrize("count", [0, 1, 9, 60])
def test_seed_with_few_cases(count: int) -> None:
    """Few cases, or none, give fewer relations and no error."""
    sim = ServiceNow(Clock(NOW))

    relations = seed(sim, make_cases(count), incidents=50)

    assert len(relations) == 7
    assert sum(map(len, relations.values())) <= count


def test_pages_for_people() -> None:
    """The first page lists and searches, the record's page edits through the rules, and nothing is markup by accident."""
    sim = ServiceNow(Clock(NOW))
    caller = sim.insert("sys_user", user_name="eve", first_name="<b>Eve</b>", last_name="X")
    sys_id = sim.insert("incident", short_description="<script>alert(1)</script>", caller_id=caller, number="INC7")
    sim.insert("incident", short_description="other", number="INC8")

    with serve_in_thread(sim) as (port,):
        url = f"http://127.0.0.1:{port}"
        home = requests.get(url, timeout=20).text
        found = requests.get(url, params={"q": "inc7 eve"}, timeout=20).text
        address = f"{url}/nav_to.do?uri=incident.do?sys_id={sys_id}"
        record = requests.get(address, timeout=20).text
        edited = requests.post(
            f"{url}/_sandbox/edit/incident/{sys_id}", data={"urgency": "1", "comments": "hi"}, timeout=20
        )
        refused = requests.post(f"{url}/_sandbox/edit/incident/{sys_id}", data={"state": "7"}, timeout=20)
        missing = requests.get(f"{url}/nav_to.do?uri=incident.do?sys_id=nope", timeout=20)

    assert "INC7" in home
    assert "INC8" in home
    assert ("INC7" in found, "INC8" in found) == (True, False)
    assert not any(text in page for text in ("<script", "<b>Eve") for page in (home, found, record))
    assert 'name="viewport"' in home
    assert "<form" in record
    assert (edited.status_code, sim.tables["incident"][sys_id]["urgency"]) == (200, "1")
    assert "Resolution code, Resolution notes" in refused.text
    assert missing.status_code == 404
