"""Starting the sandbox: its settings, its ports, what it says, and that nothing of it is left behind."""

import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

import sandbox.marketo_records
import sandbox.start
from sandbox.processes import LOOPBACK, free_ports, port_answers
from sandbox.start import ROOT, CoreTools, Ports, SandboxError, main, running_in_thread
from tests.sandbox.waiting import wait_until

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

FUNC = """#!{python}
import http.server, os, signal, subprocess, sys
assert sys.argv[1:3] == ["start", "--port"] and os.path.exists("host.json"), sys.argv
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("worker", worker.pid, os.environ["FUNCTIONS_WORKER_PROCESS_COUNT"], os.environ["SAMPLE"], flush=True)
signal.signal(signal.SIGINT, lambda *_: os._exit(0))
http.server.HTTPServer(("127.0.0.1", int(sys.argv[3])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


@pytest.fixture
def local_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """A developer's own settings, among them the address of a real system."""
    values = {
        "BULK_ABOVE": "7",
        "Connections__ServiceNow__URL": "https://contoso.service-now.com",
        "CONNECTIONS__DYNAMICS365__CLIENT_SECRET": "a real one",
        "MAIL__HOST": "smtp.contoso.com",
        "AzureWebJobsStorage": "UseDevelopmentStorage=true",
    }
    path = tmp_path / "local.settings.json"
    path.write_text(json.dumps({"Values": values}))
    monkeypatch.setattr(sandbox.start, "LOCAL", path)
    return values


def test_everything_is_fresh_and_full() -> None:
    """Both systems hold their demo records, storage is our own, and the login is trusted by the bundle that the app gets."""
    with running_in_thread(records=20, incidents=100, app=False) as started:
        pages = [
            requests.get(url, timeout=10).status_code
            for url in (started.dynamics_url, started.servicenow_url, started.mail_url)
        ]
        discovery = (
            f"{started.env['CONNECTIONS__DYNAMICS365__AUTHORITY']}/{started.login.tokens.tenant}/v2.0/.well-known"
        )
        login = requests.get(f"{discovery}/openid-configuration", timeout=10, verify=started.env["REQUESTS_CA_BUNDLE"])

        assert pages == [200, 200, 200]
        assert login.status_code == 200
        assert len(started.dynamics.rows("incident")) == 90
        assert len(started.servicenow.rows("incident")) == 100
        assert started.env["AzureWebJobsStorage"] == started.azurite.connection_string
        assert started.azurite.account in started.env["AzureWebJobsStorage"]
    assert started.azurite.pids == []
    assert not Path(started.env["REQUESTS_CA_BUNDLE"]).exists()


def test_public_authorities_stay_trusted() -> None:
    """The bundle replaces the public one, so it holds both."""
    with running_in_thread(records=1, incidents=0, app=False) as started:
        context = ssl.create_default_context(cafile=started.env["REQUESTS_CA_BUNDLE"])

        names = {
            value
            for each in context.get_ca_certs()
            for part in each["subject"]
            for key, value in part
            if key == "organizationName"
        }
        assert "Concord sandbox" in names
        assert len(names) > 20


def test_own_settings_never_lead_out(local_settings: dict[str, str]) -> None:
    """A developer's settings count, except where a real system would be reached."""
    with running_in_thread(records=1, incidents=0, app=False, local_settings=True) as started:
        env = {name.upper(): value for name, value in started.env.items()}

        assert env["BULK_ABOVE"] == local_settings["BULK_ABOVE"]
        assert env["CONNECTIONS__SERVICENOW__URL"] == started.servicenow_url
        assert env["CONNECTIONS__DYNAMICS365__CLIENT_SECRET"] == "sandbox-secret"
        assert env["MAIL__HOST"] == "localhost"
        assert env["AZUREWEBJOBSSTORAGE"] == started.connection_string


def test_leftovers_of_killed_sandboxes_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder whose process is gone is removed at the next start, a running one's stays."""
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    (tmp_path / f"run-{gone.pid}-a").mkdir()
    (tmp_path / f"run-{os.getppid()}-b").mkdir()
    monkeypatch.setattr(sandbox.start, "FOLDER", tmp_path)

    with running_in_thread(records=1, incidents=0, app=False):
        pass

    assert [path.name for path in tmp_path.iterdir()] == [f"run-{os.getppid()}-b"]


def test_seed_decides_the_records() -> None:
    """The same seed gives the same cases, another one others."""

    def titles(seed: int) -> list[str]:
        with running_in_thread(records=20, incidents=0, app=False, seed=seed) as started:
            return [row["title"] for row in started.dynamics.rows("incident")]

    assert titles(1) == titles(1) != titles(2)


def test_ports_follow_from_the_base() -> None:
    """One number moves all; the usual one gives the addresses of the docs."""
    assert Ports.of(7100) == Ports(
        host=7071, dynamics=7101, login=7102, servicenow=7103, smtp=7104, mail_page=7105, marketo=7106
    )
    assert Ports.of(7200).host == 7171


@pytest.mark.parametrize("name", ["host", "dynamics", "login", "servicenow", "smtp", "mail_page", "marketo"])
def test_taken_port_is_one_clear_sentence(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A port that another program has is named before anything starts, with the way out."""
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        base = port - getattr(Ports.of(30_000), name) + 30_000

        code = main(["--base-port", str(base)])

    said = capsys.readouterr().err
    assert code == 1
    assert re.fullmatch(r"Port \d+ \([a-z ]+\) is in use by another program: .*--base-port 7200`\.\n", said)


def test_missing_app_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """When the host cannot load the app, what it said is the error, and everything else ends."""
    (tmp_path / "host.json").write_text('{"version": "2.0"}')
    (tmp_path / "function_app.py").write_text("raise RuntimeError('broken on purpose')")
    monkeypatch.setattr(sandbox.start, "ROOT", tmp_path)

    with pytest.raises(SandboxError, match="broken on purpose"), running_in_thread(records=1, incidents=0):
        pass


# -- nothing is left ----------------------------------------------------------------------------------------------------


def children_of(pid: int) -> set[int]:
    """Return all descendants of a process."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@linux_only
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 0), (signal.SIGKILL, -9)], ids=["ctrl-c", "term", "kill"]
)
def test_no_process_is_left(number: signal.Signals, code: int) -> None:
    """However `make start` ends, storage, host and workers end with it."""
    command = [sys.executable, "-m", "sandbox.start", "--base-port", "0", "--records", "5"]
    without_func = os.environ | {"PATH": os.pathsep.join({str(Path(shutil.which("node") or "").parent), "/usr/bin"})}
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=without_func,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        said: list[str] = []
        for line in iter(process.stdout.readline, ""):
            said.append(line)
            if "Host's log" in line:
                break
        left = children_of(process.pid)
        file = re.search(r"--settings (\S+)", "".join(said))
        assert file
        settings = json.loads((ROOT / file[1]).read_text())["Values"]

        os.kill(process.pid, number)
        rest = process.stdout.read()

    assert len(left) >= 4, said  # storage, host, two workers
    assert process.returncode == code, rest
    assert f"{settings['APP_URL']}/api/runs" in "".join(said)  # the command line reaches what runs
    wait_until(lambda: not any(runs(pid) for pid in left))
    assert code != 0 or "nothing is left running" in rest


@pytest.mark.parametrize(
    ("option", "value"),
    [("--base-port", "70000"), ("--base-port", "5"), ("--base-port", "-3"), ("--base-port", "x"), ("--records", "0")],
)
def test_option_out_of_its_range_is_refused_in_words(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A port that cannot be, or no record at all, is told before anything starts."""
    with pytest.raises(SystemExit) as caught:
        main([option, value])

    said = capsys.readouterr().err
    assert caught.value.code == 2
    assert option in said.splitlines()[-1]
    assert "Traceback" not in said


def test_settings_that_are_no_json_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken local.settings.json is one sentence that names the file and the place."""
    broken = tmp_path / "local.settings.json"
    broken.write_text('{"Values": {')
    monkeypatch.setattr(sandbox.start, "LOCAL", broken)

    with (
        pytest.raises(SandboxError, match=r"local\.settings\.json is not JSON: .*line 1"),
        running_in_thread(records=1, incidents=0, app=False, local_settings=True),
    ):
        pass


def test_app_that_lacks_a_setting_says_so_at_start() -> None:
    """`make start` tells what the app cannot work without, instead of leaving it to the first click."""
    with running_in_thread(records=1, incidents=0, env={"NOTIFY": ""}) as started:
        fault = sandbox.start._fault_of(started.app_url)

    assert "set NOTIFY" in fault


# -- Core Tools ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def func(tmp_path: Path) -> str:
    """A program that behaves as `func start` does towards us: listens, prints, and has workers of its own."""
    path = tmp_path / "func"
    path.write_text(FUNC.format(python=sys.executable))
    path.chmod(0o755)
    return str(path)


@linux_only
def test_core_tools_host_and_end(func: str) -> None:
    """`func start` gets port, settings and workers, is ready when it listens, and leaves no worker behind."""
    (port,) = free_ports(1)
    heard: list[str] = []
    tools = CoreTools(func, ROOT, {"SAMPLE": "value"}, 3, port, heard.append)

    tools.start()
    _, worker, workers, sample = heard[0].split()
    answers, worker_ran = port_answers(port), runs(int(worker))
    tools.stop()

    assert (answers, worker_ran, workers, sample) == (True, True, "3", "value")
    assert tools.pid is None
    wait_until(lambda: not runs(int(worker)))


def test_core_tools_that_fail_say_why(tmp_path: Path) -> None:
    """What `func` printed before it gave up is the error."""
    path = tmp_path / "func"
    path.write_text(f"#!{sys.executable}\nprint('Port is unavailable')\nraise SystemExit(1)\n")
    path.chmod(0o755)

    with pytest.raises(sandbox.start.HostError, match="Port is unavailable"):
        CoreTools(str(path), ROOT, {}, 1, free_ports(1)[0]).start()


def test_func_on_the_path_is_used(func: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Core Tools are installed they host the app."""
    monkeypatch.setenv("PATH", f"{Path(func).parent}{os.pathsep}{os.environ['PATH']}")

    with running_in_thread(records=1, incidents=0, core_tools=True, env={"SAMPLE": "x"}) as started:
        assert isinstance(started.host, CoreTools)
        assert requests.get(started.app_url, timeout=10).ok


# -- contacts and Marketo -----------------------------------------------------------------------------------------------


def test_saved_contact_reaches_marketo() -> None:
    """A contact that a person edits on the Dynamics page is a changed lead a moment later, with nothing to set up."""
    with running_in_thread(records=1, incidents=0) as started:
        contact = next(row for row in started.dynamics.rows("contact") if row["contactid"] in started.known["lead"])
        form = {"jobtitle": "Head of buying", "emailaddress1": contact["emailaddress1"]}
        page = f"{started.dynamics_url}/_sandbox/form/contact/{contact['contactid']}"

        requests.post(page, data=form, timeout=10).raise_for_status()
        wait_until(lambda: started.marketo.rows("leads", title="Head of buying"), 30)

        [lead] = started.marketo.rows("leads", title="Head of buying")
        assert lead["email"] == contact["emailaddress1"].lower()
        assert started.marketo.rows("companies", externalCompanyId=contact["_parentcustomerid_value"])


def test_marketo_was_not_empty() -> None:
    """It holds leads and companies of before, strangers, and addresses that two leads have."""
    with running_in_thread(records=1, incidents=0, app=False) as started:
        emails = [str(lead["email"]).lower() for lead in started.marketo.rows("leads")]

        assert all(len(ids) > 1 for ids in started.known.values())
        assert len(emails) > len(set(emails)) > sandbox.marketo_records.STRANGERS
        assert len(started.marketo.rows("companies")) == len(started.known["company"])
