"""A request to the page with its visitor, and the endpoint class that all pages share."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from functools import partial
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import Receive, Scope, Send

from proxy.access.middleware import audit
from proxy.errors import APIError, NotFoundError, too_large
from proxy.low_priority import lower_priority
from proxy.services import Services, State
from proxy.storage.fair_turns import current_caller
from proxy.web.rendering import page_headers, raw_headers, rendered
from proxy.web.visitors import LIVE_HEADER, Visitor, find_visitor, is_foreign, is_https

T = TypeVar("T")

# Forms hold a title, a key's properties or a search; nobody is logged in yet when the login form is read.
_FORM_BYTES_MAX = 16 * 1024
_HOST = re.compile(r"[A-Za-z0-9.\-]{1,253}(:[0-9]{1,5})?|\[[0-9A-Fa-f:]{2,45}\](:[0-9]{1,5})?")
_ID = re.compile(r"[\x21-\x7e]{0,256}")
# Limits on rendering: someone who opens thousands of pages must not occupy all threads.
_MAKING = 2
_WAITING_MAX = 64
_threads = ThreadPoolExecutor(_MAKING, thread_name_prefix="page", initializer=lower_priority)

# A link from another site sends no cookie (SameSite=Strict), so the page reloads itself, which counts as same-site.
_ONCE_MORE = b'<!doctype html><meta http-equiv="refresh" content="0"><title>StellarChat</title>'


@dataclass(frozen=True, slots=True)
class Visit:
    """A request to a page by a visitor who may see it."""

    request: Request[State]
    visitor: Visitor
    pages: "Pages"

    @property
    def services(self) -> Services:
        """The shared services."""
        return self.request.state["services"]

    @property
    def query(self) -> Mapping[str, str]:
        """The query parameters, without empty ones."""
        return {name: value for name, value in self.request.query_params.items() if value}

    def whole_number(self, name: str, *, most: int) -> int:
        """A number from the query, at most `most`; 0 if it is missing or anything else."""
        text = self.query.get(name, "")
        return min(int(text), most) if text.isascii() and text.isdecimal() and len(text) < 9 else 0

    @property
    def user_id(self) -> str | None:
        """Whose data to show: the visitor's; for one who sees all, the selected user's, or None for everyone's."""
        return self.query.get("user") if self.visitor.sees_all else self.visitor.user_id

    @property
    def reach(self) -> str | None:
        """Whose data may be accessed by id: the visitor's, or None for anyone's."""
        return None if self.visitor.sees_all else self.visitor.user_id

    @property
    def base_url(self) -> str:
        """The base URL for API clients."""
        settings, host = self.services.settings, self.request.headers.get("host", "")
        # The Host header is shown inside commands to copy, so it must not contain anything else.
        if not _HOST.fullmatch(host):
            host = f"{settings.host}:{settings.port}"
        return f"{'https' if is_https(self.request) else 'http'}://{host}/v1"

    async def form(self) -> Mapping[str, str]:
        """Parses the submitted form. Raises APIError 413."""
        return await read_form(self.request)

    async def page(self, template: str, *, status: int = 200, **values: Any) -> Response:
        """Renders a page in a thread."""
        values |= {"visit": self, "visitor": self.visitor, "here": self.request.url.path}
        return await self.pages.response(self.request, template, values, status=status)


Handler = Callable[[Visit], Awaitable[Response]]


class Pages:
    """Renders the pages of one process, a few at a time."""

    def __init__(self) -> None:
        self._making = asyncio.Semaphore(_MAKING)
        self._waiting = 0

    async def response(
        self, request: Request[State], template: str, values: dict[str, Any], *, status: int = 200
    ) -> Response:
        """Renders a page, or 304 if the browser already has it. Raises APIError 503."""
        body, etag = await self.work(lambda: rendered(template, values))
        if status == 200 and request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=page_headers() | {"etag": etag})
        headers = page_headers() | {"etag": etag}
        return Response(body, status_code=status, media_type="text/html; charset=utf-8", headers=headers)

    async def work(self, work: Callable[[], T]) -> T:
        """Runs a function that takes milliseconds in a thread. Raises APIError 503 if too many calls are waiting."""
        if self._waiting >= _WAITING_MAX:
            raise APIError("Too many pages are being rendered; try again.", status=503, headers={"Retry-After": "1"})
        self._waiting += 1
        try:
            async with self._making:
                return await asyncio.get_running_loop().run_in_executor(_threads, work)
        finally:
            self._waiting -= 1


class Page:
    """The ASGI endpoint of a page: finds the visitor, rejects other sites' forms, and shows errors as pages."""

    def __init__(self, pages: Pages, *, get: Handler | None = None, post: Handler | None = None) -> None:
        self._pages = pages
        self._handlers = {name: handler for name, handler in (("GET", get), ("POST", post)) if handler is not None}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request: Request[State] = Request(scope, receive, send)
        visitor = None
        try:
            visitor = await find_visitor(request)
            if visitor is not None and visitor.has_key:
                current_caller.set(partial(str, visitor.user_id))
            response = await self._answer(request, visitor)
        except APIError as exc:
            response = await error_page(self._pages, request, exc, visitor)
        if visitor is not None and visitor.is_admin:
            _note(request, visitor, response)
        await response(scope, receive, send)

    async def _answer(self, request: Request[State], visitor: Visitor | None) -> Response:
        handler = self._handlers.get("GET" if request.method == "HEAD" else request.method)
        if handler is None:
            allowed = {"Allow": ", ".join(self._handlers)}
            raise APIError("This page does not support this method.", status=405, headers=allowed)
        if request.method == "POST" and is_foreign(request):
            raise foreign_form()
        if visitor is None:
            return _to_login(request)
        if not all(_ID.fullmatch(value) for value in request.path_params.values()):
            raise NotFoundError("The address is wrong, or what it showed was deleted.")
        return await handler(Visit(request, visitor, self._pages))


def _note(request: Request[State], visitor: Visitor, response: Response) -> None:
    """Writes admin requests to the audit log, except automatic refreshes."""
    if LIVE_HEADER in request.headers:
        return
    audit.info(
        "admin key %s: %s %s for %s: %s",
        visitor.key_id,
        request.method,
        ascii(request.url.path)[1:-1],
        ascii(request.query_params.get("user") or "everyone"),
        response.status_code,
    )


def foreign_form() -> APIError:
    """403: the form was submitted from another site."""
    return APIError("This form was submitted from another site.", status=403)


def _to_login(request: Request[State]) -> Response:
    if request.headers.get("sec-fetch-site") == "cross-site" and request.method == "GET":
        return Response(_ONCE_MORE, media_type="text/html; charset=utf-8", headers=page_headers())
    target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    if request.method != "GET" or target == "/ui":
        return see_other("/ui/login")
    return see_other(f"/ui/login?next={quote(target, safe='', errors='replace')}")


def see_other(address: str) -> Response:
    """Redirects to another page of ours."""
    return RedirectResponse(address, status_code=303, headers=page_headers())


def raw(content: bytes | str, *, media_type: str, **headers: str) -> Response:
    """A user-supplied text or image, with headers that disable active content."""
    return Response(content, media_type=media_type, headers=raw_headers() | headers)


async def error_page(pages: Pages, request: Request[State], exc: APIError, visitor: Visitor | None) -> Response:
    """The error page."""
    headings = {404: "There is no such page", 403: "Not allowed", 429: "Too many requests", 503: "Not available now"}
    values = {
        "visitor": visitor,
        "here": request.url.path,
        "status": exc.status,
        "heading": headings.get(exc.status, "The request failed"),
        "words": exc.message,
    }
    body, _ = rendered("error.html", values)  # bypasses the queue, which may be full
    headers = page_headers() | (exc.headers or {})
    return Response(body, status_code=exc.status, media_type="text/html; charset=utf-8", headers=headers)


async def read_form(request: Request[State]) -> Mapping[str, str]:
    """Parses a submitted form. Raises APIError 413."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _FORM_BYTES_MAX:
            raise too_large(_FORM_BYTES_MAX)
    try:
        pairs = parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=32)
    except ValueError as exc:
        raise APIError("The form has too many fields.", status=400) from exc
    return dict(pairs)


def day_of(text: str | None) -> str | None:
    """A date in the format of HTML date fields. Raises APIError 400."""
    if text is None:
        return None
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError as exc:
        raise APIError("A date must be written like 2026-11-27.", status=400) from exc


async def not_found(visit: Visit) -> Response:
    """Handles all other paths below /ui."""
    if visit.request.url.path == "/ui/":
        return see_other("/ui")
    raise NotFoundError("The address is wrong, or what it showed was deleted.")
