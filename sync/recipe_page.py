"""Prints `docs/recipe_reference.md` from the recipe models and the converters, so that page, editor and loader cannot disagree."""

import inspect
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sync.converters import CONVERTERS, Converter, Takes
from sync.recipe import Block, Daily, FieldRule, Find, Gone, MatchRule, Notify, Poll, RecipeText, Start
from sync.schedules import EVERY_DAY
from sync.windows import FORMS, Window

HEAD = """# Recipe reference

<!-- Printed from sync/recipe.py and sync/converters.py by `python cli.py docs`; edit the descriptions there. -->

Every key of a recipe file, and every converter. [recipes.md](recipes.md) shows how a recipe is written, with an example of each part.

A file `recipes/<source>_to_<target>.yaml` is one recipe; its name without `.yaml` is the recipe's name in addresses, settings and tables.
It is read as YAML 1.2: `on`, `yes` and `no` are plain words. A key that is not listed here is refused, and so are doubled keys,
anchors (`&`, `*`) and tags (`!`). `${NAME}` in a value stands for the setting NAME.
"""
PATHS = """A path is a field's name as the vendor writes it, dotted through references: `customerid_contact.emailaddress1`. Under `find`
paths begin at the record that `from` refers to, under `children` with `from` at the child. `.` is the record itself, as its id.
"""
CONDITIONS = """A condition (`when`) is a table of lines, all of which must hold.

| Line | Holds if the field at `path` |
|---|---|
| `path: value` | is this value; a field with several values: if one of them is |
| `path: [a, b]` | is one of these |
| `path: null` | is empty |
| `path: {not: value}` | is not this value; a list or `null` may stand here too |
"""
WINDOWS = f"""What a run reads, by the time of the last change: {FORMS}. [operating.md](operating.md) says what each means.
A recipe names one as a text: `http: yesterday`, `daily: last_days:3`.
"""
SECTIONS: tuple[tuple[str, type[BaseModel]], ...] = (
    ("Recipe", RecipeText),
    ("start", Start),
    ("daily", Daily),
    ("poll", Poll),
    ("notify", Notify),
    ("fields", FieldRule),
    ("find", Find),
    ("children", Block),
    ("match", MatchRule),
)
TYPES = {
    "string": "text",
    "number": "number",
    "integer": "whole number",
    "boolean": "`true` or `false`",
    "object": "table",
    "array": "list",
}
REFUSED = {(Find, "children")}  # by a rule of the loader, with a sentence of its own


def print_recipe_reference() -> str:
    """Return the whole of `docs/recipe_reference.md`."""
    parts = [HEAD]
    for title, model in SECTIONS:
        parts += [f"## {title}", inspect.cleandoc(model.__doc__ or "").replace("<", "&lt;"), _keys(model)]
    parts += ["## Paths", PATHS, "## Conditions", CONDITIONS, "## Windows", WINDOWS]
    parts += ["## Converters", "`convert` takes a name, a name with what it needs, or a list of these.", _converters()]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def keys_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return a model's keys as a recipe writes them; those that nobody may write are left out."""
    named = {field.alias or name: field for name, field in model.model_fields.items()}
    return {key: field for key, field in named.items() if not key.startswith(" ") and (model, key) not in REFUSED}


def _keys(model: type[BaseModel]) -> str:
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    properties = schema.get("properties") or definitions[model.__name__]["properties"]  # a model that holds itself
    sections = {title for title, _ in SECTIONS}
    rows = ["| Key | Type | Default | What it says |", "|---|---|---|---|"]
    for key, field in keys_of(model).items():
        name = f"[`{key}`](#{key})" if key in sections else f"`{key}`"
        kind = " or ".join(dict.fromkeys(_types(properties[key], definitions)))
        rows.append(f"| {name} | {kind} | {_default(field)} | {_cell(field.description or '')} |")
    return "\n".join(rows)


def _types(schema: dict[str, Any], definitions: dict[str, Any]) -> Iterator[str]:
    """Yield what a key takes, in words; that it may be left out is no type."""
    if "$ref" in schema:
        yield from _types(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    elif "anyOf" in schema:
        for each in schema["anyOf"]:
            yield from _types(each, definitions)
    elif "const" in schema:
        yield f"`{str(schema['const']).lower()}`"
    elif "enum" in schema:
        yield ", ".join(f"`{value}`" for value in schema["enum"])
    elif schema.get("type") != "null":
        yield TYPES[schema["type"]] if "type" in schema else "any value"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.default
    match value:
        case Gone():
            value = value.action
        case _ if value == EVERY_DAY:
            value = "mon-sun"
        case _ if not isinstance(value, str | Window):
            return ""
    return f"`{value}`" if str(value) else ""


def _converters() -> str:
    rows = ["| Name | Takes | What it does | Example |", "|---|---|---|---|"]
    rows += [
        f"| `{name}` | {_takes(converter)} | {_cell(converter.does)} | `convert: {converter.example}` |"
        for name, converter in CONVERTERS.items()
    ]
    return "\n".join(rows)


def _takes(converter: Converter) -> str:
    if converter.takes is Takes.PARTS:
        return " and ".join(f"`{part}`" for part in converter.parts)
    return str(converter.takes)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
