"""Forgetting a person: every trace of an email address that Concord keeps."""

import contextlib
from datetime import timedelta

from shared.addresses import parse_address
from shared.state import claims
from shared.state.rows import IdentityRow, RunRow
from shared.state.tables import RowChangedError
from sync.app import App
from sync.decide import search_key

MAY_STILL_SHOW = timedelta(hours=1)  # that a create under a claim could take effect after the claim was given up


def forget_email(app: App, address: str) -> int:
    """Take an address out of all runs' recipients and forget who has it as a match value; returns how many rows changed.

    Links hold keyed digests of values that cannot be told apart from others, and go with their records. Raises
    MappingError for what is no address.
    """
    wanted = parse_address(address)
    return _forget_recipient(app, wanted.lower()) + _forget_identities(app, wanted)


def _forget_recipient(app: App, wanted: str) -> int:
    changed = 0
    for run in app.tables.scan(RunRow, select=("run_id", "recipe", "mail_to", "mail_left")):
        if wanted not in (to.lower() for to in (*run.mail_to, *run.mail_left)):
            continue
        app.update_run(run.run_id, lambda row: _without(row, wanted))
        changed += 1
    return changed


def _without(run: RunRow, wanted: str) -> RunRow:
    kept = {
        "mail_to": [to for to in run.mail_to if to.lower() != wanted],
        "mail_left": [to for to in run.mail_left if to.lower() != wanted],
    }
    return run.model_copy(update=kept)


def _forget_identities(app: App, wanted: str) -> int:
    digests = frozenset(app.digests.candidates([search_key(wanted)]))
    changed = 0
    for row in app.tables.scan(IdentityRow):
        if row.digest in digests and claims.is_over(row.claim, app.now() - MAY_STILL_SHOW):
            with contextlib.suppress(RowChangedError):  # somebody asks for the value just now: it is in use
                app.tables.delete(row)
                changed += 1
    return changed
