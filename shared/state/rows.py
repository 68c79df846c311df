"""Every row that Concord stores, as a documented model with a schema version.

A row knows its table and both keys. Keys spread load and list newest first without a scan; see `docs/architecture.md`.
Emails and field values are stored as keyed digests only, except a run's recipients.
"""

import hashlib
import re
from datetime import datetime
from enum import StrEnum
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

EVENT_PAGES = 16  # partitions that a day's event results are spread over
SHARDS = 8  # partitions of a recipe pair's links; part of the stored keys, so it never changes


class Outcome(StrEnum):
    """What became of an item. HELD waits for a confirmation and is replaced once; all others are final."""

    CREATED = "created"
    ADOPTED = "adopted"
    UPDATED = "updated"
    UNCHANGED = "unchanged"
    SKIPPED = "skipped"
    FAILED = "failed"
    HELD = "held"


class RunState(StrEnum):
    """Where a run stands."""

    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    AWAITING_CONFIRMATION = "awaiting_confirmation"
    COMPLETED = "completed"
    COMPLETED_WITH_WARNINGS = "completed_with_warnings"
    COMPLETED_WITH_FAILURES = "completed_with_failures"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to the run."""
        return self not in (RunState.QUEUED, RunState.RUNNING, RunState.WAITING, RunState.AWAITING_CONFIRMATION)


class RunKind(StrEnum):
    """Which slot of its recipe a run takes; IDS and EVENTS take none."""

    WINDOW = "window"
    BACKFILL = "backfill"
    IDS = "ids"
    EVENTS = "events"


class MailState(StrEnum):
    """Where a run's summary stands, apart from the run's own state."""

    NONE = "none"
    OWED = "owed"
    SENT = "sent"
    SUMMARY_FAILED = "summary_failed"


# -- keys ---------------------------------------------------------------------------------------------------------


def key_text(value: str) -> str:
    """Return a value as it may stand in a key: what Azure forbids or trips over becomes `=XX`, two hex digits a byte."""
    return re.sub(r"[^A-Za-z0-9 _.:,;@~!$&()*<>{}\[\]|^-]", _escape, value)


def _escape(match: re.Match[str]) -> str:
    return "".join(f"={byte:02X}" for byte in match.group().encode())


def shard_of(value: str) -> str:
    """Return the shard of an id, the same on every worker and for ever."""
    return f"{hashlib.sha256(value.encode()).digest()[0] % SHARDS:02d}"


def new_run_id(recipe: str, at: datetime, suffix: str) -> str:
    """Return a run id that says recipe and moment: `case_to_incident-20260314T060000123-4f2a`."""
    return f"{recipe}-{at:%Y%m%dT%H%M%S}{at.microsecond // 1000:03d}-{suffix}"


def recipe_of(run_id: str) -> str:
    """Return the recipe that a run id names. Raises ValueError for what is no run id."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*-\d{8}T\d{9}-[0-9a-z]{4,12}", run_id, re.ASCII):
        raise ValueError(f"not a run id: {run_id[:80]!r}")
    return run_id.rsplit("-", 2)[0]


def newest_first(run_id: str) -> str:
    """Return a run id's row key: its moment counted backwards, so that tables list the newest first."""
    _, moment, suffix = run_id.rsplit("-", 2)
    return "".join(str(9 - int(digit)) for digit in moment.replace("T", "")) + "-" + suffix


# -- rows ---------------------------------------------------------------------------------------------------------


class StateRow(BaseModel):
    """A row of a table. `etag` is what the storage gave when it was read; empty for a new one."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    TABLE: ClassVar[str]

    schema_version: int = 1
    etag: str = Field(default="", exclude=True)

    @property
    def partition_key(self) -> str:
        raise AttributeError(type(self).__name__)

    @property
    def row_key(self) -> str:
        raise AttributeError(type(self).__name__)


class RunRow(StateRow):
    """One run. Changed by compare-and-set only."""

    TABLE: ClassVar[str] = "runs"

    run_id: str
    recipe: str
    kind: RunKind
    state: RunState = RunState.QUEUED
    preview: bool = False  # decides everything, writes nothing
    verify: bool = False  # compares source and target, writes nothing; a preview as well
    window: str = ""  # canonical text of the window, "" for events
    since: datetime | None = None  # aware UTC, inclusive
    until: datetime | None = None  # aware UTC, exclusive; from the vendor's clock, fixed at the start
    ids: list[str] = []  # record keys of an IDS run
    moves_cursor: bool = False
    first_run: bool = False  # no run of this recipe has ever written a link
    listed_until: datetime | None = None  # the cursor's, before this run
    started_by: str = ""  # http, daily, poll, sweep, retry, after:<recipe>
    environment: str = ""
    recipe_hash: str = ""
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    closed: bool = False  # what follows from the end (cursor, mail, slot) is done
    turn: int = 0  # which of the repeating checks is the run's own; the watchdog begins a new turn
    moved_at: datetime | None = None  # last time anything of this run moved; read by the watchdog
    stalls: int = 0  # how often the watchdog has pushed the run since anything moved
    waiting_since: datetime | None = None
    waiting_for: str = ""  # the connection that is down
    outage_told: datetime | None = None  # the `waiting_since` of which its recipients were told
    waiting_why: str = ""  # what its last answer, or its silence, was: a sentence
    # listing
    last_page: int | None = None  # number of the last page, once it is listed
    results_seen: int = 0  # results at the last look, for progress
    pages_done: int = 0  # pages 0 … n-1 have all their results, and `counts` has theirs
    total: int | None = None  # records, if the vendor said so
    counts: dict[str, int] = {}  # outcomes and `skipped:<reason>`, of the pages done
    warnings: int = 0
    error: str = ""  # why the run failed: a sentence
    # guards
    released: bool = False  # what the guards hold may go: it is little enough, or a person confirmed it
    held_for: str = ""  # what waits for a confirmation: "new_users", "removals", or both joined by " and "; "" nothing
    held_count: int = 0
    held_text: str = ""  # the same as sentences
    counts_so_far: dict[str, int] = {}  # outcomes, held ones included, while it waits for the confirmation
    held_at: datetime | None = None
    asked: bool = False  # the recipients were asked for the confirmation
    # mail
    mail_to: list[str] = []  # the one place where addresses are stored
    mail_state: MailState = MailState.NONE
    mail_problem: str = ""  # why the last send failed: a sentence
    mail_sends: int = 0  # to those who still wait for it, counted before each send; two at the most
    mail_left: list[str] = []  # who still waits, after others got it: the server put them off; empty: all of `mail_to`
    mail_undelivered: int = 0  # recipients whom the server refused, although others got the mail

    @property
    def partition_key(self) -> str:
        return self.recipe

    @property
    def row_key(self) -> str:
        return newest_first(self.run_id)


class PageRow(StateRow):
    """A page's manifest: written once, before anything of the page is sent."""

    TABLE: ClassVar[str] = "pages"

    run_id: str
    page: int
    keys: list[str] = []  # the page's record keys; their results make the page done
    next_link: str = ""  # opaque; "" on the last page
    last: bool = False
    fanned_out: bool = False  # the next page and all items are sent: a repeat has nothing to do
    held_keys: list[str] = []  # records that wait for a guard's decision
    new_references: list[str] = []  # digests of reference values that this page would create
    removals: int = 0  # how much this page would take away
    removable: int = 0  # out of how much: its records, and the entries of `mirror` that they are linked with
    reached_at: datetime | None = None  # change time of the page's last record: where to go on when the link expires

    @property
    def partition_key(self) -> str:
        return self.run_id

    @property
    def row_key(self) -> str:
        return f"{self.page:06d}"


class ResultRow(StateRow):
    """What became of one record in one run: inserted once, never changed (a held one is replaced once)."""

    TABLE: ClassVar[str] = "results"

    run_id: str
    page: int
    key: str  # the record's, or of an event the event's id
    record_key: str = ""  # of an event: the record's key
    outcome: Outcome
    reason: str = ""  # code, for failed and skipped
    message: str = ""  # a sentence without personal data: what happened and what to do
    warnings: list[dict[str, str]] = []  # {code, text}
    fields: dict[str, str] = {}  # target field -> why it was (or would be) written; preview and explain
    source_label: str = ""
    source_url: str = ""
    target_key: str = ""
    target_label: str = ""
    target_url: str = ""
    created_references: list[dict[str, str]] = []  # {record, key, url} of users made on the way
    attempts: int = 1
    ended_at: datetime

    @property
    def partition_key(self) -> str:
        return f"{self.run_id}!{self.page:06d}"

    @property
    def row_key(self) -> str:
        return key_text(self.key)


class OpenRow(StateRow):
    """A record that failed and is taken along by id until it succeeds, vanishes or a person skips it."""

    TABLE: ClassVar[str] = "open"

    recipe: str
    key: str
    reason: str
    message: str
    label: str = ""
    url: str = ""
    first_failed_at: datetime
    last_failed_at: datetime
    last_run_id: str
    runs: int = 1

    @property
    def partition_key(self) -> str:
        return self.recipe

    @property
    def row_key(self) -> str:
        return key_text(self.key)


class Claim(BaseModel):
    """Who is about to create or change something, and until when nobody else may.

    The owner is the id of the queue message in hand (its first id, if it was sent again): a redelivery takes its own
    claim over at once. `create_by` is the last moment at which the owner may let a create leave; None: nothing was
    about to be created. A claim taken over with `create_by` set is an ambiguous create.
    """

    model_config = ConfigDict(frozen=True)

    owner: str
    until: datetime
    create_by: datetime | None = None


class LinkRow(StateRow):
    """The pair of a source record and its target record. Found from its `side` here, from the other side by TargetRow.

    The links of a record's children stand together, one kind after the other, and are found through their parent's link
    from either side.
    """

    TABLE: ClassVar[str] = "links"

    pair: str  # both record types, sorted: "dynamics365.incident+servicenow.incident"
    side: str  # record type whose key this row is under: the source of the recipe that made the link
    key: str  # a child's is unique among its parent's children only
    other_key: str = ""  # "" while only claimed
    versions: dict[str, str] = {}  # record type -> version when they last agreed
    changed_at: dict[str, str] = {}  # record type -> ISO time of the version, for `newest`
    agreed: dict[
        str, str
    ] = {}  # "<record type>.<field>" -> digest of what it held when they last agreed; "!" before it: not filled by us
    inputs: dict[str, str] = {}  # "<target record type>.<field>" -> digest of what its `find` was asked
    # and while a record, or a child of `mirror`, is being made: "<target record type>" -> digest of its values in the
    # first match rule, "-" for none; nothing where that is its own key
    gone: int = 0  # how often the record has left `when`; odd: it is gone now
    parent: str = ""  # of a child: row key of its parent's link, under which it stands
    claim: Claim | None = None
    run_id: str = ""  # of the last write
    event_id: str = ""  # of the last write, if an event brought it
    outcome: str = ""  # of the last write, so that a repeat after a kill reports what happened; of a claim: `adopted`
    wrote_version: str = ""  # source version of the last write

    @property
    def partition_key(self) -> str:
        return f"{key_text(self.pair)}~{shard_of(self.parent or self.key)}"

    @property
    def row_key(self) -> str:
        own = f"{self.side}!{key_text(self.key)}"
        return f"{self.parent}|{own}" if self.parent else own


class TargetRow(StateRow):
    """One target record belongs to one source record per pair: claimed before adopting, kept for the way back."""

    TABLE: ClassVar[str] = "targets"

    pair: str
    side: str  # record type of `key`
    key: str
    link_side: str  # where the LinkRow is
    link_key: str
    claim: Claim | None = None  # None: settled

    @property
    def partition_key(self) -> str:
        return f"{key_text(self.pair)}~{shard_of(self.key)}"

    @property
    def row_key(self) -> str:
        return f"{self.side}!{key_text(self.key)}"


class IdentityRow(StateRow):
    """A value of a match field and the record that has it: claimed before any create, so that no value is created twice."""

    TABLE: ClassVar[str] = "identities"

    record: str  # "servicenow.sys_user"
    rule: str  # field, or fields joined by "+"
    digest: str  # keyed digest of the normalised value
    key: str = ""  # of the record that has it; "" while only claimed
    link_key: str = ""  # source record that made it; "" for a plain reference
    refused_at: datetime | None = None  # when the vendor last said that it exists but did not show it
    older_digest: str = Field(default="", exclude=True)  # the value's under the key before, while two are valid
    claim: Claim | None = None

    @property
    def partition_key(self) -> str:
        return f"{self.record}~{shard_of(self.digest)}"

    @property
    def row_key(self) -> str:
        return f"{key_text(self.rule)}!{key_text(self.digest)}"


class CursorRow(StateRow):
    """How far a recipe has read, and when its schedules last fired."""

    TABLE: ClassVar[str] = "cursors"

    recipe: str
    activated_at: datetime  # first time that the app saw the recipe
    read_until: datetime | None = None  # the cursor; None: never read
    listed_until: datetime | None = None  # no run that may write has listed a record that was created then or later
    started: bool = False  # a run that may write has been started
    fired: dict[str, str] = {}  # schedule -> ISO time of the occurrence it last started
    validated_hash: str = ""  # recipe hash that last passed `validate`

    @property
    def partition_key(self) -> str:
        return self.recipe

    @property
    def row_key(self) -> str:
        return "cursor"


class SlotRow(StateRow):
    """The mark of the one windowed run, or the one backfill, of a recipe."""

    TABLE: ClassVar[str] = "cursors"

    recipe: str
    kind: Literal["window", "backfill"]
    run_id: str
    window: str
    preview: bool = False
    verify: bool = False

    @property
    def partition_key(self) -> str:
        return self.recipe

    @property
    def row_key(self) -> str:
        return f"slot-{self.kind}"


class AuditRow(StateRow):
    """Who did what, newest first within a month. Webhooks that were not taken are one row per day, recipe and reason."""

    TABLE: ClassVar[str] = "audit"

    at: datetime
    action: str  # start, retry, skip, cancel, confirm, export, import, recipe_changed, webhook_refused, webhook_ignored
    who: str  # digest of a person's address, or timer, poll, app, webhook
    recipe: str = ""
    run_id: str = ""
    detail: str = ""
    count: int = 1  # how often, where it is counted
    suffix: str = ""

    @property
    def partition_key(self) -> str:
        return f"{self.at:%Y-%m}"

    @property
    def row_key(self) -> str:
        return f"{10**16 - int(self.at.timestamp() * 1_000_000):017d}-{self.suffix}"


ROWS: tuple[type[StateRow], ...] = (
    RunRow, PageRow, ResultRow, OpenRow, LinkRow, TargetRow, IdentityRow, CursorRow, SlotRow, AuditRow,
)  # fmt: skip
