"""Claims: one owner at a time, a redelivery goes on at once, doubts are never lost."""

import threading
from datetime import UTC, datetime, timedelta

import pytest

from shared.state.claims import Held, Taken, may_take, take, wait_s, weigh
from shared.state.rows import Claim, IdentityRow, LinkRow, TargetRow

NOON = datetime(2026, 3, 14, 12, 0, tzinfo=UTC)
LATER = NOON + timedelta(minutes=11)
PAIR = "dynamics365.incident+servicenow.incident"


def claim(owner: str, at: datetime = NOON, *, creating: bool = False) -> Claim:
    create_by = at + timedelta(seconds=90) if creating else None
    return Claim(owner=owner, until=at + timedelta(minutes=10), create_by=create_by)


def link(owner: str, at: datetime = NOON, **facts) -> LinkRow:
    creating = facts.pop("creating", False)
    held = claim(owner, at, creating=creating)
    return LinkRow(pair=PAIR, side="dynamics365.incident", key="C1", claim=held, **facts)


ROWS = [
    pytest.param(link("m1"), id="link"),
    pytest.param(
        TargetRow(pair=PAIR, side="servicenow.incident", key="I", link_side="s", link_key="C1", claim=claim("m1")),
        id="target",
    ),
    pytest.param(IdentityRow(record="servicenow.sys_user", rule="email", digest="d", claim=claim("m1")), id="identity"),
]


@pytest.mark.parametrize(
    ("held", "free"),
    [
        pytest.param(None, True, id="none"),
        pytest.param(claim("m1"), False, id="another's"),
        pytest.param(claim("m2"), True, id="ours"),
        pytest.param(claim("m1", NOON - timedelta(minutes=10)), True, id="over this moment"),
    ],
)
def test_claim_is_free_for_its_owner_and_after_its_end(held, free):
    """A redelivery takes its own claim over at once, any other message waits."""
    assert may_take(held, "m2", NOON) is free


def test_wait_lasts_until_the_claim_is_over():
    """And is never negative."""
    assert wait_s(claim("m1"), NOON) == 600
    assert wait_s(claim("m1"), LATER) == 0


@pytest.mark.parametrize("row", ROWS)
def test_first_claim_is_taken_by_insert(tables, row):
    """One storage operation, and nothing was there before."""
    tables.create_all([type(row)])
    before = tables.operations.total()

    taken = take(tables, row, now=NOON)

    assert taken == Taken(taken.row)
    assert taken.row.claim.owner == "m1"
    assert taken.create_by is None
    assert tables.operations.total() - before == 1


@pytest.mark.parametrize("row", ROWS)
def test_another_message_waits(tables, row):
    """Until the claim is over."""
    take(tables, row, now=NOON)

    held = take(tables, row.model_copy(update={"claim": claim("m2")}), now=NOON)

    assert held == Held(until=NOON + timedelta(minutes=10), wait_s=600)


def test_redelivery_goes_on_at_once(tables):
    """The same message again: its claim, and the doubt about what it may have sent."""
    take(tables, link("m1", creating=True), now=NOON)

    taken = take(tables, link("m1", NOON + timedelta(minutes=1), creating=True), now=NOON)

    assert taken.was_ours
    assert taken.create_by == NOON + timedelta(seconds=90)
    assert taken.row.claim.create_by == NOON + timedelta(seconds=90)  # not put off by looking again
    assert tables.replace(taken.row).etag


def test_claim_that_is_over_is_taken_with_its_doubt(tables):
    """A doubt stays in the row even when the new owner is not about to create: it may die before it has looked."""
    take(tables, link("m1", creating=True), now=NOON)

    taken = take(tables, link("m2", LATER), now=LATER)

    assert (taken.create_by is not None, taken.was_ours, taken.changed) == (True, False, False)
    assert taken.row.claim.owner == "m2"
    assert taken.row.claim.create_by == taken.create_by == NOON + timedelta(seconds=90)


def test_taken_row_keeps_what_it_says(tables):
    """What another message settled meanwhile is not overwritten, and the caller is told."""
    settled = tables.insert(link("m1", other_key="I1").model_copy(update={"claim": None}))

    taken = take(tables, link("m2"), now=NOON)
    same = take(tables, taken.row, now=NOON, stored=taken.row)

    assert (taken.row.other_key, taken.changed) == ("I1", True)
    assert (same.changed, same.was_ours) == (False, True)
    assert settled.etag != taken.row.etag


def test_row_in_hand_does_not_hide_anothers_claim(tables, others):
    """A link that was read before the other message claimed it is looked at again."""
    read = tables.insert(link("m1", other_key="I1").model_copy(update={"claim": None}))
    take(others, read.model_copy(update={"claim": claim("m2")}), now=NOON)

    with_read = take(tables, read.model_copy(update={"claim": claim("m3")}), now=NOON, stored=read)
    without = take(tables, read.model_copy(update={"claim": claim("m3")}), now=NOON)

    assert isinstance(with_read, Held)
    assert isinstance(without, Held)


def test_lost_answer_to_a_claim_is_not_anothers_claim(tables, edge):
    """The row that stands there is ours."""
    tables.create_all([LinkRow])
    edge.faults = [("POST", "lose")]

    taken = take(tables, link("m1"), now=NOON)

    assert isinstance(taken, Taken)
    assert not taken.was_ours


def test_only_one_of_many_gets_the_claim(tables, others):
    """Threads of two processes at the same moment, first for a new row, then for a claim that is over."""
    for at in (NOON, LATER):
        answers = []
        barrier = threading.Barrier(8)

        def race(number: int, at: datetime = at, answers: list = answers, barrier=barrier) -> None:
            barrier.wait()
            answers.append(take(tables if number % 2 else others, link(f"{at}{number}", at), now=at))

        threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert sorted(type(answer).__name__ for answer in answers) == ["Held"] * 7 + ["Taken"]


def test_weighing_needs_a_claim():
    """A row without one is a mistake of ours."""
    bare = link("m1").model_copy(update={"claim": None})

    with pytest.raises(ValueError, match="no claim"):
        weigh(bare, bare, NOON)


def test_old_news_of_a_claim_is_not_waited_for(tables):
    """A row may have been read long before: who held it then may have given it up since."""
    held = tables.insert(link("m1"))
    free = tables.replace(held.model_copy(update={"claim": None}))

    taken = take(tables, link("m2").model_copy(update={"etag": held.etag}), now=NOON, stored=held)

    assert isinstance(taken, Taken)
    assert taken.row.claim.owner == "m2"
    assert taken.row.etag != free.etag
    assert not taken.changed
