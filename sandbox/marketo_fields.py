"""The fields of the simulated Marketo instance: what describe tells about leads and companies, and which values fit.

Names and types are those of the fact sheet (section 5). Lengths of `text` fields are not documented: TEXT_LENGTH is a guess.
"""

import dataclasses
import math
import re
from datetime import UTC, date, datetime
from typing import Any

TEXT_LENGTH = 2000
LEAD, COMPANY = "leads", "companies"
_NUMBER = re.compile(r"-?\d+(\.\d+)?", re.ASCII)
_INTEGER = re.compile(r"-?\d+(\.0+)?", re.ASCII)


class UnfitError(Exception):
    """A value that its field does not take: the code and message of a skipped record."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


@dataclasses.dataclass(frozen=True)
class Field:
    """One field under its REST name."""

    name: str
    label: str
    type: str = "string"
    length: int | None = None
    updateable: bool = True
    searchable: bool = False
    of_company: bool = False  # a lead shows its company's value

    def fit(self, value: Any) -> Any:
        """Return a value as the instance stores it; "" is stored as null. Raises UnfitError."""
        if value is None or value == "":
            return None
        stored = _FITS.get(self.type, _fit_text)(self, value)
        if isinstance(stored, str) and self.length is not None and len(stored) > self.length:
            raise UnfitError("1001", f"Value for field '{self.name}' is too long: {self.length} is the maximum")
        return stored


def _wrong(field: Field, value: Any) -> UnfitError:
    return UnfitError("1001", f"Invalid value '{value}' for field '{field.name}'. Required of type '{field.type}'")


def _fit_text(field: Field, value: Any) -> str:
    if isinstance(value, dict | list):
        raise _wrong(field, value)
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


def _fit_email(field: Field, value: Any) -> str:
    text = _fit_text(field, value).strip()
    if not text.isascii():
        raise UnfitError("1003", f"Value for field '{field.name}' may hold ASCII characters only")
    return text


def _fit_integer(field: Field, value: Any) -> int:
    if isinstance(value, bool) or not _INTEGER.fullmatch(str(value)):
        raise _wrong(field, value)
    return int(float(str(value)))


def _fit_number(field: Field, value: Any) -> float:
    plain = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not plain and not (isinstance(value, str) and _NUMBER.fullmatch(value)):
        raise _wrong(field, value)
    return float(value)


def _fit_boolean(field: Field, value: Any) -> bool:
    known = {"true": True, "1": True, "false": False, "0": False}
    if str(value).lower() not in known:
        raise _wrong(field, value)
    return known[str(value).lower()]


def _fit_date(field: Field, value: Any) -> str:
    try:
        return date.fromisoformat(value).isoformat() if len(value) == 10 else _unfit(field, value)
    except (TypeError, ValueError) as exc:
        raise _wrong(field, value) from exc


def _fit_datetime(field: Field, value: Any) -> str:
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError) as exc:
        raise _wrong(field, value) from exc
    return format_time(moment if moment.tzinfo else moment.replace(tzinfo=UTC))


def _unfit(field: Field, value: Any) -> str:
    raise _wrong(field, value)


def format_time(moment: datetime) -> str:
    """Return a time as answers show it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


_FITS = {
    "email": _fit_email,
    "integer": _fit_integer,
    "currency": _fit_number,
    "float": _fit_number,
    "boolean": _fit_boolean,
    "date": _fit_date,
    "datetime": _fit_datetime,
}


def _text(name: str, label: str, kind: str = "string", length: int = 255, **facts: Any) -> Field:
    return Field(name, label, kind, length, **facts)


_COMPANY_VALUES = (
    _text("company", "Company Name"),
    _text("billingStreet", "Billing Address", "text", TEXT_LENGTH),
    _text("billingCity", "Billing City"),
    _text("billingState", "Billing State"),
    _text("billingCountry", "Billing Country"),
    _text("billingPostalCode", "Billing Postal Code"),
    _text("mainPhone", "Main Phone"),
    _text("sicCode", "SIC Code"),
    _text("mktoCompanyNotes", "Company Notes", "text", TEXT_LENGTH),
    Field("annualRevenue", "Annual Revenue", "currency"),
    Field("numberOfEmployees", "Num Employees", "integer"),
    _text("website", "Website", "url"),
    _text("industry", "Industry"),
)
_TIMES = (
    Field("createdAt", "Created At", "datetime", updateable=False),
    Field("updatedAt", "Updated At", "datetime", updateable=False),
)
_LEAD_FIELDS = (
    Field("id", "Id", "integer", updateable=False, searchable=True),
    _text("email", "Email Address", "email", searchable=True),
    _text("firstName", "First Name"),
    _text("middleName", "Middle Name"),
    _text("lastName", "Last Name"),
    _text("salutation", "Salutation"),
    _text("title", "Job Title"),
    _text("department", "Department"),
    _text("phone", "Phone Number", "phone"),
    _text("mobilePhone", "Mobile Phone Number", "phone"),
    _text("fax", "Fax Number", "phone"),
    _text("address", "Address", "text", TEXT_LENGTH),
    _text("city", "City"),
    _text("state", "State"),
    _text("country", "Country"),
    _text("postalCode", "Postal Code"),
    _text("mktoPersonNotes", "Person Notes", "text", TEXT_LENGTH),
    _text("leadSource", "Lead Source"),
    Field("leadScore", "Lead Score", "integer"),
    Field("dateOfBirth", "Date of Birth", "date"),
    Field("unsubscribed", "Unsubscribed", "boolean"),
    Field("emailInvalid", "Email Invalid", "boolean"),
    *(dataclasses.replace(field, of_company=True) for field in _COMPANY_VALUES),
    _text("externalCompanyId", "External Company Id", length=100, searchable=True),
    Field("contactCompany", "Contact Company", "reference", updateable=False),
    Field("leadPartitionId", "Lead Partition Id", "integer", updateable=False, searchable=True),
    *_TIMES,
)
_COMPANY_FIELDS = (
    Field("id", "Id", "integer", updateable=False, searchable=True),
    _text("externalCompanyId", "External Company Id", length=100, searchable=True),
    dataclasses.replace(_COMPANY_VALUES[0], searchable=True),
    *_COMPANY_VALUES[1:],
    *_TIMES,
)


def standard_fields() -> dict[str, dict[str, Field]]:
    """Return the fields of a fresh instance by record type and name."""
    return {
        LEAD: {field.name: field for field in _LEAD_FIELDS},
        COMPANY: {field.name: field for field in _COMPANY_FIELDS},
    }


def describe_old(fields: dict[str, Field]) -> list[dict[str, Any]]:
    """Return leads in the form of `describe.json`."""
    return [
        {"id": number, "displayName": field.label, "dataType": field.type}
        | _length(field)
        | {"rest": {"name": field.name, "readOnly": not field.updateable}}
        for number, field in enumerate(fields.values(), start=2)
    ]


def describe_fields(fields: dict[str, Field], crm_managed: bool) -> list[dict[str, Any]]:
    """Return fields in the form of `describe2.json` and of the companies' describe."""
    return [
        {"name": field.name, "displayName": field.label, "dataType": field.type}
        | _length(field)
        | {"updateable": field.updateable, "crmManaged": crm_managed and field.of_company}
        for field in fields.values()
    ]


def _length(field: Field) -> dict[str, int]:
    return {} if field.length is None else {"length": field.length}
