"""Determines a chat's user and the session id it carries, from headers and body. Pure."""

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, TypeGuard

from proxy.errors import InvalidRequestError
from proxy.storage.queries.users import DEFAULT_USER_ID
from proxy.wire import json_text
from proxy.wire.headers import Headers, text_of, value_of
from proxy.wire.surrogates import is_encodable

# Visible ASCII, since the id is sent back in a header (`X-Session-Id`).
_ID = re.compile(r"[\x21-\x7e]{1,128}")
_METADATA_KEYS = ("session_id", "thread_id", "conversation_id")  # the first valid one counts
# Ids of OpenAI's conversations begin with it; a conversation is a session, reachable with and without the prefix.
_CONVERSATION_PREFIX = "conv_"
_SESSION = b"x-session-id"
# Such general names are an id only if the client says that it is Codex.
_CODEX_HEADERS = (b"session-id", b"session_id")
_OLD_CLAUDE_CODE = re.compile(r"user_.*_session_([0-9a-f-]{36})")


def user_of(headers: Headers, request: Mapping[str, Any]) -> str:
    """The user of a chat without a key: from the header, else from the body, else the default user."""
    named = user_header(headers)
    if named is not None:
        return named
    # OpenAI has deprecated `user` in favour of `safety_identifier`; older clients still send it.
    for key in ("safety_identifier", "user"):
        value = request.get(key)
        if isinstance(value, str) and value and is_encodable(value):
            return value
    return DEFAULT_USER_ID


def user_header(headers: Headers) -> str | None:
    """The user named by `X-User-Id`."""
    value = value_of(headers, b"x-user-id")
    return text_of(value) if value else None


def session_of(
    headers: Headers, request: Mapping[str, Any], *, vendor_headers: tuple[bytes, ...]
) -> tuple[str, str] | None:
    """The session id of a chat and its source: header, body, metadata or vendor. Raises InvalidRequestError.

    Only the header and the body's `session_id` must be valid ids. Metadata and other products' headers may contain any
    value; invalid ids there are ignored.
    """
    names = _session_headers(vendor_headers)
    given = {name: value for name, value in reversed(headers) if name in names}  # the first of repeated headers wins
    header = given.get(_SESSION)
    if header:
        return checked_id(text_of(header), param="X-Session-Id"), "header"
    if request.get("session_id") is not None:
        return checked_id(request["session_id"], param="session_id"), "body"
    metadata = request.get("metadata")
    if not isinstance(metadata, dict):
        metadata = {}
    if not (given or metadata):
        return None
    for key in _METADATA_KEYS:
        if is_id(metadata.get(key)):
            return _without_prefix(metadata[key]), "metadata"
    for value in _vendor_values(headers, given, metadata, vendor_headers):
        if is_id(value):
            return _without_prefix(value), "vendor"
    return None


@lru_cache(maxsize=8)
def _session_headers(vendor_headers: tuple[bytes, ...]) -> frozenset[bytes]:
    """All headers that may name a session."""
    return frozenset({_SESSION, *_CODEX_HEADERS, *vendor_headers})


def _vendor_values(
    headers: Headers, given: Mapping[bytes, bytes], metadata: Mapping[str, Any], vendor_headers: tuple[bytes, ...]
) -> Iterator[Any]:
    """Candidate session ids of other products, the most specific first."""
    for name in vendor_headers:
        if value := given.get(name):
            yield text_of(value)
    for name in _CODEX_HEADERS:
        if (value := given.get(name)) and _is_codex(headers):
            yield text_of(value)
    yield _claude_code_session(metadata.get("user_id"))


def _is_codex(headers: Headers) -> bool:
    return any((value_of(headers, name) or b"").lower().startswith(b"codex") for name in (b"originator", b"user-agent"))


def _claude_code_session(user_id: Any) -> Any:
    """The session in Claude Code's `metadata.user_id`: JSON text, or `user_…_account_…_session_…` in older versions."""
    if not isinstance(user_id, str):
        return None
    if (old := _OLD_CLAUDE_CODE.fullmatch(user_id)) is not None:
        return old[1]
    try:
        value = json_text.loads(user_id)
    except ValueError:
        return None
    return value.get("session_id") if isinstance(value, dict) else None


def is_id(value: Any) -> TypeGuard[str]:
    """Whether a value is a valid session id."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def checked_id(value: Any, *, param: str) -> str:
    """Validates a client's session id; removes the `conv_` prefix of OpenAI's conversations."""
    if not is_id(value):
        raise InvalidRequestError("A session id must be 1 to 128 visible ASCII characters.", param=param)
    return _without_prefix(value)


def _without_prefix(session_id: str) -> str:
    return session_id.removeprefix(_CONVERSATION_PREFIX) or session_id
