"""The parts of a message other than its text: tool calls, images, files; plus search marks and indented JSON. Pure."""

import json
import re
from collections.abc import Iterator
from typing import Any

from proxy.wire import json_text

JSON = dict[str, Any]
Pieces = list[tuple[str, bool]]  # text, and whether it is a search hit

CHARACTERS = 20_000  # of a message or one part; the rest is on a separate page
_HITS_MAX = 200
_INDENTED_LEVELS = 24  # deeper JSON is written in one line, else most of the text would be indentation
_BLOB = re.compile(r"blob:sha256:([0-9a-f]{64})")
# Without SVG, which may contain scripts. Larger images are blobs and have a URL of their own.
_PICTURE = re.compile(r"data:image/(?:png|jpeg|gif|webp|avif);base64,[A-Za-z0-9+/=]{1,4096}")
_URL_SHOWN = 300


def marked(text: str, query: str | None) -> Pieces:
    """Splits a text into search hits and the text between them."""
    if not text:
        return []
    if not query:
        return [(text, False)]
    pieces: Pieces = []
    position = 0
    for count, match in enumerate(re.finditer(re.escape(query), text, re.IGNORECASE)):
        if count == _HITS_MAX:
            break
        pieces += [(text[position : match.start()], False), (match[0], True)]
        position = match.end()
    return [piece for piece in [*pieces, (text[position:], False)] if piece[0]]


def calls_of(others: JSON, query: str | None) -> Iterator[JSON]:
    calls = others.get("tool_calls")
    listed = calls if isinstance(calls, list) else []
    single = others.get("function_call")
    for call in [*listed[:100], *([{"function": single}] if isinstance(single, dict) else [])]:
        kind = call.get("type") if isinstance(call, dict) else None
        function = call.get(kind if kind == "custom" else "function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            arguments = marked(pretty(call, most=CHARACTERS), query)
            yield {"name": "?", "arguments": arguments, "has_hit": False, "id": ""}
            continue
        given = function.get("arguments", function.get("input"))
        arguments = marked(_readable(given)[:CHARACTERS], query)
        has_hit = any(is_hit for _, is_hit in arguments)
        name = text_of(function.get("name"))[:200] or "?"
        yield {"name": name, "arguments": arguments, "has_hit": has_hit, "id": text_of(call.get("id"))}


def _readable(arguments: Any) -> str:
    """A call's arguments; indented if they are JSON."""
    if not isinstance(arguments, str):
        return pretty(arguments, most=CHARACTERS)
    if len(arguments) > CHARACTERS:
        return arguments
    try:
        return pretty(json_text.loads(arguments), most=CHARACTERS)
    except ValueError:
        return arguments


def _parts(content: Any) -> Iterator[JSON]:
    for part in content[:200] if isinstance(content, list) else ():
        if isinstance(part, dict) and not isinstance(part.get("text"), str):
            yield part


def _url_of(part: JSON) -> str:
    image = part.get("image_url")
    given = image.get("url") if isinstance(image, dict) else image
    return given if isinstance(given, str) else ""


def pictures_of(content: Any, *, session_id: str, message_id: str) -> Iterator[str]:
    """URLs of a message's images: served by us, or data URLs. External images are never loaded."""
    for part in _parts(content):
        url = _url_of(part)
        if blob := _BLOB.fullmatch(url):
            yield f"/ui/s/{session_id}/m/{message_id}/blob/{blob[1]}"
        elif _PICTURE.fullmatch(url):
            yield url


def notes_of(content: Any) -> Iterator[str]:
    """Notes naming external images, which are never loaded."""
    for part in _parts(content):
        url = _url_of(part)
        if url and not (_BLOB.fullmatch(url) or _PICTURE.fullmatch(url)):
            yield f"External image, not loaded: {url[:_URL_SHOWN]}"


def kept_of(content: Any) -> Iterator[JSON]:
    """Parts that are neither text nor image, with their types: files, audio, items of a single dialect."""
    for part in _parts(content):
        if not _url_of(part):
            inner = next((part[name] for name in ("item", "block") if isinstance(part.get(name), dict)), part)
            name = text_of(inner.get("type"))[:100] or "of an unknown kind"
            yield {"name": name, "text": pretty(inner, most=CHARACTERS)}


def pretty(value: Any, *, most: int) -> str:
    """Indented JSON, truncated if long. Deep nesting is not indented, because the output grows with each level."""
    text = json.dumps(value, indent=2, ensure_ascii=False) if _is_shallow(value) else json_text.dumps(value)
    return text if len(text) <= most else text[:most] + f"\n… {len(text) - most} more characters"


def _is_shallow(value: Any) -> bool:
    level = [value]
    for _ in range(_INDENTED_LEVELS):
        level = [item for each in level for item in _items(each)]
    return not level


def _items(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def text_of(value: Any) -> str:
    """The value if it is a string, else ""."""
    return value if isinstance(value, str) else ""
