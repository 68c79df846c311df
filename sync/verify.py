"""Verifying a window: every record of the source against its target, field by field; nothing is written.

A verification is a run like any other, listed and mailed the same way. Its failures name what is missing, doubled,
behind, or was changed in the target after we last wrote it.
"""

from collections import Counter
from collections.abc import Sequence

from shared.clients.system import Key, Row
from shared.errors import MappingError
from shared.state.rows import Outcome, RunRow
from sync.decide import NOT_OURS, NOT_SHOWN, agreed_name, comparable, search_key
from sync.flow import Flow
from sync.items import guarded, load_links, map_work, read_records, read_targets
from sync.work import Work, each


def verify(flow: Flow, run: RunRow, works: Sequence[Work]) -> None:
    """Compare a batch of records with their targets, a few calls for the lot."""
    read_records(flow, works)
    each(works, lambda work: map_work(flow, work))
    load_links(flow, run, works)
    each(works, lambda work: _check_link(flow, work))
    guarded(flow, [work for work in works if work.open], read_targets)
    guarded(flow, [work for work in works if work.open], _check_doubles)
    each(works, lambda work: _check_fields(flow, work))


def _check_link(flow: Flow, work: Work) -> None:
    linked = work.link is not None and bool(work.link.other_key)
    if not work.in_scope:
        work.end(Outcome.SKIPPED, "not_in_scope", "The record does not meet the recipe's condition.")
    elif not linked:
        work.end(Outcome.FAILED, "not_synced", f"The {flow.source_type().noun} has no {flow.target_type().noun} yet.")


def _check_doubles(flow: Flow, works: list[Work]) -> None:
    """Ask for everything that carries the first match rule's value: more than the one target is a double."""
    names = flow.recipe.block.first_match
    keys: dict[int, Key] = {}
    for work in works:
        values = tuple(work.fields.fields[name].value for name in names)
        if values and all(comparable(value) is not None for value in values):
            keys[id(work)] = values  # type: ignore[assignment]  # match fields hold scalars
    if not keys:
        return
    rows = flow.target.fetch_rows(
        flow.recipe.target.record, frozenset(names), names, list(dict.fromkeys(keys.values()))
    )
    found = Counter(_value_of(row, names) for row in rows)
    for work in works:
        count = found[tuple(search_key(value) for value in keys[id(work)])] if id(work) in keys else 0
        if count > 1:
            noun = flow.target_type().noun
            text = f"{count} {noun}s carry this record's {' and '.join(names)}: one is too many."
            work.end(Outcome.FAILED, "target_doubled", text)


def _value_of(row: Row, names: Sequence[str]) -> tuple[object, ...]:
    return tuple(search_key(row.fields.get(name)) for name in names)


def _check_fields(flow: Flow, work: Work) -> None:
    """Compare what both sides agreed on with what the target holds, and with what the source says now."""
    link, target = work.link, work.target
    if link is None or target is None:
        raise MappingError("The link or its target was not read.")
    altered, behind = [], []
    for name, field in work.fields.fields.items():
        stored = link.agreed.get(agreed_name(flow.target_name, name))
        if stored is None or stored.startswith(NOT_SHOWN) or name not in target.fields:
            continue
        digest = stored.lstrip(NOT_OURS)
        if not field.needs_find and not any(flow.digests.matches(comparable(v), digest) for v in field.accepted):
            behind.append(name)
        elif not flow.digests.matches(comparable(target.fields[name]), digest):
            altered.append(name)
    if behind:
        work.end(Outcome.FAILED, "target_behind", f"Changed in the source and not written yet: {', '.join(behind)}.")
    elif altered:
        text = f"Changed in the target since we wrote it: {', '.join(altered)}."
        work.end(Outcome.FAILED, "target_altered", text)
    else:
        work.end(Outcome.UNCHANGED)
