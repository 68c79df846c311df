"""The stand-in host, from outside: a toy app, real processes, real storage."""

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from azure.storage.queue import QueueClient

from sandbox.azurite import Azurite
from sandbox.host import ROOT, Host, HostError
from sandbox.host_queue import open_queue
from sandbox.processes import free_ports
from tests.sandbox.toy import TOY_APP, Toy
from tests.sandbox.waiting import wait_until

EVERY_SECOND = "* * * * * *"


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; one that only waits to be collected by its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def toy(azurite: Azurite, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return Toy(azurite, tmp_path_factory.mktemp("toy"), "toy", EVERY_SECOND)


@pytest.fixture(scope="module")
def host(toy: Toy) -> Iterator[Host]:
    """A host that started before its queue existed."""
    with toy.host() as running:
        toy.queue.create_queue()
        yield running


@pytest.fixture
def own(azurite: Azurite, tmp_path: Path) -> Toy:
    """A toy app with a queue of its own, for tests that start their host with other rules."""
    toy = Toy(azurite, tmp_path, f"own-{uuid.uuid4().hex}")
    toy.queue.create_queue()
    return toy


class TestHttp:
    def test_request_reaches_the_function_whole(self, host: Host) -> None:
        """Method, address, query, route parameters, headers and body arrive as Azure's host hands them over."""
        answer = requests.post(f"{host.url}/api/echo/cases/12?x=1&x=2&empty=", json={"a": 1}, timeout=10)

        assert answer.status_code == 202
        body = answer.json()
        assert body.pop("pid") in host.state()["workers"]
        assert body == {
            "method": "POST",
            "url": f"{host.url}/api/echo/cases/12?x=1&x=2&empty=",
            "params": {"x": "1,2"},
            "route_params": {"kind": "cases", "id": "12"},
            "content_type": "application/json",
            "body": '{"a": 1}',
            "function": "echo",
        }
        assert answer.headers["X-Toy"] == "yes"
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.cookies["a"] == "1"

    @pytest.mark.parametrize(
        ("method", "path", "status"),
        [
            pytest.param("GET", "echo/cases", 202, id="optional parameter left out"),
            pytest.param("GET", "ECHO/cases/", 202, id="case and last slash do not count"),
            pytest.param("GET", "echo/12", 404, id="constraint alpha"),
            pytest.param("GET", "echo/cases/x", 404, id="constraint int"),
            pytest.param("DELETE", "echo/cases", 404, id="other method"),
            pytest.param("GET", "nowhere", 404, id="no such route"),
            pytest.param("GET", "broken", 500, id="function raises"),
            pytest.param("GET", "public", 200, id="async function"),
        ],
    )
    def test_route_decides_the_status(self, host: Host, method: str, path: str, status: int) -> None:
        """Only a fitting route with a fitting method calls a function."""
        answer = requests.request(method, f"{host.url}/api/{path}", timeout=10)

        assert answer.status_code == status
        if status >= 400:
            assert answer.content == b""

    def test_literal_route_wins(self, host: Host) -> None:
        """Of two fitting routes the one with the literal segment is taken."""
        answer = requests.get(f"{host.url}/api/echo/special", timeout=10)

        assert answer.text == "special"

    def test_workers_take_turns(self, host: Host) -> None:
        """Requests go round over all workers."""
        pids = {requests.get(f"{host.url}/api/echo/x", timeout=10).json()["pid"] for _ in range(4)}

        assert sorted(pids) == sorted(host.state()["workers"])

    def test_http_can_have_workers_of_its_own(self, own: Toy) -> None:
        """As on Flex Consumption, where what queues and timers start runs on other instances."""
        with own.host(workers=1, http_workers=1) as host:
            pids = {requests.get(f"{host.url}/api/echo/x", timeout=10).json()["pid"] for _ in range(4)}

            assert len(pids) == 1  # of two, which would otherwise take turns
            assert len(host.state()["workers"]) == 2

    def test_body_above_the_limit_is_refused(self, host: Host) -> None:
        """More than 100 MB never reach a function."""
        answer = requests.post(f"{host.url}/api/public", data=bytes(104_857_601), timeout=30)

        assert answer.status_code == 413

    def test_keys_are_demanded_where_asked_for(self, own: Toy) -> None:
        """With --enforce-keys a function needs the key, in the query or as a header; a public one does not."""
        with own.host(enforce_keys="secret", workers=1) as host:
            url = f"{host.url}/api/echo/x"
            statuses = [
                requests.get(url, timeout=10).status_code,
                requests.get(url, params={"code": "wrong"}, timeout=10).status_code,
                requests.get(url, params={"code": "secret"}, timeout=10).status_code,
                requests.get(url, headers={"x-functions-key": "secret"}, timeout=10).status_code,
                requests.get(f"{host.url}/api/public", timeout=10).status_code,
                requests.post(f"{host.url}/admin/functions/tick", timeout=10).status_code,
            ]

        assert statuses == [401, 401, 202, 202, 200, 401]

    def test_answer_that_takes_too_long_is_cut(self, own: Toy) -> None:
        """The front end hangs up after its limit; the function goes on."""
        with own.host(http_limit_s=0.2, workers=1) as host:
            answer = requests.get(f"{host.url}/api/slow/t", timeout=10)
            running = host.state()["running"]
            own.release("t")

        assert answer.status_code == 502
        assert running == 1


class TestQueue:
    def test_message_is_worked_once_and_deleted(self, host: Host, toy: Toy) -> None:
        """A function gets the message with its count and its times; success deletes it."""
        toy.send("once")

        wait_until(lambda: toy.journal("work", token="once", event="end"))
        wait_until(lambda: toy.waiting() == 0)
        (start,) = toy.journal("work", token="once", event="start")
        assert start["count"] == 1
        assert start["hours"] == 7 * 24

    @pytest.mark.parametrize("do", ["fail", "return"])
    def test_message_that_fails_to_the_end_is_poison(self, host: Host, toy: Toy, do: str) -> None:
        """After maxDequeueCount attempts the body, and only the body, goes to the poison queue; so does a returned value's."""
        text = toy.send(f"poison-{do}", do)

        wait_until(lambda: toy.journal("bury", body=text))
        attempts = toy.journal("work", token=f"poison-{do}", event="start")
        assert [attempt["count"] for attempt in attempts] == [1, 2]
        wait_until(lambda: toy.waiting() == 0)

    def test_no_more_than_batch_and_threshold_run_at_once(self, host: Host, toy: Toy) -> None:
        """Two in a batch and one left over from the last: never more than three."""
        for number in range(9):
            toy.send(f"crowd-{number}", "hold")

        for left in range(9, 0, -1):
            wait_until(lambda: len(running(toy)[-1]) >= min(2, left))  # noqa: B023 - called at once
            token = running(toy)[-1][0]
            toy.release(token)
            wait_until(lambda: token not in running(toy)[-1])  # noqa: B023

        assert running(toy)[-1] == []
        assert max(len(tokens) for tokens in running(toy)) == 3

    def test_killed_worker_gives_its_message_back_at_once(self, host: Host, toy: Toy) -> None:
        """The message is seen again long before its ten-minute lease ends, and a new worker stands in."""
        before = host.state()["workers"]
        toy.send("death", "die_first")

        (second,) = wait_until(lambda: toy.journal("work", token="death", event="end"))

        assert second["count"] == 2
        wait_until(lambda: len(host.state()["workers"]) == 2 and host.state()["workers"] != before)

    def test_failed_message_waits_for_the_visibility_timeout(self, own: Toy) -> None:
        """visibilityTimeout delays a failed message; the lease plays no part."""
        settings = {"AzureFunctionsJobHost__extensions__queues__visibilityTimeout": "00:00:02"}
        with own.host(settings, workers=1):
            own.send("later", "fail")
            first, second = wait_until(lambda: two(own.journal("work", token="later", event="start")))

        assert second["count"] == 2
        assert second["at_s"] - first["at_s"] > 1  # storage counts in whole seconds

    def test_base64_is_decoded_and_anything_else_is_poison(self, own: Toy) -> None:
        """With messageEncoding base64 plain text never reaches the function."""
        settings = {"AzureFunctionsJobHost__extensions__queues__messageEncoding": "base64"}
        own.queue.send_message("{not base64}")
        own.queue.send_message("eyJ0b2tlbiI6ICJiNjQiLCAiZG8iOiAicGFzcyJ9")  # {"token": "b64", "do": "pass"}

        with own.host(settings, workers=1) as host:
            wait_until(lambda: own.journal("work", token="b64", event="end"))
            wait_until(lambda: [line for line in host.lines if "attempt 2 of 2" in line])

        assert [line["token"] for line in own.journal("work", event="start")] == ["b64"]

    def test_message_that_killed_all_its_hosts_is_poison_without_a_run(self, own: Toy) -> None:
        """A dequeue count above the limit at receive means that every attempt died."""
        text = own.send("killer")
        for _ in range(2):
            receive_and_release(own.queue)

        with own.host(workers=1):
            wait_until(lambda: own.journal("bury", body=text))

        assert own.journal("work") == []

    def test_poison_that_cannot_be_buried_stays(self, own: Toy) -> None:
        """A poison queue has no poison queue: its message comes back whenever its lease ends."""
        poison = open_queue(own.env["AzureWebJobsStorage"], own.queue.queue_name + "-poison")
        poison.create_queue()
        poison.send_message("stubborn")

        with own.host(queue_lease_s=1, workers=1) as host:
            wait_until(lambda: len(own.journal("bury", body="stubborn")) >= 3)
            lines = list(host.lines)

        assert not [line for line in lines if "moved to" in line]

    def test_lease_is_renewed_while_the_function_runs(self, own: Toy) -> None:
        """A function may run longer than the lease without a second one starting."""
        settings = {"AzureFunctionsJobHost__logging__logLevel__default": "Debug"}
        with own.host(settings, queue_lease_s=1, workers=1) as host:
            own.send("long", "hold")
            wait_until(lambda: len([line for line in host.lines if "lease renewed" in line]) >= 3)
            own.release("long")
            wait_until(lambda: own.journal("work", token="long", event="end"))
            wait_until(lambda: own.waiting() == 0)

        assert len(own.journal("work", token="long", event="start")) == 1

    def test_storage_that_was_away_is_polled_again(self, tmp_path: Path) -> None:
        """The host survives a restart of storage and goes on."""
        with Azurite(tmp_path / "data") as azurite:
            toy = Toy(azurite, tmp_path, "away")
            toy.queue.create_queue()
            with toy.host(workers=1) as host:
                azurite.stop()
                wait_until(lambda: [line for line in host.lines if "queue away cannot be read" in line])
                azurite.restart()
                toy.send("back")
                wait_until(lambda: toy.journal("work", token="back", event="end"))

        assert [line for line in host.lines if "queue away can be read again" in line]


class TestDeaths:
    def test_killed_host_keeps_its_lease(self, own: Toy) -> None:
        """Nothing is released by a killed host; the next one gets the message when the lease has run out."""
        own.send("orphan", "hold_first")
        first = own.host(queue_lease_s=3).start()
        wait_until(lambda: own.journal("work", token="orphan", event="start"))
        workers = first.state()["workers"]

        first.kill()

        assert own.queue.peek_messages() == []
        wait_until(lambda: not any(is_alive(pid) for pid in workers))
        with own.host():
            (end,) = wait_until(lambda: own.journal("work", token="orphan", event="end"))
        assert end["count"] == 2

    def test_function_timeout_takes_the_worker_down(self, own: Toy) -> None:
        """What overruns functionTimeout fails with all its neighbours, and the worker is replaced."""
        settings = {"AzureFunctionsJobHost__functionTimeout": "00:00:01"}
        with own.host(settings, workers=1) as host:
            (before,) = host.state()["workers"]
            own.send("overrun", "hold_first")
            (end,) = wait_until(lambda: own.journal("work", token="overrun", event="end"))
            (after,) = host.state()["workers"]

        assert end["count"] == 2
        assert after != before
        assert not is_alive(before)

    @pytest.mark.parametrize("signals", [pytest.param(os.kill, id="SIGTERM"), pytest.param(os.killpg, id="Ctrl-C")])
    def test_graceful_stop_lets_running_work_finish(self, own: Toy, signals: Callable[[int, int], None]) -> None:
        """Asked to end, alone or by Ctrl-C with its workers: nothing new starts, what runs finishes and is deleted."""
        host = own.host(workers=1).start()
        own.send("last", "hold")
        wait_until(lambda: own.journal("work", token="last", event="start"))
        assert host.pid is not None

        signals(host.pid, signal.SIGTERM if signals is os.kill else signal.SIGINT)
        wait_until(lambda: [line for line in host.lines if "stopping" in line])
        own.release("last")
        wait_until(lambda: host.pid is None)

        assert host.stop() == 0
        assert own.journal("work", token="last", event="end")
        assert own.waiting() == 0

    @pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
    def test_host_dies_with_its_parent(self, own: Toy) -> None:
        """A killed test run or demo leaves neither host nor workers behind."""
        script = STARTER.format(root=str(ROOT), app=str(TOY_APP))
        command = [sys.executable, "-c", script]
        with subprocess.Popen(command, env=os.environ | own.env, stdout=subprocess.PIPE) as parent:
            assert parent.stdout is not None
            pids = [int(pid) for pid in parent.stdout.readline().split()]

            parent.kill()

            wait_until(lambda: not any(is_alive(pid) for pid in pids))
        assert len(pids) == 3

    def test_stop_leaves_what_does_not_finish_to_its_lease(self, own: Toy) -> None:
        """A message whose function outlives the stop is neither deleted nor shown again."""
        host = own.host(workers=1, stop_wait_s=0.1).start()
        own.send("stuck", "hold")
        wait_until(lambda: own.journal("work", token="stuck", event="start"))

        code = host.stop()

        assert code == 0
        assert own.waiting() == 1
        assert own.queue.peek_messages() == []


class TestTimer:
    def test_timer_runs_by_schedule_and_at_startup(self, host: Host, toy: Toy) -> None:
        """Every second, and once at the start."""
        ticks = wait_until(lambda: two(toy.journal("tick")))

        assert [tick["past_due"] for tick in ticks] == [False, False]

    def test_function_runs_by_hand(self, host: Host, toy: Toy) -> None:
        """POST /admin/functions runs a queue function on the given input, without a queue."""
        host.run_by_hand("work", '{"token": "by-hand", "do": "pass"}')

        (end,) = wait_until(lambda: toy.journal("work", token="by-hand", event="end"))
        assert end["count"] == 1

    def test_unknown_function_cannot_be_run(self, host: Host) -> None:
        """The answer to a wrong name is 404."""
        with pytest.raises(requests.HTTPError, match="404"):
            host.run_by_hand("nobody")


class TestStart:
    def test_functions_are_listed(self, host: Host) -> None:
        """The list reads like that of Core Tools."""
        listed = [line.strip() for line in host.lines]

        assert f"echo: [GET,POST] {host.url}/api/echo/{{kind:alpha}}/{{id:int?}}" in listed
        assert "work: queueTrigger" in listed
        assert "tick: timerTrigger" in listed

    def test_logs_name_function_and_invocation(self, host: Host) -> None:
        """A log line of the app stands beside the function and the start of its invocation's id."""
        requests.get(f"{host.url}/api/echo/logged", timeout=10)

        line = wait_until(lambda: next((line for line in host.lines if "echo for logged" in line), ""))
        assert line.split(" INFO ")[1].split()[0] == "echo"

    def test_taken_port_is_one_sentence(self, host: Host, own: Toy) -> None:
        """The sentence names the port."""
        port = int(host.url.rsplit(":", 1)[1])

        with pytest.raises(HostError, match=f"^Port {port} of 127.0.0.1 cannot be used: .*in use$"):
            own.host(port=port).start()

    def test_given_port_is_used(self, own: Toy) -> None:
        """A port asked for is the port listened on."""
        (port,) = free_ports(1)

        with own.host(port=port, workers=1) as host:
            assert host.url == f"http://localhost:{port}"

    def test_one_bad_function_refuses_all(self, tmp_path: Path) -> None:
        """The host says why and ends with code 1, where Azure would only find no functions."""
        (tmp_path / "host.json").write_text('{"version": "2.0"}')
        (tmp_path / "function_app.py").write_text(BAD_APP)
        host = Host(tmp_path)

        with pytest.raises(
            HostError, match=r"(?s)No job functions found.*cannot load the bad function.*without a binding: id"
        ):
            host.start()

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            pytest.param({"AzureWebJobsStorage": ""}, "connection AzureWebJobsStorage is not set", id="no connection"),
            pytest.param({"PYTHON_THREADPOOL_THREAD_COUNT": "0"}, "must be a number from 1", id="threads"),
            pytest.param({"TOY_SCHEDULE": "0 6 * * *"}, "tick: '0 6 \\* \\* \\*' is no NCRONTAB", id="five fields"),
            pytest.param(
                {"AzureFunctionsJobHost__extensions__queues__batchSize": "33"}, "batchSize: .* 32", id="host.json"
            ),
        ],
    )
    def test_wrong_setting_is_named(self, own: Toy, settings: dict[str, str], message: str) -> None:
        """A setting that cannot be followed stops the start and is named."""
        with pytest.raises(HostError, match=message):
            own.host(settings, workers=1).start()


STARTER = """
import sys, time
from pathlib import Path
sys.path[0] = {root!r}
from sandbox.host import Host
host = Host(Path({app!r})).start()
print(host.pid, *host.state()["workers"], flush=True)
time.sleep(60)
"""

BAD_APP = """
import azure.functions as func
app = func.FunctionApp()

@app.route("good")
def good(req: func.HttpRequest) -> str:
    return ""

@app.route("bad/{id}")
def bad(req: func.HttpRequest, id: str) -> str:
    return ""
"""


def running(toy: Toy) -> list[list[str]]:
    """Return which of the crowd ran after each line of the journal; at first nobody."""
    history: list[list[str]] = [[]]
    for line in toy.journal("work"):
        token = line["token"]
        if token.startswith("crowd"):
            now = history[-1]
            history.append([*now, token] if line["event"] == "start" else [each for each in now if each != token])
    return history


def two(lines: list[dict[str, object]]) -> list[dict[str, object]]:
    """Return the first two of at least two lines, else nothing."""
    return lines[:2] if len(lines) >= 2 else []


def receive_and_release(queue: QueueClient) -> None:
    """Take a message and give it back at once, as an attempt that died long ago."""
    message = queue.receive_message(visibility_timeout=60)
    assert message is not None
    queue.update_message(message, visibility_timeout=0)
