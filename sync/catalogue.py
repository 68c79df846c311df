"""The recipes' field tables as Markdown, for readers who do not read YAML; the same recipes give the same text."""

from collections.abc import Iterator, Mapping

from shared.clients.system import Condition, Value
from sync.converters import CONVERTERS, ConverterCall
from sync.placeholders import Template, text_of
from sync.recipe import Block, FieldRule, FieldWrite, Find, GoneAction, Recipe, Start, WriteMode

HEAD = """# Field mappings

What each recipe writes, where it comes from and why. This page is printed from the files in `recipes/` by
`python cli.py docs`; change the recipe ([recipes.md](recipes.md)), not the page. A name in angle brackets stands for a setting.
"""
WRITES = {
    FieldWrite.ALWAYS: "whenever the source changes",
    FieldWrite.ON_CREATE: "only when the record is created",
    FieldWrite.IF_EMPTY: "only while the target is empty",
    FieldWrite.NEWEST: "when the source's change is the newer one",
    FieldWrite.UNLESS_CHANGED: "unless the target was changed",
}
MODES = {
    WriteMode.UPSERT: "created when missing, else kept in step",
    WriteMode.CREATE: "created when missing, never changed",
    WriteMode.UPDATE: "kept in step, never created",
    WriteMode.MIRROR: "kept in step, and taken away when the source no longer has it",
    WriteMode.NEVER: "only looked up",
}


def print_catalogue(recipes: Mapping[str, Recipe]) -> str:
    """Return the page for all recipes, in the order of their names."""
    parts = [HEAD, *(_recipe_part(recipes[name]) for name in sorted(recipes))]
    return "\n".join(parts)


def _recipe_part(recipe: Recipe) -> str:
    lines = [
        f"## {_plain(recipe.title)}",
        "",
        f"`{recipe.name}`: `{recipe.source}` → `{recipe.target}`, {MODES[recipe.block.write]}.",
        "",
        f"- Starts: {'; '.join(_starts(recipe.start))}.",
    ]
    if recipe.block.when:
        lines.append(f"- Creates only where {_condition(recipe.block.when)}.")
    if recipe.block.match:
        lines.append(f"- Found by {_match(recipe.block)}.")
    lines += [f"- When the source record is over: {_gone(recipe)}.", "", *_table(recipe.block)]
    for title, block in _inner_blocks(recipe.block, ""):
        lines += ["", f"### {title}", "", *_block_notes(block), *_table(block)]
    return "\n".join(lines) + "\n"


def _table(block: Block) -> Iterator[str]:
    if not block.fields:
        yield "No fields: the link alone decides."
        return
    yield f"| `{block.record}` | from | how | written | |"
    yield "|---|---|---|---|---|"
    for rule in block.fields.values():
        yield f"| `{rule.name}` | {_source(rule)} | {'; '.join(_how(rule))} | {_written(rule, block)} | {_cell(rule.doc)} |"


def _inner_blocks(block: Block, path: str) -> Iterator[tuple[str, Block]]:
    for rule in block.fields.values():
        if rule.find:
            name = f"{path}{rule.name}"
            yield f"`{name}` looks up `{rule.find.record}`", rule.find
            yield from _inner_blocks(rule.find, f"{name}.")
    for child in block.children:
        source = f" from `{child.from_}`" if child.from_ else ""
        yield f"Children `{child.record}`{source}", child
        yield from _inner_blocks(child, f"{path}{child.record}.")


def _block_notes(block: Block) -> Iterator[str]:
    notes = [MODES[block.write]]
    if block.match:
        notes.append(f"found by {_match(block)}")
    if block.when:
        notes.append(f"only where {_condition(block.when)}")
    if isinstance(block, Find) and block.reason:
        notes.append(f"the record fails with `{block.reason}` when it is not there")
    text = "; ".join(notes)
    yield f"{text[0].upper()}{text[1:]}."
    yield ""


def _source(rule: FieldRule) -> str:
    if rule.from_:
        return ", else ".join("the record itself" if path == "." else f"`{path}`" for path in rule.from_)
    value = rule.value
    return f"the text {_code(value.text)}" if isinstance(value, Template) else f"always {_code(value)}"


def _how(rule: FieldRule) -> Iterator[str]:
    if rule.find:
        yield f"looked up as `{rule.find.record}`"
    for call in rule.convert:
        yield _cell(_converter(call))
    if rule.choices:
        yield ", ".join(f"{_code(left)} → {' or '.join(map(_code, right))}" for left, right in rule.choices)
    if rule.default is not None:
        yield f"default {_code(rule.default)}"
    if rule.reason:
        yield f"empty fails with `{rule.reason}`"


def _converter(call: ConverterCall) -> str:
    says = CONVERTERS[call.name].says
    if isinstance(call.argument, dict):
        return says.format(**{name: f"`{part}`" for name, part in call.argument.items()})
    return says.format(call.argument) + (f" ({call.argument})" if call.argument is not None and "{" not in says else "")


def _written(rule: FieldRule, block: Block) -> str:
    when = f", where {_condition(rule.when)}" if rule.when else ""
    if block.write is WriteMode.NEVER:
        return f"never, only looked for{when}"
    return f"{WRITES[rule.write if block.write.may_change else FieldWrite.ON_CREATE]}{when}"


def _starts(start: Start) -> Iterator[str]:
    if start.http:
        yield f"by HTTP with the window `{start.http}`"
    if start.daily:
        at = f"at {start.daily.at:%H:%M}" if start.daily.at else "at the app's daily time"
        yield f"every day {at} with the window `{start.daily.window}`"
    if start.poll:
        every = f"every {start.poll.every_s // 60} min" if start.poll.every_s else "again and again"
        yield f"{every} with the window `{start.poll.window}`"
    if start.webhook is not None:
        yield f"by webhook on {', '.join(map(_code, start.webhook)) or 'every event'}"
    if start.after:
        yield f"after `{start.after}`"


def _match(block: Block) -> str:
    return ", else ".join(
        "the link"
        if rule.link
        else " with ".join(f"`{name}`" for name in rule.fields)
        + (f" where {_condition(rule.when)}" if rule.when else "")
        + (
            f" and {', '.join(f'`{name}`' for name in rule.same_or_empty)} the same or empty"
            if rule.same_or_empty
            else ""
        )
        for rule in block.match
    )


def _gone(recipe: Recipe) -> str:
    if recipe.gone.action is GoneAction.WRITE:
        return ", ".join(f"`{rule.name}` gets {_source(rule)}" for rule in recipe.gone.fields.values())
    return "the target is kept in step as before" if recipe.gone.action is GoneAction.FOLLOW else "nothing is written"


def _condition(condition: Condition) -> str:
    return " and ".join(
        f"`{path}` is {'not ' if test.negated else ''}{' or '.join('empty' if v is None else _code(v) for v in test.any_of)}"
        for path, test in condition.items()
    )


def _code(value: Value) -> str:
    text = _cell(text_of(value).replace("\n", "⏎").replace("`", "'"))
    return f"`{text}`" if text else "empty"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _plain(text: str) -> str:
    return " ".join(text.split())
