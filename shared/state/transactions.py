"""Writes that go together: checked and cut into the pieces that Azure takes at once; pure."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from azure.core import MatchConditions
from azure.data.tables import UpdateMode

from shared.state.entities import Entity, check_keys, to_entity
from shared.state.rows import StateRow

# https://learn.microsoft.com/rest/api/storageservices/performing-entity-group-transactions
MAX_ROWS = 100
MAX_BYTES = 3_800_000  # of 4 MiB, as the headers of each part are estimated
PART_BYTES = 1_000  # headers of one part
NO_CONTENT = {"response_preference": "return-no-content"}  # else an insert's answer repeats the whole row

Action = Literal["insert", "replace", "upsert", "delete"]


@dataclasses.dataclass
class Step:
    """One row of a transaction; `gone` when it was to be deleted and is not there any more."""

    action: Action
    row: StateRow
    index: int  # among all operations that were asked for
    mark: str
    entity: Entity = dataclasses.field(repr=False)
    gone: bool = False

    def operation(self) -> tuple[str, Entity, dict[str, Any]]:
        """Return the step as the SDK takes it."""
        unchanged = {"etag": self.row.etag, "match_condition": MatchConditions.IfNotModified} if self.row.etag else {}
        match self.action:
            case "insert":
                return "create", self.entity, NO_CONTENT
            case "upsert":
                return "upsert", self.entity, {"mode": UpdateMode.REPLACE}
            case "replace":
                return "update", self.entity, {"mode": UpdateMode.REPLACE, **unchanged}
            case "delete":
                return "delete", self.entity, unchanged

    def sent_bytes(self) -> int:
        """Return how much of a request the step takes, about."""
        keys = len(self.entity["PartitionKey"]) + len(self.entity["RowKey"])
        return PART_BYTES + 3 * keys + len(json.dumps(self.entity, default=str))


def build_steps(operations: Sequence[tuple[Action, StateRow]], mark: str) -> list[Step]:
    """Build the steps of a transaction; every row carries the mark of this write.

    Raises ValueError for rows of several partitions, a row named twice, or a replaced one that was never read.
    """
    steps = []
    for index, (action, row) in enumerate(operations):
        if action == "replace" and not row.etag:
            raise ValueError(f"this {type(row).__name__} was never read: it has no etag")
        if action == "delete":
            check_keys(type(row), row.partition_key, row.row_key)
            entity = {"PartitionKey": row.partition_key, "RowKey": row.row_key}
        else:
            entity = to_entity(row, mark)
        steps.append(Step(action, row, index, mark, entity))
    if len({(row.TABLE, row.partition_key) for _, row in operations}) > 1:
        raise ValueError("a transaction holds rows of one partition of one table")
    if len({row.row_key for _, row in operations}) < len(operations):
        raise ValueError("a transaction names each row once")
    return steps


def split_steps(steps: Sequence[Step]) -> Iterator[list[Step]]:
    """Cut steps into pieces of at most 100 rows and 4 MiB, in order."""
    piece: list[Step] = []
    size = 0
    for step in steps:
        step_bytes = step.sent_bytes()
        if piece and (len(piece) == MAX_ROWS or size + step_bytes > MAX_BYTES):
            yield piece
            piece, size = [], 0
        piece.append(step)
        size += step_bytes
    if piece:
        yield piece
