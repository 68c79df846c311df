"""`cli.py validate --systems`: recipes against what the configured systems say, before anything is deployed."""

import json

import pytest

import cli
from shared.services import Services
from shared.settings import load_settings
from shared.state.rows import RunRow
from shared.state.shares import PermitRow
from sync.forget import forget_email
from tests.flows.world import World


@pytest.fixture
def configured(world: World, monkeypatch):
    """The world's settings, as an administrator's shell has them."""
    for name, value in world.environ.items():
        monkeypatch.setenv(name, value)
    return world


def test_recipes_that_fit_their_systems_pass(configured, capsys):
    """Every active recipe is compared; one without its connections is named as not active."""
    assert cli.main(["validate", "--systems"]) == 0

    said = capsys.readouterr().out
    assert "1 compared with their systems, 0 problems" in said


def test_a_misspelt_connection_gets_a_suggestion(configured, tmp_path, capsys):
    """A connection is named freely, so a typing error is no fault: the recipe would only never be active."""
    folder = tmp_path / "mine" / "recipes"
    folder.mkdir(parents=True)
    text = "title: Cases\nsource: dynamics365.incident\ntarget: servicenw.incident\nstart: {http: today}\n"
    text += "match: [number]\nfields: {number: ticketnumber}\n"
    (folder / "case_to_incident.yaml").write_text(text, encoding="utf-8")

    assert cli.main(["--root", str(folder.parent), "validate", "--systems"]) == 0

    said = capsys.readouterr().out
    assert "servicenw.incident, 1 field\n" in said
    assert "servicenw is not configured; did you mean servicenow?" in said
    assert said.splitlines()[-1].endswith("NOT ACTIVE, so not compared and never run: case_to_incident")


def test_permits_are_given_back(configured):
    """The app goes on at once: calls that a command held when it ended would be missing to it for two minutes."""
    assert cli.main(["validate", "--systems"]) == 0

    tables = Services(load_settings(configured.environ)).tables  # as the command sees them
    held = [row.blocks for row in tables.scan(PermitRow, "", "~")]
    assert held, "the command asked nobody"
    assert not any(held)


def test_missing_settings_are_all_named(monkeypatch, tmp_path, capsys):
    """Without settings nothing can be compared: the answer is the list of what is missing, and exit code 1."""
    monkeypatch.setattr("os.environ", {})
    path = tmp_path / "local.settings.json"
    path.write_text(json.dumps({"Values": {"APP_URL": "https://concord.example.com"}}), encoding="utf-8")

    assert cli.main(["validate", "--systems", "--settings", str(path)]) == 1

    said = capsys.readouterr().err
    assert "MAIL__HOST" in said
    assert "APP_URL is missing" not in said


def test_forget_takes_an_address_out_of_every_run(world):
    """Recipients are the one place where addresses are stored; the run and its results stay."""
    world.add_case()
    world.sync("today")
    before = list(world.tables.query(RunRow, world.recipe))
    address = before[0].mail_to[0]

    changed = forget_email(world.app, address.upper())

    after = list(world.tables.query(RunRow, world.recipe))
    assert changed >= 1
    assert all(address not in (*run.mail_to, *run.mail_left) for run in after)
    assert [run.state for run in after] == [run.state for run in before]
