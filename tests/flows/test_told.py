"""What an operator is told while something outside does not work: the reason stands on the run, not only in a log."""

import pytest

from sandbox.mailbox import MailFaultKind
from sandbox.simulator import FaultKind
from shared.errors import ConfigError, MappingError
from shared.state.rows import MailState, Outcome, RunKind, RunRow, RunState
from sync import repairs, runs, views
from sync.app import build_app
from tests.flows.contacts import ContactWorld
from tests.flows.world import RECIPIENT, World


def test_run_that_waits_says_why(world: World) -> None:
    """A run that waits for a system names it, since when, and what its answer was."""
    world.add_case()
    world.dynamics.add_fault(FaultKind.STATUS, status=503, times=0)
    run = world.start()

    world.pump.run(until=lambda: world.run_row(run.run_id).state is RunState.WAITING)

    waiting = views.run_view(world.app, world.run_row(run.run_id))["waiting"]
    assert waiting["for"] == "Dynamics 365 (connection dynamics365)"
    assert "503" in waiting["why"]


def test_mail_that_fails_says_why(world: World) -> None:
    """A summary that the mail server refuses is told on the run with the server's word, and no longer once it is sent."""
    world.add_case()
    world.mailbox.add_mail_fault(MailFaultKind.REFUSE_MESSAGE, code=452)
    run = world.start()

    world.pump.run(until=lambda: world.run_row(run.run_id).mail_state is MailState.SUMMARY_FAILED)

    failed = views.run_view(world.app, world.run_row(run.run_id))["mail"]
    world.pump.run()
    sent = views.run_view(world.app, world.run_row(run.run_id))["mail"]
    assert "452" in failed["problem"]
    assert (sent["state"], sent["problem"]) == (MailState.SENT, "")


def test_id_that_cannot_be_one_is_told_and_forgotten(world: World) -> None:
    """A ticket number given for an id is skipped with a sentence; it does not come back in every run as a failure."""
    run = world.sync("ids=CAS-01042")

    (result,) = world.results(run).values()
    assert (result.outcome, result.reason) == (Outcome.SKIPPED, "source_missing")
    assert "GUID" in result.message
    assert world.open_keys() == []


@pytest.mark.parametrize("action", list(repairs.ACTIONS))
def test_preview_has_nothing_to_repair(world: World, action: str) -> None:
    """A retry of a preview would write what the preview promised not to write."""
    world.add_case(title="")
    run = world.sync(preview=True)

    with pytest.raises(MappingError, match="was a preview") as caught:
        repairs.ACTIONS[action](world.app, run, "test")

    assert caught.value.code == "nothing_to_repair"
    assert len(world.runs()) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("NOTIFY__CASE_TO_INCIDENTS", "a@example.com"), ("ALLOW_MIXED_ENVIRONMENTS", "case_to_incidents")],
)
def test_setting_of_a_recipe_that_is_none_is_told(world: World, name: str, value: str) -> None:
    """A misspelt recipe in a setting's name would send its summaries to somebody else, without a word."""
    settings = world.settings.model_copy(
        update={"notify": world.settings.notify | {"case_to_incidents": ("a@example.com",)}}
        if name.startswith("NOTIFY")
        else {"allow_mixed_environments": (value,)}
    )

    with pytest.raises(ConfigError, match=f"{name} names no recipe; did you mean case_to_incident"):
        build_app(settings)


def test_long_outage_is_told_once_and_the_run_goes_on(world: World) -> None:
    """After half an hour without an answer, from the first call on, the run's readers get one mail; then its summary."""
    case = world.add_case()
    world.dynamics.add_fault(FaultKind.REFUSE, times=0)
    run = world.start()

    world.tick_for(20)
    early = len(world.mailbox.mails)
    world.tick_for(60)
    world.dynamics.faults.clear()
    world.tick_for(30)

    told, summary = world.mailbox.mails
    assert (early, told.recipients) == (0, (RECIPIENT,))
    assert "waits for Dynamics 365 (connection dynamics365)" in told.message["Subject"]
    assert "Dynamics 365 (connection dynamics365) has not answered since Tue 10 March" in " ".join(told.text.split())
    assert "goes on by itself" in " ".join(told.text.split())
    assert "1 synced" in summary.message["Subject"]
    assert world.results(run)[case].outcome is Outcome.CREATED


def test_outage_that_only_events_meet_is_told_once(contact_world: ContactWorld) -> None:
    """With no run going, the day of events says which system is down and since when; its readers get one mail.

    What needs nothing of that system comes and goes meanwhile and does not count as its answer.
    """
    world = contact_world
    known = world.contact("known@customer.example")
    world.send("contact", known, "Create")
    world.marketo.add_fault(FaultKind.REFUSE, times=0)
    down_at = world.now()
    event = world.hook("contact", world.contact("ana@customer.example"), "Create")

    for _ in range(4):
        world.tick_for(6)
        world.hook("contact", known)
    early, page = len(world.mailbox.mails), views.run_view(world.app, world.event_run())
    world.tick_for(60)
    told = list(world.mailbox.mails)
    world.marketo.faults.clear()
    world.tick_for(30)

    (mail,) = told
    assert (early, mail.recipients) == (0, ("support.lead@example.com",))
    assert (page["state"], page["waiting"]["for"]) == ("waiting", "Marketo (connection marketo)")
    assert page["waiting"]["since"].startswith(down_at.isoformat()[:16])
    assert "waits for Marketo (connection marketo)" in mail.message["Subject"]
    text = " ".join(mail.text.split())
    assert "Marketo (connection marketo) has not answered since Tue 10 March 2026" in text
    assert world.event(event).outcome is Outcome.CREATED
    after = views.run_view(world.app, world.event_run())
    assert (after["state"], after["waiting"], len(world.mailbox.mails)) == ("running", None, 1)


def test_lost_answer_is_no_outage_once_its_record_is_found(contact_world: ContactWorld) -> None:
    """A day of events whose one create is found again, and not written a second time, waits for nobody any more."""
    world = contact_world
    world.marketo.add_fault(FaultKind.RESET_AFTER, method="POST", path="/leads.json")
    event = world.hook("contact", world.contact("ana@customer.example"), "Create")

    world.pump.run(for_s=10)
    page = views.run_view(world.app, world.event_run())
    world.tick_for(60)

    assert (page["state"], page["waiting"]["for"]) == ("waiting", "Marketo (connection marketo)")
    assert world.event(event).outcome is Outcome.CREATED
    assert (world.event_run().state, world.mailbox.mails) == (RunState.RUNNING, [])


def test_outage_over_midnight_is_one_outage(contact_world: ContactWorld) -> None:
    """The next day of events goes on to say since when a system is down, and tells nobody a second time."""
    world = contact_world
    world.advance_to(world.now().replace(hour=23, minute=20))
    world.marketo.add_fault(FaultKind.REFUSE, times=0)
    down_at = world.now()
    world.hook("contact", world.contact("ana@customer.example"), "Create")

    world.tick_for(60)

    days = [run for run in world.view.query(RunRow, world.recipe) if run.kind is RunKind.EVENTS]
    today, yesterday = (views.run_view(world.app, run) for run in days)
    assert today["waiting"]["since"].startswith(down_at.isoformat()[:16])
    assert (yesterday["state"], yesterday["waiting"]) == ("completed", None)
    assert len(world.mailbox.mails) == 1


def test_cancelled_run_waits_for_nobody(world: World) -> None:
    """A run that was cancelled in an outage says so, and neither its page nor its mail that it goes on by itself."""
    world.add_case()
    world.dynamics.add_fault(FaultKind.REFUSE, times=0)
    run = world.start()
    world.tick_for(5)

    runs.cancel_run(world.app, run.run_id, "test")
    world.pump.run()

    (mail,) = world.mailbox.mails
    assert "cancelled" in mail.message["Subject"]
    assert "goes on by itself" not in " ".join(mail.text.split())
    assert views.run_view(world.app, world.run_row(run))["waiting"] is None


def test_outage_is_told_when_the_mail_server_answers_again(world: World) -> None:
    """A mail about an outage that could not be sent is tried again each minute, and sent once."""
    world.add_case()
    world.dynamics.add_fault(FaultKind.REFUSE, times=0)
    world.mailbox.add_mail_fault(MailFaultKind.REFUSE_MESSAGE, code=452)
    world.start()

    world.tick_for(90)

    assert len(world.mailbox.mails) == 1


def _deleted(world: World) -> tuple[str, RunRow]:
    """Sync a case, delete its incident and edit the case; return it and the run that misses the incident."""
    case = world.add_case()
    world.sync()
    world.servicenow.delete("incident", world.incident_of(case)["sys_id"])
    world.edit_case(case, title="Edited")
    return case, world.sync("today")


def test_recreated_record_is_made_anew_and_only_once(world: World) -> None:
    """Recreate makes the deleted incident again; asked a second time, it says that nothing is missing any more."""
    case, failed = _deleted(world)

    again = repairs.recreate_missing(world.app, failed, "operator").run
    world.pump.run()
    with pytest.raises(MappingError, match="has a new target since") as refused:
        repairs.recreate_missing(world.app, failed, "operator")
    world.pump.run()

    assert world.results(failed)[case].reason == "target_missing"
    assert world.results(again)[case].outcome is Outcome.CREATED
    assert world.incident_of(case)["short_description"] == "Edited"
    assert refused.value.code == "nothing_to_repair"


def test_recreated_record_that_is_deleted_again_says_so(world: World) -> None:
    """An incident that goes away between its reading and the write fails by that name, and can be recreated."""
    case, failed = _deleted(world)
    repairs.recreate_missing(world.app, failed, "operator")
    world.pump.run()
    world.edit_case(case, title="Edited again")
    world.servicenow.add_fault(FaultKind.STATUS, method="PATCH", status=404)

    missed = world.sync("today")

    result = world.results(missed)[case]
    assert (result.outcome, result.reason) == (Outcome.FAILED, "target_missing")
    assert "ServiceNow" in result.message
    world.servicenow.delete("incident", world.incident_of(case)["sys_id"])
    again = repairs.recreate_missing(world.app, missed, "operator").run
    world.pump.run()
    assert world.results(again)[case].outcome is Outcome.CREATED


def test_webhook_of_a_system_that_sends_none_is_refused(world: World) -> None:
    """A recipe that waits for events of ServiceNow, which its client cannot read yet, does not load."""
    text = (world._folder / "case_to_incident.yaml").read_text()
    text = (
        text.replace("source: dynamics365.incident", "source: servicenow.problem")
        .replace("title: ", "title: Not ")
        .replace("http: yesterday", "webhook: true")
    )

    (world._folder / "problem_to_incident.yaml").write_text(text)

    with pytest.raises(ConfigError, match="cannot be a sender"):
        build_app(world.settings, world._folder)


def test_email_of_an_unlinked_contact_is_free(contact_world: ContactWorld) -> None:
    """Once a contact whose lead was deleted is unlinked, another contact with its email gets a lead of its own."""
    world, email = contact_world, "ana@customer.example"
    first = world.contact(email)
    world.send("contact", first, "Create")
    world.marketo.delete("leads", world.lead(email)["id"])
    world.edit("contact", first, jobtitle="Buyer")
    failed = world.send("contact", first)

    repairs.unlink_missing(world.app, world.run_row(failed.run_id), "operator", [first])
    second = world.send("contact", world.contact(email), "Create")

    assert (failed.reason, second.outcome) == ("target_missing", Outcome.CREATED)
    assert len(world.leads()) == 1
