"""Applies the quotas of keys to requests, and synchronises the tokens used with the database and other processes."""

import logging
import time
from collections.abc import Awaitable, Callable

from proxy.access.charges import Charge
from proxy.access.key_cache import CachedKey, KeyCache
from proxy.access.quotas import DayTokens, Usage, take_request, token_headers
from proxy.errors import APIError
from proxy.ids import timestamp
from proxy.storage import queries
from proxy.storage.connection import Connection
from proxy.storage.database import Database
from proxy.storage.errors import StorageError
from proxy.wire.headers import Headers

logger = logging.getLogger(__name__)

# How often to read what other workers have charged: with a read at each request, every request would wait for the
# database.
_READ_SECONDS = 2.0

Write = Callable[[Callable[[Connection], None]], Awaitable[None]]


class KeyQuotas:
    """The quotas of the keys of one process."""

    def __init__(self, database: Database, keys: KeyCache, *, write: Write, workers: int) -> None:
        self._database = database
        self._keys = keys
        self._write = write
        self._workers = workers

    async def take(self, cached_key: CachedKey) -> tuple[Headers | None, Charge | None]:
        """Counts the request; returns the headers that tell the remaining quotas, and the charge of its tokens.

        Token quotas apply only to relayed requests: reading one's own history is always possible. Raises APIError 429.
        """
        row, usage = cached_key.row, cached_key.usage
        if row.requests_per_minute is None and row.tokens_per_day is None:
            return None, None
        told: Headers = []
        charge = None
        processes = self._processes_alone(row.key_id, usage)
        if row.requests_per_minute is not None:
            told = take_request(usage, per_minute=row.requests_per_minute, now=time.monotonic(), processes=processes)
        if row.tokens_per_day is not None:
            await self._read_tokens(row.key_id, usage.tokens)
            usage.tokens.learn()
            told = told + token_headers(usage.tokens, per_day=row.tokens_per_day, unix_time=time.time())
            charge = Charge(usage.tokens, per_day=row.tokens_per_day, processes=processes)
        return told, charge

    def _processes_alone(self, key_id: str, usage: Usage) -> float:
        """The number of processes that serve the database, divided by those that see each other's usage of the key."""
        shared = usage.tokens.shared
        if shared is None and self._keys.shared is not None:
            shared = usage.tokens.shared = self._keys.shared.key(key_id)
        known = max(self._database.living_count, self._workers)
        return max(1.0, known / (1 if shared is None else shared.sharing))

    async def _read_tokens(self, key_id: str, tokens: DayTokens) -> None:
        """Reads periodically what other workers have charged."""
        day, now = _day(), time.monotonic()
        tokens.begin_day(day)
        if now - tokens.read_at < _READ_SECONDS:
            return
        saves = tokens.saves
        try:
            saved = await self._database.look_up(
                lambda connection: queries.keys.get_key_tokens(connection, key_id, day=day)
            )
        except StorageError as exc:
            logger.error("the tokens used by a key could not be read: %s", exc)
            return
        if saves == tokens.saves and day == tokens.day:
            tokens.note_read(saved, now=now)

    async def save(self) -> None:
        """Saves the tokens charged to keys, in a single write."""
        used = {key_id: (tokens, tokens.day, tokens.unsaved) for key_id, tokens in self._keys.unsaved_tokens()}
        if not used:
            return
        saved: dict[str, int] = {}

        def save(connection: Connection) -> None:
            for key_id, (_, day, count) in used.items():
                queries.keys.add_key_tokens(connection, key_id, day=day, tokens=count)
                saved[key_id] = queries.keys.get_key_tokens(connection, key_id, day=day)

        try:
            await self._write(save)
        except APIError as exc:
            logger.warning("the tokens used by keys could not be saved: %s", exc)
            return
        for key_id, (tokens, day, count) in used.items():
            tokens.note_saved(count, day=day, saved=saved[key_id])


def _day() -> str:
    return timestamp()[:10]
