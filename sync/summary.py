"""A run, or a day of events, as the mail that a support lead reads; pure: facts in, Email out.

Every failed record stands there with its number, its reason, what to do and its links; what is the same of SAME_FROM
records is said once, with all of them. Above GROUP_ABOVE they are grouped by reason, with a few examples, and all of them
go along as a CSV file. No link carries a key.
"""

import csv
import dataclasses
import io
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from zoneinfo import ZoneInfo

import jinja2

from shared.mail import Attachment, Email
from shared.state.rows import Outcome, RunState
from sync.reasons import explain, title_of

SYNCED = (Outcome.CREATED, Outcome.ADOPTED, Outcome.UPDATED, Outcome.UNCHANGED)
GROUP_ABOVE = 100
SAME_FROM = 10  # records of which the same is to be said
EXAMPLES = 3  # records shown of a group
LISTED = 50  # created references shown
IDS_LISTED = 3  # of a window of ids; more are only counted
LISTED_PER_WARNING = 10
CSV_ROWS = 20_000  # about 6 MB: mail services take 10 MB at the most
CSV_NAME = "failed-records.csv"
PLANNED = {Outcome.CREATED: "to create", Outcome.ADOPTED: "to adopt", Outcome.UPDATED: "to update"}  # of a preview
KEY_WANTED = "In Azure this address asks for the app's function key, as the header x-functions-key; opened without it, it stays empty."
BY_ITSELF = "Each record is looked at by itself: of two new ones that share what they are matched by, such as one email, both would sync here; in a run the second fails."
STILL_FAILING = "Known from earlier runs. They are tried with every run for seven days, then only shown, until one succeeds or is skipped."
NEXT_STEP = "What failed is tried again with the next run. To try it now, POST to the run's address with /retry at the end; to leave it, with /skip."
NEXT_STEP_OF_DAY = "What failed is tried again with the next run, for seven days."
SUBJECT_TITLE_CHARS = 90

_KEY_NAMES = re.compile(r"(?i)code|key|sig|token|secret|password|.*_(token|secret|key)|x-functions-key")
# What starts a formula, also in full width, at the start of a cell or of what a spreadsheet that splits at semicolons sees.
_FORMULA_STARTS = re.compile(r"(^|;)(?=\s*[=+\-@＝＋－＠]|[\t\r\n])")
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=jinja2.select_autoescape(["html.j2"], default=False),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclasses.dataclass(frozen=True)
class FailureLine:
    """One failed record."""

    label: str  # the record's number
    reason: str  # code
    sentence: str = ""  # what happened; empty: what the code says
    source_url: str = ""
    target_url: str = ""
    target_label: str = ""
    since: datetime | None = None  # first failed, of a repeated failure; aware UTC


@dataclasses.dataclass(frozen=True)
class RecordLink:
    """A record by its label and address."""

    label: str
    url: str = ""


@dataclasses.dataclass(frozen=True)
class WarningLine:
    """One kind of warning and the records that have it."""

    code: str
    count: int
    sentence: str = ""  # empty: what the code says
    records: tuple[RecordLink, ...] = ()


@dataclasses.dataclass(frozen=True)
class Guard:
    """What waits for a person."""

    sentence: str  # "The run would create 312 users; the guard is 200."
    url: str  # where it is confirmed
    expires_at: datetime | None = None  # aware UTC


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What a summary and a digest have in common."""

    to: tuple[str, ...]
    title: str  # the recipe's
    environment: str
    status_url: str
    zone: ZoneInfo
    counts: Mapping[str, int]  # records per outcome
    skipped: Mapping[str, int] = dataclasses.field(default_factory=dict)  # records per reason code
    failures: tuple[FailureLine, ...] = ()  # new ones
    repeated: tuple[FailureLine, ...] = ()  # failing since an earlier run
    created: tuple[RecordLink, ...] = ()  # users and others that were made on the way
    created_noun: str = "user"
    warnings: tuple[WarningLine, ...] = ()
    access_error: str = ""  # a connection's fault: said once and first


@dataclasses.dataclass(frozen=True, kw_only=True)
class SummaryFacts(Facts):
    """A run that owes its mail."""

    run_id: str
    state: RunState
    preview: bool = False
    verify: bool = False  # compared only: failed is what differs
    window: str = ""  # "yesterday"
    since: datetime | None = None  # aware UTC, inclusive
    until: datetime | None = None  # aware UTC, exclusive
    started_at: datetime | None = None
    ended_at: datetime | None = None
    error: str = ""  # why the run failed
    waiting_for: str = ""  # the system that is down, as people know it
    waiting_since: datetime | None = None
    guard: Guard | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class DigestFacts(Facts):
    """A recipe's events, polls and sweeps of a day."""

    recipe: str
    day: date


@dataclasses.dataclass(frozen=True)
class _Words:
    """What the numbers of a mail are called."""

    synced: str
    failed: str
    repeated: str


DID = _Words("synced", "failed", "still failing")
WOULD = _Words("would sync", "would fail", "would fail again")
COMPARED = _Words("agree", "differ", "differ, and fail in runs")


@dataclasses.dataclass(frozen=True)
class _Notice:
    """A paragraph above everything else."""

    tone: str
    title: str
    text: str = ""
    link: str = ""
    link_label: str = ""


def build_summary(facts: SummaryFacts) -> Email:
    """Build the mail of a run."""
    headline, tone = _run_headline(facts)
    details = [(label, text) for label, text in (("Run", _run_text(facts)), ("Run id", facts.run_id)) if text]
    return _build(facts, headline, tone, _notices(facts), _period(facts), details, f"{facts.run_id}.summary")


def build_digest(facts: DigestFacts) -> Email:
    """Build the mail of a recipe's day: only what failed needs one, the caller decides."""
    new, old = len(facts.failures), len(facts.repeated)
    headline = ", ".join(
        part
        for part in (
            f"{new:,} new {_plural('failure', new)}" if new or not old else "",
            f"{old:,} still failing" if old else "",
        )
        if part
    )
    tone = "bad" if new else "warn" if old else "good"
    period = f"{_day(facts.day)} ({facts.zone.key})"
    message_id = f"{facts.recipe}-{facts.day:%Y%m%d}.digest"
    return _build(facts, headline, tone, _access_notice(facts), period, [], message_id)


def _words(facts: Facts) -> _Words:
    if isinstance(facts, SummaryFacts) and (facts.verify or facts.preview):
        return COMPARED if facts.verify else WOULD
    return DID


def counts_of(counts: Mapping[str, int]) -> tuple[int, int, int]:
    """Return how many records were synced, skipped and failed."""
    synced = sum(counts.get(outcome, 0) for outcome in SYNCED)
    return synced, counts.get(Outcome.SKIPPED, 0), counts.get(Outcome.FAILED, 0)


# -- what is said --------------------------------------------------------------------------------------------------


def _run_headline(facts: SummaryFacts) -> tuple[str, str]:
    """Return the sentence of the subject and its tone: good, warn, bad, wait or plan."""
    synced, skipped, failed = counts_of(facts.counts)
    counted = f"{synced:,} synced, {failed:,} failed"
    anything = bool(synced or skipped or failed or facts.counts.get(Outcome.HELD))
    match facts.state:
        case RunState.FAILED:
            return (f"run failed after {counted}" if anything else "run failed"), "bad"
        case RunState.CANCELLED:
            return f"cancelled after {counted}", "wait"
        case RunState.AWAITING_CONFIRMATION:
            return "waits for your confirmation", "wait"
        case RunState.WAITING:
            return f"waits for {facts.waiting_for or 'a system'}", "wait"
    if facts.preview:
        return f"preview, {synced:,} would sync, {failed:,} would fail", "plan"
    if facts.verify and anything:
        return f"{synced:,} agree, {failed:,} {'differs' if failed == 1 else 'differ'}", "bad" if failed else "good"
    if not anything:
        return "nothing to sync", "good"
    if failed or facts.access_error:
        return counted, "bad"
    return counted, "warn" if facts.warnings or facts.state is RunState.COMPLETED_WITH_WARNINGS else "good"


def _notices(facts: SummaryFacts) -> list[_Notice]:
    notices = _access_notice(facts)
    if facts.state is RunState.CANCELLED:
        text = " ".join(part for part in (facts.error, "What was written before stays written.") if part)
        notices.append(_Notice("wait", "The run was cancelled", text))
    elif facts.error and facts.error != facts.access_error:
        notices.append(_Notice("bad", "The run failed", f"{facts.error} When that is mended, start the run again."))
    if facts.guard:
        notices.append(_guard_notice(facts.guard, facts.zone))
    if facts.waiting_since:
        text = (
            f"{facts.waiting_for or 'A system'} has not answered since {_moment(facts.waiting_since, facts.zone)}. "
            "What waits for it goes on by itself when it does."
        )
        notices.append(_Notice("wait", f"Waiting for {facts.waiting_for or 'a system'}", text))
    if facts.verify:
        notices.append(
            _Notice("plan", "This was a verification", "Source and target were compared; nothing was written.")
        )
    if facts.preview:
        notices.append(
            _Notice(
                "plan", "This was a preview", f"Nothing was written; the numbers say what a run would do. {BY_ITSELF}"
            )
        )
    synced, skipped, failed = counts_of(facts.counts)
    if facts.state is RunState.COMPLETED and not (synced or skipped or failed or facts.counts.get(Outcome.HELD)):
        notices.append(_Notice("good", "No record changed in this window."))
    return notices


def _guard_notice(guard: Guard, zone: ZoneInfo) -> _Notice:
    url = safe_link(guard.url)
    parts = [guard.sentence]
    if guard.expires_at:
        parts.append(f"Without an answer by {_moment(guard.expires_at, zone)} it is cancelled.")
    if url:
        parts.append("To let it go on, POST to its address with /confirm at the end; to stop it, with /cancel.")
    return _Notice("wait", "A person has to decide", " ".join(parts), url, "Look at the run")


def _access_notice(facts: Facts) -> list[_Notice]:
    return [_Notice("bad", "A connection is refused", facts.access_error)] if facts.access_error else []


def _period(facts: SummaryFacts) -> str:
    """Return the window in words and in local times; whole days without their midnights."""
    zone = facts.zone
    since, until = (at.astimezone(zone) if at else None for at in (facts.since, facts.until))
    words = _window_words(facts.window)
    if since and until and since.time() == until.time() == time():
        first, last = since.date(), until.date() - timedelta(days=1)
        span = _day(first) if first == last else f"{_day(first)} to {_day(last)}"
    else:
        ends = (("from", since), ("to", until))
        span = " ".join(f"{word} {_moment(at, zone)}" for word, at in ends if at)
    return ": ".join(part for part in (words, f"{span} ({zone.key})" if span else "") if part)


def _window_words(window: str) -> str:
    if not window.startswith("ids="):
        return window.replace("_", " ")
    count = window.count(",") + 1
    return window if count <= IDS_LISTED else f"{count:,} records by their ids"


def _run_text(facts: SummaryFacts) -> str:
    if facts.started_at is None:
        return ""
    text = f"started {_moment(facts.started_at, facts.zone)}"
    if facts.ended_at:
        text += f", took {_duration((facts.ended_at - facts.started_at).total_seconds())}"
    return text


# -- how it is laid out ----------------------------------------------------------------------------------------------


def _build(
    facts: Facts,
    headline: str,
    tone: str,
    notices: Sequence[_Notice],
    period: str,
    details: Sequence[tuple[str, str]],
    message_id: str,
) -> Email:
    words, digest = _words(facts), isinstance(facts, DigestFacts)
    preview = words is WOULD
    synced, skipped, failed = counts_of(facts.counts)
    everything = (*facts.failures, *facts.repeated)
    grouped = len(everything) > GROUP_ABOVE
    title = _one_line(facts.title)
    held = facts.counts.get(Outcome.HELD, 0)
    context: dict[str, Any] = {
        "title": title,
        "headline": headline[:1].upper() + headline[1:],
        "environment": facts.environment,
        "period": _one_line(period),
        "tone": tone,
        "notices": notices,
        "details": [(label, _one_line(value)) for label, value in details],
        "tiles": []
        if digest
        else [
            (words.synced, synced, "good" if synced else "none"),
            ("skipped", skipped, "none"),
            (words.failed, failed, "bad" if failed else "none"),
        ],
        "parts": [
            (PLANNED.get(name, name.value) if preview else name.value, facts.counts.get(name, 0))
            for name in SYNCED
            if facts.counts.get(name) and words is not COMPARED
        ],
        "held": held,
        "sections": _failure_sections(facts, grouped),
        "csv_note": _csv_note(len(everything)) if grouped else "",
        "skipped": [(title_of(code), count, explain(code).says) for code, count in _by_count(facts.skipped)],
        "warnings": [_warning_view(line) for line in facts.warnings],
        "created": [(_one_line(each.label), safe_link(each.url)) for each in facts.created[:LISTED]],
        "created_title": f"{len(facts.created):,} {_plural(facts.created_noun, len(facts.created))} "
        f"{'would be ' if preview else ''}created",
        "created_more": max(0, len(facts.created) - LISTED),
        "next_step": "" if words is not DID or not everything else NEXT_STEP_OF_DAY if digest else NEXT_STEP,
        "status_url": safe_link(facts.status_url),
        "key_wanted": KEY_WANTED,
        "status_label": "See the runs" if digest else "See the run",
    }
    short = title if len(title) <= SUBJECT_TITLE_CHARS else title[: SUBJECT_TITLE_CHARS - 1].rstrip() + "…"
    return Email(
        to=facts.to,
        subject=f"[Concord] {short}: {headline} ({_one_line(facts.environment)})",
        text=_TEMPLATES.get_template("mail.txt.j2").render(context).strip() + "\n",
        html=_TEMPLATES.get_template("mail.html.j2").render(context),
        attachments=(_csv(facts),) if grouped else (),
        message_id=f"<{message_id}@{urlsplit(facts.status_url).hostname or 'concord.invalid'}>",
    )


def _failure_sections(facts: Facts, grouped: bool) -> list[dict[str, Any]]:
    """Return new failures, then repeated ones, each as lines or as groups."""
    sections = []
    words = _words(facts)
    for title, lines in ((words.failed, facts.failures), (words.repeated, facts.repeated)):
        if lines:
            noun = _plural("record", len(lines))
            alone, same = ([], []) if grouped else _told_once([_line_view(line, facts.zone) for line in lines])
            sections.append(
                {
                    "title": f"{len(lines):,} {noun} {'differs' if title == 'differ' and len(lines) == 1 else title}",
                    "note": STILL_FAILING if lines[0].since and words is DID else "",
                    "lines": alone,
                    "groups": [_group_view(code, group) for code, group in _groups(lines)] if grouped else same,
                }
            )
    return sections


def _line_view(line: FailureLine, zone: ZoneInfo) -> dict[str, str]:
    reason = explain(line.reason)
    return {
        "label": _one_line(line.label) or "(no number)",
        "url": safe_link(line.source_url),
        "reason": title_of(line.reason),
        "sentence": _one_line(line.sentence) or reason.says,
        "do": reason.do,
        "target_label": _one_line(line.target_label) or ("target record" if line.target_url else ""),
        "target_url": safe_link(line.target_url),
        "since": _day(line.since.astimezone(zone).date()) if line.since else "",
    }


def _told_once(views: Sequence[dict[str, str]]) -> tuple[list[dict[str, str]], list[dict[str, Any]]]:
    """Return the lines that stand alone, and as groups those of which nothing differs but the record; a group names them all."""

    def says(view: dict[str, str]) -> tuple[str, ...]:
        return tuple(text for name, text in view.items() if name not in ("label", "url"))

    alike: defaultdict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    for view in views:
        alike[says(view)].append(view)
    alone = [view for view in views if len(alike[says(view)]) < SAME_FROM]
    groups = [
        same[0] | {"count": len(same), "examples": [(each["label"], each["url"]) for each in same], "more": 0}
        for same in sorted(alike.values(), key=len, reverse=True)
        if len(same) >= SAME_FROM
    ]
    return alone, groups


def _group_view(code: str, lines: Sequence[FailureLine]) -> dict[str, Any]:
    reason = explain(code)
    said = dict.fromkeys(_one_line(line.sentence) for line in lines if line.sentence)
    first = next(iter(said), "")
    sentence = first if len(said) == 1 else f"{reason.says} For example: {first}" if said else reason.says
    return {
        "reason": title_of(code),
        "count": len(lines),
        "sentence": sentence,
        "do": reason.do,
        "since": "",
        "examples": [(_one_line(line.label), safe_link(line.source_url)) for line in lines[:EXAMPLES]],
        "more": max(0, len(lines) - EXAMPLES),
    }


def _groups(lines: Iterable[FailureLine]) -> list[tuple[str, list[FailureLine]]]:
    groups: dict[str, list[FailureLine]] = {}
    for line in lines:
        groups.setdefault(line.reason, []).append(line)
    return sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))


def _warning_view(line: WarningLine) -> dict[str, Any]:
    reason = explain(line.code)
    shown = line.records[:LISTED_PER_WARNING]
    return {
        "title": title_of(line.code),
        "count": line.count,
        "sentence": _one_line(line.sentence) or reason.says,
        "do": reason.do,
        "records": [(_one_line(each.label), safe_link(each.url)) for each in shown],
        "more": max(0, line.count - len(shown)) if shown else 0,
    }


def _csv_note(count: int) -> str:
    if count <= CSV_ROWS:
        return f"All {count:,} records are in {CSV_NAME}, attached."
    return f"The first {CSV_ROWS:,} of {count:,} records are in {CSV_NAME}, attached; the run's page has them all."


def _csv(facts: Facts) -> Attachment:
    """Return the failed records as a file that a spreadsheet opens without running anything in it."""
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writerow(
        ["record", "new", "failing since", "reason", "what happened", "what to do", "record link", "target link"]
    )
    for line in (*facts.failures, *facts.repeated)[:CSV_ROWS]:
        view = _line_view(line, facts.zone)
        new = "no" if line.since else "yes"
        since = line.since.astimezone(facts.zone).date().isoformat() if line.since else ""
        row = [view["label"], new, since, line.reason, view["sentence"], view["do"], view["url"], view["target_url"]]
        writer.writerow([spreadsheet_safe(cell) for cell in row])
    return Attachment(CSV_NAME, text.getvalue().encode("utf-8-sig"), "text/csv")


def spreadsheet_safe(cell: str) -> str:
    """Return a cell that no spreadsheet takes for a formula."""
    return _FORMULA_STARTS.sub(r"\1'", cell)


def safe_link(url: str) -> str:
    """Return an address that may stand in a mail, or nothing: only the web, no user name, no key in its query."""
    if not url.isprintable() or " " in url:
        return ""
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password is not None:
            return ""
    except ValueError:
        return ""
    names = [name for name, _ in parse_qsl(f"{parts.query}&{parts.fragment}", keep_blank_values=True)]
    return "" if any(_KEY_NAMES.fullmatch(name) for name in names) else url


def _by_count(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _one_line(text: str) -> str:
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())


def _plural(noun: str, count: int) -> str:
    return noun if count == 1 else f"{noun}s"


def _moment(at: datetime, zone: ZoneInfo) -> str:
    local = at.astimezone(zone)
    return f"{_day(local.date())}, {local:%H:%M}"


def _day(day: date) -> str:
    return f"{day:%a} {day.day} {day:%B} {day.year}"


def _duration(seconds: float) -> str:
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    parts = ((hours, "h"), (minutes, "min"), (rest, "s"))
    return " ".join(f"{number} {unit}" for number, unit in parts if number) or "under a second"
