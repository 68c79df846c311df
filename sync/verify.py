"""Verifying a window: every record of the source against its target, field by field; nothing is written.

A verification is a run like any other, listed and mailed the same way, so its reads are its own. Its failures name what
is missing, doubled, behind, refers to something that is gone, or was changed in the target after we last wrote it. What a
run would skip is skipped here, for the same reason.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

from shared.clients.system import FieldKind, Key, Row
from shared.errors import MappingError
from shared.state.rows import Outcome, RunRow
from sync import links
from sync.children import kinds, look_at
from sync.decide import NOT_OURS, NOT_SHOWN, Action, agreed_name, comparable, search_key
from sync.flow import Flow
from sync.items import decide_work, guarded, load_links, map_work, prepare, read_records, read_targets
from sync.siblings import read_siblings, siblings_of
from sync.work import Family, Work, each


def verify(flow: Flow, run: RunRow, works: Sequence[Work]) -> None:
    """Compare a batch of records with their targets, a few calls for the lot."""
    read_records(flow, works)
    each(works, lambda work: map_work(flow, work))
    load_links(flow, run, works)
    each(works, _check_scope)
    linked = [work for work in works if work.open and work.linked_key]
    _check_unlinked(flow, run, [work for work in works if work.open and not work.linked_key])
    guarded(flow, linked, read_targets)
    guarded(flow, [work for work in linked if work.open], lambda flow, rest: _check_targets(flow, run, rest))
    _check_children(flow, run, works)


def _check_scope(work: Work) -> None:
    if not work.in_scope:
        work.end(Outcome.SKIPPED, "not_in_scope", "The record does not meet the recipe's condition.")


def _check_unlinked(flow: Flow, run: RunRow, works: Sequence[Work]) -> None:
    """Decide about records without a target as a preview does: what a run would skip or fail keeps the run's reason."""
    if not works:
        return
    prepare(flow, run, works, create_references=False)  # a verification is a preview
    for work in works:
        if work.error is None and work.outcome is not Outcome.SKIPPED:
            text = f"The {flow.source_type().noun} has no {flow.target_type().noun} yet."
            work.end(Outcome.FAILED, "not_synced", text)


def _check_targets(flow: Flow, run: RunRow, works: list[Work]) -> None:
    """Compare targets that are there, and end each work with all that differs, the gravest first."""
    doubled, dangling = _find_doubles(flow, works), _find_dangling(flow, works)
    for work in works:
        altered, behind = _compare(flow, run, work)
        skipped = work.decided.action is Action.SKIP
        found = {
            "target_doubled": doubled.get(id(work), ""),
            "reference_missing": _named("Refers to a record that is gone or hidden", dangling[id(work)]),
            "target_behind": _named("Changed in the source and not written yet", [] if skipped else behind),
            "target_altered": _named("Changed in the target since we wrote it", altered),
        }
        differences = {reason: text for reason, text in found.items() if text}
        if differences:
            work.end(Outcome.FAILED, next(iter(differences)), " ".join(differences.values()))
        elif skipped:
            work.end(Outcome.SKIPPED, work.decided.code, work.decided.reason)
        else:
            work.end(Outcome.UNCHANGED)


def _check_children(flow: Flow, run: RunRow, works: Sequence[Work]) -> None:
    """Compare the children of records that are linked, and add what differs to the records' own ends."""
    kept = [work for work in works if work.error is None and work.in_scope and work.linked_key]
    look_at(flow, run, kept)
    for inner, families in kinds(flow, kept):
        guarded(inner, [child for family in families for child in family.works if child.open], _read_children)
        _check_children(inner, run, [child for family in families for child in family.works if child.target])
        for work, family in zip(kept, families, strict=True):
            _add_children(inner, run, work, family)


def _read_children(flow: Flow, works: list[Work]) -> None:
    read_siblings(flow, works)
    for work in works:
        work.target = (siblings_of(work).rows or {}).get(links.target_key(flow, work.link)) if work.link else None


def _add_children(flow: Flow, run: RunRow, work: Work, family: Family) -> None:
    there = [child for child in family.works if child.error is None]
    read = [child for child in there if child.target]
    marked = flow.recipe.block.is_marked  # its text is not compared: its system may have rewritten it
    closed = work.target is not None and work.target.closed  # it takes no new ones
    counts = {
        "not written yet": sum(1 for child in there if not (child.linked_key or closed)),
        "not taken away yet": len(family.stale) if family.mirrored else 0,
        "gone in the target": sum(1 for child in there if child.linked_key and not child.target),
        "different": sum(1 for child in read if child.outcome or not (marked or not any(_compare(flow, run, child)))),
    }
    said = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    broken = next(
        (child.error for child in family.works if child.error and not isinstance(child.error, MappingError)), None
    )
    if broken is not None:
        work.error, work.outcome = broken, None
    elif said:
        told = work.reason if work.outcome is Outcome.FAILED else ""
        reason = told or ("target_behind" if not any([*counts.values()][2:]) else "target_altered")
        name = flow.recipe.block.record
        work.end(Outcome.FAILED, reason, f"{work.message if told else ''} {name}: {said}.".strip())


def _named(text: str, fields: Sequence[str]) -> str:
    return f"{text}: {', '.join(fields)}." if fields else ""


def _find_doubles(flow: Flow, works: Sequence[Work]) -> dict[int, str]:
    """Ask for everything that carries the first match rule's value: more than the one target is a double."""
    names = flow.recipe.block.first_match
    keys: dict[int, Key] = {}
    for work in works:
        values = tuple(work.fields.fields[name].value for name in names)
        if values and all(comparable(value) is not None for value in values):
            keys[id(work)] = values  # type: ignore[assignment]  # match fields hold scalars
    if not keys:
        return {}
    rows = flow.target.fetch_rows(
        flow.recipe.target.record, frozenset(names), names, list(dict.fromkeys(keys.values()))
    )
    found = Counter(_value_of(row, names) for row in rows)
    counts = {which: found[tuple(search_key(value) for value in values)] for which, values in keys.items()}
    said = f"{flow.target_type().noun}s carry this record's {' and '.join(names)}: one is too many."
    return {which: f"{count} {said}" for which, count in counts.items() if count > 1}


def _value_of(row: Row, names: Sequence[str]) -> tuple[object, ...]:
    return tuple(search_key(row.fields.get(name)) for name in names)


def _find_dangling(flow: Flow, works: Sequence[Work]) -> dict[int, list[str]]:
    """Ask for the records that fields with a `find` refer to, one question per kind; return the fields whose record is gone."""
    asked: dict[str, dict[str, list[tuple[Work, str]]]] = defaultdict(lambda: defaultdict(list))
    for name, rule in flow.recipe.block.fields.items():
        for work in works if rule.find else ():
            key = work.target.fields.get(name) if work.target else None
            if rule.find and isinstance(key, str) and _agreed(flow, work, name):
                asked[rule.find.record][key].append((work, name))
    gone: dict[int, list[str]] = defaultdict(list)
    for record, by_key in asked.items():
        there = {row.key for row in flow.target.fetch_rows(record, frozenset(), (), [(key,) for key in by_key])}
        for key in by_key.keys() - there:
            for work, name in by_key[key]:
                gone[id(work)].append(name)
    return gone


def _agreed(flow: Flow, work: Work, name: str) -> str:
    """Return the digest of what both sides agreed on for a field; "" where we never wrote it, or never saw it taken."""
    stored = work.link.agreed.get(agreed_name(flow.target_name, name), "") if work.link else ""
    return "" if stored.startswith(NOT_SHOWN) else stored.lstrip(NOT_OURS)


def _compare(flow: Flow, run: RunRow, work: Work) -> tuple[list[str], list[str]]:
    """Return the fields that differ from what both sides agreed on, and those that a run would write now."""
    if work.target is None:
        raise MappingError("The target was not read.")
    decide_work(flow, run, work)
    behind, altered = list(work.decided.writes), []
    for name in work.fields.fields.keys() & work.target.fields.keys() - set(behind):
        digest, kind = _agreed(flow, work, name), flow.target_type().fields.get(name)
        kept = kind is None or kind.kind is not FieldKind.APPEND  # a journal is never equal to its last entry
        if digest and kept and not flow.digests.matches(comparable(work.target.fields[name]), digest):
            altered.append(name)
    return sorted(altered), behind
