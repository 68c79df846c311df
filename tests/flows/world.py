"""A small world for tests of the pipeline: both systems, a mailbox, storage, an app, and one clock that only tests move.

Everything between the triggers and the sockets is the product's own. The harness stands in for the Functions host (`Pump`)
and for what lies outside the process: it can deliver a message again, twice or out of order, and end the process before
or after any call that leaves it (`Wire`).
"""

import contextlib
import dataclasses
import io
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from azure.core.exceptions import ResourceExistsError
from azure.core.pipeline.transport import RequestsTransport
from azure.storage.queue import QueueServiceClient

from sandbox.dynamics365 import Dynamics365, EntraLogin
from sandbox.mailbox import Mailbox
from sandbox.servicenow import CLIENT_ID, CLIENT_SECRET, PASSWORD, USER_NAME, ServiceNow
from sandbox.simulator import Clock, serve_in_thread
from shared import services
from shared.clients.system import System
from shared.settings import Settings, load_settings
from shared.state.queues import Queues, Taken, parse
from shared.state.rows import (
    EVENT_PAGES,
    LinkRow,
    OpenRow,
    Outcome,
    PageRow,
    ResultRow,
    RunKind,
    RunRow,
    RunState,
    new_run_id,
    newest_first,
    recipe_of,
    shard_of,
)
from shared.state.storage import connect_queues, connect_tables
from shared.state.tables import Tables
from sync import messages, runs, ticks
from sync.app import RECIPES, App, RunMemory, build_app
from sync.outcomes import Results
from sync.windows import parse_window
from tests.clients.connections import Permits

NOW = datetime(2026, 3, 10, 9, 0, tzinfo=UTC)
YESTERDAY = datetime(2026, 3, 9, 12, 0, tzinfo=UTC)
RECIPE = "case_to_incident"
RECIPIENT = "ada@example.com"
CALLER = "ada.quill@customer.example"
OWNER = "owner@contoso.example"
LEASE_S = 120
TRANSACTION_S = 30.0
READ_TIMEOUT_S = 1.0
MAX_DELIVERIES = 5  # host.json: maxDequeueCount

TRIGGERS = {
    "pages": messages.on_page,
    "items": messages.on_items,
    "events": messages.on_event,
    "runs": messages.on_run,
    "summaries": messages.on_summary,
}
Facts = dict[str, Any]


class Killed(BaseException):
    """The process has ended here: no `except Exception` and no later call of the attempt may run."""


class Wire:
    """Every call that leaves the process passes here; at the chosen one the process ends, before or after it."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.dead = False
        self._at, self._after, self._label = -1, False, ""

    def kill_at(self, number: int, *, after: bool) -> None:
        """End the process before or after call `number`, counted from 0 from now on."""
        self.calls, self._at, self._after = [], number, after

    def kill_on(self, label: str, *, after: bool) -> None:
        """End the process before or after the next call whose label matches a regular expression."""
        self._label, self._after = label, after

    def carry(self, label: str, call: Callable[[], Any]) -> Any:
        """Let a call pass, unless the process is to end with it."""
        if self.dead:
            raise Killed(label)
        number = len(self.calls)
        self.calls.append(label)
        strikes = number == self._at or bool(self._label and re.search(self._label, label))
        if strikes:
            self._at, self._label = -1, ""
        if strikes and not self._after:
            self.dead = True
            raise Killed(f"before {label}")
        answer = call()
        if strikes or self.dead:
            self.dead = True
            getattr(answer, "internal_response", answer).close()
            raise Killed(f"after {label}")
        return answer


class StorageEdge(RequestsTransport):
    """Storage calls over the wire."""

    def __init__(self, wire: Wire, prefix: str) -> None:
        super().__init__()
        self._wire, self._prefix = wire, prefix

    def send(self, request: Any, **options: Any) -> Any:
        path = request.url.split("?")[0].split("/", 4)[-1].replace(self._prefix, "")
        label = f"storage {request.method} {path.split('(')[0].split('/')[0]}"
        return self._wire.carry(label, lambda: super(StorageEdge, self).send(request, **options))


class VendorEdge:
    """A vendor's calls over the wire, in place of the connection's adapter."""

    def __init__(self, wire: Wire, name: str, adapter: Any) -> None:
        self._wire, self._name, self._adapter = wire, name, adapter

    def send(self, request: Any, **options: Any) -> Any:
        path = re.sub(r"[0-9a-f]{32}|\([^)]*\)", "*", request.url.split("?")[0].split("/", 3)[-1])
        label = f"{self._name} {request.method} {path}"
        return self._wire.carry(label, lambda: self._adapter.send(request, **options))

    def close(self) -> None:
        self._adapter.close()


class NoMemory(RunMemory):
    """Reads every run anew: the memory is on the machine's clock, and tests move their own."""

    def get(self, run_id: str, read: Callable[[str], RunRow | None]) -> RunRow | None:
        return read(run_id)


class NotingQueues(Queues):
    """Real queues; a delay is noted and not sent, because the storage's clock cannot be moved."""

    def __init__(self, service: QueueServiceClient, prefix: str, clock: Clock) -> None:
        super().__init__(service, prefix)
        self._clock = clock
        self.due: dict[tuple[str, str], list[datetime]] = defaultdict(list)
        self.touched: set[str] = set()
        self.pump: Pump | None = None  # what holds the messages once they were sent

    def _send(self, queue: str, body: str, hidden_s: int, ends_at_s: float | None = None) -> None:
        self.touched.add(queue)
        self.due[queue, body].append(self._clock.now() + timedelta(seconds=hidden_s))
        patient = None if ends_at_s is None else ends_at_s + 60  # a machine that stalls must not fail a test
        super()._send(queue, body, 0, patient)

    def take_more(self, model: type[Any], most: int, lease_s: int) -> list[Taken[Any]]:
        assert self.pump is not None
        taken = self.pump.take_more(model.QUEUE, most, lease_s)
        return [Taken(parse(model, each.body), each.id, each.count, pop_receipt=each.id) for each in taken]

    def done(self, taken: Taken[Any]) -> None:
        assert self.pump is not None
        self.pump.end(taken.id)


@dataclasses.dataclass
class Delivery:
    """One message in the host's hands."""

    queue: str
    id: str
    body: str
    due: datetime
    count: int = 0  # dequeue count


class _Answer(io.BytesIO):
    """What storage answered about messages, which can be dropped like any answer."""

    def __init__(self, messages: list[Delivery]) -> None:
        super().__init__()
        self.messages = messages


class Pump:
    """Stands in for the Functions host: takes messages from the queues and calls the triggers, moving the clock instead of waiting."""

    def __init__(self, world: "World", service: QueueServiceClient) -> None:
        self._world, self._service = world, service
        self.waiting: list[Delivery] = []
        self.done: list[Delivery] = []
        self.repeats = 0  # how often each message that ended well is delivered again, as if its deletion was lost
        self.copies = 1  # messages that arrive per message sent
        self.shuffle: random.Random | None = None  # order of messages that are due; None: as sent
        self.lease_left_s = 0.0  # seconds until a killed message is seen again; 0: the host outlived its worker
        self.lost: Callable[[Delivery], bool] = lambda _: False  # messages that vanish
        self.before: Callable[[Delivery], None] = lambda _: None  # called before each delivery
        self.kills = 0
        self.poisoned: list[Delivery] = []

    def run(self, for_s: float = 1800.0, until: Callable[[], bool] = lambda: False) -> None:
        """Deliver everything that falls due within `for_s` seconds of the fake clock, until nothing is left or `until` holds."""
        ends_at = self._world.now() + timedelta(seconds=for_s)
        for _ in range(20_000):
            self._take()
            delivery = self._next()
            if delivery is None or delivery.due > ends_at or until():
                return
            self._world.advance_to(delivery.due)
            self.deliver(delivery)
        raise AssertionError("the messages never end")

    def deliver(self, delivery: Delivery) -> None:
        """Deliver one message as the host does."""
        self.waiting.remove(delivery)
        delivery.count += 1
        self.before(delivery)
        try:
            TRIGGERS[delivery.queue](self._world.app, delivery.id, delivery.body, delivery.count)
        except Killed:
            self.kills += 1
            self._world.restart()
            self._back(delivery, self.lease_left_s)
        except Exception:
            self._back(delivery, 5.0)  # host.json: visibilityTimeout
        else:
            self.done.append(delivery)
            if delivery.count <= self.repeats:
                self.waiting.append(delivery)

    def take_more(self, queue: str, most: int, lease_s: int) -> list[Delivery]:
        """Hand out what waits behind the message in hand; it comes back when its lease ends."""
        now = self._world.now()
        ready = [each for each in self.waiting if each.queue == queue and each.due <= now]
        if self.shuffle:
            self.shuffle.shuffle(ready)
        taken = self._world.wire.carry(f"storage GET {queue}", lambda: _Answer(ready[:most])).messages
        for each in taken:
            each.count, each.due = each.count + 1, now + timedelta(seconds=lease_s)
        return list(taken)

    def end(self, message_id: str) -> None:
        """Delete a message that was handed out."""

        def delete() -> _Answer:
            gone = [each for each in self.waiting if each.id == message_id]
            self.waiting = [each for each in self.waiting if each.id != message_id]
            self.done += gone
            return _Answer(gone)

        self._world.wire.carry("storage DELETE message", delete)

    def _back(self, delivery: Delivery, hidden_s: float) -> None:
        if delivery.count >= MAX_DELIVERIES:
            self.poisoned.append(delivery)
            messages.on_poison(self._world.app, delivery.queue, delivery.body.encode())
            return
        delivery.due = self._world.now() + timedelta(seconds=hidden_s)
        self.waiting.append(delivery)

    def _next(self) -> Delivery | None:
        if not self.waiting:
            return None
        now = self._world.now()
        ready = [each for each in self.waiting if each.due <= now]
        if self.shuffle and ready:
            return self.shuffle.choice(ready)
        return min(self.waiting, key=lambda each: each.due)

    def _take(self) -> None:
        """Take over what stands in the real queues."""
        queues = self._world.queues
        touched, queues.touched = sorted(queues.touched), set()
        for name in touched:
            client = self._service.get_queue_client(self._world.prefix + name)
            with contextlib.suppress(ResourceExistsError):
                client.create_queue()  # the process may have ended before it could
            for message in client.receive_messages(messages_per_page=32, visibility_timeout=600):
                client.delete_message(message)
                noted = queues.due[name, message.content]
                due = noted.pop(0) if noted else self._world.now()
                for copy in range(self.copies):
                    taken = Delivery(name, message.id if not copy else f"{message.id}-{copy}", message.content, due)
                    if not self.lost(taken):
                        self.waiting.append(taken)


class World:
    """Dynamics 365 with some people, ServiceNow with some of them, a mailbox, storage and the app, at one frozen moment."""

    recipe = RECIPE
    environ: Facts  # its settings, as a shell has them
    _unsettled_s = 0.0  # that have passed since the vendors had ended all they worked on

    def __init__(
        self,
        clock: Clock,
        dynamics: Dynamics365,
        servicenow: ServiceNow,
        mailbox: Mailbox,
        settings: Settings,
        folder: Path,
        prefix: str,
    ) -> None:
        self.clock, self.dynamics, self.servicenow, self.mailbox = clock, dynamics, servicenow, mailbox
        self.settings, self.prefix, self.wire = settings, prefix, Wire()
        self._cases = 0
        self._folder = folder
        self._closing = contextlib.ExitStack()
        self._text = settings.storage.connection_string.get_secret_value()
        self.queues = NotingQueues(self._queue_service(StorageEdge(self.wire, prefix)), prefix, clock)
        self.tables = self._open_tables(StorageEdge(self.wire, prefix))
        self.view = self._open_tables(None)  # the same tables as another process sees them: no kill strikes here
        self.permits = Permits()
        self.systems: dict[str, System] = {}
        self.app = self.build_app(settings)
        self.pump = self.queues.pump = Pump(self, self._queue_service(None))
        self.owner = self.add_owner(OWNER)
        self.add_servicenow_user(OWNER)
        self.caller = self.add_contact(CALLER)
        self.add_servicenow_user(CALLER)

    def _queue_service(self, transport: StorageEdge | None) -> QueueServiceClient:
        return self._closing.enter_context(connect_queues(self._text, transport=transport))

    def _open_tables(self, transport: StorageEdge | None) -> Tables:
        service = self._closing.enter_context(connect_tables(self._text, transport=transport))
        return Tables(service, self.prefix)

    def build_app(self, settings: Settings) -> App:
        """Build the app as `build_app` does, on this world's storage, clock and permits."""
        for name, connection in settings.connections.items():
            build = {
                "dynamics365": services._build_dynamics365,
                "servicenow": services._build_servicenow,
                "marketo": services._build_marketo,
            }
            system = build[connection.system](name, connection, self.permits)
            system._http._adapter = VendorEdge(self.wire, name, system._http._adapter)
            system._http._sleep = lambda _: None
            self._closing.callback(system._http.close)
            self.systems[name] = system
        return dataclasses.replace(
            build_app(settings, self._folder),
            tables=self.tables,
            queues=self.queues,
            system=self.systems.__getitem__,
            now=self.clock.now,
            runs=NoMemory(),
            results=Results(self.tables),
        )

    def change_settings(self, **changes: Any) -> None:
        """Go on with other settings."""
        self.settings = self.settings.model_copy(update=changes)
        self.app = dataclasses.replace(self.app, settings=self.settings)

    def change_recipe(self, old: str, new: str) -> None:
        """Go on with another text of the recipe."""
        file = self._folder / f"{self.recipe}.yaml"
        text = file.read_text()
        assert old in text, f"the recipe does not say {old!r}"
        file.write_text(text.replace(old, new))
        self.app = self.build_app(self.settings)

    def restart(self) -> None:
        """Let a new process take the place of the killed one."""
        self.wire.dead = False

    def close(self) -> None:
        """Close every connection."""
        self._closing.close()

    # -- the clock ----------------------------------------------------------------------------------------------------

    def now(self) -> datetime:
        """Return the one time that all have."""
        return self.clock.now()

    def advance(self, seconds: float) -> None:
        """Let time pass; what a vendor still works on behind a lost answer ends first."""
        self._unsettled_s += seconds
        if self._unsettled_s >= TRANSACTION_S / 2:
            self.settle()
            self._unsettled_s = 0.0
        self.clock.advance(seconds)

    def advance_to(self, moment: datetime) -> None:
        """Let time pass until a moment, if it is still to come."""
        self.advance(max(0.0, (moment - self.now()).total_seconds()))

    def settle(self) -> None:
        """Wait until the simulators have ended what they do beside the requests."""
        self.dynamics.settle()
        self.servicenow.settle()

    # -- records ------------------------------------------------------------------------------------------------------

    def add_contact(self, email: str | None, **columns: Any) -> str:
        """Add a customer's contact."""
        named = {"firstname": "Ada", "lastname": "Quill", "emailaddress1": email}
        return self.dynamics.insert("contact", **named | columns)

    def add_owner(self, email: str | None, **columns: Any) -> str:
        """Add a user who owns cases."""
        named = {"firstname": "Olaf", "lastname": "Owner", "internalemailaddress": email}
        return self.dynamics.insert("systemuser", **named | columns)

    def add_servicenow_user(self, email: str, **fields: str) -> str:
        """Add a user to ServiceNow."""
        return self.servicenow.insert("sys_user", **{"email": email, "user_name": email, "last_name": "Known"} | fields)

    def add_case(self, title: str | None = None, *, contact: str | None = None, **columns: Any) -> str:
        """Add a case that changed yesterday; by default active, its caller and its owner known to ServiceNow."""
        self._cases += 1
        changed = YESTERDAY + timedelta(seconds=self._cases)
        customer = {} if "customerid_account" in columns else {"customerid_contact": contact or self.caller}
        plain = {
            "title": title if title is not None else f"Case number {self._cases}",
            "description": "It does not work.",
            "prioritycode": 2,
            "caseorigincode": 2,
            "createdon": changed - timedelta(hours=1),
            "modifiedon": changed,
            "ownerid": ("systemuser", self.owner),
        }
        return self.dynamics.insert("incident", **plain | customer | columns)

    def edit_case(self, case_id: str, **columns: Any) -> None:
        """Change a case as a person does, now; a minute passes."""
        self.dynamics.update("incident", case_id, **columns)
        self.advance(60)

    def case(self, case_id: str) -> Facts:
        """Return a case as it is."""
        return next(row for row in self.dynamics.rows("incident") if row["incidentid"] == case_id)

    def number_of(self, case_id: str) -> str:
        """Return a case's ticket number."""
        return self.case(case_id)["ticketnumber"]

    def incidents(self, **equals: str) -> list[Facts]:
        """Return the incidents whose fields equal these values."""
        return [dict(row) for row in self.servicenow.rows("incident", **equals)]

    def incident_of(self, case_id: str) -> Facts:
        """Return the one incident that carries a case's id."""
        found = self.incidents(correlation_id=case_id)
        assert len(found) == 1, f"{len(found)} incidents carry the case's id"
        return found[0]

    def users(self, email: str) -> list[Facts]:
        """Return ServiceNow's users with an email, whatever its case."""
        return [dict(row) for row in self.servicenow.rows("sys_user") if row["email"].lower() == email.lower()]

    def user_name(self, sys_id: str) -> str:
        """Return the email of the user with this id, "" when there is none."""
        row = self.servicenow.tables["sys_user"].get(sys_id)
        return row["email"] if row else ""

    # -- runs -----------------------------------------------------------------------------------------------------------

    def start(self, window: str = "yesterday", **facts: Any) -> RunRow:
        """Start a run, or join one, as a request does."""
        facts = {"started_by": "http", "mail_to": (RECIPIENT,)} | facts
        return runs.start_run(self.app, self.app.recipe(self.recipe), parse_window(window), **facts).run

    def sync(self, window: str = "yesterday", **facts: Any) -> RunRow:
        """Start a run, deliver its messages until nothing is left, and return it as it ended."""
        run = self.start(window, **facts)
        self.pump.run()
        return self.run_row(run)

    def tick(self) -> None:
        """Fire the timer of every minute."""
        try:
            ticks.tick(self.app)
        except Killed:
            self.restart()

    def tick_for(self, minutes: int) -> None:
        """Let minutes pass with everything that happens in them."""
        for _ in range(minutes):
            ends_at = self.now() + timedelta(seconds=60)
            self.pump.run(for_s=60)
            self.advance_to(ends_at)
            self.tick()
        self.pump.run(for_s=0)

    def run_row(self, run: RunRow | str) -> RunRow:
        """Return a run as it is stored."""
        run_id = run if isinstance(run, str) else run.run_id
        found = self.view.get(RunRow, recipe_of(run_id), newest_first(run_id))
        assert found is not None
        return found

    def runs(self) -> list[RunRow]:
        """Return all runs, newest first."""
        return list(self.view.query(RunRow, self.recipe))

    def results(self, run: RunRow | str) -> dict[str, ResultRow]:
        """Return a run's results by case id; fails when a case has two."""
        run_id = run if isinstance(run, str) else run.run_id
        found: dict[str, ResultRow] = {}
        for page in self.view.query(PageRow, run_id):
            for result in self.view.query(ResultRow, f"{run_id}!{page.page:06d}"):
                assert result.key not in found, "a case has two results in one run"
                found[result.key] = result
        return found

    def outcomes(self, run: RunRow | str) -> dict[str, int]:
        """Return how many results of each outcome a run has."""
        return dict(Counter(str(result.outcome) for result in self.results(run).values()))

    def open_keys(self) -> list[str]:
        """Return the cases that are kept as failed."""
        return [row.key for row in self.view.query(OpenRow, self.recipe)]

    def link_of(self, case_id: str) -> LinkRow | None:
        """Return a case's link."""
        row = LinkRow(pair=self.app.flow(self.recipe).pair, side="dynamics365.incident", key=case_id)
        return self.view.get(LinkRow, row.partition_key, row.row_key)

    def links(self) -> list[LinkRow]:
        """Return all links."""
        pair = self.app.flow(self.recipe).pair
        keys = {LinkRow(pair=pair, side="", key=str(n)).partition_key for n in range(200)}
        assert {key.rsplit("~")[-1] for key in keys} == {shard_of(str(n)) for n in range(200)}
        return [row for key in sorted(keys) for row in self.view.query(LinkRow, key)]

    def reads(self, path: str = "/api/") -> list[str]:
        """Return the requests of ServiceNow's journal that read, as "path?query"."""
        return [entry.target for entry in self.servicenow.requests("GET", path)]

    def writes(self) -> list[str]:
        """Return the requests of ServiceNow's journal that change records, as "METHOD path"."""
        return [f"{e.method} {e.path}" for e in self.servicenow.requests("", "^/api/") if e.method != "GET"]

    def sent(self, method: str = "PATCH") -> list[tuple[str, str]]:
        """Return path and body of each request of a method in ServiceNow's journal."""
        return [(entry.path, entry.body) for entry in self.servicenow.requests(method, "^/api/")]

    def forget_journal(self) -> None:
        """Empty both journals."""
        self.servicenow.journal.clear()
        self.dynamics.journal.clear()

    def end_state(self) -> Facts:
        """Return what both systems and the links hold, without ids that differ from world to world: for comparing two."""
        names = ("short_description", "description", "number", "urgency", "contact_type", "opened_at", "state")
        incidents = sorted(
            (
                *(row[name] for name in names),
                self.user_name(row["caller_id"]),
                self.user_name(row["assigned_to"]),
                bool(row["correlation_id"]),
                len(self.servicenow.records.journal(row, "work_notes")),
            )
            for row in self.servicenow.rows("incident")
        )
        links = sorted(
            (link.key in known, bool(link.other_key), link.claim is None, link.gone)
            for known in [{row["correlation_id"] for row in self.servicenow.rows("incident")}]
            for link in self.links()
        )
        users = sorted(row["email"].lower() for row in self.servicenow.rows("sys_user"))
        return {"incidents": incidents, "users": users, "links": links}


def store_run(world: World, age: timedelta, suffix: str, kind: RunKind = RunKind.WINDOW) -> RunRow:
    """Store a run of long ago with one result; a day of events has no manifests."""
    at = world.now() - age
    run = RunRow(
        run_id=new_run_id(world.recipe, at, suffix),
        recipe=world.recipe,
        kind=kind,
        state=RunState.RUNNING if kind is RunKind.BACKFILL else RunState.COMPLETED,
        created_at=at,
        moved_at=at,
        closed=True,
    )
    page = EVENT_PAGES - 1 if kind is RunKind.EVENTS else 0
    world.view.insert(run)
    if kind is not RunKind.EVENTS:
        world.view.insert(PageRow(run_id=run.run_id, page=page, keys=["r"], last=True, fanned_out=True))
    world.view.insert(
        ResultRow(run_id=run.run_id, page=page, key="r", outcome=Outcome.CREATED, source_label="CAS-1", ended_at=at)
    )
    return run


ENDED = (RunState.COMPLETED, RunState.COMPLETED_WITH_WARNINGS, RunState.COMPLETED_WITH_FAILURES)


@dataclasses.dataclass(frozen=True)
class Stage:
    """What all worlds of a test session share."""

    storage: str  # connection string
    tls: Any  # the login host's certificate
    bundle: Path


def usual_settings(
    stage: Stage, dynamics: Dynamics365, dynamics_port: int, login_port: int, mailbox: Mailbox
) -> dict[str, str]:
    """Return the settings of every world: storage, mail and Dynamics 365."""
    return {
        "AzureWebJobsStorage": stage.storage,
        "APP_URL": "http://localhost:7071",
        "ENVIRONMENT": "test",
        "ALLOWED_MAIL_DOMAINS": "example.com",
        "NOTIFY": "support.lead@example.com",
        "DIGEST_KEYS": "test:a-key-that-is-used-in-tests-alone-0001",
        "ALLOW_UNLISTED_HOSTS": "true",
        "QUEUE_LEASE_S": str(LEASE_S),
        "MAIL__HOST": "127.0.0.1",
        "MAIL__PORT": str(mailbox.smtp_port),
        "MAIL__SECURITY": "none",
        "MAIL__SENDER": "concord@example.com",
        "CONNECTIONS__DYNAMICS365__ENVIRONMENT": "test",
        "CONNECTIONS__DYNAMICS365__URL": f"http://localhost:{dynamics_port}",
        "CONNECTIONS__DYNAMICS365__AUTHORITY": f"https://localhost:{login_port}",
        "CONNECTIONS__DYNAMICS365__TENANT_ID": dynamics.tokens.tenant,
        "CONNECTIONS__DYNAMICS365__CLIENT_ID": next(iter(dynamics.application_users)),
        "CONNECTIONS__DYNAMICS365__CLIENT_SECRET": "sandbox-secret",
        "CONNECTIONS__DYNAMICS365__READ_TIMEOUT_S": str(READ_TIMEOUT_S),
    }


@contextlib.contextmanager
def new_world(stage: Stage, folder: Path, prefix: str, values: Facts | None = None, **switches: Any) -> Iterator[World]:
    """Serve a new world; `values` are settings beside the usual ones, `switches` those of ServiceNow."""
    clock = Clock(NOW)
    dynamics, servicenow, mailbox = Dynamics365(clock), ServiceNow(clock, **switches), Mailbox(clock=clock)
    login = EntraLogin(dynamics.tokens)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{RECIPE}.yaml").write_text((RECIPES / f"{RECIPE}.yaml").read_text())
    with (
        serve_in_thread(dynamics, servicenow, mailbox) as (dynamics_port, servicenow_port, _),
        serve_in_thread(login, tls=stage.tls) as (login_port,),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("REQUESTS_CA_BUNDLE", str(stage.bundle))
        environ = usual_settings(stage, dynamics, dynamics_port, login_port, mailbox) | {
            "CONNECTIONS__SERVICENOW__ENVIRONMENT": "test",
            "CONNECTIONS__SERVICENOW__URL": f"http://localhost:{servicenow_port}",
            "CONNECTIONS__SERVICENOW__AUTH": "password",
            "CONNECTIONS__SERVICENOW__CLIENT_ID": CLIENT_ID,
            "CONNECTIONS__SERVICENOW__CLIENT_SECRET": CLIENT_SECRET,
            "CONNECTIONS__SERVICENOW__USER": USER_NAME,
            "CONNECTIONS__SERVICENOW__PASSWORD": PASSWORD,
            "CONNECTIONS__SERVICENOW__READ_TIMEOUT_S": str(READ_TIMEOUT_S),
            "CONNECTIONS__SERVICENOW__TRANSACTION_S": str(TRANSACTION_S),
        }
        world = World(clock, dynamics, servicenow, mailbox, load_settings(environ | (values or {})), folder, prefix)
        world.environ = environ | (values or {})
        try:
            yield world
        finally:
            world.close()
