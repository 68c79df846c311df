"""A record through a block's fields: what each target field should hold, and why. Pure; nothing is looked up here.

Texts of warnings and errors name fields and paths, never values: results and mails carry them.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Self

from shared.clients.system import Condition, FieldType, RecordType, Row, Test, Value
from shared.errors import MappingError
from sync.converters import apply_converters
from sync.fitting import WRONG_KIND, fit_type
from sync.placeholders import MARKER_PATH, Template, text_of
from sync.reasons import known_reason
from sync.recipe import RECORD_ITSELF, Block, FieldRule, Find, MatchRule, WriteMode, join_path

NO_TYPES: Mapping[str, RecordType] = MappingProxyType({})


@dataclasses.dataclass(frozen=True)
class FieldWarning:
    """Something that a person should know about a record that was worked all the same."""

    code: str
    text: str  # a sentence that names fields and paths, never a value of the record


@dataclasses.dataclass(frozen=True)
class MappedField:
    """What one target field should hold."""

    rule: FieldRule
    value: Value = None  # to be written; before `found`, a field with `find` holds the source's own reference here
    accepted: tuple[Value, ...] = ()  # what the target may hold and count as equal; `value` stands first
    source_empty: bool = False  # the source holds nothing, and no default stands in
    skipped_by_when: bool = False  # the field's `when` does not hold: leave the target's field alone
    find_inputs: "Mapped | None" = None  # what to look up; its own block says whether it may be created
    default_inputs: "Mapped | None" = None  # what to look up when that is not there; never created
    resolved: bool = False  # the look-up is done and `value` is its answer
    marker: str | None = None  # the part of the value that holds the source child's id, for records that are only added
    warnings: tuple[FieldWarning, ...] = ()

    @property
    def name(self) -> str:
        """The target's field."""
        return self.rule.name

    @property
    def needs_find(self) -> bool:
        """Whether the value is the answer of a look-up; stays true when that is done."""
        return self.find_inputs is not None

    @property
    def empty(self) -> bool:
        """Whether there is nothing to write: no value, and nothing left to look one up by."""
        return self.value is None and (self.resolved or not self.needs_find)

    def found(self, key: str | None, warnings: tuple[FieldWarning, ...] = ()) -> Self:
        """Return the field with the look-up's answer, None for none."""
        accepted: tuple[Value, ...] = (key,)
        return dataclasses.replace(
            self, value=key, accepted=accepted, resolved=True, warnings=(*self.warnings, *warnings)
        )


@dataclasses.dataclass(frozen=True)
class Mapped:
    """A record as a block maps it."""

    block: Block
    fields: Mapping[str, MappedField]  # by name, in the recipe's order; the skipped ones included
    key: str | None = None  # the source record's key; inside `find` the key of the record referred to

    @property
    def values(self) -> dict[str, Value]:
        """The values by field, without skipped fields."""
        return {name: field.value for name, field in self.fields.items() if not field.skipped_by_when}

    @property
    def warnings(self) -> tuple[FieldWarning, ...]:
        """The warnings of all fields, those of the look-ups' own fields included."""
        return tuple(
            warning
            for field in self.fields.values()
            for warning in (*field.warnings, *(field.find_inputs.warnings if field.find_inputs else ()))
        )

    def match_values(self, rule: MatchRule) -> tuple[Value, ...] | None:
        """Return the values that a match rule looks for, in its order; None if one is empty: it matches nothing."""
        values = tuple(self.values.get(name) for name in rule.fields)
        return values if values and all(value is not None for value in values) else None


@dataclasses.dataclass(frozen=True)
class _Scope:
    """A record, or the part of it that a reference leads to."""

    row: Row
    prefix: str = ""

    def read(self, path: str) -> Value:
        full = join_path(self.prefix, path)
        value = self.row.key if full == RECORD_ITSELF else self.row.fields.get(full)
        return None if value in ("", []) else value

    def at(self, path: str) -> "_Scope":
        return _Scope(self.row, join_path(self.prefix, path))


def map_record(
    block: Block,
    row: Row,
    target_type: RecordType | None = None,
    find_types: Mapping[str, RecordType] = NO_TYPES,
) -> Mapped:
    """Map a record through a block's fields.

    With the target's type, values are brought to its kinds and lengths; `find_types` (by record) does so for the blocks
    under `find`. Raises MappingError, whose code is the recipe's reason, when the record cannot be mapped as a whole.
    """
    return _map_block(block, _Scope(row), target_type, find_types)


def holds(condition: Condition, fields: Mapping[str, Value]) -> bool:
    """Say whether all lines of a condition hold on a record's fields. A list holds a value if one of its items does."""
    return all(_passes(test, fields.get(path)) for path, test in condition.items())


def child_rows(block: Block, row: Row) -> tuple[Row, ...]:
    """Return the source's children for a block under `children`, as rows of their own whose key is the child's id.

    A block without `from` has one child, made from the record itself, if its `when` holds.
    """
    if not block.from_:
        return (row,) if holds(block.when, row.fields) else ()
    children = row.fields.get(block.from_)
    rows = [child for child in children if isinstance(child, dict)] if isinstance(children, list) else []
    return tuple(Row(key=text_of(child[MARKER_PATH]), fields=child) for child in rows if holds(block.when, child))


def child_id(block: Block) -> str:
    """Return the id of a child that is made from the record itself: the constants of its first match rule."""
    rules = [block.fields[name] for name in block.first_match if name in block.fields and block.fields[name].constant]
    return " ".join(text_of(rule.value) for rule in rules if not isinstance(rule.value, Template)) or block.record


def same(left: Value, right: Value) -> bool:
    """Say whether two canonical values are equal to a reader: 3 is "3" and true is "true", but 1 is not true."""
    if isinstance(left, list | dict) or isinstance(right, list | dict):
        return left == right
    return text_of(left) == text_of(right)


def _passes(test: Test, value: Value) -> bool:
    held = value if isinstance(value, list) and value else [None if value == [] else value]
    return any(same(item, wanted) for item in held for wanted in test.any_of) != test.negated


def _map_block(
    block: Block, scope: _Scope, target_type: RecordType | None, find_types: Mapping[str, RecordType]
) -> Mapped:
    fields = {name: _map_field(rule, scope, target_type, find_types) for name, rule in block.fields.items()}
    return Mapped(block, fields, text_of(scope.read(RECORD_ITSELF)) or None)


def _map_field(
    rule: FieldRule, scope: _Scope, target_type: RecordType | None, find_types: Mapping[str, RecordType]
) -> MappedField:
    if not all(_passes(test, scope.read(path)) for path, test in rule.when.items()):
        return MappedField(rule, skipped_by_when=True)
    if rule.find:
        return _map_reference(rule, rule.find, scope, find_types)
    return _map_value(rule, scope, target_type.fields.get(rule.name) if target_type else None)


def _map_value(rule: FieldRule, scope: _Scope, field_type: FieldType | None) -> MappedField:
    """Read, convert, choose and fit a value; the default, then `required`, answer for one that is not there."""
    raw: Value = None
    codes: tuple[str, ...]
    try:
        raw = _first_value(rule, scope)
        accepted, codes = _usable_values(rule, raw, scope, field_type)
    except MappingError as exc:
        if exc.code == WRONG_KIND and rule.default is None:
            raise MappingError(f"{rule.name}: {exc.message}", code=exc.code) from exc
        accepted, codes = (), (exc.code,)
    nothing = raw is None or not rule.choices  # blanks, empty lines, markup without text: converted to nothing
    source_empty = nothing and not codes and accepted == (None,)
    if not accepted or source_empty:
        if rule.reason and (source_empty or rule.default is None):
            raise _required_error(rule, rule.reason, "is empty or cannot be used")
        default = fit_type(rule.default, field_type) if field_type and rule.default is not None else rule.default
        accepted = (default,)
    return MappedField(
        rule,
        value=accepted[0],
        accepted=accepted,
        source_empty=source_empty and accepted[0] is None,
        marker=rule.template.marker(scope.read) if rule.template else None,
        warnings=tuple(_warning(rule, code) for code in codes),
    )


def _usable_values(
    rule: FieldRule, raw: Value, scope: _Scope, field_type: FieldType | None
) -> tuple[tuple[Value, ...], tuple[str, ...]]:
    """Return what the target may hold, the value to write first, and the codes of warnings.

    Raises MappingError whose code says why the value cannot be used.
    """
    converted, codes = apply_converters(rule.convert, raw, scope.read)
    accepted: tuple[Value, ...] = (converted.value, *converted.also)
    if rule.choices:
        chosen = _choose(rule, converted.value)
        if chosen is None and converted.value is not None:
            raise MappingError("The value stands in no table.", code="unknown_choice")
        accepted = chosen or (None,)
    if field_type is None or accepted[0] is None:
        return accepted, codes
    accepted = tuple(fit_type(value, field_type) for value in accepted)
    return accepted, (*codes, *_misfits(rule, accepted[0], field_type))


def _map_reference(rule: FieldRule, find: Find, scope: _Scope, find_types: Mapping[str, RecordType]) -> MappedField:
    """Map the block that a reference is looked up by; what cannot be looked up leaves the field to its default."""
    default = _default_inputs(rule, find)
    path = next((path for path in rule.from_ if scope.read(path) is not None), None)
    if path is None and rule.reason:
        raise _required_error(rule, rule.reason, "is empty")
    if path is None:
        return MappedField(rule, source_empty=default is None, find_inputs=default)
    inside, key = scope.at(path), scope.read(path)
    if not all(_passes(test, inside.read(line)) for line, test in find.when.items()):
        return MappedField(rule, skipped_by_when=default is None, find_inputs=default)
    try:
        inputs = _map_block(find, inside, find_types.get(find.record), find_types)
        problem = _unsearchable(rule, find, inputs)
    except MappingError as exc:
        problem = FieldWarning(exc.code, f"{rule.name}: {exc.message}")
    if problem and find.reason:
        code = problem.code if find.required is True else find.reason
        raise MappingError(f"{problem.text} This recipe needs it.", code=code)
    if problem:
        return MappedField(rule, find_inputs=default, warnings=(problem,))
    return MappedField(rule, value=key, accepted=(key,), find_inputs=inputs, default_inputs=default)


def _unsearchable(rule: FieldRule, find: Find, inputs: Mapped) -> FieldWarning | None:
    """Say why a look-up cannot be asked: no match rule has all of its values."""
    if any(match.link or inputs.match_values(match) for match in find.match):
        return None
    wanted = find.first_match
    text = f"{rule.name} has no {' and '.join(wanted)} to be found by."
    return FieldWarning(f"{rule.name}_without_{'_'.join(wanted)}", text)


def _default_inputs(rule: FieldRule, find: Find) -> Mapped | None:
    """Return the look-up of a default: its text in the only field of the first match rule, never created."""
    if rule.default is None:
        return None
    name = find.first_match[0]
    field = MappedField(find.fields[name], value=rule.default, accepted=(rule.default,))
    looked_up = find.model_copy(update={"write": WriteMode.NEVER})
    return Mapped(looked_up, {name: field})


def _first_value(rule: FieldRule, scope: _Scope) -> Value:
    if isinstance(rule.value, Template):
        return rule.value.render(scope.read)
    if not rule.from_:
        return rule.value
    return next((value for value in map(scope.read, rule.from_) if value is not None), None)


def _choose(rule: FieldRule, value: Value) -> tuple[Value, ...] | None:
    """Return the right side of the first row that the value, or one of a list's items, stands in."""
    held = value if isinstance(value, list) else [value]
    return next((right for left, right in rule.choices if any(same(left, item) for item in held)), None)


def _misfits(rule: FieldRule, value: Value, field_type: FieldType) -> tuple[str, ...]:
    """Return the codes of what the target may not like about a value of the right kind."""
    choices = field_type.choices if not isinstance(value, list) else ()
    if choices and not any(same(value, choice) for choice in choices):
        if rule.default is not None:
            raise MappingError("The value is not a choice of the target's.", code="unknown_choice")
        return ("not_a_choice",)
    too_long = isinstance(value, str) and field_type.length is not None and len(value) > field_type.length
    return ("too_long",) if too_long else ()


WARNING_TEXTS = {
    "truncated": "{field}: the text was longer than the field takes and has been cut.",
    "too_long": "{field}: the text is longer than the field takes.",
    "unknown_choice": "{field}: {source} holds a value that stands in no table.",
    "not_a_choice": "{field}: the value is none of the target's choices.",
    "invalid_value": "{field}: {source} holds a value that cannot be used.",
    WRONG_KIND: "{field}: {source} holds a value of another kind than the target's.",
}


def _warning(rule: FieldRule, code: str) -> FieldWarning:
    text = WARNING_TEXTS[code].format(field=rule.name, source=_source_words(rule))
    return FieldWarning(code, f"{text[:-1]}; the default stands in." if _falls_back(rule, code) else text)


def _falls_back(rule: FieldRule, code: str) -> bool:
    return rule.default is not None and code in {"unknown_choice", "invalid_value", WRONG_KIND}


def _required_error(rule: FieldRule, code: str, what: str) -> MappingError:
    """Build the error of a record that lacks what it must have: in the reason's own words where it has some."""
    detail = f"{rule.name}: {_source_words(rule)} {what}."
    known = known_reason(code)
    return MappingError(f"{known.says[:-1]} ({detail[:-1]})." if known else detail, code=code)


def _source_words(rule: FieldRule) -> str:
    template = rule.template
    return " or ".join(rule.from_ or (template.paths if template else ())) or "the constant"
