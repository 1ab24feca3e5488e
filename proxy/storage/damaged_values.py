"""Reads rows whose columns have values of a wrong type, which only damage or another program can have stored.

SQLite accepts any type in any column. A wrong value is converted to the closest valid one, so that a single bad row
does not break a list or an export. `stellarchat check` reports such rows.
"""

import logging
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

from proxy.storage.connection import Row

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Combinations of column types known to be valid. Cached, because checking each value is more expensive.
_KNOWN_MAX = 4096
_fields: dict[type, dict[str, tuple[type, ...]]] = {}
_sound: set[tuple[type, tuple[str, ...], tuple[type, ...]]] = set()


class Undecodable(str):
    """Stored text that is not valid UTF-8; each invalid byte is replaced by U+FFFD."""

    __slots__ = ()


def decoded(text: bytes) -> str:
    """Decodes stored bytes; never raises."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return Undecodable(text.decode("utf-8", "replace"))


def built(cls: type[T], row: Row) -> T:
    """Builds `cls` from a row; the field annotations give the expected types."""
    return cls(**sound(cls, row))


def sound(shape: type, row: Row) -> Row:
    """The row with each value of a wrong type replaced by the nearest; a class or TypedDict gives the types."""
    key = shape, tuple(row), tuple(map(type, row.values()))
    if key in _sound:
        return row
    fields = _fields_of(shape)
    if all(isinstance(value, fields[name]) for name, value in row.items()) and Undecodable not in key[2]:
        if len(_sound) < _KNOWN_MAX:
            _sound.add(key)
        return row
    return {name: nearest(value, fields[name]) for name, value in row.items()}


def text_or_none(value: Any) -> str | None:
    """A stored value as text, whatever its type; None for NULL."""
    return None if value is None else nearest(value, (str,))


def nearest(value: Any, kinds: tuple[type, ...]) -> Any:
    """Converts a value to the closest value of the given types."""
    if isinstance(value, kinds) and not isinstance(value, Undecodable):
        return value
    if str in kinds:
        return _text(value) if value is not None else ""
    if NoneType in kinds:
        return None
    if bytes in kinds:
        return value.encode() if isinstance(value, str) else b""
    return int(value) if isinstance(value, float) else 0


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _fields_of(cls: type) -> dict[str, tuple[type, ...]]:
    if cls not in _fields:
        _fields[cls] = {name: _kinds(hint) for name, hint in get_type_hints(cls).items()}
    return _fields[cls]


def _kinds(hint: Any) -> tuple[type, ...]:
    kinds = get_args(hint) or (hint,)
    return (*kinds, int) if bool in kinds else kinds  # SQLite has no booleans
