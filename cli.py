"""Concord at the command line: check recipes, print the field tables and the editor's schema from them."""

import argparse
import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from shared.errors import ConfigError, SyncError, TransientError
from shared.settings import load_settings
from shared.settings_faults import nearest
from shared.settings_page import settings_table
from shared.telemetry import FieldsFormatter, RedactingFilter
from sync import checks
from sync.app import App, build_app
from sync.catalogue import print_catalogue
from sync.forget import forget_email
from sync.reasons import print_reasons
from sync.recipe import Recipe
from sync.recipe_loader import load_recipes
from sync.recipe_page import print_recipe_reference
from sync.recipe_schema import build_schema

ROOT = Path(__file__).parent
AGAIN = "Give the command again later."
MENDED = "Then give the command again."  # where waiting mends nothing
FROM_FILE = "Settings that stand in a file are read with --settings, as in --settings local.settings.json."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0 when all is well, 1 when something needs a person."""
    parser = argparse.ArgumentParser(prog="cli.py", description=__doc__)
    parser.add_argument("--root", type=Path, default=ROOT, help="folder that holds recipes/ and docs/")
    commands = parser.add_subparsers(dest="command", required=True)
    validate = commands.add_parser("validate", help="read all recipes and say what is wrong with them")
    validate.add_argument(
        "--systems", action="store_true", help="also compare them with what the configured systems say of their fields"
    )
    validate.add_argument(
        "--settings", type=Path, help="a local.settings.json whose Values stand beside the environment's settings"
    )
    forget = commands.add_parser(
        "forget", help="take every trace of an email address out of this installation's storage"
    )
    forget.add_argument("email")
    forget.add_argument("--settings", type=Path, help="a local.settings.json, as for validate")
    for name, says in (
        ("docs", "print docs/field-mappings.md, docs/reasons.md, docs/recipe_reference.md and docs/settings.md"),
        ("schema", "print recipes/recipe.schema.json"),
    ):
        command = commands.add_parser(name, help=f"{says} anew, from recipes and code")
        command.add_argument("--check", action="store_true", help="write nothing; fail when the file is stale")
    chosen = parser.parse_args(arguments)
    with _warnings_with_fields():
        return _run(chosen)


def _run(chosen: argparse.Namespace) -> int:
    try:
        if chosen.command == "validate":
            return _validate(chosen.root) or (_validate_systems(chosen) if chosen.systems else 0)
        if chosen.command == "forget":
            count = forget_email(_build(chosen), chosen.email)
            print(f"{count} row{'s' * (count != 1)} changed; what vendors and mailboxes hold is theirs to forget")
            return 0
        if chosen.command == "docs":
            pages = {
                "docs/field-mappings.md": print_catalogue(_load(chosen.root)),
                "docs/reasons.md": print_reasons(),
                "docs/recipe_reference.md": print_recipe_reference(),
                "docs/settings.md": settings_table(),
            }
            return max(_print_file(chosen.root / path, text, chosen.check) for path, text in pages.items())
        return _print_file(chosen.root / "recipes/recipe.schema.json", build_schema(), chosen.check)
    except TransientError as exc:
        then = MENDED if exc.code == "untrusted_certificate" else AGAIN
        text = str(exc).replace("It is tried again later.", then).replace("The work is put back.", then)
        print(text, file=sys.stderr)
        return 1
    except SyncError as exc:
        print(exc, file=sys.stderr)
        return 1


@contextlib.contextmanager
def _warnings_with_fields() -> Iterator[None]:
    """Print warnings with their fields: Python's own way shows the constant text alone, without the name it is about."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(FieldsFormatter(with_time=False))
    handler.addFilter(RedactingFilter())
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)


def _load(root: Path) -> dict[str, Recipe]:
    return load_recipes(root / "recipes")


def _validate(root: Path) -> int:
    recipes = _load(root)
    for recipe in recipes.values():
        count = len(recipe.block.fields)
        print(f"{recipe.path}: {recipe.source} to {recipe.target}, {count} field{'s' * (count != 1)}")
    print(
        f"{len(recipes)} recipe{'s' * (len(recipes) != 1)}, no faults; whether the systems have these fields, --systems asks them"
    )
    return 0


def _validate_systems(chosen: argparse.Namespace) -> int:
    """Compare every active recipe with what its systems say; a faulty one fails, a warning does not."""
    app = _build(chosen)
    with contextlib.closing(app):
        problems = [
            problem
            for recipe in app.recipes.values()
            for problem in checks.validate(recipe, lambda connection, record: app.system(connection).describe(record))
        ]
    for problem in problems:
        print(problem)
    for name, missing in app.inactive.items():
        near = "".join(nearest(each, app.settings.connections) for each in missing)
        print(f"recipes/{name}.yaml is not active: {' and '.join(missing)} is not configured{near}")
    idle = f"; NOT ACTIVE, so not compared and never run: {', '.join(app.inactive)}" if app.inactive else ""
    print(f"{len(app.recipes)} compared with their systems, {len(problems)} problem{'s' * (len(problems) != 1)}{idle}")
    return int(any(problem.severity is checks.Severity.ERROR for problem in problems))


def _build(chosen: argparse.Namespace) -> App:
    """Build the app from the environment's settings, and those of a file beside them."""
    values = _read_values(chosen.settings) if chosen.settings else {}
    os.environ.update({name: value for name, value in values.items() if name not in os.environ and value})
    try:
        settings = load_settings(os.environ)
    except ConfigError as exc:
        raise exc if chosen.settings else ConfigError(f"{exc.message}\n{FROM_FILE}") from None
    return build_app(settings, chosen.root / "recipes")


def _read_values(file: Path) -> dict[str, str]:
    """Return the settings of a local.settings.json. Raises ConfigError."""
    try:
        values = json.loads(file.read_text(encoding="utf-8-sig"))["Values"]
    except OSError as exc:
        raise ConfigError(f"{file} cannot be read: {exc.strerror}.") from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f'{file} is not a settings file: JSON with an object "Values" in it.') from None
    if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
        raise ConfigError(f'"Values" of {file} holds names and texts only: put numbers and true or false in quotes.')
    return values


def _print_file(path: Path, text: str, check: bool) -> int:
    """Write a generated file, or, with `check`, say whether it is what would be written."""
    name = f"{path.parent.name}/{path.name}"
    if path.exists() and path.read_text(encoding="utf-8") == text:
        print(f"{name} is up to date")
        return 0
    if check:
        print(f"{name} is stale; run `make docs` and commit it", file=sys.stderr)
        return 1
    path.write_text(text, encoding="utf-8")
    print(f"{name} written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
