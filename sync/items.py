"""A batch of records, from reading to result; a batch of one is the single case.

    read → map → scope → link → find → match → decide → claim → write → link → result

`prepare` does everything up to the decision that many records can share, `finish` writes. A page is prepared before it
is fanned out; a message whose preparation is missing or old prepares its own record. This is the one place where errors
become results.
"""

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from shared import attempt
from shared.clients.system import FieldKind, FieldType, Row, Write, Written
from shared.errors import (
    AmbiguousWriteError,
    ConfigError,
    MappingError,
    RateLimitedError,
    RejectedError,
    StateError,
    SyncError,
    TransientError,
)
from shared.state.rows import IdentityRow, ItemModel, LinkRow, Outcome, Prepared, ResultRow, RowModel, RunRow
from sync import links, references
from sync.decide import Action, Decision, agreement, comparable, decide, is_stale, same_value, search_key, wants_find
from sync.flow import Flow
from sync.mapping import FieldWarning, Mapped, holds, map_record
from sync.matching import find_matches
from sync.recipe import GoneAction
from sync.references import Ask, Reference

LOG = logging.getLogger(__name__)

OUTAGE_STATUSES = frozenset({0, 429, 502, 503, 504})  # nobody answered for the vendor: waiting, not a failed attempt
LOST_ANSWER = "lost answer"  # what found a target that an earlier attempt had made
FIRST_DELAY_S = 5.0
LONGEST_DELAY_S = 600.0


@dataclasses.dataclass(frozen=True)
class Again:
    """A record that has to be worked later."""

    delay_s: float
    counted: bool  # a failed attempt, not only a wait
    code: str
    message: str
    outage_of: str = ""  # the connection that does not answer


@dataclasses.dataclass
class Work:
    """One record on its way through the steps."""

    item: ItemModel
    page: int = 0
    owner: str = ""  # message id that owns the claims
    row: Row | None = None
    mapped: Mapped | None = None
    link: LinkRow | None = None
    linked: bool = False  # whether the link was looked up
    in_scope: bool = True
    references: dict[str, Reference] = dataclasses.field(default_factory=dict)
    target: Row | None = None
    matched: bool = False  # whether the rules were asked, or the linked target was read
    matched_by: str = ""
    decision: Decision | None = None
    lost: list[str] = dataclasses.field(default_factory=list)  # fields that the answer to the write does not show
    missing: set[str] = dataclasses.field(default_factory=set)  # digests of references that would be created
    identity: IdentityRow | None = None  # our claim on the first match rule's value
    doubtful: bool = False  # an earlier attempt may have appended already
    attempts: int = 1
    first_sent_at: datetime | None = None
    error: Exception | None = None
    outcome: Outcome | None = None
    reason: str = ""
    message: str = ""
    written: Row | None = None

    @property
    def open(self) -> bool:
        """Whether there is still something to do."""
        return self.error is None and self.outcome is None

    @property
    def key(self) -> str:
        """Return the source record's key."""
        return self.item.key

    def end(self, outcome: Outcome, reason: str = "", message: str = "") -> None:
        """Settle the record's outcome."""
        self.outcome, self.reason, self.message = outcome, reason, message


# -- preparing ----------------------------------------------------------------------------------------------------


def works_of(items: Iterable[ItemModel], *, page: int, owner: str) -> list[Work]:
    """Start the work on items."""
    return [Work(item, page=page, owner=owner, row=item.row.row() if item.row else None) for item in items]


def prepare(flow: Flow, run: RunRow, works: Sequence[Work], *, create_references: bool) -> None:
    """Do all that the records of a batch can share, at most a few calls for the lot.

    Afterwards a work is settled (unchanged, skipped, failed), or it knows its link, its references and its target.
    With `create_references` False, references that do not exist yet stand in `missing` instead of being made.
    """
    _read(flow, works)
    _each(works, lambda work: _map(flow, work))
    _load_links(flow, run, works)
    _each(works, lambda work: _scope(flow, work))
    _each(works, lambda work: _decide(flow, run, work))
    pending = [work for work in works if work.open and _needs_vendor(work)]
    _resolve(flow, run, pending, create=create_references and not run.preview)
    _look_up(flow, pending)
    _each([work for work in pending if not work.missing], lambda work: _decide(flow, run, work))
    _each(works, lambda work: _settle_without_write(run, work))


def create_missing(flow: Flow, run: RunRow, works: Sequence[Work]) -> None:
    """Make the references that `prepare` was not allowed to make, and decide with them."""
    waiting = [work for work in works if work.missing]
    for work in waiting:
        work.missing = set()
    _resolve(flow, run, waiting, create=True)
    _look_up(flow, waiting)
    _each(waiting, lambda work: _decide(flow, run, work))
    _each(waiting, lambda work: _settle_without_write(run, work))


def restore(flow: Flow, work: Work) -> bool:
    """Take over what the page found out for a record; False when that is missing or too old to be believed."""
    prepared = work.item.prepared
    if prepared is None or work.row is None:
        return False
    if flow.now() - prepared.at > timedelta(seconds=flow.limits.prepared_s):
        return False
    work.link = _load_link(prepared.link)
    work.linked = prepared.linked
    work.references = {name: Reference.load(data) for name, data in prepared.references.items()}
    work.target = prepared.target.row() if prepared.target else None
    work.matched, work.matched_by = prepared.matched, prepared.matched_by
    return True


def to_item(flow: Flow, work: Work) -> ItemModel:
    """Return a prepared work as an item for a message."""
    prepared = Prepared(
        at=flow.now(),
        link=work.link.model_dump(mode="json") | {"etag": work.link.etag} if work.link else None,
        linked=work.linked,
        references={name: answer.dump() for name, answer in work.references.items()},
        target=RowModel.of(work.target) if work.target else None,
        matched=work.matched,
        matched_by=work.matched_by,
    )
    return ItemModel(key=work.key, row=RowModel.of(work.row) if work.row else None, prepared=prepared)


def _load_link(data: dict[str, Any] | None) -> LinkRow | None:
    return LinkRow.model_validate(data) if data else None


def _each(works: Iterable[Work], step: Callable[[Work], None]) -> None:
    """Do a step for every open work; an error stays with its record."""
    for work in works:
        if not work.open:
            continue
        with attempt.attempt(record_key=work.key):
            try:
                step(work)
            except (StateError, ConfigError):
                raise
            except SyncError as exc:
                work.error = exc
            except Exception as exc:
                LOG.exception("a step failed unexpectedly")
                work.error = exc


def _read(flow: Flow, works: Sequence[Work]) -> None:
    """Read the records that did not come with their message."""
    unread = [work for work in works if work.open and work.row is None]
    if not unread:
        return
    try:
        rows = flow.source.fetch_rows(
            flow.recipe.source.record, flow.recipe.read_paths(), (), [(work.key,) for work in unread]
        )
    except RejectedError as exc:
        if len(unread) > 1:  # one bad id must not spoil its neighbours
            for work in unread:
                _read(flow, [work])
        else:
            unread[0].error = exc
        return
    except (StateError, ConfigError):
        raise
    except SyncError as exc:
        for work in unread:
            work.error = exc
        return
    by_key = {row.key: row for row in rows}
    for work in unread:
        work.row = by_key.get(work.key)
        if work.row is None:
            work.end(Outcome.SKIPPED, "source_missing", "The source record is gone, or we may not read it.")


def _map(flow: Flow, work: Work) -> None:
    row = _row(work)
    work.in_scope = holds(flow.recipe.block.when, row.fields)
    if work.in_scope or flow.recipe.gone.action is GoneAction.FOLLOW:
        work.mapped = map_record(flow.recipe.block, row, flow.target_type(), flow.find_types())


def _load_links(flow: Flow, run: RunRow, works: Sequence[Work]) -> None:
    unlooked = [work for work in works if work.open and not work.linked]
    if not run.first_run:
        found = links.find_links(flow, [work.key for work in unlooked])
        for work in unlooked:
            work.link = found[work.key]
    for work in unlooked:
        work.linked = True


def _scope(flow: Flow, work: Work) -> None:
    """Settle what is out of scope: nothing is created there, and a linked record is treated as `gone` says."""
    row, gone = _row(work), flow.recipe.gone
    has_link = work.link is not None and bool(work.link.other_key)
    if work.link is not None and is_stale(work.link, flow.source_name, row):
        work.end(Outcome.UNCHANGED, "stale", "A newer version of the record has been worked already.")
    elif work.in_scope or (has_link and gone.action is GoneAction.FOLLOW):
        return
    elif not has_link:
        noun = flow.source_type().noun
        code = f"{noun}_not_active" if row.closed else "not_in_scope"
        work.end(Outcome.SKIPPED, code, f"The {noun} does not meet the recipe's condition and was never synced.")
    elif gone.action is GoneAction.IGNORE:
        work.end(
            Outcome.SKIPPED, "left_scope", "The record no longer meets the recipe's condition; it is left as it is."
        )
    elif work.link is not None and work.link.gone % 2:
        work.end(Outcome.UNCHANGED, "gone", "That the record is over has been written already.")
    else:
        work.mapped = map_record(flow.gone_block, row, flow.target_type())


def _decide(flow: Flow, run: RunRow, work: Work) -> None:
    work.mapped = with_references(_mapped(work), work.references)
    over = not work.in_scope and flow.recipe.gone.action is GoneAction.WRITE
    work.decision = decide(
        work.mapped.block,
        work.mapped,
        record=flow.target_type(),
        target_name=flow.target_name,
        source=_row(work),
        link=work.link,
        target=work.target,
        digests=flow.digests,
        first_run=run.first_run,
        append_again=over,
    )


def with_references(mapped: Mapped, answers: Mapping[str, Reference]) -> Mapped:
    """Put the ids that `find` blocks came to in the place of the values that asked for them."""
    fields = dict(mapped.fields)
    for name, answer in answers.items():
        if name in fields and not fields[name].resolved:
            fields[name] = fields[name].found(answer.key, answer.warnings)
    return dataclasses.replace(mapped, fields=fields)


def _needs_vendor(work: Work) -> bool:
    """Tell whether a preliminary decision needs references, matches or the target's row."""
    if work.decision is None or work.decision.action is not Action.NOTHING:
        return not work.matched
    return False


def _resolve(flow: Flow, run: RunRow, works: Sequence[Work], *, create: bool) -> None:
    """Answer the `find` blocks, one field at a time for all records."""
    for name, rule in flow.recipe.block.fields.items():
        if rule.find is None:
            continue
        asking: list[Work] = []
        asks: list[Ask] = []
        for work in works:
            if not work.open or work.mapped is None or name in work.references:
                continue
            wanted = wants_find(work.mapped, work.link, flow.target_name, flow.digests)
            for field in wanted:
                if field.name == name:
                    asking.append(work)
                    asks.append(Ask(field, work.owner))
        if not asks:
            continue
        try:
            answers = references.resolve(flow, rule.find, asks, create=create)
        except (StateError, ConfigError):
            raise
        except SyncError as exc:
            answers = [exc] * len(asks)
        for work, answer in zip(asking, answers, strict=True):
            if isinstance(answer, SyncError):
                work.error = answer
            elif answer.missing and run.preview:
                work.references[name] = Reference(
                    warnings=(FieldWarning("would_be_created", f"{name}: would be made."),)
                )
            elif answer.missing:
                work.missing.add(answer.missing)
            else:
                work.references[name] = answer


def _look_up(flow: Flow, works: Sequence[Work]) -> None:
    """Read the linked targets, and match the records that have none; all of a batch together."""
    for work in works:
        if work.open and work.mapped is not None:
            work.mapped = with_references(work.mapped, work.references)
    ready = [work for work in works if work.open and not work.matched and not work.missing]
    _guarded(flow, [work for work in ready if work.link and work.link.other_key], _read_targets)
    _guarded(flow, [work for work in ready if not (work.link and work.link.other_key)], _match)


def _guarded(flow: Flow, works: list[Work], step: Callable[[Flow, list[Work]], None]) -> None:
    if not works:
        return
    try:
        step(flow, works)
    except (StateError, ConfigError):
        raise
    except SyncError as exc:
        for work in works:
            work.error = work.error or exc


def _read_targets(flow: Flow, works: list[Work]) -> None:
    keys = [links.target_key(flow, work.link) for work in works if work.link]
    rows = flow.target.fetch_rows(
        flow.recipe.target.record, flow.recipe.target_paths(), (), [(key,) for key in dict.fromkeys(keys)]
    )
    by_key = {row.key: row for row in rows}
    for work, key in zip(works, keys, strict=True):
        work.target = by_key.get(key)
        work.matched = True
        if work.target is None:
            noun = flow.target_type().noun
            work.error = RejectedError(
                f"The linked {noun} is gone, or we may not read it. Choose recreate or unlink.", code="target_missing"
            )


def _match(flow: Flow, works: list[Work]) -> None:
    block = flow.recipe.block
    asks = [(work.mapped, _taken_by_other(flow, work)) for work in works if work.mapped is not None]
    answers = find_matches(flow.target, block.record, flow.recipe.target_paths(), block.match, asks)
    for work, answer in zip(works, answers, strict=True):
        if isinstance(answer, SyncError):
            work.error = answer
            continue
        work.matched = True
        if answer is not None:
            work.target, work.matched_by = answer.row, "+".join(answer.rule.fields)


def _taken_by_other(flow: Flow, work: Work) -> Callable[[str], bool]:
    def taken(key: str) -> bool:
        owner = links.owner_of_target(flow, key)
        return owner is not None and (owner.link_side, owner.link_key) != (flow.source_name, work.key)

    return taken


def _settle_without_write(run: RunRow, work: Work) -> None:
    """End the works that need no write; those with missing references wait for whoever may create them."""
    decision = work.decision
    if decision is None or work.missing:
        return
    if decision.action is Action.SKIP:
        work.end(Outcome.SKIPPED, decision.code, decision.reason)
    elif decision.action is Action.NOTHING and work.link and work.link.other_key and not _scope_changed(work):
        repeated = work.link.run_id == run.run_id and work.link.wrote_version == _row(work).version
        work.end(Outcome(work.link.outcome) if repeated and work.link.outcome else Outcome.UNCHANGED)
    elif run.preview:
        created = decision.action is Action.CREATE
        adopted = not created and not (work.link and work.link.other_key)
        work.end(Outcome.CREATED if created else Outcome.ADOPTED if adopted else Outcome.UPDATED)


def _scope_changed(work: Work) -> bool:
    gone = bool(work.link and work.link.gone % 2)
    return gone == work.in_scope


# -- writing ------------------------------------------------------------------------------------------------------


def finish(flow: Flow, run: RunRow, works: Sequence[Work]) -> None:
    """Claim, write and link every work that is still open; writes go side by side where the client can."""
    for work in works:
        if work.open and work.mapped is None:
            _each([work], lambda work: _map(flow, work))
            _each([work], lambda work: _scope(flow, work))
    _each(works, lambda work: _decide(flow, run, work))
    _each(works, lambda work: _claim(flow, run, work))
    claimed = [work for work in works if work.open]
    sending = [(work, write) for work in claimed if (write := _write_of(flow, work)) is not None]
    answers: dict[int, Written | SyncError] = {}
    if sending:
        ends_at_s = min(attempt.current().ends_at_s, attempt.monotonic_s() + flow.limits.create_s)
        with attempt.attempt(ends_at_s=ends_at_s):  # no create may outlive what its claim promises
            written = flow.target.write_rows(flow.recipe.target.record, [write for _, write in sending])
        answers = {id(work): answer for (work, _), answer in zip(sending, written, strict=True)}
    _each(claimed, lambda work: _settle(flow, run, work, answers.get(id(work))))


def _claim(flow: Flow, run: RunRow, work: Work) -> None:
    """Claim the link, decide again if it says more than we knew, and look a doubtful write up."""
    taken = links.claim_link(flow, work.key, work.link, work.owner, creating=_unrepeatable(flow, _decision(work)))
    work.link = taken.row
    try:
        if taken.create_by is not None:
            links.wait_for_create(flow, taken.create_by)
            _look_doubtful_up(flow, run, work)
            work.link = links.renew(flow, work.link, work.owner)
        elif taken.changed:
            _decide_anew(flow, run, work)
        if work.open and _decision(work).action is Action.CREATE:
            _claim_first_value(flow, work)
        elif work.open and work.target is not None and not work.link.other_key:
            links.own_target(flow, work.link, work.target.key)
    except RateLimitedError:
        raise  # the claim stays ours while we wait
    except SyncError:
        _release(flow, work)
        raise
    if not work.open:
        _release(flow, work)


def _release(flow: Flow, work: Work) -> None:
    if work.link is not None:
        links.release(flow, work.link, keep=bool(work.link.other_key))
    if work.identity is not None:
        links.release(flow, work.identity)


def _decide_anew(flow: Flow, run: RunRow, work: Work) -> None:
    """Forget what was prepared: another message has worked this record meanwhile."""
    work.target, work.matched, work.mapped, work.references = None, False, None, {}
    _map(flow, work)
    _scope(flow, work)
    if not work.open:
        return
    _decide(flow, run, work)
    if _needs_vendor(work):
        _resolve(flow, run, [work], create=True)
        _look_up(flow, [work])
        if work.error is not None:
            error, work.error = work.error, None
            raise error
        _decide(flow, run, work)
    _settle_without_write(run, work)


def _look_doubtful_up(flow: Flow, run: RunRow, work: Work) -> None:
    """Find out what became of a write that an earlier attempt may have sent."""
    if work.link is not None and work.link.other_key:
        work.doubtful = True  # an append: its marker is looked for before it is sent again
        _decide_anew(flow, run, work)
        return
    block = flow.recipe.block
    first = [rule for rule in block.match if not rule.link][:1]
    asks = [(_mapped(work), _taken_by_other(flow, work))]
    answer = find_matches(flow.target, block.record, flow.recipe.target_paths(), first, asks)[0]
    if isinstance(answer, SyncError):
        raise answer
    if answer is not None:
        work.target, work.matched_by = answer.row, LOST_ANSWER
        _decide(flow, run, work)


def _unrepeatable(flow: Flow, decision: Decision) -> bool:
    """Tell whether doing a write twice would leave something doubled."""
    return decision.action is Action.CREATE or any(_append_type(flow, name) for name in decision.writes)


def _append_type(flow: Flow, name: str) -> FieldType | None:
    known = flow.target_type().fields.get(name)
    return known if known is not None and known.kind is FieldKind.APPEND else None


def _claim_first_value(flow: Flow, work: Work) -> None:
    """Claim the first match rule's value, unless it is the record's own key, which the link's claim covers."""
    names = flow.recipe.block.first_match
    values = [_mapped(work).fields[name].value for name in names]
    if not names or any(comparable(value) is None for value in values):
        return
    if len(values) == 1 and same_value(values[0], work.key):
        return
    blank = links.identity(flow, flow.target_name, names, [search_key(value) for value in values], work.key)
    taken = links.claim_identity(flow, blank, work.owner)
    if taken.row.key and taken.row.link_key != work.key:
        links.release(flow, taken.row, keep=True)
        raise MappingError(
            f"Another source record already has the record with this {' and '.join(names)}.",
            code=f"{'_'.join(names)}_shared",
        )
    work.identity = taken.row.model_copy(update={"link_key": work.key})
    if taken.create_by is not None:
        links.wait_for_create(flow, taken.create_by)


def _write_of(flow: Flow, work: Work) -> Write | None:
    """Build what goes to the vendor; None where only the link has something to remember."""
    decision = _decision(work)
    fields = dict(decision.writes)
    for name in list(fields):
        known = _append_type(flow, name)
        if known is not None and isinstance(fields[name], str):
            marker = _marker(flow, work, name)
            if work.doubtful and _was_appended(flow, work, known, marker):
                del fields[name]
            else:
                fields[name] = f"{fields[name]} [#{marker}]"
    if decision.action is Action.CREATE:
        names = flow.recipe.block.first_match
        return Write(None, fields, {name: _mapped(work).fields[name].value for name in names})
    if decision.action is Action.UPDATE and fields and work.target is not None:
        return Write(work.target.key, fields)
    return None


def _marker(flow: Flow, work: Work, name: str) -> str:
    """Return the text by which an appended entry is recognised: it stands for this record, field and occasion."""
    occasion = work.link.gone if work.link else 0
    text = "\n".join((flow.pair, work.key, name, str(occasion)))
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _was_appended(flow: Flow, work: Work, known: FieldType, marker: str) -> bool:
    """Look for an entry that an earlier attempt may have appended. Entries stand in the child type the field refers to."""
    if work.target is None or not known.refers_to:
        return False
    path = known.refers_to[0]
    rows = flow.target.fetch_rows(flow.recipe.target.record, frozenset((path,)), (), [(work.target.key,)])
    entries = rows[0].fields.get(path) if rows else None
    listed = entries if isinstance(entries, list) else []
    return any(marker in str(entry.get("text", "")) for entry in listed if isinstance(entry, dict))


def _settle(flow: Flow, run: RunRow, work: Work, answer: Written | SyncError | None) -> None:
    """Remember what was written, and name the outcome."""
    link, decision = work.link, _decision(work)
    if link is None:
        raise StateError("A record was written without a claim.")
    if isinstance(answer, SyncError):
        if not (isinstance(answer, AmbiguousWriteError) and _unrepeatable(flow, decision)):
            _release(flow, work)
        raise answer
    new = not link.other_key
    if answer is not None:
        work.written = answer.row or Row(answer.key, {}, url=flow.target.url(flow.recipe.target.record, answer.key))
        if new and decision.action is Action.CREATE:
            links.own_target(flow, link, answer.key)
        if work.identity is not None:
            links.store(flow, work.identity.model_copy(update={"claim": None, "key": answer.key}))
    shown = answer.row.fields if answer is not None and answer.row is not None else None
    agreed, inputs, work.lost = agreement(
        decision, _mapped(work), flow.target_name, link if not new else None, work.target, shown, flow.digests
    )
    outcome = _outcome(work, new, answer)
    links.store(flow, _linked(flow, run, work, link, agreed, inputs, outcome))
    work.end(outcome)


def _outcome(work: Work, new: bool, answer: Written | None) -> Outcome:
    if new and (work.matched_by == LOST_ANSWER or (answer is not None and answer.created)):
        return Outcome.CREATED
    if new:
        return Outcome.ADOPTED
    return Outcome.UPDATED if answer is not None or work.doubtful else Outcome.UNCHANGED


def _linked(
    flow: Flow,
    run: RunRow,
    work: Work,
    link: LinkRow,
    agreed: dict[str, str],
    inputs: dict[str, str],
    outcome: Outcome,
) -> LinkRow:
    row, target = _row(work), work.written or work.target
    sides = {flow.source_name: row, flow.target_name: target}
    versions = {name: side.version for name, side in sides.items() if side is not None and side.version}
    times = {name: side.changed_at.isoformat() for name, side in sides.items() if side is not None and side.changed_at}
    changes: dict[str, Any] = {
        "versions": link.versions | versions,
        "changed_at": link.changed_at | times,
        "agreed": agreed,
        "inputs": inputs,
        "gone": link.gone + 1 if _scope_changed(work) else link.gone,
        "claim": None,
        "run_id": run.run_id,
        "outcome": outcome.value,
        "wrote_version": row.version,
    }
    if not link.other_key and target is not None:
        changes["other_key"] = target.key
    return link.model_copy(update=changes)


# -- results ------------------------------------------------------------------------------------------------------


def result_of(flow: Flow, run: RunRow, work: Work) -> ResultRow:
    """Build the result of a settled work."""
    if work.outcome is None:
        raise ValueError("the work is not settled")
    target = work.written or work.target
    key = target.key if target else links.target_key(flow, work.link) if work.link and work.link.other_key else ""
    made = [answer.created for answer in work.references.values() if answer.created]
    return ResultRow(
        run_id=run.run_id,
        page=work.page,
        key=work.key,
        outcome=work.outcome,
        reason=work.reason,
        message=work.message,
        warnings=[{"code": code, "text": text} for code, text in _warnings(work)],
        fields=work.decision.reasons if work.decision else {},
        source_label=work.row.label if work.row else "",
        source_url=work.row.url if work.row else flow.source.url(flow.recipe.source.record, work.key),
        target_key=key,
        target_label=target.label if target else "",
        target_url=flow.target.url(flow.recipe.target.record, key) if key else "",
        created_references=list({entry["key"]: entry for entry in made}.values()),
        attempts=work.attempts,
        ended_at=flow.now(),
    )


def _warnings(work: Work) -> list[tuple[str, str]]:
    """Return the warnings that count for what was done: those of fields that were written or would have been."""
    if work.outcome in (Outcome.UNCHANGED, Outcome.SKIPPED) or work.mapped is None:
        return []
    found = [(warning.code, warning.text) for warning in work.mapped.warnings]
    lost = [("field_not_written", f"{name}: sent, but the answer does not show it.") for name in work.lost]
    return list(dict.fromkeys([*found, *lost]))


def again_of(flow: Flow, work: Work) -> Again | None:
    """Say whether an errored work is to be tried later; None where its error is final."""
    error = work.error
    match error:
        case RateLimitedError():
            return Again(max(1.0, error.retry_after_s), False, error.code, error.message)
        case AmbiguousWriteError():
            return Again(flow.target.transaction_s + 1, True, error.code, error.message)
        case TransientError() if error.status in OUTAGE_STATUSES:
            return Again(_outage_delay_s(flow, work), False, error.code, error.message, error.connection)
        case TransientError():
            return Again(_growing_delay_s(work.attempts), True, error.code, error.message)
        case SyncError():
            return None
        case _:
            text = f"Concord hit an error of its own ({type(error).__name__}); its log says more."
            return Again(_growing_delay_s(work.attempts), True, "internal_error", text)


def _growing_delay_s(attempts: int) -> float:
    return float(min(LONGEST_DELAY_S, FIRST_DELAY_S * 3 ** (attempts - 1)))


def _outage_delay_s(flow: Flow, work: Work) -> float:
    """Wait half as long as the record has waited already: short outages end soon, long ones are not hammered."""
    waited_s = (flow.now() - work.first_sent_at).total_seconds() if work.first_sent_at else 0.0
    return min(LONGEST_DELAY_S, max(FIRST_DELAY_S, waited_s / 2))


def fail(work: Work, code: str, message: str) -> None:
    """Settle a work as failed with its last reason."""
    work.error = None
    work.end(Outcome.FAILED, code, message)


def settle_error(flow: Flow, work: Work) -> Again | None:
    """Turn a work's error into its failed outcome, or say when to try again."""
    if work.error is None:
        return None
    again = again_of(flow, work)
    if again is None:
        error = work.error
        fail(work, error.code if isinstance(error, SyncError) else "internal_error", str(error))
        return None
    waited = (
        work.first_sent_at is not None and (flow.now() - work.first_sent_at).total_seconds() > flow.limits.max_wait_s
    )
    if waited or (again.counted and work.attempts >= flow.limits.max_attempts):
        fail(work, again.code, again.message)
        return None
    return again


def _row(work: Work) -> Row:
    if work.row is None:
        raise MappingError("The source record was not read.")
    return work.row


def _mapped(work: Work) -> Mapped:
    if work.mapped is None:
        raise MappingError("The record could not be mapped.")
    return work.mapped


def _decision(work: Work) -> Decision:
    if work.decision is None:
        raise MappingError("Nothing was decided about the record.")
    return work.decision
