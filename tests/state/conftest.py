"""Tables and queues of one test, with an edge that can lose answers."""

import pytest

from sandbox.azurite import Azurite
from shared.state.queues import Queues
from shared.state.storage import connect_queues, connect_tables
from shared.state.tables import Tables
from tests.state.edge import Edge


@pytest.fixture
def edge() -> Edge:
    return Edge()


@pytest.fixture
def tables(azurite: Azurite, prefix: str, edge: Edge):
    service = connect_tables(azurite.connection_string, transport=edge)
    with service:
        yield Tables(service, prefix)


@pytest.fixture
def others(azurite: Azurite, prefix: str):
    """The same tables as another process sees them."""
    service = connect_tables(azurite.connection_string)
    with service:
        yield Tables(service, prefix)


@pytest.fixture
def queues(azurite: Azurite, prefix: str, edge: Edge):
    service = connect_queues(azurite.connection_string, transport=edge)
    with service:
        yield Queues(service, prefix)
