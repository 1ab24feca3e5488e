"""Converts values to and from PostgreSQL, so that callers see the same Python types as with SQLite.

PostgreSQL's text cannot contain U+0000, which models and clients do send: it is stored as a two-character escape.
https://www.postgresql.org/docs/current/datatype-character.html
"""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from psycopg import Connection
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.pq import Format
from psycopg.types.numeric import Int8Dumper, NumericBinaryLoader
from psycopg.types.string import StrBinaryDumper

# A noncharacter, which valid text does not use, marks the escape. https://www.unicode.org/faq/private_use
_ESCAPE = "\ufdd0"
_ZERO, _ITSELF = _ESCAPE + "0", _ESCAPE + "1"
_ZERO_IN_JSON = rb"\u0000"


def encoded(text: str) -> str:
    """Escapes a text for storage."""
    if "\0" in text or _ESCAPE in text:
        return text.replace(_ESCAPE, _ITSELF).replace("\0", _ZERO)
    return text


def decoded(value: Any) -> Any:
    """Restores the original text of a column's value."""
    if type(value) is str and _ESCAPE in value:
        return value.replace(_ZERO, "\0").replace(_ITSELF, _ESCAPE)
    return value


class EncodedText(str):
    """A text that is already escaped."""

    __slots__ = ()


# The server reads this text twice: to check it, and to take its values. With the columns' full names and with NULLs, a
# new chat took 11 % more instructions of the server (measured).
def rows_as_json(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> EncodedText:
    """Rows as one JSON text: the columns are `c1`, `c2`, … in the order of `names`; bytes become hexadecimal digits."""
    keys = [(f"c{position}", name) for position, name in enumerate(names, start=1)]
    listed = [{key: row[name] for key, name in keys if row[name] is not None} for row in rows]
    text = orjson.dumps(listed, default=bytes.hex)
    if _ZERO_IN_JSON in text or _ESCAPE.encode() in text:  # rare, so it is cheaper to look for it in the whole
        listed = [{key: _escaped(value) for key, value in row.items()} for row in listed]
        text = orjson.dumps(listed, default=bytes.hex)
    return EncodedText(text.decode())


def _escaped(value: Any) -> Any:
    return encoded(value) if isinstance(value, str) else value


class _Text(StrBinaryDumper):
    """Always sends strings as type text, so that a statement is prepared only once."""

    def dump(self, obj: str) -> Buffer | None:
        return super().dump(encoded(obj))


class _Truth(Loader):
    """Reads booleans as 0 and 1: SQLite has no booleans."""

    format = Format.BINARY

    def load(self, data: Buffer) -> int:
        return int(bytes(data) != b"\0")


class _Sum(NumericBinaryLoader):
    """Reads NUMERIC, the type of SUM(BIGINT), as int."""

    def load(self, data: Buffer) -> int:  # type: ignore[override]
        return int(super().load(data))


def register(connection: Connection[Any]) -> None:
    """Registers these types on a connection."""
    adapters = connection.adapters
    adapters.register_dumper(str, _Text)
    adapters.register_dumper(EncodedText, StrBinaryDumper)
    adapters.register_dumper(int, Int8Dumper)
    adapters.register_loader("bool", _Truth)
    adapters.register_loader("numeric", _Sum)
