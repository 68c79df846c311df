"""What is wrong with recipe files: one fault per place, all of them in one error."""

import dataclasses
from collections.abc import Iterable

from shared.errors import ConfigError
from sync.recipe import Place


@dataclasses.dataclass(frozen=True)
class Fault:
    """One thing that is wrong in a file."""

    file: str
    place: Place  # line and column
    sentence: str

    def __str__(self) -> str:
        line, column = self.place
        return f"{self.file}:{line}:{column}: {self.sentence}"


class RecipeError(ConfigError):
    """Recipes that cannot be used; `faults` holds every fault of every file, the text one line for each."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(sorted(faults, key=lambda fault: (fault.file, fault.place)))
        super().__init__("\n".join(map(str, self.faults)))
