"""Measurements: not deployed, not imported by the product, never part of the tests."""
