"""`python -m benchmarks.allowance`: how much of Marketo's configured calls per 20 seconds two workers use, and whether none is refused.

New contacts wait, each is worked by itself (batching off: a search and a create), and the simulated instance allows what
the vendor does: 100 calls in any 20 seconds, 10 at once. Counted by the simulator, over whole windows.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections import Counter
from typing import Any

from sandbox.start import Sandbox, running_in_thread

WINDOW_S = 20
WINDOWS = 6
CALLS = 50
CALLS_PER_CONTACT = 2


def main() -> int:
    """Measure and print one line; return 0 when at least 95 % were used and nothing was refused."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=WINDOWS)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    env = {"EVENTS_TOGETHER": "1", "CONNECTIONS__MARKETO__CALLS_PER_20S": str(CALLS)}
    with running_in_thread(records=1, incidents=0, workers=options.workers, env=env) as sandbox:
        row = _measure(sandbox, options.windows)
    print(json.dumps(row))
    return 0 if row["used_percent"] >= 95 and not row["refused"] else 1


def _measure(sandbox: Sandbox, windows: int) -> dict[str, Any]:
    for number in range((windows + 2) * CALLS // CALLS_PER_CONTACT):
        sandbox.dynamics.insert("contact", lastname=str(number), emailaddress1=f"c{number}@allowance.example")
    time.sleep(WINDOW_S - time.time() % WINDOW_S)  # windows begin with the clock's, as the product's do
    begun = int(time.time()) // WINDOW_S
    time.sleep(windows * WINDOW_S + 1)
    calls = Counter(int(entry.at.timestamp()) // WINDOW_S for entry in sandbox.marketo.requests("", "^/rest/"))
    used = [calls[begun + number] for number in range(windows)]
    refused = {each["errorCode"]: each["count"] for each in sandbox.marketo.usage.errors_report(1)[0]["errors"]}
    return {
        "windows": used,
        "used_percent": round(100 * sum(used) / (CALLS * windows), 1),
        "refused": refused,
        "most_in_any_20_s": sandbox.marketo.usage.most_in_window,
        "most_at_once": sandbox.marketo.usage.most_at_once,
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}",
    }


if __name__ == "__main__":
    sys.exit(main())
