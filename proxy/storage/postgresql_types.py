"""Values on their way to PostgreSQL and back: the same Python types as from SQLite.

PostgreSQL's text cannot hold U+0000, which models and clients do send: it is stored as two other characters.
https://www.postgresql.org/docs/current/datatype-character.html
"""

from collections.abc import Sequence
from typing import Any

import orjson
from psycopg import Connection
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.pq import Format
from psycopg.types.numeric import Int8Dumper, NumericBinaryLoader
from psycopg.types.string import StrBinaryDumper

# A noncharacter, which no text has a use for: what follows it says what is meant. https://www.unicode.org/faq/private_use
_ESCAPE = "\ufdd0"
_ZERO, _ITSELF = _ESCAPE + "0", _ESCAPE + "1"


def encoded(text: str) -> str:
    """A text as it is stored."""
    if "\0" in text or _ESCAPE in text:
        return text.replace(_ESCAPE, _ITSELF).replace("\0", _ZERO)
    return text


def decoded(value: Any) -> Any:
    """A column's value as it was given."""
    if type(value) is str and _ESCAPE in value:
        return value.replace(_ZERO, "\0").replace(_ITSELF, _ESCAPE)
    return value


class EncodedText(str):
    """A text that is encoded already."""

    __slots__ = ()


def rows_as_json(rows: Sequence[dict[str, Any]]) -> EncodedText:
    """Rows as one JSON text; bytes as hexadecimal digits."""
    listed = [{name: _jsonable(value) for name, value in row.items()} for row in rows]
    return EncodedText(orjson.dumps(listed).decode())


def _jsonable(value: Any) -> Any:
    if type(value) is str:
        return encoded(value)
    return value.hex() if isinstance(value, bytes) else value


class _Text(StrBinaryDumper):
    """Text is always of the type text: a statement is prepared once, whatever it is given."""

    def dump(self, obj: str) -> Buffer | None:
        return super().dump(encoded(obj))


class _Truth(Loader):
    """SQLite has no booleans: 0 and 1."""

    format = Format.BINARY

    def load(self, data: Buffer) -> int:
        return int(bytes(data) != b"\0")


class _Sum(NumericBinaryLoader):
    """SUM of BIGINT is NUMERIC."""

    def load(self, data: Buffer) -> int:  # type: ignore[override]
        return int(super().load(data))


def register(connection: Connection[Any]) -> None:
    """Let a connection use these types."""
    adapters = connection.adapters
    adapters.register_dumper(str, _Text)
    adapters.register_dumper(EncodedText, StrBinaryDumper)
    adapters.register_dumper(int, Int8Dumper)
    adapters.register_loader("bool", _Truth)
    adapters.register_loader("numeric", _Sum)
