"""Parses the body of a chat request as upstream does, and adds `include_usage` without changing any other byte.

Everything else, from duplicate keys to the spelling of numbers, stays as the caller sent it.
"""

import re
from itertools import islice
from typing import Any

from proxy.wire import json_text

_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],:]|[^\s"{}\[\],:]+', re.DOTALL)
# `stream_options` with a null or a flat object as value. May also match nested keys and text inside strings.
_OPTIONS = re.compile(rb'"stream_options"\s*:\s*(null|\{[^{}]*\})')
# Text inside strings can match as well, and each match costs a parse of the body. With more, usage is not requested.
_CANDIDATES_MAX = 8
_MARKED = "the options of the whole request"
_MARK = b'"' + _MARKED.encode() + b'"'
_OPENING = frozenset({b"{", b"["})
_CLOSING = frozenset({b"}", b"]"})


def parse(body: bytes) -> dict[str, Any] | None:
    """Parses a JSON object; None if the body is not one (upstream then reports the error)."""
    try:
        value = json_text.loads(body)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def may_ask_for_usage(request: dict[str, Any]) -> bool:
    """Whether this is a stream whose caller has not set `include_usage`."""
    options = request.get("stream_options")
    if request.get("stream") is not True:
        return False
    asked = options.get("include_usage") if isinstance(options, dict) else options
    return asked is None or (asked is False and options is not False)


def with_usage(body: bytes, request: dict[str, Any]) -> bytes | None:
    """Sets `stream_options.include_usage` and removes `continuous_usage_stats`, which would repeat it in every chunk.

    None if the options cannot be located at bounded cost: a large body is not tokenized in Python.
    """
    if body.find(0) >= 0:  # UTF-16, which Python's json accepts
        return None
    if "stream_options" not in request:
        head = body.rstrip()
        return head[:-1] + b',"stream_options":{"include_usage":true}}' if head[-1:] == b"}" else None
    options = {**(request.get("stream_options") or {}), "include_usage": True}
    options.pop("continuous_usage_stats", None)
    found = list(islice(_OPTIONS.finditer(body), _CANDIDATES_MAX + 1))
    if len(found) > _CANDIDATES_MAX:
        return None
    for match in reversed(found):
        marked = body[: match.start(1)] + _MARK + body[match.end(1) :]
        if (parse(marked) or {}).get("stream_options") == _MARKED:
            return body[: match.start(1)] + json_text.encoded(options) + body[match.end(1) :]
    return None


def members(body: bytes) -> list[tuple[str, bytes]] | None:
    """The raw text (key, colon, value) of each top-level member; None if the bytes are not UTF-8 JSON."""
    start = body.find(b"{")
    if start < 0 or body.find(0) >= 0:
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
