"""Child processes and ports of the sandbox: nothing survives its parent, nothing binds a port that is not ours."""

import contextlib
import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence

LOOPBACK = "127.0.0.1"
PORTS = range(20_000, 32_000)
PR_SET_PDEATHSIG = 1  # prctl(2)
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def tie_to_parent(parent_pid: int) -> None:
    """Have the kernel kill the calling process when the thread that forked it ends; elsewhere than on Linux do nothing.

    The rule is the kernel's: start children from a thread that lives as long as they should.
    """
    if _LIBC is None:
        return
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it died between fork and prctl
        os._exit(1)


def tied(command: Sequence[str]) -> list[str]:
    """Return a command that runs another one tied to this process; for programs that cannot call `tie_to_parent`.

    This file is the launcher: code between fork and exec (`preexec_fn`) is not safe beside threads.
    """
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def stop_process(process: subprocess.Popen[bytes], grace_s: float) -> int:
    """Ask a child to end (SIGTERM), after `grace_s` seconds kill it, and return its exit code."""
    if process.poll() is None:
        process.terminate()
        try:
            return process.wait(grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


def free_ports(count: int) -> tuple[int, ...]:
    """Return ports of the loopback interface that nobody listens on at this moment.

    They lie below those that systems give to outgoing connections, so that who listened there can do so again. Raises
    OSError when there are not so many.
    """
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        for port in random.sample(PORTS, len(PORTS)):
            if len(ports) == count:
                break
            with contextlib.suppress(OSError):
                stack.enter_context(socket.socket()).bind((LOOPBACK, port))
                ports.append(port)
        if len(ports) < count:
            raise OSError(f"{count} free ports between {PORTS.start} and {PORTS.stop} were not found")
        return tuple(ports)


def port_is_free(port: int) -> bool:
    """Tell whether we could listen on a loopback port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # leftovers in TIME_WAIT do not count
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def port_answers(port: int) -> bool:
    """Tell whether somebody listens on a loopback port."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=1):
            return True
    except OSError:
        return False


if __name__ == "__main__":
    tie_to_parent(int(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])
