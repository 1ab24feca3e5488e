"""Whose a chat is, and which session it says it belongs to (spec §5). Pure."""

import re
from collections.abc import Mapping
from typing import Any

from proxy.errors import InvalidRequestError
from proxy.storage.queries import DEFAULT_USER_ID
from proxy.wire.headers import Headers, text_of, value_of

_ID = re.compile(r"[\x21-\x7e]{1,128}")
_METADATA_KEYS = ("session_id", "thread_id", "conversation_id")
_CONVERSATION_PREFIX = "conv_"


def user_of(headers: Headers, request: Mapping[str, Any]) -> str:
    """The user of a chat where no key says it: the first of header, body, and the one that is always there."""
    named = user_header(headers)
    if named is not None:
        return named
    for key in ("safety_identifier", "user"):
        value = request.get(key)
        if isinstance(value, str) and value and _is_text(value):
            return value
    return DEFAULT_USER_ID


def user_header(headers: Headers) -> str | None:
    """The user that `X-User-Id` names."""
    value = value_of(headers, b"x-user-id")
    return text_of(value) if value else None


def session_of(
    headers: Headers, request: Mapping[str, Any], *, vendor_headers: tuple[bytes, ...]
) -> tuple[str, str] | None:
    """The session id a chat carries, and where: header, body, metadata or vendor. Raises InvalidRequestError."""
    given = dict(reversed(headers))  # the first of those that are repeated
    header = given.get(b"x-session-id")
    if header:
        return checked_id(text_of(header), param="X-Session-Id"), "header"
    if request.get("session_id") is not None:
        return checked_id(request["session_id"], param="session_id"), "body"
    metadata = request.get("metadata")
    if isinstance(metadata, dict):
        for key in _METADATA_KEYS:
            if metadata.get(key) is not None:
                return checked_id(metadata[key], param=f"metadata.{key}"), "metadata"
    for name in vendor_headers:
        value = given.get(name)
        if value:
            return checked_id(text_of(value), param=name.decode()), "vendor"
    return None


def checked_id(value: Any, *, param: str) -> str:
    """A session id as a client may give it; without the `conv_` that OpenAI's conversations put before it."""
    if not isinstance(value, str) or _ID.fullmatch(value) is None:
        raise InvalidRequestError("A session id is 1 to 128 visible ASCII characters.", param=param)
    return value.removeprefix(_CONVERSATION_PREFIX) or value


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
