"""Sending a run's summary: exactly one per run that owes one.

A send is counted in the run's row before it leaves; the second is the last, and may repeat the first under the same
Message-ID. A send that certainly did not reach those who still wait for it is taken back, so a mail server may be down
for hours, and a recipient whom it puts off is tried again alone. Only a mail that nobody got is `summary_failed`.
"""

import dataclasses
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime, time, timedelta
from itertools import chain

from shared.errors import AmbiguousWriteError, ConfigError, RejectedError, SyncError, TransientError
from shared.mail import Delivery
from shared.state.messages import SummaryMessage
from shared.state.queues import again
from shared.state.rows import EVENT_PAGES, MailState, OpenRow, Outcome, PageRow, ResultRow, RunKind, RunRow, RunState
from sync import guards, runs
from sync.app import App
from sync.labels import label_created
from sync.recipe import Recipe
from sync.summary import (
    LISTED,
    DigestFacts,
    FailureLine,
    Guard,
    RecordLink,
    SummaryFacts,
    WarningLine,
    build_digest,
    build_summary,
)

LOG = logging.getLogger(__name__)

MOST_SENDS = 2
RETRY_S = (30, 60, 120, 300, 600, 900)
GIVE_UP_AFTER = timedelta(hours=24)
DIGEST_SENT = "digest sent"  # among what has fired: the day whose digest went out
WARNED_RECORDS = 10  # records named per kind of warning
WARNED_TEXTS = 20  # of one kind


def send_summary(app: App, message: SummaryMessage, message_id: str) -> None:
    """Send a run's summary, or the question that a waiting run has; a failed mail is tried again for a day."""
    if message.day is not None:
        _send_digest(app, message, message_id, message.day)
        return
    run = app.find_run(message.run_id)
    if run is None:
        return
    if run.state is RunState.AWAITING_CONFIRMATION:
        _ask(app, run, message, message_id)
        return
    if run.state is RunState.WAITING:
        _tell_outage(app, run)
        return
    if not run.state.ended or run.mail_state in (MailState.NONE, MailState.SENT):
        return
    email = dataclasses.replace(build_summary(gather(app, run)), to=tuple(run.mail_left or run.mail_to))
    send = _count_send(app, run.run_id)
    if send > MOST_SENDS:
        _settle(app, run.run_id, undelivered=0)
        return
    try:
        delivery = app.send_mail(email)
    except AmbiguousWriteError as exc:
        if send == MOST_SENDS:
            _settle(app, run.run_id, undelivered=0)
        else:
            _later(app, message, message_id, exc)
    except SyncError as exc:
        _take_back(app, run.run_id, run.mail_left)
        if run.mail_left and isinstance(exc, RejectedError):
            _settle(app, run.run_id, undelivered=len(run.mail_left))
        else:
            _later(app, message, message_id, exc)
    else:
        _after(app, run.run_id, message, message_id, delivery)


def _count_send(app: App, run_id: str) -> int:
    """Count a send before it leaves and return its number; above MOST_SENDS it is one too many, and was not counted."""
    numbers: list[int] = []

    def count(row: RunRow) -> RunRow:
        numbers.append(row.mail_sends + 1)
        return row.model_copy(update={"mail_sends": min(row.mail_sends + 1, MOST_SENDS)})

    app.update_run(run_id, count)
    return numbers[-1]  # of the try that was stored


def _after(app: App, run_id: str, message: SummaryMessage, message_id: str, delivery: Delivery) -> None:
    """End a mail that somebody got, or go on with those whom the server put off."""
    if delivery.refused:
        LOG.warning("the mail server refused recipients", extra={"run_id": run_id, "count": len(delivery.refused)})
    if not delivery.deferred:
        _settle(app, run_id, undelivered=len(delivery.refused))
        return
    _take_back(app, run_id, delivery.deferred, undelivered=len(delivery.refused))
    put_off = TransientError("The mail server put recipients off.", code="recipients_deferred", connection="mail")
    _later(app, message, message_id, put_off)


def _settle(app: App, run_id: str, *, undelivered: int) -> None:
    def settle(row: RunRow) -> RunRow:
        changes = {"mail_state": MailState.SENT, "mail_left": []}
        return row.model_copy(update=changes | {"mail_undelivered": row.mail_undelivered + undelivered})

    app.update_run(run_id, settle)


def _take_back(app: App, run_id: str, left: Iterable[str], undelivered: int = 0) -> None:
    """Uncount a send that did not reach `left`, who still wait for it."""

    def take_back(row: RunRow) -> RunRow:
        changes = {"mail_sends": max(0, row.mail_sends - 1), "mail_left": list(left)}
        return row.model_copy(update=changes | {"mail_undelivered": row.mail_undelivered + undelivered})

    app.update_run(run_id, take_back)


def _later(app: App, message: SummaryMessage, message_id: str, error: SyncError) -> None:
    """Say on the run that its mail failed, unless somebody got it, and try again where that can help."""
    facts = {"run_id": message.run_id, "code": error.code, "problem": error.message}
    LOG.warning("summary could not be sent", extra=facts)
    again_ = _may_help(app, message, error)

    def note(row: RunRow) -> RunRow:
        if not row.mail_left:
            return row.model_copy(update={"mail_state": MailState.SUMMARY_FAILED, "mail_problem": error.message})
        if again_:
            return row
        undelivered = row.mail_undelivered + len(row.mail_left)
        changes = {"mail_state": MailState.SENT, "mail_left": [], "mail_undelivered": undelivered}
        return row.model_copy(update=changes)

    app.update_run(message.run_id, note)
    if again_:
        _send_again(app, message, message_id, error)


def _may_help(app: App, message: SummaryMessage, error: SyncError) -> bool:
    since = message.first_sent_at or app.now()
    return app.now() - since <= GIVE_UP_AFTER and isinstance(error, TransientError | ConfigError | AmbiguousWriteError)


def _send_again(app: App, message: SummaryMessage, message_id: str, error: SyncError) -> None:
    delay_s = RETRY_S[min(message.attempt, len(RETRY_S)) - 1]
    repeat = again(message, own_id=message_id, failed=True, reason=error.code, problem=error.message, now=app.now())
    app.queues.send(repeat, delay_s=delay_s)


def _ask(app: App, run: RunRow, message: SummaryMessage, message_id: str) -> None:
    """Ask a waiting run's recipients for the confirmation: once, and once more when the first mail's answer was lost."""
    if run.asked or not run.mail_to:
        return
    app.change_run(run.run_id, asked=True)
    email = build_summary(gather(app, run))
    email = dataclasses.replace(email, message_id=email.message_id.replace(".summary", ".confirmation"))
    try:
        app.send_mail(email)
    except SyncError as exc:
        LOG.warning("the question could not be sent", extra={"run_id": run.run_id, "code": exc.code})
        repeated = isinstance(exc, AmbiguousWriteError) and message.reason == exc.code
        if not repeated and _may_help(app, message, exc):
            app.change_run(run.run_id, asked=False)
            _send_again(app, message, message_id, exc)


def _tell_outage(app: App, run: RunRow) -> None:
    """Tell a waiting run's readers since when a system does not answer: once an outage; the watchdog asks until it is done."""
    to, since = tuple(run.mail_to) or app.settings.recipients(run.recipe), run.waiting_since
    if not to or since is None or not _note_told(app, run.run_id, since):
        return
    email = build_summary(gather(app, run))
    own_id = email.message_id.replace(".summary", f".outage-{since:%Y%m%dT%H%M%S}")
    try:
        app.send_mail(dataclasses.replace(email, to=to, message_id=own_id))
    except AmbiguousWriteError:
        LOG.warning("it is not known whether the mail about an outage was sent", extra={"run_id": run.run_id})
    except SyncError as exc:
        LOG.warning("the mail about an outage could not be sent", extra={"run_id": run.run_id, "code": exc.code})
        app.change_run(run.run_id, outage_told=None)


def _note_told(app: App, run_id: str, since: datetime) -> bool:
    """Note that an outage is told, before it is; False when it was, or is over."""
    noted: list[bool] = []

    def note(row: RunRow) -> RunRow:
        due = row.state is RunState.WAITING and row.waiting_since == since and row.outage_told != since
        noted.append(due)
        return row.model_copy(update={"outage_told": since}) if due else row

    app.update_run(run_id, note)
    return noted[-1]  # of the try that was stored


# -- gathering ----------------------------------------------------------------------------------------------------


def gather(app: App, run: RunRow) -> SummaryFacts:
    """Collect what a run's summary says."""
    recipe = app.recipe(run.recipe)
    known = {row.key: row for row in app.tables.query(OpenRow, run.recipe)}
    fresh: list[FailureLine] = []
    repeated: list[FailureLine] = []
    counts: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    warned: dict[str, dict[str, list[ResultRow]]] = defaultdict(lambda: defaultdict(list))  # by code, by text
    made: dict[str, dict[str, str]] = {}
    access = ""
    for result in results_of(app, run):
        counts[result.outcome.value] += 1
        if result.outcome is Outcome.SKIPPED and run.kind is RunKind.IDS and result.reason == "source_missing":
            warned[result.reason][result.message].append(result)  # somebody asked for it by its id
        elif result.outcome is Outcome.SKIPPED:
            skipped[result.reason] += 1
        for warning in result.warnings:
            warned[warning["code"]][warning["text"]].append(result)
        for entry in result.created_references:
            made[entry["key"]] = entry
        if result.outcome is Outcome.FAILED:
            row = known.get(result.key)
            old = row is not None and row.first_failed_at < run.created_at
            (repeated if old else fresh).append(_failure(result, row if old else None))
            if result.reason == "access_denied":
                access = access or result.message
    return SummaryFacts(
        to=tuple(run.mail_to),
        title=f"Verification: {recipe.title}" if run.verify else recipe.title,
        environment=run.environment,
        status_url=f"{app.settings.app_url}/api/runs/{run.run_id}",
        zone=app.settings.zone,
        counts=dict(counts),
        skipped=dict(skipped),
        failures=tuple(fresh),
        repeated=tuple(repeated),
        created=tuple(label_created(app, run.recipe, list(made.values()), LISTED)),
        warnings=tuple(_warning_lines(warned)),
        access_error=access,
        run_id=run.run_id,
        state=run.state,
        preview=run.preview and not run.verify,
        verify=run.verify,
        window=run.window,
        since=run.since,
        until=run.until,
        started_at=run.started_at or run.created_at,
        ended_at=run.ended_at,
        error=run.error,
        waiting_for=app.settings.product(run.waiting_for),
        waiting_since=run.waiting_since if run.state is RunState.WAITING else None,
        guard=_guard(app, run),
    )


def _warning_lines(warned: Mapping[str, Mapping[str, list[ResultRow]]]) -> Iterator[WarningLine]:
    """Yield each kind of warning with its records: one line per text, as a text names its field; one for very many texts."""
    for code, by_text in warned.items():
        lines = by_text if len(by_text) <= WARNED_TEXTS else {"": list(chain.from_iterable(by_text.values()))}
        for text, found in lines.items():
            records = {result.key: result for result in found}
            links = [RecordLink(each.source_label or each.key, each.source_url) for each in records.values()]
            yield WarningLine(code, len(records), text, tuple(links[:WARNED_RECORDS]))


def _failure(result: ResultRow, before: OpenRow | None) -> FailureLine:
    return FailureLine(
        label=result.source_label or result.key,
        reason=result.reason,
        sentence=result.message,
        source_url=result.source_url,
        target_url=result.target_url,
        target_label=result.target_label,
        since=before.first_failed_at if before else None,
    )


def _guard(app: App, run: RunRow) -> Guard | None:
    if run.state is not RunState.AWAITING_CONFIRMATION:
        return None
    sentence = (
        f"{run.held_text} All else is done. Confirmed, it does this too and ends; until then nothing of it happens."
    )
    expires_at = run.held_at + guards.CONFIRM_WITHIN if run.held_at else None
    return Guard(sentence, f"{app.settings.app_url}/api/runs/{run.run_id}", expires_at)


def results_of(app: App, run: RunRow) -> Iterator[ResultRow]:
    """Yield a run's results, page by page."""
    for number in page_numbers(app, run):
        yield from app.tables.query(ResultRow, f"{run.run_id}!{number:06d}")


def page_numbers(app: App, run: RunRow) -> Iterable[int]:
    """Return the pages under which a run's results stand; a day of events has a fixed number of them and no manifests."""
    if run.kind is RunKind.EVENTS:
        return range(EVENT_PAGES)
    return (page.page for page in app.tables.query(PageRow, run.run_id, select=("run_id", "page")))


# -- digests ------------------------------------------------------------------------------------------------------


def owe_digest(app: App, recipe: Recipe, day: date) -> None:
    """Send word to send a recipe's digest of a day, if somebody is to be told and something is to be mended."""
    if app.settings.recipients(recipe.name) and any(app.tables.query(OpenRow, recipe.name, limit=1)):
        app.queues.send(SummaryMessage(recipe=recipe.name, day=day, first_sent_at=app.now()))


def _send_digest(app: App, message: SummaryMessage, message_id: str, day: date) -> None:
    """Send what failed on a day, and what is still failing; a failed mail is tried again for a day."""
    recipe = app.recipes.get(message.recipe)
    if recipe is None or runs.activate(app, recipe).fired.get(DIGEST_SENT, "") >= day.isoformat():
        return
    rows = list(app.tables.query(OpenRow, recipe.name))
    midnight = datetime.combine(day, time(), app.settings.zone)
    lines = {row.key: _open_line(row) for row in rows}
    fresh = [row for row in rows if row.first_failed_at >= midnight]
    email = build_digest(
        DigestFacts(
            to=app.settings.recipients(recipe.name),
            title=recipe.title,
            environment=app.environment(recipe),
            status_url=f"{app.settings.app_url}/api/runs?recipe={recipe.name}",
            zone=app.settings.zone,
            counts={Outcome.FAILED.value: len(rows)},
            failures=tuple(lines[row.key] for row in fresh),
            repeated=tuple(lines[row.key] for row in rows if row not in fresh),
            recipe=recipe.name,
            day=day,
        )
    )
    try:
        app.send_mail(email)
    except SyncError as exc:
        LOG.warning("digest could not be sent", extra={"recipe": recipe.name, "code": exc.code})
        repeated = isinstance(exc, AmbiguousWriteError) and message.attempt > 1
        if not repeated and _may_help(app, message, exc):
            _send_again(app, message, message_id, exc)
    else:
        runs.note_fired(app, recipe, DIGEST_SENT, day.isoformat())


def _open_line(row: OpenRow) -> FailureLine:
    return FailureLine(
        label=row.label or row.key,
        reason=row.reason,
        sentence=row.message,
        source_url=row.url,
        since=row.first_failed_at,
    )
