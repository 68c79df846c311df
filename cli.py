"""Concord at the command line: check recipes, print the field tables and the editor's schema from them."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from shared.settings_page import settings_table
from sync.catalogue import print_catalogue
from sync.recipe import Recipe
from sync.recipe_faults import RecipeError
from sync.recipe_loader import load_recipes
from sync.recipe_schema import build_schema

ROOT = Path(__file__).parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0 when all is well, 1 when something needs a person."""
    parser = argparse.ArgumentParser(prog="cli.py", description=__doc__)
    parser.add_argument("--root", type=Path, default=ROOT, help="folder that holds recipes/ and docs/")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("validate", help="read all recipes and say what is wrong with them")
    for name, says in (
        ("docs", "print docs/field-mappings.md and docs/settings.md"),
        ("schema", "print recipes/recipe.schema.json"),
    ):
        command = commands.add_parser(name, help=f"{says} from recipes and settings")
        command.add_argument("--check", action="store_true", help="write nothing; fail when the file is stale")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "validate":
            return _validate(chosen.root)
        if chosen.command == "docs":
            pages = {
                "docs/field-mappings.md": print_catalogue(_load(chosen.root)),
                "docs/settings.md": settings_table(),
            }
            return max(_print_file(chosen.root / path, text, chosen.check) for path, text in pages.items())
        return _print_file(chosen.root / "recipes/recipe.schema.json", build_schema(), chosen.check)
    except RecipeError as exc:
        print(exc, file=sys.stderr)
        return 1


def _load(root: Path) -> dict[str, Recipe]:
    return load_recipes(root / "recipes")


def _validate(root: Path) -> int:
    recipes = _load(root)
    for recipe in recipes.values():
        print(f"{recipe.path}: {recipe.source} to {recipe.target}, {len(recipe.block.fields)} fields")
    print(f"{len(recipes)} recipe{'s' * (len(recipes) != 1)}, no faults")
    return 0


def _print_file(path: Path, text: str, check: bool) -> int:
    """Write a generated file, or, with `check`, say whether it is what would be written."""
    name = f"{path.parent.name}/{path.name}"
    if path.exists() and path.read_text(encoding="utf-8") == text:
        print(f"{name} is up to date")
        return 0
    if check:
        print(f"{name} is stale; print it anew and commit it", file=sys.stderr)
        return 1
    path.write_text(text, encoding="utf-8")
    print(f"{name} written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
