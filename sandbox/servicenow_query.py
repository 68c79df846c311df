"""The encoded query language of the simulated instance: text to conditions, conditions to rows.

What cannot be understood (an unknown field, an unknown operator, a date that is none) is dropped and the rest runs, as the
vendor does; `Search.run` tells the caller how much was dropped.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Protocol
from zoneinfo import ZoneInfo

from sandbox.servicenow_dictionary import TABLES, Column, columns_of

Row = dict[str, str]
Test = Callable[[Row], bool]

OPERATORS = (  # longest first: the parser takes the first operator after the field name
    "DOES NOT CONTAIN",
    "ISNOTEMPTY",
    "STARTSWITH",
    "NOT LIKE",
    "ENDSWITH",
    "CONTAINS",
    "ISEMPTY",
    "BETWEEN",
    "ANYTHING",
    "NOT IN",
    "SAMEAS",
    "LIKE",
    "IN",
    "!=",
    "<=",
    ">=",
    "=",
    "<",
    ">",
)
_CONDITION = re.compile(
    r"(?P<path>[a-z_][a-z0-9_]*(?:\.[a-z_][a-z0-9_]*)*)(?P<operator>"
    + "|".join(map(re.escape, OPERATORS))
    + r")(?P<value>.*)",
    re.DOTALL,
)
_ORDER = re.compile(r"ORDERBY(?P<down>DESC)?(?P<path>[a-z_].*)$", re.DOTALL)
_RELATED = re.compile(r"RLQUERY(?P<table>\w+)\.(?P<field>\w+),(?P<operator>>=|<=|!=|=|>|<)?(?P<count>\d+)(?:,m2m)?$")
_JOIN = re.compile(r"JOIN(?P<table>\w+)\.(?P<field>\w+)=(?P<other>\w+)\.(?P<other_field>\w+)!(?P<first>.*)$", re.DOTALL)
_TEXT = "123TEXTQUERY321="
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d(?: \d\d:\d\d:\d\d)?$")
_NUMERIC = {"integer"}
_DATED = {"glide_date_time", "glide_date"}


class Store(Protocol):
    """What a search needs of the records."""

    def rows_of(self, table: str) -> Iterable[Row]:
        """Return the rows of a table and of the tables that extend it."""

    def find(self, table: str, sys_id: str, by_name: bool = False) -> Row | None:
        """Return one row by its sys_id, or by its name."""

    def lookup(self, table: str, field: str, values: Iterable[str]) -> list[Row] | None:
        """Return the rows whose field is one of these lower-cased values; None when the field has no index."""

    def role_names(self, user_id: str) -> set[str]:
        """Return the names of a user's roles."""


@dataclasses.dataclass(frozen=True)
class Condition:
    """One comparison: a path, an operator, a value."""

    path: str
    operator: str
    value: str
    literal: bool = False  # the value came as a plain parameter: nothing in it is evaluated


@dataclasses.dataclass(frozen=True)
class Related:
    """A related-list query: rows that have so many rows of another table."""

    table: str
    field: str
    operator: str
    count: int
    clauses: "Group"


@dataclasses.dataclass(frozen=True)
class Join:
    """Rows for which another table has a row with the same value that meets its own conditions."""

    field: str
    other: str
    other_field: str
    clauses: "Group"


@dataclasses.dataclass(frozen=True)
class Words:
    """A text search: every word occurs somewhere in the row."""

    text: str


@dataclasses.dataclass(frozen=True)
class Invalid:
    """A part that was not understood."""

    text: str


Clause = list[Condition | Related | Join | Words | Invalid]  # any of these holds
Group = list[Clause]  # all of these hold


@dataclasses.dataclass
class Query:
    """Groups of conditions, of which one must hold, and the order asked for."""

    groups: list[Group]
    orders: list[tuple[str, bool]]  # path, descending
    shuffle: int = 0  # rotates rows that the order leaves open; 0 = sys_id order


@dataclasses.dataclass(frozen=True)
class Asker:
    """Who asks and when: what the server-side functions in a query depend on."""

    user_id: str
    user_name: str
    zone: ZoneInfo
    now: datetime


def split_terms(text: str) -> list[str]:
    """Split a query at its carets; a doubled caret is a literal one."""
    terms, current, position = [], [], 0
    while position < len(text):
        if text[position] != "^":
            current.append(text[position])
        elif text[position + 1 : position + 2] == "^":
            current.append("^")
            position += 1
        else:
            terms.append("".join(current))
            current = []
        position += 1
    return [term for term in (*terms, "".join(current)) if term]


def parse(text: str) -> Query:
    """Read an encoded query; parts that make no sense become Invalid."""
    query = Query([[]], [])
    terms = iter(split_terms(text))
    for term in terms:
        if order := _ORDER.match(term):
            query.orders.append((order["path"], bool(order["down"])))
        elif term == "EQ" or term.startswith("GROUPBY"):
            continue
        elif related := _RELATED.match(term):
            inner: list[str] = []
            for part in terms:
                if part == "ENDRLQUERY":
                    break
                inner.append(part)
            clauses = _group(inner)
            query.groups[-1].append(
                [
                    Related(
                        related["table"], related["field"], related["operator"] or "=", int(related["count"]), clauses
                    )
                ]
            )
        elif join := _JOIN.match(term):
            inner = [join["first"]] if join["first"] else []
            for part in terms:
                if order := _ORDER.match(part):
                    query.orders.append((order["path"], bool(order["down"])))
                else:
                    inner.append(part)
            query.groups[-1].append([Join(join["field"], join["other"], join["other_field"], _group(inner))])
        elif term.startswith("NQ"):
            query.groups.append([])
            if term[2:]:
                _add(query.groups[-1], term[2:])
        else:
            _add(query.groups[-1], term)
    return query


def equals_query(pairs: Iterable[tuple[str, str]]) -> Query:
    """Build the query that `field=value` parameters stand for; the values are taken as they are."""
    return Query([[[Condition(path, "=", value, literal=True)] for path, value in pairs]], [])


def _group(terms: Iterable[str]) -> Group:
    group: Group = []
    for term in terms:
        _add(group, term)
    return group


def _add(group: Group, term: str) -> None:
    if term.startswith("OR") and group:
        group[-1].append(_condition(term[2:]))
    else:
        group.append([_condition(term.removeprefix("OR"))])


def _condition(term: str) -> Condition | Words | Invalid:
    if term.startswith(_TEXT):
        return Words(term.removeprefix(_TEXT))
    match = _CONDITION.match(term)
    return Condition(match["path"], match["operator"], match["value"]) if match else Invalid(term)


@dataclasses.dataclass(frozen=True)
class Found:
    """The rows of a search before any limit, and the parts of the query that were dropped."""

    rows: list[Row]
    dropped: list[str]


class Search:
    """Runs queries over a store on behalf of one asker."""

    def __init__(
        self,
        store: Store,
        asker: Asker,
        unreadable: Callable[[str, str], bool] = lambda _table, _column: False,
        not_equal_matches_empty: bool = False,
    ) -> None:
        self.store = store
        self.asker = asker
        self.unreadable = unreadable
        self.not_equal_matches_empty = not_equal_matches_empty
        self.scripts: list[str] = []  # server-side code that the queries made run
        self.refused: list[str] = []  # fields that the asker must not filter by
        self._dropped: list[str] = []

    def run(self, table: str, query: Query) -> Found:
        """Return the rows that match, in the order asked for."""
        self._dropped = []
        compiled = [self._compile_group(table, group) for group in query.groups]
        narrowed = [self._narrow(table, group) for group in query.groups]
        if all(candidates is not None for candidates in narrowed):
            pool: Iterable[Row] = {row["sys_id"]: row for rows in narrowed for row in rows or ()}.values()
        else:
            pool = self.store.rows_of(table)
        match = compiled[0] if len(compiled) == 1 else (lambda row: any(test(row) for test in compiled))
        rows = [row for row in pool if match(row)]
        if query.shuffle and rows:
            turn = query.shuffle * 7 % len(rows)
            rows = rows[turn:] + rows[:turn]
        for path, down in reversed(query.orders):
            self._sort(table, rows, path, down)
        return Found(rows, list(self._dropped))

    def reader(self, table: str, path: str) -> tuple[Column, Callable[[Row], str]] | None:
        """Return the column at the end of a path and a function that reads it from a row; None if there is no such path."""
        first, _, rest = path.partition(".")
        column = columns_of(table).get(first)
        if column is None:
            return None
        if not rest:
            return column, lambda row: row[first]
        if column.type != "reference" or column.reference not in TABLES:
            return None
        further = self.reader(column.reference, rest)
        if further is None:
            return None
        last, read = further
        find, target, by_name = self.store.find, column.reference, column.by_name

        def read_through(row: Row) -> str:
            other = find(target, row[first], by_name) if row[first] else None
            return read(other) if other is not None else ""

        return last, read_through

    # -- conditions to tests ------------------------------------------------------------------------------------------

    def _compile_group(self, table: str, group: Group) -> Test:
        tests = [test for clause in group if (test := self._compile_clause(table, clause)) is not None]
        if not tests:
            return lambda _row: True
        if len(tests) == 1:
            return tests[0]
        return lambda row: all(test(row) for test in tests)

    def _compile_clause(self, table: str, clause: Clause) -> Test | None:
        tests = [test for part in clause if (test := self._compile(table, part)) is not None]
        if not tests:
            return None
        if len(tests) == 1:
            return tests[0]
        return lambda row: any(test(row) for test in tests)

    def _compile(self, table: str, part: Condition | Related | Join | Words | Invalid) -> Test | None:
        match part:
            case Condition():
                test = self._compile_condition(table, part)
            case Words(text):
                words = text.lower().split()
                texts = [c.name for c in columns_of(table).values() if c.type == "string"]
                return lambda row: all(any(word in row[name].lower() for name in texts) for word in words)
            case Related():
                test = self._compile_related(part)
            case Join():
                test = self._compile_join(table, part)
            case _:
                test = None
        if test is None:
            self._dropped.append(str(part))
        return test

    def _compile_related(self, part: Related) -> Test | None:
        if part.table not in TABLES or part.field not in columns_of(part.table):
            return None
        meets = self._compile_group(part.table, part.clauses)
        counts: dict[str, int] = {}
        for row in self.store.rows_of(part.table):
            if meets(row):
                counts[row[part.field]] = counts.get(row[part.field], 0) + 1
        compare = _COMPARISONS[part.operator]
        return lambda row: compare(counts.get(row["sys_id"], 0), part.count)

    def _compile_join(self, table: str, part: Join) -> Test | None:
        if (
            part.field not in columns_of(table)
            or part.other not in TABLES
            or part.other_field not in columns_of(part.other)
        ):
            return None
        meets = self._compile_group(part.other, part.clauses)
        values = {row[part.other_field] for row in self.store.rows_of(part.other) if meets(row)} - {""}
        return lambda row: row[part.field] in values

    def _compile_condition(self, table: str, condition: Condition) -> Test | None:
        if condition.path == "roles" and table == "sys_user":
            return self._compile_roles(condition)
        found = self.reader(table, condition.path)
        if found is None:
            return None
        column, read = found
        if self.unreadable(column.owner, column.name) or self.unreadable(table, condition.path.partition(".")[0]):
            self.refused.append(condition.path)
            return None
        value = condition.value
        if not condition.literal and value.startswith("javascript:"):
            self.scripts.append(value)
            result = self._evaluate(value.removeprefix("javascript:").strip().rstrip(";"))
            if result is None:
                return lambda _row: False  # the script gave nothing that a row could equal
            value = result
        return self._compare(table, column, read, condition.operator, value)

    def _compile_roles(self, condition: Condition) -> Test | None:
        wanted = {name.strip() for name in condition.value.split(",")}
        match condition.operator:
            case "=" | "IN" | "LIKE" | "CONTAINS":
                return lambda row: not wanted.isdisjoint(self.store.role_names(row["sys_id"]))
            case "!=" | "NOT IN" | "NOT LIKE":
                return lambda row: wanted.isdisjoint(self.store.role_names(row["sys_id"]))
        return None

    def _compare(
        self, table: str, column: Column, read: Callable[[Row], str], operator: str, value: str
    ) -> Test | None:
        with_empty = self.not_equal_matches_empty
        match operator:
            case "ANYTHING":
                return lambda _row: True
            case "ISEMPTY":
                return lambda row: read(row) == ""
            case "ISNOTEMPTY":
                return lambda row: read(row) != ""
            case "SAMEAS":
                other = self.reader(table, value)
                return None if other is None else (lambda row: read(row) == other[1](row))
            case "IN" | "NOT IN":
                normals = {_normal(column, item) for item in value.split(",")}
                if operator == "IN":
                    return lambda row: read(row).lower() in normals
                return lambda row: (read(row).lower() not in normals) and (with_empty or read(row) != "")
            case "=":
                wanted = _normal(column, value)
                return None if wanted is None else (lambda row: read(row).lower() == wanted)
            case "!=":
                wanted = _normal(column, value)
                return None if wanted is None else (
                    lambda row: read(row).lower() != wanted and (with_empty or wanted == "" or read(row) != "")
                )  # fmt: skip
            case "<" | "<=" | ">" | ">=":
                return _range_test(column, read, operator, value)
            case "BETWEEN":
                low, at, high = value.partition("@")
                above, below = _range_test(column, read, ">=", low), _range_test(column, read, "<=", high)
                return None if not at or above is None or below is None else (lambda row: above(row) and below(row))
        part = value.lower()
        match operator:
            case "LIKE" | "CONTAINS":
                return lambda row: part in read(row).lower()
            case "NOT LIKE" | "DOES NOT CONTAIN":
                return lambda row: part not in read(row).lower()
            case "STARTSWITH":
                return lambda row: read(row).lower().startswith(part)
            case "ENDSWITH":
                return lambda row: read(row).lower().endswith(part)
        return None

    # -- finding without a scan ---------------------------------------------------------------------------------------

    def _narrow(self, table: str, group: Group) -> list[Row] | None:
        best: list[Row] | None = None
        for clause in group:
            found = self._narrow_clause(table, clause)
            if found is not None and (best is None or len(found) < len(best)):
                best = found
        return best

    def _narrow_clause(self, table: str, clause: Clause) -> list[Row] | None:
        values: dict[str, list[str]] = {}
        for part in clause:
            if isinstance(part, Invalid):
                continue
            if (
                not isinstance(part, Condition)
                or part.operator not in {"=", "IN"}
                or part.value.startswith("javascript:")
            ):
                return None
            found = self.reader(table, part.path)
            if found is None:
                continue  # dropped as invalid, like the compiled clause
            if self.unreadable(found[0].owner, found[0].name):
                return None
            items = part.value.split(",") if part.operator == "IN" else [part.value]
            values.setdefault(part.path, []).extend(item.lower() for item in items)
        if not values:
            return None
        rows: dict[str, Row] = {}
        for path, wanted in values.items():
            hits = self._candidates(table, path, wanted)
            if hits is None:
                return None
            rows.update((row["sys_id"], row) for row in hits)
        return list(rows.values())

    def _candidates(self, table: str, path: str, values: Iterable[str]) -> list[Row] | None:
        first, _, rest = path.partition(".")
        if not rest:
            return self.store.lookup(table, first, values)
        values = list(values)
        column = columns_of(table)[first]
        if column.by_name or "" in values:  # an empty value also matches rows without the reference
            return None
        others = self._candidates(column.reference, rest, values)
        return None if others is None else self.store.lookup(table, first, [row["sys_id"] for row in others])

    # -- order --------------------------------------------------------------------------------------------------------

    def _sort(self, table: str, rows: list[Row], path: str, down: bool) -> None:
        found = self.reader(table, path)
        if found is None:
            self._dropped.append(f"ORDERBY{path}")
            return
        column, read = found
        if column.type in _NUMERIC:
            rows.sort(key=lambda row: int(read(row) or -(10**9)), reverse=down)
        else:
            rows.sort(key=lambda row: read(row).lower(), reverse=down)

    # -- server-side values -------------------------------------------------------------------------------------------

    def _evaluate(self, script: str) -> str | None:
        match = re.fullmatch(r"gs\.(\w+)\((.*)\)", script)
        if match is None:
            return None
        name, arguments = match[1], [part.strip().strip("'\"") for part in match[2].split(",") if part.strip()]
        local = self.asker.now.astimezone(self.asker.zone)
        midnight = local.replace(hour=0, minute=0, second=0, microsecond=0)
        day = timedelta(days=1)
        try:
            match name:
                case "getUserID":
                    return self.asker.user_id
                case "getUserName":
                    return self.asker.user_name.lower()
                case "nowDateTime" | "now":
                    return _utc_text(local)
                case "beginningOfToday":
                    return _utc_text(midnight)
                case "endOfToday":
                    return _utc_text(midnight + day - timedelta(seconds=1))
                case "beginningOfYesterday":
                    return _utc_text(midnight - day)
                case "endOfYesterday":
                    return _utc_text(midnight - timedelta(seconds=1))
                case "minutesAgo" | "hoursAgo" | "daysAgo":
                    return _utc_text(local - timedelta(**{name.removesuffix("Ago"): int(arguments[0])}))
                case "daysAgoStart":
                    return _utc_text(midnight - int(arguments[0]) * day)
                case "dateGenerate":
                    stamp = datetime.fromisoformat(" ".join(arguments)).replace(tzinfo=self.asker.zone)
                    return _utc_text(stamp)
        except (ValueError, IndexError, OverflowError):
            return None
        return None


def _utc_text(moment: datetime) -> str:
    return moment.astimezone(ZoneInfo("UTC")).strftime("%Y-%m-%d %H:%M:%S")


def _normal(column: Column, value: str) -> str | None:
    """Return a value as a lower-cased cell holds it; None when the column cannot hold such a thing."""
    value = value.lower()
    if column.type == "boolean":
        return {"1": "true", "0": "false"}.get(value, value)
    if column.type in _DATED and value:
        return _moment_text(column, value)
    return value


def _moment_text(column: Column, value: str) -> str | None:
    if not _MOMENT.match(value):
        return None
    if column.type == "glide_date":
        return value[:10]
    return value if len(value) > 10 else f"{value} 00:00:00"


def _range_test(column: Column, read: Callable[[Row], str], operator: str, value: str) -> Test | None:
    compare = _COMPARISONS[operator]
    if column.type in _NUMERIC:
        try:
            number = int(value)
        except ValueError:
            return None
        return lambda row: read(row) != "" and compare(int(read(row)), number)
    bound = _moment_text(column, value) if column.type in _DATED else value.lower()
    if bound is None:
        return None
    return lambda row: (cell := read(row)) != "" and compare(cell.lower(), bound)


_COMPARISONS: Mapping[str, Callable[..., bool]] = {
    "=": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}
