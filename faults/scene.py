"""The scene of the sweep: simulators, storage, mailbox and the app in one process, set back to the same moment each time.

The pump stands in for the host, on a clock that only it moves (`tests/flows/world.py`). What is prepared once is kept: the
simulators' records as bytes, the storage's rows as they are; a scenario gets tables and queues of its own.
"""

import contextlib
import dataclasses
import functools
import os
import pickle
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from azure.core.exceptions import ServiceResponseError
from azure.data.tables import TableServiceClient
from azure.storage.queue import QueueServiceClient

from faults.kinds import MAIL, Effect
from faults.proxy import Upstream, serving
from faults.wire import Wire, tapped
from sandbox.azurite import Azurite
from sandbox.certificates import make_certificates
from sandbox.dynamics365 import Dynamics365, EntraLogin
from sandbox.mailbox import Mailbox, MailFaultKind
from sandbox.marketo import CLIENT_ID as MARKETO_ID
from sandbox.marketo import CLIENT_SECRET as MARKETO_SECRET
from sandbox.marketo import Marketo
from sandbox.servicenow import CLIENT_ID, CLIENT_SECRET, PASSWORD, USER_NAME, ServiceNow
from sandbox.simulator import Clock, serve_in_thread
from shared import services
from shared.clients.system import System
from shared.errors import StateError
from shared.mail import Delivery as MailDelivery
from shared.mail import Email
from shared.settings import Settings, load_settings
from shared.state.queues import Queues
from shared.state.rows import ROWS, LinkRow, PageRow, ResultRow, RunRow, StateRow, newest_first, recipe_of
from shared.state.storage import connect_queues, connect_tables
from shared.state.tables import Tables
from sync import ticks
from sync.app import App, build_app
from sync.outcomes import Results
from tests.clients.connections import Permits
from tests.flows.contacts import ORIGIN, WEBHOOK_KEY
from tests.flows.world import NOW, Facts, Killed, NoMemory, NotingQueues, Pump, Stage, usual_settings

TRANSACTION_S = 30.0
TIMEOUT_S = 10.0  # of a call that is not struck: a busy machine must not look like a fault
MINUTES = 90  # of the scene's clock, after which a run that has not ended never will
PAGE_SIZE = 25


@dataclasses.dataclass(frozen=True)
class Kept:
    """Everything at one moment."""

    records: bytes
    rows: dict[str, list[dict[str, Any]]]  # by table
    at: datetime


class LivePump(Pump):
    """Delivers messages with the wire live."""

    def __init__(self, scene: "Scene", service: QueueServiceClient) -> None:
        super().__init__(scene, service)  # type: ignore[arg-type]  # it has what a pump uses
        self.scene = scene

    def deliver(self, delivery: Any) -> None:
        with self.scene.wire.attempt():
            super().deliver(delivery)


class Scene:
    """One process's stage for scenarios, one after another."""

    def __init__(self, azurite: Azurite, folder: Path, wire: Wire, clock: Clock, sims: dict[str, Any]) -> None:
        self.azurite, self.folder, self.wire, self.clock = azurite, folder, wire, clock
        self.dynamics: Dynamics365 = sims["dynamics365"]
        self.servicenow: ServiceNow = sims["servicenow"]
        self.marketo: Marketo = sims["marketo"]
        self.mailbox: Mailbox = sims["mailbox"]
        self.environ: Facts = {}
        self.prefix, self._number, self._held_for_s = "", 0, 0.0
        self._closing = contextlib.ExitStack()
        self._apps: dict[tuple[Any, ...], tuple[Settings, App]] = {}
        self._blank = self._pack()
        self._before: dict[str, list[dict[str, Any]]] = {}
        self.proxy: Any = None
        self.app: App
        self.queues: Queues
        self.view: Tables
        self.pump: LivePump

    # -- setting back -------------------------------------------------------------------------------------------------

    def keep(self) -> Kept:
        """Keep everything as it is now."""
        service = self._raw_tables()
        rows = {}
        for model in ROWS:
            with contextlib.suppress(Exception):
                rows[model.TABLE] = [
                    dict(entity) for entity in service.get_table_client(self.prefix + model.TABLE).list_entities()
                ]
        return Kept(self._pack(), {name: found for name, found in rows.items() if found}, self.clock.now())

    def open(self, kept: Kept | None, recipes: tuple[str, ...], values: Facts | None = None) -> None:
        """Set everything back, or begin with nothing; the app has just been started."""
        self.close()
        self._number += 1
        self.prefix = f"p{os.getpid()}x{self._number}"
        self.wire.prefix = self.prefix
        self.wire.arm()
        self.mailbox.mails.clear()
        self.mailbox.mail_faults.clear()
        for sim in (self.dynamics, self.servicenow, self.marketo):
            sim.journal.clear()
            sim.expire_tokens()
        self._before = kept.rows if kept else {}
        self._unpack(kept.records if kept else self._blank)
        self.dynamics.protection.forget()
        self.marketo.usage.forget()
        self.clock.freeze(kept.at if kept else NOW)
        if kept is not None:
            self._fill_tables(kept.rows)
        text = self.azurite.connection_string
        enter = self._closing.enter_context
        self.queues = NotingQueues(enter(connect_queues(text)), self.prefix, self.clock)
        self.view = Tables(enter(connect_tables(text)), self.prefix)
        self.pump = LivePump(self, enter(connect_queues(text)))
        self.queues.pump = self.pump
        self.app = self._build_app(recipes, values or {}, Tables(enter(connect_tables(text)), self.prefix))

    def close(self) -> None:
        """Leave nothing of the scenario behind."""
        self.proxy.forget()
        self._closing.close()
        self._closing = contextlib.ExitStack()
        if self.prefix:
            self._drop_all()
            self.prefix = ""

    def _drop_all(self) -> None:
        service = self._raw_tables()
        for table in list(service.list_tables()):
            if table.name.startswith(self.prefix):
                service.delete_table(table.name)
        with connect_queues(self.azurite.connection_string) as queues:
            for queue in list(queues.list_queues(name_starts_with=self.prefix)):
                queues.delete_queue(queue.name)

    def _raw_tables(self) -> TableServiceClient:
        return TableServiceClient.from_connection_string(self.azurite.connection_string)

    def _fill_tables(self, rows: dict[str, list[dict[str, Any]]]) -> None:
        service = self._raw_tables()
        for model in ROWS:
            client = service.create_table_if_not_exists(self.prefix + model.TABLE)
            parts = defaultdict(list)
            for entity in rows.get(model.TABLE, ()):
                parts[entity["PartitionKey"]].append(("upsert", entity, {"mode": "replace"}))
            for steps in parts.values():
                for start in range(0, len(steps), 100):
                    submit = functools.partial(client.submit_transaction, steps[start : start + 100])
                    try:
                        submit()
                    except ServiceResponseError:  # a kept connection, closed meanwhile; upserts may be repeated
                        submit()

    def _pack(self) -> bytes:
        records, store, leads = self.servicenow.records, self.dynamics.store, self.marketo.records
        with records.lock, leads.lock:
            return pickle.dumps((
                (records.tables, records._made, records._numbers, records._index, records._order),
                (store.data, store.version, store.deleted, store._tickets, store._random),
                (leads.tables, {key: dict(value) for key, value in leads._index.items()}, leads._ids),
            ))  # fmt: skip

    def _unpack(self, packed: bytes) -> None:
        records, store, leads = self.servicenow.records, self.dynamics.store, self.marketo.records
        one, two, three = pickle.loads(packed)
        records.tables, records._made, records._numbers, records._index, records._order = one
        store.data, store.version, store.deleted, store._tickets, store._random = two
        self.dynamics.api.forget_lists()
        leads.tables, leads._ids = three[0], three[2]
        leads._index = {key: defaultdict(dict, value) for key, value in three[1].items()}

    # -- the app ------------------------------------------------------------------------------------------------------

    def _build_app(self, recipes: tuple[str, ...], values: Facts, tables: Tables) -> App:
        """Build the app as `build_app` does, on this scene's storage and clock, its clients new."""
        key = (recipes, tuple(sorted(values.items())))
        if key not in self._apps:
            settings = load_settings(self._environ_of(recipes) | values)
            self._apps[key] = settings, build_app(settings, self._folder_of(recipes))
        settings, app = self._apps[key]
        build = {
            "dynamics365": services._build_dynamics365,
            "servicenow": services._build_servicenow,
            "marketo": services._build_marketo,
        }
        systems: dict[str, System] = {}
        for name, connection in settings.connections.items():
            system: Any = build[connection.system](name, connection, Permits())
            system._http._sleep = self.wire.sleep
            self._closing.callback(system._http.close)
            systems[name] = system
        return dataclasses.replace(
            app,
            tables=tables,
            queues=self.queues,
            system=systems.__getitem__,
            now=self.clock.now,
            runs=NoMemory(),
            results=Results(tables),
            send_mail=lambda email: self._send_mail(app, email),
        )

    def _environ_of(self, recipes: tuple[str, ...]) -> Facts:
        unused = "MARKETO" if "case_to_incident" in recipes else "SERVICENOW"
        return {name: value for name, value in self.environ.items() if f"__{unused}__" not in name}

    def _folder_of(self, recipes: tuple[str, ...]) -> Path:
        from sync.app import RECIPES  # noqa: PLC0415

        folder = self.folder / "-".join(recipes)
        folder.mkdir(exist_ok=True)
        for name in recipes:
            (folder / f"{name}.yaml").write_text((RECIPES / f"{name}.yaml").read_text())
        return folder

    def _send_mail(self, app: App, email: Email) -> MailDelivery:
        fault = self.wire.strikes(f"{MAIL} SEND · summaries.send_summary")
        if fault is None:
            return app.send_mail(email)
        match fault.effect:
            case Effect.KILL_BEFORE:
                self.wire.die("before")
            case Effect.REFUSE | Effect.STATUS:
                self.mailbox.add_mail_fault(MailFaultKind.REFUSE_MESSAGE, code=451)
            case Effect.SILENT_AFTER:
                self.mailbox.add_mail_fault(MailFaultKind.LOSE_ANSWER)
            case Effect.HANG:
                self.mailbox.add_mail_fault(MailFaultKind.HANG, seconds=0.2)
        answer = app.send_mail(email)
        if fault.effect is Effect.KILL_AFTER:
            self.wire.die("after")
        return answer

    # -- what a pump and a person use ---------------------------------------------------------------------------------

    def now(self) -> datetime:
        """Return the one time that all have."""
        return self.clock.now()

    def advance_to(self, moment: datetime) -> None:
        """Let time pass until a moment, if it is still to come.

        What a vendor still works on takes effect as late as its longest transaction allows: just before time moves.
        """
        seconds = (moment - self.now()).total_seconds()
        if seconds <= 0:
            return
        if self.proxy.holds:
            last = min(seconds, max(0.0, TRANSACTION_S - 1 - self._held_for_s))
            self.clock.advance(last)
            self._held_for_s += last
            seconds -= last
            if seconds > 0:
                self.proxy.release()
                self._held_for_s = 0.0
        self.clock.advance(seconds)

    def restart(self) -> None:
        """Let a new process take the place of the killed one."""
        self.wire.dead = False

    def asks(self, ask: Any) -> Any:
        """Do what a person asks for over HTTP, as a browser does, which asks again when it gets no answer."""
        for _ in range(5):
            try:
                with self.wire.attempt():
                    return ask()
            except Killed:
                self.restart()
            except StateError:
                self.clock.advance(5)
        raise AssertionError("nobody could be asked")

    def tick(self) -> None:
        """Fire the timer of every minute."""
        try:
            with self.wire.attempt():
                ticks.tick(self.app)
        except Killed:
            self.restart()
        except StateError:
            return  # the next one comes in a minute

    def work(self, ended: Any) -> None:
        """Deliver and tick until everything has ended, and a little longer."""
        self._held_for_s = 0.0
        self.pump.run(for_s=240)
        for _ in range(MINUTES):
            if ended() and not self.proxy.holds:
                break
            ends_at = self.now() + timedelta(seconds=60)
            self.pump.run(for_s=60)
            self.advance_to(ends_at)
            self.tick()
            self.pump.run(for_s=0)
        self.pump.run(for_s=120)

    # -- looking ------------------------------------------------------------------------------------------------------

    def run_row(self, run_id: str) -> RunRow | None:
        """Return a run as it is stored."""
        return self.view.get(RunRow, recipe_of(run_id), newest_first(run_id))

    def rows(self, model: type[StateRow]) -> list[Any]:
        """Return all rows of a table."""
        return list(self.view.scan(model))

    def rows_before(self, model: type[StateRow]) -> list[dict[str, Any]]:
        """Return the rows of a table as the scenario began with them."""
        return self._before.get(model.TABLE, [])

    def results(self, run_id: str) -> tuple[dict[str, ResultRow], list[str]]:
        """Return a run's results by key, and what is wrong with their number."""
        found: dict[str, ResultRow] = {}
        wrong, listed = [], set()
        for page in self.view.query(PageRow, run_id):
            listed |= set(page.keys)
            for result in self.view.query(ResultRow, f"{run_id}!{page.page:06d}"):
                if result.key in found:
                    wrong.append(f"{result.key} has two results")
                found[result.key] = result
        wrong += [f"{key} has no result" for key in sorted(listed - found.keys())]
        return found, wrong

    def links(self) -> list[LinkRow]:
        """Return all links."""
        return self.rows(LinkRow)


@contextlib.contextmanager
def staged() -> Iterator[Scene]:
    """Serve a scene of this process's own."""
    clock = Clock(NOW)
    sims: dict[str, Any] = {
        "dynamics365": Dynamics365(clock),
        "servicenow": ServiceNow(clock),
        "marketo": Marketo(clock, calls_per_window=0),
        "mailbox": Mailbox(clock=clock),
    }
    login = EntraLogin(sims["dynamics365"].tokens)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-")))
        azurite = stack.enter_context(Azurite())
        tls, bundle = make_certificates(folder)
        os.environ["REQUESTS_CA_BUNDLE"] = str(bundle)
        served = [sims["dynamics365"], sims["servicenow"], sims["marketo"], sims["mailbox"]]
        ports = stack.enter_context(serve_in_thread(*served))
        (login_port,) = stack.enter_context(serve_in_thread(login, tls=tls))
        upstreams = [
            Upstream("dynamics365", "127.0.0.1", ports[0], called=f"localhost:{ports[0]}"),
            Upstream("servicenow", "127.0.0.1", ports[1], called=f"localhost:{ports[1]}"),
            Upstream("marketo", "127.0.0.1", ports[2], called=f"localhost:{ports[2]}"),
            Upstream("login", "127.0.0.1", login_port, tls=True, called=f"localhost:{login_port}"),
            Upstream("queue", "127.0.0.1", azurite.ports[1]),
            Upstream("table", "127.0.0.1", azurite.ports[2]),
        ]
        wires: list[Wire] = []
        proxy = stack.enter_context(serving(lambda passing: wires[0].decide(passing)))  # noqa: PLW0108  # there is no wire yet
        wire = Wire({upstream.port: upstream.name for upstream in upstreams}, proxy)
        wires.append(wire)
        for upstream in upstreams:
            proxy.open(upstream)
        stack.enter_context(tapped(wire))
        sign_in_time = SimpleNamespace(time=lambda: clock.now().timestamp())  # msal keeps what a busy login said
        stack.enter_context(mock.patch("msal.individual_cache.time", sign_in_time))
        stack.enter_context(mock.patch("shared.state.tables.LEAST_TOGETHER", 2))  # a page's links are few in each shard
        scene = Scene(azurite, folder, wire, clock, sims)
        scene.proxy = proxy
        wire.on_expire = lambda name: sims[name].expire_tokens()
        wire.error_of = lambda name, status: _error_body(sims.get(name, login if name == "login" else None), status)
        wire.on_sleep = clock.advance
        stage = Stage(azurite.connection_string, tls, bundle)
        usual = usual_settings(stage, sims["dynamics365"], ports[0], login_port, sims["mailbox"])
        scene.environ = usual | _settings(ports)
        try:
            yield scene
        finally:
            scene.close()


def _error_body(sim: Any, status: int) -> bytes | None:
    """Return the body with which a simulated system answers a status, if it is one of those."""
    if sim is None or not status or status in (502, 503):  # those are a gateway's
        return None
    body = sim.error_response(status).body
    return body if isinstance(body, bytes) and body else None


def _settings(ports: list[int]) -> Facts:
    both = {
        "READ_TIMEOUT_S": str(TIMEOUT_S),
        "CONNECT_TIMEOUT_S": "2",
        "TRANSACTION_S": str(TRANSACTION_S),
        "ENVIRONMENT": "test",
    }
    values = {
        f"CONNECTIONS__{name}__{key}": text
        for name in ("SERVICENOW", "MARKETO", "DYNAMICS365")
        for key, text in both.items()
    }
    return values | {
        "CONNECTIONS__DYNAMICS365__PAGE_SIZE": str(PAGE_SIZE),
        "CONNECTIONS__DYNAMICS365__WEBHOOK_KEY": WEBHOOK_KEY,
        "CONNECTIONS__DYNAMICS365__ORIGIN": ORIGIN,
        "CONNECTIONS__SERVICENOW__URL": f"http://localhost:{ports[1]}",
        "CONNECTIONS__SERVICENOW__AUTH": "password",
        "CONNECTIONS__SERVICENOW__CLIENT_ID": CLIENT_ID,
        "CONNECTIONS__SERVICENOW__CLIENT_SECRET": CLIENT_SECRET,
        "CONNECTIONS__SERVICENOW__USER": USER_NAME,
        "CONNECTIONS__SERVICENOW__PASSWORD": PASSWORD,
        "CONNECTIONS__SERVICENOW__CONCURRENCY": "1",
        "CONNECTIONS__MARKETO__URL": f"http://localhost:{ports[2]}",
        "CONNECTIONS__MARKETO__CLIENT_ID": MARKETO_ID,
        "CONNECTIONS__MARKETO__CLIENT_SECRET": MARKETO_SECRET,
        "CONNECTIONS__MARKETO__CONCURRENCY": "1",
    }
