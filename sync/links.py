"""Links between source and target records: finding, claiming and settling them.

A link's row stands under the record that the making recipe read (its source). The other side finds it through a
TargetRow, which is also what makes one target record belong to one source record.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from datetime import datetime, timedelta

from shared.clients.system import Value
from shared.errors import RateLimitedError, RejectedError, SyncError
from shared.state import claims
from shared.state.rows import Claim, IdentityRow, LinkRow, TargetRow
from shared.state.tables import RowChangedError, RowExistsError
from sync.flow import Flow

CLAIM_PAUSE_S = 2.0  # the least wait for somebody else's claim


def find_links(flow: Flow, keys: list[str]) -> dict[str, LinkRow | None]:
    """Find the links of many source records, made by this recipe or by one in the other direction."""
    blank = {key: LinkRow(pair=flow.pair, side=flow.source_name, key=key) for key in keys}
    rows = flow.tables.get_many(LinkRow, [(row.partition_key, row.row_key) for row in blank.values()])
    found: dict[str, LinkRow | None] = dict(zip(blank, rows, strict=True))
    if flow.two_way:
        for key in [key for key, row in found.items() if row is None or not row.other_key]:
            found[key] = _from_other_side(flow, flow.pair, flow.source_name, key) or found[key]
    return found


def _from_other_side(flow: Flow, pair: str, side: str, key: str) -> LinkRow | None:
    blank = TargetRow(pair=pair, side=side, key=key, link_side="", link_key="")
    pointer = flow.tables.get(TargetRow, blank.partition_key, blank.row_key)
    if pointer is None:
        return None
    link = LinkRow(pair=pair, side=pointer.link_side, key=pointer.link_key)
    return flow.tables.get(LinkRow, link.partition_key, link.row_key)


def check_finished(flow: Flow, link: LinkRow, owner: str) -> None:
    """Look whether a link that the other side has begun is there to be used: until then its records are a pair to it alone.

    Raises RateLimitedError `claim_held` while another message works on it, RejectedError `other_side_unfinished` when none does.
    """
    if link.other_key or link.side == flow.source_name:
        return
    if link.claim is not None and not claims.may_take(link.claim, owner, flow.now()):
        _taken(claims.Held(link.claim.until, claims.wait_s(link.claim, flow.now())))
    raise RejectedError(
        "The recipe of the other direction has paired this record, and was interrupted before that was noted.",
        code="other_side_unfinished",
    )


def find_child_links(flow: Flow, parent: LinkRow) -> list[LinkRow]:
    """Find the links of a record's children of the flow's kind, made by either side: one range of one partition."""
    first = LinkRow(pair=flow.pair, side="", key="", parent=parent.row_key)
    rows = flow.tables.query(LinkRow, first.partition_key, f"{parent.row_key}|", f"{parent.row_key}}}")
    return [row for row in rows if row.parent == parent.row_key]


def source_key(flow: Flow, link: LinkRow) -> str:
    """Return the key of the recipe's source record, whichever side the link stands under."""
    return link.key if link.side == flow.source_name else link.other_key


def link_of(flow: Flow, pair: str, side: str, key: str) -> LinkRow | None:
    """Return a record's link of any pair, from whichever side it was made."""
    blank = LinkRow(pair=pair, side=side, key=key)
    stored = flow.tables.get(LinkRow, blank.partition_key, blank.row_key)
    link = stored if stored is not None and stored.other_key else _from_other_side(flow, pair, side, key)
    return link if link is not None and link.other_key else None


def target_key(flow: Flow, link: LinkRow) -> str:
    """Return the key of the recipe's target record, whichever side the link stands under."""
    return link.other_key if link.side == flow.source_name else link.key


def new_claim(flow: Flow, owner: str, *, creating: bool) -> Claim:
    """Build a claim; with `creating` it says until when a create may leave."""
    now = flow.now()
    create_by = now + timedelta(seconds=flow.limits.create_s) if creating else None
    return Claim(owner=owner, until=now + timedelta(seconds=flow.limits.claim_s), create_by=create_by)


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A claim on a source record's link."""

    key: str
    link: LinkRow | None  # as it was read
    owner: str
    creating: bool
    value: IdentityRow | None = None  # the first match rule's value, where it is to be created with it
    held: bool = False  # the claim that `link` carries is this attempt's own

    @property
    def row_key(self) -> str:
        """Return what tells a claim from the others of its batch: children of several records may have one key."""
        return self.link.row_key if self.link else self.key


class Book:
    """How a batch's claims and links are stored: here each by itself; `bulk.ShardBook` stores them together."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.stored: dict[str, LinkRow] = {}  # links as they are stored now, by row key

    def claim_together(self, wanted: Sequence[Wanted]) -> None:
        """Claim what can be claimed together, before each is asked for."""

    def claim(self, wanted: Wanted) -> claims.Taken[LinkRow]:
        """Claim a record's link. Raises RateLimitedError `claim_held` while another message holds it."""
        return claim_link(self.flow, wanted.key, wanted.link, wanted.owner, creating=wanted.creating)

    def claim_value(self, blank: IdentityRow, owner: str) -> claims.Taken[IdentityRow]:
        """Claim a match value. Raises RateLimitedError `claim_held` while another message holds it."""
        return claim_identity(self.flow, blank, owner)

    def store_value(self, link: LinkRow, row: IdentityRow) -> None:  # noqa: ARG002  # whose value it is: others put it off
        """Store a match value that we have claimed, before its link. Raises RateLimitedError `claim_lost`."""
        store(self.flow, row)

    def release(self, rows: Sequence[LinkRow | IdentityRow]) -> None:
        """Give up claims under which nothing was written, or whose links say it all by now."""
        for row in rows:
            release(self.flow, row, keep=is_linked(row))

    def own_target(self, link: LinkRow, key: str) -> None:
        """Make a created record ours. Raises RejectedError `target_taken`."""
        own_target(self.flow, link, key)

    def store(self, link: LinkRow) -> None:
        """Store a link that we have claimed. Raises RateLimitedError `claim_lost`."""
        self.stored[link.row_key] = store(self.flow, link)

    def settle_together(self) -> dict[str, SyncError]:
        """Store what was put off; return the errors by the link's row key."""
        return {}


def claim_link(flow: Flow, key: str, link: LinkRow | None, owner: str, *, creating: bool) -> claims.Taken[LinkRow]:
    """Claim a record's link before anything is written for it.

    Raises RateLimitedError `claim_held` while another message holds it.
    """
    wanted = link or LinkRow(pair=flow.pair, side=flow.source_name, key=key)
    claim = new_claim(flow, owner, creating=creating)
    stored = link if link is not None and link.etag else None
    return _taken(claims.take(flow.tables, wanted.model_copy(update={"claim": claim}), now=flow.now(), stored=stored))


def claim_identity(flow: Flow, row: IdentityRow, owner: str) -> claims.Taken[IdentityRow]:
    """Claim a value of a match field before a record is created with it.

    Raises RateLimitedError `claim_held` while another message holds it.
    """
    if row.older_digest:
        _take_over_older(flow, row, owner)
        row = row.model_copy(update={"older_digest": ""})
    claim = new_claim(flow, owner, creating=True)
    return _taken(claims.take(flow.tables, row.model_copy(update={"claim": claim}), now=flow.now()))


def _take_over_older(flow: Flow, row: IdentityRow, owner: str) -> None:
    """Let what is known of a value under the older of two digest keys stand under the current one, doubts included.

    Raises RateLimitedError `claim_held` while another message holds it there.
    """
    blank = row.model_copy(update={"digest": row.older_digest})
    older = flow.tables.get(IdentityRow, blank.partition_key, blank.row_key)
    if older is None:
        return
    if older.claim is not None and not claims.may_take(older.claim, owner, flow.now()):
        _taken(claims.Held(older.claim.until, claims.wait_s(older.claim, flow.now())))
    with contextlib.suppress(RowExistsError):
        flow.tables.insert(older.model_copy(update={"digest": row.digest, "etag": ""}))
    release(flow, older)


def _taken(answer: "claims.Taken[claims.R] | claims.Held") -> "claims.Taken[claims.R]":
    if isinstance(answer, claims.Held):
        raise RateLimitedError(
            "Another message works on the same record; this one waits until it is done.",
            code="claim_held",
            retry_after_s=max(CLAIM_PAUSE_S, min(answer.wait_s, 30.0)),
        )
    return answer


def wait_for_create(flow: Flow, create_by: datetime) -> None:
    """Raise RateLimitedError while a create that left before `create_by` could still take effect."""
    left_s = (create_by - flow.now()).total_seconds() + flow.target.transaction_s
    if left_s > 0:
        raise RateLimitedError(
            "An earlier attempt may still be creating this record; it is looked up when that can no longer happen.",
            code="ambiguous_wait",
            retry_after_s=left_s + 1,
        )


def own_target(flow: Flow, link: LinkRow, key: str) -> None:
    """Make a target record ours before it is adopted, and after it is created.

    Raises RejectedError `target_taken` when it belongs to another source record.
    """
    row = TargetRow(pair=flow.pair, side=flow.target_name, key=key, link_side=link.side, link_key=link.key)
    try:
        flow.tables.insert(row)
    except RowExistsError as exc:
        stored = exc.stored
        if not isinstance(stored, TargetRow) or (stored.link_side, stored.link_key) != (link.side, link.key):
            raise RejectedError(
                "The matching record already belongs to another source record.", code="target_taken"
            ) from exc


def owner_of_target(flow: Flow, key: str) -> TargetRow | None:
    """Return who a target record belongs to."""
    row = TargetRow(pair=flow.pair, side=flow.target_name, key=key, link_side="", link_key="")
    return flow.tables.get(TargetRow, row.partition_key, row.row_key)


def renew(flow: Flow, row: claims.R, owner: str, *, creating: bool = True) -> claims.R:
    """Let a claim promise what is going to be done now; a create that it promised before is known not to have happened."""
    return store(flow, row.model_copy(update={"claim": new_claim(flow, owner, creating=creating)}))


def store(flow: Flow, row: claims.R) -> claims.R:
    """Store a row that we have claimed.

    Raises RateLimitedError `claim_lost` when somebody took the claim over meanwhile: the record is looked at again.
    """
    try:
        return flow.tables.replace(row)
    except RowChangedError as exc:
        raise RateLimitedError(
            "The claim on this record was taken over; it is looked at again.", code="claim_lost", retry_after_s=1.0
        ) from exc


def release(flow: Flow, row: LinkRow | IdentityRow, *, keep: bool = False) -> None:
    """Give a claim up after an attempt that certainly wrote nothing; a row that is nothing but the claim goes away."""
    try:
        if keep:
            flow.tables.replace(row.model_copy(update={"claim": None}))
        else:
            flow.tables.delete(row)
    except RowChangedError:
        return  # taken over meanwhile: it is the other's to give up


def is_linked(row: LinkRow | IdentityRow) -> bool:
    """Tell whether a row is more than its claim, and stays when that is given up."""
    return isinstance(row, LinkRow) and bool(row.other_key)


def leave_in_doubt(flow: Flow, row: LinkRow | IdentityRow) -> None:
    """Give a claim up after a create whose answer was lost: anybody may take it, and looks the record up first."""
    if row.claim is not None:
        with contextlib.suppress(RowChangedError):  # taken over meanwhile: it is the other's doubt
            flow.tables.replace(row.model_copy(update={"claim": row.claim.model_copy(update={"until": flow.now()})}))


def place_of(flow: Flow, side: str, key: str) -> str:
    """Return where a person finds the record under which a link stands."""
    connection, _, record = side.partition(".")
    system = flow.source if connection == flow.recipe.source.connection else flow.target
    return system.url(record, key)


def forget_identity(flow: Flow, blank: IdentityRow, key: str) -> None:
    """Forget that a source record's target has a value, if it is that record's."""
    for digest in filter(None, (blank.digest, blank.older_digest)):
        row = blank.model_copy(update={"digest": digest})
        stored = flow.tables.get(IdentityRow, row.partition_key, row.row_key)
        if stored is not None and stored.link_key == key and stored.claim is None:
            release(flow, stored)


def identity(flow: Flow, record: str, rule: Sequence[str], values: Sequence[Value], link_key: str = "") -> IdentityRow:
    """Build the row under which a match rule's values are claimed; `record` is "connection.record"."""
    digest, *older = flow.digests.candidates(list(values))
    return IdentityRow(
        record=record, rule="+".join(rule), digest=digest, link_key=link_key, older_digest=older[0] if older else ""
    )
