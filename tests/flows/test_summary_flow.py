"""The summary's way to its readers: who gets it, how often, and what it says when the mail server has a bad day."""

import csv
import io
from datetime import timedelta
from typing import Any

import pytest

from sandbox.mailbox import Mail, MailFaultKind
from sandbox.simulator import FaultKind
from shared.state.messages import SummaryMessage
from shared.state.rows import MailState, RunRow, RunState
from sync import runs, summaries
from sync.summaries import MOST_SENDS
from sync.summary import CSV_NAME
from tests.flows.world import RECIPIENT, Delivery, World

OTHER = "grace@example.com"
THIRD = "linus@example.com"
NEW = "new.caller@customer.example"
CALLER_AND_OWNER = ("caller_id", "assigned_to")


def sync_for(world: World, *recipients: str) -> RunRow:
    """Run a sync whose summary goes to these addresses."""
    return world.sync(mail_to=recipients)


@pytest.fixture
def short_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a mail up after an hour instead of a day."""
    monkeypatch.setattr(summaries, "GIVE_UP_AFTER", timedelta(hours=1))


def ids_of(mails: list[Mail]) -> set[str]:
    return {str(mail.message["Message-ID"]) for mail in mails}


def mend_after(world: World, hours: float) -> None:
    """Take the mail faults away when this much time has passed."""
    ends_at = world.now() + timedelta(hours=hours)

    def mend(_: Delivery) -> None:
        if world.now() >= ends_at:
            world.mailbox.mail_faults.clear()

    world.pump.before = mend


# -- how often ----------------------------------------------------------------------------------------------------------


def test_a_send_is_counted_before_it_leaves(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent stands in the run's row already, so that a process that dies with it cannot send without bound."""
    seen: list[int] = []
    send = world.app.send_mail

    def look_and_send(email: Any) -> Any:
        seen.extend(run.mail_sends for run in world.runs())
        return send(email)

    monkeypatch.setitem(world.app.__dict__, "send_mail", look_and_send)
    run = world.sync()

    assert seen == [1]
    assert (run.mail_state, run.mail_sends) == (MailState.SENT, 1)


def test_a_lost_answer_is_sent_once_more_under_the_same_id(world: World) -> None:
    """The server took the mail and its answer was lost: the second send may repeat it, and mail programs show one."""
    world.mailbox.add_mail_fault(MailFaultKind.LOSE_ANSWER)

    run = world.sync()

    assert len(world.mailbox.mails) == 2
    assert len(ids_of(world.mailbox.mails)) == 1
    assert (run.mail_state, run.mail_sends) == (MailState.SENT, 2)


def test_two_lost_answers_are_the_end(world: World) -> None:
    """The second send is the last one, whatever became of it."""
    world.mailbox.add_mail_fault(MailFaultKind.LOSE_ANSWER, times=0)

    run = world.start()
    world.pump.run(for_s=86_400 * 2)

    assert len(world.mailbox.mails) == MOST_SENDS
    assert (world.run_row(run).mail_state, world.run_row(run).mail_sends) == (MailState.SENT, 2)


def test_copies_of_the_message_send_two_at_the_most(world: World) -> None:
    """Messages arrive twice and again: the row's count is the bound, not the message's."""
    run = world.sync()
    world.app.change_run(run.run_id, mail_state=MailState.OWED)

    for number in range(5):
        summaries.send_summary(world.app, SummaryMessage(run_id=run.run_id), f"m-{number}")
        world.app.change_run(run.run_id, mail_state=MailState.OWED)

    assert len(world.mailbox.mails) == MOST_SENDS
    assert len(ids_of(world.mailbox.mails)) == 1


# -- a server that is away ----------------------------------------------------------------------------------------------


def test_a_server_that_is_down_for_an_hour_holds_the_mail_back(world: World) -> None:
    """The run has ended and says `summary_failed`; when the server is back the mail goes out, once."""
    world.add_case()
    world.mailbox.add_mail_fault(MailFaultKind.REFUSE_RECIPIENT, code=451, times=0)
    run = world.start()
    world.pump.run(for_s=600)
    during = world.run_row(run)
    mend_after(world, 1)
    world.pump.run(for_s=2 * 3600)
    after = world.run_row(run)

    assert (during.state, during.mail_state, during.mail_sends) == (
        RunState.COMPLETED,
        MailState.SUMMARY_FAILED,
        0,
    )
    assert (after.state, after.mail_state, after.mail_sends) == (RunState.COMPLETED, MailState.SENT, 1)
    assert len(world.mailbox.mails) == 1


def test_a_server_that_stays_down_is_given_up(world: World, short_day: None) -> None:
    """The run keeps `summary_failed` and nothing is tried for ever."""
    world.mailbox.add_mail_fault(MailFaultKind.REFUSE_RECIPIENT, code=451, times=0)

    run = world.start()
    world.pump.run(for_s=3 * 86_400)

    assert world.run_row(run).mail_state is MailState.SUMMARY_FAILED
    assert world.pump.waiting == []
    assert world.mailbox.mails == []


def test_a_mail_that_is_refused_for_good_is_not_repeated(world: World) -> None:
    """All recipients refused: nobody got it, and another attempt would be refused too."""
    fault = world.mailbox.add_mail_fault(MailFaultKind.REFUSE_RECIPIENT, times=0)

    run = world.sync()

    assert (run.mail_state, run.mail_sends) == (MailState.SUMMARY_FAILED, 0)
    assert fault.hit == 1


# -- some get it, some do not -------------------------------------------------------------------------------------------


def test_a_recipient_who_was_put_off_is_tried_again_alone(world: World) -> None:
    """Those who have the mail do not get it again; the other one gets it later, under the same id."""
    world.mailbox.add_mail_fault(MailFaultKind.REFUSE_RECIPIENT, recipient=OTHER, code=450, times=2)

    run = sync_for(world, RECIPIENT, OTHER)

    assert [mail.recipients for mail in world.mailbox.mails] == [(RECIPIENT,), (OTHER,)]
    assert len(ids_of(world.mailbox.mails)) == 1
    assert (run.mail_state, run.mail_sends, run.mail_left, run.mail_undelivered) == (MailState.SENT, 1, [], 0)


def test_a_recipient_who_is_put_off_to_the_end_is_counted(world: World, short_day: None) -> None:
    """Somebody got the mail, so it is sent; who never took it is counted on the run, without the address."""
    world.mailbox.add_mail_fault(MailFaultKind.REFUSE_RECIPIENT, recipient=OTHER, code=450, times=0)

    run = world.start(mail_to=(RECIPIENT, OTHER))
    world.pump.run(for_s=600)
    during = world.run_row(run)
    world.pump.run(for_s=3 * 86_400)
    after = world.run_row(run)

    assert (during.mail_state, during.mail_left) == (MailState.OWED, [OTHER])
    assert (after.mail_state, after.mail_left, after.mail_undelivered) == (MailState.SENT, [], 1)
    assert [mail.recipients for mail in world.mailbox.mails] == [(RECIPIENT,)]


def test_a_refused_recipient_is_counted_and_left(world: World) -> None:
    """One mailbox does not exist: the others have their mail, and nothing is repeated."""
    world.mailbox.add_mail_fault(MailFaultKind.REFUSE_RECIPIENT, recipient=OTHER, times=0)

    run = sync_for(world, RECIPIENT, OTHER)

    assert (run.mail_state, run.mail_sends, run.mail_undelivered) == (MailState.SENT, 1, 1)
    assert [mail.recipients for mail in world.mailbox.mails] == [(RECIPIENT,)]


def test_who_was_put_off_and_is_refused_then_is_counted(world: World) -> None:
    """One takes it, one is refused at once, one is put off and refused at the second try: sent, two not delivered."""
    world.mailbox.add_mail_fault(MailFaultKind.REFUSE_RECIPIENT, recipient=OTHER, times=0)
    world.mailbox.add_mail_fault(MailFaultKind.REFUSE_RECIPIENT, recipient=THIRD, code=450, times=1)
    world.mailbox.add_mail_fault(MailFaultKind.REFUSE_RECIPIENT, recipient=THIRD, times=0)

    run = sync_for(world, RECIPIENT, OTHER, THIRD)

    assert (run.mail_state, run.mail_left, run.mail_undelivered) == (MailState.SENT, [], 2)
    assert [mail.recipients for mail in world.mailbox.mails] == [(RECIPIENT,)]


def test_a_lost_answer_and_a_put_off_recipient_keep_the_bound(world: World) -> None:
    """Whoever may have got the first send gets one more at the most."""
    world.mailbox.add_mail_fault(MailFaultKind.LOSE_ANSWER)
    world.mailbox.add_mail_fault(MailFaultKind.REFUSE_RECIPIENT, recipient=OTHER, code=450, skip=1, times=1)

    run = sync_for(world, RECIPIENT, OTHER)

    got = [address for mail in world.mailbox.mails for address in mail.recipients]
    assert (got.count(RECIPIENT), got.count(OTHER)) == (2, 2)
    assert run.mail_state is MailState.SENT


# -- what it says -------------------------------------------------------------------------------------------------------


def test_created_users_are_named(world: World) -> None:
    """A person reads whom the run created, not an id; one call asks for all of them."""
    for number in range(3):
        world.add_case(contact=world.add_contact(f"caller{number}@customer.example"))
    world.start()
    world.pump.run(for_s=0)
    world.forget_journal()
    world.pump.run()

    (mail,) = world.mailbox.mails
    asked = [call for call in world.servicenow.requests("GET", "/table/sys_user") if "sys_idIN" in call.query]
    assert all(f"caller{number}@customer.example" in mail.text for number in range(3))
    assert "sys_user " not in mail.text
    assert len(asked) == 1


def test_a_warning_names_its_own_field_and_each_record_once(world: World) -> None:
    """One code stands for several fields: who mends what the mail says must not look at another field's records."""
    world.add_servicenow_user(NEW, active="false")
    owner = world.add_owner(NEW)
    both = world.add_case(contact=world.add_contact(NEW), ownerid=("systemuser", owner))
    one = world.add_case(ownerid=("systemuser", owner))

    world.sync()

    text = world.mailbox.mails[0].text
    caller, assignee = (text.index(f"{field}: the user with this email is inactive") for field in CALLER_AND_OWNER)
    lines = {field: text[at:].split("\n- ")[0] for field, at in zip(CALLER_AND_OWNER, (caller, assignee), strict=True)}
    assert [lines["caller_id"].count(world.number_of(case)) for case in (both, one)] == [1, 0]
    assert [lines["assigned_to"].count(world.number_of(case)) for case in (both, one)] == [1, 1]


def test_an_id_that_is_none_is_named(world: World) -> None:
    """Who asks for a case by its ticket number reads that this is no id, and which one it was."""
    case = world.add_case()

    world.sync(f"ids=CAS-01370-0QA51U,{case}")

    text = world.mailbox.mails[0].text
    assert "1 synced, 1 skipped, 0 failed" in text
    assert "- 1 x Source missing: A Dynamics 365 id is a GUID" in text
    assert "    CAS-01370-0QA51U" in text
    assert "SKIPPED ON PURPOSE" not in text


@pytest.mark.parametrize("status", [403, 500])
def test_a_mail_goes_out_although_nobody_can_be_asked_for_names(world: World, status: int) -> None:
    """Names are a comfort: when ServiceNow does not give them, ids stand in."""
    world.add_case(contact=world.add_contact(NEW))
    world.start()
    world.pump.run(for_s=0)
    for system in world.systems.values():
        system._http._sleep = lambda _: None
    world.servicenow.add_fault(FaultKind.STATUS, method="GET", path=r"sys_user\?.*sys_id", times=0, status=status)
    world.pump.run()

    (mail,) = world.mailbox.mails
    assert "sys_user " in mail.text
    assert NEW not in mail.text
    assert world.runs()[0].mail_state is MailState.SENT


def test_many_failures_are_grouped_with_the_list_attached(world: World) -> None:
    """Over a hundred failed records stand grouped by reason, and all of them in a CSV file."""
    for _ in range(101):
        world.add_case(title="")

    run = world.sync()

    (mail,) = world.mailbox.mails
    (attachment,) = mail.attachments
    rows = list(csv.reader(io.StringIO(attachment.get_content())))
    assert run.counts == {"failed": 101}
    assert attachment.get_filename() == CSV_NAME
    assert len(rows) == 102
    assert len(mail.text.splitlines()) < 100


def test_a_run_without_records_is_mailed(world: World) -> None:
    """Whoever asked is told that there was nothing to do."""
    run = world.sync()

    assert run.counts == {}
    assert [mail.recipients for mail in world.mailbox.mails] == [(RECIPIENT,)]


# -- the question that a guard asks -------------------------------------------------------------------------------------


def held_run(world: World) -> RunRow:
    """Start a run that has to ask."""
    world.change_settings(max_new_users=0)
    world.add_case(contact=world.add_contact(NEW))
    return world.start()


def test_a_guard_asks_once_and_the_summary_follows(world: World) -> None:
    """A run that waits says why and where to confirm; after the confirmation comes its summary, as another mail."""
    run = held_run(world)
    world.pump.run(for_s=3 * 3600)
    (question,) = list(world.mailbox.mails)
    runs.confirm_run(world.app, run.run_id, "http")
    world.pump.run()

    assert "would create 1 user;" in question.text
    assert f"/api/runs/{run.run_id}" in question.text
    assert "code=" not in question.text
    assert len(world.mailbox.mails) == 2
    assert len(ids_of(world.mailbox.mails)) == 2
    assert world.run_row(run).mail_state is MailState.SENT


def test_a_question_waits_for_the_mail_server(world: World) -> None:
    """A question that could not be sent is sent later: otherwise the run would wait for a person who knows nothing."""
    world.mailbox.add_mail_fault(MailFaultKind.REFUSE_RECIPIENT, code=451, times=0)
    run = held_run(world)
    mend_after(world, 1)
    world.pump.run(for_s=3 * 3600)

    assert len(world.mailbox.mails) == 1
    assert world.run_row(run).state is RunState.AWAITING_CONFIRMATION
    assert world.run_row(run).asked


def test_a_question_with_lost_answers_is_sent_twice_at_the_most(world: World) -> None:
    """Its bound is the summary's: one repeat under the same id."""
    world.mailbox.add_mail_fault(MailFaultKind.LOSE_ANSWER, times=0)
    held_run(world)
    world.pump.run(for_s=12 * 3600)

    assert len(world.mailbox.mails) == 2
    assert len(ids_of(world.mailbox.mails)) == 1
