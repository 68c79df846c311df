"""Hostile recipe files: what would run, grow, reach out of the folder or never end is refused with a sentence."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import ConfigError
from sync.recipe_faults import RecipeError
from sync.recipe_loader import MAX_BYTES, load_recipes, parse_recipe
from tests.security.payloads import ENCODED_QUERY, MARKUP, ODATA

LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "\n".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
HOSTILE = {
    "billion laughs": LAUGHS,
    "quadratic": "a: &a " + "x" * 30_000 + "\nb: [" + ",".join(["*a"] * 5_000) + "]",
    "itself": "a: &a [*a]",
    "merge": "a: &a {b: 1}\nc: {<<: *a}",
    "python object": "title: !!python/object/apply:os.system ['true']",
    "python name": "title: !!python/name:os.system",
    "ruamel": "title: !!python/object/new:subprocess.Popen [['true']]",
    "binary": "title: !!binary aGVsbG8=",
    "own tag": "title: !ENV ${PATH}",
    "tag directive": "%TAG ! tag:evil.example,2026:\n---\ntitle: !x y",
    "yaml 1.1": "%YAML 1.1\n---\ntitle: yes",
    "include": "title: !include ../local.settings.json",
    "deep lists": "a: " + "[" * 30_000,
    "deep maps": "a: " + "{a: " * 10_000,
    "deep blocks": "\n".join(" " * depth + "a:" for depth in range(300)),
    "many questions": "? " * 20_000,
    "many dashes": "- " * 20_000,
    "huge number": "a: " + "9" * 60_000,
    "huge key": "k" * 60_000 + ": 1",
    "too large": "#" * (MAX_BYTES + 1),
    "null byte": "title: a\x00b",
    "two documents": "title: a\n---\ntitle: b",
    "utf-16": "title: a".encode("utf-16"),
    "lone bytes": b"title: \xff\xfe",
}
RECIPE = """
title: Cases
source: dynamics365.incident
target: servicenow.incident
start: {{http: yesterday}}
match: [correlation_id]
fields: {{correlation_id: incidentid, short_description: {value}}}
"""


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_file_is_refused(text: str | bytes) -> None:
    """Aliases, tags, depth and size end in a fault with its place, before anything is built from the file."""
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "hostile")

    assert caught.value.faults
    assert len(caught.value.message) < 20_000


@settings(max_examples=80, deadline=None)
@given(st.one_of(st.binary(max_size=300), st.text(max_size=300)))
def test_no_bytes_crash_the_loader(content: bytes | str) -> None:
    """Whatever a file holds, what comes is a RecipeError."""
    with pytest.raises(RecipeError):
        parse_recipe(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content, "hostile")


@pytest.mark.parametrize("name", ["../evil", "..", "Evil", "a b", "a-b", "сase", "a'b", "_a", "1a", "a" * 300])
def test_names_of_files_are_words(tmp_path: Path, name: str) -> None:
    """A recipe's name stands in addresses and keys: it is a word in small letters, or its file is refused."""
    text = RECIPE.format(value="title")

    with pytest.raises(ConfigError):
        parse_recipe(text, name)


def test_nothing_outside_of_the_folder_is_read(tmp_path: Path) -> None:
    """Sub-folders, links to elsewhere by name and other endings are not followed for their content."""
    folder = tmp_path / "recipes"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "hidden.yaml").write_text("a: !!python/name:os.system", encoding="utf-8")
    (folder / "case_to_incident.yaml").write_text(RECIPE.format(value="title"), encoding="utf-8")
    (tmp_path / "outside.yaml").write_text("a: &a 1", encoding="utf-8")
    (folder / "notes.txt").write_text("a: &a 1", encoding="utf-8")

    assert list(load_recipes(folder)) == ["case_to_incident"]


@pytest.mark.parametrize("value", [*ENCODED_QUERY[:8], *ODATA[:4], *MARKUP[:4]])
def test_settings_in_recipes_stay_texts(value: str) -> None:
    """What `${NAME}` brings in is a text: no YAML, no path and no second setting."""
    hostile = [value, "a: b", "[x]", "!!python/name:os.system", "*a", "${OTHER}", "x\n y: z"]
    text = RECIPE.format(value="{value: '${NAME}'}")

    for each in hostile:
        recipe = None
        try:
            recipe = parse_recipe(text, "case_to_incident", settings={"NAME": each})
        except RecipeError as exc:
            assert "brace" in exc.message  # noqa: PT017  # the one refusal that there is

        assert recipe is None or list(recipe.block.fields) == ["correlation_id", "short_description"]
        assert (
            recipe is None
            or each in repr(recipe.block.fields["short_description"].value)
            or "\n" in each
            or "\\" in each
        )
