"""A worker with a wrong clock: the app is told the wrong time, and nothing else of it changes."""

import os
import subprocess
import sys

from sandbox.skewed_clock import SKEWS, WORKER

ASK = """
from datetime import UTC, datetime
from sandbox.skewed_clock import skew_clock
from shared.state import entities, storage
skew_clock()
off = storage.datetime.now(UTC) - datetime.now(UTC)
print(round(off.total_seconds() / 60), type(storage.datetime(2026, 3, 1)) is datetime, issubclass(datetime, entities.datetime))
"""


def test_app_is_told_the_time_of_its_worker() -> None:
    """Each worker is off by its own number of seconds; the times that the app makes are ordinary ones."""
    environ = os.environ | {SKEWS: "0,-3600,7200", WORKER: "2"}

    said = subprocess.run([sys.executable, "-c", ASK], env=environ, capture_output=True, text=True, check=True)

    assert said.stdout.split() == ["-60", "True", "True"]
