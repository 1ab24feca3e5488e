"""The door of the application: who is calling, whether they may come in, and how many at a time.

Requests pass here before any route is looked for. `/health` and `/ready` are open to all.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxy.access.attribution import user_header
from proxy.access.caller import ANYONE, Caller
from proxy.access.keys import CachedKey, KeyCache, bad_key
from proxy.access.quotas import check_tokens, over, start_of_day, take_request
from proxy.errors import APIError, NotFoundError, error_response, too_large
from proxy.ids import timestamp
from proxy.settings import Settings
from proxy.storage import queries
from proxy.storage.connection import Connection
from proxy.storage.database import Database
from proxy.storage.errors import StorageError
from proxy.wire.endpoints import ENDPOINTS
from proxy.wire.headers import Headers, value_of

logger = logging.getLogger(__name__)
audit = logging.getLogger("stellarchat.audit")
audit.setLevel(logging.INFO)  # what admins do is written down, however little else is

_OPEN = frozenset({"/health", "/ready"})
_METRICS = "/metrics"
_READ = frozenset({b"authorization", b"x-api-key", b"content-length"})

REFRESH_SECONDS = 2.0  # how late a change to a key is noticed
_TOUCH_SECONDS = 60.0
_TOKENS_SECONDS = 5.0

Write = Callable[[Callable[[Connection], None]], Awaitable[None]]

_STRANGER = Caller(None, has_key=True)


@dataclass(slots=True)
class Admission:
    """A request that was let in."""

    caller: Caller
    cached_key: CachedKey | None = None
    rate_limit_headers: Headers | None = None  # what is left of the key's quotas
    is_audited: bool = False


class Gate:
    """One process's keys and counts."""

    def __init__(self, settings: Settings, database: Database, *, write: Write) -> None:
        self._settings = settings
        self._database = database
        self._write = write
        self.keys = KeyCache(database, admin_key=settings.admin_key)
        # Once keys are required they stay so: deleting the last one must not open the door to everyone.
        self.requires_key = settings.auth == "required" or (
            settings.auth == "auto" and (settings.admin_key is not None or not settings.is_loopback)
        )
        self._running = 0
        self._touched_at = time.monotonic()
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Find out whether there are keys, and look again every few seconds."""
        await self._look_for_keys()
        self._task = asyncio.create_task(self._run(), name="gate")

    async def close(self) -> None:
        """Stop looking, and save when the keys were used."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self.keys.close()
        await self._refresh()
        await self._touch()

    async def admit(self, scope: Scope) -> Admission:
        """Let a request in, and count it until it leaves. Raises APIError."""
        secret, length = self._presented(scope["headers"])
        if length is not None and int(length) > self._settings.body_limit_bytes:
            raise too_large(self._settings.body_limit_bytes)
        cached_key = None
        if secret is not None and (self.requires_key or self.keys.is_ours(secret)):
            # Nearly always it has been seen lately, and nothing is awaited.
            cached_key = self.keys.held(secret) or await self.keys.find(secret)
        if self._settings.web and is_page(scope):
            admission = Admission(ANYONE)  # it has a login of its own, and looks at nothing but its cookie
        else:
            admission = self._identify(scope["path"], secret, cached_key)
        self._enter(admission)
        if admission.cached_key is not None:
            try:
                await self._check_quotas(admission, admission.cached_key)
            except BaseException:
                self.leave(admission)
                raise
            admission.is_audited = admission.caller.is_admin and _is_notable(scope)
        scope["state"]["caller"] = admission.caller
        return admission

    def leave(self, admission: Admission) -> None:
        """The request is over."""
        self._running -= 1
        if admission.cached_key is not None:
            admission.cached_key.usage.running -= 1

    def _identify(self, path: str, secret: bytes | None, cached_key: CachedKey | None) -> Admission:
        if path == _METRICS and self._settings.is_loopback:
            return Admission(ANYONE)
        if cached_key is not None and self._settings.auth == "auto":
            self.requires_key = True
        if not self.requires_key:
            return self._without_duty(secret, cached_key)
        cached_key = self._checked(cached_key, has_secret=secret is not None)
        if path == _METRICS and not cached_key.caller.is_admin:
            raise NotFoundError(f"There is no route {path}.")
        return Admission(cached_key.caller, cached_key)

    def _without_duty(self, secret: bytes | None, cached_key: CachedKey | None) -> Admission:
        """Where no key is asked for, an admin's still makes an admin; any key of ours stays here."""
        if secret is None or not self.keys.is_ours(secret):
            return Admission(ANYONE)
        if cached_key is None or not cached_key.caller.is_admin or not cached_key.is_good(time.time()):
            return Admission(_STRANGER)
        return Admission(cached_key.caller, cached_key)

    def _presented(self, headers: Headers) -> tuple[bytes | None, bytes | None]:
        """The key of a request, and its length. The key is in `Authorization: Bearer` or `x-api-key`; where both are
        there, it is the one of our form."""
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
            if key is None or (self.keys.is_ours(value) and not self.keys.is_ours(key)):
                key = value
        return key, length

    def _checked(self, cached_key: CachedKey | None, *, has_secret: bool) -> CachedKey:
        if not has_secret:
            raise bad_key(
                "You didn't provide an API key. Send it as `Authorization: Bearer <key>` or `x-api-key: <key>`.",
                code=None,
            )
        if cached_key is None:
            raise bad_key("Incorrect API key provided.")
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

    async def _check_quotas(self, admission: Admission, cached_key: CachedKey) -> None:
        row = cached_key.row
        if row.tokens_per_day is not None:
            await self._count_tokens(cached_key)
            admission.rate_limit_headers = check_tokens(
                cached_key.usage, per_day=row.tokens_per_day, unix_time=time.time()
            )
        if row.requests_per_minute is not None:
            rate_limit_headers = take_request(
                cached_key.usage, per_minute=row.requests_per_minute, now=time.monotonic()
            )
            admission.rate_limit_headers = rate_limit_headers + (admission.rate_limit_headers or [])

    async def _count_tokens(self, cached_key: CachedKey) -> None:
        usage, now = cached_key.usage, time.monotonic()
        if now - usage.tokens_at < _TOKENS_SECONDS:
            return
        usage.tokens_at = now
        user_id, since_id = cached_key.row.user_id, start_of_day(time.time())
        try:
            usage.tokens = await self._database.read(
                lambda connection: queries.keys.sum_tokens(connection, user_id=user_id, since_id=since_id)
            )
        except StorageError as exc:
            logger.error("a key's tokens could not be counted: %s", exc)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            await self._refresh()
            if time.monotonic() - self._touched_at >= _TOUCH_SECONDS:
                await self._touch()

    async def _refresh(self) -> None:
        try:
            await self._look_for_keys()
            await self.keys.refresh()
        except Exception as exc:  # noqa: BLE001 - it must live: without it no key is ever revoked
            # Nobody can revoke a key while the database is gone; those who are in stay in.
            logger.error("the API keys could not be looked at: %s", exc)

    async def _look_for_keys(self) -> None:
        if self._settings.auth == "auto" and not self.requires_key:
            self.requires_key = await self._database.read(queries.keys.key_exists)

    async def _touch(self) -> None:
        """Save when keys were last used: one write for all of them."""
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
            logger.warning("when keys were last used was not saved: %s", exc)


class GateMiddleware:
    """Lets requests through the gate of the lifespan state; what it refuses reaches no route."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, or refuse it."""
        if scope["type"] != "http" or scope["path"] in _OPEN:
            await self._app(scope, receive, send)
            return
        gate: Gate = scope["state"]["gate"]
        try:
            admission = await gate.admit(scope)
        except APIError as exc:
            await error_response(exc, path=scope["path"])(scope, receive, send)
            return
        if admission.rate_limit_headers is not None:
            send = _with_headers(send, admission.rate_limit_headers)
        try:
            if admission.is_audited:
                await self._audited(scope, receive, send, admission)
            else:
                await self._app(scope, receive, send)
        finally:
            gate.leave(admission)

    async def _audited(self, scope: Scope, receive: Receive, send: Send, admission: Admission) -> None:
        """Answer an admin's request, and log what was asked, for whom, and whether it was done."""
        status = 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            assert admission.cached_key is not None
            audit.info(
                "admin key %s: %s %s for %s: %s",
                admission.cached_key.row.key_id,
                scope["method"],
                ascii(scope["path"])[1:-1],
                ascii(user_header(scope["headers"]) or "itself"),
                status or "no answer",
            )


def is_page(scope: Scope) -> bool:
    """Whether a request is for the history page, or is a browser's that will be led there."""
    path: str = scope["path"]
    return path == "/ui" or path.startswith("/ui/") or (path == "/" and is_browser(scope))


def is_browser(scope: Scope) -> bool:
    """Whether the caller wants a page to look at."""
    return scope["method"] in ("GET", "HEAD") and b"text/html" in (value_of(scope["headers"], b"accept") or b"")


def _is_notable(scope: Scope) -> bool:
    """Whether an admin's request is logged: all but its own chats."""
    return scope["path"] not in ENDPOINTS or scope["method"] != "POST" or user_header(scope["headers"]) is not None


def _with_headers(send: Send, rate_limit_headers: Headers) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *rate_limit_headers]}
        await send(message)

    return send_with_headers
