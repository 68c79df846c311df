"""The query language of the Dataverse Web API: `$filter`, `$orderby`, `$select` and `$expand` turned into functions over rows.

As strict as the fact sheet (sections 2.4 and 2.5): what it does not allow raises QueryError, which the Web API answers with 400.
"""

import dataclasses
import functools
import json
import re
import zoneinfo
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, Protocol

from sandbox.dynamics365_tables import Column, Navigation, Table

Row = dict[str, Any]
Getter = Callable[[Row], Any]
Predicate = Callable[[Row], bool]

CRM = "Microsoft.Dynamics.CRM."
MAX_EXPANDS = 15
NUMBERS = frozenset({"Int32", "Int64", "Decimal", "Double"})
OPERATORS = {
    "eq": "Equal",
    "ne": "NotEqual",
    "gt": "GreaterThan",
    "ge": "GreaterThanOrEqual",
    "lt": "LessThan",
    "le": "LessThanOrEqual",
}
SYSTEM_OPTIONS = frozenset(
    {"$select", "$filter", "$expand", "$orderby", "$top", "$count", "$apply", "$skiptoken", "$deltatoken"}
)


class QueryError(ValueError):
    """The query is not one that the Web API takes; the text is its message."""


class Ref(NamedTuple):
    """What a lookup column holds."""

    table: str
    id: str


class Store(Protocol):
    """What queries need of the rows."""

    tables: dict[str, Table]

    def find(self, table: str, row_id: str) -> Row | None: ...
    def related(self, navigation: Navigation, row_id: str) -> list[Row]: ...


@dataclasses.dataclass(frozen=True)
class Asker:
    """On whose behalf, and when, a query is answered."""

    now: datetime
    zone: str = "UTC"

    @property
    def local_now(self) -> datetime:
        """Return the moment in the user's zone."""
        return self.now.astimezone(zoneinfo.ZoneInfo(self.zone))


@dataclasses.dataclass
class Shape:
    """Which columns and related rows of a table an answer shows."""

    table: Table
    columns: list[Column]
    selected: bool = False  # by $select; else all
    expands: list["Expand"] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Expand:
    """One expanded navigation property with its options."""

    navigation: Navigation
    shape: Shape
    keep: Predicate | None = None
    order: list["Order"] = dataclasses.field(default_factory=list)
    top: int | None = None
    options: list[str] = dataclasses.field(default_factory=list)  # as written; a next link repeats them


@dataclasses.dataclass(frozen=True)
class Order:
    """One column of $orderby."""

    column: Column
    descending: bool


# -- names --------------------------------------------------------------------------------------------------------------


def find_property(table: Table, name: str) -> Column:
    """Return the column that a property name stands for."""
    column = table.property(name)
    if column is None:
        raise QueryError(f"Could not find a property named '{name}' on type '{CRM}{table.name}'.")
    return column


def find_navigation(table: Table, name: str) -> Navigation:
    """Return a navigation property by its name, which is case sensitive."""
    navigation = table.navigations.get(name)
    if navigation is None:
        raise QueryError(f"Could not find a property named '{name}' on type '{CRM}{table.name}'.")
    return navigation


def build_getter(column: Column) -> Getter:
    """Return a function that reads a column as the Web API shows it: a lookup as the id it holds."""
    name = column.name
    if column.is_lookup:
        return lambda row: ref.id if (ref := row.get(name)) else None
    return lambda row: row.get(name)


def parse_select(text: str, table: Table) -> list[Column]:
    """Return the columns of a $select."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise QueryError("Syntax error: an empty term was found in '$select'.")
    return list(dict.fromkeys(find_property(table, name) for name in names))


def parse_order(text: str, table: Table) -> list[Order]:
    """Return the columns of an $orderby."""
    order = []
    for term in text.split(","):
        words = term.split()
        if not 1 <= len(words) <= 2 or (len(words) == 2 and words[1] not in {"asc", "desc"}):
            raise QueryError(f"Syntax error in '$orderby' at '{term.strip()}'.")
        order.append(Order(find_property(table, words[0]), words[1:] == ["desc"]))
    return order


# -- ordering -----------------------------------------------------------------------------------------------------------


def order_guid(value: str) -> str:
    """Return a text that sorts ids as SQL Server does: by the last group first."""
    return value[24:] + value[19:23] + value[14:18] + value[9:13] + value[:8]


@functools.total_ordering
class _Descending:
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __lt__(self, other: "_Descending") -> bool:
        return bool(other.value < self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Descending) and bool(self.value == other.value)

    def __hash__(self) -> int:
        return hash(self.value)


def order_value(column: Column, value: Any) -> tuple[bool, Any]:
    """Return a comparable form of a value; empty sorts first, text without regard to case."""
    if value is None:
        return (False, 0)
    if column.edm == "Guid":
        return (True, order_guid(value))
    return (True, value.casefold() if isinstance(value, str) else value)


def build_sort_key(order: list[Order]) -> Callable[[Iterable[Any]], tuple[Any, ...]]:
    """Return a function from the comparable values of the ordered columns to a sort key."""
    directions = [term.descending for term in order]

    def key(parts: Iterable[Any]) -> tuple[Any, ...]:
        return tuple(_Descending(part) if down else part for part, down in zip(parts, directions, strict=True))

    return key


# -- $expand ------------------------------------------------------------------------------------------------------------


def split_outside(text: str, separator: str) -> list[str]:
    """Split a text at a separator that stands neither in quotes nor in parentheses."""
    parts, depth, quoted, start = [], 0, False, 0
    for position, char in enumerate(text):
        if char == "'":
            quoted = not quoted
        elif not quoted:
            depth += (char == "(") - (char == ")")
            if char == separator and depth == 0:
                parts.append(text[start:position])
                start = position + 1
    if quoted:
        raise QueryError(f"There is an unterminated literal at position {len(text)} in '{text}'.")
    if depth:
        raise QueryError(f"Syntax error: the parentheses in '{text}' do not match.")
    return [*parts, text[start:]]


def count_expands(expands: list[Expand]) -> int:
    """Count expanded properties, nested ones too."""
    return sum(1 + count_expands(expand.shape.expands) for expand in expands)


def parse_expand(text: str, table: Table, store: Store, asker: Asker) -> list[Expand]:
    """Return the expanded navigation properties of a $expand."""
    expands: list[Expand] = []
    for term in split_outside(text, ","):
        match = re.fullmatch(r"\s*([A-Za-z_]\w*)\s*(?:\((.*)\))?\s*", term, re.DOTALL)
        if not match:
            raise QueryError(f"Syntax error in '$expand' at '{term.strip()}'.")
        navigation = find_navigation(table, match[1])
        if any(expand.navigation.name == navigation.name for expand in expands):
            raise QueryError(f"The navigation property '{navigation.name}' is expanded more than once.")
        expands.append(_read_expand(navigation, match[2] or "", store, asker))
    if count_expands(expands) > MAX_EXPANDS:
        raise QueryError(f"The maximum number of $expand in a query is {MAX_EXPANDS}.")
    return expands


def _read_expand(navigation: Navigation, options: str, store: Store, asker: Asker) -> Expand:
    target = PRINCIPAL if navigation.target == "principal" else store.tables[navigation.target]
    expand = Expand(navigation, Shape(target, list(target.columns.values())))
    seen = set()
    for option in split_outside(options, ";") if options.strip() else []:
        name, _, value = option.strip().partition("=")
        if name in seen:
            raise QueryError(f"The query option '{name}' is given more than once in $expand of '{navigation.name}'.")
        seen.add(name)
        if name != "$top":
            expand.options.append(option.strip())
        match name:
            case "$select":
                expand.shape.columns, expand.shape.selected = parse_select(value, target), True
            case "$expand":
                expand.shape.expands = parse_expand(value, target, store, asker)
            case "$filter" if navigation.many:
                expand.keep = parse_filter(value, target, store, asker)
            case "$orderby" if navigation.many:
                expand.order = parse_order(value, target)
            case "$top" if navigation.many:
                expand.top = read_natural(name, value)
            case _:
                raise QueryError(f"The query option '{name}' is not supported in $expand of '{navigation.name}'.")
    return expand


def read_natural(name: str, value: str) -> int:
    """Return the whole number of an option such as $top."""
    if not re.fullmatch(r"[0-9]{1,9}", value):
        raise QueryError(f"Invalid value '{value}' for {name} query option found.")
    return int(value)


PRINCIPAL = Table(
    "principal", "Principal", "principals", "ownerid", "ownerid", {"ownerid": Column("ownerid", "Uniqueidentifier")}, {}
)


# -- $filter ------------------------------------------------------------------------------------------------------------


class Literal(NamedTuple):
    """A constant with its OData type; "Null" and "List" besides the real ones."""

    edm: str
    value: Any


class Property(NamedTuple):
    """A column, possibly reached through lookups."""

    column: Column
    get: Getter


TOKENS = re.compile(
    r"""\s*(?:
      (?P<string>'(?:[^']|'')*')
    | (?P<guid>[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12})
    | (?P<moment>\d{4}-\d\d-\d\dT\d\d:\d\d(?::\d\d(?:\.\d{1,7})?)?(?:Z|[+-]\d\d:\d\d)?)
    | (?P<date>\d{4}-\d\d-\d\d)
    | (?P<number>-?\d+(?:\.\d+)?)
    | (?P<list>\[(?:"(?:[^"\\]|\\.)*"|[^\]"])*\])
    | (?P<alias>@\w+)
    | (?P<name>[A-Za-z_]\w*(?:[./][A-Za-z_]\w*)*)
    | (?P<mark>[(),=])
    )""",
    re.VERBOSE,
)


def parse_filter(
    text: str, table: Table, store: Store, asker: Asker, aliases: Mapping[str, str] | None = None
) -> Predicate:
    """Return a function that tells whether a row meets a $filter."""
    return _FilterParser(text, table, store, asker, aliases or {}).parse()


def read_moment(text: str) -> datetime:
    """Return the moment of an ISO text; without offset it is UTC. Raises ValueError."""
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


class _FilterParser:
    """A recursive descent over the tokens; each method returns the function for what it has read."""

    def __init__(self, text: str, table: Table, store: Store, asker: Asker, aliases: Mapping[str, str]) -> None:
        self.text, self.table, self.store, self.asker, self.aliases = text, table, store, asker, aliases
        self.tokens = self._split(text)
        self.at = 0

    def parse(self) -> Predicate:
        if not self.tokens:
            raise QueryError("Syntax error: $filter is empty.")
        keep = self._any()
        if self.at < len(self.tokens):
            raise self._unexpected()
        return keep

    @staticmethod
    def _split(text: str) -> list[tuple[str, str, int]]:
        tokens, position, end = [], 0, len(text.rstrip())
        while position < end:
            match = TOKENS.match(text, position)
            if match is None:
                start = position + len(text[position:]) - len(text[position:].lstrip())
                if text[start] == "'":
                    raise QueryError(f"There is an unterminated literal at position {len(text)} in '{text}'.")
                raise QueryError(
                    f"Syntax error: character '{text[start]}' is not valid at position {start} in '{text}'."
                )
            kind = str(match.lastgroup)
            tokens.append((kind, match[kind], match.start(kind)))
            position = match.end()
        return tokens

    # -- tokens

    def _peek(self) -> tuple[str, str]:
        return self.tokens[self.at][:2] if self.at < len(self.tokens) else ("end", "")

    def _next(self) -> tuple[str, str]:
        token = self._peek()
        self.at += 1
        return token

    def _take(self, value: str) -> bool:
        if self._peek() in {("mark", value), ("name", value)}:
            self.at += 1
            return True
        return False

    def _expect(self, mark: str) -> None:
        if not self._take(mark):
            raise self._unexpected(mark)

    def _unexpected(self, wanted: str = "") -> QueryError:
        position = self.tokens[self.at][2] if self.at < len(self.tokens) else len(self.text)
        hint = f"'{wanted}' expected" if wanted else "unexpected token"
        return QueryError(f"Syntax error: {hint} at position {position} in '{self.text}'.")

    # -- and, or, not

    def _any(self) -> Predicate:
        choices = [self._all()]
        while self._take("or"):
            choices.append(self._all())
        return choices[0] if len(choices) == 1 else lambda row: any(keep(row) for keep in choices)

    def _all(self) -> Predicate:
        needs = [self._one()]
        while self._take("and"):
            needs.append(self._one())
        return needs[0] if len(needs) == 1 else lambda row: all(keep(row) for keep in needs)

    def _one(self) -> Predicate:
        if self._take("not"):
            keep = self._one()
            return lambda row: not keep(row)
        if self._take("("):
            keep = self._any()
            self._expect(")")
            return keep
        kind, value = self._next()
        if kind != "name":
            self.at -= 1
            raise self._unexpected()
        if self._take("("):
            return self._function(value) if value.startswith(CRM) else self._text_function(value)
        return self._comparison(self._property(value))

    # -- comparisons

    def _comparison(self, left: Property) -> Predicate:
        kind, operator = self._next()
        if kind != "name" or operator not in OPERATORS:
            self.at -= 1
            raise self._unexpected("comparison operator")
        right = self._operand()
        other = right.column.edm if isinstance(right, Property) else right.edm
        self._check_types(left.column.edm, other, OPERATORS[operator])
        compare = _COMPARE[operator]
        mine, column = left.get, left.column
        if isinstance(right, Property):
            theirs, their_column = right.get, right.column
            return lambda row: compare(order_value(column, mine(row)), order_value(their_column, theirs(row)))
        if right.value is None:
            if operator not in {"eq", "ne"}:
                raise QueryError(f"The operator '{operator}' is not supported with null.")
            wanted = operator == "eq"
            return lambda row: (mine(row) is None) is wanted
        fixed = order_value(column, right.value)
        if operator == "eq":
            return lambda row: order_value(column, mine(row)) == fixed
        if operator == "ne":  # an empty value is not equal to any other
            return lambda row: order_value(column, mine(row)) != fixed
        return lambda row: (value := mine(row)) is not None and compare(order_value(column, value), fixed)

    @staticmethod
    def _check_types(left: str, right: str, operation: str) -> None:
        same = left == right or right == "Null" or (left in NUMBERS and right in NUMBERS)
        if not same and not (left == "DateTimeOffset" and right == "Date"):
            raise QueryError(
                "A binary operator with incompatible types was detected. "
                f"Found operand types 'Edm.{left}' and 'Edm.{right}' for operator kind '{operation}'."
            )

    def _operand(self) -> Literal | Property:
        kind, value = self._peek()
        if kind == "name" and value not in {"null", "true", "false"}:
            self.at += 1
            return self._property(value)
        return self._literal()

    def _literal(self) -> Literal:
        kind, value = self._next()
        if kind == "alias":
            if value not in self.aliases:
                raise QueryError(f"The parameter alias '{value}' has no value.")
            inner = _FilterParser(self.aliases[value], self.table, self.store, self.asker, {})
            literal = inner._literal()
            if inner.at != len(inner.tokens):
                raise inner._unexpected()
            return literal
        try:
            match kind:
                case "string":
                    return Literal("String", value[1:-1].replace("''", "'"))
                case "guid":
                    return Literal("Guid", value.lower())
                case "moment":
                    return Literal("DateTimeOffset", read_moment(value))
                case "date":
                    return Literal("Date", read_moment(value))
                case "number":
                    return Literal("Decimal", float(value)) if "." in value else Literal("Int32", int(value))
                case "list":
                    return Literal("List", json.loads(value))
                case "name" if value in {"null", "true", "false"}:
                    return Literal("Null", None) if value == "null" else Literal("Boolean", value == "true")
        except ValueError:
            raise QueryError(f"Unrecognized literal '{value}' in '{self.text}'.") from None
        self.at -= 1
        raise self._unexpected("literal")

    def _property(self, path: str) -> Property:
        *steps, name = path.split("/")
        table, hops = self.table, []
        for step in steps:
            navigation = find_navigation(table, step)
            if navigation.many or navigation.target == "principal":
                raise QueryError(f"The path '{path}' is not supported in $filter.")
            hops.append(navigation)
            table = self.store.tables[navigation.target]
        column = find_property(table, name)
        get = build_getter(column)
        for navigation in reversed(hops):
            get = self._through(navigation, get)
        return Property(column, get)

    def _through(self, navigation: Navigation, get: Getter) -> Getter:
        find, column, target = self.store.find, navigation.column, navigation.target

        def read(row: Row) -> Any:
            ref = row.get(column)
            related = find(target, ref.id) if ref and ref.table == target else None
            return None if related is None else get(related)

        return read

    # -- functions

    def _text_function(self, name: str) -> Predicate:
        if name not in {"contains", "startswith", "endswith"}:
            raise QueryError(f"An unknown function with name '{name}' was found.")
        kind, path = self._next()
        if kind != "name":
            raise QueryError(f"The first argument of '{name}' must be a column.")
        column, get = self._property(path)
        self._expect(",")
        literal = self._literal()
        self._expect(")")
        if column.edm != "String" or literal.edm != "String":
            raise QueryError(
                f"No function signature for the function with name '{name}' matches the specified arguments."
            )
        before, after = name != "startswith", name != "endswith"
        like = f"{'.*' if before else ''}{_like(literal.value)}{'.*' if after else ''}"
        try:
            pattern = re.compile(like, re.IGNORECASE | re.DOTALL)
        except re.error:  # a range such as [z-a] matches nothing in SQL
            return lambda row: False  # noqa: ARG005 - a predicate takes a row
        return lambda row: (value := get(row)) is not None and pattern.fullmatch(value) is not None

    def _function(self, full_name: str) -> Predicate:
        arguments: dict[str, Literal] = {}
        while not self._take(")"):
            if arguments:
                self._expect(",")
            kind, name = self._next()
            if kind != "name" or name not in {"PropertyName", "PropertyValue", "PropertyValues"}:
                self.at -= 1
                raise self._unexpected("PropertyName")
            self._expect("=")
            arguments[name] = self._literal()
        name = full_name.removeprefix(CRM)
        if name not in FUNCTIONS:
            raise QueryError(f"An unknown function with name '{full_name}' was found.")
        wants, build = FUNCTIONS[name]
        if set(arguments) != {"PropertyName", *([wants] if wants else [])} or arguments["PropertyName"].edm != "String":
            needed = ", ".join(["PropertyName='column'", *([wants] if wants else [])])
            raise QueryError(f"The function '{full_name}' takes the parameters {needed}.")
        column = self.table.columns.get(arguments["PropertyName"].value)
        if column is None:
            raise QueryError(
                f"'{self.table.name}' entity doesn't contain attribute with Name = '{arguments['PropertyName'].value}'."
            )
        return build(_Call(full_name, column, build_getter(column), arguments[wants] if wants else None, self.asker))


_CLASS_MARKS = re.compile(r"[\\^\[&~|]|-(?=-)")


def _escape(match: re.Match[str]) -> str:
    return "\\" + match[0]


def _like(text: str) -> str:
    """Translate a literal of contains() and its like to a regular expression: `%`, `_` and `[…]` are SQL wildcards."""
    pattern, position = "", 0
    while position < len(text):
        char = text[position]
        end = text.find("]", position + 2)
        if char == "[" and end > 0:
            inner = text[position + 1 : end]
            sign = "^" if inner.startswith("^") else ""
            pattern += f"[{sign}{_CLASS_MARKS.sub(_escape, inner[len(sign) :])}]"
            position = end + 1
            continue
        pattern += {"%": ".*", "_": "."}.get(char) or re.escape(char)
        position += 1
    return pattern


_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
}


# -- Dataverse's own functions ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Call:
    """One use of a Dataverse function: its column and second argument."""

    name: str
    column: Column
    get: Getter
    argument: Literal | None
    asker: Asker

    def need_moments(self) -> None:
        if self.column.edm != "DateTimeOffset":
            raise QueryError(
                f"The function '{self.name}' needs a date column; '{self.column.name}' is {self.column.kind}."
            )

    def natural(self) -> int:
        if self.argument is None or self.argument.edm != "Int32" or self.argument.value < 1:
            raise QueryError(
                f"The function '{self.name}' needs a PropertyValue of type Edm.Int64 above 0, without quotes."
            )
        return int(self.argument.value)

    def values(self) -> list[Any]:
        """Return the strings of PropertyValues, converted to the column's type."""
        given = self.argument.value if self.argument and self.argument.edm == "List" else None
        if not given or not all(isinstance(value, str) for value in given):
            raise QueryError(f"The function '{self.name}' needs PropertyValues as a list of strings in double quotes.")
        return [self.convert(value) for value in given]

    def convert(self, text: str) -> Any:
        try:
            match self.column.edm:
                case "DateTimeOffset":
                    return read_moment(text)
                case "Int32" | "Int64":
                    return int(text)
                case "Decimal" | "Double":
                    return float(text)
                case "Boolean":
                    return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
                case "Guid":
                    return text.lower()
        except (ValueError, KeyError):
            raise QueryError(f"The value '{text}' does not fit column '{self.column.name}'.") from None
        return text

    def within(self, start: datetime | None, end: datetime | None, end_included: bool = False) -> Predicate:
        self.need_moments()
        get = self.get

        def keep(row: Row) -> bool:
            value = get(row)
            if value is None or (start is not None and value < start):
                return False
            return end is None or value < end or (end_included and value == end)

        return keep


def _midnight(moment: datetime, days: int = 0) -> datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0, fold=0) + timedelta(days=days)


def _day_of_argument(call: _Call) -> datetime:
    if call.argument is None or call.argument.edm != "String":
        raise QueryError(f"The function '{call.name}' needs a PropertyValue in single quotes.")
    try:
        day = datetime.fromisoformat(call.argument.value[:10])
    except ValueError:
        raise QueryError(f"The value '{call.argument.value}' is no date.") from None
    return day.replace(tzinfo=zoneinfo.ZoneInfo(call.asker.zone))


def _days(first: int, last: int | None) -> Callable[[_Call], Predicate]:
    """Return a builder for whole days relative to today; last None means until now."""

    def build(call: _Call) -> Predicate:
        now = call.asker.local_now
        if last is None:
            return call.within(_midnight(now, first), now, end_included=True)
        return call.within(_midnight(now, first), _midnight(now, last))

    return build


def _last_x_days(call: _Call) -> Predicate:
    return call.within(_midnight(call.asker.local_now, -call.natural()), call.asker.now, end_included=True)


def _hour(call: _Call) -> datetime:
    return call.asker.now.replace(minute=0, second=0, microsecond=0)


def _last_x_hours(call: _Call) -> Predicate:
    return call.within(_hour(call) - timedelta(hours=call.natural()), call.asker.now, end_included=True)


def _last_week(call: _Call) -> Predicate:
    today = _midnight(call.asker.local_now)
    sunday = today - timedelta(days=(today.weekday() + 1) % 7)
    return call.within(sunday - timedelta(days=7), sunday)


def _last_month(call: _Call) -> Predicate:
    first = _midnight(call.asker.local_now).replace(day=1)
    return call.within((first - timedelta(days=1)).replace(day=1), first)


def _between(call: _Call) -> Predicate:
    values = call.values()
    if len(values) != 2:
        raise QueryError(f"The function '{call.name}' needs exactly two PropertyValues.")
    low, high = (order_value(call.column, value) for value in values)
    get, column = call.get, call.column
    return lambda row: (value := get(row)) is not None and low <= order_value(column, value) <= high


def _in(call: _Call) -> Predicate:
    wanted = {order_value(call.column, value) for value in call.values()}
    get, column = call.get, call.column
    return lambda row: order_value(column, get(row)) in wanted


FUNCTIONS: dict[str, tuple[str | None, Callable[[_Call], Predicate]]] = {  # name -> (second parameter, builder)
    "Today": (None, _days(0, 1)),
    "Yesterday": (None, _days(-1, 0)),
    "LastWeek": (None, _last_week),
    "LastMonth": (None, _last_month),
    "Last7Days": (None, _days(-7, None)),
    "LastXDays": ("PropertyValue", _last_x_days),
    "LastXHours": ("PropertyValue", _last_x_hours),
    "OlderThanXMinutes": ("PropertyValue", lambda c: c.within(None, c.asker.now.replace(second=0, microsecond=0) - timedelta(minutes=c.natural()))),
    "OlderThanXHours": ("PropertyValue", lambda c: c.within(None, _hour(c) - timedelta(hours=c.natural()))),
    "OlderThanXDays": ("PropertyValue", lambda c: c.within(None, _midnight(c.asker.local_now, -c.natural()))),
    "On": ("PropertyValue", lambda c: c.within(day := _day_of_argument(c), day + timedelta(days=1))),
    "OnOrAfter": ("PropertyValue", lambda c: c.within(_day_of_argument(c), None)),
    "OnOrBefore": ("PropertyValue", lambda c: c.within(None, _day_of_argument(c) + timedelta(days=1))),
    "Between": ("PropertyValues", _between),
    "In": ("PropertyValues", _in),
}  # fmt: skip
