"""Caches API keys, so that most requests need no database look-up, and limits the look-ups of unknown ones."""

import asyncio
import hmac
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime

from proxy.access.caller import Caller
from proxy.access.keys import hash_of
from proxy.access.quotas import DayTokens, Usage
from proxy.access.shared_usage import SharedUsage
from proxy.errors import APIError, UnavailableError
from proxy.ids import timestamp
from proxy.storage import queries
from proxy.storage.connection import Connection
from proxy.storage.database import Database
from proxy.storage.errors import StorageError
from proxy.storage.queries.keys import ApiKey
from proxy.storage.queries.users import DEFAULT_USER_ID

logger = logging.getLogger(__name__)

# Limits for unknown keys: how many are remembered, for how long, and how many are looked up at once.
_UNKNOWN_LIMIT = 4096
# A key that was tried before it was created works at the latest after this time.
_UNKNOWN_SECONDS = 2.0
# Unknown keys from 128 connections once made 3 to 5 of 8 requests with a valid key a 429; known keys skip this limit.
_LOOKUP_LIMIT = 64

_Found = tuple[list[ApiKey], list[tuple[str, bytes]]]


@dataclass(slots=True)
class CachedKey:
    """A key from the database that has been presented recently."""

    row: ApiKey
    caller: Caller
    usage: Usage
    expires: float | None = field(init=False)
    used: float = 0.0  # Unix time of the last request; 0: none since the last refresh

    def __post_init__(self) -> None:
        self.expires = None if self.row.expires_at is None else datetime.fromisoformat(self.row.expires_at).timestamp()

    def is_good(self, now: float) -> bool:
        """Whether the key is valid at this time."""
        return self.row.revoked_at is None and (self.expires is None or now < self.expires)

    def check(self, now: float) -> None:
        """Raises APIError 401 if the key is revoked or expired."""
        if self.row.revoked_at is not None:
            raise bad_key("This API key has been revoked.")
        if self.expires is not None and now >= self.expires:
            raise bad_key("This API key has expired.")


def bad_key(message: str, *, code: str | None = "invalid_api_key") -> APIError:
    """401 in OpenAI's format."""
    # RFC 9110 §15.5.2: a 401 must contain WWW-Authenticate.
    return APIError(
        message, status=401, type_="invalid_request_error", code=code, headers={"WWW-Authenticate": "Bearer"}
    )


class KeyCache:
    """The keys in use, by hash. Changes take effect with `refresh`, every few seconds."""

    def __init__(self, database: Database, *, admin_key: str | None) -> None:
        self._database = database
        self._held: dict[bytes, CachedKey] = {}
        # hashes of all existing keys, which can be looked up without waiting behind unknown keys
        self._known: set[bytes] = set()
        self._known_id = ""
        self._unknown: dict[bytes, float] = {}
        self._pending: dict[bytes, asyncio.Task[CachedKey | None]] = {}
        self._usages: dict[str, Usage] = {}
        self.shared: SharedUsage | None = None  # the usage of all workers, if there are several
        self._unknown_key = asyncio.Semaphore(1)  # unknown keys use at most one database reader
        self._admin = None if admin_key is None else _given_admin(admin_key)
        self.used_at: dict[str, float] = {}  # key id to Unix time; not saved yet

    def unsaved_tokens(self) -> Iterator[tuple[str, DayTokens]]:
        """The keys with charged tokens that are not saved yet."""
        return ((key_id, usage.tokens) for key_id, usage in self._usages.items() if usage.tokens.unsaved)

    def held(self, secret: bytes) -> CachedKey | None:
        """The cached key, revoked or not."""
        key_hash = hash_of(secret)
        cached_key = self._held.get(key_hash)
        # Found by its hash in a dictionary; the whole hash is compared once more, in constant time.
        if cached_key is None or not hmac.compare_digest(cached_key.row.key_hash, key_hash):
            return None
        cached_key.used = time.time()
        return cached_key

    async def find(self, secret: bytes) -> CachedKey | None:
        """Looks up a key, revoked or not.

        Raises UnavailableError, or APIError if too many unknown keys are being looked up.
        """
        key_hash = hash_of(secret)
        if self._is_admin(key_hash):
            return self._admin
        return await self._look_up(key_hash)

    def forget_user(self, user_id: str) -> None:
        """Discards the keys of a deleted user, so that they are looked up again."""
        for key_hash in [key_hash for key_hash, cached_key in self._held.items() if cached_key.row.user_id == user_id]:
            del self._held[key_hash]

    async def refresh(self) -> None:
        """Reloads the keys used since the last refresh, and discards the others."""
        used = [key_hash for key_hash, cached_key in self._held.items() if cached_key.used]
        for cached_key in self._held.values():
            if cached_key.used:
                self.used_at[cached_key.row.key_id] = cached_key.used
                cached_key.used = 0.0
        rows, made = await self._database.look_up(_finding(used, after=self._known_id))
        self._known |= {key_hash for _, key_hash in made}
        self._known_id = made[-1][0] if made else self._known_id
        self._keep({row.key_hash: row for row in rows}, asked=set(used))
        now = time.monotonic()
        self._unknown = {key_hash: until for key_hash, until in self._unknown.items() if until > now}
        self._drop_idle_usages()

    def _drop_idle_usages(self) -> None:
        held = {cached_key.row.key_id for cached_key in self._held.values()}
        for key_id in [key_id for key_id, usage in self._usages.items() if key_id not in held and usage.is_idle()]:
            # A request that still has this object must not write to a place that another key takes.
            self._usages.pop(key_id).tokens.shared = None
            if self.shared is not None:
                self.shared.release(key_id)

    def _keep(self, rows: dict[bytes, ApiKey], *, asked: set[bytes]) -> None:
        """Updates the cache with the result of a refresh.

        Keys that were discarded meanwhile stay discarded; keys that were added meanwhile are newer than the result.
        """
        before, self._held = self._held, {}
        for key_hash, cached_key in before.items():
            if key_hash in rows:
                self._held[key_hash] = self._holder(rows[key_hash])
                self._held[key_hash].used = cached_key.used  # used while the query was running
            elif key_hash not in asked and cached_key.used:
                self._held[key_hash] = cached_key

    async def close(self) -> None:
        """Waits for look-ups in progress."""
        if self._pending:
            await asyncio.wait(self._pending.values())

    def _is_admin(self, key_hash: bytes) -> bool:
        return self._admin is not None and hmac.compare_digest(self._admin.row.key_hash, key_hash)

    async def _look_up(self, key_hash: bytes) -> CachedKey | None:
        if self._unknown.get(key_hash, 0.0) > time.monotonic():
            return None
        task = self._pending.get(key_hash)
        if task is None:
            is_known = key_hash in self._known
            if not is_known and len(self._pending) >= _LOOKUP_LIMIT:
                raise APIError(
                    "Too many keys are being looked up; try again.",
                    status=429,
                    type_="requests",
                    code="rate_limit_exceeded",
                    headers={"Retry-After": "1"},
                )
            task = self._pending[key_hash] = asyncio.create_task(
                self._read(key_hash) if is_known else self._read_unknown_key(key_hash), name="key"
            )
            task.add_done_callback(lambda done: self._looked_up(key_hash, done))
        return await asyncio.shield(task)  # other requests may await the same look-up

    def _looked_up(self, key_hash: bytes, task: asyncio.Task[CachedKey | None]) -> None:
        self._pending.pop(key_hash, None)
        if not task.cancelled():
            task.exception()  # retrieve it: the waiting requests may have been cancelled

    async def _read_unknown_key(self, key_hash: bytes) -> CachedKey | None:
        async with self._unknown_key:
            return await self._read(key_hash)

    async def _read(self, key_hash: bytes) -> CachedKey | None:
        try:
            row = await self._database.look_up(lambda connection: queries.keys.find_key(connection, key_hash))
        except StorageError as exc:
            logger.error("an API key could not be looked up: %s", exc)
            raise UnavailableError("The database cannot be read at the moment; try again.") from exc
        if row is None:
            if len(self._unknown) >= _UNKNOWN_LIMIT:
                del self._unknown[next(iter(self._unknown))]
            self._unknown[key_hash] = time.monotonic() + _UNKNOWN_SECONDS
            return None
        cached_key = self._held[key_hash] = self._holder(row)
        # From now on, not only from when the waiting requests go on: a refresh in between would discard its usage.
        cached_key.used = time.time()
        return cached_key

    def _holder(self, row: ApiKey) -> CachedKey:
        usage = self._usages.setdefault(row.key_id, Usage())
        return CachedKey(row, Caller(row.user_id, is_admin=bool(row.is_admin), has_key=True), usage)


def _finding(hashes: list[bytes], *, after: str) -> Callable[[Connection], _Found]:
    def find(connection: Connection) -> _Found:
        rows = (queries.keys.find_key(connection, key_hash) for key_hash in hashes)
        return [row for row in rows if row is not None], queries.keys.list_key_hashes(connection, after=after)

    return find


def _given_admin(secret: str) -> CachedKey:
    """The admin key of the settings, which is not stored in a table."""
    row = ApiKey(
        key_id="STELLARCHAT_ADMIN_KEY",
        user_id=DEFAULT_USER_ID,
        name=None,
        key_hash=hash_of(secret.encode()),
        hint="",
        is_admin=True,
        requests_per_minute=None,
        tokens_per_day=None,
        created_at=timestamp(),
        expires_at=None,
        revoked_at=None,
        last_used_at=None,
    )
    return CachedKey(row, Caller(DEFAULT_USER_ID, is_admin=True, has_key=True), Usage())
