"""One world per test; certificate and storage are made once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.azurite import Azurite
from sandbox.certificates import make_certificates
from tests.flows.contacts import ContactWorld, new_contact_world
from tests.flows.world import Stage, World, new_world


@pytest.fixture(scope="session")
def stage(azurite: Azurite, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """Return what the worlds of this session share."""
    context, bundle = make_certificates(tmp_path_factory.mktemp("tls"))
    return Stage(azurite.connection_string, context, bundle)


@pytest.fixture
def world(stage: Stage, tmp_path: Path, prefix: str) -> Iterator[World]:
    """Return a world of this test's own."""
    with new_world(stage, tmp_path / "recipes", prefix) as made:
        yield made


@pytest.fixture
def paged_world(stage: Stage, tmp_path: Path, prefix: str) -> Iterator[World]:
    """Return a world whose cases come in pages of ten."""
    values = {"CONNECTIONS__DYNAMICS365__PAGE_SIZE": "10"}
    with new_world(stage, tmp_path / "recipes", prefix, values) as made:
        yield made


@pytest.fixture
def contact_world(stage: Stage, tmp_path: Path, prefix: str) -> Iterator[ContactWorld]:
    """Return a world of contacts."""
    with new_contact_world(stage, tmp_path / "recipes", prefix) as made:
        yield made
