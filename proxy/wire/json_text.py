"""Parses and serializes JSON like upstream: orjson, or the standard library where orjson rejects or rounds."""

import json
from collections.abc import Iterable
from typing import Any

import orjson

# orjson turns integers beyond 64 bits into floats, and a run of digits this long may be one. `bytes.translate` is
# several times faster than a regular expression, and this runs on every body.
_DIGITS_TO_ZERO = bytes.maketrans(b"123456789", b"0" * 9)
# 2**63 has 19 digits.
_LONG_NUMBER = b"0" * 19
_PIECE_BYTES = 2**20

# Values nested deeper are kept as text: no real chat reaches this depth, and Python's recursion limit is close.
_DEEPEST = 800
_WRITTEN_DEPTH = 250  # orjson serializes at most 254 levels


def loads(text: bytes | str) -> Any:
    """Parses JSON; raises ValueError. Accepts what Python's `json` accepts (NaN, lone surrogates, UTF-16)."""
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if not _may_have_long_number(raw):
        try:
            return orjson.loads(raw)
        except orjson.JSONDecodeError:
            pass
    try:
        return json.loads(raw)
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc


def _may_have_long_number(raw: bytes) -> bool:
    """Searches in pieces: other threads can take the GIL between two of them."""
    if len(raw) <= _PIECE_BYTES:  # half the time of a loop over one piece, for every body
        # `in` would first try the bytes as a number, by an exception that takes longer than the search in a short body.
        return raw.translate(_DIGITS_TO_ZERO).find(_LONG_NUMBER) >= 0
    for start in range(0, len(raw), _PIECE_BYTES):
        if _LONG_NUMBER in raw[start : start + _PIECE_BYTES + len(_LONG_NUMBER)].translate(_DIGITS_TO_ZERO):
            return True
    return False


def parsed_object(text: bytes) -> dict[str, Any] | None:
    """Parses a JSON object; None if the text is not one, or is nested too deeply to be serialized again."""
    try:
        value = loads(text)
    except ValueError:
        return None
    if not isinstance(value, dict):
        return None
    opened = text.count(b"[") + text.count(b"{")
    return None if opened > _WRITTEN_DEPTH and not _is_shallow(value, _WRITTEN_DEPTH) else value


def object_of_reply(data: bytes) -> dict[str, Any] | None:
    """Parses upstream's JSON object tolerantly: invalid UTF-8 becomes U+FFFD, as in browsers, and control characters
    are allowed in strings. None as in `parsed_object`."""
    # Python's json accepts surrogates encoded in UTF-8, whose bytes start with 0xED.
    value = parsed_object(data) if data.find(b"\xed") < 0 or _is_utf_8(data) else None
    if value is not None:
        return value
    try:
        value = json.loads(data.decode("utf-8", "replace"), strict=False)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and _is_shallow(value, _WRITTEN_DEPTH) else None


def _is_utf_8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def copied(value: Any) -> Any:
    """A copy of a JSON value that can be modified."""
    if isinstance(value, dict):
        return {key: copied(each) for key, each in value.items()}
    return [copied(each) for each in value] if isinstance(value, list) else value


def dumps(value: Any) -> str:
    """Compact JSON, always encodable as UTF-8 (invalid characters are escaped).

    Values below 800 levels of nesting are written as strings that contain their JSON text.
    """
    return encoded(value).decode()


def encoded(value: Any) -> bytes:
    """Like `dumps`, in UTF-8."""
    try:
        return orjson.dumps(value, default=_as_text)
    except TypeError:  # large integers, lone surrogates, deep nesting
        text = json.dumps(value if _is_shallow(value) else _cut(value), separators=(",", ":"), default=_as_text)
        return text.encode()


def with_sorted_keys(value: Any) -> Any:
    """The value with sorted object keys; unchanged if orjson cannot serialize it."""
    try:
        return (
            orjson.loads(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)) if isinstance(value, dict | list) else value
        )
    except TypeError:
        return value


def _as_text(value: Any) -> str:
    """Converts bytes to text: a damaged row may hold bytes in a text column."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    raise TypeError(f"no JSON: {type(value).__name__}")


def stored(text: Any) -> Any:
    """Parses a stored JSON text. Never raises: invalid JSON is returned as text, null as None."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    try:
        return loads(text) if isinstance(text, str) else text
    except ValueError:
        return text


def stored_object(text: Any, column: str) -> dict[str, Any]:
    """Parses a stored JSON object; {} if empty. Any other value is returned as `{column: value}`."""
    value = stored(text)
    if isinstance(value, dict):
        return value
    return {} if value is None or value == "" else {column: value}


def _is_shallow(value: Any, depth: int = _DEEPEST) -> bool:
    """Whether the value has at most `depth` levels, so that the recursive `json` module can write it and read it."""
    level = [value]
    for _ in range(depth):
        level = [item for each in level for item in _items(each)]
        if not level:
            return True
    return False


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _cut(value: Any) -> Any:
    """A copy in which values nested too deeply are replaced by their JSON text."""
    copy = _shallow_copy(value)
    level = [copy]
    for _ in range(_DEEPEST - 2):
        below = []
        for container in level:
            for key, item in _pairs(container):
                if isinstance(item, dict | list):
                    container[key] = _shallow_copy(item)
                    below.append(container[key])
        level = below
    for container in level:
        for key, item in _pairs(container):
            if isinstance(item, dict | list):
                container[key] = _written(item)
    return copy


def _shallow_copy(value: Any) -> Any:
    return dict(value) if isinstance(value, dict) else list(value)


def _pairs(container: Any) -> list[tuple[Any, Any]]:
    return list(container.items() if isinstance(container, dict) else enumerate(container))


def _written(value: Any) -> str:
    """JSON text of a value of any depth, without recursion."""
    pieces: list[str] = []
    to_come: list[tuple[str, Any]] = [("value", value)]
    while to_come:
        kind, item = to_come.pop()
        if kind == "text":
            pieces.append(item)
        elif isinstance(item, dict):
            to_come.append(("text", "}"))
            for position, (key, each) in reversed(list(enumerate(item.items()))):
                name = ("," if position else "") + json.dumps(key) + ":"
                to_come += [("value", each), ("text", name)]
            pieces.append("{")
        elif isinstance(item, list):
            to_come.append(("text", "]"))
            for position, each in reversed(list(enumerate(item))):
                to_come += [("value", each), ("text", "," if position else "")]
            pieces.append("[")
        else:
            pieces.append(json.dumps(item))
    return "".join(pieces)
