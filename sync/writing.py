"""Writing a prepared batch: claim → write → link. No create leaves without a claim, and none is repeated blindly.

A claim says until when its create may leave. Whoever takes such a claim over, and whoever lost an answer, looks the
record up before trying again, but not before the vendor can have finished with the first try.
"""

import contextlib
import hashlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from shared import attempt
from shared.clients.system import FieldKind, FieldType, Row, Write, Written
from shared.errors import (
    EXISTS_ALREADY,
    AmbiguousWriteError,
    MappingError,
    RateLimitedError,
    RejectedError,
    StateError,
    SyncError,
    TransientError,
)
from shared.state import claims
from shared.state.messages import ItemModel
from shared.state.rows import IdentityRow, LinkRow, Outcome, RunRow
from sync import links
from sync.decide import (
    NOT_OURS,
    NOT_SHOWN,
    Action,
    Decision,
    agreed_name,
    agreement,
    comparable,
    same_value,
    search_key,
)
from sync.doubts import CREATE_IN_DOUBT, find_by_first_rule, find_sent, promised
from sync.flow import Flow
from sync.items import (
    create_tells,
    decide_work,
    done_before,
    guarded,
    look_targets_up,
    map_work,
    match,
    needs_vendor,
    read_records,
    resolve_references,
    scope,
    settle_without_write,
)
from sync.matching import Match, shared_error
from sync.owners import check_owned
from sync.work import LOST_ANSWER, Work, each

CLOCKS_APART_S = 60.0  # ours and the vendors'


def claim_ahead(flow: Flow, works: Sequence[Work], book: links.Book) -> None:
    """Load and claim the links of works whose records are still to be read; what is in doubt is settled later.

    What the other side has begun is not claimed: given up by us, it would be gone.
    """
    found = links.find_links(flow, [work.key for work in works])
    for work in works:
        work.link, work.linked = found[work.key], True
    each(works, lambda work: links.check_finished(flow, work.link, work.owner) if work.link else None)
    wanted = {id(work): links.Wanted(work.key, work.link, work.owner, creating=False) for work in works if work.open}
    book.claim_together(list(wanted.values()))

    def claim(work: Work) -> None:
        taken = book.claim(wanted[id(work)])
        work.link, work.ahead, work.interrupted = taken.row, True, taken.was_ours

    each(works, claim)


def give_up_ahead(works: Sequence[Work], book: links.Book) -> None:
    """Give the claims up that were taken ahead for works that write nothing; a doubt about an earlier create stays."""
    over = [work for work in works if not work.open and work.ahead]
    rows = [work.link for work in over if work.link]
    book.release([row for row in rows if not _is_doubted(row)])
    for row in filter(_is_doubted, rows):
        links.leave_in_doubt(book.flow, row)
    for work in over:
        work.ahead = False


def _is_held(work: Work) -> bool:
    """Tell whether this attempt has claimed a link ahead, and nothing about it is in doubt."""
    return work.ahead and work.link is not None and work.link.claim is not None and not _is_doubted(work.link)


def _is_doubted(row: LinkRow | IdentityRow) -> bool:
    """Tell whether something may have been created under a row's claim."""
    return row.claim is not None and row.claim.create_by is not None


def finish(flow: Flow, run: RunRow, works: Sequence[Work], book: links.Book | None = None) -> None:
    """Claim, write and link every work that is still open; writes go side by side where the client can.

    The book says how claims and links are stored: one by one, unless another one is given.
    """
    book = book or links.Book(flow)
    unmapped = [work for work in works if work.mapped is None]
    each(unmapped, lambda work: map_work(flow, work))
    each(unmapped, lambda work: scope(flow, run, work))
    each(works, lambda work: decide_work(flow, run, work))
    ends_at_s = min(attempt.current().ends_at_s, attempt.monotonic_s() + flow.limits.create_s)
    wanted = [_wanted(flow, work) for work in works if work.open]
    book.claim_together([each for each in wanted if each.creating or not each.held])
    each(works, lambda work: _claim(flow, run, work, book))
    claimed = [work for work in works if work.open]
    answers = _write(flow, claimed, ends_at_s)
    each(claimed, lambda work: _settle(flow, run, work, answers.get(id(work)), book))
    failed = book.settle_together()
    unwritten = [
        work
        for work in claimed
        if isinstance(answer := answers.get(id(work)), SyncError) and not _may_have_happened(flow, work.decided, answer)
    ]
    _give_up_claims(flow, unwritten, book)
    for work in unwritten:
        work.unwritten = True
    for work in claimed:
        if work.link is not None and (error := failed.get(work.link.row_key)) is not None:
            work.error, work.outcome = error, None
    if there := [work for work in claimed if not work.matched and _is_there_already(work.error)]:
        finish(flow, run, _match_late(flow, run, there), type(book)(flow))
    book.release([work.identity for work in claimed if work.siblings and work.identity and work.error is None])
    if flow.recipe.block.children:
        from sync import children  # noqa: PLC0415  # the engine calls itself for the blocks under a block

        children.finish(flow, run, works)
        _let_go(claimed, book)


def _write(flow: Flow, works: Sequence[Work], ends_at_s: float) -> dict[int, Written | SyncError]:
    """Send what the works have to write, all together; return the answers by the id of the work."""
    writes: dict[int, Write] = {}

    def build(work: Work) -> None:
        if (write := _write_of(flow, work)) is not None:
            writes[id(work)] = write

    each(works, build)
    if not writes:
        return {}
    with attempt.attempt(ends_at_s=ends_at_s):  # no create may outlive what its claim promises
        answers = flow.target.write_rows(flow.recipe.target.record, list(writes.values()))
    return dict(zip(writes, answers, strict=True))


def _is_there_already(error: Exception | None) -> bool:
    return isinstance(error, AmbiguousWriteError) and error.code == EXISTS_ALREADY


def _match_late(flow: Flow, run: RunRow, works: Sequence[Work]) -> list[Work]:
    """Match records that were to be created unasked and are there already; return those that can be adopted now.

    Their claims, which speak of a create, are to be replaced: until then a death leaves a doubt, which is looked up. A
    record that is said to be there and is not shown keeps its error, and the doubt.
    """
    refusals = {id(work): work.error for work in works}
    for work in works:
        work.error = None
    guarded(flow, list(works), match)
    each(works, lambda work: decide_work(flow, run, work))
    each(works, lambda work: settle_without_write(flow, run, work))
    for work in works:
        if not work.open:
            _give_up_claims(flow, [work], links.Book(flow))
        elif work.target is None:
            work.error = refusals[id(work)]
        elif work.link is not None:
            work.link, work.ahead = work.link.model_copy(update={"claim": None}), False
    return [work for work in works if work.open]


def _let_go(works: Sequence[Work], book: links.Book) -> None:
    """Give up the claims under which children were worked; what became of them is noted, so that a repeat says the same."""
    for work in works:
        row = book.stored.get(work.link.row_key) if work.link else None
        if row is not None:
            outcome = Outcome.UPDATED if work.notes and row.outcome == Outcome.UNCHANGED else row.outcome
            with contextlib.suppress(RateLimitedError):  # taken over meanwhile: it is the other's
                book.store(row.model_copy(update={"claim": None, "outcome": outcome}))
    book.settle_together()


def _claim(flow: Flow, run: RunRow, work: Work, book: links.Book) -> None:
    """Claim the link, decide again if it says more than we knew, and look a doubtful write up."""
    wanted = _wanted(flow, work)
    if wanted.creating or not wanted.held or wanted.link is None:
        taken = book.claim(wanted)
    else:
        taken = claims.Taken(wanted.link)  # it was claimed ahead, and needs to promise no more
    work.link, work.interrupted = taken.row, work.interrupted if work.ahead else taken.was_ours
    if taken.create_by is not None:  # until the doubt is settled the claim keeps it, whatever goes wrong here
        links.wait_for_create(flow, taken.create_by)
        _look_doubtful_up(flow, run, work, taken.create_by)
        if work.open:
            creating = _unrepeatable(flow, work.decided)
            if creating or links.is_linked(work.link):  # else it is that create's record: a repeat is to see so too
                work.link = links.renew(flow, promised(flow, work) or work.link, work.owner, creating=creating)
    try:
        if taken.create_by is None and taken.changed:
            _read_again(flow, work)
            _decide_anew(flow, run, work)
            if work.open:
                _promise_anew(flow, work, wanted.creating)
        if work.open and work.decided.action is Action.UPDATE:
            check_owned(flow, work)
        if work.open and (work.decided.action is Action.CREATE or _moves(flow, work)):
            _claim_first_value(flow, run, work, book)
        if work.open and work.target is not None and not work.link.other_key:
            _adopt(flow, work, work.link, work.target.key)
    except SyncError:
        _give_up_claims(flow, [work], links.Book(flow))
        raise
    if not work.open:
        _give_up_claims(flow, [work], links.Book(flow))


def _wanted(flow: Flow, work: Work) -> links.Wanted:
    value = _first_value(flow, work) if work.decided.action is Action.CREATE else None
    creating = _unrepeatable(flow, work.decided)
    in_doubt = work.link is not None and _is_doubted(work.link)  # what that says stays until it is looked up
    link = promised(flow, work) if creating and not in_doubt else work.link
    return links.Wanted(work.key, link, work.owner, creating, value, _is_held(work))


def _promise_anew(flow: Flow, work: Work, promises_create: bool) -> None:
    """Let a claim on a row that said something else promise what is decided now, and say by what that is looked up.

    Else a lost answer would be waited for that nobody needs, or one that is needed would not be.
    """
    creating = _unrepeatable(flow, work.decided)
    link = promised(flow, work) if creating else work.link
    if link is None or work.link is None:
        return
    if creating is not promises_create or claims.content(link) != claims.content(work.link):
        work.link = links.renew(flow, link, work.owner, creating=creating)


def _adopt(flow: Flow, work: Work, link: LinkRow, key: str) -> None:
    """Make a matched target ours; when another record was faster, this one looks again: the match is not free any more."""
    if work.siblings is not None:
        return  # whose a child is, is told by the links of its siblings
    try:
        links.own_target(flow, link, key)
    except RejectedError as exc:
        _disbelieve_page(work)
        raise RateLimitedError(exc.message, code=exc.code, retry_after_s=1.0) from exc


def _disbelieve_page(work: Work) -> None:
    """Let what a record's page found out go, its row as well: it is not true any more, and the message may come again."""
    work.item = ItemModel(key=work.key)


def _give_up_claims(flow: Flow, works: Sequence[Work], book: links.Book) -> None:
    """Give the claims of works up under which nothing was written.

    What was found after a doubt, and could not be written, stays in doubt: nothing else says to whom prepared the record
    before that it is there, or that an entry was appended. Who comes next is to look it up as well.
    """
    stays: list[LinkRow | IdentityRow] = []
    goes: list[LinkRow | IdentityRow] = []
    for work in works:
        doubtful = work.doubtful and not _is_settled(flow, work)
        for row in (work.link, work.identity):
            if row is not None:
                (stays if doubtful and _is_doubted(row) else goes).append(row)
    book.release(goes)
    for row in stays:
        links.leave_in_doubt(flow, row)


def _is_settled(flow: Flow, work: Work) -> bool:
    """Tell whether a look-up has ended a doubt: there is no such record, or a linked one is to get no entry any more."""
    if not work.linked_key:
        return work.target is None
    return work.decision is not None and not _unrepeatable(flow, work.decision)


def _read_again(flow: Flow, work: Work) -> None:
    """Read a record that another message has worked since it was read: what we hold may be the older state of the two.

    A child came with its parent.
    """
    if work.siblings is not None:
        return
    held, work.row = work.row, None
    read_records(flow, [work])
    if work.error is not None:
        error, work.error, work.row = work.error, None, held
        raise error


def _decide_anew(flow: Flow, run: RunRow, work: Work) -> None:
    """Forget what was prepared: another message has worked this record meanwhile."""
    work.decision = None
    if not work.open:
        return
    _disbelieve_page(work)
    work.target, work.matched, work.mapped, work.references, work.families = None, False, None, {}, None
    map_work(flow, work)
    scope(flow, run, work)
    if not work.open:
        return
    decide_work(flow, run, work)
    if needs_vendor(work):
        resolve_references(flow, run, [work], create=True)
        look_targets_up(flow, run, [work])
        if work.error is not None:
            error, work.error = work.error, None
            raise error
        decide_work(flow, run, work)
    if work.decided.action is Action.SKIP or not flow.recipe.block.children:
        settle_without_write(flow, run, work)


def _look_doubtful_up(flow: Flow, run: RunRow, work: Work, create_by: datetime) -> None:
    """Find out what became of a write that an earlier attempt may have sent, until `create_by` if it was a create.

    Of an appended entry only the newest state of the record tells the marker: who holds an older one would settle a doubt
    about an entry that it knows nothing of. What was to be created unasked may have been there before: a record that has
    not changed since then is not our doing.
    """
    work.doubtful = True  # the marker of what is appended is looked for before it is sent again
    if work.linked_key:
        _read_again(flow, work)
        _decide_anew(flow, run, work)
        return
    came_along = work.item.row is not None
    found = _find_sent(flow, work)
    if found is None and came_along:  # it was sent like this; what is made now is the newest state
        _read_again(flow, work)
        _decide_anew(flow, run, work)
        return
    _disbelieve_page(work)  # not before: until it is looked up it goes on as it was sent
    if found is None:
        return
    sent_at = create_by - timedelta(seconds=flow.limits.create_s + CLOCKS_APART_S)
    changed = not create_tells(flow, work) or found.row.changed_at is None or found.row.changed_at >= sent_at
    ours = changed and work.link is not None and work.link.outcome != Outcome.ADOPTED
    work.target = found.row
    work.matched_by = LOST_ANSWER if ours else "+".join(found.rule.fields)
    decide_work(flow, run, work)


def _find_sent(flow: Flow, work: Work) -> Match | None:
    """Ask who has what a create in doubt was sent with. Raises MappingError `create_in_doubt`; its claim holds nobody up."""
    try:
        return find_sent(flow, work)
    except MappingError as exc:
        if work.link is not None and exc.code == CREATE_IN_DOUBT:
            links.leave_in_doubt(flow, work.link)
        raise


def _unrepeatable(flow: Flow, decision: Decision) -> bool:
    """Tell whether doing a write twice would leave something doubled."""
    return decision.action is Action.CREATE or any(_append_type(flow, name) for name in decision.writes)


def _append_type(flow: Flow, name: str) -> FieldType | None:
    known = flow.target_type().fields.get(name)
    return known if known is not None and known.kind is FieldKind.APPEND else None


def _first_value(flow: Flow, work: Work) -> IdentityRow | None:
    """Return the row of the first match rule's value, unless it is the record's own key, which the link's claim covers.

    A child's value is its own among its parent's children only.
    """
    names = flow.recipe.block.first_match
    values = [work.fields.fields[name].value for name in names]
    if not names or any(comparable(value) is None for value in values):
        return None
    if len(values) == 1 and (same_value(values[0], work.key) or _marker_of(work, names[0])):
        return None
    scope = [work.siblings.parent] if work.siblings else []
    return links.identity(flow, flow.target_name, names, [*scope, *map(search_key, values)], work.key)


def _marker_of(work: Work, name: str) -> str | None:
    """Return what marks a child's field, if anything does: it holds the child's own id."""
    return work.fields.fields[name].marker if work.siblings else None


def _claim_first_value(flow: Flow, run: RunRow, work: Work, book: links.Book) -> None:
    """Claim the first match rule's value, so that no two records get it. A linked record's new value has to be free."""
    blank = _first_value(flow, work)
    if work.linked_key:
        _check_free(flow, work)
    if blank is None:
        return
    taken = book.claim_value(blank, work.owner)
    if taken.row.key and taken.row.link_key != work.key and not _has_moved(flow, work, taken.row):
        links.release(flow, taken.row, keep=True)
        raise shared_error(flow.recipe.block.first_match, links.place_of(flow, flow.source_name, taken.row.link_key))
    if taken.create_by is None:
        work.identity = taken.row
        return
    links.wait_for_create(flow, taken.create_by)  # the doubt stays until it is settled: it may be another record's
    _disbelieve_page(work)
    if work.linked_key:
        _check_free(flow, work)
    elif (found := find_by_first_rule(flow, work)) is not None:
        work.target, work.doubtful, work.identity = found.row, True, taken.row
        work.matched_by = "+".join(found.rule.fields)
        decide_work(flow, run, work)
        if work.link is not None:  # it promised a create that is not going to be: the doubt is the value's
            link = promised(flow, work) or work.link
            work.link = links.renew(flow, link, work.owner, creating=_unrepeatable(flow, work.decided))
        if work.decided.action is Action.UPDATE:
            check_owned(flow, work)
        return
    work.identity = links.renew(flow, taken.row.model_copy(update={"link_key": work.key}), work.owner)


def _has_moved(flow: Flow, work: Work, noted: IdentityRow) -> bool:
    """Tell whether the record that a value is noted for has another by now: a death may have left the note behind."""
    link = links.find_links(flow, [noted.link_key])[noted.link_key]
    if link is None:
        return True  # it was unlinked
    if link.claim is not None or links.target_key(flow, link) != noted.key:
        return False
    for name in flow.recipe.block.first_match:
        digest = link.agreed.get(agreed_name(flow.target_name, name), "").lstrip(NOT_OURS + NOT_SHOWN)
        values = work.fields.fields[name].accepted
        if digest and not any(flow.digests.matches(comparable(value), digest) for value in values):
            return True
    return False


def _moves(flow: Flow, work: Work) -> bool:
    """Tell whether a linked record is to get another value in its first match rule (a contact's new email)."""
    return work.linked_key and any(name in work.decided.writes for name in flow.recipe.block.first_match)


def _check_free(flow: Flow, work: Work) -> None:
    """Look whether another record has the value already. Raises MappingError `ambiguous_match`."""
    key = links.target_key(flow, work.link) if work.link else ""
    try:
        found = find_by_first_rule(flow, work)
    except MappingError:
        taken = True
    else:
        taken = found is not None and found.row.key != key
    if taken:
        names, noun = " and ".join(flow.recipe.block.first_match), flow.target_type().noun
        raise MappingError(f"Another {noun} has the new {names} already; mend one of the two.", code="ambiguous_match")


def _forget_value(flow: Flow, work: Work) -> None:
    """Give up the claim on the value that a record had before it moved."""
    names = flow.recipe.block.first_match
    if work.target is None or not any(name in work.decided.writes for name in names):
        return
    old = [search_key(work.target.fields.get(name)) for name in names]
    if old == [search_key(work.fields.fields[name].value) for name in names]:
        return  # only its writing has changed
    links.forget_identity(flow, links.identity(flow, flow.target_name, names, old), work.key)


def _write_of(flow: Flow, work: Work) -> Write | None:
    """Build what goes to the vendor; None where only the link has something to remember."""
    decision, parent = work.decided, work.siblings.parent if work.siblings else None
    fields = dict(decision.writes)
    for name in list(fields):
        known = _append_type(flow, name)
        if known is not None and isinstance(fields[name], str):
            text = str(fields[name])
            marker = _marker(flow, work, name, text)
            if work.doubtful and _was_appended(flow, work, known, marker):
                del fields[name]
            else:
                fields[name] = _marked(text, marker, known.length)
    if decision.action is Action.CREATE:
        names = flow.recipe.block.first_match
        match = {name: _marker_of(work, name) or work.fields.fields[name].value for name in names}
        return Write(None, fields, match, parent)
    if decision.action is Action.UPDATE and fields and work.target is not None:
        return Write(work.target.key, fields, parent=parent)
    return None


def _marker(flow: Flow, work: Work, name: str, text: str) -> str:
    """Return the text by which an appended entry is recognised: it stands for this record, field, text and occasion."""
    occasion = work.link.gone if work.link else 0
    facts = "\n".join((flow.pair, work.key, name, str(occasion), text))
    return hashlib.sha256(facts.encode("utf-8", "replace")).hexdigest()[:10]


def _marked(text: str, marker: str, length: int | None) -> str:
    """Return an entry with its marker at the end; where both do not fit, the text is cut."""
    mark = f" [#{marker}]"
    return (text if length is None else text[: length - len(mark)]) + mark


def _was_appended(flow: Flow, work: Work, known: FieldType, marker: str) -> bool:
    """Look for an entry that an earlier attempt may have appended. Entries stand in the child type the field refers to."""
    if work.target is None or not known.refers_to:
        return False
    path = known.refers_to[0]
    rows = flow.target.fetch_rows(flow.recipe.target.record, frozenset((path,)), (), [(work.target.key,)])
    entries = rows[0].fields.get(path) if rows else None
    listed = entries if isinstance(entries, list) else []
    return any(marker in str(entry.get("text", "")) for entry in listed if isinstance(entry, dict))


def _settle(flow: Flow, run: RunRow, work: Work, answer: Written | SyncError | None, book: links.Book) -> None:
    """Remember what was written, and name the outcome."""
    link, decision = work.link, work.decided
    if link is None:
        raise StateError("A record was written without a claim.")
    if isinstance(answer, SyncError):
        raise answer
    new = not link.other_key
    if answer is not None:
        work.written = answer.row or Row(answer.key, {}, url=flow.target.url(flow.recipe.target.record, answer.key))
        work.fresh = answer.created and not work.interrupted
        if work.siblings is not None:
            work.siblings.owners[answer.key] = work.key
        if new and decision.action is Action.CREATE and work.siblings is None:
            book.own_target(link, answer.key)
    target = work.written or work.target
    if work.identity is not None and work.siblings is None and target is not None:
        changes = {"claim": None, "key": target.key, "link_key": work.key}
        book.store_value(link, work.identity.model_copy(update=changes))
        _forget_value(flow, work)
    shown = answer.row.fields if answer is not None and answer.row is not None else None
    agreed, inputs, work.lost = agreement(
        decision, work.fields, flow.target_name, link if not new else None, work.target, shown, flow.digests
    )
    outcome = _outcome(run, work, new, answer)
    book.store(_linked(flow, run, work, link, agreed, inputs, outcome))
    work.end(outcome)


def _may_have_happened(flow: Flow, decision: Decision, error: SyncError) -> bool:
    """Tell whether a write that ended in an error may have taken effect: its claim then stays for the next attempt."""
    if _unrepeatable(flow, decision):
        return isinstance(error, AmbiguousWriteError)
    return isinstance(error, TransientError)


def _outcome(run: RunRow, work: Work, new: bool, answer: Written | None) -> Outcome:
    if new and (work.matched_by == LOST_ANSWER or (answer is not None and answer.created)):
        return Outcome.CREATED
    if new:
        return Outcome.ADOPTED
    before = done_before(run, work) if answer is None else None
    if before not in (None, Outcome.UNCHANGED):
        return before
    return Outcome.UPDATED if answer is not None or work.doubtful or work.interrupted else Outcome.UNCHANGED


def _linked(
    flow: Flow,
    run: RunRow,
    work: Work,
    link: LinkRow,
    agreed: dict[str, str],
    inputs: dict[str, str],
    outcome: Outcome,
) -> LinkRow:
    row, target = work.source, work.written or work.target
    kept = link.claim if flow.recipe.block.children else None  # its children are worked under it
    sides = {flow.source_name: row, flow.target_name: target}
    versions = {name: side.version for name, side in sides.items() if side is not None and side.version}
    times = {name: side.changed_at.isoformat() for name, side in sides.items() if side is not None and side.changed_at}
    changes: dict[str, Any] = {
        "versions": link.versions | versions,
        "changed_at": link.changed_at | times,
        "agreed": agreed,
        "inputs": inputs,
        "gone": link.gone + 1 if work.scope_changed else link.gone,
        "claim": kept.model_copy(update={"create_by": None}) if kept else None,
        "run_id": run.run_id,
        "event_id": work.event_id,
        "outcome": outcome.value,
        "wrote_version": row.version,
    }
    if not link.other_key and target is not None:
        changes["other_key"] = target.key
    return link.model_copy(update=changes)
