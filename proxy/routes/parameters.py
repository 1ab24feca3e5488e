"""What callers give to the session and history routes, checked: every wrong value is a 400 that names it."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

from starlette.requests import Request

from proxy.access.attribution import checked_id
from proxy.access.caller import ANYONE, Caller, acting_user, owner_of
from proxy.downstream.request_body import DepartedError, read_body
from proxy.errors import APIError, InvalidRequestError, NotFoundError
from proxy.history.branches import Order
from proxy.history.sessions import NewMessage, SessionPatch
from proxy.routes.large_bodies import off_the_loop, refuse_too_many_values
from proxy.services import Services, State
from proxy.storage.idempotency import IdempotencyKey
from proxy.storage.idempotency import idempotency_key as make_idempotency_key
from proxy.storage.page import Page
from proxy.storage.queries.sessions import RequestedId
from proxy.wire import json_text
from proxy.wire.headers import Headers

ROLES = ("user", "assistant", "system", "developer", "tool", "function")

_LIMIT_MAX = 1000
_OPENAI_LIMIT_MAX = 100
_OFFSET_MAX = 2**53
_TITLE_LENGTH_MAX = 500
_TOKENS_MAX = 2**31
_METADATA_BYTES_MAX = 64 * 1024
# What OpenAI's metadata may hold.
_PAIRS_MAX = 16
_PAIR_KEY_LENGTH_MAX = 64
_PAIR_VALUE_LENGTH_MAX = 512
_NESTING_MAX = 200  # what json can write again, with room for what a response puts around it
_BOOLEANS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
# The keys of a message that say what we know of it; they are not part of what is said.
_OUR_KEYS = frozenset(
    {"message_id", "session_id", "parent_id", "exchange_id", "model", "tokens", "metadata", "status", "siblings"}
    | {"created_at"}
)
# A "+" in a query is a space.
_UNESCAPED_OFFSET = re.compile(r"(T\S*) (\d\d:?\d\d)$")

Values = Mapping[str, Any]


# --- who and which


def services_of(request: Request[State]) -> Services:
    """What the handlers share."""
    return request.state["services"]


def caller_of(request: Request[State]) -> Caller:
    """Who is calling."""
    caller: Caller = request.scope["state"].get("caller", ANYONE)
    return caller


def visible_user(request: Request[State]) -> str | None:
    """Whose data this request by id may touch; None: any user's."""
    return acting_user(caller_of(request), _headers(request))


def named_user(request: Request[State], name: str | None = None) -> str:
    """The user whose list is asked for, or whose session is made."""
    return owner_of(caller_of(request), _headers(request), named=name)


def session_id_of(request: Request[State]) -> str:
    """The session id of the path, in the form it is stored in. One that cannot be stored is not found."""
    try:
        requested = RequestedId(checked_id(request.path_params["session_id"], param="session_id"))
    except InvalidRequestError as exc:
        raise NotFoundError("No such session.") from exc
    requested.owner_id = named_user(request)
    return requested


def _headers(request: Request[State]) -> Headers:
    headers: Headers = request.scope["headers"]
    return headers


# --- the query


def page_of(request: Request[State]) -> Page:
    """`limit`, `offset` and `after`."""
    query = request.query_params
    return Page(
        limit=integer(query, "limit", default=50, least=1, most=_LIMIT_MAX),
        offset=integer(query, "offset", default=0, least=0, most=_OFFSET_MAX),
        after=text(query, "after"),
    )


def numbered_page_of(request: Request[State]) -> tuple[int, Page]:
    """`page`, from 1, and `size`."""
    query = request.query_params
    number = integer(query, "page", default=1, least=1, most=_OFFSET_MAX // _LIMIT_MAX)
    size = integer(query, "size", default=20, least=1, most=_LIMIT_MAX)
    return number, Page(limit=size, offset=(number - 1) * size)


def openai_page_of(request: Request[State]) -> Page:
    """`limit` and `after` as OpenAI's lists have them."""
    query = request.query_params
    limit = integer(query, "limit", default=20, least=0, most=_OPENAI_LIMIT_MAX)  # OpenAI's gives no minimum
    return Page(limit=limit, after=text(query, "after"))


def order_of(request: Request[State], *, default: Order = "asc") -> Order:
    """`order`."""
    order = request.query_params.get("order", default)
    if order not in ("asc", "desc"):
        raise InvalidRequestError("order is asc or desc.", param="order")
    return "desc" if order == "desc" else "asc"


def message_format(request: Request[State]) -> str | None:
    """The shape in which messages are asked for."""
    form = request.query_params.get("format")
    if form not in (None, "openai", "responses", "anthropic"):
        raise InvalidRequestError("format is openai, responses or anthropic, or left out.", param="format")
    return form


def flag(request: Request[State], name: str) -> bool:
    """A boolean of the query, false where it is left out."""
    value = request.query_params.get(name, "false")
    if value.lower() not in _BOOLEANS:
        raise InvalidRequestError(f"{name} is true or false.", param=name)
    return _BOOLEANS[value.lower()]


def moment(request: Request[State], name: str) -> str | None:
    """A point in time of the query, as it is stored; without an offset it is UTC."""
    value = request.query_params.get(name)
    if value is None:
        return None
    try:
        given = datetime.fromisoformat(_UNESCAPED_OFFSET.sub(r"\1+\2", value))
        given = given.replace(tzinfo=UTC) if given.tzinfo is None else given.astimezone(UTC)
    except (ValueError, OverflowError) as exc:
        message = f"{name} is an ISO 8601 point in time, such as 2026-11-22T09:58:54Z."
        raise InvalidRequestError(message, param=name) from exc
    return given.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


def integer(query: Mapping[str, str], name: str, *, default: int, least: int, most: int) -> int:
    value = query.get(name)
    if value is None:
        return default
    if re.fullmatch(r"[0-9]{1,18}", value) is None or not least <= int(value) <= most:
        raise InvalidRequestError(f"{name} is a whole number from {least} to {most}.", param=name)
    return int(value)


# --- the body


async def read_object(request: Request[State]) -> Values:
    """The JSON object of the request's body."""
    raw = await _read_body(request)
    return await off_the_loop(partial(_object, raw), size=len(raw))


def idempotency_key(request: Request[State], given: Values, user_id: str | None) -> IdempotencyKey | None:
    """What a retry is known by, if the caller sent an `Idempotency-Key`."""
    sent = request.headers.get("idempotency-key")
    if sent is None:
        return None
    body = json_text.dumps(given).encode()
    return make_idempotency_key(user_id or "", request.scope["path"], sent, body=body)


async def read_optional_object(request: Request[State]) -> Values:
    """The same, where the body may be left out."""
    raw = await _read_body(request)
    return await off_the_loop(partial(_object, raw), size=len(raw)) if raw.strip() else {}


async def _read_body(request: Request[State]) -> bytes:
    settings = services_of(request).settings
    try:
        body = await read_body(request.receive, limit_bytes=settings.body_limit_bytes)
    except DepartedError as exc:
        raise APIError("The body did not come whole.", status=400, type_="invalid_request_error") from exc
    await refuse_too_many_values(body, limit=settings.values_limit)
    return body


def _object(raw: bytes) -> Values:
    try:
        value = json_text.loads(raw)
    except ValueError as exc:
        raise InvalidRequestError("The body is not JSON.") from exc
    if not isinstance(value, dict):
        raise InvalidRequestError("The body is not a JSON object.")
    if not _nests_within(value, _NESTING_MAX):
        raise InvalidRequestError("The body is nested too deeply.")
    return value


def text(values: Values, name: str) -> str | None:
    """A string that the database can hold, where it is given."""
    value = values.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not value or "\0" in value or not _encodes(value):
        raise InvalidRequestError(f"{name} is a non-empty string.", param=name)
    return value


def title(values: Values) -> str | None:
    """A session's title, where it is given."""
    value = text(values, "title")
    if value is not None and len(value) > _TITLE_LENGTH_MAX:
        raise InvalidRequestError(f"title is at most {_TITLE_LENGTH_MAX} characters long.", param="title")
    return value


def external_id(values: Values) -> str | None:
    """The id that the caller made up for a session, where it is given."""
    value = values.get("session_id")
    return None if value is None else checked_id(value, param="session_id")


def change(values: Values) -> SessionPatch:
    """What is to be set on a session."""
    is_active = values.get("is_active")
    if is_active is not None and not isinstance(is_active, bool):
        raise InvalidRequestError("is_active is true or false.", param="is_active")
    return SessionPatch(title=title(values), is_active=is_active, metadata=_metadata(values))


def new_message(values: Values) -> NewMessage:
    """A message to be stored."""
    message = {key: value for key, value in values.items() if key not in _OUR_KEYS}
    if message.get("role") not in ROLES:
        raise InvalidRequestError(f"role is one of {', '.join(ROLES)}.", param="role")
    _check_content(message)
    return NewMessage(message=message, model=text(values, "model"), tokens=_tokens(values), metadata=_metadata(values))


def _check_content(message: Values) -> None:
    calls = message.get("tool_calls")
    if calls is not None and not (isinstance(calls, list) and all(isinstance(call, dict) for call in calls)):
        raise InvalidRequestError("tool_calls is a list of objects.", param="tool_calls")
    content = message.get("content")
    if content is None and message["role"] == "assistant" and calls:
        return
    is_parts = isinstance(content, list) and all(isinstance(part, dict) for part in content)
    if not (isinstance(content, str) or is_parts):
        raise InvalidRequestError("content is a string or a list of parts.", param="content")


def _tokens(values: Values) -> int:
    tokens = values.get("tokens")
    if tokens is None:
        return 0
    if not isinstance(tokens, int) or isinstance(tokens, bool) or not 0 <= tokens <= _TOKENS_MAX:
        raise InvalidRequestError(f"tokens is a whole number from 0 to {_TOKENS_MAX}.", param="tokens")
    return tokens


def _metadata(values: Values) -> str | None:
    value = values.get("metadata")
    if value is None:
        return None
    if not isinstance(value, dict):
        raise InvalidRequestError("metadata is an object.", param="metadata")
    written = json_text.dumps(value)
    if len(written.encode()) > _METADATA_BYTES_MAX:
        raise InvalidRequestError(f"metadata is at most {_METADATA_BYTES_MAX} bytes of JSON.", param="metadata")
    return written


async def read_metadata(request: Request[State]) -> dict[str, str]:
    """OpenAI's `metadata` from a body that has to hold it, and nothing else."""
    given = only(await read_object(request), "metadata")
    if "metadata" not in given:
        raise InvalidRequestError("metadata is what can be set.", param="metadata")
    return pairs(given)


def pairs(values: Values) -> dict[str, str]:
    """OpenAI's `metadata`: a few strings by name. Null and left out are none."""
    value = values.get("metadata")
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > _PAIRS_MAX:
        raise InvalidRequestError(f"metadata is an object of at most {_PAIRS_MAX} pairs.", param="metadata")
    for key, text_ in value.items():
        if not isinstance(text_, str) or len(text_) > _PAIR_VALUE_LENGTH_MAX or len(key) > _PAIR_KEY_LENGTH_MAX:
            raise InvalidRequestError(
                f"metadata has keys of at most {_PAIR_KEY_LENGTH_MAX} characters and strings of at most "
                f"{_PAIR_VALUE_LENGTH_MAX} as values.",
                param="metadata",
            )
    return value


def only(values: Values, *names: str) -> Values:
    """The body, which may hold nothing but these."""
    for name in values:
        if name not in names:
            raise InvalidRequestError(f"{name} cannot be given here.", param=name)
    return values


def _encodes(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _nests_within(value: Any, levels: int) -> bool:
    if not isinstance(value, (dict, list)):
        return True
    if levels == 0:
        return False
    return all(_nests_within(item, levels - 1) for item in (value.values() if isinstance(value, dict) else value))
