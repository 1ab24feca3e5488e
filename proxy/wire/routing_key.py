"""Computes the routing key of a conversation from its request alone, without a database look-up. Pure."""

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

from proxy.wire.hash_chain import is_chained
from proxy.wire.message import is_message

# A prefix is enough: if two conversations share a key, they only share an upstream.
_TEXT_LENGTH = 4096
_DIGEST_BYTES = 16  # 32 hexadecimal digits in X-Session-Id


def routing_key(user_id: str, *, named_id: str | None, messages: Iterable[Any]) -> bytes:
    """A 16-byte key: of the session id in the request, else of the first message that is not a system message.

    It includes the user, so that two users' "chat-1" differ. Requests with neither id nor message share one key per
    user.
    """
    if named_id is not None:
        return _digest("id", user_id, named_id)
    for message in messages:
        if is_message(message) and is_chained(message):
            return _digest("text", user_id, _beginning(message.get("content")))
    return _digest("text", user_id, "")


def _beginning(content: Any) -> str:
    """The first characters of a content's text."""
    if isinstance(content, str):
        return content[:_TEXT_LENGTH]
    text = ""
    for part in content[:_TEXT_LENGTH] if isinstance(content, list) else ():
        piece = part.get("text") if isinstance(part, dict) else part
        if isinstance(piece, str):
            text += piece[:_TEXT_LENGTH]
        if len(text) >= _TEXT_LENGTH:
            break
    return text[:_TEXT_LENGTH]


def _digest(*parts: str) -> bytes:
    data = "\0".join(parts).encode("utf-8", "surrogatepass")
    return blake2b(data, digest_size=_DIGEST_BYTES).digest()
