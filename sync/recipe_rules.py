"""What a recipe must keep to, alone and beside the others: rules of meaning, after its shape has been read."""

import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping
from enum import StrEnum

from sync.mapping import child_id
from sync.placeholders import MARKER_PATH, Template
from sync.recipe import Block, FieldRule, FieldWrite, Find, Location, MatchRule, Recipe, RecordRef, WriteMode
from sync.recipe_faults import Fault
from sync.recipe_forms import did_you_mean

NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
MAX_NAME = 60  # it stands in table keys, queue messages and addresses
NEVER_OVERWRITES = {FieldWrite.ON_CREATE, FieldWrite.IF_EMPTY}
WINNERS = ({FieldWrite.NEWEST}, {FieldWrite.ALWAYS, FieldWrite.UNLESS_CHANGED})

Finding = tuple[Location, str]


class Capability(StrEnum):
    """What a system's client can do."""

    SOURCE = "source"
    TARGET = "target"
    SENDER = "sender"


@dataclasses.dataclass(frozen=True)
class ConnectionFacts:
    """What recipes need to know about a configured connection."""

    capabilities: frozenset[Capability]
    environment: str  # production or test


def check_alone(recipe: Recipe) -> list[Fault]:
    """Return the faults of one recipe."""
    findings = [*_check_name(recipe), *_check_start(recipe), *_check_top(recipe)]
    for location, block in walk_blocks(recipe):
        findings += [((*location, *inside), sentence) for inside, sentence in _check_block(block)]
    return [_fault(recipe, finding) for finding in findings]


def check_together(
    recipes: Mapping[str, Recipe],
    connections: Mapping[str, ConnectionFacts] | None = None,
    mixed_allowed: Collection[str] = (),
) -> list[Fault]:
    """Return the faults that show only beside the other recipes and the connections."""
    faults: list[Fault] = []
    for recipe in recipes.values():
        findings = [*_check_others(recipe, recipes), *_check_winners(recipe, recipes)]
        if connections is not None:
            findings += _check_connections(recipe, connections, recipe.name in mixed_allowed)
        faults += [_fault(recipe, finding) for finding in findings]
    return faults


def walk_blocks(recipe: Recipe) -> Iterator[tuple[Location, Block]]:
    """Yield every block of a recipe with its place: the recipe's own first, then finds and children."""
    yield from _walk((), recipe.block)


def _walk(location: Location, block: Block) -> Iterator[tuple[Location, Block]]:
    yield location, block
    for name, rule in block.fields.items():
        if rule.find:
            yield from _walk((*location, "fields", name, "find"), rule.find)
    for index, child in enumerate(block.children):
        yield from _walk((*location, "children", index), child)


def _fault(recipe: Recipe, finding: Finding) -> Fault:
    location, sentence = finding
    return Fault(recipe.path, recipe.place_of(location), sentence)


def _check_name(recipe: Recipe) -> Iterator[Finding]:
    if not NAME.fullmatch(recipe.name) or len(recipe.name) > MAX_NAME:
        yield (
            (),
            f"the file's name `{recipe.name}` must be words in lower case joined by _, up to {MAX_NAME} characters",
        )
    title_words = set(re.findall(r"[a-z0-9]+", recipe.title.lower()))
    if "_to_" not in recipe.name and not set(recipe.name.split("_")) <= title_words:
        name = f"{recipe.source.record}_to_{recipe.target.record}".lower()
        yield (
            ("title",),
            f"name the file <source>_to_<target>, as `{name}.yaml`, or with words of the title (a process event's name)",
        )


def _check_start(recipe: Recipe) -> Iterator[Finding]:
    start = recipe.start
    if start.timed and not recipe.notify.summary:
        yield ("start", "daily"), "a daily timer owes a summary: say who gets it in `notify: {summary: …}`"
    if start.daily is not None and start.daily.at is None and start.daily.model_fields_set & {"zone", "days"}:
        yield ("start", "daily"), "`zone` and `days` belong to a time of the recipe's own: add `at`, or leave them out"
    if start.after == recipe.name:
        yield ("start", "after"), "a recipe cannot start after itself"
    if start.webhook and len(start.webhook) == 1 and " " in start.webhook[0] and start.webhook[0] != recipe.title:
        yield ("title",), f"the title of a process event is its exact name, `{start.webhook[0]}`"


def _check_top(recipe: Recipe) -> Iterator[Finding]:
    if recipe.source == recipe.target:
        yield ("target",), "source and target are the same kind of record in the same connection"
    if recipe.block.write in {WriteMode.MIRROR, WriteMode.NEVER}:
        yield ("write",), f"a recipe cannot `{recipe.block.write}`: mirror is for children, never for `find`"
    for index, rule in enumerate(recipe.block.match):
        if rule.link:
            yield ("match", index), "an existing link always decides first: `link` is a rule for `find` alone"


def _check_block(block: Block) -> Iterator[Finding]:
    if not block.match and (block.write.may_create or isinstance(block, Find)):
        yield ("match",), "a block that may create, or that looks, names a rule in `match`"
    if not block.fields and block.write is not WriteMode.NEVER:
        yield ("fields",), "a block that writes names its `fields`"
    for index, rule in enumerate(block.match):
        for name in (*rule.fields, *rule.same_or_empty):
            if name not in block.fields:
                yield ("match", index), f"`{name}` is not among the block's fields{did_you_mean(name, block.fields)}"
    for name, field in block.fields.items():
        if field.find:
            yield from _check_find(("fields", name), field, field.find)
    if isinstance(block, Find) and block.children:
        yield ("children",), "`children` stand under the recipe or under other children, not under `find`"
    for index, child in enumerate(block.children):
        yield from _check_child(("children", index), child)
    yield from _check_kinds(block)


def _check_find(location: Location, rule: FieldRule, find: Find) -> Iterator[Finding]:
    if find.write is WriteMode.MIRROR:
        yield (*location, "find", "write"), "`mirror` is for children"
    if rule.default is not None and len(find.first_match) != 1:
        yield (*location, "default"), "the default of a field with `find` needs a first match rule of one field"


def _check_child(location: Location, child: Block) -> Iterator[Finding]:
    yield from _check_child_fields(location, child)
    if child.write is WriteMode.NEVER:
        yield (*location, "write"), "a child that is never written is none: take it out"
    if child.write is WriteMode.CREATE and child.from_:
        for index, rule in enumerate(child.match):
            if len(rule.fields) == 1 and not _holds_id(child, rule):
                advice = f"put {{{MARKER_PATH}}} into `{rule.fields[0]}`"
                yield (*location, "match", index), f"a child that is only added is found by a marker: {advice}"


def _check_child_fields(location: Location, child: Block) -> Iterator[Finding]:
    for name, field in child.fields.items():
        if field.find and field.find.write is not WriteMode.NEVER:
            yield (
                (*location, "fields", name, "find", "write"),
                "a `find` of a child only looks: make its record elsewhere",
            )
        if field.write is FieldWrite.NEWEST:
            advice = "say `always` on one side and `unless_changed` on the other"
            yield (*location, "fields", name, "write"), f"children carry no time of change for `newest`: {advice}"


def _check_kinds(block: Block) -> Iterator[Finding]:
    """Yield the children that could not be told from those of another block."""
    for index, child in enumerate(block.children):
        for other in block.children[:index]:
            if (child.from_, child.record) != (other.from_, other.record):
                continue
            if child.from_ and WriteMode.MIRROR in (child.write, other.write):
                yield ("children", index), f"`mirror` keeps all {child.record} of `{child.from_}`: one block alone may"
            if not child.from_ and child_id(child) == child_id(other):
                yield ("children", index), "two children of the record itself differ in a constant of their first match"


def _holds_id(child: Block, rule: MatchRule) -> bool:
    field = child.fields.get(rule.fields[0])
    if field is None:
        return True  # said elsewhere
    return MARKER_PATH in (field.value.paths if isinstance(field.value, Template) else field.from_)


def _check_others(recipe: Recipe, recipes: Mapping[str, Recipe]) -> Iterator[Finding]:
    for other in recipes.values():
        if other.name < recipe.name and other.title.casefold() == recipe.title.casefold():
            yield ("title",), f"{other.path} has this title already"
    after = recipe.start.after
    if after is not None and after not in recipes:
        yield ("start", "after"), f"there is no recipe `{after}`{did_you_mean(after, recipes.keys() - {recipe.name})}"
    seen = {recipe.name}
    while after is not None and after in recipes and after != recipe.name:
        if after in seen:
            return  # a circle that this recipe only leads to; its members say so
        seen.add(after)
        after = recipes[after].start.after
        if after == recipe.name:
            yield ("start", "after"), f"these recipes wait for each other: {', '.join(sorted(seen))}"


def _check_winners(recipe: Recipe, recipes: Mapping[str, Recipe]) -> Iterator[Finding]:
    """Yield the pairs of fields that are mapped in both directions without saying which side wins."""
    for other in recipes.values():
        if (other.source, other.target) != (recipe.target, recipe.source):
            continue
        yield from _winnerless((), recipe.block, other.block, other.path)


def _winnerless(location: Location, block: Block, other: Block, path: str) -> Iterator[Finding]:
    for name, rule in block.fields.items():
        for source in rule.from_:
            back = other.fields.get(source)
            if back is not None and name in back.from_ and not _has_winner(rule.write, back.write):
                advice = "write `newest` on both, or `always` on one and `unless_changed` on the other"
                here: Location = (*location, "fields", name)
                yield here, f"`{name}` and `{source}` map to each other, also in {path}: {advice}"
    for index, child in enumerate(block.children):
        for back_child in other.children:
            both = (child.from_, child.record) == (back_child.record, back_child.from_)
            if both and child.write.may_change and back_child.write.may_change:
                yield from _winnerless((*location, "children", index), child, back_child, path)


def _has_winner(here: FieldWrite, there: FieldWrite) -> bool:
    return bool({here, there} & NEVER_OVERWRITES) or {here, there} in WINNERS


def _check_connections(
    recipe: Recipe, connections: Mapping[str, ConnectionFacts], mixed_allowed: bool
) -> Iterator[Finding]:
    asked = [(recipe.source, Capability.SOURCE, "source"), (recipe.target, Capability.TARGET, "target")]
    if recipe.start.webhook is not None:
        asked.append((recipe.source, Capability.SENDER, "start"))
    for ref, capability, key in asked:
        yield from _check_connection(ref, capability, key, connections)
    found = [connections[ref.connection] for ref in (recipe.source, recipe.target) if ref.connection in connections]
    environments = sorted({facts.environment for facts in found})
    if len(environments) > 1 and not mixed_allowed:
        advice = f"if that is meant, name `{recipe.name}` in the setting ALLOW_MIXED_ENVIRONMENTS"
        yield ("target",), f"the recipe joins a {' and a '.join(environments)} connection; {advice}"


def _check_connection(
    ref: RecordRef, capability: Capability, key: str, connections: Mapping[str, ConnectionFacts]
) -> Iterator[Finding]:
    if ref.connection not in connections:
        if capability is not Capability.SENDER:  # said once
            yield (key,), f"there is no connection `{ref.connection}`{did_you_mean(ref.connection, connections)}"
    elif capability not in connections[ref.connection].capabilities:
        yield (key,), f"`{ref.connection}` cannot be a {capability}"
