"""The demo as a user runs it, and whether its oracle would notice if something were wrong."""

import asyncio
import copy
import dataclasses
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import aiohttp
import pytest

from sandbox.demo import Client, Progress, Report, demonstrate
from sandbox.oracle import Snapshot, compare, expect, servicenow_writes, take_snapshot
from sandbox.start import ROOT, Sandbox, running_in_thread

RECORDS = 120


@dataclasses.dataclass(frozen=True)
class Shown:
    """A demo that was run in this process, its printed progress included."""

    sandbox: Sandbox
    report: Report
    lines: str

    @property
    def window(self) -> tuple[datetime, datetime]:
        run = self.report.first
        return datetime.fromisoformat(run["since"]), datetime.fromisoformat(run["until"])


@pytest.fixture(scope="module")
def shown() -> Iterator[Shown]:
    stream = io.StringIO()
    with running_in_thread(records=RECORDS) as sandbox:
        report = asyncio.run(demonstrate(sandbox, Progress(stream)))
        yield Shown(sandbox, report, stream.getvalue())


def test_every_record_is_as_the_oracle_says(shown: Shown) -> None:
    """Each case has its one incident with every field right, or its reason; strangers are untouched."""
    assert shown.report.differences == []
    assert sum(shown.report.first["counts"].values()) == RECORDS
    assert {"created", "adopted", "skipped", "failed"} <= shown.report.first["counts"].keys()


def test_second_sync_writes_nothing(shown: Shown) -> None:
    """A second run of the same window finds all unchanged, tries what failed again, once, and leaves ServiceNow alone."""
    first, second = shown.report.first, shown.report.second

    assert shown.report.second_writes == []
    assert second["counts"].get("unchanged") == first["successful"]
    assert second["counts"].get("failed") == first["counts"].get("failed")


def test_progress_is_lines_without_a_terminal(shown: Shown) -> None:
    """What is printed starts with the request that a user would make and ends with all records."""
    lines = shown.lines.splitlines()

    assert lines[0] == f"GET {shown.sandbox.sync_url('ada@example.com', window='yesterday')}"
    assert lines[1].startswith("202 ")
    assert any(line.startswith(f"  {RECORDS} of {RECORDS} cases  completed") for line in lines)
    assert "\x1b" not in shown.lines


def test_progress_is_a_bar_on_a_terminal() -> None:
    """The bar is drawn over itself and stays when the run has ended."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    progress = Progress(terminal)
    progress.show(50, 100, "running", 3.2)
    progress.end()

    assert terminal.getvalue() == f"\r\x1b[K[{'#' * 15}{'-' * 15}]    50 of 100 cases  running  3 s\n"


def test_three_edits_change_three_incidents(shown: Shown) -> None:
    """After three cases were edited exactly these incidents change, in these fields, and an agent's reassignment stays."""
    sandbox, (since, _) = shown.sandbox, shown.window
    incidents = {row["correlation_id"]: row for row in sandbox.servicenow.rows("incident")}
    calm = [case_id for case_id, row in incidents.items() if case_id and row["urgency"] != "1"][:3]
    agent = next(row["sys_id"] for row in sandbox.servicenow.rows("sys_user", active="true") if "." in row["user_name"])
    edits = {"title": "Edited title", "prioritycode": 1, "description": "<p>Edited text</p>"}
    for case_id, (column, value) in zip(calm, edits.items(), strict=True):
        late = since + timedelta(hours=23, minutes=59, seconds=59)
        sandbox.dynamics.update("incident", case_id, modifiedon=late, **{column: value})
        sandbox.servicenow.update("incident", incidents[case_id]["sys_id"], by="agent", assigned_to=agent)
    before = take_snapshot(sandbox.dynamics, sandbox.servicenow)
    seen = len(sandbox.servicenow.journal)

    run = asyncio.run(_sync(sandbox))

    after = take_snapshot(sandbox.dynamics, sandbox.servicenow)
    expected = zip(calm, ("short_description", "urgency", "description"), strict=True)
    assert _changed_fields(before, after) == {incidents[case_id]["sys_id"]: {field} for case_id, field in expected}
    assert run["counts"]["updated"] == 3
    assert len(servicenow_writes(sandbox.servicenow.journal[seen:])) == 3
    assert all(after.servicenow["incident"][incidents[case_id]["sys_id"]]["assigned_to"] == agent for case_id in calm)


async def _sync(sandbox: Sandbox) -> dict[str, Any]:
    async with aiohttp.ClientSession() as session:
        return await Client(session, sandbox).sync(Progress(io.StringIO()), RECORDS)


def _changed_fields(before: Snapshot, after: Snapshot) -> dict[str, set[str]]:
    """Return the incidents that changed, with the fields that did not change by themselves."""
    follows = {"sys_updated_on", "sys_updated_by", "sys_mod_count", "priority"}
    changes = {}
    for sys_id, row in after.servicenow["incident"].items():
        old = before.servicenow["incident"].get(sys_id, {})
        if names := {name for name in row if row[name] != old.get(name)} - follows:
            changes[sys_id] = names
    return changes


# -- contacts -----------------------------------------------------------------------------------------------------------


def test_saved_contacts_become_what_they_should(shown: Shown) -> None:
    """Webhooks alone bring each saved contact to its lead or its reason; the oracle agrees field by field."""
    contacts = shown.report.contacts

    assert contacts.differences == []
    assert {each.reason for each in contacts.told if each.outcome == "failed"} == {
        "contact_without_email",
        "email_shared",
        "ambiguous_match",
    }
    assert {"created", "adopted", "updated", "skipped"} <= {each.outcome for each in contacts.told}


# -- the oracle notices -------------------------------------------------------------------------------------------------


def _synced(after: Snapshot) -> dict[str, Any]:
    return next(row for row in after.servicenow["incident"].values() if row["correlation_id"])


def _stranger(after: Snapshot) -> dict[str, Any]:
    return next(row for row in after.servicenow["incident"].values() if not row["correlation_id"])


def _new_user(after: Snapshot) -> dict[str, Any]:
    return next(row for row in after.servicenow["sys_user"].values() if row["source"] == "concord")


def _double(after: Snapshot, table: str, row: dict[str, Any]) -> None:
    after.servicenow[table]["double"] = row | {"sys_id": "double"}


FAULTS: dict[str, tuple[Callable[[Snapshot], object], str]] = {
    "wrong text": (lambda after: _synced(after).update(short_description="x"), "short_description is 'x'"),
    "wrong time": (lambda after: _synced(after).update(opened_at="2026-01-01 00:00:00"), "opened_at is"),
    "wrong caller": (lambda after: _synced(after).update(caller_id="nobody"), "caller_id is 'nobody'"),
    "wrong urgency": (lambda after: _synced(after).update(urgency="9"), "urgency is '9'"),
    "doubled incident": (lambda after: _double(after, "incident", _synced(after)), "should have 1 incident and has 2"),
    "lost incident": (lambda after: _synced(after).update(correlation_id=""), "should have 1 incident and has 0"),
    "touched stranger": (lambda after: _stranger(after).update(state="3"), "is a stranger's and was changed: state"),
    "deleted stranger": (
        lambda after: after.servicenow["incident"].pop(_stranger(after)["sys_id"]),
        "is gone",
    ),
    "doubled user": (lambda after: _double(after, "sys_user", _new_user(after)), "was made 2 times"),
    "renamed user": (lambda after: _new_user(after).update(user_name="x"), "another user_name"),
    "changed source": (lambda after: after.dynamics["incident"][0].update(title="x"), "Dynamics 365 changed: incident"),
    "stray note": (lambda after: _double(after, "sys_journal_field", {}), "table sys_journal_field changed"),
}


@pytest.mark.parametrize(("fault", "sentence"), FAULTS.values(), ids=FAULTS)
def test_oracle_notices(shown: Shown, fault: Callable[[Snapshot], object], sentence: str) -> None:
    """Each way to get it wrong is said in words."""
    after = copy.deepcopy(shown.report.after)

    fault(after)

    assert any(sentence in said for said in compare(shown.report.before, after, *shown.window))


def test_oracle_notices_wrong_results(shown: Shown) -> None:
    """Outcomes and reasons are compared case by case."""
    expected = list(expect(shown.report.before, *shown.window).values())
    results = [
        {"key": case.case_id, "outcome": min(case.outcomes), "reason": min(case.reasons, default="")}
        for case in expected
    ]
    failed = next(result for result in results if result["outcome"] == "failed")
    created = next(result for result in results if result["outcome"] == "created")
    failed["reason"], created["outcome"] = "something_else", "updated"
    results.remove(next(result for result in results if result["outcome"] == "skipped"))
    results.append({"key": "nobody", "outcome": "created", "reason": ""})

    said = compare(shown.report.before, shown.report.after, *shown.window, results)

    assert len(said) == 4
    assert any("is failed: something_else" in each for each in said)
    assert any("is updated and should be created" in each for each in said)
    assert any("has no result" in each for each in said)
    assert "nobody has a result and is not in the window." in said


# -- the command --------------------------------------------------------------------------------------------------------


def test_demo_command_ends_well() -> None:
    """`python -m sandbox.demo` exits with 0, says what came of it and leaves the mail behind."""
    command = [sys.executable, "-m", "sandbox.demo", "--records", "40", "--base-port", "0", "--workers", "1"]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, env=os.environ, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "the second sync wrote nothing to ServiceNow" in done.stdout
    assert "customer is account" in done.stdout
    assert "each lead, company and stranger is exactly as it should be" in done.stdout
    assert (ROOT / ".sandbox" / "summary.eml").read_bytes().startswith(b"From: concord@example.com")
    assert "<html" in (ROOT / ".sandbox" / "summary.html").read_text(encoding="utf-8")
