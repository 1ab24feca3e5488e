"""What makes two requests the same conversation for routing: free to compute, before any look-up. Pure."""

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

from proxy.wire.hash_chain import is_chained
from proxy.wire.message import is_message

# A key needs no more of the first message: two conversations that share a key share an engine, nothing else.
_TEXT_LENGTH = 4096
_DIGEST_BYTES = 16


def routing_key(user_id: str, *, named_id: str | None, messages: Iterable[Any]) -> bytes:
    """16 bytes: of the session id that the request names, else of the first message that is not a system message.

    The user is part of it, so two users' "chat-1" stay apart. Without an id and a message a user has one key.
    """
    if named_id is not None:
        return _digest("id", user_id, named_id)
    first = next((message for message in messages if is_message(message) and is_chained(message)), None)
    return _digest("text", user_id, "" if first is None else _beginning(first.get("content")))


def _beginning(content: Any) -> str:
    """The first characters of the text of any content."""
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
