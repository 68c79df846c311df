"""Preparing a batch of records; a batch of one is the single case.

    read → map → scope → link → find → match → decide   (here)   → claim → write → link   (writing.py)   → result   (outcomes.py)

`prepare` does everything up to the decision, a few calls for the lot, and settles what needs no write. A page is prepared
before it is fanned out; a message whose preparation is missing or old prepares its own record.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import wait
from datetime import timedelta
from functools import partial
from typing import Any

from shared import attempt
from shared.attempt import Lane
from shared.clients.system import Row
from shared.errors import ConfigError, RejectedError, StateError, SyncError, TransientError
from shared.state.messages import ItemModel, Prepared, RowModel
from shared.state.rows import LinkRow, Outcome, RunRow
from shared.state.storage import SideBySide
from sync import links, references
from sync.decide import Action, agreement, decide, is_stale, same_value, wants_find, wants_rekeying
from sync.flow import Flow
from sync.mapping import FieldWarning, Mapped, holds, map_record
from sync.matching import Ahead, Match, fetch_ahead, find_matches
from sync.owners import check_owned
from sync.recipe import Find, GoneAction, MatchRule
from sync.references import Ask, Reference
from sync.siblings import find_sibling, read_siblings, siblings_of
from sync.work import Work, each

LOG = logging.getLogger(__name__)
_SIDE_BY_SIDE = {lane: SideBySide() for lane in Lane}
_AHEAD = {lane: SideBySide() for lane in Lane}  # apart, as what they run waits for others


def works_of(items: Iterable[ItemModel], *, page: int, owner: str) -> list[Work]:
    """Start the work on items."""
    return [Work(item, page=page, owner=owner, row=item.row.row() if item.row else None) for item in items]


def prepare(flow: Flow, run: RunRow, works: Sequence[Work], *, create_references: bool) -> None:
    """Do all that the records of a batch can share, at most a few calls for the lot.

    Afterwards a work is settled (unchanged, skipped, failed), or it knows its link, its references and its target.
    With `create_references` False, references that do not exist yet stand in `missing` instead of being made.
    """
    read_records(flow, works)
    each(works, lambda work: map_work(flow, work))
    load_links(flow, run, works)
    each(works, lambda work: scope(flow, run, work))
    each(works, lambda work: decide_work(flow, run, work))
    create = create_references and not run.preview
    if assumed := [work for work in works if work.assumed]:
        _ask_vendor(flow, run, assumed if create else works, create=False)
        _check_assumed(flow, run, assumed)
    _ask_vendor(flow, run, works, create=create)
    _settle_together(flow, run, works)


def _ask_vendor(flow: Flow, run: RunRow, works: Sequence[Work], *, create: bool) -> None:
    """Look up what the target says about records: references, matches, linked targets; then decide about them again."""
    pending = [work for work in works if work.open and needs_vendor(work) and (create or not work.missing)]
    for work in pending:
        work.missing = set()
    with _fetching_ahead(flow, run, [] if create else pending) as ahead:
        resolve_references(flow, run, pending, create=create)
        look_targets_up(flow, run, pending, ahead)
    each([work for work in pending if not work.missing], lambda work: decide_work(flow, run, work))


def _check_assumed(flow: Flow, run: RunRow, works: Sequence[Work]) -> None:
    """Read the links of records that were assumed to have none, but are to be more than created: that may be their doing.

    A create ends in a claim, which meets a link. What fails, is skipped, adopts or makes something before, does not.
    """
    doubted = [work for work in works if not _is_plain_create(work)]
    found = links.find_links(flow, [work.key for work in doubted])
    for work in doubted:
        work.assumed, work.link = False, found[work.key]
    linked = [work for work in doubted if work.linked_key]
    for work in linked:
        work.error, work.references, work.missing = None, {}, set()
        work.target, work.matched, work.matched_by = None, False, ""
    each(linked, lambda work: map_work(flow, work))
    each(linked, lambda work: scope(flow, run, work))
    each(linked, lambda work: decide_work(flow, run, work))


def _is_plain_create(work: Work) -> bool:
    asked_for = work.error is None and not work.missing and work.target is None
    return asked_for and work.decision is not None and work.decision.action is Action.CREATE


def create_missing(flow: Flow, run: RunRow, works: Sequence[Work]) -> None:
    """Make the references that `prepare` was not allowed to make, and decide with them."""
    waiting = [work for work in works if work.missing]
    for work in waiting:
        work.missing = set()
    resolve_references(flow, run, waiting, create=True)
    if waiting and flow.recipe.target.record in flow.found_records():  # what was made may be a neighbour's own record
        unmatched = [work for work in works if work.open and work.matched and work.target is None]
        for work in unmatched:
            work.matched = False
        waiting += unmatched
    look_targets_up(flow, run, waiting)
    each(waiting, lambda work: decide_work(flow, run, work))
    _settle_together(flow, run, waiting)


def _settle_together(flow: Flow, run: RunRow, works: Sequence[Work]) -> None:
    each(
        [work for work in works if run.preview or not _may_be_ours(work)],
        lambda work: settle_without_write(flow, run, work),
    )
    if flow.recipe.block.children:
        from sync.children import plan  # noqa: PLC0415  # the engine calls itself for the blocks under a block

        plan(flow, run, works)


def _may_be_ours(work: Work) -> bool:
    """Tell whether a closed record was found that an earlier attempt may have made: it is linked, whatever it does not take."""
    claim = work.link.claim if work.link is not None and not work.linked_key else None
    closed = work.decision is not None and work.decision.action is Action.SKIP and work.target is not None
    return closed and claim is not None and claim.create_by is not None


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


def read_records(flow: Flow, works: Sequence[Work]) -> None:
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
                read_records(flow, [work])
        elif exc.code == "unsearchable_value":  # an id of another form than the source's: there is no such record
            unread[0].end(Outcome.SKIPPED, "source_missing", exc.message)
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
        if work.row is None and work.deleted:
            work.row = Row(work.key, {}, url=flow.source.url(flow.recipe.source.record, work.key), closed=True)
        elif work.row is None:
            work.end(Outcome.SKIPPED, "source_missing", "The source record is gone, or we may not read it.")


def map_work(flow: Flow, work: Work) -> None:
    """Map a record, if it is in scope or is followed beyond."""
    row = work.source
    _check_readable(row)
    work.deleted = work.deleted and not row.fields  # it is there again: the event is late
    work.in_scope = not work.deleted and holds(flow.recipe.block.when, row.fields)
    if work.in_scope or (flow.recipe.gone.action is GoneAction.FOLLOW and not work.deleted):
        work.mapped = map_record(flow.recipe.block, row, flow.target_type(), flow.find_types())


def _check_readable(row: Row) -> None:
    """Raise TransientError `unreadable_answer` for a row of which not all could be read."""
    if row.problem:
        raise TransientError(row.problem, code="unreadable_answer", status=200)


def load_links(flow: Flow, run: RunRow, works: Sequence[Work]) -> None:
    """Find the links of a batch; of records that are taken for new only if more is to be known."""
    unlooked = [work for work in works if work.open and not work.linked]
    # Who writes nothing meets no link that was made meanwhile, and what a guard held may have waited for days.
    first = run.first_run and not (run.released or run.preview or flow.shared)
    doubtable = not _makes_more(flow)
    for work in unlooked:
        work.assumed = doubtable and work.in_scope and (first or _looks_new(flow, run, work))
        work.linked = True
    if first and not doubtable:
        return  # nothing can be linked yet, but by a run beside this one: the claims meet that
    asked = [work for work in unlooked if not work.assumed]
    found = links.find_links(flow, [work.key for work in asked])
    for work in asked:
        work.link = found[work.key]


def _makes_more(flow: Flow) -> bool:
    """Tell whether a record comes with others that are made or changed, one of which may be a neighbour's own."""
    finds = [rule.find for rule in flow.recipe.block.fields.values() if rule.find]
    own = flow.recipe.target.record in flow.found_records()
    return own or bool(flow.recipe.block.children) or any(find.write.may_change for find in finds)


def _looks_new(flow: Flow, run: RunRow, work: Work) -> bool:
    """Tell whether a record was created after all that earlier runs have listed, so that none of them has linked it.

    A run of chosen records may have, one beside this one, or another recipe. Where events link most records, or more than
    the record itself is at stake, nothing is assumed.
    """
    block, created_at = flow.recipe.block, work.row.created_at if work.row else None
    if created_at is None or run.listed_until is None or run.until is None or work.siblings:
        return False
    if flow.shared or flow.two_way or run.preview or flow.recipe.start.webhook is not None:
        return False
    return block.write.may_create and run.listed_until <= created_at < run.until


def scope(flow: Flow, run: RunRow, work: Work) -> None:
    """Settle what is out of scope: nothing is created there, and a linked record is treated as `gone` says."""
    row, gone = work.source, flow.recipe.gone
    has_link = work.link is not None and bool(work.link.other_key)
    if work.link is not None and work.siblings is None:
        links.check_finished(flow, work.link, work.owner)
    if work.link is not None and is_stale(work.link, flow.source_name, row):
        work.end(Outcome.UNCHANGED, "stale", "A newer version of the record has been worked already.")
    elif work.in_scope or (has_link and gone.action is GoneAction.FOLLOW and not work.deleted):
        return
    elif not has_link:
        noun = flow.source_type().noun
        code = f"{noun}_not_active" if row.closed else "not_in_scope"
        work.end(Outcome.SKIPPED, code, f"The {noun} does not meet the recipe's condition and was never synced.")
    elif gone.action is not GoneAction.WRITE:
        text = "was deleted" if work.deleted else "no longer meets the recipe's condition"
        work.end(Outcome.SKIPPED, "left_scope", f"The record {text}; its target is left as it is.")
    elif work.link is not None and work.link.gone % 2 and (outcome := done_before(run, work)) is not None:
        work.end(outcome)
    elif work.link is not None and work.link.gone % 2:
        work.end(Outcome.UNCHANGED, "gone", "That the record is over has been written already.")
    else:
        work.mapped = map_record(flow.recipe.gone_block, row, flow.target_type())


def decide_work(flow: Flow, run: RunRow, work: Work) -> None:
    """Decide about a record with what is known of it so far."""
    work.mapped = with_references(work.fields, work.references)
    over = not work.in_scope and flow.recipe.gone.action is GoneAction.WRITE
    work.decision = decide(
        work.mapped.block,
        work.mapped,
        record=flow.target_type(),
        target_name=flow.target_name,
        source=work.source,
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


def needs_vendor(work: Work) -> bool:
    """Tell whether a preliminary decision needs references, matches or the target's row."""
    if work.decision is None or work.decision.action is not Action.NOTHING:
        return not work.matched
    return False


def resolve_references(flow: Flow, run: RunRow, works: Sequence[Work], *, create: bool) -> None:
    """Answer the `find` blocks, one field at a time for all records; fields that make nothing are asked side by side."""
    finds = {name: rule.find for name, rule in flow.recipe.block.fields.items() if rule.find is not None}

    def answer(name: str) -> list[tuple[Work, Reference | Exception]]:
        return _answer_field(flow, run, works, name, finds[name], create=create)

    together = [name for name, find in finds.items() if not create and not find.write.may_change]
    answers = dict(zip(together, _SIDE_BY_SIDE[attempt.current().lane].map(answer, together), strict=True))
    for name in finds:
        _take_answers(run, name, answers[name] if name in answers else answer(name))


def _answer_field(
    flow: Flow, run: RunRow, works: Sequence[Work], name: str, find: Find, *, create: bool
) -> list[tuple[Work, Reference | Exception]]:
    """Answer one field's `find` block for the works that ask it."""
    from sync.nested import sync_found  # noqa: PLC0415  # the engine calls itself for the blocks inside a block

    asking = [
        (work, Ask(field, work.owner))
        for work in works
        if work.open and work.mapped is not None and name not in work.references
        for field in wants_find(work.mapped, work.link, flow.target_name, flow.digests)
        if field.name == name
    ]
    if not asking:
        return []
    answers: Sequence[Reference | Exception]
    try:
        if find.write.may_change:  # the record is kept in step too: a batch of its own
            answers = sync_found(flow, run, find, asking)
        else:
            answers = references.resolve(flow, find, [ask for _, ask in asking], create=create)
    except (StateError, ConfigError):
        raise
    except SyncError as exc:
        answers = [exc] * len(asking)
    except Exception as exc:
        LOG.exception("references could not be resolved")
        answers = [exc] * len(asking)
    return [(work, answer) for (work, _), answer in zip(asking, answers, strict=True)]


def _take_answers(run: RunRow, name: str, answered: Sequence[tuple[Work, Reference | Exception]]) -> None:
    for work, answer in answered:
        if isinstance(answer, Exception):
            work.error = work.error or answer
        elif answer.missing and run.preview:
            work.references[name] = Reference(warnings=(FieldWarning("would_be_created", f"{name}: would be made."),))
        elif answer.missing:
            work.missing.add(answer.missing)
        else:
            work.references[name] = answer


@contextlib.contextmanager
def _fetching_ahead(flow: Flow, run: RunRow, works: Sequence[Work]) -> Iterator[Callable[[], Ahead]]:
    """Have fetched beside the references what the rules will ask for, and return what waits for it.

    Only beside references that are but looked up: one that is made may be a neighbour's own record. A rule with a field
    that is a reference is asked when that is known, and a record that a missing reference holds back is asked for again
    when it may go on.
    """
    finds = {name: rule.find for name, rule in flow.recipe.block.fields.items() if rule.find is not None}
    rules = [rule for rule in flow.recipe.block.match if not rule.link and not finds.keys() & set(rule.fields)]
    unlinked = [work.mapped for work in works if _is_to_match(flow, run, work) and work.mapped and not work.siblings]
    changes = any(find.write.may_change for find in finds.values())
    if not finds or not rules or changes or len(unlinked) < 2:  # of one the next rule is asked only if needed
        yield dict
        return
    fetch = partial(fetch_ahead, flow.target, flow.recipe.target.record, flow.recipe.target_paths(), rules, unlinked)
    future = _AHEAD[attempt.current().lane].start(fetch)
    try:
        yield future.result
    finally:
        wait([future])


def _is_to_match(flow: Flow, run: RunRow, work: Work) -> bool:
    """Tell whether the rules are asked for a record: not where its create would tell that it exists, unless nothing is written."""
    ready = work.open and work.mapped is not None and not work.matched and not work.missing and not work.linked_key
    return ready and (run.preview or not create_tells(flow, work))


def look_targets_up(flow: Flow, run: RunRow, works: Sequence[Work], ahead: Callable[[], Ahead] = dict) -> None:
    """Read the linked targets, and match the records that have none; all of a batch together."""
    for work in works:
        if work.open and work.mapped is not None:
            work.mapped = with_references(work.mapped, work.references)
    ready = [work for work in works if work.open and not work.matched and not work.missing]
    guarded(flow, [work for work in ready if work.link and work.link.other_key], read_targets)
    guarded(flow, [work for work in ready if _is_to_match(flow, run, work)], partial(match, ahead=ahead))
    each(ready, lambda work: _check_readable(work.target) if work.target else None)


def guarded(flow: Flow, works: list[Work], step: Callable[[Flow, list[Work]], None]) -> None:
    """Do a step for many records together; when it fails, it fails for all of them, and each is tried again alone."""
    if not works:
        return
    try:
        step(flow, works)
    except (StateError, ConfigError):
        raise
    except Exception as exc:
        if not isinstance(exc, SyncError):
            LOG.exception("a step for many records failed unexpectedly")
        for work in works:
            work.error = work.error or exc


def read_targets(flow: Flow, works: list[Work]) -> None:
    """Read the linked targets of a batch together."""
    if works[0].siblings is not None:
        _read_linked_children(flow, works)
        return
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


def _read_linked_children(flow: Flow, works: list[Work]) -> None:
    read_siblings(flow, works)
    for work in works:
        work.target = (siblings_of(work).rows or {}).get(links.target_key(flow, work.link)) if work.link else None
        work.matched = True
        if work.target is None and work.error is None:
            text = f"The linked {flow.target_type().noun} is gone, or we may not read it. Choose recreate or unlink."
            work.error = RejectedError(text, code="target_missing")


def find_targets(
    flow: Flow, works: Sequence[Work], rules: Sequence[MatchRule], ahead: Ahead | None = None, *, anew: bool = False
) -> list[Match | SyncError | None]:
    """Ask rules for the works' targets: of a record in the target, of a child among its parent's children."""
    if works and works[0].siblings is not None:
        read_siblings(flow, works, anew=anew)
        return [find_sibling(flow, work, rules) if work.error is None else None for work in works]
    asks = [(work.fields, taken_by_other(flow, work)) for work in works]
    return find_matches(flow.target, flow.recipe.target.record, flow.recipe.target_paths(), rules, asks, ahead)


def create_tells(flow: Flow, work: Work) -> bool:
    """Tell whether the create of a record is refused where a record is that the rules would find.

    So it is where the only rule is a field that is unique in the target, and which holds the record's own key: nobody
    else's create can be meant by a refusal.
    """
    block = flow.recipe.block
    if not block.write.may_create or block.children or len(block.match) != 1:
        return False
    rule = block.match[0]
    if len(rule.fields) != 1 or rule.when or rule.same_or_empty:
        return False
    known, field = flow.target_type().fields.get(rule.fields[0]), work.fields.fields[rule.fields[0]]
    return known is not None and known.unique and same_value(field.value, work.key)


def match(flow: Flow, works: list[Work], ahead: Callable[[], Ahead] = dict) -> None:
    """Ask the block's rules for the targets of records without a link."""
    answers = find_targets(flow, works, flow.recipe.block.match, ahead())
    for work, answer in zip(works, answers, strict=True):
        if isinstance(answer, SyncError):
            work.error = answer
            continue
        work.matched = True
        if answer is not None:
            work.target, work.matched_by = answer.row, "+".join(answer.rule.fields)


def taken_by_other(flow: Flow, work: Work) -> Callable[[str], str]:
    """Return what tells which other source record a target record belongs to, if any."""

    def taken(key: str) -> str:
        owner = links.owner_of_target(flow, key)
        if owner is None or (owner.link_side, owner.link_key) == (flow.source_name, work.key):
            return ""
        return links.place_of(flow, owner.link_side, owner.link_key)

    return taken


def settle_without_write(flow: Flow, run: RunRow, work: Work) -> None:
    """End the works that need no write; those with missing references wait for whoever may create them."""
    decision = work.decision
    if decision is None or work.missing:
        return
    if decision.action is Action.SKIP:
        work.end(Outcome.SKIPPED, decision.code, decision.reason)
    elif decision.action is Action.NOTHING and work.link and work.link.other_key and not work.scope_changed:
        if not run.preview and _has_learned(flow, work):
            return
        work.end(done_before(run, work) or Outcome.UNCHANGED)
    elif run.preview:
        check_owned(flow, work)
        created = decision.action is Action.CREATE
        adopted = not created and not (work.link and work.link.other_key)
        work.end(Outcome.CREATED if created else Outcome.ADOPTED if adopted else Outcome.UPDATED)


def done_before(run: RunRow, work: Work) -> Outcome | None:
    """Return what an earlier attempt of this run came to, if it wrote this version: a repeat says the same."""
    if work.link is None or not work.link.outcome:
        return None
    wrote = (work.link.run_id, work.link.event_id, work.link.wrote_version)
    return Outcome(work.link.outcome) if wrote == (run.run_id, work.event_id, work.source.version) else None


def _has_learned(flow: Flow, work: Work) -> bool:
    """Tell whether there is something for the link to remember, although nothing is written.

    The target, where it was read, holds what the link does not know of: a write of ours whose link was never stored, or
    the same change made by hand. Unless the link remembers it, a later change of the target's would look as if it were
    the source's turn to write. Or the digests' key is being changed.
    """
    if work.link is None or work.decision is None:
        return False
    if work.target is None and not wants_rekeying(work.link, flow.digests):
        return False
    agreed, inputs, _ = agreement(
        work.decision, work.fields, flow.target_name, work.link, work.target, None, flow.digests
    )
    return (agreed, inputs) != (work.link.agreed, work.link.inputs)
