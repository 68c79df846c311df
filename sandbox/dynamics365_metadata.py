"""EntityDefinitions of the Dynamics 365 simulator: what a client reads to describe a table."""

import re
from collections.abc import Collection
from typing import Any

from sandbox import dynamics365_query as q
from sandbox.dynamics365_calls import NO_SEGMENT, Answer, Request
from sandbox.dynamics365_query import QueryError
from sandbox.dynamics365_store import ApiError, Rows
from sandbox.dynamics365_tables import (
    BASE_ATTRIBUTE,
    CAST_PREFIX,
    CASTS,
    ENUM_CASTS,
    Column,
    Table,
    describe_column,
    describe_table,
)


class MetadataReader:
    """EntityDefinitions and what hangs below: enough to describe a table."""

    def __init__(self, rows: Rows, change_tracking: Collection[str], request: Request) -> None:
        self.rows, self.change_tracking, self.request = rows, change_tracking, request

    def answer(self, segments: list[str]) -> Answer:
        """Answer a path that begins with EntityDefinitions."""
        self.request.allow_options("$select", "$filter", "$expand")
        definitions = [describe_table(table, table.name in self.change_tracking) for table in self.rows.tables.values()]
        key = re.fullmatch(r"EntityDefinitions(?:\((.*)\))?", segments[0], re.DOTALL)
        if key is None:
            raise ApiError(404, NO_SEGMENT, f"Resource not found for the segment '{segments[0]}'.")
        if key[1] is None:
            self._end(segments, 1)
            return self._write_list("EntityDefinitions", definitions, tuple(definitions[0]))
        definition = self._pick(definitions, key[1], "Entity")
        if len(segments) == 1:
            return self._write_one("EntityDefinitions", definition, tuple(definition))
        table = self.rows.tables[definition["LogicalName"]]
        return self._answer_attributes(table, segments)

    def _answer_attributes(self, table: Table, segments: list[str]) -> Answer:
        head = re.fullmatch(r"Attributes(?:\((.*)\))?", segments[1], re.DOTALL)
        if head is None:
            raise ApiError(404, NO_SEGMENT, f"Resource not found for the segment '{segments[1]}'.")
        self._end(segments, 3)
        columns = [describe_column(table, column) for column in table.columns.values()]
        kept = BASE_ATTRIBUTE
        cast = segments[2].removeprefix(CAST_PREFIX) if len(segments) == 3 else None
        if cast is not None:
            if not segments[2].startswith(CAST_PREFIX) or cast not in CASTS:
                raise ApiError(404, NO_SEGMENT, f"Resource not found for the segment '{segments[2]}'.")
            columns = [c for c in columns if c["@odata.type"] == f"#{CAST_PREFIX}{cast}"]
            kept = tuple(
                dict.fromkeys(
                    [
                        *BASE_ATTRIBUTE,
                        *(name for c in columns for name in c if name not in {"@odata.type", "OptionSet"}),
                    ]
                )
            )
        context = f"EntityDefinitions('{table.name}')/Attributes"
        expandable = cast in ENUM_CASTS
        if head[1] is None:
            return self._write_list(context, columns, kept, expandable, derived=cast is None)
        return self._write_one(
            context, self._pick(columns, head[1], "Attribute"), kept, expandable, derived=cast is None
        )

    @staticmethod
    def _end(segments: list[str], length: int) -> None:
        if len(segments) > length:
            raise ApiError(404, NO_SEGMENT, f"Resource not found for the segment '{segments[length]}'.")

    @staticmethod
    def _pick(definitions: list[dict[str, Any]], key: str, what: str) -> dict[str, Any]:
        named = re.fullmatch(r"LogicalName='(\w+)'", key)
        for definition in definitions:
            if definition["LogicalName"] == (named[1] if named else None) or definition["MetadataId"] == key.lower():
                return definition
        raise ApiError(404, "0x80041102", f"{what} with the key {key} was not found in the MetadataCache.")

    def _write_list(
        self,
        context: str,
        items: list[dict[str, Any]],
        kept: tuple[str, ...],
        expandable: bool = False,
        derived: bool = False,
    ) -> Answer:
        if "$filter" in self.request.options:
            items = self._keep(items, kept)
        items = [self._project(item, kept, expandable, derived) for item in items]
        return Answer(200, {"@odata.context": f"{self.request.call.root}$metadata#{context}", "value": items})

    def _write_one(
        self, context: str, item: dict[str, Any], kept: tuple[str, ...], expandable: bool = False, derived: bool = False
    ) -> Answer:
        shown = self._project(item, kept, expandable, derived)
        return Answer(200, {"@odata.context": f"{self.request.call.root}$metadata#{context}/$entity", **shown})

    def _keep(self, items: list[dict[str, Any]], kept: tuple[str, ...]) -> list[dict[str, Any]]:
        kinds = {bool: "Boolean", str: "String"}
        columns = (
            {
                name: Column(name, kinds[type(value)])
                for name, value in items[0].items()
                if name in kept and type(value) in kinds
            }
            if items
            else {}
        )
        table = Table("EntityMetadata", "", "", "MetadataId", "", columns, {})
        keep = q.parse_filter(self.request.options["$filter"], table, self.rows, self.request.asker)
        return [item for item in items if keep(item)]

    def _project(self, item: dict[str, Any], kept: tuple[str, ...], expandable: bool, derived: bool) -> dict[str, Any]:
        options = self.request.options
        names = [name.strip() for name in options["$select"].split(",")] if "$select" in options else None
        for name in names or ():
            if name not in kept:
                raise QueryError(
                    f"Could not find a property named '{name}' on this type; derived properties need a cast."
                )
        if names is None and derived:  # without $select a definition comes whole, as its own type
            kept = tuple(name for name in item if name not in {"OptionSet"})
        shown = {name: item[name] for name in (names or kept) if name in item}
        if "@odata.type" in item and derived:
            shown = {"@odata.type": item["@odata.type"], **shown}
        shown.setdefault("MetadataId", item["MetadataId"])
        if "$expand" in options:
            if not expandable or not (
                match := re.fullmatch(r"OptionSet(?:\(\$select=([\w,]+)\))?", options["$expand"])
            ):
                raise QueryError(f"The $expand '{options['$expand']}' is not supported here.")
            wanted = match[1].split(",") if match[1] else list(item["OptionSet"])
            shown["OptionSet"] = {
                name: item["OptionSet"][name] for name in ["MetadataId", *wanted] if name in item["OptionSet"]
            }
        return shown
