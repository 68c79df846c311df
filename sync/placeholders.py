"""Texts with `{paths}`, as a recipe's `value` holds them: parsed once, filled from a record. No expressions."""

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime

from shared.clients.system import Value
from shared.errors import MappingError

Read = Callable[[str], Value]
"""Gives the value at a path of the record in hand; None when it is empty."""

MARKER_PATH = "id"
"""The path under which every child type offers its entry's own id."""


@dataclasses.dataclass(frozen=True)
class Hole:
    """A place that a path's value fills."""

    path: str


@dataclasses.dataclass(frozen=True)
class Template:
    """A text with holes; `text` is what the recipe says."""

    text: str
    parts: tuple[str | Hole, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """Return the paths in the order in which they stand in the text."""
        return tuple(part.path for part in self.parts if isinstance(part, Hole))

    def render(self, read: Read) -> str | None:
        """Fill the holes; None when every one of them is empty."""
        values = {path: text_of(read(path)) for path in self.paths}
        if not any(values.values()):
            return None
        return "".join(part if isinstance(part, str) else values[part.path] for part in self.parts)

    def marker(self, read: Read) -> str | None:
        """Return the part that holds the child's id with the signs around it (`#4711]`), None without one.

        Other holes stay out of it: an author who changes their name must not make an old comment look new.
        """
        for position, part in enumerate(self.parts):
            if part == Hole(MARKER_PATH):
                before = self.parts[position - 1] if position else ""
                after = self.parts[position + 1] if position + 1 < len(self.parts) else ""
                child_id = text_of(read(MARKER_PATH))
                signs = (side if isinstance(side, str) else "" for side in (before, after))
                return child_id.join(signs).strip() if child_id else None
        return None


def parse_template(text: str) -> Template | str:
    """Split a text at its `{paths}`; a text without any stays a text. Braces that are meant are doubled.

    Raises ValueError for a brace without its partner or with nothing in it.
    """
    parts: list[str | Hole] = []
    literal = ""
    rest = text
    while rest:
        sign = rest[0]
        if rest[:2] in {"{{", "}}"}:
            literal, rest = literal + sign, rest[2:]
        elif sign == "{":
            path, closed, rest = rest[1:].partition("}")
            if not closed or not path.strip() or "{" in path:
                raise ValueError("a `{` needs a path and a `}` after it; a brace that is meant is written twice")
            parts += [literal, Hole(path.strip())] if literal else [Hole(path.strip())]
            literal = ""
        elif sign == "}":
            raise ValueError("a `}` has no `{` before it; a brace that is meant is written twice")
        else:
            literal, rest = literal + sign, rest[1:]
    if not parts:
        return literal
    return Template(text, (*parts, literal) if literal else tuple(parts))


def text_of(value: Value) -> str:
    """Return a value as people read it in a text: `true`, `3`, `2026-03-01T09:30:00Z`, lists with commas, empty as "".

    Raises MappingError for an object, which has no reading.
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if isinstance(value, list):
        return ", ".join(text_of(item) for item in value)
    if isinstance(value, dict):
        raise MappingError("An object cannot stand in a text.", code="invalid_value")
    return str(value)
