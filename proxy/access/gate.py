"""Authenticates requests and enforces limits: keys, concurrency, quotas, allowed hosts and origins."""

import asyncio
import logging
import time
from dataclasses import dataclass

from starlette.types import Scope

from proxy.access.attribution import user_header
from proxy.access.caller import ANYONE, Caller
from proxy.access.charges import Charge
from proxy.access.door_marker import DoorMarker
from proxy.access.key_cache import CachedKey, KeyCache, bad_key
from proxy.access.key_quotas import KeyQuotas, Write
from proxy.access.keys import OwnKeys
from proxy.access.origins import SAFE_METHODS, Origins, foreign_origin
from proxy.access.pages import is_page
from proxy.access.quotas import over
from proxy.access.shared_usage import open_shared_usage
from proxy.errors import APIError, NotFoundError, too_large
from proxy.ids import timestamp
from proxy.settings import Settings
from proxy.storage import queries
from proxy.storage.connection import Connection
from proxy.storage.database import Database
from proxy.wire.endpoints import ENDPOINTS
from proxy.wire.headers import Headers

logger = logging.getLogger(__name__)
_METRICS = "/metrics"
_READ = frozenset({b"authorization", b"x-api-key", b"content-length"})

REFRESH_SECONDS = 2.0  # maximum delay until a changed key takes effect
# The last use of keys is saved at this interval: one write for all of them.
_TOUCH_SECONDS = 60.0
_ADMIN_SECONDS = 1.0  # the longest that /ready waits for a key look-up

_STRANGER = Caller(None, has_key=True)


@dataclass(slots=True)
class Admission:
    """An admitted request."""

    caller: Caller
    cached_key: CachedKey | None = None
    rate_limit_headers: Headers | None = None  # the key's remaining quotas
    is_audited: bool = False
    charge: Charge | None = None


class Gate:
    """The keys and request counts of one process."""

    def __init__(self, settings: Settings, database: Database, *, write: Write) -> None:
        self._settings = settings
        self._database = database
        self._write = write
        self.keys = KeyCache(database, admin_key=settings.admin_key)
        self.own_keys = OwnKeys(settings.admin_key)
        self._quotas = KeyQuotas(database, self.keys, write=write, workers=settings.workers)
        # Once keys are required, they stay required: deleting the last key must not open the server to everyone.
        self.requires_key = settings.auth == "required" or (
            settings.auth == "auto" and (settings.admin_key is not None or not settings.is_loopback)
        )
        self._origins = Origins.of(settings)
        self._marker = DoorMarker(settings.database_path, folder=settings.state_path)
        self._is_remembered = settings.auth == "off"
        self._running = 0
        self._touched_at = time.monotonic()
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Checks whether keys exist, and starts refreshing them every few seconds."""
        if self._settings.workers > 1:
            self.keys.shared = open_shared_usage(self._settings)
        if await self._database.look_up(queries.keys.keys_were_required):
            self._marker.write_soon()  # also with auth off, and for a database of an older release
        await self._look_for_keys()
        await self._marker.written()
        await self.keys.refresh()
        self._task = asyncio.create_task(self._run(), name="gate")

    async def close(self) -> None:
        """Stops refreshing, and saves the keys' last use and tokens."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._marker.close()
        await self.keys.close()
        await self._refresh()
        await self._touch()
        if self.keys.shared is not None:
            self.keys.shared.close()

    @property
    def is_open_locally(self) -> bool:
        """Whether no key is required and the server is reachable only from this machine."""
        return self._settings.is_loopback and not self.requires_key

    def check_origin(self, scope: Scope) -> None:
        """If no key is required, rejects foreign Host values and other sites' pages. Raises APIError."""
        if not self.is_open_locally:
            return
        self._origins.check_host(scope["headers"])
        if self._origins.is_foreign(scope["headers"]):
            if scope["method"] not in SAFE_METHODS:
                raise foreign_origin()
            scope["state"]["is_foreign"] = True  # may read, but nothing is relayed for it

    async def is_admin(self, headers: Headers) -> bool:
        """Whether the request has an admin key, for routes that need no key. Never rejects."""
        secret, _ = self._presented(headers)
        if secret is None or not self.own_keys.is_ours(secret):
            return False
        try:
            async with asyncio.timeout(_ADMIN_SECONDS):
                cached_key = self.keys.held(secret) or await self.keys.find(secret)
        except (APIError, TimeoutError):  # the database does not answer, which /ready reports itself
            return False
        return cached_key is not None and cached_key.caller.is_admin and cached_key.is_good(time.time())

    async def admit(self, scope: Scope) -> Admission:
        """Admits a request and counts it until `leave`. Raises APIError."""
        secret, length = self._presented(scope["headers"])
        # Before the key is looked up: a body that will be refused must cost no database read.
        if length is not None and int(length) > self._settings.body_limit_bytes:
            raise too_large(self._settings.body_limit_bytes)
        cached_key = None
        if secret is not None and (self.requires_key or self.own_keys.is_ours(secret)):
            # Usually the key is cached, so nothing is awaited.
            cached_key = self.keys.held(secret) or await self.keys.find(secret)
        if self._settings.web and is_page(scope):
            admission = Admission(ANYONE)  # the page has its own login and uses only its cookie
        else:
            admission = self._identify(scope["path"], secret, cached_key)
        # Counted before the quotas are checked, which may wait for the database: concurrent requests must see this one.
        self._enter(admission)
        if admission.cached_key is not None:
            try:
                admission.rate_limit_headers, admission.charge = await self._quotas.take(admission.cached_key)
            except BaseException:
                self.leave(admission)
                raise
            admission.is_audited = admission.caller.is_admin and _is_notable(scope)
        scope["state"]["caller"] = admission.caller
        scope["state"]["charge"] = admission.charge
        return admission

    def leave(self, admission: Admission) -> None:
        """Ends the request: releases its place, and charges its tokens."""
        self._running -= 1
        if admission.charge is not None:
            admission.charge.settle()
        if admission.cached_key is not None:
            admission.cached_key.usage.running -= 1

    def _identify(self, path: str, secret: bytes | None, cached_key: CachedKey | None) -> Admission:
        if path == _METRICS and self._settings.is_loopback:
            return Admission(ANYONE)
        if cached_key is not None and self._settings.auth == "auto":
            self.requires_key = True
        if not self.requires_key:
            return self._when_keys_are_optional(secret, cached_key)
        cached_key = self._checked(cached_key, has_secret=secret is not None)
        # 404 and not 403: others are not told that the route exists.
        if path == _METRICS and not cached_key.caller.is_admin:
            raise NotFoundError(f"There is no route {path}.")
        return Admission(cached_key.caller, cached_key)

    def _when_keys_are_optional(self, secret: bytes | None, cached_key: CachedKey | None) -> Admission:
        """If no key is required, admin keys still grant admin; any other key of ours is never forwarded."""
        if secret is None or not self.own_keys.is_ours(secret):
            return Admission(ANYONE)
        if cached_key is None or not cached_key.caller.is_admin or not cached_key.is_good(time.time()):
            return Admission(_STRANGER)
        return Admission(cached_key.caller, cached_key)

    def _presented(self, headers: Headers) -> tuple[bytes | None, bytes | None]:
        """The request's key, and its length.

        The key is in `Authorization: Bearer` or `x-api-key`; if both are present, the one in the format of our keys
        counts.
        """
        key = length = None
        for name, value in headers:
            if name not in _READ:
                continue
            if name == b"content-length":
                length = value
                continue
            if name == b"authorization":
                if value[:7].lower() != b"bearer ":
                    continue
                value = value[7:]
            value = value.strip()
            if key is None or (self.own_keys.is_ours(value) and not self.own_keys.is_ours(key)):
                key = value
        return key, length

    def _checked(self, cached_key: CachedKey | None, *, has_secret: bool) -> CachedKey:
        if not has_secret:
            raise bad_key(
                "You didn't provide an API key. Send it as `Authorization: Bearer <key>` or `x-api-key: <key>`.",
                code=None,
            )
        if cached_key is None:
            raise bad_key("Incorrect API key provided. `stellarchat keys create` on the server creates one.")
        cached_key.check(time.time())
        return cached_key

    def _enter(self, admission: Admission) -> None:
        settings = self._settings
        if self._running >= settings.concurrency_limit:
            raise over("requests", "The server has too many requests at a time; try again.", wait_seconds=1)
        if admission.cached_key is not None:
            if admission.cached_key.usage.running >= settings.key_concurrency_limit:
                limit = settings.key_concurrency_limit
                raise over("requests", f"Rate limit reached: {limit} requests at a time.", wait_seconds=1)
            admission.cached_key.usage.running += 1
        self._running += 1

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            await self._refresh()
            if self.keys.shared is not None:
                self.keys.shared.keep()
            if time.monotonic() - self._touched_at >= _TOUCH_SECONDS:
                await self._touch()

    async def _refresh(self) -> None:
        try:
            await self._look_for_keys()
            await self._quotas.save()
            await self.keys.refresh()
        except Exception as exc:  # noqa: BLE001 - must survive: otherwise no revocation would ever take effect
            # No key can be revoked while the database is unavailable, so cached keys stay valid.
            logger.error("the API keys could not be refreshed: %s", exc)

    async def _look_for_keys(self) -> None:
        if self._settings.auth == "auto" and not self.requires_key and self._marker.find() is not None:
            self.requires_key = True
            self._is_remembered = True  # by the file alone: deleting it must open the server again
        if self._settings.auth == "auto" and not self.requires_key:
            self.requires_key = await self._database.look_up(queries.keys.keys_were_required)
        if self.requires_key:
            self._marker.write_soon()
        if self.requires_key and not self._is_remembered:
            await self._remember()

    async def _remember(self) -> None:
        """Stores that keys are required, so that this stays true even if all keys are deleted."""
        if not await self._database.look_up(queries.keys.keys_were_required):
            now = timestamp()
            try:
                await self._write(lambda connection: queries.keys.require_keys(connection, now=now))
            except APIError as exc:
                logger.warning("could not save that API keys are required: %s", exc)
                return
        self._is_remembered = True

    async def _touch(self) -> None:
        """Saves the keys' last use, in a single write."""
        self._touched_at = time.monotonic()
        used_at = self.keys.used_at
        if not used_at:
            return
        self.keys.used_at = {}

        def touch(connection: Connection) -> None:
            for key_id, used in used_at.items():
                queries.keys.touch_key(connection, key_id, used_at=timestamp(used))

        try:
            await self._write(touch)
        except APIError as exc:
            logger.warning("the last use of keys could not be saved: %s", exc)


def _is_notable(scope: Scope) -> bool:
    """Whether to log an admin's request: everything except its own chats."""
    return scope["path"] not in ENDPOINTS or scope["method"] != "POST" or user_header(scope["headers"]) is not None
