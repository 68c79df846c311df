"""What a claim remembers of a write whose answer may be lost: by which value it is looked up, and as what it is told.

A record that is found after a lost answer was made by us, or was there and got an entry; and it is found by the value that
was sent, which the source may have changed since. Both stand in the link's row, put there with the claim; of the value a
digest, so that a change shows.
"""

from shared.errors import MappingError, SyncError
from shared.state.rows import IdentityRow, LinkRow, Outcome
from sync.decide import Action, comparable, same_value, search_key
from sync.flow import Flow
from sync.items import find_targets
from sync.matching import Match
from sync.recipe import Find, MatchRule
from sync.siblings import with_first_match
from sync.work import LOST_ANSWER, Work

CREATE_IN_DOUBT = "create_in_doubt"  # what a record fails with whose create cannot be looked up
NO_VALUE = "-"  # in the place of a digest: a record without a value in the first match rule cannot be looked up


def promised(flow: Flow, work: Work) -> LinkRow | None:
    """Return a work's link as it is to stand under a claim for what is decided; None where that needs no row yet."""
    if work.linked_key or work.decision is None:
        return work.link
    if work.decision.action is Action.CREATE:
        link = with_first_match(flow, work)
        known = "" if work.siblings else value_sent(flow, work)
        if link is None and not known:
            return None
        link = link or LinkRow(pair=flow.pair, side=flow.source_name, key=work.key)
        inputs = {flow.target_name: known} if known else link.inputs if work.siblings else {}
        return link.model_copy(update={"inputs": inputs, "outcome": ""})
    if work.decision.action is Action.UPDATE and work.matched_by != LOST_ANSWER:
        link = work.link or LinkRow(pair=flow.pair, side=flow.source_name, key=work.key)
        return link.model_copy(update={"outcome": Outcome.ADOPTED.value})
    return work.link


def value_sent(flow: Flow, work: Work) -> str:
    """Return the digest of what a record will be looked up by; "" where that cannot change or another record vouches for it."""
    names = flow.recipe.block.first_match
    values = [work.fields.fields[name].value for name in names]
    if not names or isinstance(flow.recipe.block, Find) or (len(values) == 1 and same_value(values[0], work.key)):
        return ""
    if any(comparable(value) is None for value in values):
        return NO_VALUE
    return flow.digests.of([search_key(value) for value in values])


def find_sent(flow: Flow, work: Work) -> Match | None:
    """Ask the vendor who has what a create in doubt was sent with.

    Raises SyncError when that is no one free record, MappingError `create_in_doubt` when something may have been made that
    cannot be looked up: with a value that the record does not hold any more, or with none.
    """
    if work.link is not None and work.link.outcome == Outcome.ADOPTED:
        return find_by_first_rule(flow, work)  # it was there: an entry is in doubt, and nothing can have been made
    noun, names = flow.target_type().noun, " and ".join(flow.recipe.block.first_match)
    sent = work.link.inputs.get(flow.target_name, "") if work.link and not work.siblings else ""
    if sent == NO_VALUE:
        if work.target is None:
            raise _in_doubt(f"A {noun} may have been made that has no {names}", names)
        return None  # a later rule has found it
    if sent and not _is_same(flow, work, sent):
        if _may_have_left(flow, work, sent):
            raise _in_doubt(f"A {noun} may have been made with the {names} that the record had before", names)
        return None
    found = find_by_first_rule(flow, work)
    return found or _find_beyond_rule(flow, work, f"A {noun} with this {names} may have been made, and changed since")


def _in_doubt(what: str, names: str) -> MappingError:
    text = f"{what}: the answer to its create was lost. Look for it; remove it or mend its {names}, then call recreate."
    return MappingError(text, code=CREATE_IN_DOUBT)


def find_by_first_rule(flow: Flow, work: Work, rule: MatchRule | None = None) -> Match | None:
    """Ask the vendor who has a record's values in the first match rule. Raises SyncError when that is no one free record."""
    first = [rule] if rule else [rule for rule in flow.recipe.block.match if not rule.link][:1]
    answer = find_targets(flow, [work], first, anew=True)[0]
    if work.error is not None:
        error, work.error = work.error, None
        raise error
    if isinstance(answer, SyncError):
        raise answer
    return answer


def _find_beyond_rule(flow: Flow, work: Work, what: str) -> Match | None:
    """Find what does not meet the first rule's own conditions, as somebody has changed it since it was made.

    Who has a record's own key was made for it. Who has another value may have been there before: that is not guessed.
    """
    rule = next((rule for rule in flow.recipe.block.match if not rule.link), None)
    if rule is None or not (rule.when or rule.same_or_empty) or work.siblings or isinstance(flow.recipe.block, Find):
        return None
    bare = rule.model_copy(update={"when": {}, "same_or_empty": ()})
    if not value_sent(flow, work):
        return find_by_first_rule(flow, work, bare)
    try:
        found = find_by_first_rule(flow, work, bare)
    except MappingError as exc:
        raise _in_doubt(what, " and ".join(rule.fields)) from exc
    if found is not None:
        raise _in_doubt(what, " and ".join(rule.fields))
    return None


def _is_same(flow: Flow, work: Work, sent: str) -> bool:
    values = [work.fields.fields[name].value for name in flow.recipe.block.first_match]
    return flow.digests.matches([search_key(value) for value in values], sent)


def _may_have_left(flow: Flow, work: Work, sent: str) -> bool:
    """Tell whether a create may have left with a value: not before that was claimed, and not if it is another's by now."""
    blank = IdentityRow(record=flow.target_name, rule="+".join(flow.recipe.block.first_match), digest=sent)
    stored = flow.tables.get(IdentityRow, blank.partition_key, blank.row_key)
    if stored is None:
        return False
    return stored.link_key == work.key or (stored.claim is not None and stored.claim.create_by is not None)
