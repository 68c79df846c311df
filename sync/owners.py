"""Whose field it is: where recipes of several pairs write one record, a field belongs to the pair that filled it.

A recipe without such rivals asks nothing. The field by which records are matched first is guarded before: a later rule
never takes a record that carries something in it.
"""

from collections.abc import Callable, Iterable, Iterator

from shared.clients.system import System
from shared.errors import MappingError
from shared.state.rows import LinkRow
from sync import links
from sync.decide import NOT_OURS, NOT_SHOWN, agreed_name, appends
from sync.flow import Flow, Writer, pair_name
from sync.recipe import Block, Recipe
from sync.work import Work


def writers_of(recipes: Iterable[Recipe], system: Callable[[str], System]) -> tuple[Writer, ...]:
    """Return every block of the recipes that writes a record's fields: their own, and those of `find`."""
    return tuple(writer for recipe in recipes for writer in _writers(recipe, system))


def _writers(recipe: Recipe, system: Callable[[str], System]) -> Iterator[Writer]:
    source, target = recipe.source, recipe.target
    place = f"{source.connection}.{source.record}"
    own = pair_name(place, f"{target.connection}.{target.record}")
    names = frozenset((*recipe.block.fields, *recipe.gone.fields))
    yield Writer(recipe.title, f"{target.connection}.{target.record}", names, lambda: frozenset((own,)))
    for paths, find in _writing_finds(recipe.block):
        record = f"{target.connection}.{find.record}"

        def pairs(paths: tuple[str, ...] = paths, record: str = record) -> frozenset[str]:
            known = system(source.connection).describe(source.record).fields
            kinds = {kind for path in paths if path in known for kind in known[path].refers_to}
            kinds |= {source.record} if "." in paths else set()
            return frozenset(pair_name(f"{source.connection}.{kind}", record) for kind in kinds)

        yield Writer(recipe.title, record, frozenset(find.fields), pairs)


def _writing_finds(block: Block) -> Iterator[tuple[tuple[str, ...], Block]]:
    for rule in block.fields.values():
        if rule.find and rule.find.write.may_change:
            yield rule.from_, rule.find


def check_owned(flow: Flow, work: Work) -> None:
    """Look whether a field that is to be written was filled by another pair's recipe.

    Where both have, in the same moment, it belongs to the pair whose name comes first.

    Raises MappingError `owned_by_other_recipe`.
    """
    target = work.target
    if target is None:
        return
    record = flow.target_type()
    names = {name for name in work.decided.writes if not appends(record, name)}
    for writer in flow.writers:
        shared = sorted(names & writer.fields) if writer.record == flow.target_name else []
        for pair in writer.pairs() - {flow.pair} if shared else ():
            link = links.link_of(flow, pair, flow.target_name, target.key)
            ours = work.link if flow.pair < pair else None
            owned = [name for name in shared if _fills(flow, link, name) and not _fills(flow, ours, name)]
            if owned:
                raise MappingError(
                    f"{owned[0]} of this {record.noun} was filled by the recipe {writer.title!r}, so it belongs to that "
                    f"recipe. Take the field out of one of the two recipes.",
                    code="owned_by_other_recipe",
                )


def _fills(flow: Flow, link: LinkRow | None, name: str) -> bool:
    """Tell whether a link says that its recipe filled a field."""
    digest = link.agreed.get(agreed_name(flow.target_name, name)) if link else None
    return digest is not None and not digest.startswith((NOT_OURS, NOT_SHOWN))
