"""`python -m benchmarks.marketo_calls`: what a backfill of contacts and accounts costs Marketo, in calls; speed plays no part.

Accounts go first, then their contacts. Counted in the simulator's journal until each run has ended, and set out for a
million contacts of a hundred thousand accounts; the verification that follows a backfill is counted apart.
"""

import argparse
import json
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import Any

from sandbox.start import Sandbox, running_in_thread

CONTACTS = 30_000
PER_ACCOUNT = 10
MILLION = 1_000_000
BUDGET = {"write leads": 3_400, "write companies": 340, "search": 3_400}  # for a million contacts; all that begins so
NO_LIMITS = {"calls_per_window": 0, "daily_calls": 0}
ENV = {"CONNECTIONS__MARKETO__CALLS_PER_20S": "100"}
LOOK_S = 1.0
Calls = Counter[str]
Json = dict[str, Any]


def main() -> int:
    """Count and print one line; return 0 when a million contacts keep within the budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contacts", type=int, default=CONTACTS)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with running_in_thread(records=1, incidents=0, workers=options.workers, env=ENV) as sandbox:
        _fill(sandbox, options.contacts)
        moved, verified = _backfill(sandbox, "account_to_company")
        for counted, more in zip((moved, verified), _backfill(sandbox, "contact_to_lead"), strict=True):
            counted.update(more)
        leads = len(sandbox.marketo.rows("leads"))
    million = {name: -(-count * MILLION // options.contacts) for name, count in moved.items()}
    counts = {"calls": moved, "for_a_million": million, "verification": verified}
    print(json.dumps({"contacts": options.contacts, "leads": leads} | counts))
    needs = {name: sum(count for call, count in million.items() if call.startswith(name)) for name in BUDGET}
    return 0 if all(needs[name] <= most for name, most in BUDGET.items()) else 1


def _fill(sandbox: Sandbox, contacts: int) -> None:
    """Put new contacts in the place of the demo's, in an order that has nothing to do with their accounts."""
    dynamics, marketo = sandbox.dynamics, sandbox.marketo
    dynamics.hooks.clear()
    marketo.configure(NO_LIMITS)
    for table in ("contact", "account"):
        for row in dynamics.rows(table):
            dynamics.delete(table, row[f"{table}id"])
    for table in ("leads", "companies"):
        for row in marketo.rows(table):
            marketo.delete(table, row["id"])
    count = contacts // PER_ACCOUNT
    accounts = [dynamics.insert("account", name=f"Company {number}") for number in range(count)]
    for number in range(contacts):
        account, email = accounts[number * 7 % count], f"c{number}@backfill.example"
        dynamics.insert("contact", lastname=str(number), emailaddress1=email, parentcustomerid_account=account)


def _backfill(sandbox: Sandbox, recipe: str) -> tuple[Calls, Calls]:
    """Move everything, and return the calls that it took, and those of the verification that followed."""
    sandbox.marketo.journal.clear()
    run = _get(f"{sandbox.app_url}/api/sync/{recipe}?Email=ada@example.com&window=all")["run_id"]
    runs: list[Json] = []
    while len(runs) < 2 or any(each["ended_at"] is None for each in runs):
        time.sleep(LOOK_S)
        runs = _get(f"{sandbox.app_url}/api/runs?recipe={recipe}&limit=2")["runs"]
    [moved] = [each for each in runs if each["run_id"] == run]
    print(f"{recipe}: {moved['state']} {moved['counts']}", file=sys.stderr)
    ended_at = datetime.fromisoformat(moved["ended_at"])
    return _count(sandbox, lambda at: at <= ended_at), _count(sandbox, lambda at: at > ended_at)


def _count(sandbox: Sandbox, wanted: Callable[[datetime], bool]) -> Calls:
    calls: Calls = Counter()
    for entry in sandbox.marketo.requests("", r"^/rest/v1/(leads|companies)\.json"):
        asks = entry.method == "GET" or "_method" in entry.query
        if wanted(entry.at):
            calls[f"{'search' if asks else 'write'} {'leads' if '/leads' in entry.path else 'companies'}"] += 1
    return calls


def _get(url: str) -> Json:
    with urllib.request.urlopen(url, timeout=60) as answer:
        body: Json = json.loads(answer.read())
        return body


if __name__ == "__main__":
    sys.exit(main())
