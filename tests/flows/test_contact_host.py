"""Contacts under the real host with two worker processes: real webhooks, a race, and a death."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sandbox.oracle_contacts import compare, take_snapshot
from sandbox.start import Sandbox, running_in_thread
from shared.state.queues import Queues
from shared.state.rows import EVENT_PAGES, CursorRow, ResultRow, RunKind, RunRow
from shared.state.storage import connect_queues, connect_tables
from shared.state.tables import Tables
from tests.sandbox.waiting import wait_until

RECIPES = ("contact_to_lead", "account_to_company")
CURSOR = CursorRow(recipe=RECIPES[1], activated_at=datetime(2026, 3, 10, tzinfo=UTC)).row_key
WAIT_S = 120.0
SHORT = {
    "QUEUE_LEASE_S": "20",
    "CONNECTIONS__DYNAMICS365__READ_TIMEOUT_S": "4",
    "CONNECTIONS__DYNAMICS365__CONNECT_TIMEOUT_S": "1",
    "CONNECTIONS__SERVICENOW__READ_TIMEOUT_S": "4",
    "CONNECTIONS__SERVICENOW__CONNECT_TIMEOUT_S": "1",
    "CONNECTIONS__MARKETO__READ_TIMEOUT_S": "4",
    "CONNECTIONS__MARKETO__CONNECT_TIMEOUT_S": "1",
    "CONNECTIONS__MARKETO__TRANSACTION_S": "3",
}


def _read(sandbox: Sandbox, work: Callable[[Tables], Any]) -> Any:
    with connect_tables(sandbox.connection_string) as service:
        return work(Tables(service))


def _results(sandbox: Sandbox) -> list[ResultRow]:
    """Return the results of all events."""

    def read(tables: Tables) -> list[ResultRow]:
        runs = [run for name in RECIPES for run in tables.query(RunRow, name) if run.kind is RunKind.EVENTS]
        return [
            row for run in runs for page in range(EVENT_PAGES) for row in tables.query(ResultRow, f"{run.run_id}!{page:06d}")
        ]  # fmt: skip

    return _read(sandbox, read)


def _activate(sandbox: Sandbox) -> None:
    """Let the app see its recipes, so that the sweep reads from here on."""
    sandbox.host.run_by_hand("poll")
    wait_until(lambda: _read(sandbox, lambda tables: tables.get(CursorRow, RECIPES[1], CURSOR)), WAIT_S)


def _sweep(sandbox: Sandbox) -> None:
    """Let the daily timer fire, and wait until its runs have ended."""
    sandbox.host.run_by_hand("daily_sync")

    def ended() -> bool:
        def read(tables: Tables) -> bool:
            runs = [run for name in RECIPES for run in tables.query(RunRow, name) if run.started_by == "daily"]
            return len(runs) == len(RECIPES) and all(run.state.ended for run in runs)

        return bool(_read(sandbox, read))

    wait_until(ended, WAIT_S)


def _events_left(sandbox: Sandbox) -> int:
    with connect_queues(sandbox.connection_string) as service:
        return Queues(service).length("events")


def _contact(sandbox: Sandbox, email: str | None, account: str | None = None, **columns: Any) -> str:
    named = {"firstname": "Ana", "lastname": "Quill", "emailaddress1": email, "parentcustomerid_account": account}
    return sandbox.dynamics.insert("contact", **named | columns)


def test_one_lead_per_email_whatever_arrives_together() -> None:
    """Marketo makes two leads of two quick upserts; the webhooks of one contact, twice each and on two workers, make one."""
    env = SHORT | {"EVENTS_TOGETHER": "1"}
    with running_in_thread(records=1, incidents=0, env=env) as sandbox:
        sandbox.marketo.configure({"race_delay_s": 0.3, "latency_s": 0.05})
        sandbox.dynamics.hooks.switches.duplicate_percent = 100

        contacts = [_contact(sandbox, f"r{number}@race.example") for number in range(6)]
        for contact in contacts:
            sandbox.dynamics.update("contact", contact, jobtitle="Buyer")
        sandbox.dynamics.hooks.wait_idle()
        wait_until(lambda: not _events_left(sandbox), WAIT_S)

        leads = [lead for lead in sandbox.marketo.rows("leads") if str(lead["email"]).endswith("@race.example")]
        assert sorted(lead["email"] for lead in leads) == [f"r{number}@race.example" for number in range(6)]
        assert {lead["title"] for lead in leads} == {"Buyer"}
        assert len(_results(sandbox)) == 12  # a repeat has the result of its event
        assert sandbox.marketo.usage.errors_report(1)[0]["errors"] == []


def test_lost_doubled_and_overtaking_webhooks_with_a_death_in_the_middle() -> None:
    """One webhook in ten is lost, one in five doubled, all overtake each other, a worker dies: the sweep leaves nothing wrong."""
    with running_in_thread(records=1, incidents=0, env=SHORT, queue_lease_s=int(SHORT["QUEUE_LEASE_S"])) as sandbox:
        _activate(sandbox)
        hooks = sandbox.dynamics.hooks.switches
        hooks.drop_percent, hooks.duplicate_percent, hooks.delay_s = 10, 20, 2.0
        sandbox.marketo.configure({"latency_s": 0.02})
        before = take_snapshot(sandbox.dynamics, sandbox.marketo)
        accounts = [sandbox.dynamics.insert("account", name=f"Company {number}") for number in range(5)]
        contacts = [_contact(sandbox, f"c{number}@burst.example", accounts[number % 5]) for number in range(80)]
        contacts += [_contact(sandbox, email) for email in (None, "c1@burst.example", "alone@burst.example")]
        for number, contact in enumerate(contacts):
            sandbox.dynamics.update("contact", contact, jobtitle=f"Job {number}")
        sandbox.dynamics.update("account", accounts[0], name="Renamed")

        wait_until(lambda: len(sandbox.marketo.rows("leads")) > len(before.leads), WAIT_S)
        sandbox.host.kill_worker(1)
        sandbox.dynamics.hooks.wait_idle()
        wait_until(lambda: not _events_left(sandbox), WAIT_S)
        _sweep(sandbox)

        sent = sandbox.dynamics.hooks.sent
        results = _results(sandbox)
        after = take_snapshot(sandbox.dynamics, sandbox.marketo)
        assert any(each.note == "dropped" for each in sent)
        assert any(each.note == "duplicate" for each in sent)
        assert compare(before, after, contacts, accounts) == []
        assert len({result.key for result in results}) == len(results)
        told = {each.operation_id for each in sent if each.note != "dropped"}
        accepted = {each.operation_id for each in sent if each.status == 202}
        worked = {result.key.partition(":")[0] for result in results}
        assert accepted <= worked <= told  # none is lost but what the dead worker may not have answered
