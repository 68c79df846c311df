"""What to write, and why: the one pure decision behind a run, a preview, `plan`, `verify` and `explain`.

A decision compares three things: what the mapping says now, what both sides held when they last agreed (the link's
digests), and, where a rule asks for it, what the target holds. Nothing here calls anything.
"""

import dataclasses
import unicodedata
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum

from shared.clients.system import FieldKind, RecordType, Row, Value
from shared.digests import Digests
from shared.state.rows import LinkRow
from sync.mapping import Mapped, MappedField
from sync.recipe import Block, FieldWrite, WriteMode

NOT_OURS = "!"  # before a digest: the target held this by itself, we never filled it
NOT_SHOWN = "?"  # before a digest: we sent this and the answer did not show it


class Action(StrEnum):
    """What is to be done with the target record."""

    CREATE = "create"
    UPDATE = "update"
    NOTHING = "nothing"
    SKIP = "skip"


@dataclasses.dataclass(frozen=True)
class FieldDecision:
    """One field: whether it is written, with what, and the reason in words."""

    name: str
    write: bool
    reason: str
    value: Value = None


@dataclasses.dataclass(frozen=True)
class Decision:
    """What is to be done with one record."""

    action: Action
    fields: tuple[FieldDecision, ...] = ()
    code: str = ""  # reason code of a SKIP
    reason: str = ""

    @property
    def writes(self) -> dict[str, Value]:
        """Return the fields to write."""
        return {field.name: field.value for field in self.fields if field.write}

    @property
    def reasons(self) -> dict[str, str]:
        """Return the reason of each field that is written, for results and previews."""
        return {field.name: field.reason for field in self.fields if field.write}


def comparable(value: Value) -> Value:
    """Return a value in the form in which two systems' spellings of the same thing are equal.

    Numbers and booleans compare as text because systems disagree on types ("3", 3); text ignores the Unicode form,
    the kind of line ends and white space at the end of lines; times compare to the second.
    """
    if value is None or value == "":
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(int(value)) if float(value).is_integer() else str(value)
    if isinstance(value, datetime):
        return value.replace(microsecond=0)
    if isinstance(value, str):
        lines = unicodedata.normalize("NFC", value).replace("\r\n", "\n").replace("\r", "\n").split("\n")
        return "\n".join(line.rstrip() for line in lines).strip() or None
    if isinstance(value, list):
        return [comparable(entry) for entry in value]
    return {name: comparable(entry) for name, entry in value.items()}


def same_value(one: Value, other: Value) -> bool:
    """Tell whether two systems' values are the same thing."""
    return comparable(one) == comparable(other)


def search_key(value: Value) -> Value:
    """Return a value as match rules compare it: like `comparable`, and without regard to case."""
    plain = comparable(value)
    return plain.casefold() if isinstance(plain, str) else plain


def agreed_name(record: str, field: str) -> str:
    """Return a field's name among a link's digests."""
    return f"{record}.{field}"


def is_stale(link: LinkRow, source_record: str, row: Row) -> bool:
    """Tell whether a newer version of the source than this one has already been worked."""
    seen = link.versions.get(source_record, "")
    return bool(seen and row.version and row.version < seen)


def question_of(field: MappedField) -> Value:
    """Return what a field's look-up depends on: while it stays equal, the answer need not be asked again."""
    return None if field.find_inputs is None else [*asked_values(field.find_inputs), comparable(field.rule.default)]


def asked_values(inputs: Mapped) -> list[Value]:
    """Return the values that decide a look-up: those of its match fields, and all where it also keeps the record in step."""
    block = inputs.block
    names = dict.fromkeys(name for rule in block.match if not rule.link for name in rule.fields)
    follows_link = any(rule.link for rule in block.match)
    if block.write.may_change:
        names, follows_link = dict.fromkeys(inputs.fields), True
    values = [search_key(inputs.fields[name].value) for name in names if name in inputs.fields]
    return [inputs.key, *values] if follows_link else values


def wants_find(mapped: Mapped, link: LinkRow | None, target_record: str, digests: Digests) -> list[MappedField]:
    """Return the fields whose `find` has to be asked: all of a new record, of a linked one those whose question changed."""
    asked = [field for field in mapped.fields.values() if field.needs_find and not field.resolved]
    if link is None or not link.other_key:
        return asked
    return [field for field in asked if not _question_is_old(field, link, target_record, digests)]


def _question_is_old(field: MappedField, link: LinkRow, target_record: str, digests: Digests) -> bool:
    stored = link.inputs.get(agreed_name(target_record, field.name))
    return stored is not None and digests.matches(question_of(field), stored)


def decide(
    block: Block,
    mapped: Mapped,
    *,
    record: RecordType,
    target_name: str,
    source: Row,
    link: LinkRow | None,
    target: Row | None,
    digests: Digests,
    first_run: bool = False,
    append_again: bool = False,
) -> Decision:
    """Decide about one record.

    `target` is the linked or matched record; with a link and without `target` the decision is preliminary: it says
    which fields changed since we last wrote them, and has to be made again with the target when it is an UPDATE.
    `target_name` is "connection.record", under which the link keeps its digests. With `append_again` a field that only
    appends is due even when the same text was appended before (a case is closed for the second time).
    """
    linked = link is not None and bool(link.other_key)
    if not linked and target is None:
        return _decide_create(block, mapped)
    if block.write in (WriteMode.CREATE, WriteMode.NEVER):
        return Decision(Action.NOTHING, reason="exists; this block never changes a record")
    fields = tuple(
        FieldDecision(field.name, True, "the source record is over", field.value)
        if append_again and appends(record, field.name) and not field.empty and not field.skipped_by_when
        else _decide_field(field, record, target_name, source, link if linked else None, target, digests, first_run)
        for field in mapped.fields.values()
    )
    if not any(field.write for field in fields):
        return Decision(Action.NOTHING, fields, reason="nothing changed since we last wrote it")
    if target is not None and target.closed:
        return Decision(Action.SKIP, fields, "target_closed", f"The {record.noun} is closed and takes no changes.")
    return Decision(Action.UPDATE, fields)


def _decide_create(block: Block, mapped: Mapped) -> Decision:
    if block.write in (WriteMode.UPDATE, WriteMode.NEVER):
        return Decision(
            Action.SKIP, (), "target_not_found", "Nothing to update: no record matches and this only updates."
        )
    fields = []
    for field in mapped.fields.values():
        if field.skipped_by_when:
            fields.append(FieldDecision(field.name, False, "its condition does not hold"))
        elif field.empty:
            fields.append(FieldDecision(field.name, False, "empty in the source"))
        else:
            fields.append(FieldDecision(field.name, True, "new record", field.value))
    return Decision(Action.CREATE, tuple(fields))


def _decide_field(
    field: MappedField,
    record: RecordType,
    target_name: str,
    source: Row,
    link: LinkRow | None,
    target: Row | None,
    digests: Digests,
    first_run: bool,
) -> FieldDecision:
    def keep(reason: str) -> FieldDecision:
        return FieldDecision(field.name, False, reason)

    def write(reason: str) -> FieldDecision:
        return FieldDecision(field.name, True, reason, field.value)

    mode = field.rule.write
    if field.skipped_by_when:
        return keep("its condition does not hold")
    if mode is FieldWrite.ON_CREATE:
        return keep("written only when the record is created")
    stored = link.agreed.get(agreed_name(target_name, field.name)) if link else None
    digest = (stored or "").lstrip(NOT_OURS + NOT_SHOWN)
    if link and field.needs_find and _question_is_old(field, link, target_name, digests):
        return keep("the reference is asked for as before")
    if stored is not None and any(digests.matches(comparable(value), digest) for value in field.accepted):
        return keep("unchanged since we last wrote it")
    if field.empty and not field.source_empty:
        return keep("no usable value; the target keeps its own")
    if field.empty and (not digest or (stored or "").startswith(NOT_OURS) or digests.matches(None, digest)):
        return keep("empty in the source, and not filled by us")
    if appends(record, field.name):
        return write("changed in the source")
    if target is None:
        return write("changed since we last wrote it")
    held = target.fields.get(field.name)
    if any(same_value(value, held) for value in field.accepted):
        return keep("the target already holds it")
    target_changed = bool(digest) and not digests.matches(comparable(held), digest)
    if mode is FieldWrite.IF_EMPTY and not first_run and comparable(held) is not None:
        return keep("the target has a value of its own")
    if mode is FieldWrite.UNLESS_CHANGED and target_changed:
        return keep("the target was changed since we last agreed")
    if mode is FieldWrite.NEWEST and target_changed and _newer(target.changed_at, source.changed_at):
        return keep("the target's change is newer")
    if field.empty:
        return write("emptied in the source, and filled by us before")
    return write("differs from the target" if link is None else "changed in the source")


def appends(record: RecordType, name: str) -> bool:
    """Tell whether writing a field adds an entry and replaces nothing."""
    known = record.fields.get(name)
    return known is not None and known.kind is FieldKind.APPEND


def _newer(one: datetime | None, other: datetime | None) -> bool:
    return one is not None and other is not None and one > other


def agreement(
    decision: Decision,
    mapped: Mapped,
    target_name: str,
    link: LinkRow | None,
    target: Row | None,
    shown: Mapping[str, Value] | None,
    digests: Digests,
) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Return what a link remembers after this decision was carried out: agreed digests, inputs, and fields not taken.

    `shown` holds the target's fields as the answer to the write showed them (None: the answer shows nothing). Digests
    under the older of two keys are made anew under the current one where the value is at hand.
    """
    agreed = dict(link.agreed) if link else {}
    inputs = dict(link.inputs) if link else {}
    lost: list[str] = []
    refused = decision.writes if decision.action is Action.SKIP else {}
    written = {} if refused else decision.writes
    for field in mapped.fields.values():
        name = agreed_name(target_name, field.name)
        if field.skipped_by_when:
            continue
        if field.needs_find and field.name not in refused:
            inputs[name] = digests.of(question_of(field))
        if field.name in written:
            wanted = written[field.name]
            taken = shown is None or field.name not in shown or same_value(shown[field.name], wanted)
            if not taken and any(same_value(shown[field.name], value) for value in field.accepted):  # type: ignore[index]
                taken = True
            agreed[name] = ("" if taken else NOT_SHOWN) + digests.of(comparable(wanted))
            if not taken:
                lost.append(field.name)
        elif target is not None and name not in agreed and field.name in target.fields:
            held = target.fields[field.name]
            if comparable(held) is not None and any(same_value(held, value) for value in field.accepted):
                agreed[name] = NOT_OURS + digests.of(comparable(held))
        elif name in agreed:
            agreed[name] = _agreed_now(agreed[name], field, target, digests)
    return agreed, inputs, lost


def _agreed_now(stored: str, field: MappedField, target: Row | None, digests: Digests) -> str:
    """Return the digest of a field that was not written: a new one where the target came to hold the source's value."""
    digest = stored.lstrip(NOT_OURS + NOT_SHOWN)
    sign = stored.removesuffix(digest)
    shown = target is not None and field.name in target.fields
    held = target.fields.get(field.name) if target is not None else None
    known = shown and digests.matches(comparable(held), digest)
    if shown and not known and any(same_value(held, value) for value in field.accepted):
        return sign.replace(NOT_SHOWN, "") + digests.of(comparable(held))
    if digests.is_current(digest):
        return stored
    values = [comparable(value) for value in (held, *field.accepted, None)]
    return next((sign + digests.of(value) for value in values if digests.matches(value, digest)), stored)


def wants_rekeying(link: LinkRow, digests: Digests) -> bool:
    """Tell whether a link holds digests under the older of two keys, which would be forgotten with that key."""
    return not all(
        digests.is_current(each.lstrip(NOT_OURS + NOT_SHOWN)) for each in (*link.agreed.values(), *link.inputs.values())
    )
