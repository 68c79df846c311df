"""What an operator is told while something outside does not work: the reason stands on the run, not only in a log."""

import pytest

from sandbox.mailbox import MailFaultKind
from sandbox.simulator import FaultKind
from shared.errors import ConfigError, MappingError
from shared.state.rows import MailState, Outcome, RunState
from sync import repairs, views
from sync.app import build_app
from tests.flows.world import World


def test_run_that_waits_says_why(world: World) -> None:
    """A run that waits for a system names it, since when, and what its answer was."""
    world.add_case()
    world.dynamics.add_fault(FaultKind.STATUS, status=503, times=0)
    run = world.start()

    world.pump.run(until=lambda: world.run_row(run.run_id).state is RunState.WAITING)

    waiting = views.run_view(world.app, world.run_row(run.run_id))["waiting"]
    assert waiting["for"] == "dynamics365"
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
