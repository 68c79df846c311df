"""Claims: who may create or change something, decided by compare-and-set on the row that holds the claim.

A row's claim is taken by inserting the row, or by replacing it when its claim is free, ours (the queue delivered our
message again) or over. What a takeover finds out about the earlier owner's create is never lost: see `Taken.create_by`.
"""

import dataclasses
from datetime import datetime
from typing import Generic, TypeVar

from shared.errors import StateError
from shared.state.rows import Claim, IdentityRow, LinkRow, TargetRow
from shared.state.tables import RowError, Tables

TRIES = 5  # a row that changes under us more often than that is somebody else's at the moment

R = TypeVar("R", LinkRow, TargetRow, IdentityRow)


@dataclasses.dataclass(frozen=True)
class Taken(Generic[R]):
    """The claim is ours."""

    row: R  # as stored, with our claim and its etag
    create_by: datetime | None = None  # the earlier claim's, which we took over: its create is doubtful
    was_ours: bool = False  # it was ours already
    changed: bool = False  # the row says something else than the one we had (claim apart)


@dataclasses.dataclass(frozen=True)
class Held:
    """Somebody else's claim holds."""

    until: datetime
    wait_s: float


def may_take(claim: Claim | None, owner: str, now: datetime) -> bool:
    """Tell whether a claim is free for an owner: there is none, it is the owner's, or it is over."""
    return is_over(claim, now) or (claim is not None and claim.owner == owner)


def is_over(claim: Claim | None, now: datetime) -> bool:
    """Tell whether nobody holds a claim any more."""
    return claim is None or claim.until <= now


def wait_s(claim: Claim, now: datetime) -> float:
    """Return the seconds until a claim is over, 0 when it is."""
    return max(0.0, (claim.until - now).total_seconds())


def weigh(stored: R, wanted: R, now: datetime) -> Taken[R] | Held:
    """Decide whether a stored row's claim may be taken; `Taken.row` is then the row to replace it by.

    The row keeps what it says and gets the claim that `wanted` carries. A doubt about an earlier create stays as it is
    until its owner has looked the record up and claims anew: a new `create_by` would put the look-up off each time.
    """
    claim, ours = stored.claim, wanted.claim
    if ours is None:
        raise ValueError(f"this {type(wanted).__name__} carries no claim")
    if claim is not None and not may_take(claim, ours.owner, now):
        return Held(claim.until, wait_s(claim, now))
    if claim is not None and claim.create_by is not None:
        ours = ours.model_copy(update={"create_by": claim.create_by})
    return Taken(
        row=stored.model_copy(update={"claim": ours}),
        create_by=claim.create_by if claim else None,
        was_ours=claim is not None and claim.owner == ours.owner,
        changed=content(stored) != content(wanted),
    )


def take(tables: Tables, wanted: R, *, now: datetime, stored: R | None = None) -> Taken[R] | Held:
    """Take the claim that a row carries: insert the row, or replace the one that is there.

    `stored` is that row as it was read before, which saves looking: a claim that held it then is looked at again.
    Raises StateError when storage refuses.
    """
    given = stored
    if stored is None and wanted.etag:
        stored = tables.get(type(wanted), wanted.partition_key, wanted.row_key)
    for _ in range(TRIES):
        try:
            if stored is None:
                return Taken(tables.insert(wanted))
            answer = weigh(stored, wanted, now)
            if isinstance(answer, Held):
                if stored is not given:
                    return answer
                stored = tables.get(type(wanted), wanted.partition_key, wanted.row_key)
                continue
            return dataclasses.replace(answer, row=tables.replace(answer.row))
        except RowError as exc:
            stored = exc.stored if isinstance(exc.stored, type(wanted)) else None
    raise StateError(f"The claim on a {type(wanted).__name__} changes hands too fast")


def content(row: R) -> R:
    """Return what a row says, whoever has its claim."""
    return row.model_copy(update={"claim": None, "etag": ""})
