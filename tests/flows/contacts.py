"""The world of contacts: Dynamics 365 with contacts and accounts, Marketo with leads and companies, webhooks in between.

A webhook is a call of the receiver with a body as Dataverse writes it; the rest is `world.World`.
"""

import contextlib
import json
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from sandbox.dynamics365 import Dynamics365, EntraLogin
from sandbox.mailbox import Mailbox
from sandbox.marketo import CLIENT_ID, CLIENT_SECRET, Marketo
from sandbox.servicenow import ServiceNow
from sandbox.simulator import Clock, serve_in_thread
from shared.settings import load_settings
from shared.state.rows import EVENT_PAGES, LinkRow, Outcome, PageRow, ResultRow, RunKind, RunRow
from sync.app import RECIPES
from tests.flows.world import NOW, READ_TIMEOUT_S, TRANSACTION_S, Facts, Killed, Stage, World, usual_settings
from web import webhooks
from web.api import Request

CONTACTS, ACCOUNTS = "contact_to_lead", "account_to_company"
RECIPE_OF = {"contact": CONTACTS, "account": ACCOUNTS}
WEBHOOK_KEY = "a-webhook-key-used-in-tests-alone"
ORIGIN = "contoso.crm4.dynamics.com"


class ContactWorld(World):
    """Contacts and accounts, leads and companies, and the app in between."""

    recipe = CONTACTS

    def __init__(self, *facts: Any, marketo: Marketo) -> None:
        self.marketo = marketo
        super().__init__(*facts)
        self.dynamics.delete("contact", self.caller)  # belongs to the world of cases

    def settle(self) -> None:
        super().settle()
        self.marketo.settle()

    # -- Dynamics 365 -------------------------------------------------------------------------------------------------

    def account(self, name: str | None = "Fabrikam", **columns: Any) -> str:
        """Add an account, without a webhook."""
        return self.dynamics.insert("account", **{"name": name} | columns)

    def contact(self, email: str | None, account: str | None = None, **columns: Any) -> str:
        """Add a contact, without a webhook."""
        named = {"firstname": "Ana", "lastname": "Quill", "emailaddress1": email, "parentcustomerid_account": account}
        return self.dynamics.insert("contact", **named | columns)

    def edit(self, table: str, key: str, **columns: Any) -> None:
        """Change a record, without a webhook."""
        self.dynamics.update(table, key, **columns)

    # -- webhooks -------------------------------------------------------------------------------------------------------

    def hook(self, table: str, key: str, message: str = "Update", operation: str = "") -> str:
        """Call the receiver as Dataverse does and return the event's id; it calls once more when nobody answered."""
        operation = operation or str(uuid.uuid4())
        body = {"PrimaryEntityName": table, "PrimaryEntityId": key, "MessageName": message, "OperationId": operation}
        headers = {"x-ms-dynamics-organization": ORIGIN}
        request = Request(
            "POST", {"recipe": RECIPE_OF[table]}, {"code": WEBHOOK_KEY}, headers, json.dumps(body).encode()
        )
        try:
            answer = webhooks.receive(self.app, request)
        except Killed:
            self.restart()
            answer = webhooks.receive(self.app, request)
        assert answer.status == 202, answer.body
        return f"{operation}:{key}:{message}"

    def send(self, table: str, key: str, message: str = "Update") -> ResultRow:
        """Call the receiver, let everything be worked and return the event's result."""
        event_id = self.hook(table, key, message)
        self.pump.run()
        return self.event(event_id)

    def events(self, recipe: str = CONTACTS) -> dict[str, ResultRow]:
        """Return the results of all events of a recipe by event id; fails when one has two."""
        found: dict[str, ResultRow] = {}
        for run in self.view.query(RunRow, recipe):
            if run.kind is RunKind.EVENTS:
                for page in range(EVENT_PAGES):
                    for result in self.view.query(ResultRow, f"{run.run_id}!{page:06d}"):
                        assert result.key not in found, "an event has two results"
                        found[result.key] = result
        return found

    def event(self, event_id: str) -> ResultRow:
        """Return the one result of an event."""
        return (self.events() | self.events(ACCOUNTS))[event_id]

    def event_run(self, recipe: str = CONTACTS) -> RunRow:
        """Return the newest day of events."""
        return next(run for run in self.view.query(RunRow, recipe) if run.kind is RunKind.EVENTS)

    def sweep(self, recipe: str = CONTACTS) -> RunRow:
        """Do what the daily timer does for a recipe, and return the run as it ended."""
        return self.sync_recipe(recipe, "since_last_run", mail_to=(), started_by="daily")

    def sync_recipe(self, recipe: str, window: str, **facts: Any) -> RunRow:
        """Run a recipe over a window until nothing is left."""
        self.recipe = recipe
        try:
            return self.sync(window, **facts)
        finally:
            self.recipe = CONTACTS

    def results(self, run: RunRow | str) -> dict[str, ResultRow]:
        found = super().results(run)
        run_id = run if isinstance(run, str) else run.run_id
        assert len(found) == sum(len(page.keys) for page in self.view.query(PageRow, run_id))
        return found

    # -- Marketo --------------------------------------------------------------------------------------------------------

    def leads(self, **equals: Any) -> list[Facts]:
        """Return the leads whose fields equal these values."""
        return [dict(row) for row in self.marketo.rows("leads", **equals)]

    def lead(self, email: str) -> Facts:
        """Return the one lead with an email."""
        found = self.leads(email=email)
        assert len(found) == 1, f"{len(found)} leads have the email"
        return found[0]

    def companies(self, **equals: Any) -> list[Facts]:
        """Return the companies whose fields equal these values."""
        return [dict(row) for row in self.marketo.rows("companies", **equals)]

    def company(self, account: str) -> Facts:
        """Return the one company of an account."""
        found = self.companies(externalCompanyId=account)
        assert len(found) == 1, f"{len(found)} companies have the account's id"
        return found[0]

    def forget_journal(self) -> None:
        super().forget_journal()
        self.marketo.journal.clear()

    def marketo_calls(self) -> dict[str, int]:
        """Return how many searches and writes of leads and companies the journal holds, and Dynamics 365 reads."""
        calls: Counter[str] = Counter()
        for entry in self.marketo.requests("", r"^/rest/v1/(leads|companies)\.json"):
            asks = entry.method == "GET" or "_method" in entry.query
            calls[f"{'search' if asks else 'write'} {'leads' if '/leads' in entry.path else 'companies'}"] += 1
        return dict(calls)

    def reads_of(self, table: str) -> int:
        """Return how many calls have read a Dynamics 365 table."""
        return len(self.dynamics.requests("GET", rf"^/api/data/v9\.2/{table}(\?|$)"))

    def link(self, table: str, key: str) -> LinkRow | None:
        """Return a contact's or an account's link."""
        row = LinkRow(pair=self.app.flow(RECIPE_OF[table]).pair, side=f"dynamics365.{table}", key=key)
        return self.view.get(LinkRow, row.partition_key, row.row_key)

    def counted(self, results: Sequence[ResultRow]) -> dict[str, int]:
        """Return how many results of each outcome, or failed or skipped for each reason, there are."""
        told = (Outcome.FAILED, Outcome.SKIPPED)
        return dict(Counter(each.reason if each.outcome in told else str(each.outcome) for each in results))


@contextlib.contextmanager
def new_contact_world(
    stage: Stage, folder: Path, prefix: str, values: Facts | None = None, variant: str = "", **switches: Any
) -> Iterator[ContactWorld]:
    """Serve a new world; `values` are settings, `switches` those of Marketo, `variant` a folder of other recipes."""
    clock = Clock(NOW)
    dynamics, mailbox = Dynamics365(clock), Mailbox(clock=clock)
    marketo = Marketo(clock, **{"calls_per_window": 0} | switches)  # the clock stands still between calls
    login = EntraLogin(dynamics.tokens)
    folder.mkdir(parents=True, exist_ok=True)
    names = [CONTACTS] if variant else [CONTACTS, ACCOUNTS]
    for name in names:
        (folder / f"{name}.yaml").write_text((RECIPES / variant / f"{name}.yaml").read_text())
    with (
        serve_in_thread(dynamics, marketo, mailbox) as (dynamics_port, marketo_port, _),
        serve_in_thread(login, tls=stage.tls) as (login_port,),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("REQUESTS_CA_BUNDLE", str(stage.bundle))
        environ = usual_settings(stage, dynamics, dynamics_port, login_port, mailbox) | {
            "CONNECTIONS__DYNAMICS365__WEBHOOK_KEY": WEBHOOK_KEY,
            "CONNECTIONS__DYNAMICS365__ORIGIN": ORIGIN,
            "CONNECTIONS__MARKETO__ENVIRONMENT": "test",
            "CONNECTIONS__MARKETO__URL": f"http://localhost:{marketo_port}",
            "CONNECTIONS__MARKETO__CLIENT_ID": CLIENT_ID,
            "CONNECTIONS__MARKETO__CLIENT_SECRET": CLIENT_SECRET,
            "CONNECTIONS__MARKETO__READ_TIMEOUT_S": str(READ_TIMEOUT_S),
            "CONNECTIONS__MARKETO__TRANSACTION_S": str(TRANSACTION_S),
        }
        settings = load_settings(environ | (values or {}))
        facts = (clock, dynamics, ServiceNow(clock), mailbox, settings, folder, prefix)  # ServiceNow is not served
        world = ContactWorld(*facts, marketo=marketo)
        try:
            yield world
        finally:
            world.close()
