"""Recipe files into recipes: YAML 1.2 with line and column, every fault of every file in one error.

Nothing is read but the folder that is given; settings and connections are handed in.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, NodeEvent
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from sync.recipe import Block, Location, Place, Recipe, RecipeText, find_place
from sync.recipe_faults import Fault, RecipeError
from sync.recipe_forms import did_you_mean
from sync.recipe_rules import ConnectionFacts, check_alone, check_together

MAX_BYTES = 64 * 1024
MAX_DEPTH = 20
MOST_REFUSALS = 50  # named of one file: a hostile one could hold thousands
SETTING = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
PLAIN_SENTENCES = {
    "string_type": "this must be a text",
    "model_type": "this must be a table of keys",
    "dict_type": "this must be a table of keys",
    "tuple_type": "this must be a list",
    "invalid_key": "this key must be a word",
    "string_too_short": "this text is empty",
    "string_too_long": "this text is too long",
}


def load_recipes(
    folder: Path,
    *,
    settings: Mapping[str, str] | None = None,
    connections: Mapping[str, ConnectionFacts] | None = None,
    mixed_allowed: Collection[str] = (),
) -> dict[str, Recipe]:
    """Read all recipes of a folder, by name.

    `settings` fill in `${NAME}`; None leaves the names standing, as for documentation. `connections` are what recipes
    may speak of; None checks nothing about them. `mixed_allowed` names the recipes that may join a production and a
    test connection. Raises RecipeError with every fault of every file.
    """
    faults: list[Fault] = []
    recipes: dict[str, Recipe] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        file = f"{folder.name}/{path.name}"
        if path.suffix == ".yml":
            faults.append(Fault(file, (1, 1), "a recipe's file ends in .yaml"))
        if path.suffix == ".yaml":
            try:
                recipes[path.stem] = parse_recipe(path.read_bytes(), path.stem, file, settings)
            except RecipeError as exc:
                faults += exc.faults
    faults += check_together(recipes, connections, mixed_allowed)
    if not recipes and not faults:
        faults.append(Fault(folder.name, (1, 1), f"there is no recipe in this folder: {folder.resolve()}"))
    if faults:
        raise RecipeError(faults)
    return recipes


def parse_recipe(content: bytes | str, name: str, file: str = "", settings: Mapping[str, str] | None = None) -> Recipe:
    """Read one recipe and check what can be said of it alone. Raises RecipeError with every fault."""
    file = file or f"recipes/{name}.yaml"
    data, places = _read_yaml(content.encode() if isinstance(content, str) else content, file)
    faults: list[Fault] = []
    data = _fill_in(data, settings, lambda at, says: faults.append(Fault(file, find_place(places, at), says)))
    try:
        text = RecipeText.model_validate(data)
    except ValidationError as exc:
        faults += _explain(exc, file, places)
        raise RecipeError(faults) from exc
    recipe = _build(text, name, file, _hash(data), places)
    faults += check_alone(recipe)
    if faults:
        raise RecipeError(faults)
    return recipe


def _build(text: RecipeText, name: str, file: str, digest: str, places: dict[Location, Place]) -> Recipe:
    block = Block.model_validate(
        {
            "record": text.target.record,
            "match": text.match,
            "write": text.write,
            "fields": text.fields,
            "children": text.children,
        }
    ).model_copy(update={"when": text.when})
    shared = {key: getattr(text, key) for key in ("title", "source", "target", "start", "gone", "notify")}
    return Recipe(name=name, block=block, path=file, hash=digest, places=places, **shared)


def _hash(data: object) -> str:
    """Return a digest of what a recipe says: comments and layout do not count, the order of rows does."""
    return hashlib.sha256(json.dumps(_ordered(data)).encode()).hexdigest()[:16]


def _ordered(data: object) -> object:
    """Turn tables into lists of pairs: JSON would make `1` and `"1"` the same key."""
    if isinstance(data, dict):
        return ["table", *([key, _ordered(value)] for key, value in data.items())]
    return [_ordered(entry) for entry in data] if isinstance(data, list) else data


def _read_yaml(content: bytes, file: str) -> tuple[Any, dict[Location, Place]]:
    """Return the file's plain data and where each of its parts stands."""
    if len(content) > MAX_BYTES:
        raise RecipeError([Fault(file, (1, 1), f"the file is larger than {MAX_BYTES // 1024} KiB")])
    try:
        text = content.decode("utf-8-sig")
        faults = list(islice(_refused_syntax(text, file), MOST_REFUSALS))
        if faults:
            raise RecipeError(faults)
        reader = YAML(typ="safe", pure=True)
        places: dict[Location, Place] = {}
        node = reader.compose(text)
        if node is None:
            raise RecipeError(
                [Fault(file, (1, 1), "the file is empty; a recipe begins with `title`, `source` and `target`")]
            )
        faults = list(_walk(node, (), file, places))
        if faults:
            raise RecipeError(faults)
        return reader.load(text), places
    except UnicodeDecodeError as exc:
        raise RecipeError([Fault(file, (1, 1), "the file is not UTF-8 text")]) from exc
    except MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        place = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise RecipeError([Fault(file, place, f"this is not YAML: {_in_plain_words(exc)}")]) from exc
    except (YAMLError, ValueError) as exc:  # ValueError: a number or date that YAML promises and Python refuses
        raise RecipeError([Fault(file, (1, 1), f"this is not YAML: {str(exc).splitlines()[0]}")]) from exc


PLAIN_WORDS = (  # what the reader of YAML says, and what an editor of recipes can do with it; the first that fits counts
    (r"'\\t' that cannot start|tab", "a tab stands here; indent with spaces"),
    (r"expected <block end>|expected <document start>", "this line is not indented like those that it belongs to"),
    (r"expected ':'", "a colon is missing, here or in the line above"),
    (r"mapping values are not allowed", "a colon stands where none may be; put a text that holds one into quotes"),
    (r"expected ',' or", "a brace or bracket is not closed, or a comma is missing"),
    (r"unexpected end of stream", "a quote is not closed"),
)


def _in_plain_words(exc: MarkedYAMLError) -> str:
    said = str(exc.problem or exc.context)
    return next((words for pattern, words in PLAIN_WORDS if re.search(pattern, said)), said)


def _refused_syntax(text: str, file: str) -> Iterator[Fault]:
    """Yield a fault for each anchor, alias and tag: a recipe has no includes, and a short file stays short."""
    depth = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        place = (event.start_mark.line + 1, event.start_mark.column + 1) if event.start_mark else (1, 1)
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > MAX_DEPTH:
            yield Fault(file, place, f"tables and lists stand deeper than {MAX_DEPTH} levels")
            return
        if isinstance(event, AliasEvent) or (isinstance(event, NodeEvent) and event.anchor):
            yield Fault(file, place, "anchors (&, *) are not part of a recipe: write the value out")
        elif getattr(event, "tag", None) and getattr(event, "implicit", True) is not True and _written_tag(event):
            yield Fault(file, place, "tags (!) are not part of a recipe")


def _written_tag(event: Any) -> bool:
    return not isinstance(event.implicit, tuple) or not any(event.implicit)


def _walk(node: Node, at: Location, file: str, places: dict[Location, Place]) -> Iterator[Fault]:
    """Note where every key and list entry stands; yield a fault for each key that stands twice or is no word."""
    places.setdefault(at, _place(node))
    if isinstance(node, SequenceNode):
        for index, entry in enumerate(node.value):
            yield from _walk(entry, (*at, index), file, places)
    elif isinstance(node, MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            place = _place(key)
            if not isinstance(key, ScalarNode):
                yield Fault(file, place, "a key must be a word")
                continue
            if key.value in seen:
                yield Fault(file, place, f"the key `{key.value}` stands twice, first in line {seen[key.value]}")
            seen.setdefault(key.value, place[0])
            places[(*at, key.value)] = place
            yield from _walk(value, (*at, key.value), file, places)


def _place(node: Node) -> Place:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _fill_in(data: Any, settings: Mapping[str, str] | None, fault: Any, at: Location = ()) -> Any:
    """Replace `${NAME}` in every text; dates become texts. Keys stay as they are."""
    if isinstance(data, dict):
        return {key: _fill_in(value, settings, fault, (*at, str(key))) for key, value in data.items()}
    if isinstance(data, list):
        return [_fill_in(entry, settings, fault, (*at, index)) for index, entry in enumerate(data)]
    if isinstance(data, date):
        return data.isoformat()
    if not isinstance(data, str):
        return data

    def replace(match: re.Match[str]) -> str:
        name = match[1]
        if settings is None:
            return f"<{name}>"
        if name not in settings:
            fault(at, f"the setting `{name}` is missing{did_you_mean(name, settings)}")
        elif re.search(r"[{}]", settings[name]):
            fault(at, f"the setting `{name}` holds a brace, which would be read as a path")
        else:
            return settings[name]
        return name

    return SETTING.sub(replace, data)


def _explain(error: ValidationError, file: str, places: Mapping[Location, Place]) -> list[Fault]:
    faults: dict[tuple[Place, str], Fault] = {}
    for detail in error.errors(include_url=False):
        location: Location = detail["loc"]
        at = ("gone", *location[2:]) if location[:2] == ("gone", "fields") else location
        place = find_place(places, at)
        sentence = _sentence(detail, location)
        faults.setdefault((place, sentence), Fault(file, place, sentence))
    return list(faults.values())


def _sentence(detail: Any, location: Location) -> str:
    """Say in words what pydantic found."""
    key = str(location[-1]) if location else ""
    match detail["type"]:
        case "missing":
            return f"the key `{key}` is missing"
        case "extra_forbidden":
            return f"there is no key `{key}` here{did_you_mean(key, _keys_at(location[:-1]))}"
        case "enum" | "literal_error":
            known = re.findall(r"'([^']*)'", detail["ctx"]["expected"])
            return f"`{detail['input']}` is not known here{did_you_mean(str(detail['input']), known)}"
        case "value_error":
            return str(detail["ctx"]["error"])
        case "string_type" | "model_type" | "dict_type" | "tuple_type" if detail["input"] is None and location:
            name = next((part for part in reversed(location) if isinstance(part, str)), "this")
            return f"`{name}` has no value"
        case kind:
            return PLAIN_SENTENCES.get(kind, str(detail["msg"]))


def _keys_at(location: Location) -> list[str]:
    """Return the keys that are known at a place of a file, found by walking through the models."""
    model: type[BaseModel] = RecipeText
    skip = False
    for part in location:
        if skip:
            skip = False
            continue
        field = next((info for name, info in model.model_fields.items() if (info.alias or name) == part), None)
        if field is None:
            return []
        skip = any(get_origin(kind) in {dict, tuple} for kind in (field.annotation, *get_args(field.annotation)))
        model = _model_in(field.annotation) or model
    names = (info.alias or name for name, info in model.model_fields.items())
    return [name for name in names if not name.startswith(" ")]


def _model_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for kind in get_args(annotation) if (model := _model_in(kind))), None)
