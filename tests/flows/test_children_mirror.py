"""`write: mirror`: a group's members are kept as the source has them, and only those that we linked are taken away."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.servicenow import USER_NAME
from sandbox.simulator import FaultKind
from shared.state.messages import ItemModel
from shared.state.rows import Outcome, RunState
from sync import items, runs
from sync.children import removals_of
from tests.flows.test_children import at_work
from tests.flows.twins import GROUPS, TwinWorld, new_twin_world
from tests.flows.world import READ_TIMEOUT_S, Delivery, Stage

MEMBERS = "sys_user_grmember"


@pytest.fixture
def twins(stage: Stage, tmp_path: Path, prefix: str) -> Iterator[TwinWorld]:
    """Return a world of this test's own."""
    with new_twin_world(stage, tmp_path / "recipes", prefix) as made:
        yield made


def mirrored(twins: TwinWorld, *names: str) -> tuple[str, dict[str, str]]:
    """Bring a group with members to the vendor; return its key and those of the members."""
    group = twins.servicenow.insert("sys_user_group", name="Hardware")
    people = twins.people(*names)
    members = {name: twins.join(group, here) for name, (here, _) in people.items()}
    assert twins.sync_recipe(GROUPS).counts == {"created": 1}
    assert twins.members("Hardware") == sorted(f"{name}@acme.example" for name in names)
    return group, members


def test_members_come_and_go(twins: TwinWorld) -> None:
    """Who joins is added, who leaves is removed, and the group's result says so."""
    group, members = mirrored(twins, "ada", "bo")
    twins.leave(group, members["ada"])
    twins.join(group, twins.people("cy")["cy"][0])

    run = twins.sync_recipe(GROUPS)

    assert twins.members("Hardware") == ["bo@acme.example", "cy@acme.example"]
    assert run.counts == {"updated": 1}
    assert twins.result(run).fields == {MEMBERS: "1 created, 1 removed"}
    assert sorted(link.key in members.values() for link in twins.child_links()) == [False, True]


def test_only_linked_members_are_taken_away(twins: TwinWorld) -> None:
    """Whom the vendor added itself stays; whom both had is adopted, not doubled, and then follows the source."""
    group = twins.servicenow.insert("sys_user_group", name="Hardware")
    there = twins.vendor.insert("sys_user_group", name="Hardware")
    people = twins.people("ada", "own")
    member = twins.join(group, people["ada"][0])
    for name in ("ada", "own"):
        twins.vendor.insert(MEMBERS, group=there, user=people[name][1])

    adopted = twins.sync_recipe(GROUPS)
    after_first = twins.members("Hardware")
    twins.leave(group, member)
    twins.sync_recipe(GROUPS)

    assert adopted.counts == {"adopted": 1}
    assert after_first == ["ada@acme.example", "own@acme.example"]
    assert twins.members("Hardware") == ["own@acme.example"]


def test_an_unknown_user_is_a_warning(twins: TwinWorld) -> None:
    """Who has no account there is named by the membership's id, and the others are written."""
    group, _ = mirrored(twins, "ada")
    stranger = twins.servicenow.insert("sys_user", user_name="stranger", email="stranger@acme.example")
    member = twins.join(group, stranger)
    twins.join(group, twins.people("bo")["bo"][0])

    run = twins.sync_recipe(GROUPS)

    (warning,) = twins.result(run).warnings
    assert run.state is RunState.COMPLETED_WITH_WARNINGS
    assert (warning["code"], member in warning["text"]) == ("user_not_found", True)
    assert "stranger" not in warning["text"]
    assert twins.members("Hardware") == ["ada@acme.example", "bo@acme.example"]


def test_a_second_run_asks_nothing(twins: TwinWorld) -> None:
    """Unchanged members cost no vendor call at all."""
    group, _ = mirrored(twins, "ada", "bo", "cy")
    twins.touch(group)
    twins.forget_journal()

    run = twins.sync_recipe(GROUPS)

    assert run.counts == {"unchanged": 1}
    assert twins.calls(twins.vendor) == []


def test_a_membership_that_was_made_anew_takes_the_old_ones_place(twins: TwinWorld) -> None:
    """The source's row has another id, the person is the same: nobody is removed and nobody is doubled."""
    group, members = mirrored(twins, "ada", "bo")
    user = twins.servicenow.tables[MEMBERS][members["ada"]]["user"]
    twins.servicenow.delete(MEMBERS, members["ada"])
    twins.join(group, user)
    twins.forget_journal()

    twins.sync_recipe(GROUPS)

    assert twins.members("Hardware") == ["ada@acme.example", "bo@acme.example"]
    assert not twins.vendor.requests("DELETE")
    assert len(twins.child_links()) == 2
    assert twins.sync_recipe(GROUPS).counts == {"unchanged": 1}


def test_a_refused_removal_fails_the_group_and_comes_again(twins: TwinWorld) -> None:
    """The failure names the member that stays; when the right is given, the next run takes it away."""
    group, members = mirrored(twins, "ada", "bo")
    rights = twins.vendor.users[USER_NAME]
    rights.delete -= {MEMBERS}
    twins.leave(group, members["ada"])

    failed = twins.sync_recipe(GROUPS)
    rights.delete |= {MEMBERS}
    twins.sync_recipe(GROUPS)

    assert (twins.result(failed).outcome, twins.result(failed).reason) == (Outcome.FAILED, "access_denied")
    assert twins.members("Hardware") == ["bo@acme.example"]


@pytest.mark.parametrize("kind", [FaultKind.RESET_AFTER, FaultKind.REFUSE, FaultKind.HTML])
def test_a_removal_whose_answer_is_lost_is_repeated(twins: TwinWorld, kind: FaultKind) -> None:
    """Removing what is gone already is no failure."""
    group, members = mirrored(twins, "ada", "bo")
    twins.leave(group, members["ada"])
    twins.vendor.add_fault(kind=kind, method="DELETE", times=4)

    run = twins.sync_recipe(GROUPS)

    assert run.state is RunState.COMPLETED
    assert twins.members("Hardware") == ["bo@acme.example"]
    assert len(twins.child_links()) == 1


@pytest.mark.parametrize("bulk_above", ["0", "1000"])
@pytest.mark.parametrize("arrived", [True, False])
def test_a_member_in_doubt_who_leaves_is_taken_away(
    stage: Stage, tmp_path: Path, prefix: str, arrived: bool, bulk_above: str
) -> None:
    """Whoever may have been added without an answer, and left before anybody looked, keeps no access and no link."""
    with new_twin_world(stage, tmp_path / "recipes", prefix, {"BULK_ABOVE": bulk_above}) as twins:
        group, member = in_doubt(twins, arrived=arrived)
        twins.leave(group, member)

        run = twins.sync_recipe(GROUPS)

        assert twins.members("Hardware") == ["ada@acme.example"]
        assert run.counts == ({"updated": 1} if arrived else {"unchanged": 1})
        assert [(bool(link.other_key), link.claim) for link in twins.child_links()] == [(True, None)]


def test_a_member_in_doubt_who_leaves_is_waited_for(twins: TwinWorld) -> None:
    """While the lost create may still come true nothing is settled; when it has, who left is taken away."""
    group, member = in_doubt(twins, arrived=False)
    twins.leave(group, member)
    twins.send_event(GROUPS, "servicenow.sys_user_group", group, "event-1")
    twins.pump.run(for_s=2)
    before = twins.event_results(GROUPS)

    (there,) = twins.vendor.rows("sys_user_group", name="Hardware")
    (user,) = twins.vendor.rows("sys_user", user_name="bo")
    twins.vendor.insert(MEMBERS, group=there["sys_id"], user=user["sys_id"])
    twins.pump.run()

    assert before == []
    assert twins.members("Hardware") == ["ada@acme.example"]
    assert [result.fields for result in twins.event_results(GROUPS)] == [{MEMBERS: "1 removed"}]


@pytest.mark.parametrize("arrived", [True, False])
def test_a_member_in_doubt_who_joined_anew_stays(twins: TwinWorld, arrived: bool) -> None:
    """What the lost create made, or another membership of the same person makes now, is the new membership's."""
    group, member = in_doubt(twins, arrived=arrived)
    user = twins.servicenow.tables[MEMBERS][member]["user"]
    twins.leave(group, member)
    twins.join(group, user)

    run = twins.sync_recipe(GROUPS)

    assert twins.members("Hardware") == ["ada@acme.example", "bo@acme.example"]
    assert not twins.vendor.requests("DELETE")
    assert len(twins.child_links()) == 2
    assert twins.result(run).fields == {MEMBERS: "1 adopted" if arrived else "1 created"}


def in_doubt(twins: TwinWorld, *, arrived: bool) -> tuple[str, str]:
    """Let a member join whose create gets no answer and is not tried again; return the group's key and the member's."""
    group, _ = mirrored(twins, "ada")
    member = twins.join(group, twins.people("bo")["bo"][0])
    fault = {"kind": FaultKind.RESET_AFTER} if arrived else {"kind": FaultKind.HANG, "seconds": READ_TIMEOUT_S + 0.3}
    twins.vendor.add_fault(**fault, method="POST", path=MEMBERS)
    attempts = twins.settings.max_attempts
    twins.change_settings(max_attempts=1)
    assert twins.sync_recipe(GROUPS).counts == {"failed": 1}
    twins.change_settings(max_attempts=attempts)
    assert len(twins.members("Hardware")) == (2 if arrived else 1)
    return group, member


def test_members_that_rights_hide_are_not_taken_for_gone(twins: TwinWorld) -> None:
    """A source that shows us only some of the members fails the listing; nobody is removed."""
    group, _ = mirrored(twins, "ada", "bo")
    twins.servicenow.users[USER_NAME].visible_rows = {MEMBERS: "user=nobody"}
    twins.touch(group)

    run = twins.sync_recipe(GROUPS)

    assert run.state is RunState.FAILED
    assert twins.members("Hardware") == ["ada@acme.example", "bo@acme.example"]


def test_removals_are_known_before_anything_is_written(twins: TwinWorld) -> None:
    """A prepared group says how many members it would take away."""
    group, members = mirrored(twins, "ada", "bo", "cy")
    for name in ("ada", "bo"):
        twins.leave(group, members[name])
    flow = twins.app.flow(GROUPS)
    run = twins.runs_of(GROUPS)[0].model_copy(update={"first_run": False})
    (work,) = items.works_of([ItemModel(key=group)], page=0, owner="test")

    items.prepare(flow, run, [work], create_references=False)

    assert removals_of(work) == 2
    assert twins.members("Hardware") == ["ada@acme.example", "bo@acme.example", "cy@acme.example"]


def test_a_preview_counts_removals_and_keeps_everybody(twins: TwinWorld) -> None:
    """What would be removed is said, and stays."""
    group, members = mirrored(twins, "ada", "bo")
    twins.leave(group, members["ada"])

    run = twins.sync_recipe(GROUPS, preview=True)

    assert twins.result(run).fields == {MEMBERS: "1 removed"}
    assert twins.members("Hardware") == ["ada@acme.example", "bo@acme.example"]


@pytest.mark.parametrize("bulk_above", ["1000", "0"], ids=["one by one", "bulk"])
@pytest.mark.parametrize("changed_too", [False, True], ids=["members alone", "group too"])
def test_many_members_who_leave_wait_for_a_person(
    stage: Stage, tmp_path: Path, prefix: str, bulk_above: str, *, changed_too: bool
) -> None:
    """A group that would lose more members than a run may take away is held, whole; the other groups are kept in step."""
    values = {"MAX_REMOVALS": "2", "BULK_ABOVE": bulk_above}
    with new_twin_world(stage, tmp_path / "recipes", prefix, values) as twins:
        group, members = mirrored(twins, "ada", "bo", "cy", "di")
        for name in ("ada", "bo", "cy"):
            twins.leave(group, members[name])
        if changed_too:
            twins.servicenow.update("sys_user_group", group, description="Three have left")
        twins.join(group, twins.people("ed")["ed"][0])
        twins.join(twins.servicenow.insert("sys_user_group", name="Software"), twins.people("flo")["flo"][0])
        twins.advance(60)
        twins.mailbox.mails.clear()
        twins.forget_journal()

        run = twins.start_again(GROUPS)
        twins.pump.run(for_s=60)
        held, before = twins.run_row(run), twins.members("Hardware")
        removed = twins.vendor.requests("DELETE")
        runs.confirm_run(twins.app, run.run_id, "operator@example.com")
        twins.pump.run(for_s=600)

        assert (held.state, held.held_for, held.held_count) == (RunState.AWAITING_CONFIRMATION, "removals", 3)
        assert "take away 3 of 6" in " ".join(twins.mailbox.mails[0].text.split())
        assert (before, removed) == ([f"{name}@acme.example" for name in ("ada", "bo", "cy", "di")], [])
        assert twins.members("Software") == ["flo@acme.example"]
        assert twins.members("Hardware") == ["di@acme.example", "ed@acme.example"]
        assert twins.run_row(run).counts == {"created": 1, "updated": 1}


def test_few_members_who_leave_need_no_confirmation(twins: TwinWorld) -> None:
    """Up to the guard members are taken away at once, of several groups together."""
    twins.change_settings(max_removals=2)
    group, members = mirrored(twins, "ada", "bo", "cy")
    for name in ("ada", "bo"):
        twins.leave(group, members[name])

    run = twins.sync_recipe(GROUPS)

    assert (run.state, run.counts) == (RunState.COMPLETED, {"updated": 1})
    assert twins.members("Hardware") == ["cy@acme.example"]


def test_outage_does_not_lead_around_the_guard_of_members(twins: TwinWorld) -> None:
    """A group that its page could not look up is held like the others once the vendor answers."""
    twins.change_settings(max_removals=2)
    group, members = mirrored(twins, "ada", "bo", "cy", "di")
    for name in ("ada", "bo", "cy"):
        twins.leave(group, members[name])
    twins.servicenow.update("sys_user_group", group, description="Three have left")
    twins.vendor.add_fault(FaultKind.STATUS, method="GET", path="/table/", status=503, times=12)

    run = twins.sync_recipe(GROUPS)

    assert (run.state, run.held_count) == (RunState.AWAITING_CONFIRMATION, 3)
    assert len(twins.members("Hardware")) == 4


def test_kills_leave_the_members_as_the_source_has_them(twins: TwinWorld) -> None:
    """The process ends before or after each kind of call at work of a run that adds one and removes one: the same end."""
    group, _ = mirrored(twins, "start")
    present = ["start"]
    calls = change_members(twins, group, present, "first")

    wrong = []
    for number in range(len(calls)) if os.environ.get("FAULTS") else at_work(calls):
        for after in (False, True):
            twins.wire.kill_at(number, after=after)
            name = f"{'after' if after else 'before'}{number}"
            try:
                change_members(twins, group, present, name)
            except AssertionError as exc:
                wrong.append(f"{name} {calls[number]}: {exc}")

    assert wrong == [], "\n".join(wrong)


def test_what_was_read_earlier_undoes_nothing(twins: TwinWorld) -> None:
    """A message with the members of a moment ago, worked after an event that brought newer ones, changes nothing."""
    group, members = mirrored(twins, "ada", "bo")
    twins.leave(group, members["ada"])
    twins.advance(60)
    run = twins.start_again(GROUPS)
    twins.pump.run(until=lambda: any(each.queue == "items" for each in twins.pump.waiting))
    listed, twins.pump.waiting = twins.pump.waiting, []
    assert [each.queue for each in listed if each.queue == "items"] == ["items"]
    twins.leave(group, members["bo"])
    twins.join(group, twins.people("cy")["cy"][0])

    twins.send_event(GROUPS, "servicenow.sys_user_group", group, "event-1")
    twins.pump.run(for_s=30)
    twins.pump.waiting += listed
    twins.pump.run()

    assert twins.members("Hardware") == ["cy@acme.example"]
    assert twins.run_row(run).state is RunState.COMPLETED


@pytest.mark.parametrize("call", ["DELETE links", "PUT links", "POST results"])
@pytest.mark.parametrize("after", [False, True])
def test_a_repeat_after_a_removal_says_that_the_group_was_updated(twins: TwinWorld, call: str, after: bool) -> None:
    """The worker ends when a member was taken away, before the group's result stands."""
    group, members = mirrored(twins, "ada", "bo")
    twins.leave(group, members["ada"])

    def kill_once(delivery: Delivery) -> None:
        if delivery.queue == "items" and delivery.count == 1:
            twins.wire.kill_on(call, after=after)

    twins.pump.before = kill_once
    run = twins.sync_recipe(GROUPS)

    assert twins.members("Hardware") == ["bo@acme.example"]
    assert run.counts == {"updated": 1}


def change_members(twins: TwinWorld, group: str, present: list[str], name: str) -> list[str]:
    """Let one join and one leave, run, and return the calls that the run made; fails unless both arrived."""
    here = twins.servicenow.tables["sys_user"]
    gone = next(
        row["sys_id"]
        for row in twins.servicenow.rows(MEMBERS, group=group)
        if here[row["user"]]["user_name"] == present[0]
    )
    twins.leave(group, gone)
    twins.join(group, twins.people(name)[name][0])
    present[:] = [*present[1:], name]
    twins.advance(60)
    twins.wire.calls = []
    run = twins.start_again(GROUPS)
    twins.pump.run()
    if not twins.run_row(run).state.ended:
        twins.tick_for(15)
    calls = list(twins.wire.calls)
    twins.wire.kill_at(-1, after=False)
    assert twins.members("Hardware") == sorted(f"{each}@acme.example" for each in present)
    assert len(twins.child_links()) == len(present), "a link too many"
    assert twins.run_row(run).state is RunState.COMPLETED, twins.run_row(run).counts
    return calls


def test_the_bulk_lane_mirrors_too(stage: Stage, tmp_path: Path, prefix: str) -> None:
    """Groups that changed themselves, and groups of which only the members did, in one portion."""
    with new_twin_world(stage, tmp_path / "recipes", prefix, {"BULK_ABOVE": "0"}) as twins:
        people = twins.people("ada", "bo", "cy")
        groups = {name: twins.servicenow.insert("sys_user_group", name=name) for name in ("One", "Two", "Three")}
        members = {name: twins.join(group, people["ada"][0]) for name, group in groups.items()}
        twins.join(groups["Two"], people["bo"][0])
        first = twins.sync_recipe(GROUPS)
        twins.servicenow.update("sys_user_group", groups["One"], description="Changed")
        for name in ("One", "Two"):
            twins.leave(groups[name], members[name])
            twins.join(groups[name], people["cy"][0])

        second = twins.sync_recipe(GROUPS)

        assert first.counts == {"created": 3}
        assert second.counts == {"updated": 2, "unchanged": 1}
        assert twins.members("One") == ["cy@acme.example"]
        assert twins.members("Two") == ["bo@acme.example", "cy@acme.example"]
        assert twins.members("Three") == ["ada@acme.example"]
