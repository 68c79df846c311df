"""How the Dynamics 365 simulator shows a row: property order, annotations, expanded rows."""

import dataclasses
import fnmatch
from datetime import datetime
from typing import Any

from sandbox.dynamics365_paging import Cookies
from sandbox.dynamics365_query import Asker, Expand, Ref, Row, Shape, build_sort_key, order_guid
from sandbox.dynamics365_store import Rows
from sandbox.dynamics365_tables import CHOICES, Column, Navigation, Table

FORMATTED = "OData.Community.Display.V1.FormattedValue"
LOOKUP_NAME = "Microsoft.Dynamics.CRM.lookuplogicalname"
LOOKUP_NAVIGATION = "Microsoft.Dynamics.CRM.associatednavigationproperty"
TOTAL_COUNT = "Microsoft.Dynamics.CRM.totalrecordcount"
COUNT_LIMIT = 5000


@dataclasses.dataclass(frozen=True)
class Annotations:
    """Which annotations a caller asked for."""

    patterns: tuple[str, ...] = ()

    def wants(self, name: str) -> bool:
        """Tell whether an annotation is to be shown."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.patterns)


def etag_of(row: Row) -> str:
    """Return a row's version as an entity tag."""
    return f'W/"{row["versionnumber"]}"'


def shown_columns(shape: Shape) -> list[Column]:
    """Return the columns of an answer: what was selected, the currency of a money column, the key."""
    columns = list(shape.columns)
    table = shape.table
    wanted = [
        *(["transactioncurrencyid"] if any(c.kind == "Money" for c in columns) else []),
        table.key,
        *table.also_returned,
    ]
    for name in wanted:
        column = table.columns.get(name)
        if column and column not in columns:
            columns.append(column)
    return columns


class Renderer:
    """Turns rows into JSON for one request."""

    def __init__(self, rows: Rows, annotations: Annotations, asker: Asker, cookies: Cookies, page_size: int) -> None:
        self.rows, self.asker, self.cookies, self.page_size = rows, asker, cookies, page_size
        self.formatted = annotations.wants(FORMATTED)
        self.lookup_name = annotations.wants(LOOKUP_NAME)
        self.lookup_navigation = annotations.wants(LOOKUP_NAVIGATION)

    def show(self, row: Row, shape: Shape, nested: bool = False) -> dict[str, Any]:
        """Return a row as the Web API sends it; nested rows carry no tag."""
        shown: dict[str, Any] = {} if nested else {"@odata.etag": etag_of(row)}
        for column in shown_columns(shape):
            value = row.get(column.name)
            name = column.property_name
            if self.formatted and value is not None and (text := self._format(column, value)) is not None:
                shown[f"{name}@{FORMATTED}"] = text
            if isinstance(value, Ref):
                if self.lookup_navigation and (navigation := navigation_of(shape.table, column, value)):
                    shown[f"{name}@{LOOKUP_NAVIGATION}"] = navigation
                if self.lookup_name:
                    shown[f"{name}@{LOOKUP_NAME}"] = value.table
                value = value.id
            elif isinstance(value, datetime):
                value = write_moment(value)
            shown[name] = value
        for expand in shape.expands:
            self._show_expanded(shown, row, shape, expand)
        return shown

    def _show_expanded(self, shown: dict[str, Any], row: Row, shape: Shape, expand: Expand) -> None:
        navigation = expand.navigation
        if not navigation.many:
            ref = row.get(navigation.column)
            if navigation.target == "principal":
                shown[navigation.name] = {"ownerid": ref.id} if ref else None
                return
            related = self.rows.find(ref.table, ref.id) if ref and ref.table == navigation.target else None
            shown[navigation.name] = self.show(related, expand.shape, nested=True) if related else None
            return
        related_rows = sort_related(self.rows, navigation, row[shape.table.key], expand)
        limit = self.page_size if expand.top is None else min(self.page_size, expand.top)
        shown[navigation.name] = [self.show(related, expand.shape, nested=True) for related in related_rows[:limit]]
        if expand.top is None:
            path = f"{shape.table.set_name}({row[shape.table.key]})/{navigation.name}"
            shown[f"{navigation.name}@odata.nextLink"] = self.cookies.link(
                path, expand.options, {"page": 2, "skip": limit}
            )

    def _format(self, column: Column, value: Any) -> str | None:
        if isinstance(value, Ref):
            return self.rows.label_of(value) if value.table in self.rows.tables else None
        if column.kind in CHOICES:
            return next((option.label for option in column.options if option.value == value), None)
        if isinstance(value, datetime):
            return format_moment(value, self.asker)
        match column.edm:
            case "Boolean":
                return "Yes" if value else "No"
            case "Int32" | "Int64":
                return f"{value:,}"
            case "Decimal":
                return f"${value:,.2f}"
        return None


def sort_related(rows: Rows, navigation: Navigation, row_id: str, expand: Expand) -> list[Row]:
    """Return the rows of a collection that an $expand keeps, in its order."""
    found = [row for row in rows.related(navigation, row_id) if expand.keep is None or expand.keep(row)]
    key = expand.shape.table.key
    found.sort(key=lambda row: order_guid(row[key]))
    if expand.order:
        sort_key = build_sort_key(expand.order)
        found.sort(key=lambda row: sort_key(rows.order_value(term.column, row) for term in expand.order))
    return found


def navigation_of(table: Table, column: Column, ref: Ref) -> str | None:
    """Return the navigation property that belongs to what a lookup holds."""
    names = (
        navigation.name
        for navigation in table.navigations.values()
        if not navigation.many and navigation.column == column.name
    )
    return next((name for name in names if name in {column.name, f"{column.name}_{ref.table}"}), None)


def write_moment(moment: datetime) -> str:
    """Return a stored moment as the Web API writes it: UTC, whole seconds."""
    return moment.isoformat()[:19] + "Z"


def format_moment(moment: datetime, asker: Asker) -> str:
    """Return a moment as the user's settings show it."""
    local = dataclasses.replace(asker, now=moment).local_now
    return f"{local.month}/{local.day}/{local.year} {local.hour % 12 or 12}:{local.minute:02d} {'AM' if local.hour < 12 else 'PM'}"


def describe_context(root: str, shape: Shape, selected: bool, suffix: str = "") -> str:
    """Return the @odata.context of an answer."""

    def names(shape: Shape) -> str:
        parts = [column.property_name for column in shape.columns] if shape.selected else []
        parts += [f"{expand.navigation.name}({names(expand.shape)})" for expand in shape.expands]
        return ",".join(parts)

    inner = names(shape) if selected or shape.expands else ""
    return f"{root}$metadata#{shape.table.set_name}{f'({inner})' if inner else ''}{suffix}"
