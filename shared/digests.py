"""Keyed digests: how a value is remembered without being stored.

A digest names its key. Two keys are valid during a rotation: new digests use the first, stored ones are recognised by either.
"""

import base64
import dataclasses
import hashlib
import hmac
import json
import math
import re
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cached_property

from shared.clients.system import Value

MIN_SECRET_CHARS = 32
DIGEST_BYTES = 16  # 22 characters of base64url


@dataclasses.dataclass(frozen=True)
class DigestKey:
    """A secret and the short name that its digests carry."""

    id: str
    secret: str = dataclasses.field(repr=False)

    @cached_property
    def mac(self) -> hmac.HMAC:
        """The keyed hash before its text: to be copied.

        `hmac.digest` lets go of the interpreter for every value, however short, and waits for it again: half a
        millisecond each beside threads that compute.
        """
        return hmac.new(self.secret.encode(), digestmod=hashlib.sha256)


class Digests:
    """Makes and recognises digests under one or two keys; the first is the current one."""

    def __init__(self, keys: Sequence[DigestKey]) -> None:
        if not keys:
            raise ValueError("digests need a key")
        self._keys = tuple(keys)

    def of(self, value: Value) -> str:
        """Return `<key id>.<22 characters>` of a value under the current key."""
        return _digest(self._keys[0], canonical(value))

    def candidates(self, value: Value) -> tuple[str, ...]:
        """Return the value's digest under every valid key, the current one first: for look-ups during a rotation."""
        form = canonical(value)
        return tuple(_digest(key, form) for key in self._keys)

    def matches(self, value: Value, stored: str) -> bool:
        """Tell whether a stored digest is this value's under any valid key; one of an unknown key never is."""
        key = self._key_of(stored)
        if key is None:
            return False
        return hmac.compare_digest(_digest(key, canonical(value)).encode(), stored.encode())

    def is_current(self, stored: str) -> bool:
        """Tell whether a stored digest is under the current key, so that it outlives the end of a rotation."""
        return self._key_of(stored) is self._keys[0]

    def _key_of(self, stored: str) -> DigestKey | None:
        key_id = stored.partition(".")[0]
        return next((key for key in self._keys if key.id == key_id), None)


def parse_digest_keys(text: str) -> tuple[DigestKey, ...]:
    """Read `id:secret[,id:secret]`. Raises ValueError with a sentence that repeats no secret."""
    keys = []
    for part in text.split(","):
        key_id, colon, secret = part.strip().partition(":")
        if not colon or not re.fullmatch(r"[A-Za-z0-9_-]{1,16}", key_id):
            raise ValueError("should be id:secret, with an id of 1 to 16 letters, digits, - or _")
        if len(secret) < MIN_SECRET_CHARS:
            raise ValueError(f"should have at least {MIN_SECRET_CHARS} characters in the secret of {key_id}")
        keys.append(DigestKey(key_id, secret))
    if len(keys) > 2:
        raise ValueError("should hold two keys at the most: the current one, then the one before it")
    if len({key.id for key in keys}) < len(keys):
        raise ValueError("should give its two keys different ids")
    return tuple(keys)


def canonical(value: Value) -> bytes:
    """Return one byte form for values that mean the same: NFC text, UTC times in ISO form, 1 for 1.0, sorted names.

    Raises ValueError for a naive time or a number that is none, TypeError for what is no Value.
    """
    return json.dumps(_plain(value), ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode(
        "utf-8", "surrogatepass"
    )


def _plain(value: Value) -> object:
    match value:
        case None | bool() | int():
            return value
        case float():
            if not math.isfinite(value):
                raise ValueError("a number must be finite to have a digest")
            return int(value) if value.is_integer() else value
        case str():
            return unicodedata.normalize("NFC", value)
        case datetime():
            if value.tzinfo is None:
                raise ValueError("a time must be aware to have a digest")
            return value.astimezone(UTC).isoformat()
        case list():
            return [_plain(each) for each in value]
        case dict():
            return {unicodedata.normalize("NFC", name): _plain(each) for name, each in value.items()}
    raise TypeError(f"{type(value).__name__} is not a value of a record")


def _digest(key: DigestKey, form: bytes) -> str:
    mac = key.mac.copy()
    mac.update(form)
    return f"{key.id}.{base64.urlsafe_b64encode(mac.digest()[:DIGEST_BYTES]).decode().rstrip('=')}"
