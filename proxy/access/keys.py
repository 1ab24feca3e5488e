"""API keys: creates them, and recognises them in a request, so that they are never forwarded to upstream."""

import binascii
import hmac
import secrets
from base64 import b64decode
from dataclasses import dataclass
from hashlib import sha256

from proxy.ids import timestamp, uuid7
from proxy.storage import queries
from proxy.storage.connection import Connection
from proxy.storage.queries.keys import ApiKey
from proxy.wire.headers import Headers

PREFIX = "sk-stellar-"
_PREFIX_BYTES = PREFIX.encode()
_RANDOM_BYTES = 32
_HINT_LENGTH = len(PREFIX) + 4


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """The properties of a new key."""

    user_id: str
    name: str | None = None
    is_admin: bool = False
    requests_per_minute: int | None = None
    tokens_per_day: int | None = None
    expires_at: str | None = None


def create_key(connection: Connection, grant: NewKey) -> tuple[str, ApiKey]:
    """Creates a key and stores its hash; the caller manages the transaction. The key itself is only returned."""
    secret = PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
    now = timestamp()
    row = ApiKey(
        key_id=uuid7(),
        user_id=grant.user_id,
        name=grant.name,
        key_hash=hash_of(secret.encode()),
        hint=secret[:_HINT_LENGTH],
        is_admin=grant.is_admin,
        requests_per_minute=grant.requests_per_minute,
        tokens_per_day=grant.tokens_per_day,
        created_at=now,
        expires_at=grant.expires_at,
        revoked_at=None,
        last_used_at=None,
    )
    queries.users.upsert_user(connection, user_id=grant.user_id, now=now)
    queries.keys.insert_key(connection, row)
    queries.keys.require_keys(connection, now=now)
    return secret, row


def hash_of(secret: bytes) -> bytes:
    """The stored hash of a key. A fast hash is sufficient because keys have 256 random bits."""
    return sha256(secret).digest()


class OwnKeys:
    """Recognises the keys of this server: by their prefix, or the admin key of the settings by its value."""

    def __init__(self, admin_key: str | None) -> None:
        self._admin_key = None if admin_key is None else admin_key.encode()
        self._admin_hash = None if self._admin_key is None else hash_of(self._admin_key)

    def is_ours(self, secret: bytes) -> bool:
        """Whether the value may be a key of this server. It need not exist."""
        if secret.startswith(_PREFIX_BYTES):
            return True
        return self._admin_hash is not None and hmac.compare_digest(self._admin_hash, hash_of(secret))

    def is_within(self, value: bytes) -> bool:
        """Whether a value contains one of the keys, including as the password of `Basic`."""
        if self._contains(value):
            return True
        if value[:6].lower() != b"basic ":
            return False
        try:
            return self._contains(b64decode(value[6:]))
        except binascii.Error:
            return False

    def removed_from(self, headers: Headers) -> Headers:
        """The headers without those that contain one of the keys."""
        # Usually none does; joining the values allows a single check.
        together = b"\0".join([value for _, value in headers])
        if not (self.is_within(together) or b"basic " in together.lower()):
            return headers
        return [header for header in headers if not self.is_within(header[1])]

    def _contains(self, text: bytes) -> bool:
        return _PREFIX_BYTES in text or (self._admin_key is not None and self._admin_key in text)
