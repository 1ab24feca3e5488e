"""Chain hashes of messages: they recognise a conversation when a client sends its history again. Pure.

`h_0 = H(user)`, `h_i = H(h_{i-1}, canonical(message_i))`. Each stored message carries the hash of itself and its
ancestors, so one look-up by hash finds where a conversation continues. System and developer messages are not chained:
clients rewrite them from turn to turn (date, memory, tools) within the same conversation.

Schema 8 and older compared replies exactly, including white space, the `<think>` block and the order of arguments.
The hash of such a reply, and of every message after it, therefore differs in an older database. `exact_chain` computes
these older hashes, so that its conversations are still found.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from proxy.wire import json_text

UNCHAINED_ROLES = frozenset({"system", "developer"})
# 128 bits: no collision is to be expected, and each message and index entry holds one.
_DIGEST_BYTES = 16
_THINKING = frozenset({"thinking", "reasoning", "redacted_thinking"})
_THINK, _THINK_END = "<think>", "</think>"
_THOUGHTS_MAX = 1000  # a caller may send millions; no model does
_SPACE = re.compile(r"\s*")
_USUAL_LENGTH = 64  # of a user's id: callers choose it, and the cache lives as long as the process
_SHORT = 4096  # bytes that are copied sooner than hashed in two steps


def is_chained(message: Mapping[str, Any]) -> bool:
    """Whether the message takes part in the chain."""
    return message.get("role") not in UNCHAINED_ROLES


def has_reply(messages: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a history contains a reply. Without one it continues nothing: many conversations start with "hi"."""
    return any(message.get("role") == "assistant" for message in messages)


def root_hash(user_id: str) -> bytes:
    """The hash that the first message of a conversation is chained to."""
    return _root_hash(user_id) if len(user_id) > _USUAL_LENGTH else _usual_root_hash(user_id)


def _root_hash(user_id: str) -> bytes:
    # Per user: equal conversations of two users must never be found for each other.
    return _digest(b"user\0", user_id.encode("utf-8", "surrogatepass"))


_usual_root_hash = lru_cache(maxsize=256)(_root_hash)  # each chat needs it three times


def chain_hash(above: bytes, message: Mapping[str, Any]) -> bytes:
    """The hash of a chained message whose parent has the hash `above`."""
    return _digest(above, canonical(message))


def own_hash(message: Mapping[str, Any]) -> bytes:
    """The hash of an unchained message: of its own content only, and never equal to a chain hash."""
    return _digest(b"unlinked\0", canonical(message))


def chain(user_id: str, messages: Iterable[Mapping[str, Any]]) -> list[bytes]:
    """The hashes of the chained messages, in order."""
    return _chain(root_hash(user_id), messages, chain_hash)


def chain_below(above: bytes, messages: Iterable[Mapping[str, Any]]) -> list[bytes]:
    """Like `chain`, for messages below one with the hash `above`."""
    return _chain(above, messages, chain_hash)


def exact_chain(user_id: str, messages: Sequence[Mapping[str, Any]]) -> list[bytes] | None:
    """The hashes that schema 8 computed for the same messages; None if they equal those of `chain`."""
    if not any(_is_rewritten(message) for message in messages):
        return None
    return _chain(root_hash(user_id), messages, exact_chain_hash)


def exact_chain_hash(above: bytes, message: Mapping[str, Any]) -> bytes:
    """The hash of a chained message as schema 8 computed it."""
    return _digest(above, exact(message))


def canonical(message: Mapping[str, Any]) -> bytes:
    """The message without the differences that clients introduce when they send it back.

    Equal: a string and a single text part; null, missing and empty content; tool call arguments with the same JSON
    value, and empty ones and {}. Ignored: reasoning, null keys, a reply's name, unknown keys. In a reply's text,
    surrounding white space, leading `<think>` blocks, thinking parts and CRLF versus LF are ignored as well.
    """
    content = message.get("content")
    if _is_reply(message):
        said = _without_thinking(content)
        text = _reply_text(_content(said))
        content = said if text is None else text
    return _canonical(message, content, _arguments)


def exact(message: Mapping[str, Any]) -> bytes:
    """Like `canonical`, but keeps a reply's text and arguments unchanged."""
    return _canonical(message, message.get("content"), _value)


def _canonical(message: Mapping[str, Any], content: Any, read: Callable[[Any], Any]) -> bytes:
    """The canonical form with this content; `read` parses the arguments of a call."""
    role = message.get("role")
    if len(message) == 2 and "content" in message and isinstance(role, str) and isinstance(content, str):
        # fast path for most messages; same result as below
        return json_text.encoded([role, content, None, None, [], None, None])
    is_reply = role == "assistant"
    parts = [
        role,
        _content(content),
        message.get("tool_call_id"),
        None if is_reply else message.get("name"),
        [_call(call, read) for call in _list(message.get("tool_calls"))],
        _function(message.get("function_call"), read),
        message.get("refusal") or None,
    ]
    return json_text.encoded(parts)


def _chain(
    above: bytes, messages: Iterable[Mapping[str, Any]], hash_below: Callable[[bytes, Mapping[str, Any]], bytes]
) -> list[bytes]:
    hashes = []
    for message in messages:
        if is_chained(message):
            above = hash_below(above, message)
            hashes.append(above)
    return hashes


def _is_reply(message: Mapping[str, Any]) -> bool:
    return message.get("role") == "assistant"


def _is_rewritten(message: Mapping[str, Any]) -> bool:
    """Whether `canonical` changes a reply."""
    return (
        _is_reply(message) and (len(message) > 2 or _changes_content(message)) and canonical(message) != exact(message)
    )


def _changes_content(message: Mapping[str, Any]) -> bool:
    content = _content(message.get("content"))
    return not isinstance(content, str) or _reply_text(content) != content


def _reply_text(content: Any) -> str | None:
    """A reply's text for comparison; None if its content is not text.

    Some chat templates put the opening `<think>` into the prompt, so the reply starts inside the block.
    """
    if not isinstance(content, str):
        return None
    text = content.replace("\r\n", "\n").strip()
    end = text.find(_THINK_END)
    if end < 0 or text.find(_THINK, len(_THINK) if text.startswith(_THINK) else 0, end) >= 0:
        return text
    return text[_after_thoughts(text, end) :]


def _after_thoughts(text: str, end: int) -> int:
    """Where the reply begins after the thought that ends at `end`, and after the thoughts that follow it.

    Works with positions: cutting the text after each of many thoughts would take quadratic time.
    """
    start = _after_space(text, end + len(_THINK_END))
    for _ in range(_THOUGHTS_MAX):
        if not text.startswith(_THINK, start) or (end := text.find(_THINK_END, start)) < 0:
            break
        start = _after_space(text, end + len(_THINK_END))
    return start


def _after_space(text: str, start: int) -> int:
    if not text[start : start + 1].isspace():
        return start
    found = _SPACE.match(text, start)
    return found.end() if found else start


def _without_thinking(content: Any) -> Any:
    """A reply's content without thinking parts, which clients drop when they send it back."""
    if not isinstance(content, list):
        return content
    return [part for part in content if not (isinstance(part, dict) and part.get("type") in _THINKING)]


def _digest(start: bytes, rest: bytes) -> bytes:
    if len(rest) <= _SHORT:
        return blake2b(start + rest, digest_size=_DIGEST_BYTES).digest()
    digest = blake2b(start, digest_size=_DIGEST_BYTES)
    digest.update(rest)
    return digest.digest()


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _content(content: Any) -> Any:
    if isinstance(content, list):
        parts = [_part(part) for part in content]
        return parts[0] if len(parts) == 1 and isinstance(parts[0], str) else parts or ""
    return "" if content is None else content


def _part(part: Any) -> Any:
    """A text part as a string; other parts without nulls, defaults, and hints that move between turns."""
    if not isinstance(part, dict):
        return [part]
    if part.get("type") in ("text", "input_text", "output_text") and isinstance(part.get("text"), str):
        return part["text"]
    # Clients move Anthropic's cache hints to the newest messages with each turn.
    kept = {key: value for key, value in part.items() if value is not None and key != "cache_control"}
    image = kept.get("image_url")
    if isinstance(image, dict):
        kept["image_url"] = {k: v for k, v in image.items() if v is not None and (k, v) != ("detail", "auto")}
    return dict(sorted(kept.items()))


def _call(call: Any, read: Callable[[Any], Any]) -> Any:
    if not isinstance(call, dict):
        return call
    return [call.get("id"), _function(call.get("function"), read), call.get("custom")]


def _function(function: Any, read: Callable[[Any], Any]) -> Any:
    if not isinstance(function, dict):
        return function or None
    return [function.get("name"), read(function.get("arguments"))]


def _value(arguments: Any) -> Any:
    if isinstance(arguments, str):
        with suppress(ValueError):
            return json_text.loads(arguments)
    return arguments


def _arguments(arguments: Any) -> Any:
    """A call's arguments as clients that parse them send them back: keys in any order, {} for none."""
    value = _value(arguments)
    return {} if value is None or value == "" else json_text.with_sorted_keys(value)
