"""The pages about recipes: what the guide shows is what the loader takes, and the reference describes every key."""

import re
from pathlib import Path

import pytest

from sync.converters import CONVERTERS
from sync.recipe_faults import RecipeError
from sync.recipe_loader import parse_recipe
from sync.recipe_page import SECTIONS, keys_of

GUIDE = (Path(__file__).parents[2] / "docs/recipes.md").read_text(encoding="utf-8")
NAME = "account_to_core_company"
FRAME = {
    "title": "title: A fragment of the guide",
    "source": "source: dynamics365.incident",
    "target": "target: servicenow.incident",
    "start": "start: {http: yesterday}",
    "fields": "fields: {name: name}",
}
BLOCK = re.compile(r"^```(yaml(?: faulty)?|)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(kind: str) -> list[object]:
    """Return the guide's blocks of a kind, each named by its line in the page."""
    found = [match for match in BLOCK.finditer(GUIDE) if match[1] == kind]
    return [pytest.param(match[2], id=f"line-{GUIDE.count(chr(10), 0, match.start()) + 1}") for match in found]


def framed(text: str) -> str:
    """Return a fragment with what a recipe needs besides; what it says itself stands."""
    frame = FRAME if re.search("^(match|write):", text, re.MULTILINE) else FRAME | {"write": "write: update"}
    missing = [line for key, line in frame.items() if not re.search(f"^{key}:", text, re.MULTILINE)]
    return "\n".join([text, *missing])


@pytest.mark.parametrize("text", blocks("yaml"))
def test_every_example_of_the_guide_is_a_recipe(text: str) -> None:
    """A reader who copies an example gets no fault for it."""
    whole = text.startswith(("title:", "#"))

    assert parse_recipe(text if whole else framed(text), NAME if whole else "case_to_incident").block.fields


@pytest.mark.parametrize("text", blocks("yaml faulty"))
def test_the_guide_shows_what_is_said_of_a_mistake(text: str) -> None:
    """The lines printed below a faulty file are those that the loader gives; what only the systems know is not among them."""
    with pytest.raises(RecipeError) as refused:
        parse_recipe(text, NAME)

    shown = GUIDE[GUIDE.index(text) :].partition("$ .venv/bin/python cli.py validate\n")[2].partition("```")[0]
    assert str(refused.value) == shown.strip()


def test_the_guide_has_examples() -> None:
    """A page whose blocks are no longer found would pass the tests above."""
    assert len(blocks("yaml")) > 15
    assert len(blocks("yaml faulty")) == 2


@pytest.mark.parametrize("title", [title for title, _ in SECTIONS])
def test_every_key_is_described(title: str) -> None:
    """A key without a description leaves a hole in the reference and in the editor."""
    keys = keys_of(dict(SECTIONS)[title])

    assert keys
    assert [key for key, field in keys.items() if not field.description] == []


@pytest.mark.parametrize("name", CONVERTERS)
def test_every_converter_has_an_example_that_works(name: str) -> None:
    """The reference's example is what a recipe may say."""
    converter = CONVERTERS[name]

    recipe = parse_recipe(framed(f"fields: {{name: {{from: name, convert: {converter.example}}}}}"), NAME)

    assert [call.name for call in recipe.block.fields["name"].convert] == [name]
