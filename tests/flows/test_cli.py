"""`cli.py validate --systems`: recipes against what the configured systems say, before anything is deployed."""

import json

import pytest

import cli
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


def test_missing_settings_are_all_named(monkeypatch, tmp_path, capsys):
    """Without settings nothing can be compared: the answer is the list of what is missing, and exit code 1."""
    monkeypatch.setattr("os.environ", {})
    path = tmp_path / "local.settings.json"
    path.write_text(json.dumps({"Values": {"APP_URL": "https://concord.example.com"}}), encoding="utf-8")

    assert cli.main(["validate", "--systems", "--settings", str(path)]) == 1

    said = capsys.readouterr().err
    assert "MAIL__HOST" in said
    assert "APP_URL is missing" not in said
