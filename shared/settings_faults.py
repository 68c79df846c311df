"""What is wrong with the settings, as sentences that name each one the way a person writes it."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

NEEDED = "needed_setting"  # type of the errors that say "missing because of another setting"


def describe_faults(
    exc: ValidationError, model: type[BaseModel], environ: Mapping[str, str], heads: Mapping[str, str]
) -> dict[str, str]:
    """Return one sentence per wrong setting, by its name as the environment has it, else in capitals.

    `heads` maps a bare name to what it stands for ("notify": "notify__*"). No sentence repeats a value.
    """
    bare = {full: head for head, full in heads.items()}
    written = {name.lower(): name for name in environ}
    faults = {}
    for error in exc.errors(include_input=False, include_url=False):
        *parents, leaf = steps(model, [str(part) for part in error["loc"]])
        path = [step.name for step in (*parents, leaf)]
        name = "__".join(path)
        name = bare.get(name.lower(), name)
        name = written.get(name.lower(), name if name.lower() != name else name.upper())
        faults[name] = _sentence(name, error, leaf, siblings=leaf.siblings)
    return faults


class Step:
    """One part of a setting's name: the field it leads to, if there is one, and the names beside it."""

    def __init__(self, name: str, field: FieldInfo | None = None, siblings: Iterable[str] = ()) -> None:
        self.name = name
        self.field = field
        self.siblings = tuple(siblings)


def steps(model: type[BaseModel], loc: list[str]) -> list[Step]:
    """Return the parts of a name that an error's path leads along, without the parts that are pydantic's own."""
    found: list[Step] = []
    inside: Any = model
    for part in loc:
        if isinstance(inside, type) and issubclass(inside, BaseModel):
            fields = inside.model_fields
            field = next((each for name, each in fields.items() if part in (name, each.alias)), None)
            name = (field.alias if field and field.alias else part) or part
            found.append(Step(name, field, (each.alias or name for name, each in fields.items())))
            inside = field.annotation if field else None
        elif get_origin(inside) is dict:
            found.append(Step(part, found[-1].field))
            inside = get_args(inside)[1]
        elif models := dict(tagged(inside)):
            inside = models.get(part)
        else:
            break  # inside a value: the setting has been named
    return found


def tagged(union: Any) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield the models of a union that `system` tells apart, by that name."""
    if get_origin(union) is Annotated:
        union = get_args(union)[0]
    for model in get_args(union):
        if isinstance(model, type) and issubclass(model, BaseModel):
            yield get_args(model.model_fields["system"].annotation)[0], model


def nearest(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean …" for the known word nearest to one, or nothing."""
    near = difflib.get_close_matches(word.lower(), [each.lower() for each in known], n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _sentence(name: str, error: ErrorDetails, leaf: Step, siblings: Iterable[str]) -> str:
    match error["type"]:
        case "union_tag_invalid" | "union_tag_not_found":
            known = error.get("ctx", {}).get("expected_tags", "")
            return f"{name}__SYSTEM should name the system behind this connection, one of {known}."
        case "extra_forbidden":
            hint = nearest(leaf.name, siblings)
            return f"{name} is no setting{hint.upper().replace('; DID YOU MEAN', '; did you mean') or '.'}"
        case "missing":
            fault = "is missing"
        case kind if kind == NEEDED:
            fault = f"is missing, {error['msg']}"
        case "value_error":
            fault = error["msg"].removeprefix("Value error, ")
        case "int_parsing" | "int_from_float":
            fault = "should be a whole number"
        case "float_parsing":
            fault = "should be a number"
        case "bool_parsing":
            fault = "should be true or false"
        case _:
            fault = re.sub(r"^Input should", "should", error["msg"])
    if leaf.field is None or not leaf.field.description:
        return f"{name} {fault}."
    example = (leaf.field.examples or [""])[0]
    return f"{name} {fault}. Wanted: {leaf.field.description}." + (f" Example: {name}={example}" if example else "")
