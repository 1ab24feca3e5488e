"""JSON as upstream reads it: orjson where it is exact, the standard library where orjson refuses or would round."""

import json
from collections.abc import Iterable
from typing import Any

import orjson

# orjson turns integers beyond 64 bits into floats; a run of digits this long may be one. Translating first is several
# times faster than a regular expression, and this runs on every body.
_DIGITS_TO_ZERO = bytes.maketrans(b"123456789", b"0" * 9)
_LONG_NUMBER = b"0" * 19

# What is nested deeper is not kept: nothing that people say is, and Python's own limit is not far.
_DEEPEST = 800
_WRITTEN_DEPTH = 250  # orjson writes 254 levels


def loads(text: bytes | str) -> Any:
    """The value of a JSON text; raises ValueError. Takes what Python's `json` takes (NaN, lone surrogates, UTF-16)."""
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if _LONG_NUMBER not in raw.translate(_DIGITS_TO_ZERO):
        try:
            return orjson.loads(raw)
        except orjson.JSONDecodeError:
            pass
    try:
        return json.loads(raw)
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc


def parsed_object(text: bytes) -> dict[str, Any] | None:
    """The JSON object of a text; None where it is none, or nested so deeply that it could not be written again."""
    try:
        value = loads(text)
    except ValueError:
        return None
    if not isinstance(value, dict):
        return None
    opened = text.count(b"[") + text.count(b"{")
    return None if opened > _WRITTEN_DEPTH and not _is_shallow(value, _WRITTEN_DEPTH) else value


def copied(value: Any) -> Any:
    """A copy of a JSON value, whose objects and lists can be changed."""
    if isinstance(value, dict):
        return {key: copied(each) for key, each in value.items()}
    return [copied(each) for each in value] if isinstance(value, list) else value


def dumps(value: Any) -> str:
    """The compact JSON text of a value. Always encodable as UTF-8: what is not is escaped.

    A value nested beyond 800 levels is `null`.
    """
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # big integers, lone surrogates, deep nesting
        return json.dumps(value, separators=(",", ":")) if _is_shallow(value) else "null"


def _is_shallow(value: Any, depth: int = _DEEPEST) -> bool:
    """Whether `json`, which recurses, can write the value here and read it back anywhere else."""
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
