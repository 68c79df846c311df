"""Recipes for tests, written as people write them."""

from shared.clients.system import Row
from sync.recipe_loader import parse_recipe

HEAD = """
title: Cases to incidents
source: dynamics365.incident
target: servicenow.incident
start: {http: yesterday}
"""


def recipe_of(body, *, name="case_to_incident", head=HEAD, settings=None):
    """Return a recipe made of the usual head and the given lines."""
    return parse_recipe(head + body, name, settings=settings)


def block_of(fields, match="[a]"):
    """Return the block of a recipe with these field lines, each indented by two."""
    lines = "\n".join(f"  {line}" for line in fields.strip().splitlines())
    return recipe_of(f"match: {match}\nfields:\n{lines}\n").block


def row_of(**fields):
    """Return a source row; `__` in a name stands for the dot of a path."""
    return Row(key="K1", fields={name.replace("__", "."): value for name, value in fields.items()})
