"""Reads a request's user, path and query parameters; every invalid value is a 400 that names it."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request

from proxy.access.attribution import checked_id
from proxy.access.caller import ANYONE, Caller, acting_user, owner_of
from proxy.errors import InvalidRequestError, NotFoundError
from proxy.history.positions import Order
from proxy.services import Services, State
from proxy.storage.page import Page
from proxy.storage.queries.sessions import RequestedId
from proxy.wire.headers import Headers
from proxy.wire.surrogates import is_encodable

ROLES = ("user", "assistant", "system", "developer", "tool", "function")

# Lists this long are read and sent in pieces of about a megabyte.
_LIMIT_MAX = 1000
# The maximum in OpenAI's API reference.
_OPENAI_LIMIT_MAX = 100
# The largest range in which JSON numbers are exact everywhere (RFC 8259 §6); SQLite takes 64 bits.
_OFFSET_MAX = 2**53
_BOOLEANS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
# An unescaped "+" in a query string is decoded as a space.
_UNESCAPED_OFFSET = re.compile(r"(T\S*) (\d\d:?\d\d)$")

Values = Mapping[str, Any]


# --- user and ids


def services_of(request: Request[State]) -> Services:
    """The shared services."""
    return request.state["services"]


def caller_of(request: Request[State]) -> Caller:
    """The caller of the request."""
    caller: Caller = request.scope["state"].get("caller", ANYONE)
    return caller


def visible_user(request: Request[State]) -> str | None:
    """The user whose data this request by id may access; None: any user's."""
    return acting_user(caller_of(request), _headers(request))


def named_user(request: Request[State], name: str | None = None) -> str:
    """The user whose list is requested, or whose session is created."""
    return owner_of(caller_of(request), _headers(request), named=name)


def session_id_of(request: Request[State]) -> str:
    """The session id in the path, as it is stored. Raises NotFoundError if it is not a valid id."""
    try:
        requested = RequestedId(checked_id(request.path_params["session_id"], param="session_id"))
    except InvalidRequestError as exc:
        # No session can have this id, so there is none: 404 and not 400.
        raise NotFoundError("No such session.") from exc
    requested.owner_id = named_user(request)
    return requested


def _headers(request: Request[State]) -> Headers:
    headers: Headers = request.scope["headers"]
    return headers


# --- the query


def page_of(request: Request[State]) -> Page:
    """Parses `limit`, `offset` and `after`."""
    query = request.query_params
    return Page(
        limit=integer(query, "limit", default=50, least=1, most=_LIMIT_MAX),
        offset=integer(query, "offset", default=0, least=0, most=_OFFSET_MAX),
        after=text(query, "after"),
    )


def numbered_page_of(request: Request[State]) -> tuple[int, Page]:
    """Parses `page` (from 1) and `size`."""
    query = request.query_params
    number = integer(query, "page", default=1, least=1, most=_OFFSET_MAX // _LIMIT_MAX)
    size = integer(query, "size", default=20, least=1, most=_LIMIT_MAX)
    return number, Page(limit=size, offset=(number - 1) * size)


def openai_page_of(request: Request[State]) -> Page:
    """Parses `limit` and `after` as in OpenAI's lists."""
    query = request.query_params
    limit = integer(query, "limit", default=20, least=0, most=_OPENAI_LIMIT_MAX)  # OpenAI documents no minimum
    return Page(limit=limit, after=text(query, "after"))


def order_of(request: Request[State], *, default: Order = "asc") -> Order:
    """Parses `order`."""
    order = request.query_params.get("order", default)
    if order not in ("asc", "desc"):
        raise InvalidRequestError("order must be asc or desc.", param="order")
    return "desc" if order == "desc" else "asc"


def message_format(request: Request[State]) -> str | None:
    """Parses `format`: the message shape."""
    form = request.query_params.get("format")
    if form not in (None, "openai", "responses", "anthropic"):
        raise InvalidRequestError("format must be openai, responses or anthropic, or omitted.", param="format")
    return form


def flag(request: Request[State], name: str) -> bool:
    """Parses a boolean query parameter; False if omitted."""
    value = request.query_params.get(name, "false")
    if value.lower() not in _BOOLEANS:
        raise InvalidRequestError(f"{name} must be true or false.", param=name)
    return _BOOLEANS[value.lower()]


def moment(request: Request[State], name: str) -> str | None:
    """Parses a point in time into its stored form; without an offset it is UTC."""
    value = request.query_params.get(name)
    if value is None:
        return None
    try:
        given = datetime.fromisoformat(_UNESCAPED_OFFSET.sub(r"\1+\2", value))
        # Stored times are UTC and compared as text, so all must have the same form.
        given = given.replace(tzinfo=UTC) if given.tzinfo is None else given.astimezone(UTC)
    except (ValueError, OverflowError) as exc:
        message = f"{name} must be an ISO 8601 point in time, such as 2026-11-22T09:58:54Z."
        raise InvalidRequestError(message, param=name) from exc
    return given.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


def integer(query: Mapping[str, str], name: str, *, default: int, least: int, most: int) -> int:
    value = query.get(name)
    if value is None:
        return default
    # `int()` alone would accept "+5", "1_000" and other scripts' digits, and takes long for thousands of digits.
    if re.fullmatch(r"[0-9]{1,18}", value) is None or not least <= int(value) <= most:
        raise InvalidRequestError(f"{name} must be a whole number from {least} to {most}.", param=name)
    return int(value)


def text(values: Values, name: str) -> str | None:
    """A string that the database can store; None if omitted."""
    value = values.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not value or "\0" in value or not is_encodable(value):
        raise InvalidRequestError(f"{name} must be a non-empty string.", param=name)
    return value
