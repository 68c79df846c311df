"""What the engine is given for one recipe: both systems, the state, and the limits that hold for an attempt."""

import dataclasses
from collections.abc import Callable
from datetime import datetime

from shared.clients.system import RecordType, Source, Target
from shared.digests import Digests
from shared.state.tables import Tables
from sync.recipe import Block, Recipe


@dataclasses.dataclass(frozen=True)
class Limits:
    """Times that bound an attempt; short ones in tests, the settings explain the others."""

    claim_s: float = 600.0  # how long a claim keeps others away: no less than a message's lease
    create_s: float = 90.0  # a create leaves and is answered within this, or it is not sent
    max_attempts: int = 5  # counted attempts per record
    max_wait_s: float = 86_400.0  # total time a record may wait, attempts included
    prepared_s: float = 600.0  # how long what a page found out is believed


@dataclasses.dataclass(frozen=True)
class Writer:
    """A block of a recipe that writes fields of a record."""

    title: str  # the recipe's
    record: str  # "connection.record"
    fields: frozenset[str]
    pairs: Callable[[], frozenset[str]]  # under which its links stand; may ask the source what a field refers to


@dataclasses.dataclass(frozen=True)
class Flow:
    """One recipe with everything it needs at hand."""

    recipe: Recipe
    source: Source
    target: Target
    tables: Tables
    digests: Digests
    now: Callable[[], datetime]
    limits: Limits = dataclasses.field(default_factory=Limits)
    two_way: bool = False  # another recipe syncs the same pair in the other direction
    shared: bool = False  # another recipe may have linked records of this pair before the first run
    writers: tuple[Writer, ...] = ()  # all blocks of all recipes: whoever writes the same record has its own fields

    @property
    def source_name(self) -> str:
        """Return "connection.record" of the source, as links name it."""
        return f"{self.recipe.source.connection}.{self.recipe.source.record}"

    @property
    def target_name(self) -> str:
        """Return "connection.record" of the target, as links name it."""
        return f"{self.recipe.target.connection}.{self.recipe.target.record}"

    @property
    def pair(self) -> str:
        """Return the name of the pair, the same for both directions."""
        return pair_name(self.source_name, self.target_name)

    def source_type(self) -> RecordType:
        """Return what the source says about its record."""
        return self.source.describe(self.recipe.source.record)

    def find_types(self) -> dict[str, RecordType]:
        """Return what the target says about the records that the recipe's `find` blocks look up."""
        return {name: self.target.describe(name) for name in self.found_records()}

    def found_records(self) -> set[str]:
        """Return the records of the target that the recipe's `find` blocks look up."""
        return _found_records(self.recipe.block)

    def read_along(self) -> list[str]:
        """Return the records of the source that are read with the recipe's own, by a reference. Asks the source."""
        fields = self.source_type().fields
        heads = {path.partition(".")[0] for path in self.recipe.read_paths() if "." in path}
        return sorted({kind for head in heads & fields.keys() for kind in fields[head].refers_to})

    def target_type(self) -> RecordType:
        """Return what the target says about its record."""
        return self.target.describe(self.recipe.target.record)


def pair_name(one: str, other: str) -> str:
    """Return the name under which links of two record types are kept."""
    return "+".join(sorted((one, other)))


def _found_records(block: Block) -> set[str]:
    """Return the record types that a block's fields, and the blocks below, look up."""
    finds = [rule.find for rule in block.fields.values() if rule.find]
    below = [_found_records(find) for find in finds] + [_found_records(child) for child in block.children]
    return {find.record for find in finds}.union(*below)
