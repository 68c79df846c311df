"""What tests of several folders share: one storage emulator, and names that no other test uses."""

import uuid
from collections.abc import Iterator

import pytest

from sandbox.azurite import Azurite


@pytest.fixture(scope="session")
def azurite() -> Iterator[Azurite]:
    """Storage in memory, shared by the whole session: use a prefix."""
    with Azurite() as running:
        yield running


@pytest.fixture
def prefix() -> str:
    """Return a prefix for tables and queues that is this test's own."""
    return "t" + uuid.uuid4().hex[:10]
