"""Storage for the tests of the sandbox itself."""

from collections.abc import Iterator

import pytest

from sandbox.azurite import Azurite


@pytest.fixture(scope="module")
def azurite() -> Iterator[Azurite]:
    """Storage in memory, shared by a module."""
    with Azurite() as running:
        yield running
