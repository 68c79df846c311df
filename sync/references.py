"""The `find` blocks of a batch: the records that fields refer to, looked up together and created once where they may be.

An answer is a key, or none with the warnings that say why. One usable hit is used; several are never guessed between;
a closed one (an inactive user) is neither used nor made again.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from shared.clients.system import Key, Row, Scalar, Value, Write
from shared.errors import EXISTS_ALREADY, AmbiguousWriteError, ConfigError, MappingError, StateError, SyncError
from shared.state.rows import IdentityRow, LinkRow, TargetRow
from sync import links
from sync.decide import asked_values, search_key
from sync.flow import Flow, pair_name
from sync.mapping import FieldWarning, Mapped, MappedField
from sync.matching import look_up
from sync.recipe import Block, Find, MatchRule

NAMED = ("group",)  # whose names are no person's, and may stand in results and mails
NAME_CHARS = 80
HIDDEN_FOR = timedelta(days=1)  # how long "exists but is not shown" is believed before it is tried again


@dataclasses.dataclass(frozen=True)
class Reference:
    """What a `find` came to."""

    key: str | None = None
    warnings: tuple[FieldWarning, ...] = ()
    missing: str = ""  # digest of the value that a record would have to be made for; nothing was made
    created: dict[str, str] | None = None  # {record, key, url} of the record that was made

    def dump(self) -> dict[str, Any]:
        """Return the answer as JSON, for a message."""
        warnings = [dataclasses.asdict(warning) for warning in self.warnings]
        return {"key": self.key, "warnings": warnings, "created": self.created}

    @classmethod
    def load(cls, data: Mapping[str, Any]) -> "Reference":
        """Read an answer from a message."""
        return cls(data["key"], tuple(FieldWarning(**entry) for entry in data["warnings"]), "", data["created"])


@dataclasses.dataclass(frozen=True)
class Ask:
    """A field that asks, on behalf of the message that owns the claims."""

    field: MappedField
    owner: str

    @property
    def inputs(self) -> Mapped:
        """Return what is looked up."""
        if self.field.find_inputs is None:
            raise ValueError(f"{self.field.name} asks for nothing")
        return self.field.find_inputs


def resolve(flow: Flow, find: Find, asks: Sequence[Ask], *, create: bool) -> list[Reference | SyncError]:
    """Answer the questions of one field's `find` block, equal questions once.

    With `create` False nothing is written, and what would be made comes back as `missing`. Raises RemoteError when the
    target cannot be asked at all.
    """
    groups: dict[Any, list[int]] = defaultdict(list)
    for index, ask in enumerate(asks):
        groups[(ask.inputs.block.write, *map(str, asked_values(ask.inputs)))].append(index)
    firsts = [asks[members[0]] for members in groups.values()]
    answers: list[Reference | SyncError | None] = [None] * len(asks)
    for ask, found, members in zip(firsts, _find(flow, find, firsts), groups.values(), strict=True):
        answer = found or _make(flow, find, ask, create=create)
        for member in members:
            answers[member] = answer
    return [_finish(flow, find, ask, answer) for ask, answer in zip(asks, answers, strict=True)]


def _find(flow: Flow, find: Block, asks: Sequence[Ask]) -> list[Reference | SyncError | None]:
    """Look every ask up by the block's rules; None where nothing was found."""
    answers: list[Reference | SyncError | None] = [None] * len(asks)
    for rule in find.match:
        waiting = [index for index, answer in enumerate(answers) if answer is None]
        if rule.link:
            for index in waiting:
                answers[index] = _by_link(flow, find, asks[index])
            continue
        keys = {index: key for index in waiting if (key := _key(rule, asks[index].inputs)) is not None}
        for index, rows in _rows(flow, find.record, rule, keys).items():
            name = asks[index].field.name
            answers[index] = rows if isinstance(rows, SyncError) else _judge(flow, find.record, rule, rows, name)
    return answers


def _key(rule: MatchRule, inputs: Mapped) -> Key | None:
    """Return the values that a rule looks for; None where one is empty or the block does not map it."""
    if any(name not in inputs.fields for name in rule.fields):
        return None
    values: Any = inputs.match_values(rule)
    return values  # type: ignore[no-any-return]  # match fields hold scalars


def _rows(flow: Flow, record: str, rule: MatchRule, keys: Mapping[int, Key]) -> dict[int, list[Row] | SyncError]:
    """Fetch the rows of many keys together."""
    paths = frozenset((*rule.fields, *rule.when))
    hits, refused = look_up(flow.target, record, paths, rule, {index: [key] for index, key in keys.items()})
    return {**hits, **refused}


def _judge(flow: Flow, record: str, rule: MatchRule, rows: Sequence[Row], name: str) -> Reference | None:
    noun, by = flow.target.describe(record).noun, " and ".join(rule.fields)
    usable = [row for row in rows if not row.closed]
    if len(usable) == 1:
        return Reference(usable[0].key)
    if usable:
        text = f"{name}: several {noun}s have this {by}; none is taken."
        return Reference(warnings=(FieldWarning(f"{noun}_ambiguous", text),))
    return _inactive(noun, name, f"the {noun} with this {by} is inactive.") if rows else None


def _inactive(noun: str, name: str, text: str) -> Reference:
    return Reference(warnings=(FieldWarning(f"{noun}_inactive", f"{name}: {text}"),))


def _by_link(flow: Flow, find: Block, ask: Ask) -> Reference | None:
    """Find the record that the referenced source record is linked with, by whichever recipe made the link."""
    source_key = ask.inputs.key
    if source_key is None:
        return None
    target = f"{flow.recipe.target.connection}.{find.record}"
    for kind in kinds_of(flow, ask.field):
        source = f"{flow.recipe.source.connection}.{kind}"
        pair = pair_name(source, target)
        link = LinkRow(pair=pair, side=source, key=str(source_key))
        stored = flow.tables.get(LinkRow, link.partition_key, link.row_key)
        if stored is not None and stored.other_key:
            return Reference(stored.other_key)
        back = TargetRow(pair=pair, side=source, key=str(source_key), link_side="", link_key="")
        pointer = flow.tables.get(TargetRow, back.partition_key, back.row_key)
        if pointer is not None:
            return Reference(pointer.link_key)
    return None


def kinds_of(flow: Flow, field: MappedField) -> tuple[str, ...]:
    """Return the record types that a field's reference may point to; `.` is the recipe's own record."""
    if "." in field.rule.from_:
        return (flow.recipe.source.record,)
    known = [flow.source_type().fields.get(path) for path in field.rule.from_]
    return tuple(kind for found in known if found for kind in found.refers_to)


def _make(flow: Flow, find: Find, ask: Ask, *, create: bool) -> Reference | SyncError | None:
    """Make a record that nobody has, under a claim on its first match rule's value; None where that is not allowed."""
    rule = next((rule for rule in find.match if not rule.link), None)
    key = _key(rule, ask.inputs) if rule else None
    if not ask.inputs.block.write.may_create or rule is None or key is None:
        return None
    record = f"{flow.recipe.target.connection}.{find.record}"
    blank = links.identity(flow, record, rule.fields, [search_key(value) for value in key])
    if not create:
        return Reference(missing=blank.digest)
    try:
        return _create(flow, find, ask, rule, key, blank)
    except (StateError, ConfigError):
        raise  # storage is at fault, not the record: the message comes back
    except SyncError as exc:
        return exc


def _create(flow: Flow, find: Find, ask: Ask, rule: MatchRule, key: Key, blank: IdentityRow) -> Reference:
    name, noun = ask.field.name, flow.target.describe(find.record).noun
    hidden = _inactive(noun, name, f"the {noun} exists but is not shown to us; it is probably inactive.")
    taken = links.claim_identity(flow, blank, ask.owner)
    row = taken.row
    if row.refused_at is not None and flow.now() - row.refused_at < HIDDEN_FOR:
        links.release(flow, row, keep=True)
        return hidden
    if taken.create_by is not None:
        links.wait_for_create(flow, taken.create_by)
    if taken.changed or taken.create_by is not None:  # somebody made it, or may have: look before making it again
        found = _rows(flow, find.record, rule, {0: key})[0]
        if isinstance(found, SyncError):
            raise found
        judged = _judge(flow, find.record, rule, found, name)
        if judged is not None:
            links.store(flow, row.model_copy(update={"claim": None, "key": judged.key or ""}))
            return judged
        row = links.renew(flow, row, ask.owner)
    answer = flow.target.write_rows(find.record, [Write(None, _new_fields(ask.inputs), _match(rule, key))])[0]
    if isinstance(answer, AmbiguousWriteError):
        if taken.create_by is None or answer.code != EXISTS_ALREADY:
            links.leave_in_doubt(flow, row)  # whoever asks next looks it up; this message may be done with it
            raise answer
        links.store(flow, row.model_copy(update={"claim": None, "refused_at": flow.now()}))
        return hidden
    if isinstance(answer, SyncError):
        links.release(flow, row)
        raise answer
    links.store(flow, row.model_copy(update={"claim": None, "key": answer.key, "refused_at": None}))
    url = flow.target.url(find.record, answer.key)
    return Reference(answer.key, created={"record": find.record, "key": answer.key, "url": url})


def _nobody(find: Find, ask: Ask, noun: str) -> str:
    """Say that nothing was found; by which name only where that is no person's."""
    key = next((_key(rule, ask.inputs) for rule in find.match if rule.fields == ("name",)), None)
    if noun not in NAMED or key is None:
        return f"no {noun} has the value that the source names"
    name = str(key[0])
    return f'no {noun} is called "{name if len(name) <= NAME_CHARS else name[: NAME_CHARS - 1] + "…"}"'


def _match(rule: MatchRule, key: Key) -> dict[str, Scalar]:
    return dict(zip(rule.fields, key, strict=True))


def _new_fields(inputs: Mapped) -> dict[str, Value]:
    return {name: field.value for name, field in inputs.fields.items() if not field.empty and not field.skipped_by_when}


def _finish(flow: Flow, find: Find, ask: Ask, answer: Reference | SyncError | None) -> Reference | SyncError:
    """Apply the field's default and the block's `required` to what was, or was not, found."""
    if isinstance(answer, SyncError) or (answer is not None and (answer.key or answer.missing)):
        return answer
    name, noun = ask.field.name, flow.target.describe(find.record).noun
    if answer is None:
        text = f"{name}: {_nobody(find, ask, noun)}."
        answer = Reference(warnings=(FieldWarning(f"{noun}_not_found", text),))
    if ask.field.default_inputs is not None:
        asked = Ask(dataclasses.replace(ask.field, find_inputs=ask.field.default_inputs), ask.owner)
        stand_in = _find(flow, find, [asked])[0]
        if isinstance(stand_in, Reference) and stand_in.key:
            warning = FieldWarning("default_used", f"{name}: the recipe's default stands in.")
            return Reference(stand_in.key, (*answer.warnings, warning))
        text = f"{name}: the recipe's default was not found either."
        answer = Reference(warnings=(*answer.warnings, FieldWarning("default_not_found", text)))
    if find.reason:
        text = answer.warnings[0].text if answer.warnings else f"{name}: there is nothing to be found by."
        code = answer.warnings[0].code if find.required is True and answer.warnings else find.reason
        return MappingError(f"{text} This recipe needs it.", code=code)
    return answer
