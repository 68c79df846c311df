"""Rows in Azure tables: typed, changed by compare-and-set, and certain of what became of every write.

The SDK repeats writes by itself, and answers get lost: an answer of 409 or 412, or none, can be the echo of our own
write. Every write therefore carries a mark of its own, and such an answer is believed only after the row was read back
(`Tables._settle`, and `Tables._judge` for many rows). Equal content is no proof: two workers that count one up from the
same row write the same row.
"""

import bisect
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import Any, Literal, TypeVar
from urllib.parse import quote, urlencode

import tenacity
from azure.core import MatchConditions
from azure.core.exceptions import AzureError, ResourceExistsError
from azure.core.rest import HttpRequest, HttpResponse
from azure.data.tables import TableClient, TableServiceClient, UpdateMode

from shared.errors import ConfigError, StateError
from shared.state.entities import (
    MARK,
    Entity,
    IncompleteError,
    check_keys,
    from_entity,
    from_selected,
    selected_columns,
    to_entity,
)
from shared.state.rows import ROWS, StateRow
from shared.state.shares import PermitRow
from shared.state.storage import (
    Operations,
    ServerClock,
    SideBySide,
    code_of,
    is_unsure,
    state_error,
    status_of,
)
from shared.state.transactions import Action, BatchError, Step, build_batch, build_steps, read_etags, split_steps

STORED: tuple[type[StateRow], ...] = (*ROWS, PermitRow)
MAX_COMPARISONS = 15  # https://learn.microsoft.com/rest/api/storageservices/querying-tables-and-entities
PAGE_ROWS = 1000
LEAST_TOGETHER = 8  # rows of one partition that are wanted together, from which on its keys are read
KEYS_WORTH_A_READ = 200  # so many keys cost about as much as reading a row by its key
NAMED_ROWS = MAX_COMPARISONS - 3  # of one query, beside their partition and where they begin and end
NAMED_CHARS = 8_000  # of these keys as they stand in an address; servers take 16 KB with all headers
KEYS_HEADERS = {"Accept": "application/json;odata=nometadata", "DataServiceVersion": "3.0"}
NEXT = ("NextPartitionKey", "NextRowKey")  # where a list goes on
TRIES = 3  # of a write whose outcome is not known, each with a look in between
UPDATE_ATTEMPTS = 10
STALE_ETAG = "W/\"datetime'0001-01-01T00%3A00%3A00.0000000Z'\""  # matches no row

R = TypeVar("R", bound=StateRow)
Comparison = tuple[str, Literal["eq", "ne", "gt", "ge", "lt", "le"], Any]


class RowError(StateError):
    """A write met a row that it did not expect; `stored` is that row, None when there is none (any more).

    In a transaction `row` and `index` say which of its operations it was, and `done` how many were stored before.
    """

    def __init__(self, message: str, row: StateRow, stored: StateRow | None, index: int = 0, done: int = 0) -> None:
        super().__init__(message)
        self.row = row
        self.stored = stored
        self.index = index
        self.done = done


class RowExistsError(RowError):
    """An insert found a row that this write did not make."""

    code = "row_exists"


class RowChangedError(RowError):
    """A compare-and-set found a row that somebody else has changed or deleted."""

    code = "row_changed"


def build_filter(comparisons: Sequence[Comparison], any_of: Sequence[Comparison] = ()) -> tuple[str, dict[str, Any]]:
    """Build a filter in which all comparisons hold, and one of `any_of`; and its parameters.

    Raises StateError above Azure's limit.
    """
    every = [*comparisons, *any_of]
    if len(every) > MAX_COMPARISONS:
        raise StateError(f"A filter of {len(every)} comparisons; Azure takes {MAX_COMPARISONS}")
    texts = [f"{column} {operator} @p{number}" for number, (column, operator, _) in enumerate(every)]
    text = " and ".join(texts[: len(comparisons)])
    if any_of:
        text += f" and ( {' or '.join(texts[len(comparisons) :])} )"  # the SDK finds parameters between spaces
    return text, {f"p{number}": value for number, (_, _, value) in enumerate(every)}


class Tables:
    """The tables of a storage account; used by many threads. Tables are created when they are first written to."""

    def __init__(
        self, service: TableServiceClient, prefix: str = "", *, side_by_side: SideBySide | None = None
    ) -> None:
        if prefix and not (prefix.isascii() and prefix.isalnum() and prefix[0].isalpha()):
            raise ConfigError(f"A table prefix is made of letters and digits, and {prefix!r} is not")
        # Made at once: a new client rewires the policies that all share, under the calls of other threads.
        self._clients: dict[str, TableClient] = {
            name: service.get_table_client(prefix + name) for name in sorted({model.TABLE for model in STORED})
        }
        self._side_by_side = side_by_side or SideBySide()
        self._clock = ServerClock()
        self.operations = Operations()

    def now(self) -> datetime:
        """Return the storage's time, the one clock that all instances share; right to about a second."""
        return self._clock.now()

    # -- reading --------------------------------------------------------------------------------------------------

    def get(self, model: type[R], partition_key: str, row_key: str) -> R | None:
        """Return a row, None when there is none."""
        entity = self._find(model, partition_key, row_key)
        return None if entity is None else from_entity(model, entity, _etag(entity))

    def get_many(self, model: type[R], keys: Sequence[tuple[str, str]]) -> list[R | None]:
        """Return the rows of many (partition key, row key) pairs in their order.

        Of several in one partition its keys tell which are there, and these are read a dozen a query. Where very many
        others stand between them, so that storage would look through all of these, each is read by itself, side by side.
        """
        partitions: dict[str, set[str]] = defaultdict(set)
        for partition_key, row_key in keys:
            partitions[partition_key].add(row_key)  # keys are ASCII (`key_text`): sorted here as they are in storage
        crowded = [(name, sorted(wanted)) for name, wanted in partitions.items() if len(wanted) >= LEAST_TOGETHER]
        found: dict[tuple[str, str], R | None] = {}
        for answers in self._side_by_side.map(lambda each: self._get_together(model, *each), crowded):
            found |= answers
        single = [key for key in dict.fromkeys(keys) if key not in found]
        found |= zip(single, self._side_by_side.map(lambda key: self.get(model, *key), single), strict=True)
        return [found[key] for key in keys]

    def _get_together(self, model: type[R], partition_key: str, wanted: list[str]) -> dict[tuple[str, str], R | None]:
        """Look sorted keys of a partition up among all keys there, and read those that are; what is not answered is left."""
        check_keys(model, partition_key, *wanted)
        answers: dict[tuple[str, str], R | None] = {}
        while wanted:
            keys = self._read_keys(model, partition_key, wanted[0], wanted[-1])
            passed = len(wanted) if len(keys) < PAGE_ROWS else bisect.bisect_right(wanted, keys[-1])
            there = set(keys)
            answers |= dict.fromkeys((partition_key, row_key) for row_key in wanted[:passed])
            present = [row_key for row_key in wanted[:passed] if row_key in there]
            longest = max((len(quote(_quoted(key))) for key in present), default=1)
            together = max(1, min(NAMED_ROWS, NAMED_CHARS // longest - 2))
            for at in range(0, len(present), together):
                rows = self._read_named(model, partition_key, present[at : at + together])
                answers |= {(partition_key, row.row_key): row for row in rows}
            wanted = wanted[passed:]
            if passed * KEYS_WORTH_A_READ < len(keys):
                break
        return answers

    def _read_named(self, model: type[R], partition_key: str, row_keys: list[str]) -> Iterator[R]:
        """Return the rows of a few sorted keys.

        Azure does not take several keys joined by `or` for a range: it looks through the partition, or, as the bounds
        suggest and nobody has confirmed, through what lies between them. It is therefore asked only where one row in
        KEYS_WORTH_A_READ is wanted.
        https://learn.microsoft.com/azure/storage/tables/table-storage-design-for-query
        """
        within: list[Comparison] = [
            ("PartitionKey", "eq", partition_key),
            ("RowKey", "ge", row_keys[0]),
            ("RowKey", "le", row_keys[-1]),
        ]
        return self._rows(model, within, any_of=[("RowKey", "eq", row_key) for row_key in row_keys])

    def _read_keys(self, model: type[R], partition_key: str, first: str, last: str) -> list[str]:
        """Return a partition's keys from one key to another, the first PAGE_ROWS of them, in order.

        By a request of our own: the SDK takes 13 µs to read an entity, this one 1 or 2.
        """
        client = self._client(model)
        text = f"PartitionKey eq {_quoted(partition_key)} and RowKey ge {_quoted(first)} and RowKey le {_quoted(last)}"
        query = {"$filter": text, "$select": "RowKey", "$top": str(PAGE_ROWS)}
        keys: list[str] = []
        more: dict[str, str] = {}
        while True:
            asked = urlencode(query | more, quote_via=quote)
            request = HttpRequest("GET", f"{client.url}/{client.table_name}()?{asked}", headers=KEYS_HEADERS)
            self.operations.add("query")
            try:
                response = self._send(client, request)
                response.raise_for_status()
                keys += [row["RowKey"] for row in response.json()["value"]]
            except AzureError as exc:
                if code_of(exc) == "TableNotFound":
                    return []
                raise state_error(exc, f"list keys of {model.TABLE}") from None
            except (ValueError, KeyError, TypeError):
                raise StateError(f"Storage's answer to a list of keys of {model.TABLE} cannot be read") from None
            found = {name: response.headers.get(f"x-ms-continuation-{name}") for name in NEXT}
            more = {name: value for name, value in found.items() if value}
            if not more or len(keys) >= PAGE_ROWS:
                return keys

    def query(
        self,
        model: type[R],
        partition_key: str,
        row_from: str = "",
        row_to: str = "",
        limit: int | None = None,
        select: Sequence[str] | None = None,
    ) -> Iterator[R]:
        """Return a partition's rows in the order of their keys, from `row_from` up to before `row_to`.

        With `select` the rows hold these fields only; reading another one raises AttributeError.
        """
        check_keys(model, partition_key)
        comparisons: list[Comparison] = [("PartitionKey", "eq", partition_key)]
        return self._rows(model, comparisons + _between("RowKey", row_from, row_to), limit, select)

    def scan(
        self,
        model: type[R],
        partition_from: str = "",
        partition_to: str = "",
        limit: int | None = None,
        select: Sequence[str] | None = None,
    ) -> Iterator[R]:
        """Return the rows of many partitions, from `partition_from` up to before `partition_to`: for upkeep and export."""
        return self._rows(model, _between("PartitionKey", partition_from, partition_to), limit, select)

    def count(self, model: type[StateRow], partition_key: str, row_from: str = "", row_to: str = "") -> int:
        """Count a partition's rows."""
        return sum(1 for _ in self.query(model, partition_key, row_from, row_to, select=()))

    def _rows(
        self,
        model: type[R],
        comparisons: list[Comparison],
        limit: int | None = None,
        select: Sequence[str] | None = None,
        any_of: Sequence[Comparison] = (),
    ) -> Iterator[R]:
        names = None if select is None else frozenset(select)
        filtered = build_filter(comparisons, any_of)
        for entity in islice(self._pages(model, filtered, limit, names), limit):
            if names is None:
                yield from_entity(model, entity, _etag(entity))
                continue
            try:
                yield from_selected(model, entity, _etag(entity), names)
            except IncompleteError:
                whole = self._find(model, entity["PartitionKey"], entity["RowKey"])
                if whole is not None:
                    yield from_selected(model, whole, _etag(whole), names)

    def _pages(
        self,
        model: type[StateRow],
        filtered: tuple[str, dict[str, Any]],
        limit: int | None,
        names: frozenset[str] | None,
    ) -> Iterator[Entity]:
        text, parameters = filtered
        pages = (
            self._client(model)
            .query_entities(
                text,
                parameters=parameters,
                results_per_page=min(limit or PAGE_ROWS, PAGE_ROWS),
                select=None if names is None else selected_columns(names),
                raw_response_hook=self._clock.note(),
            )
            .by_page()
        )
        while True:
            try:
                page = list(next(pages))
            except StopIteration:  # no request was made
                return
            except AzureError as exc:
                self.operations.add("query")
                if code_of(exc) == "TableNotFound":
                    return
                raise state_error(exc, f"list {model.TABLE}") from None
            self.operations.add("query")
            yield from page

    def _find(self, model: type[StateRow], partition_key: str, row_key: str) -> Any:
        check_keys(model, partition_key, row_key)
        self.operations.add("get")
        try:
            return self._client(model).get_entity(partition_key, row_key, raw_response_hook=self._clock.note())
        except AzureError as exc:
            if status_of(exc) == 404:
                return None
            raise state_error(exc, f"read {model.TABLE}") from None

    # -- writing one row ------------------------------------------------------------------------------------------

    def insert(self, row: R) -> R:
        """Store a new row and return it with its etag. Raises RowExistsError when another write made one."""
        entity = to_entity(row, mark := _new_mark())

        def send(client: TableClient) -> Mapping[str, Any]:
            return client.create_entity(
                entity, response_preference="return-no-content", raw_response_hook=self._clock.note()
            )

        return self._settle("insert", row, mark, send)

    def replace(self, row: R) -> R:
        """Store a row over the one it was read from. Raises RowChangedError when that one has changed or gone."""
        if not row.etag:
            raise ValueError(f"this {type(row).__name__} was never read: it has no etag")
        entity = to_entity(row, mark := _new_mark())

        def send(client: TableClient) -> Mapping[str, Any]:
            return client.update_entity(entity, UpdateMode.REPLACE, **self._unchanged(row))

        return self._settle("replace", row, mark, send)

    def upsert(self, row: R) -> R:
        """Store a row whatever is there."""
        entity = to_entity(row, mark := _new_mark())

        def send(client: TableClient) -> Mapping[str, Any]:
            return client.upsert_entity(entity, UpdateMode.REPLACE, raw_response_hook=self._clock.note())

        return self._settle("upsert", row, mark, send)

    def delete(self, row: StateRow) -> None:
        """Delete a row that was read: raises RowChangedError when it has changed since. One that is gone is fine."""
        if not row.etag:
            return self.delete_key(type(row), row.partition_key, row.row_key)

        def send(client: TableClient) -> Mapping[str, Any]:
            client.delete_entity(row.partition_key, row.row_key, **self._unchanged(row))
            return {}

        self._settle("delete", row, "", send)
        return None

    def delete_key(self, model: type[StateRow], partition_key: str, row_key: str) -> None:
        """Delete whatever stands under a key, if anything does."""
        check_keys(model, partition_key, row_key)
        self.operations.add("delete")
        try:
            self._client(model).delete_entity(partition_key, row_key, raw_response_hook=self._clock.note())
        except AzureError as exc:
            raise state_error(exc, f"delete a row of {model.TABLE}") from None

    def update(
        self,
        model: type[R],
        partition_key: str,
        row_key: str,
        change: Callable[[R | None], R | None],
        attempts: int = UPDATE_ATTEMPTS,
        known: R | None = None,
    ) -> R | None:
        """Change a row by compare-and-set until it holds, and return it as stored; `known` is it as it was read before.

        `change` must be pure: it is called again with the new row whenever somebody else was faster. It gets None when
        there is no row; when it returns None, or the row as it was, nothing is written.
        """
        for attempt in tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(RowError),
            stop=tenacity.stop_after_attempt(attempts),
            wait=tenacity.wait_random_exponential(multiplier=0.02, max=1.0),
            reraise=True,
        ):
            with attempt:
                stored, known = known or self.get(model, partition_key, row_key), None
                wanted = change(stored)
                if wanted is None or wanted == stored:
                    return stored
                return self.insert(wanted) if stored is None else self.replace(_with_etag(wanted, stored.etag))
        raise AssertionError  # tenacity returns or raises

    def _settle(self, action: Action, row: R, mark: str, send: Callable[[TableClient], Mapping[str, Any]]) -> R:
        """Send one write until its outcome is certain: the one place that believes or doubts an answer."""
        model, failure = type(row), StateError(f"Storage gave no certain answer to a write to {row.TABLE}")
        for _ in range(TRIES):
            self.operations.add(action)
            try:
                return _with_etag(row, send(self._client(model)).get("etag") or "")
            except AzureError as exc:
                if code_of(exc) == "TableNotFound" and action != "replace":
                    self._create(model)
                    continue
                refused = status_of(exc) in (404, 409, 412)
                if not refused and not is_unsure(exc):
                    raise state_error(exc, f"{action} a row of {model.TABLE}") from None
                error = state_error(exc, f"{action} a row of {model.TABLE}")
                failure = error if isinstance(error, StateError) else failure
            stored = self._find(model, row.partition_key, row.row_key)
            if stored is not None and mark and stored.get(MARK) == mark:
                return _with_etag(row, _etag(stored))
            if action == "delete" and stored is None:
                return row
            if action == "insert" and stored is not None:
                raise _exists(row, from_entity(model, stored, _etag(stored)))
            if action in ("replace", "delete") and (stored is None or _etag(stored) != row.etag):
                raise _changed(row, from_entity(model, stored, _etag(stored)) if stored is not None else None)
        raise failure

    # -- writing many rows ----------------------------------------------------------------------------------------

    def transact(self, operations: Sequence[tuple[Action, StateRow]]) -> list[StateRow]:
        """Write rows of one partition together and return them with their etags, in order (deleted ones as they were).

        Up to 100 rows and 4 MiB are all or nothing; more go in several such pieces, one after the other. A row to be
        deleted that is gone is fine. Raises RowExistsError or RowChangedError for the first row that was met in an
        unexpected state; its `done` says how many operations were stored before.
        """
        stored: list[StateRow] = []
        for piece in split_steps(build_steps(operations, _new_mark())):
            stored += self._transact_piece(piece, len(stored))
        return stored

    def _transact_piece(self, piece: list[Step], done: int) -> list[StateRow]:
        table = piece[0].row.TABLE
        failure = StateError(f"Storage gave no certain answer to a transaction of {table}")
        for _ in range(TRIES):
            sent = [step for step in piece if not step.gone]
            if not sent:
                return [step.row for step in piece]
            self.operations.add("transact")
            try:
                etags = self._send_batch(self._client(type(piece[0].row)), sent)
                return _with_etags(piece, {step.index: etag for step, etag in zip(sent, etags, strict=True)})
            except AzureError as exc:
                error = state_error(exc, f"write to {table} in a transaction")
                if code_of(exc) == "TableNotFound":
                    self._create(type(piece[0].row))
                    continue
                refused = status_of(exc) in (404, 409, 412)
                if not refused and not is_unsure(exc):
                    raise error from None
                named = exc.index if refused and isinstance(exc, BatchError) else None
                suspects = sent if named is None else [sent[min(named, len(sent) - 1)]]
                failure = error if isinstance(error, StateError) else failure
            if any(self._judge(step, done, refused=refused) for step in suspects):  # all or nothing: one proves all
                return _with_etags(piece, {step.index: self._etag_of(step) for step in sent})
        raise failure

    def _send_batch(self, client: TableClient, steps: Sequence[Step]) -> list[str]:
        return read_etags(self._send(client, build_batch(steps, client.url, client.table_name), stream=True), steps)

    def _send(self, client: TableClient, request: HttpRequest, *, stream: bool = False) -> HttpResponse:
        """Send a request of our own through the SDK's pipeline: its sign-in, its repeats, most of its headers.

        The version is none of these: the SDK names it in each call. Azure asks for it unless an address is signed.
        https://learn.microsoft.com/rest/api/storageservices/versioning-for-the-azure-storage-services
        """
        request.headers["x-ms-version"] = client.api_version
        sender = client._client  # noqa: SLF001
        return sender.send_request(request, stream=stream, raw_response_hook=self._clock.note())

    def _judge(self, step: Step, done: int, *, refused: bool) -> bool:
        """Tell whether a step took effect although the answer did not say so.

        Raises RowExistsError or RowChangedError when the step was refused for what stands there.
        """
        row = step.row
        entity = self._find(type(row), row.partition_key, row.row_key)
        if entity is not None and entity.get(MARK) == step.mark:
            return step.action != "delete"
        step.gone = step.action == "delete" and entity is None
        if not refused or step.gone:
            return False
        stored = None if entity is None else from_entity(type(row), entity, _etag(entity))
        if step.action == "insert" and stored is not None:
            raise _exists(row, stored, step.index, done)
        if step.action in ("replace", "delete") and (stored is None or row.etag not in ("", stored.etag)):
            raise _changed(row, stored, step.index, done)
        return False

    def _etag_of(self, step: Step) -> str:
        entity = self._find(type(step.row), step.row.partition_key, step.row.row_key)
        ours = entity is not None and entity.get(MARK) == step.mark
        return _etag(entity) if ours else STALE_ETAG  # stored, but changed by somebody since

    # -- tables ---------------------------------------------------------------------------------------------------

    def create_all(self, models: Sequence[type[StateRow]] = ROWS) -> None:
        """Create the tables that are not there yet."""
        tables = {model.TABLE: model for model in models}
        self._side_by_side.map(self._create, list(tables.values()))

    def _create(self, model: type[StateRow]) -> None:
        self.operations.add("create_table")
        try:
            self._client(model).create_table()
        except ResourceExistsError:
            return
        except AzureError as exc:
            raise state_error(exc, f"create the table {model.TABLE}") from None

    def _client(self, model: type[StateRow]) -> TableClient:
        return self._clients[model.TABLE]

    def _unchanged(self, row: StateRow) -> dict[str, Any]:
        return {
            "etag": row.etag,
            "match_condition": MatchConditions.IfNotModified,
            "raw_response_hook": self._clock.note(),
        }


def _quoted(key: str) -> str:
    return "'" + key.replace("'", "''") + "'"


def _between(column: str, start: str, end: str) -> list[Comparison]:
    bounds: list[Comparison] = []
    if start:
        bounds.append((column, "ge", start))
    if end:
        bounds.append((column, "lt", end))
    return bounds


def _new_mark() -> str:
    return uuid.uuid4().hex[:16]


def _etag(entity: Any) -> str:
    """Return the etag of an entity, or of an answer to a write."""
    metadata = getattr(entity, "metadata", entity)
    return str(metadata.get("etag") or "")


def _with_etag(row: R, etag: str) -> R:
    return row.model_copy(update={"etag": etag})


def _with_etags(piece: Sequence[Step], etags: Mapping[int, str]) -> list[StateRow]:
    return [step.row if step.action == "delete" else _with_etag(step.row, etags[step.index]) for step in piece]


def _exists(row: StateRow, stored: StateRow, index: int = 0, done: int = 0) -> RowExistsError:
    return RowExistsError(f"A {type(row).__name__} with this key is there already", row, stored, index, done)


def _changed(row: StateRow, stored: StateRow | None, index: int = 0, done: int = 0) -> RowChangedError:
    what = "was changed by somebody else" if stored is not None else "is gone"
    return RowChangedError(f"The {type(row).__name__} {what} since it was read", row, stored, index, done)
