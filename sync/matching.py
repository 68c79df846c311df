"""Finding the record that a source record belongs to, by the rules of its block, strongest first.

Every returned row is verified here against the values asked for. An empty value matches nothing. A later rule never
takes a record that already carries something in the first rule's field, nor one that is linked.
"""

import contextlib
import dataclasses
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from shared import attempt
from shared.attempt import Lane
from shared.clients.system import Key, Paths, Row, Target, Value
from shared.errors import MappingError, RejectedError, SyncError
from shared.markers import carries
from shared.state.storage import SideBySide
from sync.decide import comparable, same_value, search_key
from sync.mapping import Mapped
from sync.recipe import MatchRule

_SIDE_BY_SIDE = {lane: SideBySide() for lane in Lane}  # runs that wait for a slow system hold up no event

Ahead = Mapping[tuple[str, ...], Sequence[Row]]
"""Rows that were fetched before the rules are asked, by the fields of the rule that will ask for them."""

Owner = Callable[[str], str]
"""Returns where a person finds the other source record that a target record belongs to; "" when it is free, or ours."""


@dataclasses.dataclass(frozen=True)
class Match:
    """The record that a rule found."""

    row: Row
    rule: MatchRule
    first: bool  # found by the strongest rule


def find_matches(
    target: Target,
    record: str,
    paths: Paths,
    rules: Sequence[MatchRule],
    asks: Sequence[tuple[Mapped, Owner]],
    ahead: Ahead | None = None,
) -> list[Match | SyncError | None]:
    """Find each ask's record; one answer each: the match, None for none, or the error that ends the search.

    All asks are looked up together, one call per rule: of many asks by all rules at the same time, of a single one by
    the next rule only where those before found nothing. Raises RemoteError when the system cannot be asked at all.
    """
    answers: dict[int, Match | SyncError | None] = {}
    asked = [rule for rule in rules if not rule.link]  # a link was looked at before the rules are asked
    first = asked[0] if asked else None

    def look(rule: MatchRule) -> tuple[dict[int, list[Row]], dict[int, SyncError]]:
        keys = {
            index: values
            for index, (mapped, _) in enumerate(asks)
            if index not in answers and (values := _values(rule, mapped))
        }
        return look_up(target, record, paths, rule, keys, (ahead or {}).get(rule.fields))

    together = _SIDE_BY_SIDE[attempt.current().lane]
    found = together.map(look, asked) if len(asks) > 1 else map(look, asked)
    for rule, (hits, refused) in zip(asked, found, strict=True):
        for index in [index for index in hits if index not in answers]:
            answer = _judge(rule, rule is first, first, hits[index], *asks[index])
            if answer is None and index in refused and rule is first:
                answer = refused[index]
            if answer is not None:
                answers[index] = answer
    return [answers.get(index) for index in range(len(asks))]


def fetch_ahead(
    target: Target, record: str, paths: Paths, rules: Sequence[MatchRule], records: Sequence[Mapped]
) -> Ahead:
    """Fetch the rows for which some rules will ask on behalf of records.

    A rule that the vendor refuses is left out: asked again, it says of whom. Raises RemoteError when the system cannot be
    asked at all.
    """

    def fetch(rule: MatchRule) -> list[Row] | None:
        keys = list(dict.fromkeys(key for mapped in records for key in _values(rule, mapped)))
        with contextlib.suppress(RejectedError):
            return target.fetch_rows(record, paths, rule.fields, keys) if keys else []
        return None

    found = _SIDE_BY_SIDE[attempt.current().lane].map(fetch, rules)
    return {rule.fields: rows for rule, rows in zip(rules, found, strict=True) if rows is not None}


def find_among(
    rules: Sequence[MatchRule], rows: Sequence[Row], mapped: Mapped, taken: Owner
) -> Match | SyncError | None:
    """Find a record among some that are at hand, oldest first: the match, None for none, or why it cannot be said.

    A field that carries a marker is compared by it alone, and the oldest record with the marker is the one: a quote
    comes later.
    """
    first = next((rule for rule in rules if not rule.link), None)
    for rule in rules:
        hits = [row for row in rows if not rule.link and _meets(rule, row) and _agrees(rule, row, mapped)]
        if any((field := mapped.fields.get(name)) is not None and field.marker for name in rule.fields):
            hits = [row for row in hits if not taken(row.key)][:1]
        answer = _judge(rule, rule is first, first, hits, mapped, taken)
        if answer is not None:
            return answer
    return None


def _agrees(rule: MatchRule, row: Row, mapped: Mapped) -> bool:
    for name in rule.fields:
        field, held = mapped.fields.get(name), row.fields.get(name)
        if field is None or field.skipped_by_when or comparable(held) is None:
            return False
        if field.marker:
            agrees = carries(str(held), field.marker)
        else:
            agrees = any(search_key(value) == search_key(held) for value in field.accepted)
        if not agrees:
            return False
    return True


def _values(rule: MatchRule, mapped: Mapped) -> list[Key]:
    """Return the combinations of values that a rule asks for; none when one of its fields is empty."""
    keys: list[Key] = [()]
    for name in rule.fields:
        field = mapped.fields.get(name)
        options = (
            [] if field is None or field.skipped_by_when else [v for v in field.accepted if comparable(v) is not None]
        )
        keys = [(*key, option) for key in keys for option in options if not isinstance(option, list | dict)]
    return keys


def look_up(
    target: Target,
    record: str,
    paths: Paths,
    rule: MatchRule,
    keys: Mapping[int, Sequence[Key]],
    ahead: Sequence[Row] | None = None,
) -> tuple[dict[int, list[Row]], dict[int, SyncError]]:
    """Ask one rule for everybody: the rows that meet it, by asker, and who was refused. Rows may be there already.

    When the vendor refuses the lot, each half is asked alone, so that one bad value stays alone for a few calls.
    """
    hits: dict[int, list[Row]] = {index: [] for index in keys}
    if not keys:
        return hits, {}
    try:
        wanted = list(dict.fromkeys(k for each in keys.values() for k in each))
        rows = target.fetch_rows(record, paths, rule.fields, wanted) if ahead is None else ahead
    except RejectedError as exc:
        if len(keys) == 1:
            return hits, dict.fromkeys(keys, exc)
        refused: dict[int, SyncError] = {}
        order = list(keys)
        for half in (order[: len(order) // 2], order[len(order) // 2 :]):
            own, own_refused = look_up(target, record, paths, rule, {index: keys[index] for index in half})
            hits |= own
            refused |= own_refused
        return hits, refused
    by_key: dict[tuple[Value, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if _meets(rule, row):
            by_key[_search_key([row.fields.get(name) for name in rule.fields])].append(row)
    for index, each in keys.items():
        rows_of_ask = (row for key in each for row in by_key.get(_search_key(key), ()))
        hits[index] = list({(row.key, row.label): row for row in rows_of_ask}.values())  # two may share a key
    return hits, {}


def _meets(rule: MatchRule, row: Row) -> bool:
    """Tell whether a row of the target meets a rule's own condition."""
    return all(
        any(same_value(row.fields.get(path), value) for value in test.any_of) != test.negated
        for path, test in rule.when.items()
    )


def _search_key(values: Sequence[Value]) -> tuple[Value, ...]:
    return tuple(search_key(value) for value in values)


def _judge(
    rule: MatchRule, is_first: bool, first: MatchRule | None, rows: list[Row], mapped: Mapped, taken: Owner
) -> Match | SyncError | None:
    fitting = [row for row in rows if _fits(rule, row, mapped)]
    if is_first:
        ours = [row for row in fitting if not taken(row.key)]
        if fitting and not ours:
            return shared_error(rule.fields, taken(fitting[0].key))
        fitting = ours
    else:
        carried = first.fields if first else ()
        fitting = [row for row in fitting if not any(comparable(row.fields.get(name)) for name in carried)]
        fitting = [row for row in fitting if not taken(row.key)]
    if len(fitting) > 1:
        labels = ", ".join(row.label or row.key for row in fitting[:5])
        return MappingError(
            f"Several records match by {' and '.join(rule.fields)}: {labels}. Mend them so that one is left.",
            code="ambiguous_match",
        )
    return Match(fitting[0], rule, is_first) if fitting else None


def shared_error(fields: Sequence[str], owner: str) -> MappingError:
    """Build the error of a record whose match value belongs to another source record's target."""
    text = f"Another record, {owner}, has the same {' and '.join(fields)} and was first. Mend one of the two."
    return MappingError(text, code=f"{'_'.join(fields)}_shared")


def _fits(rule: MatchRule, row: Row, mapped: Mapped) -> bool:
    for name in rule.same_or_empty:
        held, field = row.fields.get(name), mapped.fields.get(name)
        if comparable(held) is not None and (field is None or not any(same_value(held, v) for v in field.accepted)):
            return False
    return True
