"""The demonstration: `make demo` starts everything, syncs yesterday's cases as a user would, and proves the result.

It ends with 0 only if every incident is what the oracle works out, a second sync writes nothing, and the contacts that are
saved after that (`demo_contacts.py`) have become the leads that they should.
"""

import argparse
import asyncio
import dataclasses
import logging
import sys
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TextIO

import aiohttp

from sandbox.demo_contacts import ContactsReport, demonstrate_contacts, describe_contacts
from sandbox.mailbox import Mail
from sandbox.oracle import Snapshot, compare, expect, servicenow_writes, take_snapshot
from sandbox.start import FOLDER, ROOT, Sandbox, SandboxError, add_options, running, stop_on_signals

EMAIL = "ada@example.com"
WINDOW = "yesterday"
LONGEST_RUN_S = 600.0
LONGEST_STANDSTILL_S = 60.0  # without a record done, the demo gives up
MAIL_WAIT_S = 30.0
LOOK_S = 0.25
LINE_EVERY_S = 2.0  # where there is no terminal
BAR_CHARS = 30
SHOWN = 10  # failed cases and differences listed in full
ENDED = {"completed", "completed_with_warnings", "completed_with_failures", "failed", "cancelled"}
Json = dict[str, Any]


class DemoError(RuntimeError):
    """The demo did not come to the expected result; the message says why."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What a demo came to."""

    first: Json  # the first run as the API shows it
    second: Json
    failures: list[Json]  # results of the first run
    mail: Mail
    second_writes: list[str]  # requests of the second run that change something in ServiceNow
    differences: list[str]  # from what the oracle expects
    seconds: float  # of the first run, until its mail had come
    before: Snapshot
    after: Snapshot  # of the first run
    contacts: ContactsReport

    @property
    def good(self) -> bool:
        """Whether everything is as it should be."""
        return not (self.differences or self.second_writes or self.contacts.differences)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return 0 only if its result is the expected one."""
    parser = argparse.ArgumentParser(prog="python -m sandbox.demo", description=__doc__)
    add_options(parser)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.ERROR)
    try:
        return asyncio.run(_demonstrate(options))
    except (SandboxError, DemoError) as exc:
        print(f"\n{exc}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("\nStopped; nothing is left running.")
        return 130


async def _demonstrate(options: argparse.Namespace) -> int:
    stop_on_signals()
    print(
        f"Concord demo: {options.records} Dynamics 365 cases become ServiceNow incidents, contacts become leads. "
        "All of it runs on this machine."
    )
    print("Starting storage, Dynamics 365, ServiceNow, Marketo, mail and the app …", flush=True)
    started_s = time.monotonic()
    async with running(
        base_port=options.base_port,
        records=options.records,
        seed=options.seed,
        workers=options.workers,
        env={"DAILY_SYNC_SCHEDULE": _far_schedule()},
    ) as sandbox:
        print(f"Everything is up after {time.monotonic() - started_s:.1f} s.\n")
        try:
            report = await demonstrate(sandbox, Progress(sys.stdout))
        except DemoError as exc:
            raise DemoError("\n".join([str(exc), "", "The host said last:", *sandbox.log[-15:]])) from exc
        files = keep_mail(report.mail, FOLDER)
    print(describe(report, files))
    return 0 if report.good else 1


async def demonstrate(sandbox: Sandbox, progress: "Progress") -> Report:
    """Sync twice, as a user would, and compare with the oracle. Raises DemoError when a run does not end well."""
    before = take_snapshot(sandbox.dynamics, sandbox.servicenow)
    async with aiohttp.ClientSession() as session:
        client = Client(session, sandbox)
        started_s = time.monotonic()
        first = await client.sync(progress, _count_yesterday(before))
        mail = await _await_mail(sandbox, 1)
        seconds = time.monotonic() - started_s
        results = (await client.get(f"{first['links']['results']}"))["results"]
        failures = (await client.get(f"{first['links']['results']}?outcome=failed"))["results"]
        after = take_snapshot(sandbox.dynamics, sandbox.servicenow)
        since, until = (datetime.fromisoformat(first[name]) for name in ("since", "until"))
        differences = compare(before, after, since, until, results if len(results) < client.MOST_RESULTS else ())
        differences += _check_mail(mail, first, failures)

        progress.say("\nOnce more, to see that nothing is written twice:")
        seen = len(sandbox.servicenow.journal)
        second = await client.sync(progress, sum(first["counts"].values()))
        await _await_mail(sandbox, 2)
        writes = servicenow_writes(sandbox.servicenow.journal[seen:])
        changed = compare_twice(after, take_snapshot(sandbox.dynamics, sandbox.servicenow))
        changed += _check_second(first, second)

        progress.say("\nSome contacts are saved in Dynamics 365; its webhooks do the rest.")
        contacts = await demonstrate_contacts(sandbox, client.get)
    return Report(first, second, failures, mail, writes, differences + changed, seconds, before, after, contacts)


class Client:
    """A user with a browser: starts a sync and looks at its status page."""

    MOST_RESULTS = 1000  # that the app lists

    def __init__(self, session: aiohttp.ClientSession, sandbox: Sandbox) -> None:
        self._session, self._sandbox = session, sandbox

    async def get(self, url: str, status: int = 200) -> Json:
        """Get JSON. Raises DemoError for another status."""
        try:
            async with self._session.get(url) as answer:
                text = await answer.text()
                if answer.status != status:
                    raise DemoError(f"GET {url} answered {answer.status}: {text[:500]}")
                body: Json = await answer.json()
                return body
        except aiohttp.ClientError as exc:
            raise DemoError(f"GET {url} failed: {exc}") from exc

    async def sync(self, progress: "Progress", total: int) -> Json:
        """Start a sync of yesterday's cases, show how it goes on and return the run when it has ended."""
        url = self._sandbox.sync_url(EMAIL, window=WINDOW)
        progress.say(f"GET {url}")
        begun = await self.get(url, 202)
        progress.say(f"202 {begun['message']}\n    {begun['status']}")
        started_s = moved_s = time.monotonic()
        done = -1
        while True:
            run = await self.get(begun["status"])
            now_s = time.monotonic()
            if run["progress"]["done"] != done:
                done, moved_s = run["progress"]["done"], now_s
            progress.show(done, max(total, done), run["state"], now_s - started_s)
            if run["state"] in ENDED:
                progress.end()
                if run["state"] in {"failed", "cancelled"}:
                    raise DemoError(f"The run is {run['state']}: {run['error']}")
                return run
            if run["state"] == "awaiting_confirmation":
                raise DemoError(f"The run waits for a confirmation: {run['held']}")
            if now_s - moved_s > LONGEST_STANDSTILL_S or now_s - started_s > LONGEST_RUN_S:
                raise DemoError(f"The run does not get on: {run}")
            await asyncio.sleep(LOOK_S)


class Progress:
    """A bar on a terminal, plain lines elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._bar = stream, stream.isatty()
        self._said_s, self._said, self._last = -LINE_EVERY_S, "", ""

    def say(self, text: str) -> None:
        """Print lines of their own."""
        print(text, file=self._stream, flush=True)

    def show(self, done: int, total: int, state: str, elapsed_s: float) -> None:
        """Show how far a run is."""
        text = f"{done:>5} of {total} cases  {state.replace('_', ' ')}  {elapsed_s:.0f} s"
        if self._bar:
            filled = BAR_CHARS * done // max(1, total)
            self._last = f"[{'#' * filled}{'-' * (BAR_CHARS - filled)}] {text}"
            print(f"\r\x1b[K{self._last}", end="", file=self._stream, flush=True)
        else:
            self._last = text
            if elapsed_s - self._said_s >= LINE_EVERY_S:
                self._said_s, self._said = elapsed_s, text
                self.say(text)

    def end(self) -> None:
        """Leave the last state standing."""
        if self._bar or self._said != self._last:
            self.say("" if self._bar else self._last)
        self._said_s, self._said = -LINE_EVERY_S, ""


# -- checks -------------------------------------------------------------------------------------------------------------


def compare_twice(first: Snapshot, second: Snapshot) -> list[str]:
    """Say which tables the second sync changed."""
    changed = [name for name in first.dynamics if first.dynamics[name] != second.dynamics[name]]
    changed += [name for name in first.servicenow if first.servicenow[name] != second.servicenow[name]]
    return [f"The second sync changed {name}." for name in changed]


def _check_second(first: Json, second: Json) -> list[str]:
    """Say what the second run counts otherwise: what was synced is unchanged, the rest is as before."""
    wanted = {"unchanged": first["successful"]}
    wanted |= {name: first["counts"][name] for name in ("skipped", "failed") if name in first["counts"]}
    got = second["counts"]
    return [] if got == wanted else [f"The second sync counts {_listed(got)}, and should count {_listed(wanted)}."]


def _check_mail(mail: Mail, run: Json, failures: list[Json]) -> list[str]:
    """Say what the mail does not tell: each failed case, the counts, no key."""
    said = [] if mail.recipients == (EMAIL,) else [f"The mail went to {mail.recipients} and not to {EMAIL}."]
    said += [] if mail.text and mail.html else ["The mail lacks its text or its HTML part."]
    if len(failures) <= 100:
        said += [
            f"The mail does not name {each['source_label']}."
            for each in failures
            if each["source_label"] not in mail.text
        ]
    said += [
        f"The mail does not say {count}."
        for count in (run["successful"], len(failures))
        if f"{count:,}" not in mail.text
    ]
    return said + (["A link of the mail carries a key."] if "code=" in mail.html else [])


def _count_yesterday(before: Snapshot) -> int:
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return len(expect(before, midnight - timedelta(days=1), midnight))


async def _await_mail(sandbox: Sandbox, count: int) -> Mail:
    for _ in range(int(MAIL_WAIT_S / LOOK_S)):
        if len(sandbox.mailbox.mails) >= count:
            return sandbox.mailbox.mails[count - 1]
        await asyncio.sleep(LOOK_S)
    raise DemoError(f"No mail came within {MAIL_WAIT_S:.0f} s after the run had ended.")


def _far_schedule() -> str:
    """Return a daily time that is half a day away: the daily run is not to get between."""
    return f"0 0 {(datetime.now(UTC).hour + 12) % 24} * * *"


# -- what is said at the end ----------------------------------------------------------------------------------------------


def keep_mail(mail: Mail, folder: Path) -> tuple[Path, Path]:
    """Write the mail down, as it came and as a page, and return both files."""
    folder.mkdir(exist_ok=True)
    files = folder / "summary.eml", folder / "summary.html"
    files[0].write_bytes(mail.message.as_bytes())
    files[1].write_text(mail.html, encoding="utf-8")
    return files


def describe(report: Report, files: tuple[Path, Path]) -> str:
    """Return the last lines of the demo."""
    run, counts = report.first, report.first["counts"]
    lines = [
        "",
        f"Synced   {run['successful']:>5}   ({_listed({name: counts[name] for name in counts if name not in {'skipped', 'failed'}})})",
    ]
    lines += [f"Skipped  {counts.get('skipped', 0):>5}   ({_listed(run['skipped'])})"] if counts.get("skipped") else []
    reasons = Counter(each["reason"] for each in report.failures)
    lines += [f"Failed   {counts.get('failed', 0):>5}   ({_listed(reasons)})"] if reasons else ["Failed       0"]
    for each in report.failures[:SHOWN]:
        lines.append(f"  {each['source_label']:<18} {each['reason']}: {each['message']}")
    if len(report.failures) > SHOWN:
        lines.append(f"  and {len(report.failures) - SHOWN} more, all of them in the mail")
    mail, html = (_near(path) for path in files)
    lines += [
        "",
        f'Mail     "{report.mail.message["Subject"]}" to {", ".join(report.mail.recipients)}',
        f"         {html} shows it in a browser, {mail} is the mail itself",
        f"Time     {report.seconds:.1f} s from the request to the mail, {sum(counts.values())} cases",
        f"Again    {_again(report)}",
        f"Oracle   {_verdict(report)}",
    ]
    lines += [f"  {each}" for each in report.differences[: 2 * SHOWN]]
    return "\n".join([*lines, "", describe_contacts(report.contacts), "", "To click through it yourself: make start"])


def _again(report: Report) -> str:
    counts = _listed(report.second["counts"])
    if not report.second_writes:
        return f"the second sync wrote nothing to ServiceNow ({counts})"
    return f"the second sync WROTE to ServiceNow: {len(report.second_writes)} times, first {report.second_writes[0]} ({counts})"


def _verdict(report: Report) -> str:
    if not report.differences:
        return "each case and each stranger is exactly as it should be, field by field"
    return f"{len(report.differences)} DIFFERENCES from what should be there:"


def _listed(counts: Json | Counter[str]) -> str:
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items() if count) or "none"


def _near(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


if __name__ == "__main__":
    sys.exit(main())
