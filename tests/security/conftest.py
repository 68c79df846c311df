"""The worlds of the flow tests, for attacks on the whole product."""

from tests.flows.conftest import stage, world

__all__ = ["stage", "world"]
