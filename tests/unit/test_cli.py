"""The command line: exit codes and messages for what a person may get wrong."""

import json
import os
from pathlib import Path

import pytest

import cli
from cli import main
from shared.errors import TransientError
from sync.mapping import WARNING_TEXTS
from sync.reasons import EXAMPLES, PATTERNS, known_reason, print_reasons


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep to this test what the command adds to the environment."""
    monkeypatch.setattr(os, "environ", {name: value for name, value in os.environ.items() if name != "APP_URL"})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param(None, "cannot be read: No such file or directory", id="missing"),
        pytest.param("{", "is not a settings file", id="no-json"),
        pytest.param("[]", "is not a settings file", id="list"),
        pytest.param("{}", "is not a settings file", id="no-values"),
        pytest.param('{"Values": {"A": 1}}', "in quotes", id="number"),
        pytest.param('{"Values": {}}', "APP_URL is missing", id="empty"),
    ],
)
def test_a_settings_file_that_is_none_is_told(
    text: str | None, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`validate --systems --settings` ends with 1 and a sentence, never with a traceback."""
    file = tmp_path / "local.settings.json"
    if text is not None:
        file.write_text(text)

    code = main(["validate", "--systems", "--settings", str(file)])

    assert code == 1
    assert says in capsys.readouterr().err


def test_settings_of_a_file_are_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A typing error in a setting's name is found in the file."""
    file = tmp_path / "local.settings.json"
    file.write_text(json.dumps({"Values": {"MAIL__HOSTT": "x"}}))

    code = main(["validate", "--systems", "--settings", str(file)])

    assert code == 1
    assert "MAIL__HOSTT is no setting; did you mean HOST?" in capsys.readouterr().err


def test_a_setting_that_is_passed_over_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A warning without the name that it is about helps nobody."""
    file = tmp_path / "local.settings.json"
    file.write_text(json.dumps({"Values": {"MAX_NEW_USRS": "3"}}))

    main(["validate", "--systems", "--settings", str(file)])

    said = capsys.readouterr().err
    assert 'a setting\'s name looks misspelt {"setting": "MAX_NEW_USRS", "nearest": "MAX_NEW_USERS"}' in said


def test_what_does_not_answer_is_not_promised_another_try(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run tries again by itself, a command does not."""

    def unreachable(*_: object) -> None:
        raise TransientError("ServiceNow did not answer. It is tried again later.")

    monkeypatch.setattr(cli, "build_app", unreachable)
    monkeypatch.setattr(cli, "load_settings", lambda _: None)

    code = main(["validate", "--systems"])

    assert code == 1
    assert "ServiceNow did not answer. Give the command again later.\n" in capsys.readouterr().err


def test_a_refused_certificate_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Later it will be refused again: first it is to be mended."""

    def untrusted(*_: object) -> None:
        raise TransientError("Its certificate is not trusted. It is tried again later.", code="untrusted_certificate")

    monkeypatch.setattr(cli, "build_app", untrusted)
    monkeypatch.setattr(cli, "load_settings", lambda _: None)

    assert main(["validate", "--systems"]) == 1

    said = capsys.readouterr().err
    assert "Its certificate is not trusted. Then give the command again.\n" in said


def test_missing_settings_lead_to_the_file_that_has_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who has no settings in the shell has them in a file; who gave one is not told to give one."""
    monkeypatch.setattr(os, "environ", {})
    file = tmp_path / "local.settings.json"
    file.write_text('{"Values": {}}')

    without, given = ["validate", "--systems"], ["validate", "--systems", "--settings", str(file)]
    said = [(main(arguments), capsys.readouterr().err) for arguments in (without, given)]

    assert [(code, "--settings local.settings.json" in text) for code, text in said] == [(1, True), (1, False)]
    assert all("APP_URL is missing" in text for _, text in said)


def test_a_folder_without_recipes_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To who gave another folder than they meant, "this folder" says nothing."""
    (tmp_path / "recipes").mkdir()

    assert main(["--root", str(tmp_path), "validate"]) == 1

    assert str(tmp_path / "recipes") in capsys.readouterr().err


@pytest.mark.parametrize("code", WARNING_TEXTS)
def test_every_warning_of_a_mapping_is_explained(code: str) -> None:
    """A warning in a mail whose code nobody explains leaves its reader with nothing to do."""
    assert known_reason(code)


def test_every_family_of_codes_stands_on_the_page() -> None:
    """A pattern without an example would be missing from docs/reasons.md."""
    page = print_reasons()

    assert [pattern for pattern, _ in PATTERNS] == list(EXAMPLES)
    assert all(f"`{code}`" in page and known_reason(code) for code in EXAMPLES.values())
