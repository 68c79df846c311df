"""Who may use the simulated instance's API and what they may do: API users with their rights, and the tokens given out."""

import base64
import binascii
import dataclasses
import hashlib
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sandbox.servicenow_dictionary import TABLES
from sandbox.simulator import Clock

EVERY_TABLE = frozenset({"*"})
READABLE = frozenset(TABLES) - {"sys_properties"}
WRITABLE = frozenset(
    {"incident", "change_request", "u_onboarding", "sys_user", "sys_attachment", "core_company", "alm_asset"}
)


@dataclasses.dataclass
class ApiUser:
    """One account that calls the API; its row in sys_user says whether it is active."""

    user_name: str
    password: str
    read: frozenset[str] = READABLE  # tables; "*" means all
    create: frozenset[str] = WRITABLE
    write: frozenset[str] = WRITABLE
    delete: frozenset[str] = frozenset({"sys_attachment"})
    unreadable: dict[str, frozenset[str]] = dataclasses.field(
        default_factory=lambda: {"sys_user": frozenset({"user_password"})}
    )  # fields by table
    unwritable: dict[str, frozenset[str]] = dataclasses.field(
        default_factory=lambda: {
            "sys_user": frozenset(
                {"user_password", "locked_out", "internal_integration_user", "web_service_access_only"}
            )
        }
    )
    visible_rows: dict[str, str] = dataclasses.field(
        default_factory=dict
    )  # table to the encoded query that readable rows meet
    writes_closed: bool = False  # may change closed incidents
    admin: bool = False  # before-query rules do not apply

    def may(self, action: str, table: str) -> bool:
        """Tell whether the user may read, create, write or delete rows of a table."""
        tables: frozenset[str] = getattr(self, action)
        return "*" in tables or table in tables

    def hides(self, table: str, field: str) -> bool:
        """Tell whether a field is unreadable."""
        return field in self.unreadable.get(table, ())


def admin_user(user_name: str, password: str) -> ApiUser:
    """Return an account that may do everything."""
    return ApiUser(
        user_name, password, *(EVERY_TABLE,) * 4, unreadable={}, unwritable={}, writes_closed=True, admin=True
    )


def read_user(facts: Mapping[str, Any]) -> ApiUser:
    """Build an account from JSON: tables as lists, fields as lists by table.

    Raises ValueError or TypeError for facts that are none.
    """
    values = dict(facts)
    for name in ("read", "create", "write", "delete"):
        if name in values:
            unknown = set(values[name]) - set(TABLES) - {"*"}
            if unknown:
                raise ValueError(f"{name} names no table: {', '.join(sorted(unknown))}")
            values[name] = frozenset(values[name])
    for name in ("unreadable", "unwritable"):
        if name in values:
            values[name] = {table: frozenset(fields) for table, fields in values[name].items()}
    return ApiUser(**values)


@dataclasses.dataclass
class Token:
    """One access or refresh token."""

    value: str
    client_id: str
    user_name: str
    until: datetime


class TokenDesk:
    """Gives out tokens by the rules of the OAuth endpoint and knows whose they are; all times by the instance's clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._made = 0
        self._access: dict[tuple[str, str], Token] = {}
        self._refresh: dict[tuple[str, str], Token] = {}

    def access(self, client_id: str, user_name: str, life_s: int) -> Token:
        """Return the account's access token: the same one while it is valid."""
        return self._token(self._access, client_id, user_name, life_s)

    def refresh(self, client_id: str, user_name: str, life_s: int) -> Token:
        """Return the account's refresh token: the same one while it is valid."""
        return self._token(self._refresh, client_id, user_name, life_s)

    def refresh_owner(self, client_id: str, value: str) -> Token | None:
        """Return a valid refresh token of a client by its value."""
        return self._valid(self._refresh, value, client_id)

    def owner(self, value: str) -> str | None:
        """Return the user that an access token stands for, if it is valid."""
        token = self._valid(self._access, value)
        return token.user_name if token else None

    def expire_access(self) -> None:
        """Void every access token."""
        self._access.clear()

    def expire_refresh(self) -> None:
        """Void every refresh token."""
        self._refresh.clear()

    def _token(self, kept: dict[tuple[str, str], Token], client_id: str, user_name: str, life_s: int) -> Token:
        token = kept.get((client_id, user_name))
        if token is None or token.until <= self._clock.now():
            self._made += 1
            digest = hashlib.sha256(f"{client_id}:{user_name}:{self._made}".encode()).digest()
            value = base64.urlsafe_b64encode(digest + digest).decode().rstrip("=")
            token = Token(value, client_id, user_name, self._clock.now() + timedelta(seconds=life_s))
            kept[client_id, user_name] = token
        return token

    def _valid(self, kept: dict[tuple[str, str], Token], value: str, client_id: str = "") -> Token | None:
        now = self._clock.now()
        return next(
            (t for t in kept.values() if t.value == value and t.until > now and client_id in {"", t.client_id}), None
        )


def read_basic(credentials: str) -> tuple[str, str] | None:
    """Return user name and password of a Basic authorization header's credentials."""
    try:
        name, colon, password = base64.b64decode(credentials, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return (name, password) if colon else None
