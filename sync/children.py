"""`children`: the records that belong to a record, worked after it by the same engine, all children of a batch together.

    record settled → its children's links (one range each) → map → decide → find, match among the parent's children
    → claim → write → link; what `mirror` takes away goes last

`plan` runs when a batch is prepared: it asks no vendor, and keeps a record that is unchanged itself at work when its
children have something to be written. `finish` runs after the batch was written. A child that cannot be mapped is a
warning of its record, one that the vendor refuses is the record's failure; its siblings are written all the same.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial

from shared.clients.system import Row, Write
from shared.errors import AccessError, MappingError, RateLimitedError, RejectedError, SyncError
from shared.markers import LEAST_ID_CHARS, carries
from shared.state.messages import ItemModel
from shared.state.rows import LinkRow, Outcome, RunRow
from shared.state.storage import SideBySide
from sync import bulk, links, outcomes
from sync.flow import Flow
from sync.items import decide_work, guarded, map_work, prepare, settle_without_write
from sync.mapping import child_id, child_rows
from sync.recipe import Block, Gone, GoneAction, RecordRef, WriteMode
from sync.siblings import find_made, read_siblings, siblings_of
from sync.work import Family, Siblings, Work, each

SYNCED = (Outcome.CREATED, Outcome.ADOPTED, Outcome.UPDATED, Outcome.UNCHANGED)
WRITTEN = (Outcome.CREATED, Outcome.ADOPTED, Outcome.UPDATED)
FINAL = (RejectedError, AccessError)  # another attempt would end the same
CLAIM_WAIT_S = 30.0
MOST_TOLD = 20  # warnings of one kind about one record's children
_SIDE_BY_SIDE = SideBySide()


def plan(flow: Flow, run: RunRow, works: Sequence[Work]) -> None:
    """Keep the records of a prepared batch at work whose children have something to be written; nothing is asked.

    In a preview the children are decided about in full, and their records say what would be done.
    """
    mirrors = any(block.write is WriteMode.MIRROR for block in flow.recipe.block.children)
    linked = [work for work in works if _keeps(flow, work) and (work.linked_key or run.preview)]
    keeping = [work for work in linked if _settled(work) or (mirrors and work.open)]
    look_at(flow, run, keeping)
    if run.preview:
        for inner, families in kinds(flow, keeping):
            prepare(inner, run, _open(families), create_references=False)
        for work in keeping:
            _report(flow, run, work)
        return
    for work in filter(_settled, keeping):
        if _is_in_hand(work) or any(_is_due(family) for family in work.families or ()):
            work.outcome, work.reason, work.message = None, "", ""
        else:
            _report(flow, run, work)


def finish(flow: Flow, run: RunRow, works: Sequence[Work]) -> None:
    """Work the children of the records that are synced, and add what became of them to the records' own outcomes."""
    keeping = [work for work in works if _keeps(flow, work) and _settled(work)]
    look_at(flow, run, keeping)
    for inner, families in kinds(flow, keeping):
        for family in families:
            if family.in_making:
                each(family.works, partial(_hold_back, inner, family))
        due = _open(families)
        prepare(inner, run, due, create_references=True)
        each(due, partial(_spare_closed, inner))
        bulk.finish(inner, run, due)
        _settle_doubts(inner, families)
        _take_away(inner, families)
    for work in keeping:
        _report(flow, run, work)


def removals_of(work: Work) -> int:
    """Return how many children a prepared record would take away: those of `mirror` that the source no longer has."""
    families = work.families or []
    below = sum(removals_of(child) for family in families for child in family.works)
    return below + sum(len(family.stale) for family in families if family.mirrored)


def child_flow(flow: Flow, block: Block) -> Flow:
    """Return the engine's flow for a block under `children`; its record types are named by their paths."""
    source, target = flow.recipe.source, flow.recipe.target
    path = f"{source.record}.{block.from_}" if block.from_ else source.record
    changes = {
        "source": RecordRef(connection=source.connection, record=path),
        "target": RecordRef(connection=target.connection, record=f"{target.record}.{block.record}"),
        "block": block,
        "gone": Gone(),
    }
    return dataclasses.replace(flow, recipe=flow.recipe.model_copy(update=changes), two_way=False, shared=True)


def forget_links(flow: Flow, parent: LinkRow) -> None:
    """Forget whose children belong together, before their parents' own link is given up."""
    for block in flow.recipe.block.children:
        inner = child_flow(flow, block)
        for link in links.find_child_links(inner, parent):
            forget_links(inner, link)
            flow.tables.delete(link)


# -- looking at a record's children -------------------------------------------------------------------------------------


def _keeps(flow: Flow, work: Work) -> bool:
    """Tell whether a record is kept in step, so that its children are too."""
    follows = work.in_scope or flow.recipe.gone.action is GoneAction.FOLLOW
    return work.error is None and work.mapped is not None and follows and not work.deleted and work.reason != "stale"


def _settled(work: Work) -> bool:
    return work.outcome in SYNCED


def kinds(flow: Flow, works: Sequence[Work]) -> Iterator[tuple[Flow, list[Family]]]:
    """Yield each block's flow with the families of all records that were looked at."""
    for index, block in enumerate(flow.recipe.block.children):
        yield child_flow(flow, block), [work.families[index] for work in works if work.families]


def _open(families: Sequence[Family]) -> list[Work]:
    return [child for family in families for child in family.works if child.open]


def _is_due(family: Family) -> bool:
    return any(child.open for child in family.works) or (family.mirrored and bool(family.stale))


def _is_in_hand(work: Work) -> bool:
    """Tell whether a record's claim says that its children are being worked, or that a worker died at them."""
    return work.interrupted if work.ahead else work.link is not None and work.link.claim is not None


def look_at(flow: Flow, run: RunRow, works: Sequence[Work]) -> None:
    """Load the children of records that were not looked at yet, and decide about them by their links alone."""
    works = [work for work in works if work.families is None]
    for block in flow.recipe.block.children:
        inner = child_flow(flow, block)
        for work, stored in zip(works, _SIDE_BY_SIDE.map(partial(_links, inner), works), strict=True):
            work.families = [*(work.families or ()), _family(flow, inner, work, stored)]
    for inner, families in kinds(flow, works):
        children = [child for family in families for child in family.works]
        each(children, partial(_look_at_child, inner, run))
        if inner.recipe.block.children and not run.preview:
            plan(inner, run, children)


def _look_at_child(inner: Flow, run: RunRow, child: Work) -> None:
    map_work(inner, child)
    _check_mapped(child)
    decide_work(inner, run, child)
    if child.linked_key and not run.preview:
        settle_without_write(inner, run, child)


def _links(inner: Flow, work: Work) -> list[LinkRow]:
    return links.find_child_links(inner, work.link) if work.link and work.link.other_key and not work.fresh else []


def _family(flow: Flow, inner: Flow, work: Work, stored: Sequence[LinkRow]) -> Family:
    block = inner.recipe.block
    rows = {_id_of(block, row): row for row in child_rows(block, work.source)}
    there = {_id_of(block, row) for row in child_rows(block.model_copy(update={"when": {}}), work.source)}
    known = {links.source_key(inner, row): row for row in stored if row.other_key or row.side == inner.source_name}
    linked = {key: row for key, row in known.items() if row.other_key}
    mirrored = block.write is WriteMode.MIRROR
    may_go = known if mirrored else linked  # what is claimed only may have been made, and its answer lost
    owners = {links.target_key(inner, row): key for key, row in linked.items() if key in there or not block.from_}
    parent = _target_key(flow, work)
    siblings = Siblings(parent, owners, rows={} if not parent or (work.fresh and block.is_marked) else None)
    return Family(
        works=[_child(inner, work, siblings, row, known.get(key), key) for key, row in rows.items()],
        stale=[row for key, row in may_go.items() if key not in rows and (block.from_ or key in there)],
        mirrored=mirrored,
        in_making=[row for row in stored if not row.other_key and row.side != inner.source_name],
        siblings=siblings,
        owner=work.owner,
    )


def _target_key(flow: Flow, work: Work) -> str:
    """Return the key of a record's target, "" while it would only be made."""
    if work.link is not None and work.link.other_key:
        return links.target_key(flow, work.link)
    target = work.written or work.target
    return target.key if target else ""


def _child(inner: Flow, work: Work, siblings: Siblings, row: Row, link: LinkRow | None, key: str) -> Work:
    """Start the work on a record's child; its claims are told from those of other children by its key."""
    if link is None:
        above = work.link.row_key if work.link else work.key  # without a link it is a preview
        link = LinkRow(pair=inner.pair, side=inner.source_name, key=key, parent=above)
    return Work(
        ItemModel(key=key),
        page=work.page,
        event_id=work.event_id,
        owner=f"{work.owner}/{key}",
        row=row,
        link=link,
        linked=True,
        siblings=siblings,
        attempts=work.attempts,
        first_sent_at=work.first_sent_at,
    )


def _id_of(block: Block, row: Row) -> str:
    return row.key if block.from_ else child_id(block)


def _check_mapped(work: Work) -> None:
    """Raise MappingError for a child that must not be written as it was mapped.

    A value that stands in no table may have been what keeps an internal comment internal.
    """
    for field in work.fields.fields.values():
        lacks = field.rule.choices and field.value is None and not field.skipped_by_when
        if lacks and (not field.source_empty or work.fields.block.is_marked):
            text = f"{field.name} has no value that stands in its table; without it this is not written."
            raise MappingError(text, code="unknown_choice")
        if field.marker and isinstance(field.value, str) and field.marker not in field.value:
            raise MappingError(f"{field.name}: the id that marks the text was cut off.", code="marker_cut")


# -- writing ------------------------------------------------------------------------------------------------------------


def _hold_back(inner: Flow, family: Family, child: Work) -> None:
    """Let a new child wait while one from the other side is being made, or may have been: it may be the echo of that one.

    The echo of what is only added carries the other one's id. It settles a doubt that nobody is at work on any more.
    Raises RateLimitedError `claim_held`.
    """
    if child.link is None or child.link.etag:
        return
    marked = inner.source_type().only_added
    for origin in family.in_making:
        known = marked and len(origin.key) > LEAST_ID_CHARS  # a shorter id could stand in any text
        echoes = known and any(
            isinstance(text, str) and carries(text, origin.key) for text in child.source.fields.values()
        )
        if echoes and (origin.claim is None or origin.claim.until <= inner.now()):
            child.link = links.store(inner, origin.model_copy(update={"other_key": child.key, "claim": None}))
            child.end(Outcome.UNCHANGED)
            family.in_making.remove(origin)
            return
        if echoes or not known:
            raise RateLimitedError(
                "A record of the other side is being made here; this one waits until it is known which.",
                code="claim_held",
                retry_after_s=CLAIM_WAIT_S,
            )


def _spare_closed(flow: Flow, work: Work) -> None:
    """Leave a child alone whose parent takes no more changes."""
    if work.siblings is not None and work.siblings.closed:
        noun = flow.target.describe(flow.recipe.target.record.rpartition(".")[0]).noun
        work.end(Outcome.SKIPPED, "target_closed", f"The {noun} it belongs to is closed and takes no changes.")


def _settle_doubts(flow: Flow, families: Sequence[Family]) -> None:
    """Look for what may have been made for children that the source no longer has: found, it is stale like any other."""
    doubts: list[tuple[Family, Work]] = []
    for family in families:
        for link in (link for link in family.stale if not link.other_key):
            owner = f"{family.owner}/{link.key}"
            doubts.append((family, Work(ItemModel(key=link.key), link=link, owner=owner, siblings=family.siblings)))
        family.stale = [link for link in family.stale if link.other_key]
    works = [work for _, work in doubts]
    each(works, partial(_claim_doubt, flow))
    guarded(flow, [work for work in works if work.open], partial(read_siblings, anew=True))
    each(works, partial(_settle_doubt, flow))
    for family, work in doubts:
        if work.error is not None:
            family.errors.append((work.key, work.error))
        elif work.link is not None and work.link.other_key:
            family.stale.append(work.link)


def _claim_doubt(flow: Flow, work: Work) -> None:
    taken = links.claim_link(flow, work.key, work.link, work.owner, creating=False)
    work.link = taken.row
    if taken.create_by is not None:
        links.wait_for_create(flow, taken.create_by)


def _settle_doubt(flow: Flow, work: Work) -> None:
    """Link what was made, or forget the link when nothing was."""
    if work.link is None:
        return
    made = work.link.other_key or find_made(flow, siblings_of(work), work.link)
    if made:
        work.link = links.store(flow, work.link.model_copy(update={"other_key": made, "claim": None}))
    else:
        links.release(flow, work.link)


def _take_away(flow: Flow, families: Sequence[Family]) -> None:
    """Remove what the source no longer has, of what we linked; a link whose target another child took over just goes."""
    going: list[tuple[Family, LinkRow, Write]] = []
    for family in families:
        for link in family.stale:
            key = links.target_key(flow, link)
            owner = family.siblings.owners.get(key)
            if owner is not None and owner != links.source_key(flow, link):
                links.release(flow, link)
            elif family.mirrored and (claimed := _claim_removal(flow, family, link)) is not None:
                going.append((family, claimed, Write(key, None, parent=family.siblings.parent)))
    if not going:
        return
    answers = flow.target.write_rows(flow.recipe.target.record, [write for _, _, write in going])
    for (family, link, write), answer in zip(going, answers, strict=True):
        if isinstance(answer, SyncError) and answer.code != "target_missing":
            links.release(flow, link, keep=True)
            family.errors.append((str(write.key), answer))
        else:
            forget_links(flow, link)
            links.release(flow, link)
            family.removed += 1


def _claim_removal(flow: Flow, family: Family, link: LinkRow) -> LinkRow | None:
    """Claim the link of a child that is to go; None when somebody else has worked it meanwhile."""
    try:
        taken = links.claim_link(flow, link.key, link, f"{family.owner}/{link.key}", creating=False)
    except RateLimitedError as exc:
        family.errors.append((links.target_key(flow, link), exc))
        return None
    if taken.changed:
        links.release(flow, taken.row, keep=True)
        return None
    return taken.row


# -- what became of them ------------------------------------------------------------------------------------------------


def _report(flow: Flow, run: RunRow, work: Work) -> None:
    """Add to a record's own outcome what became of its children."""
    counts: dict[str, Counter[str]] = {}
    failures: list[tuple[str, Exception]] = []
    warnings: list[tuple[str, str, str]] = []
    for block, family in zip(flow.recipe.block.children, work.families or (), strict=True):
        counted = counts.setdefault(block.record, Counter())
        counted["removed"] += len(family.stale) if run.preview and family.mirrored else family.removed
        failures += [(f"{block.record} {key}", error) for key, error in family.errors]
        for child in family.works:
            name = f"{block.record} {child.key}"
            if isinstance(child.error, MappingError):
                warnings.append((child.error.code, block.record, f"{name}: {child.error.message}"))
                continue
            if child.error is not None:
                failures.append((f"{name}: {child.failed_child}" if child.failed_child else name, child.error))
            elif child.outcome in WRITTEN:
                counted[child.outcome.value] += 1
            elif child.reason == "target_closed":
                warnings.append((child.reason, block.record, f"{name}: {child.message}"))
            warnings += [(code, block.record, f"{name}: {text}") for code, text in outcomes.warnings_of(child)]
    work.notes = {
        record: ", ".join(f"{number} {what}" for what, number in sorted(counted.items()) if number)
        for record, counted in counts.items()
        if counted.total()
    }
    work.child_warnings = _told(warnings)
    if work.notes and work.outcome is Outcome.UNCHANGED:
        work.outcome = Outcome.UPDATED
    if failures:
        work.failed_child, work.error = min(failures, key=lambda failure: isinstance(failure[1], FINAL))
        work.outcome = None


def _told(warnings: Sequence[tuple[str, str, str]]) -> list[tuple[str, str]]:
    """Return the warnings to be told: of those of one kind the first, and how many more there are."""
    told: list[tuple[str, str]] = []
    kinds: dict[tuple[str, str], list[str]] = {}
    for code, record, text in warnings:
        kinds.setdefault((code, record), []).append(text)
    for (code, record), texts in kinds.items():
        told += [(code, text) for text in texts[:MOST_TOLD]]
        if len(texts) > MOST_TOLD:
            told.append((code, f"{record}: {len(texts) - MOST_TOLD} more of these."))
    return told
