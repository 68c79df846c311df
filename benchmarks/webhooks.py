"""`python -m benchmarks.webhooks`: how fast webhooks are acknowledged while a run of 2,000 cases is going.

The calls come from a process of their own, at a fixed rate that does not wait for answers: a call's time counts from the
moment at which it was due, so a stall delays all that were due meanwhile and hides none. They speak of `--contacts` contacts in
turn, which Marketo does not know yet: the first call of each makes a lead. `--bulk-above` sets how many of the run's cases are
worked one message each, in the same emulated storage as the events.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import urllib.request
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp

from sandbox.processes import tie_to_parent
from sandbox.start import DYNAMICS, ROOT, Sandbox, running_in_thread

CASES = 2_000
CONTACTS, ACCOUNTS = 3_000, 300
RATE, SECONDS = 100, 60
BEGIN_WAIT_S = 60.0  # for the run's first write
ANSWER_WAIT_S = 60.0  # as Dataverse waits
RESULTS = Path(__file__).parent / "results"
Json = dict[str, Any]


def main() -> int:
    """Measure and print one line; return 0 when every call was acknowledged."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=int, default=RATE, help="webhooks a second")
    parser.add_argument("--seconds", type=int, default=SECONDS)
    parser.add_argument("--cases", type=int, default=CASES, help="cases of the run beside it; 0: none")
    parser.add_argument("--contacts", type=int, default=CONTACTS, help="that the calls speak of")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--http-workers", type=int, default=1, help="more workers, for HTTP alone; 0: all share")
    parser.add_argument(
        "--bulk-above", type=int, help="records of the run that are worked one by one; else the setting's default"
    )
    parser.add_argument("--keep", action="store_true", help="write the numbers to benchmarks/results")
    parser.add_argument("--load", help=argparse.SUPPRESS)  # the sending process: what to send, as JSON
    options = parser.parse_args()
    if options.load:
        return asyncio.run(_send_all(json.loads(options.load)))
    env = {} if options.bulk_above is None else {"BULK_ABOVE": str(options.bulk_above)}
    flags = {"workers": options.workers, "http_workers": options.http_workers}
    with running_in_thread(records=max(1, options.cases), env=env, **flags) as sandbox:
        row = _measure(sandbox, options)
    print(_line(row))
    if options.keep:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"webhooks-{row['at'].replace(':', '')}.json").write_text(json.dumps(row, indent=1) + "\n")
    return 0 if row["statuses"] == {"202": options.rate * options.seconds} else 1


def _measure(sandbox: Sandbox, options: argparse.Namespace) -> Json:
    contacts = _insert_contacts(sandbox, options.contacts)
    run = _start_run(sandbox) if options.cases else ""
    load = {
        "parent": os.getpid(),
        "url": f"{sandbox.app_url}/api/webhooks/contact_to_lead?code={sandbox.env[f'{DYNAMICS}WEBHOOK_KEY']}",
        "contacts": contacts,
        "rate": options.rate,
        "seconds": options.seconds,
    }
    command = [sys.executable, "-m", "benchmarks.webhooks", "--load", json.dumps(load)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=10 * options.seconds + 120
    )
    if done.returncode:
        raise SystemExit(f"The sending process failed:\n{done.stderr}")
    sent: Json = json.loads(done.stdout)
    state = _get(run) if run else {}
    times_ms = sorted(sent["times_ms"])
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python -m benchmarks.webhooks", *sys.argv[1:]]),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "load_average": round(os.getloadavg()[0], 1),
        "contacts": options.contacts,
        "workers": options.workers,
        "http_workers": options.http_workers,
        "rate": options.rate,
        "seconds": options.seconds,
        "statuses": sent["statuses"],
        "p50_ms": round(statistics.median(times_ms), 1),
        "p90_ms": _percentile(times_ms, 90),
        "p99_ms": _percentile(times_ms, 99),
        "max_ms": round(times_ms[-1], 1),
        "late_ms": sent["late_ms"],
        "cases_done": state.get("progress", {}).get("done", 0),
        "run_state_at_end": state.get("state", "none"),
    }


def _insert_contacts(sandbox: Sandbox, count: int) -> list[str]:
    """Add contacts of which no webhook tells: the calls that are measured do."""
    sim = sandbox.dynamics
    heard, sim.store.changed = sim.store.changed, lambda *_: None
    try:
        accounts = [sim.insert("account", name=f"Company {number}") for number in range(ACCOUNTS)]
        return [
            sim.insert(
                "contact",
                lastname=f"Quill {number}",
                emailaddress1=f"quill{number}@customer.example",
                parentcustomerid_account=accounts[number % ACCOUNTS],
            )
            for number in range(count)
        ]
    finally:
        sim.store.changed = heard


def _percentile(times_ms: list[float], percent: int) -> float:
    return round(times_ms[min(len(times_ms) - 1, len(times_ms) * percent // 100)], 1)


def _start_run(sandbox: Sandbox) -> str:
    """Start the run of yesterday's cases, wait until it writes, and return its address."""
    begun = _get(sandbox.sync_url("ada@example.com", window="yesterday"))
    ends_at_s = time.monotonic() + BEGIN_WAIT_S
    while not sandbox.servicenow.requests("POST", "/table/incident") and time.monotonic() < ends_at_s:
        time.sleep(0.05)
    return str(begun["status"])


def _get(url: str) -> Json:
    with urllib.request.urlopen(url, timeout=60) as answer:
        body: Json = json.loads(answer.read())
        return body


def _line(row: Json) -> str:
    return (
        f"{row['rate']} webhooks/s of {row['contacts']} contacts for {row['seconds']} s, {row['workers']} workers and {row['http_workers']} for HTTP alone: p50 {row['p50_ms']} ms, p90 {row['p90_ms']} ms, "
        f"p99 {row['p99_ms']} ms, longest {row['max_ms']} ms; answers {row['statuses']}; beside it a run ({row['run_state_at_end']}, "
        f"{row['cases_done']} cases done); {row['machine']}, load {row['load_average']}; sent {row['late_ms']} ms late at p99"
    )


# -- the sending process --------------------------------------------------------------------------------------------------


async def _send_all(load: Json) -> int:
    """Send at a fixed rate, whatever the answers do, and print what they were."""
    tie_to_parent(load["parent"])
    times_ms: list[float] = []
    late_ms: list[float] = []
    statuses: dict[str, int] = {}
    timeout = aiohttp.ClientTimeout(total=ANSWER_WAIT_S)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:

        async def send(number: int, due_s: float) -> None:
            contact = load["contacts"][number % len(load["contacts"])]
            late_ms.append((time.perf_counter() - due_s) * 1000)
            try:
                async with session.post(load["url"], data=_body(contact), headers=_HEADERS) as answer:
                    await answer.read()
                    status = str(answer.status)
            except (aiohttp.ClientError, TimeoutError) as exc:
                status = type(exc).__name__
            times_ms.append((time.perf_counter() - due_s) * 1000)
            statuses[status] = statuses.get(status, 0) + 1

        started_s, tasks = time.perf_counter(), []
        for number in range(load["rate"] * load["seconds"]):
            due_s = started_s + number / load["rate"]
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            tasks.append(asyncio.create_task(send(number, due_s)))
        await asyncio.gather(*tasks)
    late = round(sorted(late_ms)[len(late_ms) * 99 // 100], 1)
    print(json.dumps({"times_ms": times_ms, "statuses": statuses, "late_ms": late}))
    return 0


_HEADERS = {
    "Content-Type": "application/json",
    "x-ms-dynamics-organization": "localhost",
    "x-ms-dynamics-entity-name": "contact",
    "x-ms-dynamics-request-name": "Update",
}


def _body(contact: str) -> bytes:
    """Return a body of the size that Dataverse sends for a small change."""
    attributes = [{"key": f"column{number}", "value": "x" * 40} for number in range(30)]
    target = {"Id": contact, "LogicalName": "contact", "Attributes": attributes}
    context = {
        "PrimaryEntityName": "contact",
        "PrimaryEntityId": contact,
        "MessageName": "Update",
        "OperationId": str(uuid.uuid4()),
        "InputParameters": [{"key": "Target", "value": target}],
    }
    return json.dumps(context).encode()


if __name__ == "__main__":
    sys.exit(main())
