"""Page logins: the cookie, the key behind it, and a limit on login attempts.

The cookie is valid only for `/ui`, so a browser cannot be tricked into calling the model. It is checked against its key
with every request: if the key is revoked, expired or deleted, the login ends at once.
"""

import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from proxy.access.key_cache import CachedKey
from proxy.access.keys import hash_of
from proxy.errors import APIError
from proxy.ids import timestamp
from proxy.services import Services, State
from proxy.storage import queries
from proxy.storage.queries.users import DEFAULT_USER_ID
from proxy.storage.queries.web import WebSession

COOKIE = "stellarchat_web"
LIVE_HEADER = "x-stellarchat-live"  # an automatic refresh, which does not extend the login

# A login ends after a working day without a visit, and in any case after a week.
_IDLE = timedelta(hours=8)
_LONGEST = timedelta(days=7)
# A login is not extended more often than this: each extension is a write.
_EXTEND_AFTER = timedelta(minutes=5)
_PER_KEY = 50
# Keys have 256 random bits, so guessing is hopeless: this keeps attempts from filling the log and the key look-ups.
_FAILURES_PER_MINUTE = 10
_ADDRESSES_MAX = 4096  # in memory; the oldest failure is forgotten first
_TOKEN_LENGTH_MAX = 128


@dataclass(frozen=True, slots=True)
class Visitor:
    """A viewer of the page. If no key is required, anyone, with access to everything."""

    user_id: str
    is_admin: bool = False
    has_key: bool = True
    key_id: str | None = None

    @property
    def sees_all(self) -> bool:
        """Whether all users' data is shown unless a user is selected."""
        return self.is_admin or not self.has_key


ANYONE = Visitor(DEFAULT_USER_ID, has_key=False)


async def find_visitor(request: Request[State]) -> Visitor | None:
    """The visitor of the request's cookie; None if not logged in."""
    if not request.state["gate"].requires_key:
        return ANYONE
    token = request.cookies.get(COOKIE, "")
    if not 0 < len(token) <= _TOKEN_LENGTH_MAX:
        return None
    services, token_hash = request.state["services"], _hash(token)
    now = timestamp()
    login = await services.database.look_up(lambda conn: queries.web.get_web_session(conn, token_hash, now=now))
    visitor = None if login is None else _visitor_of(login, admin_key=services.settings.admin_key, now=now)
    if login is not None and visitor is not None and LIVE_HEADER not in request.headers:
        await _extend(services, login, token_hash, now=now)
    return visitor


def _visitor_of(login: WebSession, *, admin_key: str | None, now: str) -> Visitor | None:
    if login.key_id is None or login.user_id is None:
        is_from_settings = admin_key is not None and secrets.compare_digest(hash_of(admin_key.encode()), login.key_hash)
        return Visitor(DEFAULT_USER_ID, is_admin=True, key_id="STELLARCHAT_ADMIN_KEY") if is_from_settings else None
    if login.revoked_at is not None or (login.key_expires_at is not None and login.key_expires_at <= now):
        return None
    return Visitor(login.user_id, is_admin=bool(login.is_admin), key_id=login.key_id)


async def _extend(services: Services, login: WebSession, token_hash: bytes, *, now: str) -> None:
    end = _end_of(login.created_at, now=now)
    if datetime.fromisoformat(end) - datetime.fromisoformat(login.expires_at) < _EXTEND_AFTER:
        return
    with suppress(APIError):  # if the database cannot be written, the login is not extended
        await services.write(lambda conn: queries.web.extend_web_session(conn, token_hash, expires_at=end))


def _end_of(created_at: str, *, now: str) -> str:
    end = min(datetime.fromisoformat(now) + _IDLE, datetime.fromisoformat(created_at) + _LONGEST)
    return timestamp(end.timestamp())


async def log_in(request: Request[State], key: CachedKey, response: Response) -> None:
    """Creates a login for a verified key and sets the cookie."""
    token, now = secrets.token_urlsafe(32), timestamp()
    key_hash, token_hash, end = key.row.key_hash, _hash(token), _end_of(now, now=now)
    await request.state["services"].write(
        lambda conn: queries.web.insert_web_session(
            conn, token_hash, key_hash=key_hash, now=now, expires_at=end, most=_PER_KEY
        )
    )
    response.set_cookie(
        COOKIE,
        token,
        path="/ui",
        httponly=True,
        # No other site's page can send it, so none can act for the visitor (CSRF). Scripts cannot read it (httponly).
        samesite="strict",
        secure=is_https(request),
        max_age=round(_LONGEST.total_seconds()),
    )


async def log_out(request: Request[State], response: Response) -> None:
    """Ends the login of the request's cookie."""
    token_hash = _hash(request.cookies.get(COOKIE, ""))
    await request.state["services"].write(lambda conn: queries.web.delete_web_session(conn, token_hash))
    response.delete_cookie(COOKIE, path="/ui", httponly=True, samesite="strict", secure=is_https(request))


def _hash(token: str) -> bytes:
    # Only this is stored, so that a copy of the database lets nobody log in.
    return sha256(token.encode()).digest()


def is_https(request: Request[State]) -> bool:
    """Whether the browser used TLS, possibly terminated by a proxy in front of this server.

    Browsers send the scheme in `Origin`, and `Sec-Fetch-Site` only over TLS or to the local machine.
    """
    origin = request.headers.get("origin", "")
    if origin.startswith(("https://", "http://")):
        return origin.startswith("https://")
    host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    is_near = host == "localhost" or host.endswith(".localhost") or host.startswith("127.") or host == "::1"
    return request.url.scheme == "https" or ("sec-fetch-site" in request.headers and not is_near)


def is_foreign(request: Request[State]) -> bool:
    """Whether the request was triggered by another site's page (CSRF)."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site != "same-origin"
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc != request.headers.get("host")


class LoginLimiter:
    """Limits wrong keys per address: ten at once, then one every six seconds."""

    def __init__(self) -> None:
        self._failures: dict[str, tuple[float, float]] = {}  # by address: counted failures, and the time of the count

    def check(self, address: str) -> None:
        """Raises APIError 429 after too many failures."""
        if self._counted(address) > _FAILURES_PER_MINUTE - 1:
            raise APIError("Too many attempts; wait a minute.", status=429, headers={"Retry-After": "60"})

    def count_failure(self, address: str) -> None:
        """Counts a wrong key."""
        count = self._counted(address) + 1
        self._failures.pop(address, None)
        self._failures[address] = (count, time.monotonic())
        if len(self._failures) > _ADDRESSES_MAX:
            del self._failures[next(iter(self._failures))]

    def _counted(self, address: str) -> float:
        count, at = self._failures.get(address, (0.0, 0.0))
        return max(0.0, count - (time.monotonic() - at) * _FAILURES_PER_MINUTE / 60)
