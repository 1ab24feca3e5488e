"""Reads and validates the JSON bodies of the session and history routes: every invalid value is a 400 that names it."""

from functools import partial
from typing import Any

from starlette.requests import Request

from proxy.access.attribution import checked_id
from proxy.downstream.request_body import DepartedError, read_body
from proxy.errors import APIError, InvalidRequestError
from proxy.history.sessions import NewMessage, SessionPatch
from proxy.routes.large_bodies import off_the_loop, refuse_too_many_values
from proxy.routes.parameters import ROLES, Values, services_of, text
from proxy.services import State
from proxy.storage.idempotency import IdempotencyKey
from proxy.storage.idempotency import idempotency_key as make_idempotency_key
from proxy.wire import json_text

_TITLE_LENGTH_MAX = 500
# Far above any message; the sums of sessions and users stay within SQLite's 64-bit integers.
_TOKENS_MAX = 2**31
# Metadata is read with every row of a list, so a page of 1,000 could otherwise have any size.
_METADATA_BYTES_MAX = 64 * 1024
# Limits of OpenAI's metadata.
_PAIRS_MAX = 16
_PAIR_KEY_LENGTH_MAX = 64
_PAIR_VALUE_LENGTH_MAX = 512
_NESTING_MAX = 200  # serializable by json, with room for the response around it
# Keys of a message that are our metadata and not part of the OpenAI message.
_OUR_KEYS = frozenset(
    {"message_id", "session_id", "parent_id", "exchange_id", "model", "tokens", "metadata", "status", "siblings"}
    | {"created_at"}
)


async def read_object(request: Request[State]) -> Values:
    """Reads the request body as a JSON object."""
    raw = await _read_body(request)
    return await off_the_loop(partial(_object, raw), size=len(raw))


def idempotency_key(request: Request[State], given: Values, user_id: str | None) -> IdempotencyKey | None:
    """The idempotency key of a request with an `Idempotency-Key` header."""
    sent = request.headers.get("idempotency-key")
    if sent is None:
        return None
    # The parsed value and not the bytes: a retry may serialize the same object with other white space.
    body = json_text.encoded(given)
    return make_idempotency_key(user_id or "", request.scope["path"], sent, body=body)


async def read_optional_object(request: Request[State]) -> Values:
    """Like `read_object`, but the body may be empty."""
    raw = await _read_body(request)
    return await off_the_loop(partial(_object, raw), size=len(raw)) if raw.strip() else {}


async def _read_body(request: Request[State]) -> bytes:
    settings = services_of(request).settings
    try:
        body = await read_body(request.receive, limit_bytes=settings.body_limit_bytes)
    except DepartedError as exc:
        raise APIError("The body is incomplete.", status=400, type_="invalid_request_error") from exc
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


def title(values: Values) -> str | None:
    """A session's title; None if omitted."""
    value = text(values, "title")
    if value is not None and len(value) > _TITLE_LENGTH_MAX:
        raise InvalidRequestError(f"title must be at most {_TITLE_LENGTH_MAX} characters long.", param="title")
    return value


def external_id(values: Values) -> str | None:
    """The client's own session id; None if omitted."""
    value = values.get("session_id")
    return None if value is None else checked_id(value, param="session_id")


def change(values: Values) -> SessionPatch:
    """The changes to apply to a session."""
    is_active = values.get("is_active")
    if is_active is not None and not isinstance(is_active, bool):
        raise InvalidRequestError("is_active must be true or false.", param="is_active")
    return SessionPatch(title=title(values), is_active=is_active, metadata=_metadata(values))


def new_message(values: Values) -> NewMessage:
    """The message to store."""
    message = {key: value for key, value in values.items() if key not in _OUR_KEYS}
    if message.get("role") not in ROLES:
        raise InvalidRequestError(f"role must be one of {', '.join(ROLES)}.", param="role")
    _check_content(message)
    return NewMessage(message=message, model=text(values, "model"), tokens=_tokens(values), metadata=_metadata(values))


def _check_content(message: Values) -> None:
    calls = message.get("tool_calls")
    if calls is not None and not (isinstance(calls, list) and all(isinstance(call, dict) for call in calls)):
        raise InvalidRequestError("tool_calls must be a list of objects.", param="tool_calls")
    content = message.get("content")
    # OpenAI's format: a reply that only calls tools has null content.
    if content is None and message["role"] == "assistant" and calls:
        return
    is_parts = isinstance(content, list) and all(isinstance(part, dict) for part in content)
    if not (isinstance(content, str) or is_parts):
        raise InvalidRequestError("content must be a string or a list of parts.", param="content")


def _tokens(values: Values) -> int:
    tokens = values.get("tokens")
    if tokens is None:
        return 0
    # In Python, True is an int.
    if not isinstance(tokens, int) or isinstance(tokens, bool) or not 0 <= tokens <= _TOKENS_MAX:
        raise InvalidRequestError(f"tokens must be a whole number from 0 to {_TOKENS_MAX}.", param="tokens")
    return tokens


def _metadata(values: Values) -> str | None:
    value = values.get("metadata")
    if value is None:
        return None
    if not isinstance(value, dict):
        raise InvalidRequestError("metadata must be an object.", param="metadata")
    written = json_text.dumps(value)
    if len(written.encode()) > _METADATA_BYTES_MAX:
        raise InvalidRequestError(f"metadata must be at most {_METADATA_BYTES_MAX} bytes of JSON.", param="metadata")
    return written


async def read_metadata(request: Request[State]) -> dict[str, str]:
    """Reads OpenAI's `metadata` from a body that must contain only this key."""
    given = only(await read_object(request), "metadata")
    if "metadata" not in given:
        raise InvalidRequestError("only metadata can be set.", param="metadata")
    return pairs(given)


def pairs(values: Values) -> dict[str, str]:
    """OpenAI's `metadata`: a small object of strings; {} if null or omitted."""
    value = values.get("metadata")
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > _PAIRS_MAX:
        raise InvalidRequestError(f"metadata must be an object of at most {_PAIRS_MAX} pairs.", param="metadata")
    for key, text_ in value.items():
        if not isinstance(text_, str) or len(text_) > _PAIR_VALUE_LENGTH_MAX or len(key) > _PAIR_KEY_LENGTH_MAX:
            raise InvalidRequestError(
                f"metadata may have keys of at most {_PAIR_KEY_LENGTH_MAX} characters and strings of at most "
                f"{_PAIR_VALUE_LENGTH_MAX} as values.",
                param="metadata",
            )
    return value


def only(values: Values, *names: str) -> Values:
    """The body, if it contains no other keys than these."""
    for name in values:
        if name not in names:
            raise InvalidRequestError(f"{name} cannot be given here.", param=name)
    return values


def _nests_within(value: Any, levels: int) -> bool:
    if not isinstance(value, (dict, list)):
        return True
    if levels == 0:
        return False
    return all(_nests_within(item, levels - 1) for item in (value.values() if isinstance(value, dict) else value))
