"""Children of a record: comments both ways between two ServiceNow instances, each exactly once, internal staying internal."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.servicenow import USER_NAME
from sandbox.simulator import FaultKind
from shared.state.rows import LinkRow, Outcome, RunState
from tests.flows.test_kills import firsts
from tests.flows.test_lost_answers import AFTER_EFFECT, WITHOUT_EFFECT
from tests.flows.twins import BACK, JOURNAL, OUT, TwinWorld, new_twin_world
from tests.flows.world import READ_TIMEOUT_S, Facts, Stage

ENTRY = {"method": "PATCH", "path": "/table/incident/"}  # what makes an entry


@pytest.fixture
def twins(stage: Stage, tmp_path: Path, prefix: str) -> Iterator[TwinWorld]:
    """Return a world of this test's own."""
    with new_twin_world(stage, tmp_path / "recipes", prefix) as made:
        yield made


def synced(twins: TwinWorld, *comments: str) -> tuple[str, str]:
    """Bring an incident with comments to the vendor; return its keys here and there."""
    sys_id = twins.incident()
    for comment in comments:
        twins.write_entry(twins.servicenow, sys_id, comment)
    assert twins.sync_recipe(OUT).state is RunState.COMPLETED
    return sys_id, twins.twin(sys_id)["sys_id"]


def texts(entries: list[tuple[str, str]]) -> list[str]:
    """Return the texts of entries without what marks them."""
    return [text.partition("] ")[2] or text for _, text in entries]


# -- both ways --------------------------------------------------------------------------------------------------------


def test_comments_travel_both_ways_once(twins: TwinWorld) -> None:
    """Each comment and each work note arrives once, in its own journal, and what arrived is not sent back."""
    sys_id = twins.incident()
    first = twins.write_entry(twins.servicenow, sys_id, "Hello")
    note = twins.write_entry(twins.servicenow, sys_id, "Only for us", "work_notes")

    twins.both_ways()
    reply = twins.write_entry(twins.vendor, twins.twin(sys_id)["sys_id"], "We look into it", by="vic")
    twins.both_ways()

    ours = [("comments", "Hello"), ("work_notes", "Only for us"), ("comments", f"[vic #{reply}] We look into it")]
    theirs = [
        ("comments", f"[ada #{first}] Hello"),
        ("work_notes", f"[ada #{note}] Only for us"),
        ("comments", "We look into it"),
    ]
    assert twins.entries(twins.servicenow, sys_id) == ours
    assert twins.entries(twins.vendor, twins.twin(sys_id)["sys_id"]) == theirs
    assert all(link.other_key and link.claim is None for link in twins.child_links())


def test_a_record_that_only_got_a_comment_is_updated(twins: TwinWorld) -> None:
    """The record's own fields are left alone; the result says what was done with its children."""
    sys_id, _ = synced(twins)
    twins.write_entry(twins.servicenow, sys_id, "Hello")
    twins.forget_journal()

    result = twins.result(twins.sync_recipe(OUT))

    assert (result.outcome, result.fields) == (Outcome.UPDATED, {"journal": "1 created"})
    assert twins.sent_to_vendor() == [{"comments": result_text(twins, sys_id)}]


def result_text(twins: TwinWorld, sys_id: str) -> str:
    """Return the text of the one entry that the vendor has."""
    ((_, text),) = twins.entries(twins.vendor, twins.twin(sys_id)["sys_id"])
    return text


def test_a_second_run_costs_no_vendor_call_and_one_read_of_links(twins: TwinWorld) -> None:
    """Whatever the number of unchanged children: nothing is asked of the vendor, and their links are one range."""
    synced(twins, *(f"Comment {number}" for number in range(30)))
    few = storage_of_second_run(twins)
    twins.write_entry(twins.servicenow, twins.servicenow.rows("incident")[0]["sys_id"], "One more")
    twins.sync_recipe(OUT)
    twins.forget_journal()

    again = storage_of_second_run(twins)

    assert twins.calls(twins.vendor) == []
    assert again == few


def storage_of_second_run(twins: TwinWorld) -> dict[str, int]:
    """Return the storage operations of a run that finds everything as it was."""
    before = twins.tables.operations.counts()
    result = twins.result(twins.sync_recipe(OUT))
    assert result.outcome is Outcome.UNCHANGED
    after = twins.tables.operations.counts()
    return {name: after[name] - before[name] for name in after}


def test_a_renamed_author_and_a_rewritten_text_make_no_double(twins: TwinWorld) -> None:
    """A comment is known by the id in its marker, even when its link is lost and its text came out differently."""
    sys_id, there = synced(twins, "Hello   you")
    (entry,) = twins.servicenow.rows("sys_journal_field", element_id=sys_id)
    (copy,) = twins.vendor.rows("sys_journal_field", element_id=there)
    entry["sys_created_by"] = "ada.married"
    copy["value"] = copy["value"].replace("#", "&#35;").replace("   ", " ").upper()
    for link in twins.child_links():
        twins.view.delete(link)
    twins.write_entry(twins.servicenow, sys_id, "Second")

    run = twins.sync_recipe(OUT)

    assert len(twins.entries(twins.vendor, there)) == 2
    assert twins.result(run).fields == {"journal": "1 adopted, 1 created"}


def test_a_quote_of_a_comment_is_a_comment_of_its_own(twins: TwinWorld) -> None:
    """Who quotes a marked text writes something new: it is neither taken for the original nor for its echo."""
    sys_id, there = synced(twins, "Hello")
    quoted = twins.entries(twins.vendor, there)[0][1]
    twins.write_entry(twins.vendor, there, f"> {quoted}\nYes, we saw that", by="vic")

    twins.both_ways()

    assert len(twins.entries(twins.servicenow, sys_id)) == 2
    assert len(twins.entries(twins.vendor, there)) == 2


def test_what_may_be_internal_is_not_written(twins: TwinWorld) -> None:
    """An entry whose journal stands in no table is a warning; it never falls into a public journal."""
    twins.change_recipe("comments: comments, work_notes: work_notes", "comments: comments")
    sys_id = twins.incident()
    twins.write_entry(twins.servicenow, sys_id, "Secret", "work_notes")
    twins.write_entry(twins.servicenow, sys_id, "Hello")

    run = twins.sync_recipe(OUT)

    assert texts(twins.entries(twins.vendor, twins.twin(sys_id)["sys_id"])) == ["Hello"]
    assert run.state is RunState.COMPLETED_WITH_WARNINGS
    assert [warning["code"] for warning in twins.result(run).warnings] == ["unknown_choice"]
    assert "Secret" not in str(twins.result(run).warnings)


def test_an_unchanged_record_tells_of_a_comment_that_cannot_be_mapped(twins: TwinWorld) -> None:
    """The warning does not depend on whether the record itself had to be written."""
    twins.change_recipe("comments: comments, work_notes: work_notes", "comments: comments")
    sys_id, _ = synced(twins, "Hello")
    twins.write_entry(twins.servicenow, sys_id, "Secret", "work_notes")

    result = twins.result(twins.sync_recipe(OUT))

    assert result.outcome is Outcome.UNCHANGED
    assert [warning["code"] for warning in result.warnings] == ["unknown_choice"]


def test_a_closed_record_takes_no_comment(twins: TwinWorld) -> None:
    """What came after the end is a warning, and no call is made for it."""
    sys_id, there = synced(twins, "Hello")
    twins.vendor.update("incident", there, state="7", close_code="User error", close_notes="Done")
    twins.write_entry(twins.servicenow, sys_id, "Too late")
    twins.forget_journal()

    run = twins.sync_recipe(OUT)

    assert [warning["code"] for warning in twins.result(run).warnings] == ["target_closed"]
    assert not twins.vendor.requests("PATCH")
    assert twins.sync_recipe(OUT, verify=True).counts == {"unchanged": 1}  # nor is it to be synced


# -- trouble ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", AFTER_EFFECT + WITHOUT_EFFECT)
def test_a_comment_whose_answer_is_lost_is_written_once(twins: TwinWorld, fault: Facts) -> None:
    """It is looked up by its marker before it is sent again, when the first try can no longer take effect."""
    sys_id, there = synced(twins)
    for text in ("One", "Two", "Three"):
        twins.write_entry(twins.servicenow, sys_id, text)
    twins.vendor.add_fault(**fault, **ENTRY, skip=1)

    run = twins.sync_recipe(OUT)

    assert sorted(texts(twins.entries(twins.vendor, there))) == ["One", "Three", "Two"]
    assert (run.state, run.counts) == (RunState.COMPLETED, {"updated": 1})
    assert all(link.other_key and link.claim is None for link in twins.child_links())


def test_an_answer_that_is_lost_again_and_again_doubles_nothing(twins: TwinWorld) -> None:
    """Each try takes effect and says nothing: the first look-up finds what the first try made."""
    sys_id, there = synced(twins)
    twins.write_entry(twins.servicenow, sys_id, "One")
    twins.vendor.add_fault(kind=FaultKind.RESET_AFTER, **ENTRY, times=9)

    twins.sync_recipe(OUT)

    assert texts(twins.entries(twins.vendor, there)) == ["One"]


def test_a_comment_in_doubt_is_not_sent_back(twins: TwinWorld) -> None:
    """While it is not known what became of a comment, the other direction waits with what may be its echo."""
    sys_id, there = synced(twins)
    twins.write_entry(twins.servicenow, sys_id, "One")
    twins.vendor.add_fault(kind=FaultKind.RESET_AFTER, **ENTRY)
    twins.advance(60)
    run = twins.start("today")
    twins.pump.run(for_s=10)  # sent, and its answer lost: it waits to be looked up
    assert len(twins.entries(twins.vendor, there)) == 1
    assert not twins.run_row(run).state.ended

    twins.sync_recipe(BACK)

    assert texts(twins.entries(twins.servicenow, sys_id)) == ["One"]
    assert texts(twins.entries(twins.vendor, there)) == ["One"]


def test_a_comment_that_stays_in_doubt_stops_no_other_one(twins: TwinWorld) -> None:
    """Its sync has failed for good: new comments of the other side arrive, and its echo is known for what it is."""
    sys_id, there = synced(twins)
    twins.write_entry(twins.servicenow, sys_id, "One")
    twins.vendor.add_fault(kind=FaultKind.RESET_AFTER, **ENTRY)
    twins.change_settings(max_attempts=1)
    assert twins.sync_recipe(OUT).counts == {"failed": 1}
    twins.write_entry(twins.vendor, there, "Reply", by="vic")

    back = twins.sync_recipe(BACK)

    assert texts(twins.entries(twins.servicenow, sys_id)) == ["One", "Reply"]
    assert (back.state, back.counts) == (RunState.COMPLETED, {"updated": 1})
    twins.both_ways()
    assert texts(twins.entries(twins.servicenow, sys_id)) == ["One", "Reply"]
    assert texts(twins.entries(twins.vendor, there)) == ["One", "Reply"]
    assert all(link.other_key and link.claim is None for link in twins.child_links())


def test_a_doubt_is_not_settled_by_what_was_read_before(twins: TwinWorld) -> None:
    """A record that vanishes before the look-up fails its comment in doubt; seen again, it shows what became of it."""
    sys_id, there = synced(twins)
    key = twins.write_entry(twins.servicenow, sys_id, "One")
    twins.vendor.add_fault(kind=FaultKind.HANG, seconds=READ_TIMEOUT_S + 0.3, **ENTRY)
    twins.advance(60)
    run = twins.start("today")
    twins.pump.run(for_s=10)  # sent without an answer: it waits to be looked up
    hidden = {"method": "GET", "path": "/table/incident", "status": 200, "body": '{"result": []}'}
    twins.vendor.add_fault(kind=FaultKind.STATUS, **hidden, skip=2)  # two reads before the look-up
    twins.settle()
    twins.forget_journal()

    twins.pump.run()
    sent = twins.sent_to_vendor()
    twins.write_entry(twins.vendor, there, f"[ada #{key}] One", by=USER_NAME)
    again = twins.sync_recipe(OUT, f"ids={sys_id}")

    assert (twins.result(twins.run_row(run)).reason, sent) == ("target_missing", [])
    assert texts(twins.entries(twins.vendor, there)) == ["One"]
    assert again.state is RunState.COMPLETED


def test_a_refused_comment_fails_its_record_and_no_sibling(twins: TwinWorld) -> None:
    """The failure says which child and why; the others are written, and a retry writes only what is missing."""
    sys_id, there = synced(twins)
    keys = [twins.write_entry(twins.servicenow, sys_id, text) for text in ("One", "Two", "Three")]
    twins.vendor.add_fault(kind=FaultKind.STATUS, status=403, **ENTRY, skip=1)

    run = twins.sync_recipe(OUT)
    result = twins.result(run)
    twins.forget_journal()
    second = twins.sync_recipe(OUT, f"ids={sys_id}")

    assert (result.outcome, result.reason) == (Outcome.FAILED, "access_denied")
    assert keys[1] in result.message
    assert "Two" not in result.message
    assert len(twins.sent_to_vendor()) == 1
    assert sorted(texts(twins.entries(twins.vendor, there))) == ["One", "Three", "Two"]
    assert second.counts == {"updated": 1}


def test_a_new_record_whose_comment_waits_is_still_created(twins: TwinWorld) -> None:
    """The record is not made again when only a comment had to wait."""
    sys_id = twins.incident()
    twins.write_entry(twins.servicenow, sys_id, "Hello")
    twins.vendor.add_fault(kind=FaultKind.STATUS, status=503, **ENTRY, times=2)

    run = twins.sync_recipe(OUT)

    assert run.counts == {"created": 1}
    assert texts(twins.entries(twins.vendor, twins.twin(sys_id)["sys_id"])) == ["Hello"]


def test_an_unchanged_record_gets_the_comments_it_lacks(twins: TwinWorld) -> None:
    """What an earlier run could not write is written by any later one, although the record did not change."""
    sys_id, there = synced(twins)
    twins.write_entry(twins.servicenow, sys_id, "Hello")
    rights = twins.vendor.users[USER_NAME]
    rights.write -= {"incident"}
    assert twins.sync_recipe(OUT).counts == {"failed": 1}
    rights.write |= {"incident"}

    run = twins.sync_recipe(OUT)

    assert run.counts == {"updated": 1}
    assert texts(twins.entries(twins.vendor, there)) == ["Hello"]


def test_messages_that_come_twice_double_no_comment(twins: TwinWorld) -> None:
    """A repeated message finds what the first one did."""
    sys_id, there = synced(twins)
    twins.pump.repeats = 1

    run_with_comments(twins, sys_id, there, "repeated")


def test_kills_double_no_comment(twins: TwinWorld) -> None:
    """The process ends before or after each kind of call (FAULTS=1: each call) of a run: the same end."""
    sys_id, there = synced(twins)
    calls = run_with_comments(twins, sys_id, there, "first")

    wrong = []
    for number in range(len(calls)) if os.environ.get("FAULTS") else at_work(calls):
        for after in (False, True):
            name = f"{'after' if after else 'before'} {number} {calls[number]}"
            twins.wire.kill_at(number, after=after)
            try:
                run_with_comments(twins, sys_id, there, name)
            except AssertionError as exc:
                wrong.append(f"{name}: {exc}")

    assert wrong == [], "\n".join(wrong)


def at_work(calls: list[str]) -> list[int]:
    """Return the first and the last of each kind of call that has to do with records; test_kills.py has all others."""
    return [number for number in firsts(calls) if re.search(r"servicenow|links|batch|items|results", calls[number])]


def run_with_comments(twins: TwinWorld, sys_id: str, there: str, name: str) -> list[str]:
    """Write a comment and a note, run, and return the calls that the run made; fails unless each arrived once."""
    before = len(twins.entries(twins.vendor, there))
    twins.write_entry(twins.servicenow, sys_id, f"{name} comment")
    twins.write_entry(twins.servicenow, sys_id, f"{name} note", "work_notes")
    twins.advance(60)
    twins.wire.calls = []
    run = twins.start_again(OUT)
    twins.pump.run()
    if not twins.run_row(run).state.ended:
        twins.tick_for(15)
    calls = list(twins.wire.calls)
    twins.wire.kill_at(-1, after=False)
    found = twins.entries(twins.vendor, there)[before:]
    assert sorted(texts(found)) == sorted([f"{name} comment", f"{name} note"]), found
    assert {journal for journal, text in found if "note" in text.rpartition("] ")[2]} == {"work_notes"}
    assert twins.run_row(run).counts == {"updated": 1}, twins.run_row(run).counts
    assert all(link.other_key and link.claim is None for link in twins.child_links())
    return calls


# -- the other ways of working ----------------------------------------------------------------------------------------


def test_a_preview_tells_and_writes_nothing(twins: TwinWorld) -> None:
    """A preview says what would be done with the children of new and of known records."""
    known, _ = synced(twins, "Hello")
    twins.write_entry(twins.servicenow, known, "Second")
    new = twins.incident(short_description="New")
    twins.write_entry(twins.servicenow, new, "First")
    twins.forget_journal()
    twins.advance(60)

    run = twins.sync("today", preview=True)

    results = twins.results(run)
    assert (results[known].outcome, results[known].fields) == (Outcome.UPDATED, {"journal": "1 created"})
    assert (results[new].outcome, results[new].fields["journal"]) == (Outcome.CREATED, "1 created")
    assert twins.sent_to_vendor() == []
    assert len(twins.child_links()) == 1


def test_children_that_find_no_permit_have_their_records_go_on_alone(stage: Stage, tmp_path: Path, prefix: str) -> None:
    """The page does not come back to them again and again: each record has a message of its own, and each comment arrives."""
    with new_twin_world(stage, tmp_path / "recipes", prefix, {"BULK_ABOVE": "0"}) as twins:
        known = [twins.incident(short_description=f"Incident {number}") for number in range(2)]
        for sys_id in known:
            twins.write_entry(twins.servicenow, sys_id, f"Comment of {sys_id}")
        in_hand: list[str] = []
        twins.pump.before = lambda delivery: in_hand.append(delivery.queue)
        twins.permits.refuses = lambda ahead: (
            not ahead and in_hand[-1] == "pages" and len(twins.vendor.rows("incident")) == 2
        )

        run = twins.sync_recipe(OUT)

        assert run.counts == {"created": 2}
        assert in_hand.count("items") == 2
        assert len(twins.wire.calls) < 500
        for sys_id in known:
            assert texts(twins.entries(twins.vendor, twins.twin(sys_id)["sys_id"])) == [f"Comment of {sys_id}"]


def test_the_bulk_lane_works_children_together(stage: Stage, tmp_path: Path, prefix: str) -> None:
    """Comments of all records of a portion go together, and their keys are read back in one call."""
    with new_twin_world(stage, tmp_path / "recipes", prefix, {"BULK_ABOVE": "0"}) as twins:
        known = [twins.incident(short_description=f"Incident {number}") for number in range(20)]
        for sys_id in known:
            twins.write_entry(twins.servicenow, sys_id, f"Comment of {sys_id}")
            twins.write_entry(twins.servicenow, sys_id, f"Note of {sys_id}", "work_notes")

        run = twins.sync_recipe(OUT)

        for sys_id in known:
            assert texts(twins.entries(twins.vendor, twins.twin(sys_id)["sys_id"])) == [
                f"Comment of {sys_id}",
                f"Note of {sys_id}",
            ]
        assert run.counts == {"created": 20}
        assert len([call for call in twins.calls(twins.vendor) if call == "GET sys_journal_field"]) == 1
        assert twins.sync_recipe(OUT).counts == {"unchanged": 20}


def test_an_event_brings_the_comments_of_its_record(twins: TwinWorld) -> None:
    """An event of a new and of an unchanged record works its children, and gives its claim on the record back."""
    sys_id = twins.incident()
    for number in range(2):
        twins.write_entry(twins.servicenow, sys_id, f"Comment {number}")
        for event in (f"event-{number}", f"repeated-{number}"):
            twins.send_event(OUT, "servicenow.incident", sys_id, event)
        twins.pump.run()

    there = twins.twin(sys_id)["sys_id"]
    outcomes = {result.key: result.outcome for result in twins.event_results(OUT)}
    assert texts(twins.entries(twins.vendor, there)) == ["Comment 0", "Comment 1"]
    assert outcomes["event-0"] is Outcome.CREATED
    assert outcomes["event-1"] is Outcome.UPDATED
    assert [link.claim for link in twins.view.scan(LinkRow)] == [None] * 3


def test_an_unlinked_record_forgets_its_children_too(twins: TwinWorld) -> None:
    """A target that was deleted is made anew on demand, with all comments."""
    sys_id, there = synced(twins, "Hello")
    twins.vendor.delete("incident", there)
    twins.servicenow.update("incident", sys_id, short_description="Changed")
    failed = twins.sync_recipe(OUT)
    assert twins.result(failed).reason == "target_missing"

    twins.repair(failed, "recreate")

    assert texts(twins.entries(twins.vendor, twins.twin(sys_id)["sys_id"])) == ["Hello"]


# -- children that are kept in step, with children of their own --------------------------------------------------------

TASKS = """
children:
  - from: incident_task
    record: incident_task
    match: [correlation_id]
    fields:
      correlation_id: {from: sys_id, write: on_create}
      short_description: short_description
    children:
      - from: journal
        record: journal
        match: [text]
        write: create
        fields:
          text: {value: "[{author} #{id}] {text}"}
          element: {from: element, choices: {comments: comments, work_notes: work_notes}}
"""


@pytest.fixture
def tasked(twins: TwinWorld) -> TwinWorld:
    """Return a world whose recipe takes an incident's tasks along, and the tasks' comments."""
    rights = twins.vendor.users[USER_NAME]
    rights.create |= {"incident_task"}
    rights.write |= {"incident_task"}
    twins.change_recipe(JOURNAL, TASKS)
    return twins


def test_children_are_kept_in_step_and_have_children(tasked: TwinWorld) -> None:
    """A task is made under its incident and follows its source; a comment on it arrives once, whatever else changed."""
    sys_id = tasked.incident()
    task = tasked.servicenow.insert("incident_task", incident=sys_id, short_description="Look at it")
    tasked.servicenow.update("incident_task", task, by="ada", comments="On it")
    first = tasked.sync_recipe(OUT)
    tasked.servicenow.update("incident_task", task, by="ada", short_description="Mend it", work_notes="Done soon")
    tasked.servicenow.update("incident", sys_id, urgency="1")

    second = tasked.sync_recipe(OUT)

    (there,) = tasked.vendor.rows("incident_task", correlation_id=task)
    assert (first.counts, second.counts) == ({"created": 1}, {"updated": 1})
    assert there["incident"] == tasked.twin(sys_id)["sys_id"]
    assert there["short_description"] == "Mend it"
    assert sorted(texts(tasked.entries(tasked.vendor, there["sys_id"]))) == ["Done soon", "On it"]
    tasked.servicenow.update("incident", sys_id, urgency="2")
    assert tasked.sync_recipe(OUT).counts == {"unchanged": 1}


def test_an_agents_change_of_a_child_survives(tasked: TwinWorld) -> None:
    """As with records: what changed there stays until the source's own value changes."""
    sys_id = tasked.incident()
    task = tasked.servicenow.insert("incident_task", incident=sys_id, short_description="Look at it")
    tasked.sync_recipe(OUT)
    (there,) = tasked.vendor.rows("incident_task", correlation_id=task)
    tasked.vendor.update("incident_task", there["sys_id"], short_description="Look closely")
    tasked.servicenow.update("incident", sys_id, urgency="1")

    tasked.sync_recipe(OUT)

    assert tasked.vendor.tables["incident_task"][there["sys_id"]]["short_description"] == "Look closely"


@pytest.mark.parametrize("fault", AFTER_EFFECT)
def test_a_child_record_whose_answer_is_lost_is_made_once(tasked: TwinWorld, fault: Facts) -> None:
    """It is looked for among its parent's children before it is sent again."""
    sys_id = tasked.incident()
    for number in range(3):
        tasked.servicenow.insert("incident_task", incident=sys_id, short_description=f"Task {number}")
    tasked.vendor.add_fault(**fault, method="POST", path="/table/incident_task", skip=1)

    run = tasked.sync_recipe(OUT)

    assert len(tasked.vendor.rows("incident_task", incident=tasked.twin(sys_id)["sys_id"])) == 3
    assert run.counts == {"created": 1}
    assert all(link.other_key and link.claim is None for link in tasked.child_links())


def test_a_verification_names_children_that_differ(tasked: TwinWorld) -> None:
    """What is missing, gone or changed among a record's children is the record's failure; equal ones are none."""
    sys_id = tasked.incident()
    tasks = [tasked.servicenow.insert("incident_task", incident=sys_id, short_description=text) for text in "abc"]
    tasked.sync_recipe(OUT)
    clean = tasked.sync_recipe(OUT, preview=True, verify=True)
    there = {row["correlation_id"]: row["sys_id"] for row in tasked.vendor.rows("incident_task")}
    tasked.vendor.delete("incident_task", there[tasks[0]])
    tasked.vendor.update("incident_task", there[tasks[1]], short_description="altered")
    tasked.servicenow.insert("incident_task", incident=sys_id, short_description="d")

    run = tasked.sync_recipe(OUT, preview=True, verify=True)

    assert clean.counts == {"unchanged": 1}
    assert tasked.result(run).reason == "target_altered"
    assert tasked.result(run).message == "incident_task: 1 not written yet, 1 gone in the target, 1 different."


def test_a_child_type_that_could_mean_two_references_is_a_settings_error(twins: TwinWorld) -> None:
    """The run says which fields refer to the record, and nothing is read or written."""
    twins.change_recipe("source: servicenow.incident", "source: servicenow.sys_user")
    twins.change_recipe("from: journal", "from: incident")

    run = twins.sync_recipe(OUT)

    assert run.state is RunState.FAILED
    assert "assigned_to and caller_id" in run.error


FROM_ITSELF = """
children:
  - record: incident_task
    match: [short_description]
    when: {urgency: 1}
    write: mirror
    fields: {short_description: {value: Call the customer}, description: short_description}
  - record: incident_task
    match: [short_description]
    fields: {short_description: {value: Write a report}, description: short_description}
"""


def test_children_made_from_the_record_itself(tasked: TwinWorld) -> None:
    """One block, one child: told from the others by its constant, kept in step, and taken away when `when` fails."""
    tasked.vendor.users[USER_NAME].delete |= {"incident_task"}
    tasked.change_recipe(TASKS, FROM_ITSELF)
    sys_id = tasked.incident(urgency="1")

    def tasks() -> list[tuple[str, str]]:
        rows = tasked.vendor.rows("incident_task", incident=tasked.twin(sys_id)["sys_id"])
        return sorted((row["short_description"], row["description"]) for row in rows)

    tasked.sync_recipe(OUT)
    both = tasks()
    tasked.servicenow.update("incident", sys_id, short_description="Printer burns")
    tasked.sync_recipe(OUT)
    changed = tasks()
    tasked.servicenow.update("incident", sys_id, urgency="2")
    tasked.sync_recipe(OUT)

    assert both == [("Call the customer", "Printer jams"), ("Write a report", "Printer jams")]
    assert changed == [("Call the customer", "Printer burns"), ("Write a report", "Printer burns")]
    assert tasks() == [("Write a report", "Printer burns")]
    assert len(tasked.child_links()) == 1
