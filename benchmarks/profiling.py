"""A sampling profile of a worker's threads, for `benchmarks.cases --profile`; the product knows nothing of it.

Every few milliseconds the stacks of all threads are looked at. Counted are threads that do something: those that wait
in the standard library (a lock, a socket, a sleep) say so by the line they stand on, and are counted apart.
"""

import collections
import os
import sys
import threading
import time
from pathlib import Path
from types import FrameType

EVERY_S = 0.005
WAITING = ("threading.py", "selectors.py", "queue.py", "connection.py", "socket.py", "ssl.py", "_base.py", "thread.py")


def start(folder: str) -> None:
    """Sample this process until it ends; write the counts every second, as the worker is killed at the end."""
    path = Path(folder) / f"worker-{os.getpid()}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    threading.Thread(target=_sample, args=(path,), daemon=True, name="profile").start()


def _sample(path: Path) -> None:
    inclusive: collections.Counter[str] = collections.Counter()
    own: collections.Counter[str] = collections.Counter()
    me, samples, written_s = threading.get_ident(), 0, time.monotonic()
    while True:
        time.sleep(EVERY_S)
        samples += 1
        for ident, frame in sys._current_frames().items():  # noqa: SLF001 - documented for this use
            if ident == me:
                continue
            names = _names(frame)
            if Path(frame.f_code.co_filename).name in WAITING:
                own[f"(waiting) {_first_of_ours(names)}"] += 1
                continue
            own[names[0]] += 1
            inclusive.update(set(names))
        if time.monotonic() - written_s > 1:
            written_s = time.monotonic()
            _write(path, samples, inclusive, own)


def _names(frame: FrameType | None) -> list[str]:
    names = []
    while frame is not None:
        code = frame.f_code
        names.append(f"{'/'.join(Path(code.co_filename).parts[-2:])}:{code.co_name}")
        frame = frame.f_back
    return names


def _first_of_ours(names: list[str]) -> str:
    ours = ("sync/", "state/", "clients/", "shared/", "sandbox/")
    return next((name for name in names if name.startswith(ours)), names[-1])


def _write(path: Path, samples: int, inclusive: "collections.Counter[str]", own: "collections.Counter[str]") -> None:
    lines = [f"{samples} samples", "", "working, with what it calls:"]
    lines += [f"{count:8d}  {name}" for name, count in inclusive.most_common(120)]
    lines += ["", "on top of the stack:"]
    lines += [f"{count:8d}  {name}" for name, count in own.most_common(60)]
    path.write_text("\n".join(lines) + "\n")
