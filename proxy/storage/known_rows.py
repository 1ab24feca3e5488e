"""The rows that a transaction has read ahead: they answer its look-ups until it changes them itself.

The writer's lock keeps other transactions from changing these rows. When this transaction itself writes, the rows that
the write may change are dropped, and the next look-up reads them again.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from proxy.storage.connection import Parameters, Row
from proxy.storage.postgresql_sql import POSTGRESQL_QUERIES, SEQUENCES, statement

_Key = tuple[Any, ...]

# Writes that change no row that is read ahead.
_UNRELATED = frozenset(
    {
        *("touch_user", "count_sessions", "count_usage", "adopt_reply", "insert_fragment", "delete_fragments"),
        *("insert_blob", "insert_message_blob", "insert_response_item", "insert_jump"),
    }
)
# The columns that identify the rows that a write changes. A write that is not listed may change any row.
_CHANGED_BY = {
    "insert_user": ("user_id",),
    "insert_session": ("session_id", "external_id"),
    "insert_message": ("session_id",),
    "touch_session": ("session_id",),
    "insert_exchange": ("exchange_id",),
    "finish_exchange": ("exchange_id",),
    "insert_parameters": ("digest",),
    "insert_tools": ("digest",),
    "insert_upstream": ("name",),
}


class KnownRows:
    """The results of named queries by their parameters."""

    def __init__(self) -> None:
        self._rows: dict[_Key, list[Row]] = {}
        self._keys: dict[Any, list[_Key]] = {}
        self.changed: set[Any] = set()  # the keys (ids, digests, names) whose rows were dropped

    def find(self, name: str, parameters: Parameters) -> list[Row] | None:
        """The rows of a query, if they are known."""
        return self._rows.get(_key(name, parameters)) if self._rows else None

    def add(self, name: str, parameters: Parameters, rows: list[Row], *about: Any) -> None:
        """Keeps the rows of a query until a write changes one of the keys `about`."""
        key = _key(name, parameters)
        self._rows[key] = rows
        for each in about:
            self._keys.setdefault(each, []).append(key)

    def clear(self) -> None:
        self._rows.clear()
        self._keys.clear()
        self.changed.clear()

    def ran(self, name: str) -> None:
        """Called with each statement that is run, or about to be."""
        if self._rows and name not in _UNRELATED and _writes(name):
            self._forget_all()

    def stored(self, name: str, rows: Sequence[Parameters]) -> None:
        """Called with the rows of each write that is queued."""
        if not rows or not self._rows or name in _UNRELATED:
            return
        columns = _CHANGED_BY.get(name)
        if columns is None:
            self._forget_all()
            return
        for row in rows:
            for column in columns:
                self._forget(row.get(column))
        if name in SEQUENCES:
            self._move_on(SEQUENCES[name][0], rows)

    def _forget(self, about: Any) -> None:
        keys = self._keys.pop(about, ())
        for key in keys:
            self._rows.pop(key, None)
        if keys:
            self.changed.add(about)

    def _forget_all(self) -> None:
        self.changed.update(self._keys)
        self._rows.clear()
        self._keys.clear()

    def _move_on(self, column: str, rows: Sequence[Parameters]) -> None:
        """Keeps the numbers in use up to date."""
        numbers = self._rows.get(_LAST_NUMBERS)
        if numbers is not None:
            given = [row[column] for row in rows]
            if None in given:
                del self._rows[_LAST_NUMBERS]
            else:
                numbers[0][column] = max(numbers[0][column], *given)


def _key(name: str, parameters: Parameters) -> _Key:
    return (name, *(parameters[each] for each in statement(name).names))


@lru_cache(maxsize=1024)
def _writes(name: str) -> bool:
    return re.search(r"\b(INSERT|UPDATE|DELETE)\b", statement(name).text) is not None


_LAST_NUMBERS: _Key = ("last_numbers",)

assert set(_CHANGED_BY) | _UNRELATED <= set(POSTGRESQL_QUERIES)
