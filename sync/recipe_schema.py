"""The JSON Schema of recipe files, for editors; printed from the models, so it never says more or less than they do."""

import json
from typing import Any

from sync.converters import CONVERTERS
from sync.recipe import RecipeText


def build_schema() -> str:
    """Return the schema as the text of a file."""
    schema = RecipeText.model_json_schema()
    calls = {"enum": list(CONVERTERS)}, {"type": "object", "propertyNames": {"enum": list(CONVERTERS)}}
    rule = schema["$defs"]["FieldRule"]["properties"]
    rule["convert"] |= {"anyOf": [*calls, {"type": "array", "items": {"anyOf": [*calls]}}]}
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **_without_noise(schema), "title": "Recipe"}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _without_noise(part: Any, *, names: bool = False) -> Any:
    """Drop what pydantic adds for itself: titles made of names, and defaults of keys that are left out.

    `names` says that the part's own keys are names of keys, of which one may be `title` or `default`.
    """
    if isinstance(part, list):
        return [_without_noise(entry) for entry in part]
    if not isinstance(part, dict):
        return part
    kept = part if names else {key: value for key, value in part.items() if key not in {"title", "default"}}
    return {key: _without_noise(value, names=key in {"properties", "$defs"}) for key, value in kept.items()}
