"""What a mail address must be before we send to it.

By hand, not by `email-validator`: one bare ASCII address on an exact allow list is a narrower rule than a library's, which
besides refuses the reserved domains (.example, .test) that the sandbox and the tests send to.
"""

import re
from collections.abc import Sequence

from shared.errors import MappingError

_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_ADDRESS = re.compile(rf"({_ATOM}(?:\.{_ATOM})*)@({_LABEL}(?:\.{_LABEL})*)", re.ASCII)  # RFC 5321 dot-string, no quotes


def parse_address(address: str | None) -> str:
    """Return one bare address, its domain in lower case.

    Raises MappingError with code email_missing, email_several or email_malformed. The sentences never repeat the address.
    """
    text = (address or "").strip()
    if not text:
        raise MappingError(
            "An email address is missing; write it plainly, as in you@your-company.com.", code="email_missing"
        )
    if text.count("@") > 1 and re.search(r"[,;\s]", text):
        raise MappingError("Several email addresses were given; give exactly one.", code="email_several")
    match = _ADDRESS.fullmatch(text)
    if not match or len(text) > 254 or len(match[1]) > 64:
        raise MappingError(
            "This is not an email address; write it plainly, as in you@your-company.com.", code="email_malformed"
        )
    return f"{match[1]}@{match[2].lower()}"


def check_recipient(address: str | None, allowed_domains: Sequence[str]) -> str:
    """Return the address that mail may go to, its domain in lower case; subdomains have to be listed themselves.

    Raises MappingError as `parse_address`, and with code email_not_allowed outside the allowed domains.
    """
    found = parse_address(address)
    if found.rpartition("@")[2] not in {domain.lower() for domain in allowed_domains}:
        raise MappingError(
            f"Mail may only go to {' or '.join(allowed_domains) or 'nobody yet'}: use an address there, "
            "or have its domain added to ALLOWED_MAIL_DOMAINS.",
            code="email_not_allowed",
        )
    return found
