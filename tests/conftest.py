"""What tests of several folders share: one storage emulator, and names that no other test uses."""

import uuid
from collections.abc import Iterator

import pytest
from hypothesis import settings

from sandbox.azurite import Azurite

settings.register_profile("concord", deadline=None)  # a busy machine must not fail a test
settings.load_profile("concord")


@pytest.fixture(scope="session")
def azurite() -> Iterator[Azurite]:
    """Storage in memory, shared by the whole session: use a prefix."""
    with Azurite() as running:
        yield running


@pytest.fixture
def prefix() -> str:
    """Return a prefix for tables and queues that is this test's own."""
    return "t" + uuid.uuid4().hex[:10]
