"""Business rules and data policies of the ServiceNow stand-in's records."""

from typing import Any

import pytest

from sandbox.servicenow import ServiceNow
from sandbox.servicenow_store import PRIORITY, RefusedError
from sandbox.simulator import Clock
from tests.sandbox.servicenow_calls import NOW

CLOSE = {"close_code": "Solution provided", "close_notes": "done"}


@pytest.fixture
def sim() -> ServiceNow:
    """An empty instance, without a server."""
    return ServiceNow(Clock(NOW))


def row(sim: ServiceNow, sys_id: str) -> dict[str, str]:
    return sim.tables["incident"][sys_id]


@pytest.mark.parametrize(("pair", "priority"), PRIORITY.items())
def test_priority_is_computed(sim: ServiceNow, pair: tuple[str, str], priority: str) -> None:
    """Priority follows impact and urgency; a sent one is overwritten."""
    sys_id = sim.insert("incident", impact=pair[0], urgency=pair[1], priority="9")

    assert row(sim, sys_id)["priority"] == priority


def test_number_is_generated_accepted_or_replaced(sim: ServiceNow) -> None:
    """Numbers are INC and seven digits, ours are accepted and not unique, unless the instance insists on its own."""
    numbers = [
        row(sim, sim.insert("incident", **fields))["number"]
        for fields in ({}, {"number": "CAS-1"}, {"number": "CAS-1"})
    ]
    sim.configure({"own_number": True})
    own = row(sim, sim.insert("incident", number="CAS-1"))["number"]

    assert numbers == ["INC0010001", "CAS-1", "CAS-1"]
    assert own == "INC0010002"


@pytest.mark.parametrize("state", ["6", "7"])
def test_closing_needs_code_and_notes(sim: ServiceNow, state: str) -> None:
    """Resolving or closing without code and notes is refused with 403 and changes nothing."""
    sys_id = sim.insert("incident")

    with pytest.raises(
        RefusedError, match=r"Data Policy Exception: .* mandatory: Resolution code, Resolution notes"
    ) as refusal:
        sim.update("incident", sys_id, state=state)

    assert (refusal.value.status, row(sim, sys_id)["state"], row(sim, sys_id)["sys_mod_count"]) == (403, "1", "0")


def test_life_of_an_incident(sim: ServiceNow) -> None:
    """State and incident_state go together; resolution, closure and reopening leave their stamps."""
    agent = sim.insert("sys_user", user_name="agent", last_name="Agent")
    sys_id = sim.insert("incident")

    sim.update("incident", sys_id, incident_state="2")
    working = dict(row(sim, sys_id))
    sim.update("incident", sys_id, state="6", **CLOSE)
    resolved = dict(row(sim, sys_id))
    sim.update("incident", sys_id, state="7")
    closed = dict(row(sim, sys_id))
    sim.update("incident", sys_id, state="2")
    reopened = dict(row(sim, sys_id))

    assert (working["state"], working["active"]) == ("2", "true")
    assert (resolved["incident_state"], resolved["active"], resolved["resolved_by"]) == ("6", "true", agent)
    assert resolved["resolved_at"] == "2026-03-02 12:00:00"
    assert (closed["active"], closed["closed_by"]) == ("false", agent)
    assert (reopened["active"], reopened["resolved_at"], reopened["closed_at"], reopened["reopen_count"]) == (
        "true",
        "",
        "",
        "1",
    )


def test_group_change_clears_the_assignee(sim: ServiceNow) -> None:
    """A new group clears the assignee, unless the same write names another one."""
    one, two = (sim.insert("sys_user_group", name=name) for name in ("One", "Two"))
    ann, bob = (sim.insert("sys_user", user_name=name) for name in ("ann", "bob"))
    sys_id = sim.insert("incident", assignment_group=one, assigned_to=ann)

    kept = row(sim, sys_id)["assigned_to"]
    sim.update("incident", sys_id, assignment_group=two)
    cleared = row(sim, sys_id)["assigned_to"]
    sim.update("incident", sys_id, assignment_group=one, assigned_to=bob)

    assert (kept, cleared, row(sim, sys_id)["assigned_to"]) == (ann, "", bob)


def test_only_a_real_change_counts(sim: ServiceNow) -> None:
    """Writing what is there already changes neither the counter nor the stamps."""
    sys_id = sim.insert("incident", short_description="a")
    sim.clock.advance(5)

    same = sim.update("incident", sys_id, short_description="a", urgency="3")
    other = sim.update("incident", sys_id, short_description="b")

    assert (same, other) == (False, True)
    assert (row(sim, sys_id)["sys_mod_count"], row(sim, sys_id)["sys_updated_on"]) == ("1", "2026-03-02 12:00:05")
    assert (row(sim, sys_id)["sys_created_by"], row(sim, sys_id)["sys_updated_by"]) == ("admin", "agent")


def test_journal_fields_append(sim: ServiceNow) -> None:
    """Each write to a journal field adds an entry, also a repeated one; the value stays empty."""
    sys_id = sim.insert("incident")

    for _ in range(2):
        sim.update("incident", sys_id, comments="hello")
    sim.update("incident", sys_id, work_notes="inside")

    entries = sim.rows("sys_journal_field", element_id=sys_id)
    assert sorted((entry["element"], entry["value"]) for entry in entries) == [("comments", "hello")] * 2 + [
        ("work_notes", "inside")
    ]
    assert (row(sim, sys_id)["comments"], row(sim, sys_id)["sys_mod_count"]) == ("", "3")


def test_hold_for_the_caller_needs_a_comment(sim: ServiceNow) -> None:
    """Awaiting Caller is refused without a comment in the same write."""
    sys_id = sim.insert("incident")

    with pytest.raises(RefusedError, match="Additional comments"):
        sim.update("incident", sys_id, state="3", hold_reason="1")
    sim.update("incident", sys_id, state="3", hold_reason="1", comments="Which printer?")

    assert row(sim, sys_id)["state"] == "3"


@pytest.mark.parametrize(
    ("switch", "fields", "message"),
    [
        ("block_state_skips", {"state": "7", **CLOSE}, "aborted by Business Rule"),
        ("short_description_mandatory", {"urgency": "1"}, "Short description"),
    ],
)
def test_rules_behind_switches(sim: ServiceNow, switch: str, fields: dict[str, str], message: str) -> None:
    """Some instances refuse state skips or incidents without a title."""
    sys_id = sim.insert("incident")
    sim.configure({switch: True})

    with pytest.raises(RefusedError, match=message):
        sim.update("incident", sys_id, **fields)


@pytest.mark.parametrize(("cut", "length"), [(False, 200), (True, 160)])
def test_long_titles_are_kept_or_cut(cut: bool, length: int) -> None:
    """The dictionary's length is enforced by some instances only."""
    sim = ServiceNow(Clock(NOW), cut_long_values=cut)

    sys_id = sim.insert("incident", short_description="x" * 200, description="y" * 5000)

    assert len(row(sim, sys_id)["short_description"]) == length
    assert len(row(sim, sys_id)["description"]) == 5000


def test_user_names_are_unique_and_emails_are_not(sim: ServiceNow) -> None:
    """A second user with the name is refused whatever its case; the same address is fine; the name is computed."""
    first = sim.insert(
        "sys_user", user_name="beth", email="b@x.example", first_name="Beth", last_name="A", name="ignored"
    )
    sim.insert("sys_user", user_name="beth2", email="b@x.example")

    with pytest.raises(RefusedError, match="Unique Key violation"):
        sim.insert("sys_user", user_name="BETH")

    assert sim.tables["sys_user"][first]["name"] == "Beth A"


def test_group_roles_are_inherited_and_withdrawn(sim: ServiceNow) -> None:
    """A member holds the group's roles as inherited rows, nested ones too, until the membership ends."""
    user, group = sim.insert("sys_user", user_name="u"), sim.insert("sys_user_group", name="G")
    outer, inner = (sim.insert("sys_user_role", name=name) for name in ("itil_admin", "itil"))
    sim.insert("sys_user_role_contains", role=outer, contains=inner)
    sim.insert("sys_group_has_role", group=group, role=outer)

    member = sim.insert("sys_user_grmember", user=user, group=group)
    held = sim.records.role_names(user)
    sim.delete("sys_user_grmember", member)

    assert held == {"itil_admin", "itil"}
    assert "itil_admin" not in sim.records.role_names(user)


def test_sys_ids_repeat_between_runs_and_differ_between_instances() -> None:
    """Ids are the same in every run, but no id of one instance means anything in another."""
    ids = [ServiceNow(Clock(NOW), instance=name).insert("incident") for name in ("a", "a", "b")]

    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize("wrong", [{"no_such": True}, {"own_number": "yes"}, {"pool_size": True}, {"latency_s": "1"}])
def test_wrong_switches_are_refused(sim: ServiceNow, wrong: dict[str, Any]) -> None:
    """A switch that does not exist or has the wrong type is an error."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        sim.configure(wrong)


def test_wrong_names_are_refused(sim: ServiceNow) -> None:
    """People's writes name tables and fields that exist."""
    with pytest.raises(KeyError, match="nonsense"):
        sim.insert("incident", nonsense="x")
    with pytest.raises(KeyError, match="no table"):
        sim.rows("nope")
