"""Writes that go together: checked, cut into the pieces that Azure takes at once, and written as its batch format; pure.

The SDK sends a batch as it comes from here. Its own `submit_transaction` makes and reads a mail message with an HTTP
request inside for every row, which took a third of a worker's CPU in the bulk lane.
https://learn.microsoft.com/rest/api/storageservices/performing-entity-group-transactions
"""

import dataclasses
import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import quote

from azure.core.exceptions import HttpResponseError, ServiceResponseError
from azure.core.rest import HttpRequest, HttpResponse

from shared.state.entities import Entity, check_keys, to_entity
from shared.state.rows import StateRow

MAX_ROWS = 100
MAX_BYTES = 3_800_000  # of 4 MiB, as the headers of each part are estimated
PART_BYTES = 1_000  # headers of one part
PART = "Content-Type: application/http\r\nContent-Transfer-Encoding: binary\r\n\r\n"
PART_HEADERS = (
    "Content-Type: application/json\r\n"
    "Accept: application/json;odata=minimalmetadata\r\n"
    "DataServiceVersion: 3.0\r\n"
    "Prefer: return-no-content\r\n"  # else an insert's answer repeats the whole row
)
BATCH_HEADERS = {"Accept": "application/json", "DataServiceVersion": "3.0", "MaxDataServiceVersion": "3.0;NetFx"}
ANSWER = re.compile(rb"^HTTP/1\.1 (\d{3})[^\n]*\n(.*?)(?:\r?\n){2}(.*?)(?=\r?\n--)", re.MULTILINE | re.DOTALL)
ETAG = re.compile(rb"^etag:[ \t]*(.+?)[ \t]*\r?$", re.MULTILINE | re.IGNORECASE)
AT_FAULT = re.compile(r"(\d{1,3}):")  # a refusal's message begins with the number of the row

Action = Literal["insert", "replace", "upsert", "delete"]
METHODS: Mapping[Action, str] = {"insert": "POST", "replace": "PUT", "upsert": "PUT", "delete": "DELETE"}


class BatchError(HttpResponseError):
    """A batch that storage refused; `index` is the row that it names, None when it names none."""

    def __init__(self, response: HttpResponse, status: int, body: bytes) -> None:
        super().__init__(message=f"a batch was refused ({status})", response=response)
        self.status_code = status
        error = _read_error(body)
        self.error_code = str(error.get("code") or response.headers.get("x-ms-error-code") or "")
        named = AT_FAULT.match(str((error.get("message") or {}).get("value") or ""))
        self.index = int(named[1]) if named else None


@dataclasses.dataclass
class Step:
    """One row of a transaction; `gone` when it was to be deleted and is not there any more."""

    action: Action
    row: StateRow
    index: int  # among all operations that were asked for
    mark: str
    body: str = dataclasses.field(repr=False)  # the row as JSON; "" to delete it
    gone: bool = False

    def sent_bytes(self) -> int:
        """Return how much of a request the step takes, about."""
        return PART_BYTES + 3 * len(self.row.partition_key + self.row.row_key) + len(self.body)

    def request(self, table_url: str) -> str:
        """Return the step as an HTTP request."""
        match_header = f"If-Match: {self.row.etag or '*'}\r\n" if self.action in ("replace", "delete") else ""
        length = f"Content-Length: {len(self.body)}\r\n" if self.body else ""
        where = (
            ""
            if self.action == "insert"
            else f"(PartitionKey={_quote(self.row.partition_key)},RowKey={_quote(self.row.row_key)})"
        )
        return f"{METHODS[self.action]} {table_url}{where} HTTP/1.1\r\n{PART_HEADERS}{match_header}{length}\r\n{self.body}\r\n"


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
            body = ""
        else:
            body = _to_json(to_entity(row, mark))
        steps.append(Step(action, row, index, mark, body))
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


def build_batch(steps: Sequence[Step], account_url: str, table: str) -> HttpRequest:
    """Build the request that writes steps all or nothing."""
    batch, changes = f"batch_{uuid.uuid4()}", f"changeset_{uuid.uuid4()}"
    parts = "".join(f"--{changes}\r\n{PART}{step.request(f'{account_url}/{table}')}" for step in steps)
    body = (
        f"--{batch}\r\nContent-Type: multipart/mixed; boundary={changes}\r\n\r\n{parts}--{changes}--\r\n--{batch}--\r\n"
    )
    headers = BATCH_HEADERS | {"Content-Type": f"multipart/mixed; boundary={batch}"}
    return HttpRequest("POST", f"{account_url}/$batch", headers=headers, content=body.encode())


def read_etags(response: HttpResponse, steps: Sequence[Step]) -> list[str]:
    """Return the etags of the rows that a batch stored, in order ("" of deleted ones).

    Raises BatchError when it was refused, and ServiceResponseError when the answer does not say what became of it.
    """
    body = response.read()
    if response.status_code != 202:
        raise BatchError(response, response.status_code, body)
    answers = [(int(status), ETAG.search(headers), content) for status, headers, content in ANSWER.findall(body)]
    for status, _, content in answers:
        if not 200 <= status < 300:
            raise BatchError(response, status, content)
    etags = [etag[1].decode() if etag else "" for _, etag, _ in answers]
    if len(etags) != len(steps) or not all(
        etag or step.action == "delete" for etag, step in zip(etags, steps, strict=True)
    ):
        raise ServiceResponseError("the answer to a batch does not show what became of each row")
    return etags


def _quote(key: str) -> str:
    return "'" + quote(key.replace("'", "''"), safe="") + "'"


def _to_json(entity: Entity) -> str:
    """Return an entity as storage reads it: only times and fractions need their type said."""
    told: dict[str, Any] = {}
    for name, value in entity.items():
        told[name] = value
        if isinstance(value, datetime):
            told[name] = f"{value.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
            told[f"{name}@odata.type"] = "Edm.DateTime"
        elif isinstance(value, float):
            told[f"{name}@odata.type"] = "Edm.Double"
    return json.dumps(told, separators=(",", ":"))


def _read_error(body: bytes) -> dict[str, Any]:
    try:
        error = json.loads(body)["odata.error"]
    except (ValueError, KeyError, TypeError):
        return {}
    return error if isinstance(error, dict) else {}
