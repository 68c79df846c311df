"""One record on its way through the engine: what is known of it so far, and how its errors stay its own."""

import dataclasses
import logging
from collections.abc import Callable, Iterable
from datetime import datetime

from shared import attempt
from shared.clients.system import Row
from shared.errors import ConfigError, MappingError, StateError, SyncError
from shared.state.messages import ItemModel
from shared.state.rows import IdentityRow, LinkRow, Outcome
from sync.decide import Decision
from sync.mapping import Mapped
from sync.references import Reference

LOG = logging.getLogger(__name__)

LOST_ANSWER = "lost answer"  # what found a target that an earlier attempt had made


@dataclasses.dataclass
class Siblings:
    """The children of one kind of a target record, among which those of its source record are found."""

    parent: str  # key of the target record, "" while it would only be made
    owners: dict[str, str]  # target child -> the source child that it is linked with
    rows: dict[str, Row] | None = None  # by key; None: not read yet
    closed: bool = False  # the record takes no more changes


@dataclasses.dataclass
class Work:
    """One record on its way through the steps."""

    item: ItemModel
    page: int = 0
    event_id: str = ""  # of an event: what its result is keyed by
    deleted: bool = False  # the source told us that the record is gone
    owner: str = ""  # message id that owns the claims
    row: Row | None = None
    mapped: Mapped | None = None
    link: LinkRow | None = None
    linked: bool = False  # whether the link was looked up
    assumed: bool = False  # it was not: the record looks new
    in_scope: bool = True
    references: dict[str, Reference] = dataclasses.field(default_factory=dict)
    target: Row | None = None
    matched: bool = False  # whether the rules were asked, or the linked target was read
    matched_by: str = ""
    decision: Decision | None = None
    lost: list[str] = dataclasses.field(default_factory=list)  # fields that the answer to the write does not show
    missing: set[str] = dataclasses.field(default_factory=set)  # digests of references that would be created
    identity: IdentityRow | None = None  # our claim on the first match rule's value
    siblings: Siblings | None = None  # of a child
    families: "list[Family] | None" = None  # its children by the blocks under `children`, once they were looked at
    fresh: bool = False  # the target was made just now
    notes: dict[str, str] = dataclasses.field(default_factory=dict)  # kind of child -> what is done with how many
    child_warnings: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    failed_child: str = ""  # whose error it is
    doubtful: bool = False  # an earlier attempt may have appended already
    unwritten: bool = False  # its write certainly did not happen, and its claims are given up: it can go again as it is
    ahead: bool = False  # the link was claimed before the record was read
    interrupted: bool = False  # an earlier attempt of this message had the claim: what it wrote is our doing
    attempts: int = 1
    first_sent_at: datetime | None = None
    error: Exception | None = None
    outcome: Outcome | None = None
    reason: str = ""
    message: str = ""
    written: Row | None = None

    @property
    def open(self) -> bool:
        """Whether there is still something to do."""
        return self.error is None and self.outcome is None

    @property
    def key(self) -> str:
        """Return the source record's key."""
        return self.item.key

    @property
    def source(self) -> Row:
        """Return the source record. Raises MappingError when it was not read."""
        if self.row is None:
            raise MappingError("The source record was not read.")
        return self.row

    @property
    def fields(self) -> Mapped:
        """Return the mapped record. Raises MappingError when it was not mapped."""
        if self.mapped is None:
            raise MappingError("The record could not be mapped.")
        return self.mapped

    @property
    def decided(self) -> Decision:
        """Return the decision. Raises MappingError when nothing was decided."""
        if self.decision is None:
            raise MappingError("Nothing was decided about the record.")
        return self.decision

    @property
    def linked_key(self) -> bool:
        """Whether the record has a link with a target."""
        return self.link is not None and bool(self.link.other_key)

    @property
    def scope_changed(self) -> bool:
        """Whether the record has left the recipe's scope, or come back, since the link last noted it."""
        gone = self.link is not None and self.link.gone % 2 == 1
        return gone == self.in_scope

    def end(self, outcome: Outcome, reason: str = "", message: str = "") -> None:
        """Settle the record's outcome."""
        self.outcome, self.reason, self.message = outcome, reason, message


@dataclasses.dataclass
class Family:
    """A record's children by one block under `children`."""

    works: list[Work]  # of the children that the source has
    stale: list[LinkRow]  # of those that it no longer has; under `mirror` also of those whose create is in doubt
    mirrored: bool  # what it no longer has is taken away
    in_making: list[LinkRow]  # of children from the other side, which may be among these
    siblings: Siblings
    owner: str  # of claims, as the record's own
    removed: int = 0
    errors: list[tuple[str, Exception]] = dataclasses.field(default_factory=list)  # of removals, by the child


def each(works: Iterable[Work], step: Callable[[Work], None]) -> None:
    """Do a step for every open work; an error stays with its record."""
    for work in works:
        if not work.open:
            continue
        with attempt.attempt(record_key=work.key):
            try:
                step(work)
            except (StateError, ConfigError):
                raise
            except SyncError as exc:
                work.error = exc
            except Exception as exc:
                LOG.exception("a step failed unexpectedly")
                work.error = exc
