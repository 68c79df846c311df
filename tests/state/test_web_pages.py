"""A web page with 200 in the place of storage's answer, as a proxy's sign-in page is: never an answer."""

from collections.abc import Iterator

import pytest

from faults.kinds import Effect
from faults.proxy import Passing, Stroke, Upstream, serving
from sandbox.azurite import Azurite
from shared.errors import StateError
from shared.state.rows import CursorRow
from shared.state.storage import StorageTransport, connect_tables
from shared.state.tables import Tables
from tests.state.test_tables import cursor

pages: list[int] = []  # how many further requests meet a page


@pytest.fixture
def tables(azurite: Azurite, prefix: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tables]:
    monkeypatch.setattr(StorageTransport, "sleep", lambda *_: None)
    pages.clear()

    def decide(_: Passing) -> Stroke | None:
        return Stroke(Effect.HTML) if pages and pages.pop() else None

    with serving(decide) as proxy:
        port = proxy.open(Upstream("table", "127.0.0.1", azurite.ports[2]))
        text = azurite.connection_string.replace(f":{azurite.ports[2]}/", f":{port}/")
        with connect_tables(text) as service:
            yield Tables(service, prefix)


def test_a_read_that_meets_one_page_is_repeated(tables: Tables) -> None:
    """The next answer is storage's own."""
    row = tables.insert(cursor())

    pages.append(1)

    assert tables.get(CursorRow, row.partition_key, row.row_key) == row


def test_a_read_that_meets_nothing_but_pages_is_a_state_error(tables: Tables) -> None:
    """The message then comes back, and a person who asked is told to come again."""
    row = tables.insert(cursor())

    pages.extend([1] * 50)

    with pytest.raises(StateError):
        tables.get(CursorRow, row.partition_key, row.row_key)


def test_a_write_that_meets_a_page_is_looked_up(tables: Tables) -> None:
    """It may have taken effect; what stands there decides."""
    tables.create_all([CursorRow])

    pages.append(1)
    stored = tables.insert(cursor())

    assert tables.get(CursorRow, stored.partition_key, stored.row_key) == stored
