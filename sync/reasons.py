"""Reason codes in words: what a code says when the result has no sentence of its own, and what a person does about it.

Codes are plain words. Some are formed from what people call a record (`case_not_active`, `contact_without_email`): those
follow PATTERNS. A recipe may name reasons of its own; these are read as their words.
"""

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Reason:
    """A reason in two sentences."""

    says: str
    do: str  # empty: nothing has to be done


REASONS: dict[str, Reason] = {
    # the record itself
    "customer_is_account": Reason(
        "The case's customer is an account, not a contact.",
        "Set a contact as customer, or let the recipe take the account's primary contact.",
    ),
    "create_in_doubt": Reason(
        "A record may have been made whose answer was lost, and it cannot be looked up: the value by which it is known has changed.",
        "Look for it under the former value, remove it or give it the present one, then call `recreate` for the run.",
    ),
    "other_side_unfinished": Reason(
        "The recipe of the other direction has paired this record, and was interrupted before that was noted.",
        "Nothing by hand: it is synced once that recipe has worked its record again. Retry it there if that one has failed.",
    ),
    "ambiguous_match": Reason(
        "Several target records match; none was chosen.", "Merge them or make them different, then retry the record."
    ),
    "email_shared": Reason(
        "Another record has the same email address and came first.", "Give each record an address of its own."
    ),
    "invalid_value": Reason(
        "A value does not fit its field in the target.",
        "Correct the value in the source, or add a converter to the recipe.",
    ),
    "unknown_choice": Reason(
        "A value is not in the recipe's table of choices.", "Add it to `choices` of the field, or name a default there."
    ),
    "unwritable_value": Reason("The target cannot hold a value of this form.", "Correct the value in the source."),
    "unsearchable_value": Reason(
        "The target cannot be searched for a value of this form.", "Correct the value in the source."
    ),
    "mapping_error": Reason("The record cannot be mapped.", "Compare it with the recipe's fields."),
    "nothing_to_write": Reason(
        "None of the record's fields can be written.", "Check the integration user's rights on the target's fields."
    ),
    # the target record
    "target_closed": Reason(
        "The target record is closed and takes no more changes.", "Reopen it if it should follow again."
    ),
    "target_missing": Reason(
        "The linked target record is gone, or the integration user may not read it.",
        "Call `recreate` or `unlink` for the run (docs/operating.md); neither happens by itself.",
    ),
    "target_not_found": Reason("No target record matches, and this recipe only updates.", ""),
    "target_taken": Reason(
        "The matching target record belongs to another source record already.",
        "Make the two source records differ in what the recipe matches by, or merge them; then retry the record.",
    ),
    "owned_by_other_recipe": Reason(
        "Another recipe writes this field of the target.", "Let one recipe own it: remove it from the other."
    ),
    # skipped
    "not_in_scope": Reason("The record does not meet the recipe's condition.", ""),
    "left_scope": Reason("The record no longer meets the recipe's condition; it is left as it is.", ""),
    "source_missing": Reason(
        "There is no such source record, or the integration user may not read it.",
        "Nothing if it was deleted; an id that was given by hand may be wrong.",
    ),
    "stale": Reason("A newer version of the record was already written.", ""),
    # verification
    "not_synced": Reason(
        "The record has no target record yet.", "Sync it: a run over a window that holds it, or over its id."
    ),
    "target_behind": Reason(
        "The source changed and the target does not show it yet.",
        "Sync it: a run over a window that holds it, or over its id.",
    ),
    "target_altered": Reason(
        "Somebody changed the target after it was written.",
        "Nothing if it was meant; the source's next change of the field goes over it.",
    ),
    "reference_missing": Reason(
        "The target record refers to another one that is gone, or that the integration user may not read.",
        "Restore that one, or set the field by hand; the source's next change of the field looks it up anew.",
    ),
    "target_doubled": Reason("Several target records stand for this one.", "Close or merge those that are too many."),
    # warnings
    "would_be_created": Reason("A run would create a record that this one refers to.", ""),
    "field_not_written": Reason(
        "The target accepted the record but did not take over a field.",
        "Check the integration user's right to write it, and the target's own rules.",
    ),
    "too_long": Reason(
        "A text is longer than its field in the target, which may cut or refuse it.",
        "Add `convert: {truncate: …}` to the field in the recipe, or shorten the text in the source.",
    ),
    "not_a_choice": Reason(
        "A value is none of those that the field takes in the target.",
        "Add `choices` to the field in the recipe, or the value to the target's list.",
    ),
    "wrong_kind": Reason(
        "A value is of another kind than its field in the target: a text where a time or a number is wanted.",
        "Correct the value in the source, or the field in the recipe: `convert`, `choices`, or another field.",
    ),
    "truncated": Reason("A text was longer than its field and was cut.", ""),
    "default_used": Reason("The recipe's default stands in for an empty or unusable value.", ""),
    "default_not_found": Reason(
        "The recipe's default was not found in the target.", "Create it there, or correct the recipe."
    ),
    "marker_cut": Reason(
        "A comment's text is so long that the id which marks it would be cut off.",
        "Put `{id}` to the front of the text, or let the recipe cut less.",
    ),
    # systems
    "access_denied": Reason(
        "The system refuses the connection.", "Check the connection's address, credentials, roles and allow lists."
    ),
    "sign_in_refused": Reason(
        "The system refuses the sign-in.", "Check the connection's credentials; a secret may have expired."
    ),
    "credentials_refused": Reason(
        "The system refuses the credentials.", "Check the connection's credentials; a secret may have expired."
    ),
    "entry_not_shown": Reason(
        "The target took a comment or note and does not show it.",
        "Give the integration user the right to write this journal and to read its entries.",
    ),
    "rejected": Reason("The target refuses the record.", "Correct the record or the target's rule, then retry it."),
    "rate_limited": Reason("The system asked us to slow down for too long.", "Retry later, or have its limit raised."),
    "vendor_unavailable": Reason("The system did not answer.", "Nothing by hand: it is tried again with the next run."),
    "untrusted_certificate": Reason(
        "The system shows a certificate that is not trusted here.",
        "Check the connection's address, or name the file that the certificate can be checked by in `REQUESTS_CA_BUNDLE`.",
    ),
    "unreadable_answer": Reason(
        "The system's answer could not be read.", "Nothing by hand: it is tried again with the next run."
    ),
    "ambiguous_write": Reason(
        "It is not known whether the record was written: the answer was lost.",
        "Nothing by hand: it is looked up before it is written again.",
    ),
    "filter_ignored": Reason(
        "The system ignored the question and answered with other records.",
        "Check the integration user's right to search.",
    ),
    "rows_unreadable": Reason(
        "The integration user may not read some of the records.", "Grant it the right to read them."
    ),
    "unwritable_field": Reason("A field cannot be written in the target.", "Take the field out of the recipe."),
    "field_unreadable": Reason("The integration user may not read a field.", "Grant it the right to read the field."),
    "unknown_field": Reason("The system has no such field.", "Correct the field's name in the recipe."),
    "unknown_record_type": Reason("The system has no such kind of record.", "Correct the record's name in the recipe."),
    "unsearchable_field": Reason("The system cannot search by this field.", "Match by another field in the recipe."),
    "page_expired": Reason("The system no longer knew the listing's next page.", "Start the run again."),
    # the app
    "wait_expired": Reason("The record waited for too long.", "Retry it when the reason it waited for is over."),
    "worker_died": Reason(
        "The worker ended several times while it worked this record.",
        "Retry it; if it happens again, look at the app's logs.",
    ),
    "claim_held": Reason("Another attempt at the same record was still under way.", "Retry it."),
    "storage_error": Reason("The app's own storage refused.", "Check the storage account, then retry."),
    "storage_access": Reason(
        "The app may not use its own storage.", "Check AzureWebJobsStorage, or the roles of the app's identity."
    ),
    "config_error": Reason("A setting or the recipe is wrong.", "Run `python cli.py validate`."),
    "internal_error": Reason("The app made a mistake.", "Retry it; if it happens again, look at the app's logs."),
}

PATTERNS: tuple[tuple[str, Reason], ...] = (
    (r"(?P<noun>\w+)_not_active", Reason("The {noun} is resolved or cancelled and was never synced.", "")),
    (
        r"(?P<noun>\w+)_without_(?P<field>\w+)",
        Reason("The {noun} has no {field}.", "Fill in the {field} in the source, then retry."),
    ),
    (
        r"(?P<noun>\w+)_shared",
        Reason("Another record has the same {noun} and came first.", "Give each record its own {noun}."),
    ),
    (
        r"(?P<noun>\w+)_inactive",
        Reason(
            "The {noun} is inactive in the target; the field was left empty.",
            "Reactivate the {noun}, or change the source.",
        ),
    ),
    (
        r"(?P<noun>\w+)_ambiguous",
        Reason("Several {noun} records match; the field was left empty.", "Merge or deactivate the doubled ones."),
    ),
    (
        r"(?P<noun>\w+)_not_found",
        Reason("The {noun} was not found in the target.", "Create the {noun} there, then retry."),
    ),
)


def explain(code: str) -> Reason:
    """Return what a code says and what to do; a code that is nobody's is read as its words."""
    return known_reason(code) or Reason(f"{title_of(code)}.", "")


def known_reason(code: str) -> Reason | None:
    """Return what a code says, if it has sentences of its own or is formed as one that has."""
    if reason := REASONS.get(code):
        return reason
    for pattern, reason in PATTERNS:
        if match := re.fullmatch(pattern, code):
            words = {name: words_of(part) for name, part in match.groupdict().items()}
            return Reason(reason.says.format(**words), reason.do.format(**words))
    return None


def title_of(code: str) -> str:
    """Return a code as a heading: "Case not active"."""
    words = words_of(code)
    return words[:1].upper() + words[1:] if words else "Unknown"


def words_of(code: str) -> str:
    """Return a code as words."""
    return code.replace("_", " ").strip()


PAGE_HEAD = """# Reason codes

What the code of a failed or skipped record, or of a warning, says and what a person does about it. Printed from `sync/reasons.py`
by `python cli.py docs`. A result may carry a sentence of its own, which is more exact. A recipe may name reasons of its own.
What to call, and how: [operating.md](operating.md).

| Code | What it says | What to do |
|---|---|---|
"""
EXAMPLES = {  # of a pattern
    r"(?P<noun>\w+)_not_active": "case_not_active",
    r"(?P<noun>\w+)_without_(?P<field>\w+)": "contact_without_email",
    r"(?P<noun>\w+)_shared": "phone_shared",
    r"(?P<noun>\w+)_inactive": "user_inactive",
    r"(?P<noun>\w+)_ambiguous": "user_ambiguous",
    r"(?P<noun>\w+)_not_found": "group_not_found",
}


def print_reasons() -> str:
    """Return every code as a table in Markdown; a family of codes stands there by one of it."""
    codes = sorted({*REASONS, *EXAMPLES.values()})
    lines = (f"| `{code}` | {explain(code).says} | {explain(code).do or 'Nothing.'} |" for code in codes)
    return PAGE_HEAD + "\n".join(lines) + "\n"
