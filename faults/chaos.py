"""Seeded chaos with real processes: kills by SIGKILL, storage that restarts, faults on every wire, messages twice and late.

    python -m faults.chaos --seed 7 --minutes 1 --workers 3

The host and its workers run as in the demo; storage and every system lie behind a proxy. The seed makes the schedule; what
the machine's threads do with it differs from run to run, so a seed that fails is played again until the reason is found.
At the end: nothing lost, nothing doubled, one result per item, one summary per run, every run ended.
"""

import argparse
import contextlib
import dataclasses
import json
import random
import sys
import tempfile
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import certifi
import requests
from azure.core.exceptions import AzureError
from azure.storage.queue import QueueServiceClient

from faults.kinds import STORAGE, Effect
from faults.proxy import Passing, Proxy, Stroke, Upstream, serving
from sandbox import dynamics365_records, servicenow_records
from sandbox.azurite import Azurite
from sandbox.certificates import make_certificates
from sandbox.dynamics365 import Dynamics365, EntraLogin
from sandbox.host import Host
from sandbox.host_config import read_settings
from sandbox.mailbox import Mailbox
from sandbox.marketo import Marketo
from sandbox.oracle import Snapshot, compare, expect, take_snapshot
from sandbox.servicenow import ServiceNow
from sandbox.simulator import serve_in_thread
from sandbox.skewed_clock import SKEWS
from shared.errors import SyncError
from shared.state.messages import RunMessage
from shared.state.queues import Queues, poison_of
from shared.state.rows import EVENT_PAGES, LinkRow, PageRow, ResultRow, RunKind, RunRow, SlotRow
from shared.state.storage import connect_queues, connect_tables
from shared.state.tables import Tables

ROOT = Path(__file__).parent.parent
CASES, CONTACTS = "case_to_incident", "contact_to_lead"
QUEUES = ("pages", "items", "runs", "summaries", "events")
LEASE_S, TRANSACTION_S, READ_S, CONNECT_S = 12, 3.0, 1.5, 0.5
SETTLE_S = 420.0  # after the last blow, until everything has ended
LOOK_S, TELL_S = 0.5, 20.0
MOST_SKEW_S = 60.0  # by which a worker's own clock is wrong; the next one's is wrong the other way
SYNCED = {"created", "adopted", "updated", "unchanged"}

EFFECTS = (
    Effect.RESET_BEFORE, Effect.RESET_AFTER, Effect.RESET_AFTER, Effect.SILENT_AFTER, Effect.HANG, Effect.LATE,
    Effect.STATUS, Effect.STATUS, Effect.STATUS_AFTER, Effect.CUT, Effect.SHORT, Effect.HTML,
)  # fmt: skip


@dataclasses.dataclass
class Weather:
    """How likely a request is struck at the moment; read by the proxy's thread."""

    chance: random.Random
    storage: float = 0.0
    vendors: float = 0.0
    struck: Counter[str] = dataclasses.field(default_factory=Counter)

    def decide(self, passing: Passing) -> Stroke | None:
        """Choose what becomes of a request."""
        name = passing.upstream.name
        if self.chance.random() >= (self.storage if name in STORAGE else self.vendors):
            return None
        effect = self.chance.choice(EFFECTS)
        status = self.chance.choice((429, 500, 502, 503) if effect is Effect.STATUS else (502, 504))
        self.struck[f"{name} {effect.value}"] += 1
        headers = (("Retry-After", "2"),) if status in (429, 503) and self.chance.random() < 0.5 else ()
        return Stroke(effect, status, headers)


class Town:
    """Everything that runs."""

    def __init__(self, folder: Path, seed: int, records: int, workers: int, echo: Callable[[str], None]) -> None:
        self.folder, self.seed, self.records, self.workers, self.echo = folder, seed, records, workers, echo
        self.chance = random.Random(seed)
        self.weather = Weather(random.Random(seed + 1))
        clocks = random.Random(seed + 2)
        self.skews = [clocks.uniform(5.0, MOST_SKEW_S) * (-1) ** number for number in range(workers)]
        self.dynamics, self.servicenow, self.mailbox = Dynamics365(), ServiceNow(), Mailbox()
        self.marketo = Marketo(calls_per_window=0)
        self.login = EntraLogin(self.dynamics.tokens)
        self.azurite = Azurite(folder / "storage")
        self.env: dict[str, str] = {}
        self.host: Host
        self.proxy: Proxy
        self.before: Snapshot
        self.midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        self.blows: list[str] = []
        self.started: set[str] = set()
        self.contacts: dict[str, str] = {}  # email by contact id
        self.accepted: set[str] = set()  # event ids that were answered 202

    def blow(self, text: str) -> None:
        """Note what was done."""
        self.blows.append(text)
        self.echo(text)

    @property
    def direct(self) -> str:
        """Return the connection string that passes no proxy."""
        return self.azurite.connection_string

    @contextlib.contextmanager
    def open(self) -> Iterator["Town"]:
        """Serve everything."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.azurite)
            self._fill()
            tls, bundle = make_certificates(self.folder)
            trusted = bundle.with_name("trusted.pem")
            trusted.write_bytes(Path(certifi.where()).read_bytes() + b"\n" + bundle.read_bytes())
            sims = stack.enter_context(serve_in_thread(self.dynamics, self.servicenow, self.marketo, self.mailbox))
            (login,) = stack.enter_context(serve_in_thread(self.login, tls=tls))
            self.proxy = stack.enter_context(serving(self.weather.decide))
            ports = {
                name: self.proxy.open(Upstream(name, "127.0.0.1", port))
                for name, port in (
                    ("dynamics365", sims[0]), ("servicenow", sims[1]), ("marketo", sims[2]),
                    ("blob", self.azurite.ports[0]), ("queue", self.azurite.ports[1]), ("table", self.azurite.ports[2]),
                )
            }  # fmt: skip
            self.env = self._environ(ports, login, trusted)
            self.host = stack.enter_context(self._new_host())
            yield self

    def _fill(self) -> None:
        cases = dynamics365_records.seed(self.dynamics, self.records)
        servicenow_records.seed(self.servicenow, cases, 120)
        self.before = take_snapshot(self.dynamics, self.servicenow)
        seen: set[str] = set()
        for row in self.dynamics.rows("contact"):
            email = (row["emailaddress1"] or "").lower()
            if email and email not in seen and row["statecode"] == 0 and len(self.contacts) < 20:
                self.contacts[row["contactid"]] = email
            seen.add(email)

    def _environ(self, ports: dict[str, int], login: int, trusted: Path) -> dict[str, str]:
        text = self.direct
        for name, port in zip(("blob", "queue", "table"), self.azurite.ports, strict=True):
            text = text.replace(f":{port}/", f":{ports[name]}/")
        values = read_settings(ROOT / "local.settings.example.json")
        for name in ("DYNAMICS365", "SERVICENOW", "MARKETO"):
            values |= {
                f"CONNECTIONS__{name}__URL": f"http://localhost:{ports[name.lower()]}",
                f"CONNECTIONS__{name}__READ_TIMEOUT_S": str(READ_S),
                f"CONNECTIONS__{name}__CONNECT_TIMEOUT_S": str(CONNECT_S),
                f"CONNECTIONS__{name}__TRANSACTION_S": str(TRANSACTION_S),
            }
        return values | {
            "AzureWebJobsStorage": text,
            "REQUESTS_CA_BUNDLE": str(trusted),
            "QUEUE_LEASE_S": str(LEASE_S),
            "MAX_ATTEMPTS": "12",
            "MAIL__HOST": "localhost",
            "MAIL__PORT": str(self.mailbox.smtp_port),
            "CONNECTIONS__DYNAMICS365__AUTHORITY": f"https://localhost:{login}",
            "CONNECTIONS__DYNAMICS365__PAGE_SIZE": "25",
            "CONNECTIONS__MARKETO__WEB_URL": "",
            SKEWS: ",".join(f"{seconds:.1f}" for seconds in self.skews),
        }

    def _new_host(self) -> Host:
        return Host(ROOT, self.env, self.workers, 0, log_level="Error", queue_lease_s=LEASE_S)

    # -- blows ----------------------------------------------------------------------------------------------------------

    def kill_worker(self) -> None:
        """End one worker at once."""
        number = self.chance.randrange(self.workers) + 1
        with contextlib.suppress(requests.RequestException, LookupError, ProcessLookupError):
            self.host.kill_worker(number)
            self.blow(f"worker {number} killed")

    def kill_host(self) -> None:
        """End the host with all its workers; its messages keep their leases."""
        self.host.kill()
        self.blow("host killed")
        self.host.start()

    def restart_storage(self) -> None:
        """Restart storage; what it holds stays."""
        self.azurite.stop()
        time.sleep(self.chance.uniform(0.2, 2.0))
        self.azurite.start()
        self.blow("storage restarted")

    def storm(self) -> None:
        """Strike a share of all requests for a while."""
        self.weather.storage, self.weather.vendors = self.chance.choice(
            ((0.04, 0.0), (0.0, 0.2), (0.03, 0.1), (0.3, 0.0))
        )
        seconds = self.chance.uniform(1.0, 4.0) if self.weather.storage < 0.1 else 1.0
        self.blow(f"storm of {seconds:.1f} s: storage {self.weather.storage}, vendors {self.weather.vendors}")
        time.sleep(seconds)
        self.calm()

    def calm(self) -> None:
        """End the storm; what was withheld takes effect."""
        self.weather.storage = self.weather.vendors = 0.0
        time.sleep(self.chance.uniform(0.0, max(0.0, TRANSACTION_S - READ_S - CONNECT_S)))
        self.proxy.release()

    def double_messages(self) -> None:
        """Send copies of what stands in the queues, and of the checks of runs, which are hidden most of the time."""
        self._with_messages(lambda client, message: client.send_message(message.content), "doubled")
        with contextlib.suppress(SyncError), connect_queues(self.direct) as service:
            checks = [RunMessage(run_id=run.run_id, turn=run.turn) for run in self.runs() if not run.state.ended]
            Queues(service).send_many(checks)
            self.blow(f"{len(checks)} checks of runs doubled")

    def delay_messages(self) -> None:
        """Hide messages for a while."""
        self._with_messages(lambda client, message: client.update_message(message, visibility_timeout=8), "delayed", 60)

    def _with_messages(self, act: Callable[[Any, Any], Any], word: str, hidden_s: int = 1) -> None:
        count = 0
        with QueueServiceClient.from_connection_string(self.direct) as service:
            for name in QUEUES:
                client = service.get_queue_client(name)
                with contextlib.suppress(AzureError):
                    for message in client.receive_messages(max_messages=8, visibility_timeout=hidden_s):
                        act(client, message)
                        count += 1
        self.blow(f"{count} messages {word}")

    def expire_tokens(self) -> None:
        """Void every token."""
        for sim in (self.dynamics, self.servicenow, self.marketo):
            sim.expire_tokens()
        self.blow("tokens expired")

    def skew_clock(self) -> None:
        """Set a vendor's clock wrong."""
        sim, seconds = self.chance.choice((self.dynamics, self.servicenow)), self.chance.uniform(-90, 90)
        sim.clock.advance(seconds)
        self.blow(f"clock of {sim.name} moved by {seconds:.0f} s")

    # -- what people and systems ask for ----------------------------------------------------------------------------------

    def start(self, window: str, recipe: str = CASES) -> None:
        """Ask for a run, again and again until there is an answer."""
        for _ in range(60):
            with contextlib.suppress(requests.RequestException):
                url = f"{self.host.url}/api/sync/{recipe}?Email=ada@example.com&{window}"
                answer = requests.post(url, headers={"Accept": "application/json"}, timeout=5)
                if answer.status_code in (202, 409):
                    if answer.status_code == 202:
                        self.started.add(answer.json()["run_id"])
                    self.blow(f"start {recipe} {window}: {answer.status_code}")
                    return
            time.sleep(LOOK_S)
        raise AssertionError("nobody could be asked for a run")

    def send_events(self) -> None:
        """Deliver webhooks of some contacts as Dataverse does, until each is accepted."""
        key = self.env["CONNECTIONS__DYNAMICS365__WEBHOOK_KEY"]
        for contact in self.chance.sample(sorted(self.contacts), 6):
            operation, message = (
                str(uuid.UUID(int=self.chance.getrandbits(128))),
                self.chance.choice(("Create", "Update")),
            )
            body = {
                "PrimaryEntityName": "contact",
                "PrimaryEntityId": contact,
                "MessageName": message,
                "OperationId": operation,
            }
            headers = {"x-ms-dynamics-organization": "localhost", "x-functions-key": key}
            with contextlib.suppress(requests.RequestException):
                answer = requests.post(
                    f"{self.host.url}/api/webhooks/{CONTACTS}", data=json.dumps(body), headers=headers, timeout=5
                )
                if answer.status_code == 202:
                    self.accepted.add(f"{operation}:{contact}:{message}")
        self.blow(f"{len(self.accepted)} events accepted so far")

    # -- the end ----------------------------------------------------------------------------------------------------------

    def tables(self) -> Tables:
        """Return the tables, past the proxy."""
        return Tables(connect_tables(self.direct))

    def runs(self) -> list[RunRow]:
        """Return all runs."""
        return list(self.tables().scan(RunRow))

    def settle(self) -> list[str]:
        """Wait until every run has ended, and say now and then for what; return what has not."""
        began_s, told_s = time.monotonic(), 0.0
        while (passed_s := time.monotonic() - began_s) < SETTLE_S:
            if not (waiting := self._waiting()):
                return []
            if passed_s - told_s >= TELL_S:
                told_s = passed_s
                self.echo(f"after {passed_s:.0f} s of calm: {'; '.join(waiting)}")
            time.sleep(LOOK_S)
        return waiting

    def _waiting(self) -> list[str]:
        said = []
        for run in self.runs():
            if run.kind is RunKind.EVENTS:
                continue
            if not run.state.ended or not run.closed or run.mail_state.value in ("owed", "summary_failed"):
                said.append(
                    f"{run.run_id} is {run.state.value}, closed {run.closed}, mail {run.mail_state.value}, turn {run.turn}, "
                    f"moved at {run.moved_at}, {run.pages_done} pages done of {run.last_page}, {run.results_seen} results"
                )
        known = self._event_results()
        said += [f"event {event} has no result" for event in sorted(self.accepted - known.keys())]
        return said

    def left_over(self) -> dict[str, list[str]]:
        """Return what stands in the queues, hidden messages only as their number."""
        found = {}
        with QueueServiceClient.from_connection_string(self.direct) as service:
            for queue in service.list_queues():
                client = service.get_queue_client(queue.name)
                count = client.get_queue_properties().approximate_message_count or 0
                if count:
                    found[queue.name] = [f"{count} in all", *(each.content[:200] for each in client.peek_messages(8))]
        return found

    def _event_results(self) -> dict[str, list[ResultRow]]:
        tables, found = self.tables(), defaultdict(list)
        for run in self.runs():
            if run.kind is RunKind.EVENTS:
                for page in range(EVENT_PAGES):
                    for result in tables.query(ResultRow, f"{run.run_id}!{page:06d}"):
                        found[result.key].append(result)
        return found

    def judge(self) -> list[str]:
        """Return in words everything that is not as promised."""
        tables, runs = self.tables(), self.runs()
        since = self.midnight - timedelta(days=1)
        after = take_snapshot(self.dynamics, self.servicenow)
        said = [
            text
            for text in compare(self.before, after, since, self.midnight)
            if not text.startswith(("ServiceNow's table sys_journal", "Dynamics 365 changed"))
        ]
        outcomes: dict[str, Counter[str]] = defaultdict(Counter)
        for run in runs:
            if run.kind is not RunKind.EVENTS:
                said += self._judge_run(tables, run, outcomes)
        for case in expect(self.before, since, self.midnight).values():
            seen = outcomes[case.case_id]
            made = seen["created"] + seen["adopted"]
            if case.outcomes & SYNCED and made != 1:
                said.append(f"{case.number} was made {made} times: {dict(seen)}")
            if not case.outcomes & SYNCED and set(seen) - case.outcomes:
                said.append(f"{case.number} came to {dict(seen)} and should be {set(case.outcomes)}")
        said += self._judge_mails(runs)
        said += self._judge_contacts()
        for recipe in (CASES, CONTACTS):
            said += [f"slot of {slot.run_id} is held" for slot in tables.query(SlotRow, recipe, "slot-", "slot~")]
        said += self._judge_queues()
        return said

    def _judge_run(self, tables: Tables, run: RunRow, outcomes: dict[str, Counter[str]]) -> list[str]:
        said, keys, results = [], [], Counter[str]()
        if run.state.value in ("failed", "cancelled"):
            return [f"{run.run_id} is {run.state.value}: {run.error}"]
        for page in tables.query(PageRow, run.run_id):
            keys += page.keys
            for result in tables.query(ResultRow, f"{run.run_id}!{page.page:06d}"):
                results[result.key] += 1
                if not run.verify:
                    outcomes[result.key][result.outcome.value] += 1
        said += [f"{run.run_id}: {key} has {count} results" for key, count in results.items() if count > 1]
        said += [f"{run.run_id}: {key} has no result" for key in set(keys) - results.keys()]
        said += [f"{run.run_id}: {key} was listed {count} times" for key, count in Counter(keys).items() if count > 1]
        counted = sum(count for name, count in run.counts.items() if ":" not in name)
        if counted != len(results):
            said.append(f"{run.run_id} counts {counted} of {len(results)} results")
        return said

    def _judge_mails(self, runs: list[RunRow]) -> list[str]:
        said = []
        sent = Counter(str(mail.message["Message-ID"]) for mail in self.mailbox.mails)
        owed = [run for run in runs if run.mail_state.value == "sent"]
        said += [f"{key} was sent {count} times" for key, count in sent.items() if count > 2]
        if len(sent) != len(owed):
            said.append(f"{len(owed)} runs owed a summary, {len(sent)} were sent")
        return said

    def _judge_contacts(self) -> list[str]:
        said = [
            f"event {key} has {len(found)} results" for key, found in self._event_results().items() if len(found) != 1
        ]
        backfilled = any(run.recipe == CONTACTS and run.kind is RunKind.BACKFILL for run in self.runs())
        for contact in self.contacts if backfilled else {event.split(":")[1] for event in self.accepted}:
            count = len(self.marketo.rows("leads", email=self.contacts[contact]))
            if count != 1:
                said.append(f"contact {contact} has {count} leads")
        return said

    def _judge_queues(self) -> list[str]:
        said = []
        with QueueServiceClient.from_connection_string(self.direct) as service:
            for name in QUEUES:
                with contextlib.suppress(AzureError):
                    count = service.get_queue_client(poison_of(name)).get_queue_properties().approximate_message_count
                    if count:
                        said.append(f"{count} messages in {poison_of(name)}")
        return said


@dataclasses.dataclass(frozen=True)
class Ended:
    """What a chaos came to."""

    wrong: list[str]
    blows: list[str]
    struck: Counter[str]
    seconds: float
    links: int
    log: list[str]


def play(seed: int, minutes: float, workers: int = 3, records: int = 60, echo: Callable[[str], None] = print) -> Ended:
    """Play a seed: windowed runs and backfills over the same records, webhooks beside them, and blows until the time is up."""
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        town = Town(Path(name), seed, records, workers, echo)
        with town.open():
            chance = town.chance
            town.blow(f"clocks of the workers wrong by {', '.join(f'{seconds:.0f} s' for seconds in town.skews)}")
            town.start("window=yesterday")
            blows = (
                town.kill_worker, town.kill_worker, town.kill_worker, town.kill_host, town.restart_storage, town.storm,
                town.storm, town.storm, town.double_messages, town.delay_messages, town.expire_tokens, town.skew_clock,
                town.send_events, town.send_events, lambda: town.start("window=yesterday"),
                lambda: town.start("window=last_days:3", CONTACTS),
            )  # fmt: skip
            day = f"{town.midnight - timedelta(days=1):%Y-%m-%d}"
            backfill_at = chance.randrange(3)
            ends_at_s, number = time.monotonic() + minutes * 60, 0
            while time.monotonic() < ends_at_s:
                if number == backfill_at:
                    town.start(f"from={day}&to={day}")
                    town.start("window=all", CONTACTS)
                    town.send_events()
                chance.choice(blows)()
                time.sleep(chance.uniform(0.0, 2.5))
                number += 1
            town.calm()
            wrong = town.settle()
            wrong += [f"{name}: {texts}" for name, texts in town.left_over().items()] if wrong else []
            wrong += town.judge()
            links = sum(1 for _ in town.tables().scan(LinkRow))
            return Ended(
                wrong, town.blows, town.weather.struck, time.monotonic() - began_s, links, list(town.host.lines)
            )


def main(arguments: list[str] | None = None) -> int:
    """Play a seed, say what came of it, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m faults.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--records", type=int, default=60)
    parser.add_argument("--log", action="store_true", help="print the host's log at the end")
    options = parser.parse_args(arguments)
    ended = play(options.seed, options.minutes, options.workers, options.records, lambda text: print(text, flush=True))
    if options.log:
        print("\n".join(ended.log))
    print(
        f"seed {options.seed}: {len(ended.blows)} blows, {ended.struck.total()} requests struck, {ended.links} links, {ended.seconds:.0f} s"
    )
    print("\n".join(f"WRONG {text}" for text in ended.wrong) or "Everything is as promised.")
    return 1 if ended.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
