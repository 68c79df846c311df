"""`python -m benchmarks.cases`: cases become incidents against a fast stub of both vendors; one table, one file of results.

Every row starts its own storage emulator, stub and host, and ends them. Options take lists (`--latency-ms 0,25,100`);
every combination is a row. How things are counted:

- vendor calls: by the stub, from the start of the run to its end, schema calls and sign-in apart;
- storage operations: requests in the emulator's access log in the same time, whoever sent them: workers and the host's
  queue listeners, the polls of empty queues included;
- CPU: user and system time of the workers alone, from /proc, and apart of host, emulator and stub; memory: the largest
  VmHWM of a worker;
- a run over a few other cases comes first, so that every worker knows the schemas: its first write is `cold s`;
- one more worker answers HTTP alone, as on Flex Consumption, where HTTP functions have instances of their own; its CPU
  counts with the others';
- cases/s: over the time from the HTTP start to the last write's answer, and to the end of the run.
"""

import argparse
import dataclasses
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Self

import certifi

from benchmarks.capture import RECIPE, capture
from benchmarks.report import LEAST_STUB, RESULTS, ROOT, Json, median_of, report
from benchmarks.stub import WARM_UP
from sandbox.azurite import Azurite
from sandbox.certificates import make_certificates
from sandbox.dynamics365 import Dynamics365
from sandbox.dynamics365_login import EntraLogin
from sandbox.host import Host
from sandbox.mailbox import Mailbox
from sandbox.processes import stop_process
from sandbox.simulator import serve_in_thread
from shared.connections import Dynamics365Connection
from shared.state.rows import CursorRow, LinkRow
from shared.state.storage import connect_tables
from shared.state.tables import Tables
from sync.flow import pair_name

LANES = {"single": "page_size", "bulk": "bulk_page_size"}
ENDED = ("completed", "failed", "cancelled", "completed_with_warnings", "completed_with_failures")
PAGE_SIZES = {lane: Dynamics365Connection.model_fields[name].default for lane, name in LANES.items()}
BARE_S = 2.0  # that the bare program is run for at the least
LOOK_S = 2.0  # between our looks at a run: each costs two storage operations, which are counted
INDEXED = Path(__file__).parent / "indexed_tables.cjs"
CLOCK_HZ = os.sysconf("SC_CLK_TCK")
ACCESS = re.compile(r'"(\w+) /\w+/([\w$-]+)?(/messages|\()?')


@dataclasses.dataclass(frozen=True)
class Setup:
    """One row's parameters."""

    cases: int
    latency_ms: float
    workers: int
    # new (in a recipe's first run), since (created since the run before), later (before it, and never linked), changed, unchanged
    mode: str
    lane: str  # single, bulk
    cap: int
    page_size: int  # cases per page of Dynamics 365
    tables: str = "azurite"  # as it is, or "indexed"
    others: int = 10_000  # links of other cases, in each mode but `new`


# -- the stub as a process ------------------------------------------------------------------------------------------------


class Stub:
    """The stub as a child process."""

    def __init__(self, captured: Path, cases: int) -> None:
        ready, theirs = os.pipe()
        command = [sys.executable, "-m", "benchmarks.stub", "--captured", str(captured), "--cases", str(cases)]
        self._process = subprocess.Popen(
            [*command, "--ready-fd", str(theirs), "--parent", str(os.getpid())], cwd=ROOT, pass_fds=(theirs,)
        )
        os.close(theirs)
        self.pid = self._process.pid
        with os.fdopen(ready) as stream:
            self.url = f"http://localhost:{stream.read()}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        stop_process(self._process, 2)

    def ask(self, control: str) -> Json:
        """Use one of the stub's controls and return what it has counted."""
        with urllib.request.urlopen(f"{self.url}/_stub/{control}", timeout=60) as answer:
            return dict(json.load(answer))


def run_bare(stub: Stub, *flags: str) -> Json:
    """Run the bare program and return what it prints."""
    command = [sys.executable, "-m", "benchmarks.bare", "--url", stub.url, *flags]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=600)
    return dict(json.loads(done.stdout))


def measure_bare(stub: Stub, cap: int) -> Json:
    """Run the bare program for BARE_S at the least and return its median run: such as are over in 0.2 s differ by half."""
    runs: list[Json] = []
    while sum(run["seconds"] for run in runs) < BARE_S:
        runs.append(run_bare(stub, "--cap", str(cap)))
        stub.ask("forget")
    return sorted(runs, key=lambda run: float(run["seconds"]))[(len(runs) - 1) // 2]  # of two, the faster


def measure_stub(stub: Stub) -> float:
    """Return how many requests a second the stub answers without latency, to two callers."""
    stub.ask("latency/0")
    flags = ["--url", stub.url, "--cap", "26", "--load-s", "1.5"]
    command = [sys.executable, "-m", "benchmarks.bare", *flags]
    callers = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) for _ in range(2)]
    rates = [json.loads(caller.communicate(timeout=60)[0])["requests_per_s"] for caller in callers]
    stub.ask("forget")
    return float(sum(rates))


# -- one row --------------------------------------------------------------------------------------------------------------


class Bench:
    """What all rows share: the login, the mailbox, and the answers that were captured."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        context, authority = make_certificates(folder)
        bundle = folder / "bundle.pem"
        bundle.write_text(Path(certifi.where()).read_text() + authority.read_text())
        os.environ["REQUESTS_CA_BUNDLE"] = str(bundle)
        crm, self.box = Dynamics365(), Mailbox("plain")
        login = EntraLogin(crm.tokens)
        login_port = stack.enter_context(serve_in_thread(login, tls=context))[0]
        stack.enter_context(serve_in_thread(self.box))
        self.captured = folder / "captured.json"
        example = json.loads((ROOT / "local.settings.example.json").read_text())["Values"]
        self.env = example | {
            "REQUESTS_CA_BUNDLE": str(bundle),
            "MAIL__PORT": str(self.box.smtp_port),
            "CONNECTIONS__DYNAMICS365__AUTHORITY": f"https://localhost:{login_port}",
        }
        with Azurite() as storage:
            settings = self.env | {"AzureWebJobsStorage": storage.connection_string}
            capture(settings, login, crm, f"https://localhost:{login_port}", self.captured)

    def measure(self, setup: Setup, profile: Path | None) -> Json:
        """Run one row and return its numbers."""
        log, load = self.folder / "access.log", os.getloadavg()[0]
        preloaded = INDEXED if setup.tables == "indexed" else None
        with Stub(self.captured, setup.cases) as stub, Azurite(access_log=log, preloaded=preloaded) as storage:
            sustained = measure_stub(stub)
            stub.ask(f"latency/{setup.latency_ms}")
            bare = measure_bare(stub, setup.cap)
            app_dir = _profiled_app(self.folder, profile) if profile else ROOT
            with Host(
                app_dir,
                self._env(setup, stub, storage),
                workers=setup.workers,
                http_workers=1,
                port=0,
                log_level="Warning",
            ) as host:
                cold_s = _warm_up(host, stub)
                if setup.mode == "new":
                    _forget_first_run(storage)
                else:
                    _link_others(storage, setup.others)
                if setup.mode in ("changed", "unchanged"):
                    _run(host, setup.cases)
                if setup.mode == "since":
                    stub.ask("bear")
                if setup.mode == "changed":
                    stub.ask("touch")
                stub.ask("clear")
                others = {"host": [host.pid], "azurite": storage.pids, "stub": [stub.pid]}
                before, skip = _usage(host, others), log.stat().st_size
                started_at = time.time()
                run = _run(host, setup.cases)
                after, counted = _usage(host, others), stub.ask("counts")
                operations = _count_storage(log, skip)
                troubles = [line for line in host.lines if "ERROR" in line or "WARNING" in line]
        return _numbers(setup, run, started_at, before, after, counted, operations, bare, sustained, troubles) | {
            "cold_first_write_s": cold_s,
            "load_before": load,
        }

    def _env(self, setup: Setup, stub: Stub, storage: Azurite) -> dict[str, str]:
        return self.env | {
            "AzureWebJobsStorage": storage.connection_string,
            "CONNECTIONS__DYNAMICS365__URL": stub.url,
            "CONNECTIONS__SERVICENOW__URL": stub.url,
            "CONNECTIONS__DYNAMICS365__PAGE_SIZE": str(setup.page_size),
            "CONNECTIONS__DYNAMICS365__BULK_PAGE_SIZE": str(setup.page_size),
            "CONNECTIONS__SERVICENOW__CONCURRENCY": str(setup.cap),
            "BULK_ABOVE": "0" if setup.lane == "bulk" else "100000000",
        }


def _warm_up(host: Host, stub: Stub) -> float:
    """Let every worker read the schemas; return the seconds from the first HTTP start ever to the first incident."""
    stub.ask("swap")
    stub.ask("clear")
    started_at = time.time()
    _run(host, WARM_UP)
    first_write_at = float(stub.ask("swap")["first_write_at"])
    return first_write_at - started_at


def _forget_first_run(storage: Azurite) -> None:
    """Forget that the recipe has run: new records are measured as they are budgeted, in a recipe's first run."""
    with connect_tables(storage.connection_string) as service:
        tables = Tables(service)
        for row in list(tables.scan(CursorRow)):
            tables.delete(row)


def _link_others(storage: Azurite, count: int) -> None:
    """Store links of other cases, among which a page's own stand far from each other."""
    side, target = "dynamics365.incident", "servicenow.incident"
    links = [
        LinkRow(pair=pair_name(side, target), side=side, key=str(uuid.uuid4()), other_key=uuid.uuid4().hex)
        for _ in range(count)
    ]
    shards: dict[str, list[LinkRow]] = {}
    for link in links:
        shards.setdefault(link.partition_key, []).append(link)
    with connect_tables(storage.connection_string) as service:
        for rows in shards.values():
            Tables(service).transact([("insert", row) for row in rows])


def _run(host: Host, cases: int) -> Json:
    """Start a run over everything and wait for its end."""
    started_s, longest_s = time.monotonic(), 120 + cases / 4
    started = _get(f"{host.url}/api/sync/{RECIPE}?Email=bench@example.com&window=last_days:3")
    while True:
        time.sleep(LOOK_S)
        run = _get(f"{host.url}/api/runs/{started['run_id']}")
        if run["state"] in ENDED:
            break
        if time.monotonic() - started_s > longest_s:
            said = "\n".join(host.lines[-40:])
            raise TimeoutError(f"the run did not end within {longest_s:.0f} s: {run} {host.state()}\n{said}")
    done = sum(run["counts"].values())
    if run["state"] != "completed" or done != cases:
        raise RuntimeError(f"the run is not what was to be measured: {run}\n" + "\n".join(host.lines[-40:]))
    return run


def _get(url: str) -> Json:
    with urllib.request.urlopen(
        urllib.request.Request(url, headers={"Accept": "application/json"}), timeout=60
    ) as answer:
        return dict(json.load(answer))


def _usage(host: Host, others: Mapping[str, Sequence[int | None]]) -> Json:
    """Return the CPU seconds of each worker and of what runs beside them, and the largest memory peak, in MB."""
    pids, peak_mb = host.state()["workers"], 0.0
    for pid in pids:
        status = Path(f"/proc/{pid}/status").read_text()
        peak_mb = max(peak_mb, int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024)  # type: ignore[index]  # Linux has it
    beside = {f"{name}_cpu_s": sum(_cpu_s(pid) for pid in ids if pid) for name, ids in others.items()}
    return {"worker_cpu_s": [_cpu_s(pid) for pid in pids], "peak_mb": peak_mb} | beside


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_HZ


def _count_storage(log: Path, skip: int) -> Counter[str]:
    """Count requests by kind: `POST links`, `GET items/messages`, `POST $batch`."""
    counts: Counter[str] = Counter()
    with log.open("rb") as lines:
        lines.seek(skip)
        for line in lines:
            if match := ACCESS.search(line.decode("utf-8", "replace")):
                method, name, kind = match.groups()
                counts[f"{method} {name or ''}{'/messages' if kind == '/messages' else ''}"] += 1
    return counts


def _numbers(
    setup: Setup,
    run: Json,
    started_at: float,
    before: Json,
    after: Json,
    counted: Json,
    operations: Counter[str],
    bare: Json,
    sustained: float,
    troubles: list[str],
) -> Json:
    cases, calls = setup.cases, counted["counts"]
    unknown = [name for name in calls if "unknown" in name]
    if unknown:
        raise RuntimeError(f"the stub did not know: {unknown}")
    end_s = datetime.fromisoformat(run["ended_at"]).timestamp() - started_at
    write_s = counted["last_write_at"] + setup.latency_ms / 1000 - started_at if counted["last_write_at"] else end_s
    work = {name: count for name, count in calls.items() if "schema" not in name and "sign-in" not in name}
    bare_rate = bare["cases"] / bare["seconds"]
    beside = {name: after[name] - before[name] for name in ("host_cpu_s", "azurite_cpu_s", "stub_cpu_s")}
    worker_cpu_s = [end - start for start, end in zip(before["worker_cpu_s"], after["worker_cpu_s"], strict=True)]
    return dataclasses.asdict(setup) | {
        "others": None if setup.mode == "new" else setup.others,
        "cases_per_s": cases / write_s,
        "cases_per_s_to_end": cases / end_s,
        "ratio_to_bare": cases / write_s / bare_rate,
        "bare_cases_per_s": bare_rate,
        "bare_cpu_ms": bare["cpu_ms_per_case"],
        "first_write_s": counted["first_write_at"] - started_at if counted["first_write_at"] else None,
        "servicenow_calls": sum(count for name, count in work.items() if name.startswith("servicenow")) / cases,
        "dynamics365_calls": sum(count for name, count in work.items() if name.startswith("dynamics365")),
        "storage_operations": operations.total() / cases,
        "cpu_ms": 1000 * sum(worker_cpu_s) / cases,
        "worker_cpu_s": worker_cpu_s,
        "azurite_cpu_ms": 1000 * beside["azurite_cpu_s"] / cases,
        "beside_cpu_ms": 1000 * sum(beside.values()) / cases,
        **beside,
        "peak_mb": after["peak_mb"],
        "most_in_flight": counted["most_in_flight"],
        "stub_per_s": sustained,
        "valid": sustained >= LEAST_STUB,
        "calls": calls,
        "operations": dict(operations.most_common()),
        "troubles": troubles[:20],
    }


def _profiled_app(folder: Path, profile: Path) -> Path:
    """Make an app folder whose function_app profiles its threads, so that product code knows nothing of it."""
    app = folder / "profiled"
    app.mkdir(exist_ok=True)
    for name in ("host.json", "recipes", "sync", "shared", "web", "benchmarks"):
        if not (app / name).exists():
            (app / name).symlink_to(ROOT / name)
    text = (ROOT / "function_app.py").read_text()
    (app / "function_app.py").write_text(
        f"import benchmarks.profiling\nbenchmarks.profiling.start({str(profile)!r})\n{text}"
    )
    return app


@contextmanager
def bench() -> Iterator[Bench]:
    """Return what all rows share, for as long as they are measured."""
    with tempfile.TemporaryDirectory(prefix="concord-bench-") as folder, ExitStack() as stack:
        yield Bench(Path(folder), stack)


def main() -> int:
    """Measure every combination, print the table, write the file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cases", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--cases", default="2000")
    add("--latency-ms", default="100")
    add("--workers", default="1")
    add("--mode", default="new", help="new, since, later, changed, unchanged")
    add("--lane", default="single", help="single, bulk")
    add("--cap", default="52", help="calls to ServiceNow at the same time")
    add("--page-size", default="0", help="cases per page; 0: the lane's default")
    add("--tables", default="azurite", help="azurite: as it is; indexed: with an index by key, as Azure's tables have")
    add("--others", default="10000", help="links of other cases in the tables, in each mode but new")
    add("--repeat", type=int, default=1, help="runs of each row, of which the median is shown")
    add("--profile", type=Path, help="folder that gets a profile of every worker thread")
    add("--no-file", action="store_true", help="print only")
    options = parser.parse_args()
    lists = [
        [int(text) for text in options.cases.split(",")],
        [float(text) for text in options.latency_ms.split(",")],
        [int(text) for text in options.workers.split(",")],
        options.mode.split(","),
        options.lane.split(","),
        [int(text) for text in options.cap.split(",")],
        [int(text) for text in options.page_size.split(",")],
        options.tables.split(","),
        [int(text) for text in options.others.split(",")],
    ]
    rows = []
    with bench() as shared:
        for combination in itertools.product(*lists):
            setup = Setup(*combination)
            if not setup.page_size:
                setup = dataclasses.replace(setup, page_size=PAGE_SIZES[setup.lane])
            print(f"{setup}", file=sys.stderr, flush=True)
            rows.append(median_of([shared.measure(setup, options.profile) for _ in range(options.repeat)]))
    report(rows, sys.argv[1:], None if options.no_file else RESULTS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
