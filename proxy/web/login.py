"""`/ui/login` and `/ui/logout`: the key is sent once, in a form, and never in a URL."""

import re
import time
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from proxy.access.key_cache import CachedKey
from proxy.errors import APIError
from proxy.services import State
from proxy.web.visitors import LoginLimiter, find_visitor, is_foreign, log_in, log_out
from proxy.web.visits import Pages, Visit, error_page, foreign_form, read_form, see_other

# The only redirect targets after a login: anything else would be an open redirect.
_PAGE = re.compile(r"/ui(?:[/?][\x21-\x7e]*)?")
_KEY_LENGTH_MAX = 512  # longer texts are no key, and need not be hashed
_REFUSED = "This key is not accepted: it is wrong, revoked or expired."


class Login:
    """The login page as an ASGI endpoint; the only page without a login."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._limiter = LoginLimiter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Shows or processes the form."""
        request: Request[State] = Request(scope, receive, send)
        try:
            response = await self._answer(request)
        except APIError as exc:
            response = await error_page(self._pages, request, exc, None)
        await response(scope, receive, send)

    async def _answer(self, request: Request[State]) -> Response:
        if request.method == "POST":
            if is_foreign(request):
                raise foreign_form()
            return await self._take(request, await read_form(request))
        target = _target(request.query_params)
        if await find_visitor(request) is not None:
            return see_other(target)
        return await self._form(request, target)

    async def _take(self, request: Request[State], form: Mapping[str, str]) -> Response:
        address = request.client.host if request.client else ""
        self._limiter.check(address)
        target = _target(form)
        key = await _find_key(request, form.get("key", "").strip())
        if key is None:
            self._limiter.count_failure(address)
            return await self._form(request, target, problem=_REFUSED, status=401)
        response = see_other(target)
        await log_in(request, key, response)
        return response

    async def _form(
        self, request: Request[State], target: str, *, problem: str | None = None, status: int = 200
    ) -> Response:
        values = {"visitor": None, "here": "/ui/login", "next": target, "problem": problem}
        return await self._pages.response(request, "login.html", values, status=status)


async def leave(visit: Visit) -> Response:
    """Ends the login."""
    response = see_other("/ui/login" if visit.visitor.has_key else "/ui")
    await log_out(visit.request, response)
    return response


async def _find_key(request: Request[State], secret: str) -> CachedKey | None:
    if not 0 < len(secret) <= _KEY_LENGTH_MAX:
        return None
    key = await request.state["gate"].keys.find(secret.encode())
    return key if key is not None and key.is_good(time.time()) else None


def _target(given: Mapping[str, str]) -> str:
    """Where to redirect after the login: only to one of our own pages."""
    target = given.get("next", "")
    return target if _PAGE.fullmatch(target) and not target.startswith("/ui/log") else "/ui"
