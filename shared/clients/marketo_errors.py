"""What Marketo's error codes mean: the one table behind failed calls and skipped records; pure.

Marketo answers nearly every failure with HTTP 200 and says inside what went wrong, for the whole call (`errors`) or for one
record (`reasons`): https://experienceleague.adobe.com/en/docs/marketo-developer/marketo/rest/error-codes.
Its messages repeat values of records, so none of their text is passed on, field names excepted.
"""

import dataclasses
import re
from collections.abc import Collection, Mapping
from datetime import UTC, datetime, time, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

from shared.clients.http import Answer, Meaning, Reading, read_date
from shared.errors import EXISTS_ALREADY

WINDOW_S = 20.0  # in which calls are counted
RESET_MARGIN_S = 60.0
RESET_ZONES = (ZoneInfo("America/Chicago"), timezone(timedelta(hours=-6)))  # the docs say both "Central" and "CST"
COMPANY_ON_LEAD = "use the recipe from recipes/optional that writes company fields on the lead"
TOO_MANY, NOT_FOUND, BODY_TOO_LARGE = "too_many_results", "not_found", "body_too_large"
_QUOTED = re.compile(r"'([A-Za-z][A-Za-z0-9_]{0,99})'")

_LIMITED, _REJECTED, _NO_ACCESS = Meaning.LIMITED, Meaning.REJECTED, Meaning.NO_ACCESS
_LOST, _NOT_DONE = Meaning.LOST, Meaning.NOT_DONE

CODES: Mapping[str, Reading] = {
    # may have taken effect
    "500": Reading(_LOST, "", "failed (500)"),
    "502": Reading(_LOST, "", "failed at its gateway (502)"),
    "604": Reading(_LOST, "no_answer", "timed out on its side (604)"),
    "611": Reading(_LOST, "", "failed (611)"),
    "713": Reading(_LOST, "", "failed for the moment (713)"),
    "719": Reading(_LOST, "locked", "waited too long for a lock (719)"),
    # has not been looked at
    "608": Reading(_NOT_DONE, "", "is not available for the moment (608)"),
    "614": Reading(_NOT_DONE, "", "cannot reach the subscription for the moment (614)"),
    "1014": Reading(_NOT_DONE, "", "failed to create the record (1014)"),
    "1016": Reading(_NOT_DONE, "", "has too many imports under way (1016)"),
    "1019": Reading(_NOT_DONE, "", "has an import under way (1019)"),
    "1029": Reading(_NOT_DONE, "", "has too many exports under way (1029)"),
    "606": Reading(_LIMITED, "", "allows no more calls within 20 s (606)", pause_s=WINDOW_S),
    "607": Reading(_LIMITED, "daily_quota", "has no calls left today; the quota is renewed at 00:00 US Central (607)"),
    "615": Reading(_LIMITED, "", "allows no more calls at once (615)"),
    # the connection
    "600": Reading(_NO_ACCESS, "credentials_refused", "saw no token in the call (600)"),
    "601": Reading(Meaning.TOKEN_REFUSED, "credentials_refused", "refused the token as invalid (601)"),
    "602": Reading(Meaning.TOKEN_REFUSED, "credentials_refused", "refused the token as expired (602)"),
    "603": Reading(_NO_ACCESS, "", "refused access (603): the API role or the list of allowed addresses"),
    "616": Reading(_NO_ACCESS, "", "says that the subscription is of the wrong kind (616)"),
    "703": Reading(_NO_ACCESS, "feature_off", "has not enabled this feature (703)"),
    "1018": Reading(_NO_ACCESS, "company_interface_off", "keeps its companies by native CRM sync (1018)"),
    # the call, or the record
    "605": Reading(_REJECTED, "bad_call", "does not know this method (605)"),
    "609": Reading(_REJECTED, "bad_call", "could not read the call's JSON (609)"),
    "610": Reading(_REJECTED, "bad_call", "does not know this address (610)"),
    "612": Reading(_REJECTED, "bad_call", "did not accept the content type (612)"),
    "613": Reading(_REJECTED, "bad_call", "could not read the multipart body (613)"),
    "701": Reading(_REJECTED, "invalid_value", "does not take an empty value (701)"),
    "702": Reading(_REJECTED, NOT_FOUND, "has no such record (702)"),
    "704": Reading(_REJECTED, "invalid_value", "does not take this date (704)"),
    "709": Reading(_REJECTED, "business_rule", "refused the record by a business rule (709)"),
    "718": Reading(_REJECTED, "invalid_value", "does not know the salesperson (718)"),
    "1001": Reading(_REJECTED, "invalid_value", "does not take a value of this form (1001)"),
    "1002": Reading(_REJECTED, "invalid_value", "misses a value that it needs (1002)"),
    "1003": Reading(_REJECTED, "invalid_value", "does not take a value (1003)"),
    "1004": Reading(_REJECTED, "target_missing", "has no such lead any more (1004)"),
    "1005": Reading(Meaning.EXISTS, EXISTS_ALREADY, "says that the lead exists already (1005)"),
    "1006": Reading(_REJECTED, "unknown_field", "has no such field (1006)"),
    "1007": Reading(_REJECTED, "ambiguous_match", "has several leads that match (1007): merge them"),
    "1008": Reading(_REJECTED, "partition_refused", "gives no access to the lead's partition (1008)"),
    "1009": Reading(_REJECTED, "partition_refused", "wants a lead partition to be named (1009)"),
    "1010": Reading(_REJECTED, "partition_refused", "holds the lead in another partition (1010)"),
    "1011": Reading(_REJECTED, "unsearchable_field", "cannot search by this field (1011)"),
    "1013": Reading(_REJECTED, "target_missing", "has no such record any more (1013)"),
    "1017": Reading(Meaning.EXISTS, EXISTS_ALREADY, "says that the record exists already (1017)"),
    "1021": Reading(
        _REJECTED,
        "company_fields_refused",
        "takes no company fields on a lead (1021); use the recipe that keeps the company by itself",
    ),
    "1022": Reading(_REJECTED, "in_use", "says that the record is in use (1022)"),
    "1036": Reading(_REJECTED, "doubled_in_call", "found the record twice in one call (1036)"),
}
NO_COMPANY = Reading(_REJECTED, "company_missing", "has no company with the lead's externalCompanyId (1013)")


def read_answer(answer: Answer) -> Reading | None:
    """Read an answer to a REST call by Marketo's own rules; None: a success, or as its HTTP status says."""
    match answer.status:
        case 413:
            return Reading(_REJECTED, BODY_TOO_LARGE, "takes no more than 1 MB in one call (413)")
        case 414:
            return Reading(_REJECTED, "bad_call", "takes no address of this length (414)")
    data = answer.data
    if isinstance(data, dict) and data.get("success") is False:
        return _read_errors(data.get("errors"), read_date(answer.headers) or datetime.now(UTC))
    if not 200 <= answer.status < 300 or data is None:
        return None
    if not isinstance(data, dict) or data.get("success") is not True:
        return Reading(_LOST, "unreadable_answer", "answered without saying whether it worked")
    return None


def read_code(code: str, message: str = "", now: datetime | None = None) -> Reading:
    """Return what a code means; `now` (aware) is needed for the pause of a spent daily quota."""
    reading = CODES.get(code)
    if reading is None:
        shown = code if re.fullmatch(r"\d{1,6}", code) else "without a code"
        return Reading(_REJECTED, "", f"refused ({shown})")
    if code == "607" and now is not None:
        return dataclasses.replace(reading, pause_s=seconds_to_reset(now))
    if code == "1003" and "too many results" in message.lower():
        return Reading(_REJECTED, TOO_MANY, "finds too many records (1003)")
    return reading


def read_skipped(item: Mapping[str, Any], record: str, sent: Collection[str] = ()) -> Reading:
    """Return why a record was skipped, and name the sent fields that the reason quotes.

    A skipped record has not been written, so nothing is lost: what would be lost is not done.
    """
    code, message = _first(item.get("reasons"))
    reading = read_code(code, message)
    if code == "1013" and record == "lead":
        reading = NO_COMPANY
    if reading.meaning in (_LOST, _LIMITED, Meaning.TOKEN_REFUSED):
        reading = dataclasses.replace(reading, meaning=_NOT_DONE)
    named = [name for name in dict.fromkeys(_QUOTED.findall(message)) if name in sent]
    if named and reading.meaning is _REJECTED:
        reading = dataclasses.replace(reading, reason=f"{reading.reason}, in {', '.join(named)}")
    return reading


def seconds_to_reset(now: datetime) -> float:
    """Return the seconds until the daily quota is surely renewed: a minute after the next midnight in US Central.

    The documentation does not say whether summer time counts, so either midnight is tried.
    """
    midnights = []
    for zone in RESET_ZONES:
        local = now.astimezone(zone)
        midnight = datetime.combine(local.date() + timedelta(days=1), time(), zone)
        midnights.append((midnight - now).total_seconds())
    return min(midnights) + RESET_MARGIN_S


def _read_errors(errors: Any, now: datetime) -> Reading:
    code, message = _first(errors)
    if not code:
        return Reading(_LOST, "unreadable_answer", "reported a failure without a code")
    return read_code(code, message, now)


def _first(reasons: Any) -> tuple[str, str]:
    """Return code and message of the first of several errors; codes are strings, but numbers are read too."""
    first = reasons[0] if isinstance(reasons, list) and reasons else None
    if not isinstance(first, Mapping):
        return "", ""
    return str(first.get("code") or ""), str(first.get("message") or "")
