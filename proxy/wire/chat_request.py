"""The body of a chat request: read as upstream reads it, and changed in one place without touching a byte elsewhere.

Only the usage of a stream is asked for. All else, from duplicate keys to the spelling of numbers, stays as the caller
sent it.
"""

import json
import re
from typing import Any

from proxy.wire import json_text

_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],:]|[^\s"{}\[\],:]+', re.DOTALL)
_OPENING = frozenset({b"{", b"["})
_CLOSING = frozenset({b"}", b"]"})


def parse(body: bytes) -> dict[str, Any] | None:
    """The JSON object of a body, or None where it is none: upstream says then what is wrong with it."""
    try:
        value = json_text.loads(body)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def asks_for_usage(request: dict[str, Any]) -> bool:
    """Whether the caller of a stream wants its usage."""
    options = request.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def may_ask_for_usage(request: dict[str, Any]) -> bool:
    """Whether it is a stream whose options leave room to ask for the usage on the proxy's behalf."""
    options = request.get("stream_options")
    return request.get("stream") is True and (options is None or isinstance(options, dict))


def with_usage(body: bytes, request: dict[str, Any]) -> bytes:
    """The body with `stream_options.include_usage`, and without the usage in every chunk, which goes with it."""
    if "stream_options" not in request and b"\0" not in body and (head := body.rstrip())[-1:] == b"}":
        return head[:-1] + b',"stream_options":{"include_usage":true}}'
    options = {**(request.get("stream_options") or {}), "include_usage": True}
    options.pop("continuous_usage_stats", None)
    return _edited(body, request, {"stream_options": options})


def _edited(body: bytes, request: dict[str, Any], changes: dict[str, Any]) -> bytes:
    """The body with some top-level members replaced, or left out where the change is None."""
    parts = members(body)
    if parts is None:  # UTF-16 or the like, which Python's json reads
        kept = {key: value for key, value in {**request, **changes}.items() if value is not None or key not in changes}
        return json.dumps(kept).encode()
    texts = [text for key, text in parts if key not in changes]
    texts += [f'"{key}":{json_text.dumps(value)}'.encode() for key, value in changes.items() if value is not None]
    return b"{" + b",".join(texts) + b"}"


def members(body: bytes) -> list[tuple[str, bytes]] | None:
    """Key and raw text (key, colon, value) of each top-level member; None where the bytes are not UTF-8 JSON."""
    start = body.find(b"{")
    if start < 0 or b"\0" in body:
        return None
    found: list[tuple[str, bytes]] = []
    depth = 0
    key_span: tuple[int, int] | None = None
    for token in _TOKEN.finditer(body, start):
        text = token.group()
        if text in _OPENING:
            depth += 1
        elif depth == 1 and text in (b",", b"}"):
            if key_span is not None:
                key = json_text.loads(body[slice(*key_span)])
                found.append((key, body[key_span[0] : token.start()].rstrip()))
            key_span = None
            depth -= text == b"}"
        elif text in _CLOSING:
            depth -= 1
        elif depth == 1 and key_span is None:
            key_span = token.span()
    return found
