"""A recipe against what both systems say about their records: everything that would fail or surprise at run time."""

import dataclasses
from collections.abc import Callable, Iterator
from enum import StrEnum

from shared.clients.system import Condition, FieldKind, FieldType, RecordType
from shared.errors import RejectedError
from sync.placeholders import MARKER_PATH, Template, text_of
from sync.recipe import RECORD_ITSELF, Block, FieldRule, FieldWrite, Location, Recipe, WriteMode, join_path
from sync.recipe_forms import did_you_mean

Describe = Callable[[str, str], RecordType]
"""Connection and record to its type; raises RejectedError when the system has no such record."""


class Severity(StrEnum):
    """Whether a recipe can run with a problem."""

    ERROR = "error"
    WARNING = "warning"


@dataclasses.dataclass(frozen=True)
class Problem:
    """One place in which a recipe and its systems do not fit."""

    file: str
    line: int
    sentence: str
    severity: Severity

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.severity}: {self.sentence}"


@dataclasses.dataclass(frozen=True)
class _Finding:
    location: Location
    sentence: str
    severity: Severity = Severity.ERROR


def validate(recipe: Recipe, describe: Describe) -> list[Problem]:
    """Return where a recipe does not fit its systems, in the order of the file. Raises RemoteError when one is away."""
    findings = [
        *_check_source(recipe, describe),
        *_check_block((), recipe.block, recipe, describe, recipe.target.record),
    ]
    for name, rule in recipe.gone.fields.items():
        record = _describe(describe, recipe.target.connection, recipe.target.record)
        if record:
            findings += _check_field(("gone", name), rule, record)
    problems = {
        Problem(recipe.path, recipe.place_of(finding.location)[0], finding.sentence, finding.severity): None
        for finding in findings
    }
    return sorted(problems, key=lambda problem: problem.line)


def _check_source(recipe: Recipe, describe: Describe) -> Iterator[_Finding]:
    """Check every path that is read, where it stands in the file."""
    record = _describe(describe, recipe.source.connection, recipe.source.record)
    if record is None:
        yield _Finding(("source",), f"{recipe.source.connection} has no record `{recipe.source.record}`")
        return
    yield from _check_condition(("when",), recipe.block.when, record)
    walker = _Walker(describe, recipe.source.connection)
    for location, path in _read_paths(recipe):
        problem = walker.problem(record, path)
        if problem:
            yield _Finding(location, problem)


def _check_condition(location: Location, condition: Condition, record: RecordType) -> Iterator[_Finding]:
    """Check the values of a condition against those that a field can have: one that it never has is easily a label."""
    for path, test in condition.items():
        field = record.fields.get(path)
        if field is None:
            continue
        known = {"true", "false"} if field.kind is FieldKind.BOOLEAN else {text_of(choice) for choice in field.choices}
        for value in test.any_of if known else ():
            if value is not None and text_of(value) not in known:
                near = did_you_mean(text_of(value), known)
                yield _Finding(location, f"`{path}` of {record.record} is never `{value}`{near}", Severity.WARNING)


def _read_paths(recipe: Recipe) -> Iterator[tuple[Location, str]]:
    yield from _block_paths((), recipe.block, "")
    for name, rule in recipe.gone.fields.items():
        yield from ((("gone", name), path) for path in rule.read_paths() if path != RECORD_ITSELF)


def _block_paths(location: Location, block: Block, prefix: str) -> Iterator[tuple[Location, str]]:
    yield from (((*location, "when"), join_path(prefix, path)) for path in block.when)
    for name, rule in block.fields.items():
        here: Location = (*location, "fields", name)
        own = rule.model_copy(update={"find": None})
        yield from ((here, path) for path in own.read_paths(prefix) if path != RECORD_ITSELF)
        if rule.find:
            for path in rule.from_:
                yield from _block_paths((*here, "find"), rule.find, join_path(prefix, path))
    for index, child in enumerate(block.children):
        yield from _block_paths((*location, "children", index), child, join_path(prefix, child.from_ or RECORD_ITSELF))


@dataclasses.dataclass(frozen=True)
class _Walker:
    """Follows dotted paths through references and child types."""

    describe: Describe
    connection: str

    def problem(self, record: RecordType, path: str) -> str | None:
        """Say why a path cannot be read, None when it can."""
        if path in record.fields:
            return None
        name, _, rest = path.partition(".")
        field = record.fields.get(name)
        if rest and (field is None or (field.kind is FieldKind.LIST and not field.refers_to)):
            child = _describe(self.describe, self.connection, f"{record.record}.{name}")
            if child is not None:
                return None if rest == MARKER_PATH else self._inside([child], rest)
        if field is None:
            return f"{record.record} has no field `{name}`{did_you_mean(name, record.fields)}"
        targets = [_describe(self.describe, self.connection, kind) for kind in field.refers_to]
        known = [target for target in targets if target]
        if field.kind is FieldKind.LIST and rest == MARKER_PATH:
            return None  # every child type offers its entries' ids
        if not known:
            return None if field.kind in {FieldKind.OBJECT, FieldKind.LIST} else f"`{name}` leads to no other record"
        return self._inside(known, rest)

    def _inside(self, records: list[RecordType], rest: str) -> str | None:
        problems = [self.problem(record, rest) for record in records]
        return None if None in problems else problems[0]


def _describe(describe: Describe, connection: str, record: str) -> RecordType | None:
    try:
        return describe(connection, record)
    except RejectedError:
        return None


def _check_block(
    location: Location, block: Block, recipe: Recipe, describe: Describe, record_name: str
) -> Iterator[_Finding]:
    record = _describe(describe, recipe.target.connection, record_name)
    if record is None:
        place = (*location, "record") if location else ("target",)
        yield _Finding(place, f"{recipe.target.connection} has no record `{record_name}`")
        return
    if record.only_added and block.write is not WriteMode.CREATE:
        yield _Finding((*location, "write"), f"a {record.noun} is only ever added: say `write: create`")
    yield from _check_match(location, block, record)
    for name, rule in block.fields.items():
        here: Location = (*location, "fields", name)
        yield from _check_field(here, rule, record, writes=block.write is not WriteMode.NEVER)
        if rule.find:
            yield from _check_block((*here, "find"), rule.find, recipe, describe, rule.find.record)
    for index, child in enumerate(block.children):
        yield from _check_block(
            (*location, "children", index), child, recipe, describe, f"{record_name}.{child.record}"
        )


def _check_match(location: Location, block: Block, record: RecordType) -> Iterator[_Finding]:
    for index, rule in enumerate(block.match):
        here: Location = (*location, "match", index)
        for name in rule.fields:
            field = record.fields.get(name)
            if field and not field.searchable:
                sentence = f"`{name}` cannot be searched: each run lists all {record.noun}s first"
                yield _Finding(here, sentence, Severity.WARNING)
            if field and field.kind is FieldKind.APPEND:
                yield _Finding(here, f"`{name}` only appends and cannot find a record")
        yield from _check_condition(here, rule.when, record)
        for name in rule.when:
            if name not in record.fields and name.partition(".")[0] not in record.fields:
                yield _Finding(here, f"{record.record} has no field `{name}`{did_you_mean(name, record.fields)}")


def _check_field(location: Location, rule: FieldRule, record: RecordType, *, writes: bool = True) -> Iterator[_Finding]:
    base = record.fields.get(rule.name.partition(".")[0])
    if rule.name not in record.fields and base and base.kind is FieldKind.OBJECT:
        return  # a custom property: its name is the customer's own
    field = record.fields.get(rule.name)
    if field is None:
        near = did_you_mean(rule.name, record.fields)
        yield _Finding(location, f"{record.record} has no field `{rule.name}`{near}")
        return
    if writes and not field.writable:
        yield _Finding(location, f"`{rule.name}` cannot be written")
    if field.kind is FieldKind.REFERENCE and not rule.find:
        sentence = f"`{rule.name}` holds the id of another record and has no `find`: the value must be such an id"
        yield _Finding(location, sentence, Severity.WARNING)
    if rule.find and field.refers_to and rule.find.record not in field.refers_to:
        yield _Finding(
            (*location, "find"), f"`{rule.name}` refers to {' or '.join(field.refers_to)}, not {rule.find.record}"
        )
    yield from _check_choices(location, rule, field)
    yield from _check_length(location, rule, field)
    if field.kind is FieldKind.APPEND and rule.write is FieldWrite.IF_EMPTY:
        yield _Finding(location, f"`{rule.name}` only appends and is never empty or full: `if_empty` does not fit")


def _check_choices(location: Location, rule: FieldRule, field: FieldType) -> Iterator[_Finding]:
    known = {text_of(choice) for choice in field.choices}
    right = [value for _, values in rule.choices for value in values]
    written = [*right, *([rule.value] if rule.constant else []), *([] if rule.find else [rule.default])]
    for value in written if known else ():
        if value is not None and not isinstance(value, list | dict | Template) and text_of(value) not in known:
            yield _Finding(location, f"`{value}` is not a choice of `{rule.name}`{did_you_mean(text_of(value), known)}")
    if known and not rule.choices and not rule.constant and not rule.find and not rule.convert:
        sentence = f"`{rule.name}` takes certain values alone, and the recipe hands the source's on without `choices`"
        yield _Finding(location, sentence, Severity.WARNING)


def _check_length(location: Location, rule: FieldRule, field: FieldType) -> Iterator[_Finding]:
    cut_at = next((int(str(call.argument)) for call in rule.convert if call.name == "truncate"), None)
    if field.length is None:
        return
    if cut_at is not None and cut_at > field.length:
        yield _Finding(
            location, f"`{rule.name}` takes {field.length} characters, and the text is cut only after {cut_at}"
        )
    if rule.constant and isinstance(rule.value, str) and len(rule.value) > field.length:
        yield _Finding(location, f"`{rule.name}` takes {field.length} characters, and the constant is longer")
